//! What happens to single operations, batches and entries.

use crate::support::*;
use bytes::Bytes;
use kvdb_model::Reply;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    Condition, EntryCommand, EntryKind, MembershipEpoch, NodeId, Previous, RangeEpoch, Refusal,
    Replica, ReplicaId, Role, Version, Write, WriteResult,
};
use kvdb_store::{
    ApplyError, CommandOutcome, ControlOutcome, Machine, MembershipChange, OpenError, Shard,
};
use std::collections::BTreeMap;
use std::sync::Arc;

#[test]
fn a_put_is_read_back_and_a_delete_removes_it() {
    let mut single = Single::new();
    let (outcomes, version) = single.write(write(vec![put("key", "value")]));
    let applied = WriteResult { applied: true, version, ..WriteResult::default() };
    assert_eq!(outcomes, [Ok(applied)]);
    assert_eq!(single.value("key"), Some("value".into()));
    assert!(single.one(delete("key")).unwrap().applied);
    assert_eq!(single.value("key"), None);
    let again = single.one(delete("key")).unwrap();
    assert_eq!(again, WriteResult::default(), "there was nothing to delete");
}

#[test]
fn a_failed_condition_tells_what_is_there() {
    let mut single = Single::new();
    let version = single.one(put("key", "old")).unwrap().version;
    let failed = single.one(put("key", "new").when(Condition::IfAbsent).previous()).unwrap();
    let previous = Previous { value: "old".into(), version, expires_at_ms: 0 };
    assert_eq!(failed, WriteResult { version, previous: Some(previous), ..WriteResult::default() });
    let absent = single.one(put("other", "new").when(Condition::IfPresent)).unwrap();
    assert_eq!(absent, WriteResult::default());
}

#[test]
fn conditions_hold_exactly_when_they_should() {
    let there = |version| {
        [
            (Condition::IfAbsent, false),
            (Condition::IfPresent, true),
            (Condition::IfVersion(version), true),
            (Condition::IfVersion(version.plus(1)), false),
            (Condition::IfVersion(Version::ZERO), false),
            (Condition::IfValue("value".into()), true),
            (Condition::IfValue("valu".into()), false),
            (Condition::IfValue("".into()), false),
        ]
    };
    let mut single = Single::new();
    for place in 0..8 {
        let version = single.one(put("key", "value")).unwrap().version;
        let (condition, holds) = there(version)[place].clone();
        let outcome = single.one(delete("key").when(condition.clone())).unwrap();
        assert_eq!(outcome.applied, holds, "{condition:?}");
        single.one(delete("key")).unwrap();
        let outcome = single.one(put("key", "new").when(condition.clone())).unwrap();
        assert_eq!(outcome.applied, condition == Condition::IfAbsent, "{condition:?} when absent");
    }
}

#[test]
fn counters_are_decimal_text_and_keep_their_expiry() {
    let mut single = Single::new();
    assert_eq!(single.one(increment("n", 5)).unwrap().reply, Reply::Integer(5));
    assert_eq!(single.one(increment("n", -7)).unwrap().reply, Reply::Integer(-2));
    assert_eq!(single.value("n"), Some("-2".into()));
    single.one(put_for("n", "41", 100)).unwrap();
    let counted = single.one(increment("n", 1).previous()).unwrap();
    assert_eq!(counted.reply, Reply::Integer(42));
    assert_eq!(counted.previous.map(|previous| previous.value), Some("41".into()));
    single.advance_time(100);
    assert_eq!(single.value("n"), None);
    assert_eq!(single.one(increment("n", 1)).unwrap().reply, Reply::Integer(1));
}

#[test]
fn what_is_no_counter_or_overflows_stays_as_it_is() {
    let mut single = Single::new();
    for value in ["text", "", " 1", "1.5", "9223372036854775808"] {
        single.one(put("n", value)).unwrap();
        assert!(matches!(single.one(increment("n", 1)), Err(Refusal::WrongValue(_))), "{value:?}");
        assert_eq!(single.value("n"), Some(Bytes::copy_from_slice(value.as_bytes())));
    }
    for (value, delta) in [(i64::MAX, 1), (i64::MIN, -1), (2, i64::MAX), (-2, i64::MIN)] {
        single.one(put("n", &value.to_string())).unwrap();
        assert!(matches!(single.one(increment("n", delta)), Err(Refusal::WrongValue(_))));
        assert_eq!(single.value("n"), Some(value.to_string().into()));
    }
}

