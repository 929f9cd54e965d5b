//! Random operations against a `BTreeMap`, with crashes in between.

use super::{Subject, VOLUME, contents};
use crate::{Batch, Engine, SequenceNumber, Snapshot};
use bytes::Bytes;
use kvdb_model::KeyRange;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;

const CASES: u32 = 32;

type Contents = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug)]
enum Operation {
    /// Key, and the length of its new value, or its removal.
    Write(Vec<(u8, Option<u16>)>),
    Flush,
    Maintain,
    /// Opens a snapshot that is compared until the next crash.
    Hold,
    /// Compares everything, held snapshots included.
    Compare,
    Scan(u8, u8, bool),
    Crash,
}

fn operation() -> impl Strategy<Value = Operation> {
    let change = (0u8..40, prop::option::weighted(0.75, 0u16..300));
    prop_oneof![
        12 => prop::collection::vec(change, 1..6).prop_map(Operation::Write),
        2 => Just(Operation::Flush),
        2 => Just(Operation::Maintain),
        1 => Just(Operation::Hold),
        1 => Just(Operation::Compare),
        1 => (0u8..42, 0u8..42, any::<bool>()).prop_map(|(a, b, r)| Operation::Scan(a, b, r)),
        1 => Just(Operation::Crash),
    ]
}

pub(super) fn run<S: Subject>(fresh: &mut impl FnMut() -> S) {
    let fresh = std::cell::RefCell::new(fresh);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let outcome =
        TestRunner::new(config).run(&prop::collection::vec(operation(), 1..120), |operations| {
            let mut subject = (fresh.borrow_mut())();
            matches_a_map(&mut subject, operations);
            Ok(())
        });
    if let Err(failure) = outcome {
        panic!("the engine differs from a map: {failure}");
    }
}

/// What the volume should hold, after each batch since the last crash and now.
struct Model {
    after: BTreeMap<SequenceNumber, Contents>,
    now: Contents,
}

fn key(number: u8) -> Bytes {
    Bytes::from(format!("k{number:02}"))
}

fn matches_a_map<S: Subject>(subject: &mut S, operations: Vec<Operation>) {
    subject.engine().create_volume(VOLUME).expect("created");
    let mut model = Model {
        after: BTreeMap::from([(SequenceNumber(0), Contents::new())]),
        now: Contents::new(),
    };
    let mut held: Vec<(Box<dyn Snapshot>, Contents)> = Vec::new();
    for operation in operations {
        let engine = subject.engine();
        match operation {
            Operation::Write(changes) => model.write(engine, changes),
            Operation::Flush => {
                let last = engine.stats(VOLUME).expect("there").published;
                assert!(engine.flush(VOLUME).expect("flushed") >= last);
            }
            Operation::Maintain => {
                engine.maintain().expect("maintained");
            }
            Operation::Hold => {
                held.push((engine.snapshot(VOLUME).expect("there"), model.now.clone()));
            }
            Operation::Compare => {
                assert!(contents(engine).into_iter().eq(model.now.clone()));
                held.iter().for_each(|(snapshot, expected)| compare(&**snapshot, expected));
            }
            Operation::Scan(start, end, reverse) => model.scan(engine, start, end, reverse),
            Operation::Crash => {
                held.clear();
                let promised = engine.stats(VOLUME).expect("there").flushed;
                subject.crash();
                model.survive(subject.engine(), promised);
            }
        }
    }
    held.iter().for_each(|(snapshot, expected)| compare(&**snapshot, expected));
}

fn compare(snapshot: &dyn Snapshot, expected: &Contents) {
    let found: Contents =
        snapshot.scan(&KeyRange::ALL, false).map(|item| item.expect("readable")).collect();
    assert_eq!(found, *expected);
    for number in 0..40 {
        let found = snapshot.get(&key(number)).expect("readable");
        assert_eq!(found.as_ref(), expected.get(&key(number)));
    }
}

impl Model {
    fn write<E: Engine>(&mut self, engine: &E, changes: Vec<(u8, Option<u16>)>) {
        let mut batch = Batch::default();
        for (number, length) in changes {
            match length {
                Some(length) => {
                    let value = Bytes::from(vec![b'a' + number % 26; usize::from(length)]);
                    batch.put(key(number), value.clone());
                    self.now.insert(key(number), value);
                }
                None => {
                    batch.delete(key(number));
                    self.now.remove(&key(number));
                }
            }
        }
        let at = engine.write(VOLUME, batch).expect("written");
        let last = self.after.last_key_value().map(|(last, _)| *last);
        assert!(last < Some(at), "numbers must rise: {last:?}, then {at:?}");
        self.after.insert(at, self.now.clone());
    }

    fn scan<E: Engine>(&self, engine: &E, start: u8, end: u8, reverse: bool) {
        let range = KeyRange { start: key(start), end: key(end) };
        let snapshot = engine.snapshot(VOLUME).expect("there");
        let found: Vec<_> =
            snapshot.scan(&range, reverse).map(|item| item.expect("readable")).collect();
        let inside = self.now.iter().filter(|(key, _)| range.contains(key));
        let mut expected: Vec<_> =
            inside.map(|(key, value)| (key.clone(), value.clone())).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!(found, expected);
    }

    /// What is left must be what was there after one of the batches: the last that was said to be
    /// flushed, or a later one.
    fn survive<E: Engine>(&mut self, engine: &E, promised: SequenceNumber) {
        let found: Contents = contents(engine).into_iter().collect();
        let least = self.after.range(..=promised).next_back().map(|(at, _)| *at);
        assert!(
            self.after.range(least.unwrap_or_default()..).any(|(_, state)| *state == found),
            "no batch at or behind the flushed one left what is there after the crash"
        );
        let published = engine.stats(VOLUME).expect("there").published;
        self.after = BTreeMap::from([(published, found.clone())]);
        self.now = found;
    }
}
