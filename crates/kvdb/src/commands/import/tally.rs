//! What became of the rows, counted by several threads.

use crate::exit::Failure;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Exit code of an unknown outcome.
const UNKNOWN: u8 = 5;

/// Counts. The atomics are independent of one another; they are read together only after all who
/// write them are done, so no order between them is needed.
pub(super) struct Tally {
    acknowledged: AtomicU64,
    skipped: AtomicU64,
    read_bytes: AtomicU64,
    /// The first line whose row isn't known to be in; `u64::MAX` if there is none.
    first_open_line: AtomicU64,
    /// The line that ended the reading because it is no row, and what is wrong with it.
    refused: Mutex<Option<(u64, Failure)>>,
    failure: Mutex<Option<Failure>>,
}

/// The counts at the end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) acknowledged: u64,
    pub(super) skipped: u64,
    /// All rows before it are acknowledged or were skipped; `None` if all are.
    pub(super) first_open_line: Option<u64>,
    /// The line that ended the reading because it is no row.
    pub(super) bad_line: Option<u64>,
    pub(super) failure: Option<Failure>,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            acknowledged: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            first_open_line: AtomicU64::new(u64::MAX),
            refused: Mutex::default(),
            failure: Mutex::default(),
        }
    }
}

impl Tally {
    pub(super) fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(super) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read_through(&self, bytes: u64) {
        self.read_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// The row of this line isn't known to be in.
    pub(super) fn leave_open(&self, line: u64) {
        self.first_open_line.fetch_min(line, Ordering::Relaxed);
    }

    /// This line is no row, and ends the reading. The rows before it are still sent.
    pub(super) fn refuse(&self, line: u64, reason: Failure) {
        self.leave_open(line);
        *self.refused.lock().expect("nothing panics while it is held") = Some((line, reason));
    }

    /// Nothing more is to be read or sent. The first reason counts, but for one that leaves an
    /// outcome unknown: that must not be hidden.
    pub(super) fn stop(&self, reason: Failure) {
        let mut failure = self.failure.lock().expect("nothing panics while it is held");
        let leaves_unknown = |failure: &Failure| failure.code() == UNKNOWN;
        let hidden = leaves_unknown(&reason) && !failure.as_ref().is_some_and(leaves_unknown);
        if failure.is_none() || hidden {
            *failure = Some(reason);
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.failure.lock().expect("nothing panics while it is held").is_some()
    }

    pub(super) fn outcome(&self) -> Outcome {
        let first_open_line = self.first_open_line.load(Ordering::Relaxed);
        let refused = self.refused.lock().expect("nothing panics while it is held").clone();
        let failure = self.failure.lock().expect("nothing panics while it is held").clone();
        let (bad_line, refused) = refused.unzip();
        Outcome {
            acknowledged: self.acknowledged(),
            skipped: self.skipped.load(Ordering::Relaxed),
            first_open_line: (first_open_line != u64::MAX).then_some(first_open_line),
            bad_line,
            failure: failure.or(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_is_not_hidden_by_what_failed_first() {
        let tally = Tally::default();
        assert!(!tally.is_stopped());
        tally.stop(Failure::Unavailable("gone".into()));
        tally.stop(Failure::Unknown("lost".into()));
        tally.stop(Failure::Refused("late".into()));
        assert_eq!(tally.outcome().failure, Some(Failure::Unknown("lost".into())));
    }

    #[test]
    fn the_first_open_line_is_the_smallest() {
        let tally = Tally::default();
        assert_eq!(tally.outcome().first_open_line, None);
        for line in [7, 3, 5] {
            tally.leave_open(line);
        }
        assert_eq!(tally.outcome().first_open_line, Some(3));
    }
}
