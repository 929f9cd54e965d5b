//! What a shard keeps of its past.

use crate::model::{any_history, any_limits, log_of};
use crate::support::*;
use bytes::Bytes;
use kvdb_engine::MemoryEngine;
use kvdb_model::{
    EntryCommand, HistoryLimits, HistoryPolicy, KeyRange, MembershipEpoch, NodeId, RangeEpoch,
    Replica, ReplicaId, Role, ShardId, SplitPlan, Version,
};
use kvdb_store::{ChangeEvent, ReadError, View, WatchQuery};
use proptest::prelude::*;

const ENOUGH: HistoryLimits = HistoryLimits { max_age_ms: 3_600_000, max_bytes: 64 << 20 };

fn on(revision: u64, limits: HistoryLimits) -> EntryCommand {
    EntryCommand::History(HistoryPolicy { revision, limits: Some(limits) })
}

/// Everything that is told after a version, a page of about `max_bytes` each; and the gap.
fn told(
    engine: &MemoryEngine,
    replica: ReplicaId,
    epoch: RangeEpoch,
    after: Version,
    range: &KeyRange,
    max_bytes: usize,
) -> Option<(Vec<ChangeEvent>, Option<Version>)> {
    let snapshot = snapshot(engine);
    let view = View::new(&*snapshot, replica).expect("the replica is there");
    let (mut events, mut gap, mut at) = (vec![], None, after);
    loop {
        let page = view.history(&WatchQuery {
            epoch,
            after: at,
            range,
            user_prefix: b"",
            prefix_len: 0,
            max_bytes,
        });
        let page = page.expect("it can be read")?;
        gap = page.gap.or(gap);
        assert!(page.version >= at, "a page goes on");
        at = page.version;
        events.extend(page.events);
        if at >= view.last_version() {
            return Some((events, gap));
        }
    }
}

fn stored_bytes(engine: &MemoryEngine) -> u64 {
    let is_history = |key: &Bytes| key.len() > 10 && key[0] == b'r' && key[9] == 3;
    let all = everything(engine, VOLUME);
    all.iter().filter(|(key, _)| is_history(key)).map(|(_, value)| value.len() as u64).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_change_is_told_once_or_a_gap_is(
        limits in prop::option::of(any_limits()),
        history in any_history(),
        after in 0u64..900,
        page_bytes in 1usize..600,
        runs in prop::collection::vec(1usize..5, 1..5),
    ) {
        let mut single = Single::new();
        let decided = limits.unwrap_or(ENOUGH);
        let (first, _) = single.log.push(&[on(1_000_000, decided)]);
        single.apply(&[first]);
        // The steps' own decisions are older than the first, and change nothing.
        let (log, _) = log_of(&history);
        let mut all = vec![];
        let mut rest = &log.entries[..];
        for run in runs.into_iter().cycle() {
            if rest.is_empty() { break }
            let (now, later) = rest.split_at(run.min(rest.len()));
            rest = later;
            let now: Vec<_> = now.iter().map(|entry| {
                single.log.push_raw(entry.kind, entry.data.clone(), entry.context.clone())
            }).collect();
            all.extend(single.apply(&now).events);
        }
        let after = Version::from_millis(START_MS + after);
        let range = KeyRange::new("c", "e");
        let (heard, gap) = told(&single.engine, REPLICA, EPOCH, after, &range, page_bytes).unwrap();
        let from = gap.map_or(after, |gap| gap.max(after));
        let expected: Vec<_> = all
            .iter()
            .filter(|event| event.version > from && range.contains(&event.routing_key))
            .cloned()
            .collect();
        prop_assert_eq!(&heard, &expected);
        prop_assert!(limits.is_some() || gap.is_none(), "all of it is kept");
        let largest = log.entries.iter().map(|entry| entry.data.len() as u64).max().unwrap_or(0);
        let bound = decided.max_bytes + 2 * largest + 200;
        prop_assert!(stored_bytes(&single.engine) <= bound, "{} of {bound}", stored_bytes(&single.engine));
    }

    #[test]
    fn both_sides_of_a_split_together_tell_every_change_once(
        before in prop::collection::vec(("[b-x]", any::<bool>()), 0..30),
        after_split in prop::collection::vec("[b-x]", 0..10),
        with_split in any::<bool>(),
        from in 0usize..30,
    ) {
        let mut single = Single::new();
        let (first, _) = single.log.push(&[on(1, ENOUGH)]);
        single.apply(&[first]);
        let mut all = vec![];
        for (key, is_new_entry) in &before {
            single.log.now_ms += u64::from(*is_new_entry);
            let (entry, _) = single.log.push(&[EntryCommand::Write(write(vec![put(key, "old")]))]);
            all.extend(single.apply(&[entry]).events);
        }
        // The split comes in the same entry as a write, and in the same run.
        let mut commands = vec![];
        if with_split {
            commands.push(EntryCommand::Write(write(vec![put("c", "same entry"), put("p", "too")])));
        }
        let child = ReplicaId(77);
        commands.push(EntryCommand::Split(SplitPlan {
            at: "m".into(),
            child: ShardId(9),
            replicas: vec![Replica { node_id: NodeId(1), replica_id: child, role: Role::Voter }],
            membership_epoch: MembershipEpoch(1),
        }));
        let (entry, _) = single.log.push(&commands);
        let mut entries = vec![entry];
        let epoch = EPOCH.next();
        for key in &after_split {
            let new = kvdb_model::Write { epoch, ..write(vec![put(key, "new")]) };
            entries.push(single.log.push(&[EntryCommand::Write(new)]).0);
        }
        all.extend(single.apply(&entries).events);
        let from = all.get(from).map_or(Version::ZERO, |event| event.version);
        let mut heard = vec![];
        for (replica, range) in [(REPLICA, KeyRange::new("b", "m")), (child, KeyRange::new("m", "y"))] {
            let (events, gap) = told(&single.engine, replica, epoch, from, &range, 1 << 20).unwrap();
            prop_assert_eq!(gap, None);
            heard.extend(events);
        }
        heard.sort_by_key(|event| event.version);
        all.retain(|event| event.version > from);
        prop_assert_eq!(heard, all);
        let snapshot = snapshot(&single.engine);
        let stale = View::new(&*snapshot, REPLICA).unwrap().history(&WatchQuery {
            epoch: EPOCH,
            after: from,
            range: &KeyRange::ALL,
            user_prefix: b"",
            prefix_len: 0,
            max_bytes: 1,
        });
        prop_assert!(matches!(stale, Err(ReadError::Refused(_))));
    }
}

