//! A process that dies in the middle of writing, flushing and compacting.

#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use bytes::Bytes;
use kvdb_engine::{Batch, Engine, ShortLived, Snapshot};
use kvdb_engine_lsm::{LsmConfig, LsmEngine};
use kvdb_model::{KeyRange, VolumeId};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const VOLUME: VolumeId = VolumeId(1);
const KEYS: u64 = 20;
const FOLDER: &str = "KVDB_TEST_CRASH_FOLDER";

fn config() -> LsmConfig {
    LsmConfig {
        memtable_budget_bytes: 64 * 1024,
        compact_at_runs: 2,
        flush_age: Duration::from_millis(20),
        ..LsmConfig::default()
    }
}

fn counter(snapshot: &dyn Snapshot, key: &str) -> u64 {
    let value = snapshot.get(key.as_bytes()).unwrap();
    value.map_or(0, |value| u64::from_le_bytes(value[..8].try_into().unwrap()))
}

/// Writes batch after batch, each with its count under every key, until it is killed.
#[test]
#[ignore = "the process that is killed below"]
fn writes_until_it_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let engine = LsmEngine::open(Path::new(&folder), config()).unwrap();
    if engine.volumes().is_empty() {
        engine.create_volume(VOLUME).unwrap();
    }
    let mut count = counter(&*engine.snapshot(VOLUME).unwrap(), "k0");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                while engine.maintain().unwrap() {}
                engine.wait_for_work(Duration::from_millis(5));
            }
        });
        loop {
            count += 1;
            let mut batch = Batch::default();
            for key in 0..KEYS {
                let mut value = count.to_le_bytes().to_vec();
                value.resize(8 + (count * 7 + key) as usize % 200, b'v');
                batch.put(format!("k{key}"), value);
            }
            // One that is there until the next batch.
            let name = |count: u64| Bytes::from(format!("s{count}"));
            let comes = ShortLived { key: name(count), value: Some(Bytes::new()), is_new: true };
            let goes = ShortLived { key: name(count - 1), value: None, is_new: false };
            batch.short_lived.extend([comes, goes]);
            engine.write(VOLUME, batch).unwrap();
            if count.is_multiple_of(37) {
                engine.flush(VOLUME).unwrap();
                println!("flushed {count}");
                std::io::stdout().flush().unwrap();
            }
        }
    });
}

#[test]
fn a_killed_process_leaves_whole_batches_and_all_that_was_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "writes_until_it_is_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut flushed = 0;
        let mut seen = 0;
        while seen < 2 + round * 2 {
            let line = lines.next().expect("it goes on").unwrap();
            if let Some(count) = line.strip_prefix("flushed ") {
                flushed = count.parse().unwrap();
                seen += 1;
            }
        }
        child.kill().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some(count) = line.strip_prefix("flushed ") {
                flushed = count.parse().unwrap();
            }
        }
        child.wait().unwrap();

        let engine = LsmEngine::open(folder.path(), config()).unwrap();
        assert_eq!(engine.damaged(), []);
        let snapshot = engine.snapshot(VOLUME).unwrap();
        let found = counter(&*snapshot, "k0");
        assert!(found >= flushed, "round {round}: {found} after a flush of {flushed}");
        assert!(found > last);
        for key in 0..KEYS {
            assert_eq!(counter(&*snapshot, &format!("k{key}")), found, "round {round}, k{key}");
        }
        let short_lived = snapshot.scan(&KeyRange::with_prefix(b"s"), false);
        let short_lived: Vec<Bytes> = short_lived.map(|item| item.unwrap().0).collect();
        assert_eq!(short_lived, [format!("s{found}")], "round {round}");
        last = found;
    }
}
