//! What one operation does to its key: a pure function of the record that is there.

use crate::record::Record;
use crate::string_effect::{Scene, string_effect};
use bytes::Bytes;
use kvdb_model::planted::{Bug, has};
use kvdb_model::wrong_value::{NOT_A_NUMBER, OVERFLOW};
use kvdb_model::{Action, Condition, Operation, Previous, Refusal, Version, WriteResult};

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(Record),
    Remove,
}

/// An operation's answer, and the change if there is one.
#[derive(Debug)]
pub(crate) struct Effect {
    pub(crate) result: WriteResult,
    pub(crate) change: Option<Change>,
    /// What happens to another key of the shard.
    pub(crate) also: Option<(Bytes, Change)>,
}

/// Whether the effect depends on what is there. (A delete's does: it tells whether there was
/// something to delete.)
pub(crate) fn needs_current(operation: &Operation) -> bool {
    operation.condition.is_some()
        || operation.return_previous
        || match &operation.action {
            Action::Put { .. } => false,
            Action::String(action) => action.needs_current(),
            Action::Delete | Action::Increment { .. } | Action::Expire { .. } => true,
        }
}

/// The effect at `version` where `current` is there, not expired, and so are `others` of a string
/// action's other keys. `current` isn't looked at unless [`needs_current`].
///
/// # Errors
/// [`Refusal::WrongValue`] for an increment of something that isn't a counter, or too far.
pub(crate) fn effect_of(
    operation: &Operation,
    current: Option<&Record>,
    others: &[Option<Record>],
    version: Version,
) -> Result<Effect, Refusal> {
    if !holds(operation.condition.as_ref(), current) {
        return Ok(Effect { result: unapplied(operation, current), change: None, also: None });
    }
    let mut result = WriteResult {
        applied: true,
        version,
        previous: previous(operation, current),
        ..WriteResult::default()
    };
    let change = match &operation.action {
        Action::Put { value, ttl_ms } => {
            let expires_at_ms = expiry(*ttl_ms, version);
            Change::Set(Record { version, expires_at_ms, value: value.clone() })
        }
        Action::Delete | Action::Expire { .. } if current.is_none() => {
            return Ok(Effect { result: unapplied(operation, None), change: None, also: None });
        }
        Action::Expire { ttl_ms } => {
            let expires_at_ms = expiry(*ttl_ms, version);
            let value = current.map(|record| record.value.clone()).unwrap_or_default();
            Change::Set(Record { version, expires_at_ms, value })
        }
        Action::Delete if has(Bug::DeleteLost) => {
            return Ok(Effect { result, change: None, also: None });
        }
        Action::Delete => Change::Remove,
        Action::Increment { delta } => {
            let (counter, record) = increment(current, *delta, version)?;
            result.counter = Some(counter);
            Change::Set(record)
        }
        Action::String(action) => {
            let scene = Scene { operation, current, others, version, result };
            return string_effect(action, scene);
        }
    };
    Ok(Effect { result, change: Some(change), also: None })
}

/// When a write at `version` expires; 0 for never.
fn expiry(ttl_ms: Option<u64>, version: Version) -> u64 {
    ttl_ms.map_or(0, |ttl| version.millis().saturating_add(ttl).max(1))
}

/// The answer of an operation that changes nothing.
pub(crate) fn unapplied(operation: &Operation, current: Option<&Record>) -> WriteResult {
    WriteResult {
        version: current.map_or(Version::ZERO, |record| record.version),
        previous: previous(operation, current),
        ..WriteResult::default()
    }
}

fn previous(operation: &Operation, current: Option<&Record>) -> Option<Previous> {
    let record = current.filter(|_| operation.return_previous)?;
    Some(Previous {
        value: record.value.clone(),
        version: record.version,
        expires_at_ms: record.expires_at_ms,
    })
}

fn holds(condition: Option<&Condition>, current: Option<&Record>) -> bool {
    match condition {
        None => true,
        Some(_) if has(Bug::ConditionIgnored) => true,
        Some(Condition::IfAbsent) => current.is_none(),
        Some(Condition::IfPresent) => current.is_some(),
        Some(Condition::IfVersion(version)) => {
            current.is_some_and(|record| record.version == *version)
        }
        Some(Condition::IfValue(value)) => current.is_some_and(|record| record.value == *value),
    }
}

/// A counter is decimal text, as Redis keeps it; its expiry stays.
pub(crate) fn increment(
    current: Option<&Record>,
    delta: i64,
    version: Version,
) -> Result<(i64, Record), Refusal> {
    let (before, expires_at_ms) = match current {
        None => (0, 0),
        Some(record) => {
            let before = parse_counter(&record.value).ok_or(Refusal::WrongValue(NOT_A_NUMBER))?;
            (before, record.expires_at_ms)
        }
    };
    let after = before.checked_add(delta).ok_or(Refusal::WrongValue(OVERFLOW))?;
    let value = Bytes::from(after.to_string());
    Ok((after, Record { version, expires_at_ms, value }))
}

/// Reads only what writing a number gives: no plus, no space, no leading zero, as Redis does.
fn parse_counter(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [] => false,
        [b'0'] => text.len() == 1,
        [first, ..] => *first != b'0' && *first != b'+',
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_canonical_numbers_count() {
        for (text, number) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("10", Some(10)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("-+1", None),
            ("01", None),
            (" 1", None),
            ("1 ", None),
            ("1.0", None),
            ("0x1", None),
            ("one", None),
        ] {
            assert_eq!(parse_counter(text.as_bytes()), number, "{text:?}");
        }
        assert_eq!(parse_counter(b"1\xff"), None);
    }

    proptest! {
        #[test]
        fn exactly_what_is_written_is_read(number in any::<i64>(), junk in "[-+0-9 ]{0,5}") {
            prop_assert_eq!(parse_counter(number.to_string().as_bytes()), Some(number));
            let read = parse_counter(junk.as_bytes());
            prop_assert_eq!(read, junk.parse::<i64>().ok().filter(|n| n.to_string() == junk));
        }
    }
}
