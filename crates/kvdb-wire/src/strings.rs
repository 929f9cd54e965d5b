//! The commands of the Redis protocol between the wire and the model.

use crate::convert::{condition_from, previous_to};
use crate::proto;
use crate::refusal::{refusal_from_proto, refusal_to_proto};
use crate::requests::condition_to;
use bytes::Bytes;
use kvdb_model::codec::{Reader, Writer};
use kvdb_model::{
    Action, Limits, Operation, OperationOutcome, Previous, Refusal, StringAction, Version,
    WriteResult,
};

/// Most bytes of previous values in one answer: what is beyond is left out, so that the answer
/// fits in a message.
const PREVIOUS_MAX_BYTES: usize = 9 << 20;

/// An operation with its *user* key as the wire has it; `None` unless it is a string action.
pub fn string_operation_to(operation: &Operation) -> Option<proto::StringOperation> {
    let Action::String(action) = &operation.action else { return None };
    let mut encoded = Writer::with_capacity(action.size_bytes());
    action.encode(&mut encoded);
    Some(proto::StringOperation {
        key: operation.key.clone(),
        item: operation.item,
        action: encoded.finish(),
        condition: operation.condition.as_ref().map(condition_to),
        return_previous: operation.return_previous,
    })
}

/// A gateway's operations, checked one by one, with their user keys.
#[derive(Debug, PartialEq, Eq)]
pub struct StringOperations {
    /// Those that can be carried out, in order.
    pub good: Vec<Operation>,
    /// The places of the others, ascending, and what is wrong with them.
    pub refused: Vec<(usize, Refusal)>,
}

/// Checks a gateway's operations one by one and as a whole. One that can't be read or is beyond a
/// limit is refused alone: those beside it are of other commands, maybe of other clients. (A check
/// of an atomic write is the exception, as it stands for all of them.)
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit, if none can be carried out.
pub fn string_operations(
    operations: Vec<proto::StringOperation>,
    limits: &Limits,
) -> Result<StringOperations, Refusal> {
    if operations.is_empty() || operations.len() > limits.request_max_items {
        let problem =
            format!("has {} entries; it has 1 to {}", operations.len(), limits.request_max_items);
        return Err(Refusal::invalid("operations", problem));
    }
    let mut size = 0;
    let mut checked =
        StringOperations { good: Vec::with_capacity(operations.len()), refused: vec![] };
    for (place, operation) in operations.into_iter().enumerate() {
        let may_be_check = StringAction::may_be_check(&operation.action);
        match string_operation(operation, limits) {
            Ok(operation) => {
                size += operation.size_bytes();
                checked.good.push(operation);
            }
            Err(refusal) if may_be_check => return Err(refusal),
            Err(refusal) => checked.refused.push((place, refusal)),
        }
    }
    if checked.good.is_empty()
        && let Some((_, refusal)) = checked.refused.pop()
    {
        return Err(refusal);
    }
    let limit = limits.request_max_bytes;
    if size > limit {
        let problem = format!("take {size} bytes together; the limit is {limit}");
        return Err(Refusal::invalid("operations", problem));
    }
    Ok(checked)
}

/// The outcomes of all operations of a request, of those that were refused at once too.
pub fn with_refused(
    outcomes: Vec<OperationOutcome>,
    refused: Vec<(usize, Refusal)>,
) -> Vec<OperationOutcome> {
    let mut all = outcomes;
    for (place, refusal) in refused {
        all.insert(place.min(all.len()), Err(refusal));
    }
    all
}

fn string_operation(
    operation: proto::StringOperation,
    limits: &Limits,
) -> Result<Operation, Refusal> {
    let mut input = Reader::new(operation.action);
    let action =
        StringAction::decode(&mut input).and_then(|action| input.end().map(|()| action)).map_err(
            |error| Refusal::invalid("operations.action", format!("can't be read: {error}")),
        )?;
    limits.check_key(&operation.key)?;
    action.other_keys().iter().try_for_each(|key| limits.check_key(key))?;
    if let StringAction::Set { value, .. }
    | StringAction::Append { value }
    | StringAction::SetRange { value, .. } = &action
    {
        limits.check_value(value)?;
    }
    Ok(Operation {
        key: operation.key,
        item: operation.item,
        action: Action::String(action),
        condition: condition_from(operation.condition)?,
        return_previous: operation.return_previous,
    })
}

/// The answers of operations that one shard has carried out. Previous values that don't fit into a
/// message are left out.
pub fn string_results(outcomes: Vec<OperationOutcome>) -> Vec<proto::StringResult> {
    let mut size = 0;
    outcomes
        .into_iter()
        .map(|outcome| match outcome {
            Ok(mut result) => {
                size += result.previous.as_ref().map_or(0, |previous| previous.value.len());
                if size > PREVIOUS_MAX_BYTES && result.previous.take().is_some() {
                    result.left_out = true;
                }
                string_result(result)
            }
            Err(refusal) => proto::StringResult {
                refusal: Some(refusal_to_proto(&refusal)),
                ..Default::default()
            },
        })
        .collect()
}

fn string_result(result: WriteResult) -> proto::StringResult {
    proto::StringResult {
        applied: result.applied,
        version: result.version.0,
        previous: result.previous.map(previous_to),
        counter: result.counter,
        reply: result.reply,
        left_out: result.left_out,
        refusal: None,
    }
}

