//! Random operations against a `BTreeMap`, with crashes in between.

use super::{Subject, VOLUME, contents};
use crate::{Batch, Engine, SequenceNumber, ShortLived, Snapshot};
use bytes::Bytes;
use kvdb_model::KeyRange;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;

const CASES: u32 = 32;

/// Keys from here on are short-lived.
const SHORT_LIVED: u8 = 30;

type Contents = BTreeMap<Bytes, Bytes>;

#[derive(Clone, Debug)]
enum Operation {
    /// Key, and the length of its new value, or its removal; the second ones are short-lived.
    Write(Vec<(u8, Option<u16>)>, Vec<(u8, Option<u16>)>),
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
    let change = (0u8..30, prop::option::weighted(0.75, 0u16..300));
    let short_lived = (SHORT_LIVED..40, prop::option::weighted(0.5, 0u16..300));
    prop_oneof![
        12 => (prop::collection::vec(change, 1..6), prop::collection::vec(short_lived, 0..6))
            .prop_map(|(changes, short_lived)| Operation::Write(changes, short_lived)),
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
            Operation::Write(changes, short_lived) => model.write(engine, changes, short_lived),
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
                let lasting = engine.snapshot_of_lasting(VOLUME).expect("there");
                model.compare_lasting(&*lasting);
                assert!(contents(engine).into_iter().eq(model.now.clone()));
                model.compare_lasting(&*lasting);
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
    fn write<E: Engine>(
        &mut self,
        engine: &E,
        changes: Vec<(u8, Option<u16>)>,
        short_lived: Vec<(u8, Option<u16>)>,
    ) {
        let mut batch = Batch::default();
        let before = self.now.clone();
        for (number, length) in changes {
            let value = self.change(number, length);
            batch.changes.push((key(number), value));
        }
        for (number, length) in short_lived {
            let is_new = length.is_some_and(|length| length % 2 == 0)
                && !before.contains_key(&key(number))
                && !self.now.contains_key(&key(number));
            let value = self.change(number, length);
            batch.short_lived.push(ShortLived { key: key(number), value, is_new });
        }
        let at = engine.write(VOLUME, batch).expect("written");
        let last = self.after.last_key_value().map(|(last, _)| *last);
        assert!(last < Some(at), "numbers must rise: {last:?}, then {at:?}");
        self.after.insert(at, self.now.clone());
    }

    fn change(&mut self, number: u8, length: Option<u16>) -> Option<Bytes> {
        let value =
            length.map(|length| Bytes::from(vec![b'a' + (length % 26) as u8; usize::from(length)]));
        match &value {
            Some(value) => self.now.insert(key(number), value.clone()),
            None => self.now.remove(&key(number)),
        };
        value
    }

    fn compare_lasting(&self, snapshot: &dyn Snapshot) {
        let lasting = KeyRange { start: key(0), end: key(SHORT_LIVED) };
        let found: Contents =
            snapshot.scan(&lasting, false).map(|item| item.expect("readable")).collect();
        let expected = self.now.range(key(0)..key(SHORT_LIVED));
        assert!(found.iter().eq(expected));
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
