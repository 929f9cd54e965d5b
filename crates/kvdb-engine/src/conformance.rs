//! What every engine must do, as tests that are run against each of them.
//!
//! A [`Subject`] is an engine together with a way to crash it: after [`Subject::crash`] it holds
//! what was durable and nothing else.

use crate::{Batch, Engine, EngineError, Item, SequenceNumber};
use bytes::Bytes;
use kvdb_model::{KeyRange, VolumeId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// An engine under test.
pub trait Subject {
    /// Its type.
    type Engine: Engine;
    /// The engine as it is now.
    fn engine(&self) -> &Self::Engine;
    /// Loses all that isn't durable and opens what is left.
    fn crash(&mut self);
}

const VOLUME: VolumeId = VolumeId(7);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Batch {
    let mut batch = Batch::default();
    batch.put(bytes(key), bytes(value));
    batch
}

fn contents<E: Engine>(engine: &E, range: &KeyRange, reverse: bool) -> Vec<(Bytes, Bytes)> {
    let snapshot = engine.snapshot(VOLUME).expect("the volume is there");
    snapshot.scan(range, reverse).collect::<Result<_, _>>().expect("it can be read")
}

/// Runs every test, each against a fresh subject.
///
/// # Panics
/// Where the engine doesn't do what it must.
pub fn run_all<S: Subject>(mut fresh: impl FnMut() -> S) {
    batches_are_visible_as_a_whole_and_in_order(&mut fresh());
    snapshots_do_not_change(&mut fresh());
    scans_respect_bounds_in_both_directions(&mut fresh());
    the_last_change_of_a_key_in_a_batch_wins(&mut fresh());
    a_crash_keeps_exactly_what_was_flushed(&mut fresh());
    an_ingested_volume_is_durable_and_writable(&mut fresh());
    a_bad_ingestion_leaves_nothing(&mut fresh());
    a_deleted_volume_is_gone_but_open_snapshots_stay_readable(&mut fresh());
    missing_and_existing_volumes_are_errors(&mut fresh());
    for seed in 0..12 {
        random_operations_match_a_map_through_crashes(&mut fresh(), seed);
    }
}

fn batches_are_visible_as_a_whole_and_in_order<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    let first = engine.write(VOLUME, put("a", "1")).expect("written");
    let mut batch = put("b", "2");
    batch.delete(bytes("a"));
    let second = engine.write(VOLUME, batch).expect("written");
    assert!(second > first);
    assert_eq!(contents(engine, &KeyRange::ALL, false), [(bytes("b"), bytes("2"))]);
    let snapshot = engine.snapshot(VOLUME).expect("there");
    assert_eq!(snapshot.get(b"a").expect("readable"), None);
    assert_eq!(snapshot.get(b"b").expect("readable"), Some(bytes("2")));
}

fn snapshots_do_not_change<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    engine.write(VOLUME, put("a", "1")).expect("written");
    let before = engine.snapshot(VOLUME).expect("there");
    for round in 0..50 {
        engine.write(VOLUME, put("a", &round.to_string())).expect("written");
        engine.write(VOLUME, put(&format!("k{round}"), "x")).expect("written");
        if round % 10 == 0 {
            engine.flush(VOLUME).expect("flushed");
            engine.maintain().expect("maintained");
        }
    }
    assert_eq!(before.get(b"a").expect("readable"), Some(bytes("1")));
    assert_eq!(before.scan(&KeyRange::ALL, false).count(), 1);
    assert_eq!(contents(engine, &KeyRange::ALL, false).len(), 51);
}

fn scans_respect_bounds_in_both_directions<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    for (place, key) in ["a", "b", "ba", "c", "d"].into_iter().enumerate() {
        engine.write(VOLUME, put(key, key)).expect("written");
        if place == 2 {
            engine.flush(VOLUME).expect("flushed");
        }
    }
    let keys = |start: &str, end: &str, reverse| -> Vec<Bytes> {
        let range = KeyRange { start: bytes(start), end: bytes(end) };
        contents(engine, &range, reverse).into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys("b", "c", false), ["b", "ba"]);
    assert_eq!(keys("b", "c", true), ["ba", "b"]);
    assert_eq!(keys("", "b", false), ["a"]);
    assert_eq!(keys("c", "", false), ["c", "d"]);
    assert_eq!(keys("", "", true), ["d", "c", "ba", "b", "a"]);
    assert!(keys("x", "", false).is_empty());
    assert!(keys("c", "b", false).is_empty());
}

