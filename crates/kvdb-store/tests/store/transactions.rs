//! Atomic writes of string actions: as a Redis transaction, one that can't be carried out doesn't
//! undo the others, and a check that fails calls everything off.

use crate::support::{Single, With, atomic, put, tagged};
use bytes::Bytes;
use kvdb_model::{Action, Condition, Operation, Refusal, StringAction, Version};

fn string(key: &str, action: StringAction) -> Operation {
    Operation { action: Action::String(action), ..put(key, "") }
}

fn append(key: &str, value: &'static str) -> Operation {
    string(key, StringAction::Append { value: value.into() })
}

#[test]
fn a_wrong_value_does_not_undo_the_rest_of_a_transaction() {
    let mut single = Single::new();
    single.one(put("text", "abc")).unwrap();
    let (outcomes, _) = single.write(atomic(vec![
        append("n", "1"),
        string("text", StringAction::Increment { delta: 1 }),
        append("n", "2"),
        string("n", StringAction::Read).previous(),
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
        let check = string("watched", StringAction::Check).when(Condition::IfVersion(version));
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
    let rename = string("from", StringAction::Rename { to: "to".into(), only_absent: false });
    let check = string("from", StringAction::Check).when(Condition::IfAbsent);
    single.write(atomic(vec![rename.clone(), check.item(1)]));
    assert_eq!(single.value("from"), None, "the check comes after the rename, and sees it");
    single.one(put("from", "2")).unwrap();
    let check = string("other", StringAction::Check).when(Condition::IfPresent);
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
    assert_eq!(again[1].clone().unwrap().counter, first[1].clone().unwrap().counter);
    assert!(again[1].clone().unwrap().deduplicated);
    assert_eq!(single.value("n"), Some(Bytes::from("xy")));
}

#[test]
fn a_previous_value_that_is_too_long_to_be_kept_is_missed_by_a_retry() {
    let mut single = Single::new();
    single.one(put("long", &"x".repeat(2000))).unwrap();
    let write = tagged(1, atomic(vec![string("long", StringAction::Remove).previous()]));
    let (first, _) = single.write(write.clone());
    assert_eq!(first[0].clone().unwrap().previous.unwrap().value.len(), 2000);
    let again = single.write(write).0.remove(0).unwrap();
    assert!(again.left_out && again.previous.is_none() && again.applied);
}

#[test]
fn a_rename_to_a_key_of_another_shard_is_refused_and_nothing_moves() {
    let mut single = Single::new();
    single.one(put("from", "1")).unwrap();
    let rename = string("from", StringAction::Rename { to: "a".into(), only_absent: false });
    let refused = single.one(rename);
    assert!(matches!(refused, Err(Refusal::ShardMoved { .. })), "{refused:?}");
    assert_eq!(single.value("from"), Some(Bytes::from("1")));
}
