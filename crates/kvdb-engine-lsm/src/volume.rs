//! One volume: a tree, and the numbers by which it is read.

use bytes::Bytes;
use kvdb_engine::{Batch, EngineError, Item, SequenceNumber, Snapshot, VolumeStats};
use kvdb_model::{KeyRange, VolumeId};
use lsm_tree::{AbstractTree, AnyTree, Guard, SequenceNumberCounter};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    path: PathBuf,
    tree: AnyTree,
    /// Given out to batches, and by the tree to its own changes.
    counter: SequenceNumberCounter,
    /// Held while a batch is written, a memtable is sealed or a number is published.
    writer: Mutex<()>,
    /// Reads see numbers below this.
    published: AtomicU64,
    /// All batches with numbers below this survive a crash.
    flushed: AtomicU64,
    memtable_bytes: AtomicU64,
    /// When the oldest change that isn't flushed was written.
    oldest: Mutex<Option<Instant>>,
    /// Open snapshots by published number.
    open: Mutex<BTreeMap<u64, usize>>,
    /// Deleted: its files go with the last reader.
    gone: AtomicBool,
}

impl Volume {
    pub(crate) fn new(
        id: VolumeId,
        path: PathBuf,
        tree: AnyTree,
        counter: SequenceNumberCounter,
    ) -> Self {
        let next = tree.get_highest_persisted_seqno().map_or(1, |highest| highest + 1);
        counter.fetch_max(next);
        Volume {
            id,
            path,
            tree,
            published: AtomicU64::new(counter.get()),
            flushed: AtomicU64::new(counter.get()),
            counter,
            writer: Mutex::new(()),
            memtable_bytes: AtomicU64::new(0),
            oldest: Mutex::new(None),
            open: Mutex::new(BTreeMap::new()),
            gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn error(&self, error: lsm_tree::Error) -> EngineError {
        match error {
            lsm_tree::Error::Io(source) => {
                EngineError::Io { place: self.path.display().to_string(), source }
            }
            other => EngineError::Damaged { volume: self.id, what: other.to_string() },
        }
    }

    /// Returns the batch's number and how many bytes the memtable has grown by.
    pub(crate) fn write(&self, batch: Batch) -> (SequenceNumber, u64) {
        let _writer = self.writer.lock();
        let sequence = self.counter.next();
        let mut grown = 0;
        for (key, value) in last_changes(batch.changes) {
            let (size, _) = match value {
                Some(value) => self.tree.insert(key, value, sequence),
                None => self.tree.remove(key, sequence),
            };
            grown += size;
        }
        self.memtable_bytes.fetch_add(grown, Ordering::Relaxed);
        self.oldest.lock().get_or_insert_with(Instant::now);
        self.published.store(sequence + 1, Ordering::Release);
        (SequenceNumber(sequence), grown)
    }

    pub(crate) fn snapshot(self: &Arc<Self>) -> LsmSnapshot {
        let mut open = self.open.lock();
        let at = self.published.load(Ordering::Acquire);
        *open.entry(at).or_default() += 1;
        drop(open);
        LsmSnapshot { volume: self.clone(), at }
    }

    /// Below this no version is needed that has a younger one.
    fn watermark(&self) -> u64 {
        let open = self.open.lock();
        let published = self.published.load(Ordering::Acquire);
        open.keys().next().copied().unwrap_or(published).min(published)
    }

    pub(crate) fn flush(&self) -> Result<SequenceNumber, EngineError> {
        let through = {
            let lock = self.tree.get_flush_lock();
            let through = {
                let _writer = self.writer.lock();
                self.tree.rotate_memtable();
                self.memtable_bytes.store(0, Ordering::Relaxed);
                *self.oldest.lock() = None;
                self.published.load(Ordering::Acquire)
            };
            self.tree.flush(&lock, self.watermark()).map_err(|error| self.error(error))?;
            through
        };
        self.flushed.fetch_max(through, Ordering::AcqRel);
        self.settle()?;
        Ok(SequenceNumber(through.saturating_sub(1)))
    }

    pub(crate) fn compact(
        &self,
        strategy: Arc<lsm_tree::compaction::Leveled>,
    ) -> Result<(), EngineError> {
        self.tree.compact(strategy, self.watermark()).map_err(|error| self.error(error))?;
        self.settle()
    }

    /// Publishes past the numbers that the tree took for itself, and lets old versions go: an
    /// idle volume would otherwise keep its flushed memtables.
    fn settle(&self) -> Result<(), EngineError> {
        {
            let _writer = self.writer.lock();
            self.published.fetch_max(self.counter.get(), Ordering::AcqRel);
        }
        let watermark = self.watermark();
        self.tree
            .get_version_history_lock()
            .maintenance(&self.path, watermark)
            .map_err(|error| self.error(error))
    }

    pub(crate) fn drop_range(&self, range: &KeyRange) -> Result<(), EngineError> {
        let bounds = bounds(range);
        self.tree.drop_range::<Bytes, _>(bounds).map_err(|error| self.error(error))?;
        self.settle()
    }

    pub(crate) fn memtable_bytes(&self) -> u64 {
        self.memtable_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn oldest_change(&self) -> Option<Instant> {
        *self.oldest.lock()
    }

    pub(crate) fn level0_runs(&self) -> usize {
        self.tree.l0_run_count()
    }

    pub(crate) fn stats(&self) -> VolumeStats {
        VolumeStats {
            memtable_bytes: self.memtable_bytes(),
            disk_bytes: self.tree.disk_space(),
            published: SequenceNumber(self.published.load(Ordering::Acquire).saturating_sub(1)),
            flushed: SequenceNumber(self.flushed.load(Ordering::Acquire).saturating_sub(1)),
            level0_runs: self.level0_runs() as u64,
        }
    }

    /// The files go when nobody reads them any more.
    pub(crate) fn abandon(&self) {
        self.gone.store(true, Ordering::Release);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.gone.load(Ordering::Acquire) {
            // What can't be removed now is removed at the next start, by its name.
            if let Err(error) = std::fs::remove_dir_all(&self.path) {
                tracing::warn!(volume = self.id.0, %error, "a deleted volume can't be removed yet");
            }
        }
    }
}

/// The last change of each key: within one number the tree could not tell them apart.
fn last_changes(changes: Vec<(Bytes, Option<Bytes>)>) -> Vec<(Bytes, Option<Bytes>)> {
    let mut indexed: Vec<_> = changes.into_iter().enumerate().collect();
    indexed.sort_by(|(place, (key, _)), (other_place, (other, _))| {
        key.cmp(other).then(other_place.cmp(place))
    });
    indexed.dedup_by(|(_, (later, _)), (_, (kept, _))| later == kept);
    indexed.into_iter().map(|(_, change)| change).collect()
}

fn bounds(range: &KeyRange) -> (Bound<Bytes>, Bound<Bytes>) {
    let end =
        if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.clone()) };
    (Bound::Included(range.start.clone()), end)
}

/// A view of a volume; holds on to the versions that it can see.
pub(crate) struct LsmSnapshot {
    volume: Arc<Volume>,
    at: u64,
}

impl Drop for LsmSnapshot {
    fn drop(&mut self) {
        let mut open = self.volume.open.lock();
        if let Some(count) = open.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.at);
            }
        }
    }
}

impl Snapshot for LsmSnapshot {
    fn sequence(&self) -> SequenceNumber {
        SequenceNumber(self.at.saturating_sub(1))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = self.volume.tree.get(key, self.at).map_err(|error| self.volume.error(error))?;
        Ok(found.map(Bytes::from))
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = Item> + Send + '_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let items = self.volume.tree.range::<Bytes, _>(bounds(range), self.at, None);
        let read = |guard: lsm_tree::IterGuardImpl| {
            let (key, value) = guard.into_inner().map_err(|error| self.volume.error(error))?;
            Ok((Bytes::from(key), Bytes::from(value)))
        };
        if reverse { Box::new(items.rev().map(read)) } else { Box::new(items.map(read)) }
    }
}
