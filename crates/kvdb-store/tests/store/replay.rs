//! Random histories against the model, through crashes, in any grouping of entries.

use crate::model::{Model, Value, any_history, log_of};
use crate::support::*;
use bytes::Bytes;
use kvdb_engine::{Engine, MemoryEngine, SequenceNumber};
use kvdb_model::{EntryCommand, EntryPayload, KeyRange, ReplicaId, VolumeId};
use kvdb_store::{ChangeEvent, CommandOutcome, EntryOutcome, ScanRequest, digest};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What the model says that each entry comes to.
fn expected(log: &Log, contents: &[Vec<EntryCommand>]) -> (Vec<EntryOutcome>, Model) {
    let mut model = Model::default();
    let outcome = |(entry, commands): (&kvdb_model::LogEntry, &Vec<EntryCommand>)| {
        let mut outcomes = vec![];
        if !commands.is_empty() {
            let payload = EntryPayload::decode(entry.data.clone()).expect("we made it");
            let mut version = payload.version;
            for command in commands {
                outcomes.push(match command {
                    EntryCommand::Write(write) => {
                        CommandOutcome::Written(model.write(write, version))
                    }
                    EntryCommand::Reclaim(keys) => {
                        CommandOutcome::Reclaimed(model.reclaim(keys, version))
                    }
                    EntryCommand::History(_) => CommandOutcome::HistoryDecided,
                    _ => CommandOutcome::TimeAdvanced(version),
                });
                version = version.plus(command.version_count());
            }
            model.reach(payload.last_version());
        }
        EntryOutcome { index: entry.index, commands: outcomes, membership: None }
    };
    let outcomes = log.entries.iter().zip(contents).map(outcome).collect();
    (outcomes, model)
}

fn live(engine: &MemoryEngine) -> BTreeMap<Bytes, Value> {
    let request = ScanRequest {
        epoch: EPOCH,
        range: KeyRange::ALL,
        reverse: false,
        keys_only: false,
        limit: usize::MAX,
        max_bytes: usize::MAX,
        max_examined: usize::MAX,
        now_ms: 0,
    };
    let snapshot = snapshot(engine);
    let page = kvdb_store::scan(&*snapshot, REPLICA, &request, &|_| true).expect("it is sound");
    let item = |item: kvdb_store::ScannedItem| {
        let expires_at_ms = Some(item.record.expires_at_ms).filter(|at| *at != 0);
        let record = item.record;
        (item.routing_key, Value { value: record.value, version: record.version, expires_at_ms })
    };
    page.items.into_iter().map(item).collect()
}

/// What a watcher who has heard all of it knows.
fn told(events: Vec<ChangeEvent>) -> BTreeMap<Bytes, Value> {
    let mut known = BTreeMap::new();
    for event in events {
        match event.record {
            Some(record) => {
                assert_eq!(record.version, event.version);
                let expires_at_ms = Some(record.expires_at_ms).filter(|at| *at != 0);
                let value = Value { value: record.value, version: record.version, expires_at_ms };
                known.insert(event.routing_key, value);
            }
            None => {
                known.remove(&event.routing_key).expect("only what is there is removed");
            }
        }
    }
    known
}

