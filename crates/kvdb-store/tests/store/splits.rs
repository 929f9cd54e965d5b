//! A shard becomes two.

use crate::model::{any_history, any_limits, log_of};
use crate::support::*;
use bytes::Bytes;
use kvdb_engine::{Engine, MemoryEngine, SequenceNumber};
use kvdb_model::Reply;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryCommand, HistoryPolicy, KeyRange, LogEntry, MembershipEpoch, NodeId, RangeEpoch, Refusal,
    Replica, ReplicaId, Role, ShardId, SplitPlan,
};
use kvdb_store::{Born, NoControl, Shard, digest, is_in, replicas_in};
use proptest::prelude::*;
use std::sync::Arc;

const CHILD: ReplicaId = ReplicaId(77);
const SPLIT_EPOCH: RangeEpoch = RangeEpoch(EPOCH.0 + 1);

fn plan() -> SplitPlan {
    SplitPlan {
        at: "m".into(),
        child: ShardId(9),
        replicas: vec![Replica { node_id: NodeId(1), replica_id: CHILD, role: Role::Voter }],
        membership_epoch: MembershipEpoch(1),
    }
}

fn split(single: &mut Single, plan: SplitPlan) -> Option<Born> {
    let (entry, _) = single.log.push(&[EntryCommand::Split(plan)]);
    single.apply(&[entry]).entries[0].born().cloned()
}

fn open_child(engine: &MemoryEngine) -> Shard<NoControl> {
    let engine: Arc<dyn Engine> = Arc::new(engine.clone());
    Shard::open(engine, CHILD, VOLUME, &Bytes::new(), INITIAL_POSITION, NoControl)
        .expect("the split has left its state")
}

fn read(
    engine: &MemoryEngine,
    replica: ReplicaId,
    epoch: RangeEpoch,
    key: &str,
) -> Result<Option<Bytes>, Refusal> {
    let snapshot = snapshot(engine);
    match kvdb_store::get(&*snapshot, replica, epoch, key.as_bytes(), 0) {
        Ok(found) => Ok(found.record.map(|record| record.value)),
        Err(kvdb_store::ReadError::Refused(refusal)) => Err(refusal),
        Err(other) => panic!("{other}"),
    }
}

fn digest_of(engine: &MemoryEngine, replica: ReplicaId) -> u64 {
    digest(&*snapshot(engine), replica).expect("it is sound").1
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_are_the_same_however_entries_are_grouped(
        before in any_history(),
        decisions in prop::collection::vec((prop::option::weighted(0.6, any_limits()), 0usize..12), 0..4),
        runs in prop::collection::vec(1usize..40, 1..6),
    ) {
        let (mut log, _) = log_of(&before);
        for (revision, (limits, writes)) in (1_000_000..).zip(decisions) {
            log.push(&[EntryCommand::History(HistoryPolicy { revision, limits })]);
            for _ in 0..writes {
                // Long enough for what comes to be freed apart from what was.
                log.now_ms += 40;
                log.push(&[EntryCommand::Write(write(vec![put("c", "low"), put("x", "high")]))]);
            }
        }
        log.push(&[EntryCommand::Split(plan())]);
        let (reference, mut shard) = newborn();
        for entry in &log.entries {
            shard.apply(std::slice::from_ref(entry)).unwrap();
        }
        let (engine, mut shard) = newborn();
        let mut rest = &log.entries[..];
        for run in runs.into_iter().cycle() {
            if rest.is_empty() { break }
            let (now, later) = rest.split_at(run.min(rest.len()));
            shard.apply(now).unwrap();
            rest = later;
        }
        for replica in [REPLICA, CHILD] {
            prop_assert_eq!(digest_of(&engine, replica), digest_of(&reference, replica));
        }
    }
}

#[test]
fn each_side_serves_its_half_and_refuses_the_other() {
    let mut single = Single::new();
    single.one(put("c", "low")).unwrap();
    single.one(put("m", "first of the child")).unwrap();
    single.one(put("x", "high")).unwrap();
    let born = split(&mut single, plan()).expect("the plan fits");
    assert_eq!(born.parent.range, KeyRange::new("b", "m"));
    assert_eq!(born.child.range, KeyRange::new("m", "y"));
    assert_eq!((born.parent.range_epoch, born.child.range_epoch), (SPLIT_EPOCH, SPLIT_EPOCH));
    assert_eq!(single.shard.descriptor(), &born.parent);
    let child = open_child(&single.engine);
    assert_eq!((child.applied(), child.descriptor()), (INITIAL_POSITION, &born.child));
    assert_eq!(child.time(), born.time, "its time goes on from the parent's");

    let engine = &single.engine;
    assert_eq!(read(engine, REPLICA, SPLIT_EPOCH, "c"), Ok(Some("low".into())));
    assert_eq!(read(engine, CHILD, SPLIT_EPOCH, "m"), Ok(Some("first of the child".into())));
    assert_eq!(read(engine, CHILD, SPLIT_EPOCH, "x"), Ok(Some("high".into())));
    let moved = |result| matches!(result, Err(Refusal::ShardMoved { .. }));
    assert!(moved(read(engine, REPLICA, SPLIT_EPOCH, "x")));
    assert!(moved(read(engine, CHILD, SPLIT_EPOCH, "c")));
    assert!(matches!(read(engine, REPLICA, EPOCH, "c"), Err(Refusal::StaleEpoch { .. })));
    assert!(matches!(single.one(put("c", "stale")), Err(Refusal::StaleEpoch { .. })));
}

