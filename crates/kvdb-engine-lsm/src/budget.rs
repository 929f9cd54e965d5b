//! What is written and not flushed of all volumes together, and the counts of an engine.

use kvdb_engine::EngineTotals;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Bytes that were written to all volumes since they were last flushed, those being flushed included.
/// That bounds both the memtables and the log, which is kept for them.
#[derive(Default)]
pub(crate) struct Budget {
    limit: u64,
    bytes: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Budget { limit, bytes: AtomicU64::new(0) }
    }

    /// Returns whether this went over the limit just now.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let before = self.bytes.fetch_add(bytes, Relaxed);
        before <= self.limit && before + bytes > self.limit
    }

    pub(crate) fn give_back(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Something must be flushed.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes.load(Relaxed) > self.limit
    }

    /// So much that writes must wait.
    pub(crate) fn is_far_over(&self) -> bool {
        self.bytes.load(Relaxed) > self.limit.saturating_mul(2)
    }
}

/// Counts since the engine was opened.
#[derive(Default)]
pub(crate) struct Counts {
    stalls: AtomicU64,
    stalled_us: AtomicU64,
    flushes: AtomicU64,
    compactions: AtomicU64,
    compacted_bytes: AtomicU64,
}

impl Counts {
    pub(crate) fn stalled(&self, waited: Duration) {
        self.stalls.fetch_add(1, Relaxed);
        let us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        self.stalled_us.fetch_add(us, Relaxed);
    }

    pub(crate) fn flushed(&self) {
        self.flushes.fetch_add(1, Relaxed);
    }

    pub(crate) fn compacted(&self) {
        self.compactions.fetch_add(1, Relaxed);
    }

    pub(crate) fn compacting(&self, bytes: u64) {
        self.compacted_bytes.fetch_add(bytes, Relaxed);
    }

    /// Without what the engine takes up now.
    pub(crate) fn totals(&self) -> EngineTotals {
        EngineTotals {
            stalls: self.stalls.load(Relaxed),
            stalled_ms: self.stalled_us.load(Relaxed) / 1000,
            flushes: self.flushes.load(Relaxed),
            compactions: self.compactions.load(Relaxed),
            compacted_bytes: self.compacted_bytes.load(Relaxed),
            ..EngineTotals::default()
        }
    }
}