#[test]
fn a_shard_that_is_not_asked_keeps_nothing_and_one_that_was_begins_there() {
    let mut single = Single::new();
    single.one(put("c", "before")).unwrap();
    let all = KeyRange::ALL;
    assert_eq!(told(&single.engine, REPLICA, EPOCH, Version::ZERO, &all, 1), None);
    assert_eq!(stored_bytes(&single.engine), 0);
    let (entry, begun) = single.log.push(&[on(1, ENOUGH)]);
    single.apply(&[entry]);
    single.one(put("c", "after")).unwrap();
    let (events, gap) = told(&single.engine, REPLICA, EPOCH, Version::ZERO, &all, 1).unwrap();
    assert_eq!((events.len(), gap), (1, Some(begun)));

    // Off, a change that is missed, and on again: what was kept first is not told any more.
    let off = EntryCommand::History(HistoryPolicy { revision: 2, limits: None });
    let (entry, _) = single.log.push(std::slice::from_ref(&off));
    single.apply(&[entry]);
    assert_eq!(told(&single.engine, REPLICA, EPOCH, Version::ZERO, &all, 1), None);
    assert_eq!(stored_bytes(&single.engine), 0, "it is freed");
    single.one(put("c", "missed")).unwrap();
    let (entry, again) = single.log.push(&[on(3, ENOUGH), off]);
    single.apply(&[entry]);
    single.one(put("d", "later")).unwrap();
    let (events, gap) = told(&single.engine, REPLICA, EPOCH, begun, &all, 1).unwrap();
    assert_eq!((events.len(), gap), (1, Some(again)), "an older decision changes nothing");
}

#[test]
fn a_batch_larger_than_a_record_is_told_as_a_whole() {
    let mut single = Single::new();
    let (entry, _) = single.log.push(&[on(1, ENOUGH)]);
    single.apply(&[entry]);
    let value = "v".repeat(100_000);
    let keys: Vec<String> = (0..12).map(|number| format!("k{number:02}")).collect();
    let puts = keys.iter().map(|key| put(key, &value)).collect();
    let (_, version) = single.write(atomic(puts));
    let events = |after, max_bytes| {
        told(&single.engine, REPLICA, EPOCH, after, &KeyRange::ALL, max_bytes).unwrap().0
    };
    let heard = events(Version::ZERO, 1);
    let heard: Vec<_> = heard.iter().map(|event| (&event.routing_key[..], event.version)).collect();
    let expected: Vec<_> = keys.iter().map(|key| (key.as_bytes(), version)).collect();
    assert_eq!(heard, expected);
    assert!(events(version, 1).is_empty());
}

#[test]
fn what_is_older_than_the_bound_goes_with_later_entries() {
    let mut single = Single::new();
    let limits = HistoryLimits { max_age_ms: 1000, max_bytes: 64 << 20 };
    let (entry, _) = single.log.push(&[on(1, limits)]);
    single.apply(&[entry]);
    for number in 0..100 {
        single.log.now_ms += 50;
        single.one(put("c", &number.to_string())).unwrap();
    }
    let all = KeyRange::ALL;
    let (events, gap) = told(&single.engine, REPLICA, EPOCH, Version::ZERO, &all, 1).unwrap();
    assert!((20..=22).contains(&events.len()), "{}", events.len());
    assert!(gap.is_some());
    single.advance_time(5000);
    for _ in 0..30 {
        single.advance_time(1);
    }
    assert_eq!(stored_bytes(&single.engine), 0);
}