/// One operation's answer.
pub fn string_outcome(result: proto::StringResult) -> OperationOutcome {
    if let Some(refusal) = result.refusal {
        return Err(refusal_from_proto(refusal));
    }
    Ok(WriteResult {
        applied: result.applied,
        version: Version(result.version),
        previous: result.previous.map(|previous| Previous {
            value: previous.value,
            version: Version(previous.version),
            expires_at_ms: previous.expires_at_ms,
        }),
        counter: result.counter,
        reply: result.reply,
        left_out: result.left_out,
        deduplicated: false,
    })
}

/// Checks the keys of a read.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn check_read(keys: &[proto::ReadKey], limits: &Limits) -> Result<(), Refusal> {
    if keys.is_empty() || keys.len() > limits.request_max_items {
        let problem =
            format!("has {} entries; it has 1 to {}", keys.len(), limits.request_max_items);
        return Err(Refusal::invalid("keys", problem));
    }
    keys.iter().try_for_each(|key| limits.check_key(&key.key))
}

/// What a key's value takes up in an answer, as [`proto::NodeReadManyRequest::max_bytes`] counts.
pub fn read_size(value: &Bytes) -> u64 {
    value.len() as u64 + 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::Expiry;

    fn operation(action: StringAction) -> Operation {
        Operation {
            key: "k".into(),
            item: 7,
            action: Action::String(action),
            condition: Some(kvdb_model::Condition::IfAbsent),
            return_previous: true,
        }
    }

    #[test]
    fn operations_survive_the_way_over_the_wire() {
        let actions = [
            StringAction::Read,
            StringAction::Set { value: "v".into(), expiry: Expiry::Keep },
            StringAction::Rename { to: "other".into(), only_absent: true },
        ];
        let operations: Vec<Operation> = actions.into_iter().map(operation).collect();
        let sent = operations.iter().filter_map(string_operation_to).collect();
        let checked = StringOperations { good: operations, refused: vec![] };
        assert_eq!(string_operations(sent, &Limits::default()), Ok(checked));
    }

    #[test]
    fn an_operation_that_cannot_be_read_fails_none_beside_it() {
        let good = string_operation_to(&operation(StringAction::Read)).unwrap();
        let bad = proto::StringOperation { action: vec![99].into(), ..good.clone() };
        let long = StringAction::Append { value: vec![0; 9].into() };
        let long = string_operation_to(&operation(long)).unwrap();
        let limits = Limits { value_max_bytes: 8, ..Limits::default() };
        let sent = vec![bad, good.clone(), long, good.clone()];
        let checked = string_operations(sent, &limits).unwrap();
        assert_eq!(checked.good.len(), 2);
        let done = vec![Ok(WriteResult::default()); 2];
        let all = with_refused(done, checked.refused);
        let refused: Vec<bool> = all.iter().map(Result::is_err).collect();
        assert_eq!(refused, [true, false, true, false]);
        // What may have been a check calls everything off.
        let unclear = proto::StringOperation { action: vec![].into(), ..good.clone() };
        assert!(string_operations(vec![good, unclear], &limits).is_err());
    }

    #[test]
    fn forged_operations_are_refused() {
        let good = string_operation_to(&operation(StringAction::Read)).unwrap();
        let limits = Limits { key_max_bytes: 3, value_max_bytes: 2, ..Limits::default() };
        let refused = |operation: proto::StringOperation| {
            string_operations(vec![operation], &limits).unwrap_err().to_string()
        };
        let action =
            |bytes: &'static [u8]| proto::StringOperation { action: bytes.into(), ..good.clone() };
        assert!(refused(action(b"")).starts_with("operations.action can't be read"));
        assert!(refused(action(&[1, 1])).starts_with("operations.action can't be read"));
        assert!(refused(action(&[99])).starts_with("operations.action can't be read"));
        let long = operation(StringAction::Append { value: "abc".into() });
        assert_eq!(
            refused(string_operation_to(&long).unwrap()),
            "value is 3 bytes; the limit is 2"
        );
        let long = operation(StringAction::Rename { to: "abcd".into(), only_absent: false });
        assert_eq!(refused(string_operation_to(&long).unwrap()), "key is 4 bytes; the limit is 3");
        assert!(string_operations(vec![], &limits).is_err());
    }

    #[test]
    fn previous_values_beyond_a_message_are_left_out_and_said_so() {
        let previous = |length| {
            let value = Bytes::from(vec![0; length]);
            let previous = Some(Previous { value, version: Version(1), expires_at_ms: 0 });
            Ok(WriteResult { applied: true, previous, ..WriteResult::default() })
        };
        let results = string_results(vec![previous(8 << 20), previous(8 << 20)]);
        assert!(results[0].previous.is_some() && !results[0].left_out);
        assert!(results[1].previous.is_none() && results[1].left_out);
    }

    #[test]
    fn answers_survive_the_way_over_the_wire() {
        let result = WriteResult {
            applied: true,
            version: Version(3),
            counter: Some(-4),
            reply: Some("r".into()),
            ..WriteResult::default()
        };
        let wrong = Err(Refusal::WrongValue(kvdb_model::wrong_value::NOT_A_FLOAT));
        let outcomes = vec![Ok(result), wrong];
        let back: Vec<_> =
            string_results(outcomes.clone()).into_iter().map(string_outcome).collect();
        assert_eq!(back, outcomes);
    }
}
