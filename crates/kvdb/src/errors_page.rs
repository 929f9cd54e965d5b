//! `docs/errors.md` explains each error code, and no other: a test fails otherwise.

use crate::exit::Failure;
use kvdb_client::Error;
use kvdb_model::{RangeEpoch, Refusal, RetryClass, ShardId, ShardTimes, ValidUntil};
use kvdb_wire::status_of;
use std::collections::{BTreeMap, BTreeSet};

/// How many kinds of refusals there are.
const KINDS: usize = 18;

/// Which of them this is. A new one doesn't compile without a number here, and then needs a line in
/// `one_of_each`.
fn kind(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::NotLeader { .. } => 0,
        Refusal::ShardMoved { .. } => 1,
        Refusal::StaleEpoch { .. } => 2,
        Refusal::ShardUnavailable { .. } => 3,
        Refusal::DiskFull { .. } => 4,
        Refusal::Overloaded { .. } => 5,
        Refusal::OutcomeUnknown { .. } => 6,
        Refusal::DeadlineExceeded => 7,
        Refusal::RequestIdReused { .. } => 8,
        Refusal::RequestIdExpired { .. } => 9,
        Refusal::InvalidArgument { .. } => 10,
        Refusal::UnknownKeyspace { .. } => 11,
        Refusal::CrossShard { .. } => 12,
        Refusal::WrongValue(_) => 13,
        Refusal::RequestTooLarge { .. } => 14,
        Refusal::ResponseTooLarge { .. } => 15,
        Refusal::NotInitialised => 16,
        Refusal::RequestIdTooFarAhead { .. } => 17,
    }
}

fn one_of_each() -> Vec<Refusal> {
    let shard_id = ShardId(1);
    let client_id = || "c".to_owned();
    vec![
        Refusal::NotLeader { shard_id, leader_hint: None },
        Refusal::ShardMoved { shard_id, new_node_hint: None, descriptors: Vec::new() },
        Refusal::StaleEpoch { shard_id, current: RangeEpoch(1), descriptors: Vec::new() },
        Refusal::ShardUnavailable { shard_id, reason: "" },
        Refusal::DiskFull { shard_id },
        Refusal::Overloaded { what: "", retry_after_ms: 1 },
        Refusal::OutcomeUnknown { reason: "" },
        Refusal::DeadlineExceeded,
        Refusal::RequestIdReused { client_id: client_id(), sequence: 1 },
        Refusal::RequestIdExpired {
            client_id: client_id(),
            sequence: 1,
            valid_until: ValidUntil::Time(1),
            shard: ShardTimes { time_ms: 2, age_ms: 2 },
        },
        Refusal::invalid("key", ""),
        Refusal::UnknownKeyspace { name: String::new() },
        Refusal::CrossShard { shards: Vec::new() },
        Refusal::WrongValue(""),
        Refusal::RequestTooLarge { limit_bytes: 1 },
        Refusal::ResponseTooLarge { limit_bytes: 1 },
        Refusal::NotInitialised,
        Refusal::RequestIdTooFarAhead {
            valid_until_ms: 700_000,
            shard: ShardTimes { time_ms: 2, age_ms: 2 },
        },
    ]
}

/// The name that gRPC has for a status: `FAILED_PRECONDITION`, not `FailedPrecondition`.
fn status_name(refusal: &Refusal) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", status_of(refusal).code()).chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// The exit code of a command that is refused so.
fn exit_code(refusal: Refusal) -> u8 {
    let error = match refusal.class() {
        RetryClass::OutcomeUnknown => Error::OutcomeUnknown { reason: String::new() },
        _ => Error::Refused { message: refusal.to_string(), refusal },
    };
    Failure::from(error).code()
}

#[test]
fn the_page_of_errors_has_an_entry_for_each_code_and_says_what_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors.md");
    let page = std::fs::read_to_string(path).unwrap();
    let entries: BTreeMap<&str, &str> = page
        .split("\n## `")
        .skip(1)
        .map(|entry| entry.split_once('`').expect("a heading is a code"))
        .collect();
    let all = one_of_each();
    assert!(all.iter().map(kind).eq(0..KINDS), "one of each, in order");
    let mut codes = BTreeSet::new();
    for refusal in all {
        let code = refusal.code();
        codes.insert(code);
        let entry = entries.get(code).unwrap_or_else(|| panic!("{code} has no entry"));
        let retry = match refusal.class() {
            RetryClass::RetryHere => "retry here",
            RetryClass::RetryElsewhere => "retry elsewhere",
            RetryClass::OutcomeUnknown => "retry under the same request id only",
            RetryClass::Final => "no retry",
        };
        let status = status_name(&refusal);
        let facts = format!("gRPC `{status}`, exit code {}, {retry}", exit_code(refusal));
        assert!(entry.contains(&facts), "{code}: {facts}");
        assert!(entry.contains("\n- Cause: ") && entry.contains("\n- Do: "), "{code}");
    }
    let of_none: Vec<_> = entries.keys().filter(|code| !codes.contains(*code)).collect();
    assert!(of_none.is_empty(), "of no code: {of_none:?}");
}
