//! The ordered store under the shards: a narrow trait, the conformance suite that every
//! implementation passes, and an in-memory implementation for tests and the simulator that
//! forgets what wasn't flushed.
//!
//! The store has **no journal**. What was written since the last flush is gone after a crash and
//! is applied again from the write-ahead log. What keeps that correct:
//!
//! - a [`Batch`] takes one sequence number and becomes visible as a whole;
//! - a flush takes whole batches, in order: after a crash a volume holds exactly the batches up
//!   to some sequence number, never a part of one, never one without those before it;
//! - the applied index of a replica is a record of the same batch as the data that it speaks of.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod error;
mod memory;
mod stats;

pub use error::EngineError;
pub use memory::MemoryEngine;
pub use stats::{EngineTotals, VolumeStats};

use bytes::Bytes;
use kvdb_model::{KeyRange, VolumeId};

/// The longest key that an engine stores, in bytes; the shortest has one.
pub const MAX_KEY_BYTES: usize = u16::MAX as usize;

/// The number of a batch within its volume. Rises with each batch; the same after a restart only
/// for batches that were flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceNumber(pub u64);

/// Changes that become visible, and durable, together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order; a later one wins over an earlier one of the same key. `None` removes the key.
    pub changes: Vec<(Bytes, Option<Bytes>)>,
    /// Of other keys than those of `changes`, in order.
    pub short_lived: Vec<ShortLived>,
}

/// A change of a record that will soon be replaced or removed. An engine may keep it apart, so that
/// what is gone before the next flush is never flushed. It is as durable as the rest of its batch,
/// and [`Engine::snapshot`] shows it; [`Engine::snapshot_of_lasting`] may not.
///
/// A key is changed as short-lived always, once it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortLived {
    /// The key.
    pub key: Bytes,
    /// `None` removes it.
    pub value: Option<Bytes>,
    /// There is nothing under the key: an engine need not look, nor write down a later removal. Said
    /// wrongly, an older value may come back.
    pub is_new: bool,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.changes.push((key.into(), None));
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.short_lived.is_empty()
    }

    /// Whether every key can be stored. Engines ask before they take a number for the batch.
    ///
    /// # Errors
    /// [`EngineError::KeyLength`].
    pub fn check(&self) -> Result<(), EngineError> {
        let keys = self.changes.iter().map(|(key, _)| key);
        keys.chain(self.short_lived.iter().map(|change| &change.key))
            .try_for_each(|key| check_key(key))
    }
}

/// Whether an engine can store `key`.
///
/// # Errors
/// [`EngineError::KeyLength`].
pub fn check_key(key: &[u8]) -> Result<(), EngineError> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        Ok(())
    } else {
        Err(EngineError::KeyLength(key.len()))
    }
}

/// One key and value of an ordered walk, or the error that ended it.
pub type Item = Result<(Bytes, Bytes), EngineError>;

/// A consistent view of one volume, as of one sequence number.
pub trait Snapshot: Send + Sync {
    /// As of which batch.
    fn sequence(&self) -> SequenceNumber;

    /// The value of `key`.
    ///
    /// # Errors
    /// If the store can't be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Keys and values inside `range`, ascending, or descending if `reverse`. Lazy: holds a few
    /// blocks at a time, whatever the size of the range.
    fn scan(&self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = Item> + Send + '_>;
}

/// An ordered store of volumes. Safe to share between threads; batches of one volume must come
/// from one thread at a time.
pub trait Engine: Send + Sync + 'static {
    /// Volumes that exist, ascending.
    fn volumes(&self) -> Vec<VolumeId>;

    /// Makes an empty volume, durably.
    ///
    /// # Errors
    /// [`EngineError::VolumeExists`], or an i/o error.
    fn create_volume(&self, volume: VolumeId) -> Result<(), EngineError>;

    /// Makes a volume of key-value pairs that rise strictly, durably: when this returns, all of
    /// it survives a crash. On an error nothing of the volume is left.
    ///
    /// # Errors
    /// [`EngineError::VolumeExists`], [`EngineError::NotAscending`], [`EngineError::KeyLength`],
    /// the first error among `items`, or an i/o error.
    fn ingest_volume(
        &self,
        volume: VolumeId,
        items: &mut dyn Iterator<Item = Item>,
    ) -> Result<(), EngineError>;

    /// Deletes a volume with all that it holds, durably. Open snapshots of it stay readable, and
    /// may keep its id taken until they are closed. Deleting what isn't there is fine.
    ///
    /// # Errors
    /// An i/o error.
    fn delete_volume(&self, volume: VolumeId) -> Result<(), EngineError>;

    /// Writes a batch: visible to every snapshot taken after the return, durable after the next
    /// flush. May wait, for a bounded time, while flushes and compactions fall behind.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`]; [`EngineError::KeyLength`], and nothing of the batch is
    /// written; or an i/o error.
    fn write(&self, volume: VolumeId, batch: Batch) -> Result<SequenceNumber, EngineError>;

    /// The state of a volume now.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`].
    fn snapshot(&self, volume: VolumeId) -> Result<Box<dyn Snapshot>, EngineError>;

    /// As [`Engine::snapshot`], without short-lived records: what the snapshot shows of them is
    /// undefined. Cheaper, where they are kept apart.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`].
    fn snapshot_of_lasting(&self, volume: VolumeId) -> Result<Box<dyn Snapshot>, EngineError> {
        self.snapshot(volume)
    }

    /// Makes everything written so far to a volume durable, and returns up to which batch.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`], or an i/o error.
    fn flush(&self, volume: VolumeId) -> Result<SequenceNumber, EngineError>;

    /// Frees what is inside `range`, in the background. What is inside reads as undefined from
    /// now on, until it is gone: only for ranges that nobody reads or writes any more. Forgotten
    /// by a crash before the space was freed: ask again after a restart.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`], or an i/o error.
    fn drop_range(&self, volume: VolumeId, range: &KeyRange) -> Result<(), EngineError>;

    /// One round of background work: flushes what is over budget or too old, compacts, removes
    /// deleted volumes. Returns whether more may be waiting. Called by the maintenance thread only.
    ///
    /// # Errors
    /// An i/o error.
    fn maintain(&self) -> Result<bool, EngineError>;

    /// Waits until [`Engine::maintain`] has something to do, at most `timeout`.
    fn wait_for_work(&self, timeout: std::time::Duration);

    /// Figures about a volume.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`].
    fn stats(&self, volume: VolumeId) -> Result<VolumeStats, EngineError>;

    /// Counts of what the engine has done since it was opened. All zero where nothing is counted.
    fn totals(&self) -> EngineTotals {
        EngineTotals::default()
    }
}