#[test]
fn a_key_expires_by_shard_time_alone() {
    let mut single = Single::new();
    let version = single.one(put_for("key", "value", 100)).unwrap().version;
    let expires_at_ms = version.millis() + 100;
    let read = |single: &Single, wall_ms| {
        let snapshot = snapshot(&single.engine);
        kvdb_store::get(&*snapshot, REPLICA, EPOCH, b"key", wall_ms).unwrap()
    };
    assert_eq!(read(&single, expires_at_ms - 1).record.unwrap().expires_at_ms, expires_at_ms);
    assert!(!read(&single, expires_at_ms - 1).expires_by_clock);
    // However late the local clock says that it is.
    assert!(read(&single, expires_at_ms).record.is_some());
    assert!(read(&single, expires_at_ms).expires_by_clock);
    single.advance_time(99);
    assert!(read(&single, 0).record.is_some());
    single.advance_time(1);
    assert_eq!(read(&single, 0).record, None);
    assert!(!read(&single, u64::MAX).expires_by_clock);
    assert!(single.one(put("key", "new").when(Condition::IfAbsent)).unwrap().applied);
}

#[test]
fn a_version_in_the_middle_of_an_entry_is_shard_time_for_what_comes_after_it() {
    let mut single = Single::new();
    single.one(put_for("key", "value", 100)).unwrap();
    single.log.now_ms += 100;
    let guarded = put("key", "new").when(Condition::IfAbsent);
    assert!(single.one(guarded).unwrap().applied);
}

#[test]
fn a_time_to_live_beyond_all_time_is_for_ever() {
    let mut single = Single::new();
    single.one(put_for("key", "value", u64::MAX)).unwrap();
    single.advance_time(1 << 40);
    assert_eq!(single.value("key"), Some("value".into()));
    single.one(put_for("key", "value", 0)).unwrap();
    assert_eq!(single.value("key"), None);
}

#[test]
fn what_was_routed_by_another_epoch_or_belongs_elsewhere_is_refused_alone() {
    let mut single = Single::new();
    let (outcomes, _) =
        single.write(write(vec![put("a", "1"), put("b", "2"), put("y", "3"), put("x", "4")]));
    let codes: Vec<_> = outcomes
        .iter()
        .map(|outcome| outcome.as_ref().map_err(Refusal::code).map(|_| ()))
        .collect();
    assert_eq!(codes, [Err("SHARD_MOVED"), Ok(()), Err("SHARD_MOVED"), Ok(())]);
    for epoch in [EPOCH.0 - 1, EPOCH.0 + 1] {
        let stale = Write { epoch: RangeEpoch(epoch), ..write(vec![put("b", "5")]) };
        let expected = Refusal::StaleEpoch {
            shard_id: descriptor().shard_id,
            current: EPOCH,
            descriptors: vec![descriptor()],
        };
        assert_eq!(single.write(stale).0, [Err(expected)]);
    }
    assert_eq!(single.value("b"), Some("2".into()));
}

#[test]
fn operations_of_a_write_have_versions_of_their_own_and_see_each_other() {
    let mut single = Single::new();
    let (outcomes, version) =
        single.write(write(vec![put("k", "1"), increment("k", 1), increment("k", 1).previous()]));
    let versions: Vec<_> = outcomes.iter().map(|o| o.as_ref().unwrap().version).collect();
    assert_eq!(versions, [version, version.plus(1), version.plus(2)]);
    assert_eq!(single.value("k"), Some("3".into()));
    assert_eq!(outcomes[2].as_ref().unwrap().previous.as_ref().unwrap().value, "2");
}

#[test]
fn an_atomic_batch_shares_one_version_and_sees_itself() {
    let mut single = Single::new();
    let operations = vec![
        put("k", "1").when(Condition::IfAbsent),
        increment("k", 1).when(Condition::IfPresent),
        delete("nothing"),
    ];
    let (outcomes, version) = single.write(atomic(operations));
    assert_eq!(outcomes[0].as_ref().unwrap().version, version);
    assert_eq!(outcomes[1].as_ref().unwrap().version, version);
    assert_eq!(single.value("k"), Some("2".into()));
}

