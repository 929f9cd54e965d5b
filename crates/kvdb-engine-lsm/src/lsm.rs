//! The volumes of a folder, their common budget, and the work in the background.

use crate::manifest::{self, Problem};
use crate::volume::Volume;
use kvdb_engine::{Batch, Engine, EngineError, Item, SequenceNumber, Snapshot, VolumeStats};
use kvdb_model::{KeyRange, VolumeId};
use lsm_tree::compaction::Leveled;
use lsm_tree::{AnyTree, Cache, Config, DescriptorTable, SequenceNumberCounter};
use parking_lot::{Condvar, Mutex, RwLock};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use thiserror::Error;

const MAGIC: &[u8; 8] = b"KVDBENG\n";
const FORMAT: u32 = 1;

/// Settings of an [`LsmEngine`].
#[derive(Clone, Debug)]
pub struct LsmConfig {
    /// Bytes of memtables of all volumes together before the largest is flushed. Raising it makes
    /// fewer, larger flushes, and a longer write-ahead log and restart.
    pub memtable_budget_bytes: u64,
    /// Longest that a change stays in memory only. Raising it makes fewer flushes and a longer
    /// log.
    pub flush_age: Duration,
    /// Block cache of all volumes together. Raising it costs memory and saves reads.
    pub cache_bytes: u64,
    /// Open files of all volumes together.
    pub open_files: usize,
    /// Level-0 runs of a volume from which it is compacted.
    pub compact_at_runs: usize,
    /// Level-0 runs of a volume at which writes to it wait. The format ends at 255.
    pub stall_at_runs: usize,
    /// Longest that one write waits for flushes and compactions.
    pub longest_stall: Duration,
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
        }
    }
}

/// Why an engine can't be opened.
#[derive(Debug, Error)]
pub enum LsmError {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder isn't an engine's.
    #[error("{path} is not a KvDB engine file")]
    NotAnEngine {
        /// The file.
        path: PathBuf,
    },
    /// It was made by a newer version.
    #[error("{path} has format {found}; this binary reads format {FORMAT}")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// A volume that can't be opened: its replicas need a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// What is wrong, with the file.
    pub what: String,
}

/// An engine in a folder.
pub struct LsmEngine {
    config: LsmConfig,
    folder: PathBuf,
    volumes: RwLock<BTreeMap<VolumeId, Arc<Volume>>>,
    damaged: Vec<DamagedVolume>,
    /// Deleted volumes that open snapshots may still hold.
    leaving: Mutex<BTreeMap<VolumeId, Weak<Volume>>>,
    cache: Arc<Cache>,
    files: Arc<DescriptorTable>,
    memtable_bytes: AtomicU64,
    stalls: AtomicU64,
    /// Wakes the maintenance thread.
    work: (Mutex<bool>, Condvar),
    /// Wakes writers that wait.
    relief: (Mutex<()>, Condvar),
}

impl LsmEngine {
    /// Opens the engine in `folder`, or makes one there. Volumes that are damaged are left aside;
    /// see [`LsmEngine::damaged`].
    ///
    /// # Errors
    /// [`LsmError`].
    pub fn open(folder: &Path, config: LsmConfig) -> Result<Self, LsmError> {
        let volumes_folder = folder.join("volumes");
        io(&volumes_folder, fs::create_dir_all(&volumes_folder))?;
        check_format(folder)?;
        let mut engine = LsmEngine {
            cache: Arc::new(Cache::with_capacity_bytes(config.cache_bytes)),
            files: Arc::new(DescriptorTable::new(config.open_files)),
            config,
            folder: volumes_folder.clone(),
            volumes: RwLock::default(),
            damaged: Vec::new(),
            leaving: Mutex::default(),
            memtable_bytes: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
            work: (Mutex::new(false), Condvar::new()),
            relief: (Mutex::new(()), Condvar::new()),
        };
        for entry in io(&volumes_folder, fs::read_dir(&volumes_folder))? {
            let path = io(&volumes_folder, entry)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.parse::<u64>() {
                Ok(id) => engine.open_existing(VolumeId(id), &path),
                Err(_) if name.starts_with("tmp-") || name.starts_with("gone-") => {
                    io(&path, fs::remove_dir_all(&path))?;
                }
                Err(_) => tracing::warn!(path = %path.display(), "ignored: not a volume"),
            }
        }
        Ok(engine)
    }

