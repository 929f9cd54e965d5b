//! The volumes of a folder, and what they share.

use crate::budget::{Budget, Counts};
use crate::error::engine_io;
use crate::filter::Pace;
use crate::open::DamagedVolume;
use crate::view::LsmSnapshot;
use crate::volume::{Common, Volume};
use crate::{LsmConfig, files};
use kvdb_engine::{
    Batch, Engine, EngineError, EngineTotals, Item, SequenceNumber, Snapshot, VolumeStats,
};
use kvdb_model::{KeyRange, VolumeId};
use lsm_tree::compaction::Leveled;
use lsm_tree::{Cache, DescriptorTable};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An engine in a folder.
pub struct LsmEngine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) damaged: Vec<DamagedVolume>,
}

/// What an engine is, and what compactions see of it.
pub(crate) struct Shared {
    pub(crate) config: LsmConfig,
    /// Of the volumes.
    pub(crate) folder: PathBuf,
    pub(crate) volumes: RwLock<BTreeMap<VolumeId, Arc<Volume>>>,
    /// Volumes that are being made.
    pub(crate) making: Mutex<BTreeSet<VolumeId>>,
    /// Deleted volumes whose files are still there; snapshots may hold them.
    pub(crate) deleted: Mutex<Vec<Arc<Volume>>>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) open_files: Arc<DescriptorTable>,
    pub(crate) common: Common,
    pub(crate) pace: Mutex<Pace>,
    /// Wakes the maintenance thread.
    pub(crate) work: Signal,
    /// Wakes writers that wait.
    relief: (Mutex<()>, Condvar),
}

/// Something to do, for one thread that waits for it.
#[derive(Default)]
pub(crate) struct Signal {
    pending: Mutex<bool>,
    raised: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.pending.lock() = true;
        self.raised.notify_one();
    }

    pub(crate) fn take(&self) {
        *self.pending.lock() = false;
    }

    /// Returns at once if it was raised since it was last taken.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut pending = self.pending.lock();
        if !*pending {
            self.raised.wait_for(&mut pending, timeout);
        }
    }
}

impl Shared {
    pub(crate) fn new(config: LsmConfig, folder: PathBuf) -> Self {
        Shared {
            cache: Arc::new(Cache::with_capacity_bytes(config.cache_bytes)),
            open_files: Arc::new(DescriptorTable::new(config.open_files)),
            common: Common {
                budget: Arc::new(Budget::new(config.memtable_budget_bytes)),
                counts: Arc::new(Counts::default()),
                strategy: Arc::new(Leveled::default().with_l0_threshold(config.compact_at_runs)),
                room: config.room.clone(),
            },
            pace: Mutex::new(Pace::new(config.compaction_bytes_per_second, Instant::now())),
            folder,
            config,
            volumes: RwLock::default(),
            making: Mutex::default(),
            deleted: Mutex::default(),
            work: Signal::default(),
            relief: Default::default(),
        }
    }

    fn volume(&self, volume: VolumeId) -> Result<Arc<Volume>, EngineError> {
        self.volumes.read().get(&volume).cloned().ok_or(EngineError::VolumeMissing(volume))
    }

    fn must_wait(&self, volume: &Volume) -> bool {
        self.common.budget.is_far_over() || volume.level0_runs() >= self.config.stall_at_runs
    }

    /// Holds a write while flushing or compacting is far behind, for a bounded time: a disk that
    /// is slow slows its writers, and one that hangs doesn't hang them all.
    fn hold_back(&self, volume: &Volume) {
        if !self.must_wait(volume) {
            return;
        }
        let since = Instant::now();
        let until = since + self.config.longest_stall;
        let (mutex, relieved) = &self.relief;
        let mut guard = mutex.lock();
        while self.must_wait(volume) {
            self.work.raise();
            if relieved.wait_until(&mut guard, until).timed_out() {
                break;
            }
        }
        self.common.counts.stalled(since.elapsed());
    }

    /// Lets writers look again whether they may go on.
    pub(crate) fn relieve(&self) {
        drop(self.relief.0.lock());
        self.relief.1.notify_all();
    }