#[test]
fn an_atomic_batch_that_fails_leaves_everything_as_it_was() {
    let mut single = Single::new();
    let version = single.one(put("k", "old")).unwrap().version;
    single.one(put("j", "text")).unwrap();
    let failing = [
        put("m", "x").when(Condition::IfPresent),
        delete("m").when(Condition::IfPresent),
        increment("j", 1),
        put("z", "out of range"),
    ];
    for last in failing {
        let batch =
            vec![put("k", "new"), put("k", "newer"), delete("k").previous(), put("l", "1"), last];
        let (outcomes, _) = single.write(atomic(batch));
        assert!(outcomes.iter().flatten().all(|result| !result.applied));
        if let Ok(result) = &outcomes[2] {
            let previous = Previous { value: "old".into(), version, expires_at_ms: 0 };
            assert_eq!((result.version, &result.previous), (version, &Some(previous)));
        }
        assert_eq!(single.value("k"), Some("old".into()));
        assert_eq!(single.value("l"), None);
    }
}

#[test]
fn a_failed_batch_does_not_undo_what_came_before_it_in_the_run() {
    let mut single = Single::new();
    let entries = [
        single.log.push(&[EntryCommand::Write(write(vec![put("k", "1"), put("l", "1")]))]).0,
        single
            .log
            .push(&[EntryCommand::Write(atomic(vec![
                put("k", "2"),
                delete("l"),
                put("m", "2").when(Condition::IfPresent),
            ]))])
            .0,
    ];
    single.apply(&entries);
    assert_eq!(single.value("k"), Some("1".into()));
    assert_eq!(single.value("l"), Some("1".into()));
    assert_eq!(single.value("m"), None);
}

#[test]
fn a_retry_is_answered_and_not_carried_out_again() {
    let mut single = Single::new();
    let request = tagged(1, write(vec![increment("n", 1).previous(), put("k", "v").item(1)]));
    let (first, _) = single.write(request.clone());
    let (again, _) = single.write(request.clone());
    for (first, again) in first.iter().zip(&again) {
        let expected = WriteResult { deduplicated: true, ..first.clone().unwrap() };
        assert_eq!(again, &Ok(expected));
    }
    assert_eq!(single.value("n"), Some("1".into()));
    // Regrouped: one operation that is known, one that is new.
    let regrouped = tagged(1, write(vec![put("k", "v").item(1), increment("n", 1).item(2)]));
    let (outcomes, _) = single.write(regrouped);
    assert!(outcomes[0].as_ref().unwrap().deduplicated);
    assert_eq!(outcomes[1].as_ref().unwrap().reply, Reply::Integer(2));
}

#[test]
fn a_failure_by_what_was_there_is_an_answer_too() {
    let mut single = Single::new();
    single.one(put("n", "text")).unwrap();
    let counted = tagged(1, write(vec![increment("n", 1)]));
    let guarded = tagged(2, write(vec![put("m", "x").when(Condition::IfPresent)]));
    let together = tagged(3, atomic(vec![put("k", "v"), increment("n", 1).item(1)]));
    let first: Vec<_> =
        [&counted, &guarded, &together].map(|request| single.write(request.clone()).0).to_vec();
    assert!(matches!(first[0][0], Err(Refusal::WrongValue(_))));
    // Now each of them could succeed; but its client may have been told that it didn't.
    single.one(put("n", "1")).unwrap();
    single.one(put("m", "1")).unwrap();
    assert_eq!(single.write(counted).0, first[0]);
    assert!(!single.write(guarded).0[0].as_ref().unwrap().applied);
    assert_eq!(single.write(together).0[1], first[2][1]);
    assert_eq!(single.value("k"), None);
    assert_eq!(single.value("n"), Some("1".into()));
    assert_eq!(single.value("m"), Some("1".into()));
}

#[test]
fn a_refusal_because_of_the_epoch_is_no_answer() {
    let mut single = Single::new();
    let request = tagged(1, write(vec![put("k", "v")]));
    let stale = Write { epoch: RangeEpoch(1), ..request.clone() };
    assert_eq!(single.write(stale.clone()).0[0].as_ref().unwrap_err().code(), "STALE_EPOCH");
    let (outcomes, _) = single.write(request);
    assert!(!outcomes[0].as_ref().unwrap().deduplicated);
    // Once it is answered the epoch of a retry doesn't matter.
    assert!(single.write(stale).0[0].as_ref().unwrap().deduplicated);
}

