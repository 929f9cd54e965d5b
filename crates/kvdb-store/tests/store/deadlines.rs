//! Fields that expire, through the log: restarts, snapshots, splits, reads and what frees them.

use crate::support::*;
use bytes::Bytes;
use kvdb_engine::{Engine, MemoryEngine};
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryCommand, MembershipEpoch, NodeId, RangeEpoch, Replica, ReplicaId, Reply, Role, ShardId,
    SplitPlan, VolumeId,
};
use kvdb_store::hash::{ExpireFields, Length, Set};
use kvdb_store::keys::{Expiry, ExpiryRule};
use kvdb_store::{ChunkReader, Shard, SnapshotWriter, View, digest};
use std::sync::Arc;

const CHILD: ReplicaId = ReplicaId(77);
const FRESH: VolumeId = VolumeId(8);
const TTL_MS: u64 = 100;

fn field(number: u64) -> Bytes {
    Bytes::from(format!("field-{number}"))
}

fn fill(single: &mut Single, key: &str, count: u64) {
    let fields = (0..count).map(|number| (field(number), "value".into())).collect();
    single.one(on(key, Set { fields, only_new: false })).expect("it is a hash");
}

fn expire(single: &mut Single, key: &str, range: std::ops::Range<u64>, ms: u64) {
    let (expiry, rule) = (Expiry::In(ms), ExpiryRule::ALWAYS);
    single
        .one(on(key, ExpireFields { expiry, rule, fields: range.map(field).collect() }))
        .expect("it is a hash");
}

/// How many fields a hash has, if a read may say so at this time by the clock.
fn length(
    (engine, volume): (&MemoryEngine, VolumeId),
    (replica, epoch): (ReplicaId, RangeEpoch),
    key: &str,
    clock_ms: u64,
) -> Option<i64> {
    let snapshot = engine.snapshot(volume).expect("the volume is there");
    let view = View::new(&*snapshot, replica).expect("it is sound");
    let told = view
        .query(epoch, &[on(key, Length)], clock_ms, usize::MAX)
        .expect("the key is in range")?;
    match told.into_iter().next() {
        Some(Ok(result)) => result.reply.integer(),
        other => panic!("it is a number: {other:?}"),
    }
}

fn here(single: &Single, key: &str, clock_ms: u64) -> Option<i64> {
    length((&single.engine, VOLUME), (REPLICA, EPOCH), key, clock_ms)
}

#[test]
fn a_read_of_what_is_over_by_the_clock_alone_waits_until_the_log_says_so() {
    for count in [5, 300] {
        let mut single = Single::new();
        fill(&mut single, "h", count);
        expire(&mut single, "h", 0..2, TTL_MS);
        expire(&mut single, "h", 2..3, 2 * TTL_MS);
        let due_ms = single.log.now_ms + TTL_MS;
        let all = count as i64;
        assert_eq!(here(&single, "h", due_ms - 1), Some(all));
        assert_eq!(here(&single, "h", due_ms), None);
        single.advance_time(TTL_MS);
        assert_eq!(here(&single, "h", due_ms), Some(all - 2), "by the version of an entry");
        assert_eq!(here(&single, "h", due_ms + TTL_MS), None, "the next one is due");
        let before = everything(&single.engine, VOLUME);
        assert_eq!(here(&single, "h", due_ms), Some(all - 2));
        assert_eq!(everything(&single.engine, VOLUME), before, "no replica frees by itself");
    }
}

#[test]
fn a_read_that_need_not_be_linearizable_sees_the_state_as_it_is_once_time_has_passed() {
    for count in [5, 300] {
        let mut single = Single::new();
        fill(&mut single, "h", count);
        expire(&mut single, "h", 0..2, TTL_MS);
        let due_ms = single.log.now_ms + TTL_MS;
        let by_clock = |single: &Single, clock_ms| {
            let snapshot = snapshot(&single.engine);
            let view = View::new(&*snapshot, REPLICA).unwrap();
            let (operations, before) = ([on("h", Length)], view.last_version());
            let told = view.query_by_clock(EPOCH, &operations, clock_ms, usize::MAX).unwrap();
            assert_eq!(view.last_version(), before);
            told.into_iter().next().unwrap().unwrap().reply.integer()
        };
        let all = count as i64;
        assert_eq!(by_clock(&single, due_ms - 1), Some(all));
        assert_eq!(by_clock(&single, due_ms), Some(all - 2), "nobody lets time pass for it");
        single.advance_time(TTL_MS);
        // A clock that is late brings nothing back.
        assert_eq!(by_clock(&single, due_ms - 1), Some(all - 2));
        assert_eq!(by_clock(&single, 0), Some(all - 2));
    }
}

