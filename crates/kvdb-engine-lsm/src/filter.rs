//! What happens while a compaction runs: it leaves out dropped ranges, keeps its pace, and gives
//! way to flushes.
//!
//! Flushes and compactions share one thread. A compaction may take seconds, in which the memtables
//! would grow over their budget and writes would wait. So the compaction itself flushes, between
//! two of its items, whatever has become due. The library holds no lock there.

use crate::engine::Shared;
use crate::volume::Dropped;
use kvdb_model::KeyRange;
use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Bytes between two looks at what else is to be done.
const STEP_BYTES: u64 = 256 * 1024;

/// Makes the filters of one volume.
pub(crate) struct FilterFactory {
    /// The engine outlives its volumes' compactions, or nobody needs it any more.
    engine: AssertUnwindSafe<Weak<Shared>>,
    dropped: AssertUnwindSafe<Dropped>,
}

impl FilterFactory {
    pub(crate) fn new(engine: Weak<Shared>, dropped: Dropped) -> Self {
        FilterFactory { engine: AssertUnwindSafe(engine), dropped: AssertUnwindSafe(dropped) }
    }
}

impl Factory for FilterFactory {
    fn name(&self) -> &str {
        "kvdb"
    }

    fn make_filter(&self, _context: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Filter {
            engine: self.engine.upgrade(),
            dropped: self.dropped.read().clone(),
            bytes: 0,
        })
    }
}

struct Filter {
    engine: Option<Arc<Shared>>,
    dropped: Vec<KeyRange>,
    /// Since the last look.
    bytes: u64,
}

impl CompactionFilter for Filter {
    fn filter_item(
        &mut self,
        item: ItemAccessor<'_>,
        _context: &Context,
    ) -> lsm_tree::Result<Verdict> {
        let key = item.key();
        self.bytes += (key.len() + item.value()?.len()) as u64;
        if self.bytes >= STEP_BYTES {
            let bytes = std::mem::take(&mut self.bytes);
            if let Some(engine) = &self.engine {
                engine.between_items(bytes).map_err(std::io::Error::other)?;
            }
        }
        // No older value comes back into sight that anybody reads: the whole range is dropped.
        let dropped = self.dropped.iter().any(|range| range.contains(key));
        Ok(if dropped { Verdict::Destroy } else { Verdict::Keep })
    }

    fn finish(self: Box<Self>) {
        if let Some(engine) = self.engine {
            engine.common.counts.compacting(self.bytes);
        }
    }
}

/// Spreads compactions over time.
pub(crate) struct Pace {
    bytes_per_second: Option<u64>,
    /// When all that was read so far would have been read at the rate.
    paid_until: Instant,
}

/// Credit that a pause gives: a compaction starts at full speed for as long.
const BURST: Duration = Duration::from_millis(100);

impl Pace {
    pub(crate) fn new(bytes_per_second: Option<u64>, now: Instant) -> Self {
        Pace { bytes_per_second, paid_until: now }
    }

    /// How long to rest after having read `bytes`.
    pub(crate) fn rest(&mut self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.paid_until = self.paid_until.max(earliest) + cost;
        self.paid_until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_compaction_reads_at_its_rate_after_a_burst() {
        let mut now = Instant::now();
        let mut pace = Pace::new(Some(1000), now);
        now += Duration::from_secs(10);
        // The pause gave 100 bytes of credit and no more.
        assert_eq!(pace.rest(100, now), Duration::ZERO);
        assert_eq!(pace.rest(500, now), Duration::from_millis(500));
        now += Duration::from_millis(500);
        assert_eq!(pace.rest(250, now), Duration::from_millis(250));
    }

    #[test]
    fn without_a_rate_nothing_rests() {
        let now = Instant::now();
        assert_eq!(Pace::new(None, now).rest(u64::MAX, now), Duration::ZERO);
    }
}