fn the_last_change_of_a_key_in_a_batch_wins<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    let mut batch = put("a", "1");
    batch.delete(bytes("a"));
    batch.put(bytes("b"), bytes("1"));
    batch.put(bytes("b"), bytes("2"));
    batch.delete(bytes("c"));
    batch.put(bytes("c"), bytes("3"));
    engine.write(VOLUME, batch).expect("written");
    let expected = [(bytes("b"), bytes("2")), (bytes("c"), bytes("3"))];
    assert_eq!(contents(engine, &KeyRange::ALL, false), expected);
    engine.flush(VOLUME).expect("flushed");
    assert_eq!(contents(engine, &KeyRange::ALL, false), expected);
}

fn a_crash_keeps_exactly_what_was_flushed<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    engine.write(VOLUME, put("a", "1")).expect("written");
    let flushed = engine.flush(VOLUME).expect("flushed");
    assert!(engine.stats(VOLUME).expect("there").flushed >= flushed);
    let later = engine.write(VOLUME, put("b", "2")).expect("written");
    assert!(engine.stats(VOLUME).expect("there").flushed < later);
    subject.crash();
    let engine = subject.engine();
    assert_eq!(contents(engine, &KeyRange::ALL, false), [(bytes("a"), bytes("1"))]);
    let again = engine.write(VOLUME, put("c", "3")).expect("written");
    assert!(again > flushed);
}

fn ascending(count: usize) -> Vec<Item> {
    (0..count).map(|n| Ok((bytes(&format!("{n:08}")), bytes(&"v".repeat(n % 100))))).collect()
}

fn an_ingested_volume_is_durable_and_writable<S: Subject>(subject: &mut S) {
    subject.engine().ingest_volume(VOLUME, &mut ascending(5000).into_iter()).expect("ingested");
    subject.crash();
    let engine = subject.engine();
    assert_eq!(contents(engine, &KeyRange::ALL, false).len(), 5000);
    let mut batch = Batch::default();
    batch.delete(bytes("00000000"));
    batch.put(bytes("00000001"), bytes("new"));
    engine.write(VOLUME, batch).expect("written");
    let all = contents(engine, &KeyRange::ALL, false);
    assert_eq!(all.len(), 4999);
    assert_eq!(all[0], (bytes("00000001"), bytes("new")));
}

fn a_bad_ingestion_leaves_nothing<S: Subject>(subject: &mut S) {
    let mut items = ascending(10);
    items.push(Ok((bytes("00000003"), Bytes::new())));
    let refused = subject.engine().ingest_volume(VOLUME, &mut items.into_iter());
    assert!(matches!(refused, Err(EngineError::NotAscending(_))));
    let mut items = ascending(10);
    items.push(Err(EngineError::VolumeMissing(VolumeId(1))));
    assert!(subject.engine().ingest_volume(VOLUME, &mut items.into_iter()).is_err());
    assert!(subject.engine().volumes().is_empty());
    subject.crash();
    assert!(subject.engine().volumes().is_empty());
    // An empty one is fine.
    subject.engine().ingest_volume(VOLUME, &mut std::iter::empty()).expect("ingested");
    assert!(contents(subject.engine(), &KeyRange::ALL, false).is_empty());
}

fn a_deleted_volume_is_gone_but_open_snapshots_stay_readable<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    engine.create_volume(VOLUME).expect("created");
    engine.write(VOLUME, put("a", "1")).expect("written");
    engine.flush(VOLUME).expect("flushed");
    engine.write(VOLUME, put("b", "2")).expect("written");
    let snapshot = engine.snapshot(VOLUME).expect("there");
    engine.delete_volume(VOLUME).expect("deleted");
    engine.delete_volume(VOLUME).expect("deleting again is fine");
    assert!(engine.volumes().is_empty());
    assert!(matches!(engine.snapshot(VOLUME), Err(EngineError::VolumeMissing(_))));
    assert_eq!(snapshot.get(b"a").expect("readable"), Some(bytes("1")));
    assert_eq!(snapshot.scan(&KeyRange::ALL, true).count(), 2);
    drop(snapshot);
    subject.crash();
    assert!(subject.engine().volumes().is_empty());
}