    fn open_existing(&mut self, id: VolumeId, path: &Path) {
        let opened = manifest::check(path).map_err(|problem| match problem {
            Problem::Missing => format!("{}: the manifest is missing", path.display()),
            Problem::Damaged(what) => what,
        });
        let opened = opened.and_then(|()| {
            self.open_tree(id, path).map_err(|error| format!("{}: {error}", path.display()))
        });
        match opened {
            Ok(volume) => {
                self.volumes.get_mut().insert(id, Arc::new(volume));
            }
            Err(what) => {
                tracing::error!(volume = id.0, what, "a volume is damaged");
                self.damaged.push(DamagedVolume { volume: id, what });
            }
        }
    }

    fn open_tree(&self, id: VolumeId, path: &Path) -> lsm_tree::Result<Volume> {
        let counter = SequenceNumberCounter::new(1);
        let tree = self.tree_at(path, &counter)?;
        Ok(Volume::new(id, path.to_owned(), tree, counter))
    }

    fn tree_at(&self, path: &Path, counter: &SequenceNumberCounter) -> lsm_tree::Result<AnyTree> {
        // What the tree would call visible is raised by flushes past a batch in flight: unused.
        let visible = SequenceNumberCounter::default();
        Config::new(path, counter.clone(), visible)
            .use_cache(self.cache.clone())
            .use_descriptor_table(Some(self.files.clone()))
            .open()
    }

    /// Volumes that could not be opened.
    pub fn damaged(&self) -> &[DamagedVolume] {
        &self.damaged
    }

