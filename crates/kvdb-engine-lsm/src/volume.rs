//! One volume: a tree, and the numbers by which it is written and read.
//!
//! The library takes numbers of its own from the same counter (one for each flush and compaction)
//! and would make them visible at once, past a batch that is being written. So visibility is ours:
//! a batch takes a number, is written, and is published; what the library took is published
//! between batches.
//!
//! Locks, in the order in which they are taken: `compacting`, the library's flush lock, `writer`,
//! then those of the views.

use crate::budget::{Budget, Counts};
use crate::config::{Asks, MOST_RUNS};
use crate::error::no_room;
use crate::newest::Newest;
use crate::short_lived::ShortLivedRecords;
use crate::view::{Views, bounds};
use bytes::Bytes;
use kvdb_engine::{Batch, EngineError, SequenceNumber, VolumeStats};
use kvdb_model::{KeyRange, VolumeId};
use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, InternalValue, SequenceNumberCounter, Tree, ValueType};
use parking_lot::{Mutex, RwLock};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// Size of the tables that compactions write.
const TABLE_BYTES: u64 = 64 * 1024 * 1024;

/// Most room that a compaction is asked about. It takes a few tables of each of two levels.
const LARGEST_COMPACTION_BYTES: u64 = 16 * TABLE_BYTES;

/// What a volume shares with the engine that it is in.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) budget: Arc<Budget>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) strategy: Arc<Leveled>,
    pub(crate) room: Asks,
}

/// Ranges that nobody reads any more; compactions remove what is inside.
pub(crate) type Dropped = Arc<RwLock<Vec<KeyRange>>>;

pub(crate) struct Volume {
    pub(crate) id: VolumeId,
    pub(crate) path: PathBuf,
    pub(crate) tree: Tree,
    pub(crate) views: Views,
    pub(crate) newest: Newest,
    common: Common,
    /// Given out to batches, and by the tree to its own changes.
    counter: SequenceNumberCounter,
    /// Records that aren't in the memtable yet. Held while a batch is written, a memtable is sealed
    /// or a number is published.
    writer: Mutex<ShortLivedRecords>,
    /// All batches with numbers below this survive a crash.
    flushed: AtomicU64,
    memory: Memory,
    /// When the oldest change that isn't flushed was written.
    oldest: Mutex<Option<Instant>>,
    level0_runs: AtomicUsize,
    /// One compaction at a time.
    compacting: Mutex<()>,
    /// Something changed since compaction last had nothing to do.
    restless: AtomicBool,
    dropped: Dropped,
    /// How many of `dropped` have been freed.
    freed: AtomicUsize,
}

/// Bytes of this volume in the common budget.
#[derive(Default)]
struct Memory {
    active: AtomicU64,
    sealed: AtomicU64,
}

impl Volume {
    pub(crate) fn new(
        id: VolumeId,
        path: PathBuf,
        (tree, counter): (Tree, SequenceNumberCounter),
        dropped: Dropped,
        common: Common,
    ) -> Self {
        let next = tree.get_highest_persisted_seqno().map_or(1, |highest| highest + 1);
        counter.fetch_max(next);
        Volume {
            id,
            path,
            views: Views::new(counter.get()),
            flushed: AtomicU64::new(counter.get()),
            level0_runs: AtomicUsize::new(tree.l0_run_count()),
            tree,
            newest: Newest::default(),
            common,
            counter,
            writer: Mutex::default(),
            memory: Memory::default(),
            oldest: Mutex::new(None),
            compacting: Mutex::new(()),
            restless: AtomicBool::new(true),
            dropped,
            freed: AtomicUsize::new(0),
        }
    }

    /// What an error of the tree means. Damage is written down: the next start leaves the volume
    /// aside, and its replicas ask for a snapshot.
    pub(crate) fn error(&self, error: lsm_tree::Error) -> EngineError {
        let error = crate::error::of_tree(self.id, &self.path, error);
        if let EngineError::Damaged { what, .. } = &error {
            crate::open::mark_damaged(&self.path, what);
        }
        error
    }

    /// Writes a batch whose keys have been checked. Returns its number, and whether it brought the
    /// memtables over their budget.
    pub(crate) fn write(&self, batch: Batch) -> (SequenceNumber, bool) {
        let mut short_lived = self.writer.lock();
        let before = short_lived.size_bytes();
        batch.short_lived.into_iter().for_each(|change| short_lived.take_in(change));
        let kept = (before, short_lived.size_bytes());
        let (sequence, over) = self.insert(batch.changes, kept, Some(&self.newest));
        (SequenceNumber(sequence), over)
    }

