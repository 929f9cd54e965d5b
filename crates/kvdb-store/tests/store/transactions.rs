//! Atomic writes of string actions: as a Redis transaction, one that can't be carried out doesn't
//! undo the others, and a check that fails calls everything off.

use crate::support::{Single, With, atomic, lenient, on, put, tagged, write};
use bytes::Bytes;
use kvdb_model::{Condition, Operation, OperationOutcome, Refusal, Version, Write, wrong_value};
use kvdb_store::End;
use kvdb_store::keys::{Check, Copy, Delete, Expiry, Look, Rename};
use kvdb_store::list::{Length, Pop, Push, Range};
use kvdb_store::string::{Append, Increment, Set};

fn append(key: &str, value: &'static str) -> Operation {
    lenient(key, Append { value: value.into() })
}

#[test]
fn a_wrong_value_does_not_undo_the_rest_of_a_transaction() {
    let mut single = Single::new();
    single.one(put("text", "abc")).unwrap();
    let (outcomes, _) = single.write(atomic(vec![
        append("n", "1"),
        lenient("text", Increment { delta: 1 }),
        append("n", "2"),
        lenient("n", Look).previous(),
    ]));
    assert!(matches!(outcomes[1], Err(Refusal::WrongValue(_))));
    let seen = outcomes[3].clone().unwrap().previous.unwrap();
    assert_eq!(seen.value, "12", "later operations see earlier ones");
    assert_eq!(single.value("n"), Some(Bytes::from("12")));
}

#[test]
fn a_check_that_fails_calls_the_whole_transaction_off() {
    let mut single = Single::new();
    let version = single.one(put("watched", "1")).unwrap().version;
    let transaction = |version| {
        let check = on("watched", Check).when(Condition::IfVersion(version));
        atomic(vec![check, append("n", "x")])
    };
    let (outcomes, _) = single.write(transaction(Version(version.0 + 1)));
    assert!(!outcomes[0].clone().unwrap().applied);
    assert_eq!(single.value("n"), None);
    let (outcomes, _) = single.write(transaction(version));
    assert!(outcomes[0].clone().unwrap().applied);
    assert_eq!(single.value("n"), Some(Bytes::from("x")));
}

#[test]
fn a_rename_that_is_called_off_leaves_both_keys() {
    let mut single = Single::new();
    single.one(put("from", "1")).unwrap();
    let rename = lenient("from", Rename { only_absent: false }).and("to");
    let check = on("from", Check).when(Condition::IfAbsent);
    single.write(atomic(vec![rename.clone(), check.item(1)]));
    assert_eq!(single.value("from"), None, "the check comes after the rename, and sees it");
    single.one(put("from", "2")).unwrap();
    let check = on("other", Check).when(Condition::IfPresent);
    single.write(atomic(vec![rename, check.item(1)]));
    assert_eq!(single.value("from"), Some(Bytes::from("2")));
    assert_eq!(single.value("to"), Some(Bytes::from("1")));
}

#[test]
fn a_retry_is_answered_and_not_carried_out_again() {
    let mut single = Single::new();
    let write = tagged(1, atomic(vec![append("n", "x"), append("n", "y").item(1)]));
    let (first, _) = single.write(write.clone());
    let (again, _) = single.write(write);
    assert_eq!(again[1].clone().unwrap().reply, first[1].clone().unwrap().reply);
    assert!(again[1].clone().unwrap().deduplicated);
    assert_eq!(single.value("n"), Some(Bytes::from("xy")));
}

#[test]
fn a_rename_to_a_key_of_another_shard_is_refused_and_nothing_moves() {
    let mut single = Single::new();
    single.one(put("from", "1")).unwrap();
    let rename = lenient("from", Rename { only_absent: false }).and("a");
    let refused = single.one(rename);
    assert!(matches!(refused, Err(Refusal::ShardMoved { .. })), "{refused:?}");
    assert_eq!(single.value("from"), Some(Bytes::from("1")));
}

/// A list of elements so large that four fit in the answers of a write.
fn queue(single: &mut Single, key: &str) {
    let values: Vec<Bytes> = (0..5u8).map(|number| Bytes::from(vec![number; 2_000_000])).collect();
    single.one(on(key, Push { end: End::Last, only_present: false, values })).expect("carried out");
}

fn pop(key: &str, item: u32) -> Operation {
    lenient(key, Pop { end: End::First, count: 1 }).item(item)
}

fn length(single: &mut Single, key: &str) -> Option<i64> {
    single.one(on(key, Length)).expect("carried out").reply.integer()
}