fn digest_of(engine: &MemoryEngine, replica: ReplicaId, volume: VolumeId) -> u64 {
    let snapshot = engine.snapshot(volume).expect("the volume is there");
    digest(&*snapshot, replica).expect("it is sound").1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_outcome_and_the_content_are_those_of_the_model(history in any_history()) {
        let (log, contents) = log_of(&history);
        let (expected, model) = expected(&log, &contents);
        let (engine, mut shard) = newborn();
        let applied = shard.apply(&log.entries).unwrap();
        prop_assert_eq!(applied.entries, expected);
        prop_assert_eq!(live(&engine), model.live());
        prop_assert!(applied.events.is_sorted_by_key(|event| event.version));
        prop_assert_eq!(&told(applied.events), model.stored());
    }

    #[test]
    fn a_crash_at_any_point_and_a_replay_lead_to_the_same_bytes(
        history in any_history(),
        groups in prop::collection::vec((1usize..6, any::<prop::sample::Index>(), any::<bool>(), 0usize..4), 1..12),
    ) {
        let (log, contents) = log_of(&history);
        let (expected, _) = expected(&log, &contents);
        let (reference, mut shard) = newborn();
        shard.apply(&log.entries).unwrap();

        // Another replica elsewhere, whose runs are grouped otherwise and which crashes between
        // them with more or less of it flushed.
        let (replica, volume) = (ReplicaId(77), VolumeId(5));
        let mut engine = MemoryEngine::new();
        engine.create_volume(volume).unwrap();
        let mut shard = open(&engine, replica, volume);
        let mut next = 0;
        for (count, flush, crashes, back) in groups.into_iter().cycle() {
            if next == log.entries.len() {
                break;
            }
            let end = (next + count).min(log.entries.len());
            // Some that were applied before come again.
            let run = &log.entries[next.saturating_sub(back)..end];
            let applied = shard.apply(run).unwrap();
            prop_assert_eq!(&applied.entries[..], &expected[next..end]);
            prop_assert_eq!(applied.position.index, log.entries[end - 1].index);
            next = end;
            if crashes && next < log.entries.len() {
                let batches = applied.sequence.expect("entries were new").0;
                let through = SequenceNumber(flush.index(batches as usize + 1) as u64);
                engine.flush_through(volume, through).unwrap();
                engine = engine.crash();
                shard = open(&engine, replica, volume);
                next = (shard.applied().index.0 - kvdb_model::log::INITIAL_POSITION.index.0) as usize;
                prop_assert!(next <= end);
                // So that a history ends: what was lost is replayed in one go.
                shard.apply(&log.entries[next..end]).unwrap();
                next = end;
            }
        }
        prop_assert_eq!(digest_of(&engine, replica, volume), digest_of(&reference, REPLICA, VOLUME));
    }
}

#[test]
fn large_runs_become_several_batches_between_entries() {
    let (engine, mut shard) = newborn();
    let mut log = Log::new();
    let megabyte = "v".repeat(1 << 20);
    for place in 0..10 {
        log.push(&[EntryCommand::Write(write(vec![put(&format!("k{place}"), &megabyte)]))]);
    }
    let before = engine.stats(VOLUME).unwrap().published.0;
    let applied = shard.apply(&log.entries).unwrap();
    let last = applied.sequence.unwrap().0;
    assert!(last - before > 1 && last - before < 10, "{} batches", last - before);
    assert_eq!(last, engine.stats(VOLUME).unwrap().published.0);
    assert_eq!(applied.entries.len(), 10);
    // Each is whole: after a crash between them the applied index is that of the data.
    for through in before..=last {
        let (engine, mut shard) = newborn();
        shard.apply(&log.entries).unwrap();
        engine.flush_through(VOLUME, SequenceNumber(through)).unwrap();
        let engine = engine.crash();
        let shard = open(&engine, REPLICA, VOLUME);
        let entries = shard.applied().index.0 - kvdb_model::log::INITIAL_POSITION.index.0;
        assert_eq!(live(&engine).len() as u64, entries);
    }
}

#[test]
fn digests_tell_different_states_apart() {
    let mut digests = std::collections::BTreeSet::new();
    let mut histories: Vec<Vec<EntryCommand>> = vec![vec![]];
    let one = |write| vec![EntryCommand::Write(write)];
    histories.push(one(write(vec![put("k", "1")])));
    histories.push(one(write(vec![put("k", "2")])));
    histories.push(one(write(vec![put("l", "1")])));
    histories.push(one(write(vec![put_for("k", "1", 9)])));
    histories.push(one(tagged(1, write(vec![put("k", "1")]))));
    histories.push(one(tagged(2, write(vec![put("k", "1")]))));
    histories.push(vec![EntryCommand::AdvanceTime]);
    let count = histories.len();
    for commands in histories {
        let (engine, mut shard) = newborn();
        let mut log = Log::new();
        if commands.is_empty() {
            log.push_empty();
        } else {
            log.push(&commands);
        }
        shard.apply(&log.entries).unwrap();
        digests.insert(digest_of(&engine, REPLICA, VOLUME));
    }
    assert_eq!(digests.len(), count);
}
