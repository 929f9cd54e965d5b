//! What an engine does on a full disk: it waits, and loses nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use bytes::Bytes;
use kvdb_engine::{Batch, Engine, EngineError, SequenceNumber};
use kvdb_engine_lsm::{Asks, LsmConfig, LsmEngine, Room};
use kvdb_model::VolumeId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const VOLUME: VolumeId = VolumeId(1);

/// A disk that is full or not.
#[derive(Default)]
struct Disk {
    full: AtomicBool,
    asked_bytes: AtomicU64,
}

impl Disk {
    fn fill(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    fn has_room(&self) -> bool {
        !self.full.load(Ordering::Relaxed)
    }
}

impl Room for Disk {
    fn for_flush(&self, bytes: u64) -> bool {
        self.asked_bytes.store(bytes, Ordering::Relaxed);
        self.has_room()
    }

    fn for_compaction(&self, _bytes: u64) -> bool {
        self.has_room()
    }

    fn for_volume(&self) -> bool {
        self.has_room()
    }
}

fn engine(folder: &std::path::Path, disk: &Arc<Disk>) -> LsmEngine {
    let config = LsmConfig {
        memtable_budget_bytes: 4 * 1024,
        longest_stall: std::time::Duration::from_millis(1),
        room: Asks::of(disk.clone()),
        ..LsmConfig::default()
    };
    LsmEngine::open(folder, config).unwrap()
}

fn write(engine: &LsmEngine, number: u64) -> SequenceNumber {
    let mut batch = Batch::default();
    batch.put(Bytes::from(format!("key{number:05}")), Bytes::from(vec![7; 500]));
    engine.write(VOLUME, batch).unwrap()
}

fn holds(engine: &LsmEngine, number: u64) -> bool {
    let snapshot = engine.snapshot(VOLUME).unwrap();
    snapshot.get(format!("key{number:05}").as_bytes()).unwrap().is_some()
}

#[test]
fn what_there_is_no_room_for_stays_in_memory_and_is_flushed_later() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::default());
    let engine = engine(folder.path(), &disk);
    engine.create_volume(VOLUME).unwrap();
    write(&engine, 0);
    let flushed = engine.flush(VOLUME).unwrap();
    disk.fill(true);
    let last = (1..50).map(|number| write(&engine, number)).max().unwrap();
    assert!(matches!(engine.flush(VOLUME), Err(EngineError::NoRoom { .. })));
    assert!(disk.asked_bytes.load(Ordering::Relaxed) > 49 * 500);
    assert!(!engine.maintain().unwrap(), "nothing could be done");
    let waiting = engine.stats(VOLUME).unwrap();
    assert_eq!(waiting.flushed, flushed);
    assert!(waiting.memtable_bytes > 49 * 500);
    assert!((0..50).all(|number| holds(&engine, number)));

    disk.fill(false);
    while engine.maintain().unwrap() {}
    let after = engine.stats(VOLUME).unwrap();
    assert!(after.flushed >= last && after.memtable_bytes == 0, "{after:?}");
    drop(engine);
    let engine = self::engine(folder.path(), &disk);
    assert!((0..50).all(|number| holds(&engine, number)));
}

#[test]
fn no_volume_is_made_on_a_full_disk_and_nothing_is_left_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::default());
    let engine = engine(folder.path(), &disk);
    disk.fill(true);
    assert!(matches!(engine.create_volume(VOLUME), Err(EngineError::NoRoom { .. })));
    assert!(engine.volumes().is_empty());
    disk.fill(false);
    engine.create_volume(VOLUME).unwrap();
    write(&engine, 1);
    assert!(holds(&engine, 1));
}
