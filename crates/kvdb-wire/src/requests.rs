//! Writes between the wire and the model: what clients and gateways send becomes operations,
//! results become answers.

use crate::convert::{condition_from, previous_to};
use crate::proto;
use crate::refusal::refusal_to_proto;
use bytes::Bytes;
use kvdb_model::{Action, Limits, Operation, OperationOutcome, Refusal, WriteResult};

/// A client's operation, checked, with its *user* key (the routing key depends on the keyspace).
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn put_operation(
    key: Bytes,
    value: Bytes,
    ttl_ms: u64,
    condition: Option<proto::Condition>,
    return_previous: bool,
    limits: &Limits,
) -> Result<Operation, Refusal> {
    limits.check_value(&value)?;
    let action = Action::Put { value, ttl_ms: (ttl_ms != 0).then_some(ttl_ms) };
    operation(key, action, condition, return_previous, limits)
}

/// A client's delete, checked.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn delete_operation(
    key: Bytes,
    condition: Option<proto::Condition>,
    return_previous: bool,
    limits: &Limits,
) -> Result<Operation, Refusal> {
    operation(key, Action::Delete, condition, return_previous, limits)
}

/// A client's increment, checked.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn increment_operation(key: Bytes, delta: i64, limits: &Limits) -> Result<Operation, Refusal> {
    operation(key, Action::Increment { delta }, None, false, limits)
}

fn operation(
    key: Bytes,
    action: Action,
    condition: Option<proto::Condition>,
    return_previous: bool,
    limits: &Limits,
) -> Result<Operation, Refusal> {
    limits.check_key(&key)?;
    Ok(Operation { key, item: 0, action, condition: condition_from(condition)?, return_previous })
}

/// The operations of a batch, checked one by one and as a whole; `items` are 0, 1, 2, ...
///
/// # Errors
/// [`Refusal::InvalidArgument`] for too many or too large ones, or a bad one.
pub fn batch_operations(
    operations: Vec<proto::WriteOperation>,
    limits: &Limits,
) -> Result<Vec<Operation>, Refusal> {
    if operations.is_empty() {
        return Err(Refusal::invalid("operations", "is empty; a batch has at least 1"));
    }
    if operations.len() > limits.request_max_items {
        return Err(Refusal::invalid(
            "operations",
            format!("has {} entries; the limit is {}", operations.len(), limits.request_max_items),
        ));
    }
    let mut out = Vec::with_capacity(operations.len());
    let mut size = 0;
    for (item, write) in operations.into_iter().enumerate() {
        let mut operation = batch_operation(write, limits)?;
        operation.item = item as u32;
        size += operation.size_bytes();
        out.push(operation);
    }
    if size > limits.request_max_bytes {
        return Err(Refusal::invalid(
            "operations",
            format!("take {size} bytes together; the limit is {}", limits.request_max_bytes),
        ));
    }
    Ok(out)
}

fn batch_operation(write: proto::WriteOperation, limits: &Limits) -> Result<Operation, Refusal> {
    use proto::write_operation::Action as Kind;
    match write.action {
        Some(Kind::Put(put)) => put_operation(
            write.key,
            put.value,
            put.ttl_ms,
            write.condition,
            write.return_previous,
            limits,
        ),
        Some(Kind::Delete(_)) => {
            delete_operation(write.key, write.condition, write.return_previous, limits)
        }
        None => Err(Refusal::invalid("operations.action", "is missing; it is a put or a delete")),
    }
}

/// An operation as the wire has it, with its user key. Increments have a message of their own.
pub fn write_operation_to(operation: &Operation, user_key: Bytes) -> proto::WriteOperation {
    use proto::write_operation::Action as Kind;
    let action = match &operation.action {
        Action::Put { value, ttl_ms } => {
            Kind::Put(proto::PutAction { value: value.clone(), ttl_ms: ttl_ms.unwrap_or(0) })
        }
        Action::Delete | Action::Increment { .. } => Kind::Delete(proto::DeleteAction {}),
    };
    proto::WriteOperation {
        key: user_key,
        action: Some(action),
        condition: operation.condition.as_ref().map(condition_to),
        return_previous: operation.return_previous,
    }
}

/// A condition as protobuf.
pub fn condition_to(condition: &kvdb_model::Condition) -> proto::Condition {
    use kvdb_model::Condition;
    use proto::condition::Kind;
    let kind = match condition {
        Condition::IfAbsent => Kind::IfAbsent(true),
        Condition::IfPresent => Kind::IfPresent(true),
        Condition::IfVersion(version) => Kind::IfVersion(version.0),
        Condition::IfValue(value) => Kind::IfValue(value.clone()),
    };
    proto::Condition { kind: Some(kind) }
}

/// A request id as protobuf.
pub fn request_id_to(tag: &kvdb_model::RequestTag) -> proto::RequestId {
    proto::RequestId {
        client_id: String::from_utf8_lossy(&tag.client_id).into_owned(),
        sequence: tag.sequence,
        acked_below: tag.acked_below,
        valid_until_ms: tag.valid_until_ms,
    }
}

/// The answer of a put.
pub fn put_response(result: WriteResult) -> proto::PutResponse {
    proto::PutResponse {
        applied: result.applied,
        version: result.version.0,
        previous: result.previous.map(previous_to),
    }
}

/// The answer of a delete.
pub fn delete_response(result: WriteResult) -> proto::DeleteResponse {
    proto::DeleteResponse {
        applied: result.applied,
        version: result.version.0,
        previous: result.previous.map(previous_to),
    }
}

/// The answer of an increment.
pub fn increment_response(result: WriteResult) -> proto::IncrementResponse {
    proto::IncrementResponse {
        value: result.counter.unwrap_or_default(),
        version: result.version.0,
    }
}

/// The answer of one operation of a batch.
pub fn batch_result(outcome: OperationOutcome) -> proto::BatchWriteResult {
    match outcome {
        Ok(result) => proto::BatchWriteResult {
            applied: result.applied,
            version: result.version.0,
            previous: result.previous.map(previous_to),
            refusal: None,
        },
        Err(refusal) => proto::BatchWriteResult {
            refusal: Some(refusal_to_proto(&refusal)),
            ..Default::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_operation_names_field_and_limit() {
        let limits = Limits { key_max_bytes: 3, value_max_bytes: 2, ..Limits::default() };
        let refused = |key: &'static [u8], value: &'static [u8]| {
            put_operation(key.into(), value.into(), 0, None, false, &limits)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(refused(b"", b""), "key is empty; a key has at least 1 byte");
        assert_eq!(refused(b"abcd", b""), "key is 4 bytes; the limit is 3");
        assert_eq!(refused(b"a", b"abc"), "value is 3 bytes; the limit is 2");
    }

    #[test]
    fn a_batch_is_bounded_in_count_and_bytes() {
        let write = |value: Vec<u8>| proto::WriteOperation {
            key: "k".into(),
            action: Some(proto::write_operation::Action::Put(proto::PutAction {
                value: value.into(),
                ttl_ms: 0,
            })),
            condition: None,
            return_previous: false,
        };
        let limits = Limits { request_max_items: 2, request_max_bytes: 100, ..Limits::default() };
        assert!(batch_operations(vec![], &limits).is_err());
        assert!(batch_operations(vec![write(vec![]); 3], &limits).is_err());
        assert!(batch_operations(vec![write(vec![0; 80])], &limits).is_err());
        let items: Vec<u32> = batch_operations(vec![write(vec![]); 2], &limits)
            .unwrap()
            .iter()
            .map(|operation| operation.item)
            .collect();
        assert_eq!(items, [0, 1]);
    }
}
