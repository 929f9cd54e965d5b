//! A bound on bytes a second that all who send share.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// What snapshots may take of the network and the disks, if nothing else is said: enough for a
/// gigabyte in a quarter of a minute, and little of what a disk or a network of today gives.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 64 << 20;

/// Spreads bytes over time. Nothing is saved up: after a pause it goes on at the same rate.
pub(crate) struct Pace {
    /// 0 for no bound.
    bytes_per_second: u64,
    /// When all that was let through has had its time.
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Pace { bytes_per_second, free_at: Mutex::new(None) }
    }

    pub(crate) fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second
    }

    /// Takes the time that so many bytes need. Returns how long to wait before they go.
    pub(crate) fn take(&self, bytes: usize, now: Instant) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second);
        let mut free_at = self.free_at.lock();
        let begins = free_at.unwrap_or(now).max(now);
        *free_at = Some(begins + Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64));
        begins - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_together_shares_the_rate_and_nothing_is_saved_up() {
        let pace = Pace::new(1000);
        let now = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(pace.take(500, now), ms(0));
        assert_eq!(pace.take(250, now), ms(500));
        assert_eq!(pace.take(250, now + ms(100)), ms(650));
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.take(1000, later), ms(0));
        assert_eq!(pace.take(1, later), ms(1000));
    }

    #[test]
    fn no_rate_is_no_bound() {
        assert_eq!(Pace::new(0).take(usize::MAX, Instant::now()), Duration::ZERO);
    }
}
