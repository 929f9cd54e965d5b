//! One volume: a tree, and the numbers by which it is written and read.
//!
//! Memtables are our own, the library has the tables. It takes numbers from the same counter (one
//! for each flush and compaction); which of its tables a view reads is the view's business, so what
//! they are numbered doesn't matter to readers: a batch takes a number, is written, and is published.
//!
//! Locks, in the order in which they are taken: `compacting`, the library's flush lock, `writer`,
//! then those of the views and of a memtable.

use crate::budget::{Budget, Counts};
use crate::config::{Asks, MOST_RUNS};
use crate::error::no_room;
use crate::memtable::{Change, Memtable};
use crate::short_lived::ShortLivedRecords;
use crate::view::{Tables, Views, bounds};
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
    common: Common,
    /// Given out to batches, and by the tree to its own changes.
    counter: SequenceNumberCounter,
    /// Records that aren't in the memtable yet. Held while a batch is written or a memtable is
    /// frozen.
    writer: Mutex<ShortLivedRecords>,
    /// All batches with numbers below this survive a crash.
    flushed: AtomicU64,
    /// Bytes of this volume in the common budget.
    unflushed: AtomicU64,
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
            views: Views::new(counter.get(), Tables::of(&tree)),
            flushed: AtomicU64::new(counter.get()),
            level0_runs: AtomicUsize::new(tree.l0_run_count()),
            tree,
            common,
            counter,
            writer: Mutex::default(),
            unflushed: AtomicU64::new(0),
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
        let (sequence, over) = self.insert(batch.changes, kept);
        (SequenceNumber(sequence), over)
    }

    /// Changes the memtable; by the holder of the writer lock only. `kept` are the bytes of
    /// short-lived records before and now. Returns the number of the change, and whether it brought
    /// the memtables over their budget.
    fn insert(
        &self,
        changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>,
        kept: (u64, u64),
    ) -> (u64, bool) {
        // Frozen only under the writer lock: one memtable takes the whole batch.
        let (memtable, oldest_reader) = self.views.for_writing();
        let sequence = self.counter.next();
        let before = memtable.written();
        for (key, value) in changes {
            memtable.write(key, value, sequence, oldest_reader);
        }
        let written = memtable.written() - before;
        let (kept_before, kept_now) = kept;
        // Given back first: what was there already takes nobody over the limit.
        self.common.budget.give_back(kept_before);
        let over = self.common.budget.take(written + kept_now);
        self.unflushed.fetch_add(written + kept_now, Ordering::Relaxed);
        self.unflushed.fetch_sub(kept_before, Ordering::Relaxed);
        self.oldest.lock().get_or_insert_with(Instant::now);
        self.views.publish(sequence + 1);
        (sequence, over)
    }

    /// Puts the short-lived records into the memtable, for a snapshot that is to show them.
    pub(crate) fn show_short_lived(&self) {
        self.insert_short_lived(&mut self.writer.lock());
    }

    fn insert_short_lived(&self, short_lived: &mut ShortLivedRecords) {
        if !short_lived.is_empty() {
            let kept = (short_lived.size_bytes(), 0);
            self.insert(short_lived.drain(), kept);
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
        if self.unflushed_bytes() > 0
            && !self.common.room.may(|room| room.for_flush(self.unflushed_bytes()))
        {
            return Err(no_room(&self.path));
        }
        let through = self.freeze();
        while let Some(frozen) = self.views.oldest_frozen() {
            if let Err(error) = self.write_tables(&frozen.memtable) {
                // What was frozen stays so, and goes with the next flush.
                self.oldest.lock().get_or_insert_with(Instant::now);
                return Err(self.error(error));
            }
            self.views.flushed(&self.tree);
            self.flushed.fetch_max(frozen.through, Ordering::AcqRel);
            let written = frozen.memtable.written();
            self.unflushed.fetch_sub(written, Ordering::Relaxed);
            self.common.budget.give_back(written);
            self.common.counts.flushed();
            self.restless.store(true, Ordering::Release);
        }
        self.flushed.fetch_max(through, Ordering::AcqRel);
        drop(flushing);
        self.settle()?;
        Ok(SequenceNumber(through.saturating_sub(1)))
    }

    /// Writes a memtable to a run of tables, durably, and puts it in front of the others.
    fn write_tables(&self, memtable: &Memtable) -> lsm_tree::Result<()> {
        let changes = memtable.newest().into_iter().map(|(key, Change { sequence, value })| {
            let (kind, value) = match value {
                Some(value) => (ValueType::Value, value),
                None => (ValueType::Tombstone, Bytes::new()),
            };
            Ok(InternalValue::from_components(key, value, sequence, kind))
        });
        if let Some((tables, _)) = self.tree.flush_to_tables(changes)? {
            self.tree.register_tables(&tables, None, None, &[], self.counter.get())?;
        }
        Ok(())
    }

    /// Freezes the memtable, between two batches. Returns the number below which everything is in
    /// frozen memtables or on disk.
    fn freeze(&self) -> u64 {
        let mut short_lived = self.writer.lock();
        self.insert_short_lived(&mut short_lived);
        let through = self.views.freeze();
        *self.oldest.lock() = None;
        through
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
        let strategy = self.common.strategy.clone();
        if let Err(error) = self.tree.compact(strategy, self.counter.get()) {
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

    /// Views to come read the tables that are there now. Those that no view reads any more may go:
    /// each holds on to its own, so the tree needs no history.
    fn settle(&self) -> Result<(), EngineError> {
        self.views.rearranged(&self.tree);
        self.level0_runs.store(self.tree.l0_run_count(), Ordering::Relaxed);
        self.tree
            .get_version_history_lock()
            .maintenance(&self.path, self.counter.get())
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
            let compacted = self.tree.major_compact(TABLE_BYTES, self.counter.get());
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

    /// Bytes in memory that aren't flushed.
    pub(crate) fn memtable_bytes(&self) -> u64 {
        self.views.memtable_bytes() + self.writer.lock().size_bytes()
    }

    /// Bytes that were written since the last flush, for which the log is kept. Memtables take up no
    /// more, but for what each key and the values that open views see cost beside it.
    pub(crate) fn unflushed_bytes(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed)
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
        self.common.budget.give_back(self.unflushed_bytes());
    }
}
