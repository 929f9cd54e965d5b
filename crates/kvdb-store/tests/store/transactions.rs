//! Atomic writes of string actions: as a Redis transaction, one that can't be carried out doesn't
//! undo the others, and a check that fails calls everything off.

use crate::support::{Single, With, atomic, lenient, on, put, tagged};
use bytes::Bytes;
use kvdb_model::{Condition, Operation, Refusal, Version};
use kvdb_store::keys::{Check, Look, Rename};
use kvdb_store::string::{Append, Increment};

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
