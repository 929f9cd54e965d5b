//! What an engine tells about itself.

use crate::SequenceNumber;

/// Figures about one volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeStats {
    /// Bytes in memtables, frozen ones included.
    pub memtable_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// The last batch that became visible.
    pub published: SequenceNumber,
    /// All batches up to here survive a crash.
    pub flushed: SequenceNumber,
    /// Runs in level 0: what a read may have to look into. Writes wait where there are too many.
    pub level0_runs: u64,
}

/// Counts since the engine was opened, and the memory that it takes now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineTotals {
    /// Writes that had to wait because flushing or compacting fell behind.
    pub stalls: u64,
    /// How long they waited together.
    pub stalled_ms: u64,
    /// Memtables written to disk.
    pub flushes: u64,
    /// Compactions that changed something.
    pub compactions: u64,
    /// Bytes of keys and values that compactions read.
    pub compacted_bytes: u64,
    /// Bytes in memtables, frozen ones included.
    pub memtable_bytes: u64,
    /// Bytes that were written and aren't flushed, for which a log must be kept.
    pub unflushed_bytes: u64,
    /// Bytes in the block cache.
    pub cache_bytes: u64,
}
