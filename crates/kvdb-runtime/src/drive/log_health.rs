//! How the log's syncs go: a figure to be compared with that of other nodes, and whether they hang.
//!
//! The figure is the mean over the seconds of the last ten in which something was synced, each second
//! counting once: a disk that is slow every other second does few syncs in the slow ones, and a mean
//! over syncs would hide it. A sync that is under way counts with what it took so far.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;

/// Seconds that are looked back on.
const SECONDS: u64 = 10;

/// The syncs of a log.
pub struct LogHealth {
    /// When the sync under way began, in microseconds of the boot clock; 0 for none.
    began_us: AtomicU64,
    syncs: Mutex<Syncs>,
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

#[derive(Clone, Copy, Default)]
struct Second {
    number: u64,
    total_us: u64,
    count: u64,
}

#[derive(Default)]
struct Syncs {
    seconds: [Second; SECONDS as usize],
}

impl Syncs {
    fn note(&mut self, ended_us: u64, took_us: u64) {
        let number = ended_us / 1_000_000;
        let second = &mut self.seconds[(number % SECONDS) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second.total_us += took_us;
        second.count += 1;
    }

    fn figure(&self, now_us: u64, under_way_us: u64) -> u64 {
        let number = now_us / 1_000_000;
        let lately = |second: &&Second| second.count > 0 && second.number + SECONDS > number;
        let means = self.seconds.iter().filter(lately).map(|second| second.total_us / second.count);
        let (mut total, mut count) = (0, 0);
        for mean in means {
            total += mean;
            count += 1;
        }
        let mean = total.checked_div(count).unwrap_or_default();
        mean.max((total + under_way_us) / (count + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn a_disk_that_is_slow_every_other_second_is_slow_in_the_figure_all_the_time() {
        let mut syncs = Syncs::default();
        let mut now_us = SECOND_US;
        while now_us < 60 * SECOND_US {
            let took_us = if (now_us / SECOND_US).is_multiple_of(2) { 100_000 } else { 1_000 };
            now_us += took_us;
            syncs.note(now_us, took_us);
            if now_us > 12 * SECOND_US {
                let figure = syncs.figure(now_us, 0);
                // Half of the seconds are slow; of the present one only a fast sync may be known yet.
                assert!((35_000..70_000).contains(&figure), "{figure}");
            }
        }
        // Ten seconds later nothing is known of it.
        assert_eq!(syncs.figure(now_us + 10 * SECOND_US, 0), 0);
    }

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