#[test]
fn an_atomic_batch_under_a_used_id_is_refused_as_a_whole() {
    let mut single = Single::new();
    single.write(tagged(1, atomic(vec![put("k", "1"), put("l", "1").item(1)])));
    for batch in [
        vec![put("k", "1"), put("l", "2").item(1)],
        vec![put("k", "1"), put("l", "1").item(1), put("m", "1").item(2)],
    ] {
        let (outcomes, _) = single.write(tagged(1, atomic(batch)));
        let reused = |o: &Result<_, Refusal>| matches!(o, Err(Refusal::RequestIdReused { .. }));
        assert!(outcomes.iter().all(reused), "{outcomes:?}");
    }
    assert_eq!(single.value("m"), None);
}

#[test]
fn a_pop_that_is_tried_again_answers_with_the_members_that_it_took() {
    let mut single = Single::new();
    let members = (0..400).map(|n| format!("{n:0>100}").into()).collect();
    single.one(on("s", kvdb_store::set::Add { members })).unwrap();
    let pop = |seed| on("s", kvdb_store::set::Pop { count: Some(300), seed });
    let (first, _) = single.write(tagged(1, write(vec![pop(1)])));
    let first = first[0].clone().unwrap();
    assert!(matches!(&first.reply, Reply::List(taken) if taken.len() == 300));
    let (again, _) = single.write(tagged(1, write(vec![pop(1)])));
    assert_eq!(again[0].clone().unwrap(), WriteResult { deduplicated: true, ..first });
    let left = single.one(on("s", kvdb_store::set::Length)).unwrap().reply;
    assert_eq!(left, Reply::Integer(100));
}

#[test]
fn long_previous_values_are_left_out_of_repeated_answers_unless_they_were_taken_away() {
    let mut single = Single::new();
    let changes =
        [(1024, put("k", "w"), true), (1025, put("k", "w"), false), (2000, delete("k"), true)];
    for (length, change, is_kept) in changes {
        single.one(put("k", &"v".repeat(length))).unwrap();
        let request = tagged(length as u64, write(vec![change.previous()]));
        let (first, _) = single.write(request.clone());
        assert_eq!(first[0].as_ref().unwrap().previous.as_ref().unwrap().value.len(), length);
        let (again, _) = single.write(request);
        let again = again[0].as_ref().unwrap();
        assert_eq!((again.previous.is_some(), again.left_out), (is_kept, !is_kept));
    }
}

#[test]
fn a_client_that_never_acknowledges_is_refused_but_its_retries_are_answered() {
    let mut single = Single::new();
    single.one(put("k", &"v".repeat(1024))).unwrap();
    let guarded = put("k", "").when(Condition::IfAbsent).previous();
    let mut sequence = 0;
    // An answer of a good kilobyte each, into 8 MiB.
    while sequence < 8192
        && single.write(tagged(sequence, write(vec![guarded.clone()]))).0[0].is_ok()
    {
        sequence += 1;
    }
    assert!((6000..8192).contains(&sequence), "{sequence} requests fit");
    for batch in [write(vec![put("l", "1")]), atomic(vec![put("l", "1"), put("m", "1").item(1)])] {
        let (outcomes, _) = single.write(tagged(sequence, batch));
        let is_full = |o: &Result<_, Refusal>| matches!(o, Err(Refusal::Overloaded { .. }));
        assert!(outcomes.iter().all(is_full), "{outcomes:?}");
    }
    assert_eq!(single.value("l"), None);
    let (retried, _) = single.write(tagged(0, write(vec![guarded])));
    assert!(retried[0].as_ref().unwrap().deduplicated);
    assert!(single.one(put("l", "untagged")).unwrap().applied);
}

#[test]
fn shard_time_is_the_highest_version_applied() {
    let mut single = Single::new();
    let (_, version) = single.write(write(vec![put("k", "1"), put("l", "1"), put("m", "1")]));
    assert_eq!(single.shard.last_version(), version.plus(2));
    assert_eq!(open(&single.engine, REPLICA, VOLUME).last_version(), version.plus(2));
    let empty = single.log.push_empty();
    single.apply(&[empty]);
    assert_eq!(single.shard.last_version(), version.plus(2));
}

