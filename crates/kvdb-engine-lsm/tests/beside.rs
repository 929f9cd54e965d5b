//! Writes, flushes, compactions and readers at once: what was written is there, always.

#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod support;

use bytes::Bytes;
use kvdb_engine::conformance::Subject;
use kvdb_engine::{Batch, Engine};
use kvdb_engine_lsm::LsmConfig;
use kvdb_model::{KeyRange, VolumeId};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::OnDisk;

const VOLUME: VolumeId = VolumeId(1);
const KEYS: u64 = 40;
const ROUNDS: u64 = 300;

fn key(of: u64) -> Bytes {
    Bytes::from(format!("key-{of:03}"))
}

/// Each round writes all keys in one batch, so that every snapshot shows one round, whole; a key in
/// five is removed.
fn batch(round: u64) -> Batch {
    let mut batch = Batch::default();
    for of in 0..KEYS {
        match (of + round) % 5 {
            0 => batch.delete(key(of)),
            _ => batch.put(key(of), round.to_be_bytes().to_vec()),
        }
    }
    batch
}

fn expected(round: u64) -> Vec<(Bytes, Bytes)> {
    let there = (0..KEYS).filter(|of| !(of + round).is_multiple_of(5));
    there.map(|of| (key(of), Bytes::from(round.to_be_bytes().to_vec()))).collect()
}

#[test]
fn a_flush_beside_a_compaction_hides_nothing() {
    let config = LsmConfig {
        // So that there is always something to compact.
        compact_at_runs: 2,
        memtable_budget_bytes: 1,
        compaction_bytes_per_second: None,
        ..LsmConfig::default()
    };
    let mut subject = OnDisk::new(config);
    let engine = subject.engine();
    engine.create_volume(VOLUME).unwrap();
    engine.write(VOLUME, batch(0)).unwrap();
    let (written, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let ended = || done.load(Ordering::Acquire);
    std::thread::scope(|scope| {
        // As the log's thread does, to cut its log.
        scope.spawn(|| {
            while !ended() {
                engine.flush(VOLUME).unwrap();
            }
        });
        // As the maintenance thread does.
        scope.spawn(|| {
            while !ended() {
                engine.maintain().unwrap();
            }
        });
        for reverse in [false, true] {
            let (written, ended) = (&written, &ended);
            scope.spawn(move || {
                while !ended() {
                    let least = written.load(Ordering::Acquire);
                    let snapshot = engine.snapshot(VOLUME).unwrap();
                    let mut all: Vec<_> =
                        snapshot.scan(&KeyRange::ALL, reverse).map(Result::unwrap).collect();
                    if reverse {
                        all.reverse();
                    }
                    let round = u64::from_be_bytes(all[0].1[..].try_into().unwrap());
                    assert!(round >= least, "{round} is shown, {least} was written");
                    assert_eq!(all, expected(round));
                    for of in 0..KEYS {
                        let found = snapshot.get(&key(of)).unwrap();
                        let shown = all.iter().find(|(key, _)| *key == self::key(of));
                        assert_eq!(found.as_ref(), shown.map(|(_, value)| value), "{of}");
                    }
                }
            });
        }
        for round in 1..=ROUNDS {
            engine.write(VOLUME, batch(round)).unwrap();
            written.store(round, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
    engine.flush(VOLUME).unwrap();
    subject.crash();
    let snapshot = subject.engine().snapshot(VOLUME).unwrap();
    let all: Vec<_> = snapshot.scan(&KeyRange::ALL, false).map(Result::unwrap).collect();
    assert_eq!(all, expected(ROUNDS));
}
