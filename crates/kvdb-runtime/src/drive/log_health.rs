//! How the log's syncs go: a figure to be compared with that of other nodes ([`crate::means`]), and
//! whether they hang.

use crate::means::Means;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// The syncs of a log.
pub struct LogHealth {
    /// When the sync under way began, in microseconds of the boot clock; 0 for none.
    began_us: AtomicU64,
    syncs: Mutex<Means>,
    wary: watch::Sender<bool>,
}

impl Default for LogHealth {
    fn default() -> Self {
        LogHealth {
            began_us: AtomicU64::new(0),
            syncs: Mutex::default(),
            wary: watch::Sender::new(false),
        }
    }
}

impl LogHealth {
    pub(crate) fn begins(&self, now_us: u64) {
        self.began_us.store(now_us, Ordering::Relaxed);
    }

    pub(crate) fn ends(&self, now_us: u64) {
        let began_us = self.began_us.swap(0, Ordering::Relaxed);
        self.syncs.lock().note(now_us, now_us.saturating_sub(began_us));
    }

    /// How long a sync takes lately, in microseconds; 0 if there was none.
    pub fn sync_us(&self, now_us: u64) -> u64 {
        let began_us = self.began_us.load(Ordering::Relaxed);
        let under_way = (began_us > 0).then(|| now_us.saturating_sub(began_us));
        self.syncs.lock().figure(now_us, under_way.unwrap_or_default())
    }

    /// Whether the log can't be synced, or couldn't a moment ago.
    pub fn is_wary(&self) -> bool {
        *self.wary.borrow()
    }

    /// Changes with that.
    pub(crate) fn changes(&self) -> watch::Receiver<bool> {
        self.wary.subscribe()
    }

    /// Returns whether that is new.
    pub(crate) fn set_wary(&self, wary: bool) -> bool {
        self.wary.send_if_modified(|was| std::mem::replace(was, wary) != wary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn a_sync_that_is_under_way_counts_with_what_it_took_so_far() {
        let health = LogHealth::default();
        assert_eq!(health.sync_us(5 * SECOND_US), 0);
        for second in 1..=3 {
            health.begins(second * SECOND_US);
            health.ends(second * SECOND_US + 1_000);
        }
        assert_eq!(health.sync_us(4 * SECOND_US), 1_000);
        health.begins(4 * SECOND_US);
        assert_eq!(health.sync_us(4 * SECOND_US + 10), 1_000);
        assert_eq!(health.sync_us(8 * SECOND_US), 1_000_750);
    }

    #[test]
    fn becoming_wary_is_told_once() {
        let health = LogHealth::default();
        assert!(!health.set_wary(false));
        assert!(health.set_wary(true));
        assert!(!health.set_wary(true));
        assert!(health.is_wary());
    }
}