#[test]
fn a_retry_finds_its_answer_on_both_sides() {
    let mut single = Single::new();
    let batch = tagged(1, write(vec![increment("c", 5), increment("x", 7).item(1)]));
    single.write(batch.clone());
    split(&mut single, plan()).expect("the plan fits");
    let mut child = open_child(&single.engine);
    for (key, item, counter) in [("c", 0, 5), ("x", 1, 7)] {
        let again = kvdb_model::Write {
            epoch: SPLIT_EPOCH,
            operations: batch.operations[item..=item].to_vec(),
            ..batch.clone()
        };
        let outcome = if key == "c" {
            single.write(again).0.remove(0)
        } else {
            let mut log = Log::new();
            log.now_ms += 10;
            let (entry, _) = log.push(&[EntryCommand::Write(again)]);
            let applied = child.apply(&[entry]).unwrap();
            match &applied.entries[0].commands[0] {
                kvdb_store::CommandOutcome::Written(outcomes) => outcomes[0].clone(),
                other => panic!("{other:?}"),
            }
        };
        let result = outcome.unwrap();
        assert_eq!((result.reply, result.deduplicated), (Reply::Integer(counter), true), "{key}");
    }
}

#[test]
fn a_plan_that_does_not_fit_changes_nothing() {
    let unfit = [
        SplitPlan { at: "b".into(), ..plan() },
        SplitPlan { at: "y".into(), ..plan() },
        SplitPlan { at: "z".into(), ..plan() },
        SplitPlan { membership_epoch: MembershipEpoch(2), ..plan() },
        SplitPlan { replicas: vec![], ..plan() },
        SplitPlan { child: ShardId(4), ..plan() },
        SplitPlan {
            replicas: vec![Replica { node_id: NodeId(2), replica_id: CHILD, role: Role::Voter }],
            ..plan()
        },
    ];
    for plan in unfit {
        let mut single = Single::new();
        assert_eq!(split(&mut single, plan.clone()), None, "{plan:?}");
        assert_eq!(single.shard.descriptor(), &descriptor());
        assert!(!is_in(&*snapshot(&single.engine), CHILD).unwrap());
    }
    let mut single = Single::new();
    split(&mut single, plan()).expect("the plan fits");
    assert_eq!(split(&mut single, plan()), None, "the same split a second time");
}

#[test]
fn a_crash_keeps_the_split_as_a_whole_or_not_at_all() {
    let mut single = Single::new();
    let mut entries: Vec<LogEntry> = vec![];
    for key in ["c", "n", "x"] {
        entries.push(
            single
                .log
                .push(&[EntryCommand::Write(tagged(
                    entries.len() as u64 + 1,
                    write(vec![put(key, "before")]),
                ))])
                .0,
        );
    }
    entries.push(single.log.push(&[EntryCommand::Split(plan())]).0);
    let after = kvdb_model::Write { epoch: SPLIT_EPOCH, ..write(vec![put("d", "after")]) };
    entries.push(single.log.push(&[EntryCommand::Write(after)]).0);
    let split_at = entries[3].index;
    let mut digests = None;
    for flushed in 0..=7 {
        let (engine, mut shard) = newborn();
        for entry in &entries {
            shard.apply(std::slice::from_ref(entry)).unwrap();
        }
        let through = SequenceNumber(flushed);
        let _ = engine.flush_through(VOLUME, through);
        let engine = engine.crash();
        if engine.volumes().is_empty() {
            continue;
        }
        let mut shard = open(&engine, REPLICA, VOLUME);
        let past_split = shard.applied().index >= split_at;
        assert_eq!(is_in(&*snapshot(&engine), CHILD).unwrap(), past_split, "flushed {flushed}");
        shard.apply(&entries).unwrap();
        let found: Vec<_> =
            replicas_in(&*snapshot(&engine)).unwrap().into_iter().map(|found| found.0).collect();
        assert_eq!(found, [REPLICA, CHILD]);
        let digest = |replica| digest(&*snapshot(&engine), replica).unwrap().1;
        let now = (digest(REPLICA), digest(CHILD));
        assert_eq!(*digests.get_or_insert(now), now, "flushed {flushed}");
    }
}