#[test]
fn what_is_over_is_found_and_freed_through_the_log_and_the_next_deadline_is_told() {
    let mut single = Single::new();
    fill(&mut single, "h", 300);
    fill(&mut single, "k", 5);
    expire(&mut single, "h", 0..100, TTL_MS);
    expire(&mut single, "h", 100..101, 3 * TTL_MS);
    expire(&mut single, "k", 0..5, TTL_MS);
    let due_ms = single.log.now_ms + TTL_MS;
    let look = |single: &Single, now_ms| {
        let snapshot = snapshot(&single.engine);
        let view = View::new(&*snapshot, REPLICA).unwrap();
        let page = view.sweep(&Bytes::new(), now_ms, 100).unwrap();
        (page.expired, page.due, page.soonest_ms)
    };
    assert_eq!(look(&single, due_ms - 1), (vec![], vec![], Some(due_ms)));
    let (expired, due, soonest_ms) = look(&single, due_ms);
    assert_eq!((expired, due, soonest_ms), (vec!["k".into()], vec!["h".into()], None));
    single.log.now_ms = due_ms;
    let (entry, version) = single.log.push(&[EntryCommand::Reclaim(vec!["h".into(), "k".into()])]);
    let applied = single.apply(&[entry]);
    assert_eq!(applied.entries[0].commands, [kvdb_store::CommandOutcome::Reclaimed(101)]);
    // Who watches or has read the hash learns of it.
    assert!(applied.events.iter().all(|event| event.version == version));
    assert_eq!(applied.events.len(), 2);
    assert_eq!(here(&single, "h", due_ms), Some(200));
    assert_eq!(look(&single, due_ms), (vec![], vec![], Some(due_ms + 2 * TTL_MS)));
    assert_eq!(single.value("k"), None);
}

#[test]
fn deadlines_survive_a_restart_a_snapshot_and_a_split() {
    let mut single = Single::new();
    for (key, count) in [("c", 300), ("d", 5), ("x", 300), ("w", 5)] {
        fill(&mut single, key, count);
        expire(&mut single, key, 0..2, TTL_MS);
    }
    let due_ms = single.log.now_ms + TTL_MS;
    let replica = Replica { node_id: NodeId(1), replica_id: CHILD, role: Role::Voter };
    let plan = SplitPlan {
        at: "m".into(),
        child: ShardId(9),
        replicas: vec![replica],
        membership_epoch: MembershipEpoch(1),
    };
    let (entry, _) = single.log.push(&[EntryCommand::Split(plan)]);
    single.apply(&[entry]);
    // Both sides are opened anew, and the child goes to another node.
    single.shard = open(&single.engine, REPLICA, VOLUME);
    let mut chunks = vec![];
    let writer = SnapshotWriter::new(snapshot(&single.engine), CHILD).unwrap();
    writer
        .write(|chunk| {
            chunks.push(chunk);
            true
        })
        .unwrap();
    let other = MemoryEngine::new();
    other.ingest_volume(FRESH, &mut ChunkReader::new(chunks.into_iter(), CHILD)).unwrap();
    let digests = [(&single.engine, VOLUME), (&other, FRESH)]
        .map(|(engine, volume)| digest(&*engine.snapshot(volume).unwrap(), CHILD).unwrap());
    assert_eq!(digests[0], digests[1]);
    let shared: Arc<dyn Engine> = Arc::new(other.clone());
    let mut child =
        Shard::open(shared, CHILD, FRESH, &Bytes::new(), INITIAL_POSITION, kvdb_store::NoControl)
            .unwrap();
    let mut log = Log::new();
    log.now_ms = due_ms;
    let (entry, _) = log.push(&[EntryCommand::AdvanceTime]);
    child.apply(&[entry]).unwrap();
    single.advance_time(TTL_MS);
    let epoch = single.shard.descriptor().range_epoch;
    let parent = |key| length((&single.engine, VOLUME), (REPLICA, epoch), key, due_ms);
    assert_eq!([parent("c"), parent("d")], [Some(298), Some(3)]);
    let moved = |key| length((&other, FRESH), (CHILD, epoch), key, due_ms);
    assert_eq!([moved("x"), moved("w")], [Some(298), Some(3)]);
    let (entry, _) = log.push(&[EntryCommand::Reclaim(vec!["x".into(), "w".into()])]);
    let applied = child.apply(&[entry]).unwrap();
    assert_eq!(applied.entries[0].commands, [kvdb_store::CommandOutcome::Reclaimed(3)]);
    assert_eq!([moved("x"), moved("w")], [Some(298), Some(3)]);
}

#[test]
fn a_field_that_was_taken_is_told_again_to_a_retry() {
    let mut single = Single::new();
    fill(&mut single, "h", 5);
    let take = || kvdb_store::hash::Take { fields: vec![field(0), field(1)] };
    let (first, _) = single.write(tagged(1, write(vec![on("h", take())])));
    let (again, _) = single.write(tagged(1, write(vec![on("h", take())])));
    let value = Reply::Bytes("value".into());
    let both = Reply::List(vec![value.clone(), value]);
    assert_eq!([&first, &again].map(|told| told[0].clone().unwrap().reply), [both.clone(), both]);
    assert_eq!(here(&single, "h", 0), Some(3));
}
