//! Generations of the coordinators' group.
//!
//! Coordinators that have lost their majority for good may go on from one of them alone. What the lost
//! ones know is of an earlier generation from then on. Everybody keeps the newest that they have met,
//! and turns earlier ones away: so lost coordinators that come back, and older copies of their
//! directories, find nobody who listens.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The most recoveries of one group. With each, ids leap.
pub const MOST_GENERATIONS: u64 = 1000;

/// A generation. The first one, of a group that was never recovered, is the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Rises with each recovery.
    pub number: u64,
    /// Drawn by the recovery, since two coordinators may have been recovered alone, each by itself.
    pub nonce: u128,
}

/// What one generation is for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationOrder {
    /// They are the same.
    Same,
    /// The other one is newer: it counts from now on.
    Newer,
    /// The other one is older, or of another recovery under the same number: it doesn't count.
    Foreign,
}

impl Generation {
    /// What another generation is for this one.
    pub fn compare(&self, other: &Generation) -> GenerationOrder {
        if self == other {
            GenerationOrder::Same
        } else if other.number > self.number {
            GenerationOrder::Newer
        } else {
            GenerationOrder::Foreign
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => write!(f, "0"),
            // Enough to tell two recoveries apart.
            number => write!(f, "{number} ({:08x})", self.nonce >> 96),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_higher_number_is_newer_and_two_recoveries_are_never_the_same() {
        let generation = |number, nonce| Generation { number, nonce };
        let own = generation(2, 7);
        assert_eq!(own.compare(&generation(2, 7)), GenerationOrder::Same);
        assert_eq!(own.compare(&generation(3, 1)), GenerationOrder::Newer);
        for foreign in [generation(2, 8), generation(1, 7), Generation::default()] {
            assert_eq!(own.compare(&foreign), GenerationOrder::Foreign, "{foreign}");
        }
        assert_eq!(Generation::default().to_string(), "0");
        assert_eq!(generation(1, 0xabcd_ef01 << 96).to_string(), "1 (abcdef01)");
    }
}