    /// Changes the memtable; by the holder of the writer lock only. `kept` are the bytes of
    /// short-lived records before and now. The changes are noted in `newest`; without it there must
    /// be no notes. Returns the number of the change, and whether it brought the memtables over their
    /// budget.
    fn insert(
        &self,
        changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>,
        kept: (u64, u64),
        newest: Option<&Newest>,
    ) -> (u64, bool) {
        // Sealed only under the writer lock: one memtable takes the whole batch.
        let memtable = self.tree.active_memtable();
        let sequence = self.counter.next();
        let mut grown = 0;
        for (key, value) in changes {
            // Of two changes of a key the second takes the place of the first.
            grown += newest.map_or(0, |newest| newest.note(&key, value.as_ref(), sequence));
            let (kind, value) = match value {
                Some(value) => (ValueType::Value, value),
                None => (ValueType::Tombstone, Bytes::new()),
            };
            let change = InternalValue::from_components(key, value, sequence, kind);
            grown += memtable.insert(change).0;
        }
        let (before, now) = kept;
        self.memory.active.fetch_add(grown + now, Ordering::Relaxed);
        self.memory.active.fetch_sub(before, Ordering::Relaxed);
        // Given back first: what was there already takes nobody over the limit.
        self.common.budget.give_back(before);
        let over = self.common.budget.take(grown + now);
        self.oldest.lock().get_or_insert_with(Instant::now);
        self.views.publish(sequence + 1);
        (sequence, over)
    }

    /// Puts the short-lived records into the memtable, for a snapshot that is to show them.
    pub(crate) fn show_short_lived(&self) {
        self.insert_short_lived(&mut self.writer.lock(), Some(&self.newest));
    }

    fn insert_short_lived(&self, short_lived: &mut ShortLivedRecords, newest: Option<&Newest>) {
        if !short_lived.is_empty() {
            let kept = (short_lived.size_bytes(), 0);
            self.insert(short_lived.drain(), kept, newest);
        }
    }

    /// Makes all complete batches durable. At too many runs it compacts first, unless it is called
    /// from within a compaction; see [`Volume::is_crowded`].
    pub(crate) fn flush(&self) -> Result<SequenceNumber, EngineError> {
        while self.is_crowded() && self.compact()? {}
        self.flush_only()
    }

    /// So many runs that no flush may add one.
    pub(crate) fn is_crowded(&self) -> bool {
        self.level0_runs() >= MOST_RUNS
    }

    pub(crate) fn flush_only(&self) -> Result<SequenceNumber, EngineError> {
        let flushing = self.tree.get_flush_lock();
        if self.memtable_bytes() > 0
            && !self.common.room.may(|room| room.for_flush(self.memtable_bytes()))
        {
            return Err(no_room(&self.path));
        }
        let through = self.seal();
        let forget = self.views.release(&self.tree);
        match self.tree.flush(&flushing, forget).map_err(|error| self.error(error)) {
            Ok(None) => {}
            Ok(Some(_)) => {
                self.common.counts.flushed();
                self.restless.store(true, Ordering::Release);
            }
            Err(error) => {
                // What was sealed stays so, and goes with the next flush.
                self.oldest.lock().get_or_insert_with(Instant::now);
                return Err(error);
            }
        }
        // All that was sealed before, too.
        let bytes = self.memory.sealed.swap(0, Ordering::Relaxed);
        self.common.budget.give_back(bytes);
        self.flushed.fetch_max(through, Ordering::AcqRel);
        drop(flushing);
        self.settle()?;
        Ok(SequenceNumber(through.saturating_sub(1)))
    }

    /// Seals the memtable, between two batches. Returns the number below which everything is in
    /// sealed memtables or on disk.
    fn seal(&self) -> u64 {
        let mut short_lived = self.writer.lock();
        self.newest.forget();
        self.insert_short_lived(&mut short_lived, None);
        self.tree.rotate_memtable();
        let bytes = self.memory.active.swap(0, Ordering::Relaxed);
        self.memory.sealed.fetch_add(bytes, Ordering::Relaxed);
        *self.oldest.lock() = None;
        self.views.published()
    }

