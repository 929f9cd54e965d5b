//! The write-ahead log: one for all replicas of a process, and the only journal there is.
//!
//! ```text
//! segment  := header | frame*            preallocated, ids rise without gaps
//! header   := magic, format, id, first sequence, size, crc
//! frame    := magic, kind, length, sequence, synced_through, crc | records | padding to 8 bytes
//! ```
//!
//! # What makes it sound
//!
//! - The checksum of a frame covers segment id and sequence number, so that nothing an earlier use
//!   of a file left behind is ever taken for new.
//! - A segment's header says the sequence of its first frame and is synced before that frame is
//!   written; the segment before it is synced first. So all frames below `first sequence` are
//!   durable, and a hole among them is **damage**: opening stops, names file and offset.
//! - In the last segment, each frame says how far the log was synced when it was written. A hole
//!   at or below the highest such mark that can still be found behind it is damage too; above it,
//!   the hole is where a crash cut the log, and what comes behind was never acknowledged.
//! - Opening never goes on in an old segment: it syncs what it found and starts a new one, so that
//!   frames behind a cut can't come back.
//! - A failed write or sync poisons the log: nothing more is accepted.
//!
//! # Space
//!
//! The first segment after a start is small and each one after it twice as large, up to a bound: a
//! log that is hardly used takes hardly any space, and one that is used a lot rolls rarely. A
//! segment's own size is in its header, so that one that was cut off is told from a small one.
//! (Format 1 had no size there: all segments were of the size that the configuration names.)
//!
//! The log keeps the live state of each replica in memory (entries share their bytes with the
//! host's log). When the oldest segment has to go, the replicas that pin it are written again, as
//! a whole, at the head: that state replaces all before it once its last frame is there. The head
//! is synced before the segment goes.

mod disk;
mod frame;
mod live;
mod record;
pub mod sim_disk;
mod wal;

pub use disk::{Disk, FileDisk, Patience};
pub use live::{LiveReplica, LiveState, volumes_to_flush};
pub use wal::{OpenError, Wal, WalConfig, WalError, WalStats};
