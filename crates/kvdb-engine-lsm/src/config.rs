//! Settings, and what raising each of them costs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Level-0 runs at which a flush compacts first. The format counts them in one byte.
pub(crate) const MOST_RUNS: usize = 64;

/// Whether there is room on the disk for what the engine is about to write. Asked before, because
/// a file that breaks off in the middle keeps its space until the next start.
pub trait Room: Send + Sync {
    /// For a flush of as many bytes. What waits for a flush keeps memory and log from shrinking.
    fn for_flush(&self, bytes: u64) -> bool;
    /// For a compaction that writes up to as many bytes.
    fn for_compaction(&self, bytes: u64) -> bool;
    /// For a new volume, whose size isn't known.
    fn for_volume(&self) -> bool;
}

/// The room that an engine asks for, if it asks.
#[derive(Clone, Default)]
pub struct Asks(pub(crate) Option<Arc<dyn Room>>);

impl Asks {
    /// Asks `room` before anything large is written.
    pub fn of(room: Arc<dyn Room>) -> Self {
        Asks(Some(room))
    }

    pub(crate) fn may(&self, ask: impl Fn(&dyn Room) -> bool) -> bool {
        self.0.as_ref().is_none_or(|room| ask(&**room))
    }
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Asks(..)" } else { "Asks(nobody)" })
    }
}

/// Settings of an [`crate::LsmEngine`].
#[derive(Clone, Debug)]
pub struct LsmConfig {
    /// Bytes written to all volumes together before the one with the most is flushed; at twice as many
    /// writes wait. Raising it makes fewer, larger flushes, and a longer write-ahead log and
    /// restart.
    pub memtable_budget_bytes: u64,
    /// Longest that a change stays in memory only. Raising it makes fewer flushes and a longer
    /// log.
    pub flush_age: Duration,
    /// Block cache of all volumes together. Raising it costs memory and saves reads.
    pub cache_bytes: u64,
    /// Open files of all volumes together. Raising it costs file descriptors.
    pub open_files: usize,
    /// Level-0 tables of a volume from which it is compacted, 2 to 32. Raising it saves writes
    /// and makes reads look into more tables.
    pub compact_at_runs: u8,
    /// Level-0 runs of a volume at which writes to it wait, above `compact_at_runs` and up to 64.
    pub stall_at_runs: usize,
    /// Longest that one write waits for flushes and compactions. Raising it holds memory down
    /// where the disk is slow, and makes the slowest write slower.
    pub longest_stall: Duration,
    /// Bytes of keys and values that compactions read in a second, while no write waits for them;
    /// `None` is as fast as it goes. Raising it takes more of disk and processor from requests.
    pub compaction_bytes_per_second: Option<u64>,
    /// Who knows how much room there is on the disk.
    pub room: Asks,
}

impl Default for LsmConfig {
    fn default() -> Self {
        LsmConfig {
            memtable_budget_bytes: 64 * 1024 * 1024,
            flush_age: Duration::from_secs(60),
            cache_bytes: 128 * 1024 * 1024,
            open_files: 512,
            compact_at_runs: 4,
            stall_at_runs: 48,
            longest_stall: Duration::from_millis(500),
            compaction_bytes_per_second: Some(128 * 1024 * 1024),
            room: Asks::default(),
        }
    }
}

impl LsmConfig {
    /// Whether an engine can be run with this. Changes nothing.
    ///
    /// # Errors
    /// The field and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        if self.memtable_budget_bytes == 0 {
            return Err("memtable_budget_bytes must be above 0".into());
        }
        if self.open_files == 0 {
            return Err("open_files must be above 0".into());
        }
        if !(2..=32).contains(&self.compact_at_runs) {
            let given = self.compact_at_runs;
            return Err(format!("compact_at_runs must be 2 to 32, not {given}"));
        }
        if self.stall_at_runs <= usize::from(self.compact_at_runs) || self.stall_at_runs > MOST_RUNS
        {
            let given = self.stall_at_runs;
            return Err(format!(
                "stall_at_runs must be above compact_at_runs and up to {MOST_RUNS}, not {given}"
            ));
        }
        if self.compaction_bytes_per_second == Some(0) {
            return Err("compaction_bytes_per_second must be above 0; none is no limit".into());
        }
        Ok(())
    }
}