    /// One compaction, if there is a reason for one. Returns whether something changed.
    pub(crate) fn compact(&self) -> Result<bool, EngineError> {
        let _compacting = self.compacting.lock();
        let most = self.tree.disk_space().min(LARGEST_COMPACTION_BYTES);
        if !self.common.room.may(|room| room.for_compaction(most)) {
            return Err(no_room(&self.path));
        }
        self.restless.store(false, Ordering::Release);
        let before = self.tree.current_version().id();
        let forget = self.views.release(&self.tree);
        let strategy = self.common.strategy.clone();
        if let Err(error) = self.tree.compact(strategy, forget) {
            self.restless.store(true, Ordering::Release);
            return Err(self.error(error));
        }
        let changed = self.tree.current_version().id() != before;
        if changed {
            self.common.counts.compacted();
            self.restless.store(true, Ordering::Release);
            self.settle()?;
        }
        Ok(changed)
    }

    /// Publishes past the numbers that the tree took for itself, and lets old versions go: an
    /// idle volume would otherwise keep its flushed memtables.
    fn settle(&self) -> Result<(), EngineError> {
        {
            let _writer = self.writer.lock();
            self.views.publish(self.counter.get());
        }
        self.level0_runs.store(self.tree.l0_run_count(), Ordering::Relaxed);
        let forget = self.views.release(&self.tree);
        self.tree
            .get_version_history_lock()
            .maintenance(&self.path, forget)
            .map_err(|error| self.error(error))
    }

    /// From now on compactions remove what is inside `range`, and [`Volume::free`] does it soon.
    pub(crate) fn drop_range(&self, range: &KeyRange) {
        self.dropped.write().push(range.clone());
    }

    /// Whether a dropped range still takes space.
    pub(crate) fn has_dropped(&self) -> bool {
        self.freed.load(Ordering::Acquire) < self.dropped.read().len()
    }

    /// Frees the dropped ranges: whole tables at once, the rest by a compaction of everything.
    pub(crate) fn free(&self) -> Result<(), EngineError> {
        self.flush()?;
        let _compacting = self.compacting.lock();
        let dropped = self.dropped.read().clone();
        for range in dropped.iter().skip(self.freed.load(Ordering::Acquire)) {
            let freed = self.tree.drop_range::<Bytes, _>(bounds(range));
            freed.map_err(|error| self.error(error))?;
        }
        self.settle()?;
        if dropped.iter().any(|range| self.has_tables_in(range)) {
            let most = self.tree.disk_space();
            if !self.common.room.may(|room| room.for_compaction(most)) {
                return Err(no_room(&self.path));
            }
            let forget = self.views.release(&self.tree);
            let compacted = self.tree.major_compact(TABLE_BYTES, forget);
            compacted.map_err(|error| self.error(error))?;
            self.common.counts.compacted();
            self.settle()?;
        }
        self.freed.store(dropped.len(), Ordering::Release);
        Ok(())
    }

    fn has_tables_in(&self, range: &KeyRange) -> bool {
        let (start, end) = bounds(range);
        let bounds = (start.as_ref().map(|key| &key[..]), end.as_ref().map(|key| &key[..]));
        let version = self.tree.current_version();
        version.iter_tables().any(|table| table.metadata.key_range.overlaps_with_bounds(&bounds))
    }

    pub(crate) fn memtable_bytes(&self) -> u64 {
        self.memory.active.load(Ordering::Relaxed) + self.memory.sealed.load(Ordering::Relaxed)
    }

    pub(crate) fn oldest_change(&self) -> Option<Instant> {
        *self.oldest.lock()
    }

    pub(crate) fn level0_runs(&self) -> usize {
        self.level0_runs.load(Ordering::Relaxed)
    }

    /// Whether a compaction may have something to do.
    pub(crate) fn is_restless(&self) -> bool {
        self.restless.load(Ordering::Acquire)
    }

    pub(crate) fn stats(&self) -> VolumeStats {
        VolumeStats {
            memtable_bytes: self.memtable_bytes(),
            disk_bytes: self.tree.disk_space(),
            published: SequenceNumber(self.views.published().saturating_sub(1)),
            flushed: SequenceNumber(self.flushed.load(Ordering::Acquire).saturating_sub(1)),
            level0_runs: self.level0_runs() as u64,
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.common.budget.give_back(self.memtable_bytes());
    }
}
