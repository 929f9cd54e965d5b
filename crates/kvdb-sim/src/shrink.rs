//! The few faults that a failure needs.
//!
//! Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input",
//! 2002): parts of the set, and what is left without a part, are tried until no single fault can
//! be left out. What counts is that the story fails in the same way: another failure would lead
//! astray.

use crate::schedule::Chosen;
use crate::story::{Failure, Settings, run_with};
use std::collections::BTreeSet;

/// The smallest story that was found.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The faults without which it doesn't fail, by number.
    pub faults: BTreeSet<u64>,
    /// How many there were.
    pub drawn: u64,
    /// Stories told to find them.
    pub stories: u64,
    /// How the smallest story fails.
    pub failure: Failure,
}

/// Shrinks the schedule of a seed that fails; nothing if it doesn't. At most `most_stories` are
/// told. The same seed, settings and limit give the same answer.
pub fn shrink(seed: u64, settings: &Settings, most_stories: u64) -> Option<Shrunk> {
    let whole = run_with(seed, settings, &Chosen::All).err()?;
    let kind = kind_of(&whole.what);
    let drawn = whole.drawn;
    let mut failure = whole;
    let mut stories = 1;
    let faults = minimize((1..=drawn).collect(), |these| {
        if stories >= most_stories {
            return false;
        }
        stories += 1;
        match run_with(seed, settings, &Chosen::Only(these.iter().copied().collect())) {
            Err(found) if kind_of(&found.what) == kind => {
                failure = found;
                true
            }
            _ => false,
        }
    });
    Some(Shrunk { faults: faults.into_iter().collect(), drawn, stories, failure })
}

/// A failure without what differs from story to story.
fn kind_of(what: &str) -> String {
    what.chars().filter(|letter| !letter.is_ascii_digit()).take(48).collect()
}

/// The smallest part of `all` that was found for which `fails` holds, given that it does for all
/// of it: no single one can be left out, unless `fails` has begun to refuse everything.
fn minimize(all: Vec<u64>, mut fails: impl FnMut(&[u64]) -> bool) -> Vec<u64> {
    let mut left = all;
    if left.is_empty() || fails(&[]) {
        return Vec::new();
    }
    let mut parts = 2;
    while left.len() > 1 {
        let size = left.len().div_ceil(parts);
        let chunks: Vec<Vec<u64>> = left.chunks(size).map(<[u64]>::to_vec).collect();
        let rest = |chunk: &[u64]| -> Vec<u64> {
            left.iter().filter(|number| !chunk.contains(number)).copied().collect()
        };
        if let Some(found) = chunks.iter().find(|chunk| fails(chunk)) {
            left = found.clone();
            parts = 2;
        } else if let Some(found) =
            chunks.iter().map(|chunk| rest(chunk)).find(|rest| parts > 2 && fails(rest))
        {
            left = found;
            parts = (parts - 1).max(2);
        } else if parts >= left.len() {
            break;
        } else {
            parts = (2 * parts).min(left.len());
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(needed: &[u64]) -> Vec<u64> {
        minimize((1..=50).collect(), |these| needed.iter().all(|one| these.contains(one)))
    }

    #[test]
    fn what_is_needed_is_found_wherever_it_lies() {
        for needed in [&[][..], &[1], &[50], &[7, 8], &[1, 25, 50], &[3, 14, 15, 41]] {
            assert_eq!(needs(needed), needed);
        }
    }

    #[test]
    fn nothing_left_can_be_left_out() {
        // Fails with two of these three: which two doesn't matter.
        let fails =
            |these: &[u64]| [5, 20, 40].iter().filter(|one| these.contains(one)).count() > 1;
        let left = minimize((1..=50).collect(), fails);
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(fails(&left));
    }

    #[test]
    fn failures_are_the_same_whatever_their_numbers() {
        assert_eq!(kind_of("shard 4 has 2 leaders"), kind_of("shard 17 has 0 leaders"));
        assert_ne!(kind_of("shard 4 has 2 leaders"), kind_of("client 4 got only 2 answers"));
    }
}