fn missing_and_existing_volumes_are_errors<S: Subject>(subject: &mut S) {
    let engine = subject.engine();
    assert!(matches!(engine.write(VOLUME, put("a", "1")), Err(EngineError::VolumeMissing(_))));
    assert!(matches!(engine.flush(VOLUME), Err(EngineError::VolumeMissing(_))));
    assert!(matches!(engine.stats(VOLUME), Err(EngineError::VolumeMissing(_))));
    engine.create_volume(VOLUME).expect("created");
    assert!(matches!(engine.create_volume(VOLUME), Err(EngineError::VolumeExists(_))));
    let ingested = engine.ingest_volume(VOLUME, &mut std::iter::empty());
    assert!(matches!(ingested, Err(EngineError::VolumeExists(_))));
    engine.create_volume(VolumeId(9)).expect("created");
    assert_eq!(engine.volumes(), [VOLUME, VolumeId(9)]);
}

/// Batches so far, with the state after each.
struct Model {
    states: BTreeMap<u64, BTreeMap<Bytes, Bytes>>,
    now: BTreeMap<Bytes, Bytes>,
}

fn random_operations_match_a_map_through_crashes<S: Subject>(subject: &mut S, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut roll = move |below: u64| random.next_u64() % below;
    subject.engine().create_volume(VOLUME).expect("created");
    let mut model = Model { states: BTreeMap::from([(0, BTreeMap::new())]), now: BTreeMap::new() };
    for _ in 0..300 {
        match roll(20) {
            0 => {
                subject.engine().flush(VOLUME).expect("flushed");
            }
            1 => {
                subject.engine().maintain().expect("maintained");
            }
            2 if roll(3) == 0 => {
                let flushed = subject.engine().stats(VOLUME).expect("there").flushed;
                subject.crash();
                survive(subject.engine(), &mut model, flushed);
            }
            3 => {
                let ordered: Vec<_> = model.now.clone().into_iter().collect();
                assert_eq!(
                    contents(subject.engine(), &KeyRange::ALL, false),
                    ordered,
                    "seed {seed}"
                );
            }
            _ => {
                let mut batch = Batch::default();
                for _ in 0..=roll(4) {
                    let key = bytes(&format!("k{}", roll(40)));
                    if roll(4) == 0 {
                        batch.delete(key.clone());
                        model.now.remove(&key);
                    } else {
                        let value = bytes(&"x".repeat(roll(200) as usize));
                        batch.put(key.clone(), value.clone());
                        model.now.insert(key, value);
                    }
                }
                let SequenceNumber(at) = subject.engine().write(VOLUME, batch).expect("written");
                model.states.insert(at, model.now.clone());
            }
        }
    }
}

/// After a crash the content must be the state after one of the batches, at least the last that
/// was said to be flushed.
fn survive<E: Engine>(engine: &E, model: &mut Model, flushed: SequenceNumber) {
    let found: BTreeMap<Bytes, Bytes> =
        contents(engine, &KeyRange::ALL, false).into_iter().collect();
    let promised = model.states.range(..=flushed.0).next_back().map(|(at, _)| *at);
    let kept = model
        .states
        .range(promised.unwrap_or(0)..)
        .find(|(_, state)| **state == found)
        .map(|(at, _)| *at)
        .expect("the content after the crash is that after a batch, at or behind the flushed one");
    model.now = found;
    model.states.split_off(&(kept + 1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryEngine;

    struct InMemory(MemoryEngine);

    impl Subject for InMemory {
        type Engine = MemoryEngine;

        fn engine(&self) -> &MemoryEngine {
            &self.0
        }

        fn crash(&mut self) {
            self.0 = self.0.crash();
        }
    }

    #[test]
    fn the_memory_engine_conforms() {
        run_all(|| InMemory(MemoryEngine::new()));
    }
}