    fn delete(&self, volume: VolumeId) -> Result<(), EngineError> {
        let path = self.path_of(volume);
        let removed = self.volumes.write().remove(&volume);
        if let Some(removed) = removed {
            self.mark_gone(&path)?;
            self.deleted.lock().push(removed);
            self.work.raise();
        } else if path.exists() && self.deleted.lock().iter().all(|gone| gone.id != volume) {
            // One that was damaged.
            self.mark_gone(&path)?;
            engine_io(&path, files::remove_folder(&path))?;
            engine_io(&self.folder, files::sync_folder(&self.folder))?;
        }
        Ok(())
    }

    /// Removes the files of deleted volumes that nobody reads any more.
    pub(crate) fn remove_deleted(&self) -> Result<(), EngineError> {
        let mut deleted = self.deleted.lock();
        // Nobody can get at those that only this list holds.
        for volume in deleted.extract_if(.., |volume| Arc::strong_count(volume) == 1) {
            let path = volume.path.clone();
            drop(volume);
            engine_io(&path, files::remove_folder(&path))?;
        }
        Ok(())
    }
}

impl LsmEngine {
    /// Volumes that could not be opened.
    pub fn damaged(&self) -> &[DamagedVolume] {
        &self.damaged
    }
}

impl Engine for LsmEngine {
    fn volumes(&self) -> Vec<VolumeId> {
        self.shared.volumes.read().keys().copied().collect()
    }

    fn create_volume(&self, volume: VolumeId) -> Result<(), EngineError> {
        self.shared.make_volume(volume, &mut std::iter::empty())
    }

    fn ingest_volume(
        &self,
        volume: VolumeId,
        items: &mut dyn Iterator<Item = Item>,
    ) -> Result<(), EngineError> {
        self.shared.make_volume(volume, items)
    }

    fn delete_volume(&self, volume: VolumeId) -> Result<(), EngineError> {
        self.shared.delete(volume)
    }

    fn write(&self, volume: VolumeId, batch: Batch) -> Result<SequenceNumber, EngineError> {
        batch.check()?;
        let volume = self.shared.volume(volume)?;
        self.shared.hold_back(&volume);
        let (sequence, over_budget) = volume.write(batch);
        if over_budget {
            self.shared.work.raise();
        }
        Ok(sequence)
    }

    fn snapshot(&self, volume: VolumeId) -> Result<Box<dyn Snapshot>, EngineError> {
        let volume = self.shared.volume(volume)?;
        volume.show_short_lived();
        Ok(Box::new(LsmSnapshot::new(volume)))
    }

    fn snapshot_of_lasting(&self, volume: VolumeId) -> Result<Box<dyn Snapshot>, EngineError> {
        Ok(Box::new(LsmSnapshot::new(self.shared.volume(volume)?)))
    }

    fn flush(&self, volume: VolumeId) -> Result<SequenceNumber, EngineError> {
        let flushed = self.shared.volume(volume)?.flush()?;
        self.shared.relieve();
        // There may be enough to compact now.
        self.shared.work.raise();
        Ok(flushed)
    }

    fn drop_range(&self, volume: VolumeId, range: &KeyRange) -> Result<(), EngineError> {
        let volume = self.shared.volume(volume)?;
        if !range.is_empty() {
            volume.drop_range(range);
            self.shared.work.raise();
        }
        Ok(())
    }

    fn maintain(&self) -> Result<bool, EngineError> {
        self.shared.maintain()
    }

    fn wait_for_work(&self, timeout: Duration) {
        self.shared.work.wait(timeout);
    }

    fn stats(&self, volume: VolumeId) -> Result<VolumeStats, EngineError> {
        Ok(self.shared.volume(volume)?.stats())
    }

    fn totals(&self) -> EngineTotals {
        let volumes = self.shared.volumes.read();
        EngineTotals {
            memtable_bytes: volumes.values().map(|volume| volume.memtable_bytes()).sum(),
            unflushed_bytes: self.shared.common.budget.bytes(),
            cache_bytes: self.shared.cache.size(),
            ..self.shared.common.counts.totals()
        }
    }
}
