//! Order, bounds, snapshots, and batches that are seen as a whole.

use super::{Subject, VOLUME, bytes, contents, pairs, put};
use crate::{Batch, Engine, EngineError, MAX_KEY_BYTES};
use bytes::Bytes;
use kvdb_model::KeyRange;

pub(super) fn run<S: Subject>(fresh: &mut impl FnMut() -> S) {
    batches_are_visible_as_a_whole_and_in_order(fresh().engine());
    the_last_change_of_a_key_in_a_batch_wins(fresh().engine());
    a_deleted_key_stays_deleted_wherever_its_value_was(fresh().engine());
    keys_that_cannot_be_stored_are_refused_with_their_batch(fresh().engine());
    keys_are_ordered_as_bytes_and_values_may_be_empty(fresh().engine());
    scans_respect_bounds_in_both_directions(fresh().engine());
    snapshots_do_not_change(fresh().engine());
    a_scan_that_is_under_way_does_not_change(fresh().engine());
    concurrent_readers_never_see_half_a_batch(fresh().engine());
}

fn batches_are_visible_as_a_whole_and_in_order<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    let first = engine.write(VOLUME, put("a", "1")).expect("written");
    let mut batch = put("b", "2");
    batch.delete(bytes("a"));
    let second = engine.write(VOLUME, batch).expect("written");
    assert!(second > first);
    assert_eq!(contents(engine), pairs([("b", "2")]));
    let snapshot = engine.snapshot(VOLUME).expect("there");
    assert_eq!(snapshot.sequence(), second);
    assert_eq!(snapshot.get(b"a").expect("readable"), None);
    assert_eq!(snapshot.get(b"b").expect("readable"), Some(bytes("2")));
    assert_eq!(engine.stats(VOLUME).expect("there").published, second);
}

fn the_last_change_of_a_key_in_a_batch_wins<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    let mut batch = put("a", "1");
    batch.delete(bytes("a"));
    batch.put(bytes("b"), bytes("1"));
    batch.put(bytes("b"), bytes("2"));
    batch.delete(bytes("c"));
    batch.put(bytes("c"), bytes("3"));
    engine.write(VOLUME, batch).expect("written");
    let expected = pairs([("b", "2"), ("c", "3")]);
    assert_eq!(contents(engine), expected);
    engine.flush(VOLUME).expect("flushed");
    assert_eq!(contents(engine), expected);
}

fn a_deleted_key_stays_deleted_wherever_its_value_was<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    for key in ["flushed", "in memory"] {
        engine.write(VOLUME, put(key, "1")).expect("written");
        if key == "flushed" {
            engine.flush(VOLUME).expect("flushed");
        }
        let mut batch = Batch::default();
        batch.delete(bytes(key));
        batch.delete(bytes("never there"));
        engine.write(VOLUME, batch).expect("written");
        assert_eq!(contents(engine), []);
    }
    engine.flush(VOLUME).expect("flushed");
    while engine.maintain().expect("maintained") {}
    assert_eq!(contents(engine), []);
}

fn keys_that_cannot_be_stored_are_refused_with_their_batch<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    for bad in [Bytes::new(), Bytes::from(vec![b'k'; MAX_KEY_BYTES + 1])] {
        let mut batch = put("a", "1");
        batch.put(bad.clone(), bytes("2"));
        let refused = engine.write(VOLUME, batch);
        assert!(matches!(refused, Err(EngineError::KeyLength(length)) if length == bad.len()));
    }
    assert_eq!(contents(engine), []);
    let longest = Bytes::from(vec![b'k'; MAX_KEY_BYTES]);
    let mut batch = Batch::default();
    batch.put(longest.clone(), bytes("1"));
    engine.write(VOLUME, batch).expect("written");
    engine.flush(VOLUME).expect("flushed");
    assert_eq!(contents(engine), [(longest, bytes("1"))]);
}

fn keys_are_ordered_as_bytes_and_values_may_be_empty<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    let sorted: [&[u8]; 6] = [&[0], &[0, 0], &[0, 255], &[1], &[127, 1], &[255, 255]];
    for (place, key) in sorted.into_iter().rev().enumerate() {
        let mut batch = Batch::default();
        batch.put(Bytes::copy_from_slice(key), Bytes::new());
        engine.write(VOLUME, batch).expect("written");
        if place == 3 {
            engine.flush(VOLUME).expect("flushed");
        }
    }
    let found = contents(engine);
    assert!(found.iter().map(|(key, _)| &key[..]).eq(sorted));
    assert!(found.iter().all(|(_, value)| value.is_empty()));
    let snapshot = engine.snapshot(VOLUME).expect("there");
    assert_eq!(snapshot.get(&[1]).expect("readable"), Some(Bytes::new()));
}