    /// How often a write had to wait.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    fn volume(&self, volume: VolumeId) -> Result<Arc<Volume>, EngineError> {
        self.volumes.read().get(&volume).cloned().ok_or(EngineError::VolumeMissing(volume))
    }

    /// Whether readers still hold a deleted volume.
    fn is_leaving(&self, volume: VolumeId) -> bool {
        let mut leaving = self.leaving.lock();
        leaving.retain(|_, held| held.strong_count() > 0);
        leaving.contains_key(&volume)
    }

    fn path_of(&self, volume: VolumeId) -> PathBuf {
        self.folder.join(volume.0.to_string())
    }

    /// Fills a tree under a temporary name; it gets its own when it is complete and synced.
    fn build(
        &self,
        id: VolumeId,
        fill: impl FnOnce(&AnyTree) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let path = self.path_of(id);
        if self.volumes.read().contains_key(&id) || path.exists() {
            return Err(EngineError::VolumeExists(id));
        }
        let temporary = self.folder.join(format!("tmp-{id}"));
        let built = self.fill_temporary(&temporary, fill).and_then(|()| {
            engine_io(&path, fs::rename(&temporary, &path))?;
            engine_io(&self.folder, sync_folder(&self.folder))
        });
        if let Err(error) = built {
            let _ = fs::remove_dir_all(&temporary);
            return Err(error);
        }
        let volume = self.open_tree(id, &path).map_err(|error| tree_error(id, &path, error))?;
        self.volumes.write().insert(id, Arc::new(volume));
        Ok(())
    }

    fn fill_temporary(
        &self,
        temporary: &Path,
        fill: impl FnOnce(&AnyTree) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        if temporary.exists() {
            engine_io(temporary, fs::remove_dir_all(temporary))?;
        }
        let counter = SequenceNumberCounter::new(1);
        let tree = self
            .tree_at(temporary, &counter)
            .map_err(|error| tree_error(VolumeId(0), temporary, error))?;
        fill(&tree)?;
        engine_io(temporary, sync_folder(&temporary.join("tables")))?;
        engine_io(temporary, sync_folder(temporary))
    }

    fn wake_maintenance(&self) {
        let (pending, condvar) = &self.work;
        *pending.lock() = true;
        condvar.notify_one();
    }

    fn over_budget(&self) -> bool {
        self.memtable_bytes.load(Ordering::Relaxed) > self.config.memtable_budget_bytes
    }

    /// Waits while flushing or compacting falls behind, for a bounded time.
    fn hold_back(&self, volume: &Volume) {
        let must_wait = || {
            self.memtable_bytes.load(Ordering::Relaxed) > 2 * self.config.memtable_budget_bytes
                || volume.level0_runs() >= self.config.stall_at_runs
        };
        if !must_wait() {
            return;
        }
        self.stalls.fetch_add(1, Ordering::Relaxed);
        let until = Instant::now() + self.config.longest_stall;
        let (mutex, condvar) = &self.relief;
        let mut guard = mutex.lock();
        while must_wait() {
            self.wake_maintenance();
            if condvar.wait_until(&mut guard, until).timed_out() {
                return;
            }
        }
    }

    fn flush_volume(&self, volume: &Volume) -> Result<SequenceNumber, EngineError> {
        let bytes = volume.memtable_bytes();
        let flushed = volume.flush()?;
        self.memtable_bytes
            .fetch_sub(bytes.min(self.memtable_bytes.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.recount();
        self.relief.1.notify_all();
        Ok(flushed)
    }

    /// Writers that came in between make the running sum drift; it is set right after a flush.
    fn recount(&self) {
        let sum = self.volumes.read().values().map(|volume| volume.memtable_bytes()).sum();
        self.memtable_bytes.store(sum, Ordering::Relaxed);
    }

    /// What to flush next: over budget the largest, else the one that has waited too long.
    fn due(&self) -> Option<Arc<Volume>> {
        let volumes = self.volumes.read();
        if self.over_budget() {
            return volumes.values().max_by_key(|volume| volume.memtable_bytes()).cloned();
        }
        volumes
            .values()
            .find(|volume| {
                volume.oldest_change().is_some_and(|since| since.elapsed() >= self.config.flush_age)
            })
            .cloned()
    }
}

impl Engine for LsmEngine {
    fn volumes(&self) -> Vec<VolumeId> {
        self.volumes.read().keys().copied().collect()
    }

    fn create_volume(&self, volume: VolumeId) -> Result<(), EngineError> {
        self.build(volume, |_| Ok(()))
    }

    fn ingest_volume(
        &self,
        volume: VolumeId,
        items: &mut dyn Iterator<Item = Item>,
    ) -> Result<(), EngineError> {
        self.build(volume, |tree| {
            let path = self.folder.join(format!("tmp-{volume}"));
            let failed = |error| tree_error(volume, &path, error);
            let mut ingestion = tree.ingestion().map_err(failed)?;
            let mut last = bytes::Bytes::new();
            let mut first = true;
            for item in items {
                let (key, value) = item?;
                if !first && key <= last {
                    return Err(EngineError::NotAscending(key.escape_ascii().to_string()));
                }
                first = false;
                last = key.clone();
                ingestion.write(key, value).map_err(failed)?;
            }
            ingestion.finish().map_err(failed)
        })
    }

    fn delete_volume(&self, volume: VolumeId) -> Result<(), EngineError> {
        let removed = self.volumes.write().remove(&volume);
        let path = self.path_of(volume);
        match removed {
            Some(removed) => {
                // Until the last reader is gone the files stay; without its manifest the folder
                // is no volume any more, should the process end before that.
                engine_io(&path, remove_if_there(&path.join("current")))?;
                removed.abandon();
                self.leaving.lock().insert(volume, Arc::downgrade(&removed));
            }
            None if self.is_leaving(volume) => {}
            None if path.exists() => {
                let gone = self.folder.join(format!("gone-{volume}"));
                engine_io(&path, fs::rename(&path, &gone))?;
                engine_io(&gone, fs::remove_dir_all(&gone))?;
            }
            None => {}
        }
        engine_io(&self.folder, sync_folder(&self.folder))
    }

    fn write(&self, volume: VolumeId, batch: Batch) -> Result<SequenceNumber, EngineError> {
        let volume = self.volume(volume)?;
        self.hold_back(&volume);
        let (sequence, grown) = volume.write(batch);
        let before = self.memtable_bytes.fetch_add(grown, Ordering::Relaxed);
        let budget = self.config.memtable_budget_bytes;
        if before <= budget && before + grown > budget {
            self.wake_maintenance();
        }
        Ok(sequence)
    }

    fn snapshot(&self, volume: VolumeId) -> Result<Box<dyn Snapshot>, EngineError> {
        Ok(Box::new(self.volume(volume)?.snapshot()))
    }

    fn flush(&self, volume: VolumeId) -> Result<SequenceNumber, EngineError> {
        let volume = self.volume(volume)?;
        self.flush_volume(&volume)
    }

    fn drop_range(&self, volume: VolumeId, range: &KeyRange) -> Result<(), EngineError> {
        let volume = self.volume(volume)?;
        self.flush_volume(&volume)?;
        volume.drop_range(range)
    }

    fn maintain(&self) -> Result<bool, EngineError> {
        *self.work.0.lock() = false;
        if let Some(volume) = self.due() {
            self.flush_volume(&volume)?;
        }
        let crowded = self
            .volumes
            .read()
            .values()
            .filter(|volume| volume.level0_runs() >= self.config.compact_at_runs)
            .max_by_key(|volume| volume.level0_runs())
            .cloned();
        if let Some(volume) = crowded {
            let before = volume.level0_runs();
            let strategy =
                Leveled::default().with_l0_threshold(self.config.compact_at_runs.min(255) as u8);
            volume.compact(Arc::new(strategy))?;
            self.relief.1.notify_all();
            return Ok(volume.level0_runs() < before || self.due().is_some());
        }
        Ok(self.due().is_some())
    }

    fn wait_for_work(&self, timeout: Duration) {
        let (pending, condvar) = &self.work;
        let mut pending = pending.lock();
        if !*pending {
            condvar.wait_for(&mut pending, timeout);
        }
    }

    fn stats(&self, volume: VolumeId) -> Result<VolumeStats, EngineError> {
        Ok(self.volume(volume)?.stats())
    }
}

fn check_format(folder: &Path) -> Result<(), LsmError> {
    let path = folder.join("ENGINE");
    match fs::read(&path) {
        Ok(content) => {
            let Some(format) = content.strip_prefix(MAGIC).and_then(|rest| rest.try_into().ok())
            else {
                return Err(LsmError::NotAnEngine { path });
            };
            match u32::from_le_bytes(format) {
                FORMAT => Ok(()),
                found => Err(LsmError::UnknownFormat { path, found }),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let temporary = folder.join("ENGINE.tmp");
            let content = [&MAGIC[..], &FORMAT.to_le_bytes()].concat();
            io(&temporary, write_synced(&temporary, &content))?;
            io(&path, fs::rename(&temporary, &path))?;
            io(folder, sync_folder(folder))
        }
        Err(source) => Err(LsmError::Io { path, source }),
    }
}

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, LsmError> {
    result.map_err(|source| LsmError::Io { path: path.to_owned(), source })
}

fn engine_io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, EngineError> {
    result.map_err(|source| EngineError::Io { place: path.display().to_string(), source })
}

fn tree_error(volume: VolumeId, path: &Path, error: lsm_tree::Error) -> EngineError {
    match error {
        lsm_tree::Error::Io(source) => {
            EngineError::Io { place: path.display().to_string(), source }
        }
        other => EngineError::Damaged { volume, what: format!("{}: {other}", path.display()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_engine::conformance::{Subject, run_all};

    struct OnDisk {
        // Dropped before the folder that it lives in.
        engine: Option<LsmEngine>,
        folder: tempfile::TempDir,
    }

    fn config() -> LsmConfig {
        LsmConfig { memtable_budget_bytes: 16 * 1024, ..LsmConfig::default() }
    }

    impl OnDisk {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let engine = Some(LsmEngine::open(folder.path(), config()).unwrap());
            OnDisk { engine, folder }
        }
    }

    impl Subject for OnDisk {
        type Engine = LsmEngine;

        fn engine(&self) -> &LsmEngine {
            self.engine.as_ref().unwrap()
        }

        fn crash(&mut self) {
            // Memtables are all that isn't on disk, and dropping forgets them.
            self.engine = None;
            self.engine = Some(LsmEngine::open(self.folder.path(), config()).unwrap());
        }
    }

    #[test]
    fn the_lsm_engine_conforms() {
        run_all(OnDisk::new);
    }

    fn put(key: &str) -> Batch {
        let mut batch = Batch::default();
        batch.put(key.to_owned(), "value");
        batch
    }

    #[test]
    fn a_damaged_manifest_is_found_before_the_volume_is_opened() {
        for bit in 0..25 * 8 {
            let mut subject = OnDisk::new();
            subject.engine().create_volume(VolumeId(1)).unwrap();
            subject.engine().write(VolumeId(1), put("a")).unwrap();
            subject.engine().flush(VolumeId(1)).unwrap();
            let current = subject.folder.path().join("volumes/1/current");
            let mut content = fs::read(&current).unwrap();
            content[bit / 8] ^= 1 << (bit % 8);
            fs::write(&current, content).unwrap();
            subject.crash();
            assert_eq!(subject.engine().damaged().len(), 1, "bit {bit}");
            assert!(subject.engine().volumes().is_empty());
        }
    }

    #[test]
    fn a_missing_manifest_is_a_lost_volume_and_not_an_empty_one() {
        let mut subject = OnDisk::new();
        subject.engine().create_volume(VolumeId(1)).unwrap();
        fs::remove_file(subject.folder.path().join("volumes/1/current")).unwrap();
        subject.crash();
        assert_eq!(subject.engine().damaged()[0].volume, VolumeId(1));
        // It can be cleared away and made anew.
        subject.engine().delete_volume(VolumeId(1)).unwrap();
        subject.engine().create_volume(VolumeId(1)).unwrap();
    }

    #[test]
    fn an_engine_of_another_format_is_refused_by_name() {
        let subject = OnDisk::new();
        let path = subject.folder.path().join("ENGINE");
        fs::write(&path, [&MAGIC[..], &9u32.to_le_bytes()].concat()).unwrap();
        let refused = LsmEngine::open(subject.folder.path(), config()).err().unwrap().to_string();
        assert!(refused.ends_with("has format 9; this binary reads format 1"), "{refused}");
        fs::write(&path, b"something else").unwrap();
        assert!(matches!(
            LsmEngine::open(subject.folder.path(), config()),
            Err(LsmError::NotAnEngine { .. })
        ));
    }

    #[test]
    fn what_an_interrupted_creation_left_is_cleared_away() {
        let mut subject = OnDisk::new();
        fs::create_dir(subject.folder.path().join("volumes/tmp-5")).unwrap();
        fs::create_dir(subject.folder.path().join("volumes/gone-6")).unwrap();
        subject.crash();
        assert_eq!(fs::read_dir(subject.folder.path().join("volumes")).unwrap().count(), 0);
    }

    #[test]
    fn maintenance_flushes_over_budget_and_compacts() {
        let subject = OnDisk::new();
        let engine = subject.engine();
        engine.create_volume(VolumeId(1)).unwrap();
        let mut last = SequenceNumber(0);
        for round in 0..2000 {
            let mut batch = Batch::default();
            batch.put(format!("k{round:05}"), vec![7u8; 100]);
            last = engine.write(VolumeId(1), batch).unwrap();
            while engine.maintain().unwrap() {}
        }
        let stats = engine.stats(VolumeId(1)).unwrap();
        assert!(stats.flushed > SequenceNumber(0) && stats.flushed < last);
        assert!(stats.memtable_bytes <= 16 * 1024 + 1000);
        assert!(stats.level0_runs <= 4, "{stats:?}");
    }

    #[test]
    fn readers_never_see_half_a_batch() {
        let folder = tempfile::tempdir().unwrap();
        let engine = &LsmEngine::open(folder.path(), LsmConfig::default()).unwrap();
        engine.create_volume(VolumeId(1)).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..3000u32 {
                    let mut batch = Batch::default();
                    for key in 0..5 {
                        batch.put(format!("k{key}"), round.to_string());
                    }
                    engine.write(VolumeId(1), batch).unwrap();
                    if round % 500 == 0 {
                        engine.flush(VolumeId(1)).unwrap();
                    }
                }
            });
            while !writer.is_finished() {
                let snapshot = engine.snapshot(VolumeId(1)).unwrap();
                let values: Vec<_> =
                    snapshot.scan(&KeyRange::ALL, false).map(|item| item.unwrap().1).collect();
                assert!(values.is_empty() || values.len() == 5);
                assert!(values.windows(2).all(|pair| pair[0] == pair[1]));
            }
        });
    }
}
