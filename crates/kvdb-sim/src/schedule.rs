//! Which fault comes when: a list that follows from the seed alone.
//!
//! Faults are numbered as they are drawn. When each comes, what it is and whom it hits is drawn
//! from dice of its own, which nothing else in the world uses: leaving one out changes what the
//! world does, but not which faults the others are. That is what makes it possible to look for
//! the few that a failure needs (`shrink`).

use crate::dice::Dice;
use std::collections::BTreeSet;

/// Which of a story's faults are carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Chosen {
    /// All that are drawn.
    #[default]
    All,
    /// These, by number.
    Only(BTreeSet<u64>),
    /// All but these.
    Without(BTreeSet<u64>),
}

impl Chosen {
    fn has(&self, number: u64) -> bool {
        match self {
            Chosen::All => true,
            Chosen::Only(these) => these.contains(&number),
            Chosen::Without(these) => !these.contains(&number),
        }
    }
}

/// The faults of one story.
pub(crate) struct Schedule {
    seed: u64,
    pauses: Dice,
    chosen: Chosen,
    /// Faults drawn so far.
    pub(crate) drawn: u64,
}

/// A fault that is due.
pub(crate) struct Due {
    pub(crate) number: u64,
    /// All that is chance in it comes from here.
    pub(crate) dice: Dice,
    /// Whether it is carried out.
    pub(crate) chosen: bool,
    /// When the next one is due.
    pub(crate) next_us: u64,
}

impl Schedule {
    pub(crate) fn new(seed: u64, chosen: Chosen) -> Self {
        Schedule { seed, pauses: Dice::new(mixed(seed, 0)), chosen, drawn: 0 }
    }

    pub(crate) fn draw(&mut self) -> Due {
        self.drawn += 1;
        let number = self.drawn;
        Due {
            number,
            dice: Dice::new(mixed(self.seed, number)),
            chosen: self.chosen.has(number),
            next_us: self.pauses.between(100_000, 1_500_000),
        }
    }
}

/// Another seed for each number (the finalizer of SplitMix64).
fn mixed(seed: u64, number: u64) -> u64 {
    let mut mixed = seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaving_a_fault_out_changes_no_other() {
        let without = Chosen::Without([2, 5].into());
        let (mut all, mut some) = (Schedule::new(9, Chosen::All), Schedule::new(9, without));
        for number in 1..=10 {
            let (mut one, mut other) = (all.draw(), some.draw());
            assert_eq!((one.number, one.next_us), (other.number, other.next_us));
            assert_eq!(one.dice.any(), other.dice.any());
            assert_eq!((one.chosen, other.chosen), (true, number != 2 && number != 5));
        }
        assert_ne!(Schedule::new(9, Chosen::All).draw().dice.any(), all.draw().dice.any());
    }
}