fn scans_respect_bounds_in_both_directions<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    for (place, key) in ["a", "b", "ba", "c", "d"].into_iter().enumerate() {
        engine.write(VOLUME, put(key, key)).expect("written");
        if place == 2 {
            engine.flush(VOLUME).expect("flushed");
        }
    }
    let snapshot = engine.snapshot(VOLUME).expect("there");
    let keys = |start: &str, end: &str, reverse| -> Vec<Bytes> {
        let range = KeyRange { start: bytes(start), end: bytes(end) };
        snapshot.scan(&range, reverse).map(|item| item.expect("readable").0).collect()
    };
    assert_eq!(keys("b", "c", false), ["b", "ba"]);
    assert_eq!(keys("b", "c", true), ["ba", "b"]);
    assert_eq!(keys("", "b", false), ["a"]);
    assert_eq!(keys("c", "", false), ["c", "d"]);
    assert_eq!(keys("c", "", true), ["d", "c"]);
    assert_eq!(keys("", "", true), ["d", "c", "ba", "b", "a"]);
    assert_eq!(keys("aa", "bz", true), ["ba", "b"]);
    assert!(keys("x", "", false).is_empty());
    assert!(keys("c", "b", false).is_empty());
    assert!(keys("b", "b", true).is_empty());
}

fn snapshots_do_not_change<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    engine.write(VOLUME, put("a", "1")).expect("written");
    let mut held = vec![(engine.snapshot(VOLUME).expect("there"), pairs([("a", "1")]))];
    for round in 0..50 {
        engine.write(VOLUME, put("a", &round.to_string())).expect("written");
        engine.write(VOLUME, put(&format!("k{round}"), "x")).expect("written");
        if round % 10 == 0 {
            engine.flush(VOLUME).expect("flushed");
            engine.maintain().expect("maintained");
            held.push((engine.snapshot(VOLUME).expect("there"), contents(engine)));
        }
    }
    while engine.maintain().expect("maintained") {}
    for (snapshot, expected) in &held {
        let found: Vec<_> =
            snapshot.scan(&KeyRange::ALL, false).map(|item| item.expect("readable")).collect();
        assert_eq!(found, *expected);
        for (key, value) in expected {
            assert_eq!(snapshot.get(key).expect("readable").as_ref(), Some(value));
        }
        assert_eq!(snapshot.get(b"k49").expect("readable"), None);
    }
    assert_eq!(contents(engine).len(), 51);
}

fn a_scan_that_is_under_way_does_not_change<E: Engine>(engine: &E) {
    engine.create_volume(VOLUME).expect("created");
    for key in 0..200 {
        engine.write(VOLUME, put(&format!("{key:03}"), "before")).expect("written");
    }
    let snapshot = engine.snapshot(VOLUME).expect("there");
    let mut scan = snapshot.scan(&KeyRange::ALL, false);
    for (place, key) in (0..200).enumerate() {
        let mut batch = put(&format!("{key:03}"), "after");
        batch.put(bytes(&format!("{key:03}x")), bytes("after"));
        engine.write(VOLUME, batch).expect("written");
        if key % 50 == 0 {
            engine.flush(VOLUME).expect("flushed");
            engine.maintain().expect("maintained");
        }
        let (found, value) = scan.next().expect("200 keys").expect("readable");
        assert_eq!((found, value), (bytes(&format!("{place:03}")), bytes("before")));
    }
    assert!(scan.next().is_none());
}

fn concurrent_readers_never_see_half_a_batch<E: Engine>(engine: &E) {
    const KEYS: usize = 5;
    engine.create_volume(VOLUME).expect("created");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..2000u32 {
                let mut batch = Batch::default();
                for key in 0..KEYS {
                    batch.put(format!("k{key}"), round.to_string());
                }
                engine.write(VOLUME, batch).expect("written");
                if round % 250 == 0 {
                    engine.flush(VOLUME).expect("flushed");
                }
            }
        });
        let maintainer = scope.spawn(move || {
            while !writer.is_finished() {
                engine.maintain().expect("maintained");
                engine.wait_for_work(std::time::Duration::from_millis(1));
            }
        });
        while !maintainer.is_finished() {
            let snapshot = engine.snapshot(VOLUME).expect("there");
            let get = |key: usize| snapshot.get(format!("k{key}").as_bytes()).expect("readable");
            let first = get(0);
            assert!((0..KEYS).all(|key| get(key) == first));
            let scanned: Vec<Bytes> =
                snapshot.scan(&KeyRange::ALL, true).map(|item| item.expect("readable").1).collect();
            assert_eq!(scanned.len(), if first.is_some() { KEYS } else { 0 });
            assert!(scanned.iter().all(|value| Some(value) == first.as_ref()));
        }
    });
}
