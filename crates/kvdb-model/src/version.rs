//! Versions: 64-bit hybrid-logical-clock stamps (Kulkarni et al., "Logical Physical Clocks", 2014).
//!
//! The upper 48 bits are milliseconds since 1970, the lower 16 a counter. A shard's leader gives
//! one to every write; they only rise within a shard, whatever clocks do.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of a record, and the unit of *shard time*.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl Version {
    /// Below every version that a write can get.
    pub const ZERO: Version = Version(0);

    /// The first version of a millisecond.
    pub const fn from_millis(millis: u64) -> Self {
        Version(millis << 16)
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The version `count` after this one. A full counter runs over into the milliseconds, which
    /// keeps the order.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Version(self.0.saturating_add(count))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({}.{})", self.millis(), self.0 & 0xffff)
    }
}

/// Gives out rising versions. One a shard, kept by whoever proposes.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: Version,
}

impl HybridClock {
    /// A clock whose next version is above `floor`.
    pub fn above(floor: Version) -> Self {
        HybridClock { last: floor }
    }

    /// The highest version given out or observed.
    pub fn last(&self) -> Version {
        self.last
    }

    /// Makes sure that everything given out from now on is above `seen`.
    pub fn observe(&mut self, seen: Version) {
        self.last = self.last.max(seen);
    }

    /// The first of `count` consecutive versions, all above everything given out or observed
    /// before, and not below `time_ms` (milliseconds since 1970).
    pub fn reserve(&mut self, time_ms: u64, count: u64) -> Version {
        let first = self.last.plus(1).max(Version::from_millis(time_ms));
        self.last = first.plus(count.saturating_sub(1));
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn versions_rise_whatever_the_wall_clock_does(steps in prop::collection::vec((0u64..1000, 1u64..70_000), 1..50)) {
            let mut clock = HybridClock::default();
            let mut highest = Version::ZERO;
            for (time_ms, count) in steps {
                let first = clock.reserve(time_ms, count);
                prop_assert!(first > highest);
                prop_assert!(first.millis() >= time_ms);
                highest = first.plus(count - 1);
                prop_assert_eq!(clock.last(), highest);
            }
        }
    }
}