#[test]
fn applied_entries_are_skipped_and_empty_ones_count() {
    let mut single = Single::new();
    let first = single.log.push_empty();
    let (second, _) = single.log.push(&[EntryCommand::Write(write(vec![increment("n", 1)]))]);
    let applied = single.apply(&[first.clone(), second.clone()]);
    assert_eq!(applied.entries.len(), 2);
    assert_eq!(applied.position.index, second.index);
    let again = single.apply(&[first, second.clone()]);
    assert!(again.entries.is_empty());
    assert_eq!((again.position.index, again.sequence), (second.index, None));
    let (third, _) = single.log.push(&[EntryCommand::Write(write(vec![increment("n", 1)]))]);
    assert_eq!(single.apply(&[second, third]).entries.len(), 1);
    assert_eq!(single.value("n"), Some("2".into()));
}

#[test]
#[should_panic(expected = "entries are missing before 7")]
fn a_gap_before_the_first_entry_stops_the_replica() {
    let mut single = Single::new();
    single.log.push_empty();
    let second = single.log.push_empty();
    let _ = single.shard.apply(&[second]);
}

#[test]
fn an_entry_that_can_not_be_read_is_named() {
    let mut single = Single::new();
    let good = single.log.push_empty();
    let bad = single.log.push_raw(EntryKind::Normal, "junk".into(), Bytes::new());
    let error = single.shard.apply(&[good, bad.clone()]).unwrap_err();
    assert!(matches!(error, ApplyError::Unreadable { index, .. } if index == bad.index));
    assert!(error.to_string().starts_with("entry 7 can't be read"), "{error}");
}

#[test]
fn a_membership_step_changes_the_descriptor_once() {
    let mut single = Single::new();
    let replica =
        |node, id| Replica { node_id: NodeId(node), replica_id: ReplicaId(id), role: Role::Voter };
    let replicas = vec![replica(1, 10), replica(2, 11)];
    let change = MembershipChange { expected: MembershipEpoch(1), replicas: replicas.clone() };
    let entries = [single.log.push_membership(&change), single.log.push_membership(&change)];
    let applied = single.apply(&entries);
    let after = applied.entries[0].membership.clone().unwrap().unwrap();
    assert_eq!((after.membership_epoch, &after.replicas), (MembershipEpoch(2), &replicas));
    assert_eq!(after.range_epoch, EPOCH);
    assert_eq!(applied.entries[1].membership, Some(None), "refused the second time");
    assert_eq!(single.shard.descriptor(), &after);
    assert_eq!(open(&single.engine, REPLICA, VOLUME).descriptor(), &after);
    // A membership change fails nobody.
    assert!(single.one(put("k", "v")).unwrap().applied);
}

#[test]
fn damage_is_found_before_anything_depends_on_it() {
    let mut single = Single::new();
    single.one(put("key", "value")).unwrap();
    damage(&single.engine, b"key");
    let (entry, _) = single.log.push(&[EntryCommand::Write(write(vec![increment("key", 1)]))]);
    let error = single.shard.apply(&[entry]).unwrap_err();
    assert!(matches!(error, ApplyError::Damage(_)), "{error}");
    assert!(error.to_string().contains("key key"), "{error}");
}

#[test]
fn a_damaged_replica_record_is_found_when_it_is_opened() {
    for suffix in [&[10, 0][..], &[0, 1]] {
        let mut single = Single::new();
        single.write(tagged(1, write(vec![put("key", "value")])));
        damage(&single.engine, suffix);
        let engine = Arc::new(single.engine.clone());
        let birth = descriptor().to_bytes();
        let opened =
            Shard::open(engine, REPLICA, VOLUME, &birth, INITIAL_POSITION, kvdb_store::NoControl);
        assert!(matches!(opened.err(), Some(OpenError::Damage(_))));
    }
}

/// Counts words; a word alone sets, with a dash it removes.
#[derive(Default)]
struct Words(BTreeMap<Bytes, Bytes>);