#[test]
fn what_would_be_taken_beyond_an_answer_stays_and_so_does_all_that_comes_after_it() {
    let mut single = Single::new();
    queue(&mut single, "q");
    let mut operations: Vec<Operation> = (0..5).map(|item| pop("q", item)).collect();
    operations.push(put("next", "x").item(5));
    let write = tagged(1, write(operations.clone()));
    let (outcomes, _) = single.write(write.clone());
    assert!(outcomes[..4].iter().all(|outcome| outcome.as_ref().unwrap().applied));
    let too_large = |outcome: &OperationOutcome| {
        matches!(outcome, Err(Refusal::ResponseTooLarge { limit_bytes: 9_437_184 }))
    };
    assert!(outcomes[4..].iter().all(too_large));
    assert_eq!((length(&mut single, "q"), single.value("next")), (Some(1), None));
    // The same message again: answered as far, nothing is taken twice.
    let (again, _) = single.write(write.clone());
    for (first, again) in outcomes[..4].iter().zip(&again) {
        assert_eq!(first.as_ref().unwrap().reply, again.as_ref().unwrap().reply);
    }
    assert!(again[4..].iter().all(too_large));
    // The rest of it under the same id.
    let rest = Write { operations: operations[4..].to_vec(), ..write };
    let (rest, _) = single.write(rest);
    assert!(rest.iter().all(|outcome| outcome.as_ref().unwrap().applied));
    assert_eq!((length(&mut single, "q"), single.value("next")), (Some(0), Some("x".into())));
}

#[test]
fn a_transaction_that_would_take_more_than_it_can_tell_does_nothing_and_one_that_reads_leaves_out()
{
    let mut single = Single::new();
    queue(&mut single, "q");
    let taking: Vec<Operation> = (0..5).map(|item| pop("q", item)).collect();
    let (outcomes, _) = single.write(atomic(taking));
    let refused =
        |outcome: &OperationOutcome| matches!(outcome, Err(Refusal::ResponseTooLarge { .. }));
    assert!(outcomes.iter().all(refused), "{outcomes:?}");
    assert_eq!(length(&mut single, "q"), Some(5));
    let read = |item| lenient("q", Range { start: 0, stop: 2 }).item(item);
    let (outcomes, _) = single.write(atomic(vec![read(0), read(1), put("next", "x").item(2)]));
    let left_out: Vec<bool> =
        outcomes.iter().map(|outcome| outcome.as_ref().unwrap().left_out).collect();
    assert_eq!(left_out, [false, true, false]);
    assert_eq!(single.value("next"), Some("x".into()));
}

/// Adds elements of 8 MiB to a list, one write each.
fn fill(single: &mut Single, key: &str, count: usize) {
    for _ in 0..count {
        let values = vec![Bytes::from(vec![7; 8 << 20])];
        single.one(on(key, Push { end: End::Last, only_present: false, values })).expect("added");
    }
}

#[test]
fn a_copy_of_more_than_a_command_may_read_is_refused_and_two_of_less_go_one_after_the_other() {
    let mut single = Single::new();
    fill(&mut single, "q", 9);
    let copy =
        |key: &'static str, item| lenient("q", Copy { only_absent: false }).and(key).item(item);
    let both = tagged(1, write(vec![copy("one", 0), copy("two", 1)]));
    let (outcomes, _) = single.write(both.clone());
    assert!(outcomes[0].as_ref().unwrap().applied);
    assert!(matches!(outcomes[1], Err(Refusal::ResponseTooLarge { .. })), "{:?}", outcomes[1]);
    assert_eq!((length(&mut single, "one"), length(&mut single, "two")), (Some(9), Some(0)));
    let (rest, _) = single.write(Write { operations: both.operations[1..].to_vec(), ..both });
    assert!(rest[0].as_ref().unwrap().applied);
    // In a transaction the second is refused for good, and so is one that is too large by itself.
    let too_much = |outcome: &OperationOutcome| {
        matches!(outcome, Err(Refusal::WrongValue(wrong_value::TOO_MUCH_READ)))
    };
    let (outcomes, _) = single.write(atomic(vec![copy("three", 0), copy("four", 1)]));
    assert!(outcomes[0].as_ref().unwrap().applied && too_much(&outcomes[1]));
    fill(&mut single, "q", 7);
    let (outcomes, _) = single.write(write(vec![copy("five", 0), put("next", "x").item(1)]));
    assert!(too_much(&outcomes[0]), "{:?}", outcomes[0]);
    assert_eq!((length(&mut single, "four"), length(&mut single, "five")), (Some(0), Some(0)));
    assert_eq!(single.value("next"), Some("x".into()));
}

#[test]
fn an_answer_that_fills_the_window_of_its_client_is_in_nobodys_way_once_it_is_acknowledged() {
    let mut single = Single::new();
    single.one(on("big", Set { value: vec![7; 8 << 20].into(), expiry: Expiry::Never })).unwrap();
    let (taken, _) = single.write(tagged(1, write(vec![on("big", Delete).previous()])));
    assert_eq!(taken[0].as_ref().unwrap().previous.as_ref().unwrap().value.len(), 8 << 20);
    let next = |sequence, acked_below| {
        let mut write = tagged(sequence, write(vec![put("next", "x")]));
        write.request.as_mut().unwrap().acked_below = acked_below;
        write
    };
    let (full, _) = single.write(next(2, 1));
    assert!(matches!(full[0], Err(Refusal::Overloaded { .. })), "{full:?}");
    let (outcomes, _) = single.write(next(3, 2));
    assert!(outcomes[0].as_ref().unwrap().applied);
}