impl Machine for Words {
    fn load(&mut self, key: &Bytes, value: &Bytes) -> Result<(), String> {
        self.0.insert(key.clone(), value.clone());
        Ok(())
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn apply(&mut self, command: &Bytes, version: Version) -> ControlOutcome {
        let change = match command.strip_prefix(b"-") {
            Some(word) => {
                let word = Bytes::copy_from_slice(word);
                self.0.remove(&word);
                (word, None)
            }
            None => {
                let value = Bytes::from(version.millis().to_string());
                self.0.insert(command.clone(), value.clone());
                (command.clone(), Some(value))
            }
        };
        ControlOutcome { result: Bytes::from(self.0.len().to_string()), changes: vec![change] }
    }
}

#[test]
fn a_control_machine_comes_back_with_its_records() {
    let engine = engine();
    let birth = descriptor().to_bytes();
    let open = |machine| {
        let engine = Arc::new(engine.clone());
        Shard::open(engine, REPLICA, VOLUME, &birth, INITIAL_POSITION, machine).unwrap()
    };
    let mut shard = open(Words::default());
    let mut log = Log::new();
    let commands = ["one", "two", "-one", ""].map(|word| EntryCommand::Control(word.into()));
    let (entry, _) = log.push(&commands);
    let applied = shard.apply(&[entry]).unwrap();
    let results = ["1", "2", "1", "2"].map(|text| CommandOutcome::Controlled(text.into()));
    assert_eq!(applied.entries[0].commands, results);
    let before = shard.machine().0.clone();
    let stale = Words([("stale".into(), "".into())].into());
    assert_eq!(open(stale).into_machine().0, before);

    damage(&engine, b"two");
    let engine = Arc::new(engine.clone());
    let opened = Shard::open(engine, REPLICA, VOLUME, &birth, INITIAL_POSITION, Words::default());
    assert!(matches!(opened.err(), Some(OpenError::Damage(_))));
}

#[test]
fn an_unreadable_birth_matters_only_where_it_is_needed() {
    let engine = engine();
    let junk = Bytes::from_static(b"junk");
    let open = |birth: &Bytes| {
        let engine = Arc::new(engine.clone());
        Shard::open(engine, REPLICA, VOLUME, birth, INITIAL_POSITION, kvdb_store::NoControl)
    };
    assert!(matches!(open(&junk).err(), Some(OpenError::Record(_))));
    assert!(open(&descriptor().to_bytes()).is_ok());
    assert!(open(&junk).is_ok());
}

#[test]
fn an_expiry_is_changed_and_taken_back_without_the_value() {
    let mut single = Single::new();
    assert!(!single.one(expire("k", Some(5))).unwrap().applied, "it isn't there");
    single.one(put_for("k", "v", 100)).unwrap();
    let later = single.one(expire("k", Some(1000)).previous()).unwrap();
    assert!(later.applied);
    let previous = later.previous.unwrap();
    assert_eq!((&previous.value[..], previous.expires_at_ms > 0), (&b"v"[..], true));
    single.advance_time(500);
    assert_eq!(single.value("k"), Some("v".into()));
    assert!(single.one(expire("k", None)).unwrap().applied);
    single.advance_time(1_000_000);
    assert_eq!(single.value("k"), Some("v".into()), "it never expires now");
    single.one(expire("k", Some(1))).unwrap();
    single.advance_time(5);
    assert_eq!(single.value("k"), None);
    assert!(!single.one(expire("k", None)).unwrap().applied, "what is gone stays gone");
}

#[test]
fn a_sweep_finds_what_has_expired_and_its_reclaim_frees_just_that() {
    let mut single = Single::new();
    for (key, ttl_ms) in [("b", 10), ("c", 10), ("d", 900), ("e", 10)] {
        single.one(put_for(key, "v", ttl_ms)).unwrap();
    }
    single.one(put("f", "v")).unwrap();
    let now_ms = START_MS + 100;
    let (mut expired, mut from, mut soonest) = (vec![], Bytes::new(), None);
    loop {
        let snapshot = snapshot(&single.engine);
        let view = kvdb_store::View::new(&*snapshot, REPLICA).unwrap();
        let page = view.sweep(&from, now_ms, 2).unwrap();
        expired.extend(page.expired);
        soonest = page.soonest_ms.or(soonest);
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(expired, ["b", "c", "e"].map(Bytes::from));
    assert_eq!(soonest, Some(START_MS + 900));

    // Meanwhile one of them is written again.
    single.log.now_ms = now_ms;
    single.one(put("c", "new")).unwrap();
    let (entry, _) = single.log.push(&[EntryCommand::Reclaim(expired)]);
    let applied = single.apply(&[entry]);
    assert_eq!(applied.entries[0].commands, [CommandOutcome::Reclaimed(2)]);
    let gone: Vec<_> = applied.events.iter().map(|event| &event.routing_key[..]).collect();
    assert_eq!(gone, [b"b", b"e"]);
    assert_eq!(single.value("c"), Some("new".into()));
    let left = everything(&single.engine, VOLUME);
    assert_eq!(left.iter().filter(|(key, _)| key.first() == Some(&b'd')).count(), 3);
}
