//! Writes between the wire and the model: what clients and gateways send becomes operations,
//! results become answers.

use crate::convert::{condition_from, previous_to};
use crate::proto;
use crate::refusal::refusal_to_proto;
use bytes::Bytes;
use kvdb_model::{Limits, Operation, OperationOutcome, Refusal, ValidUntil, WriteResult};
use kvdb_store::Command;
use kvdb_store::keys::{Delete, Expiry, ExpiryRule, SetExpiry};
use kvdb_store::string::{Increment, Set};

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
    let set = Set { value, expiry: expiry(ttl_ms) };
    operation(key, &set, condition, return_previous, limits)
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
    operation(key, &Delete, condition, return_previous, limits)
}

/// A client's increment, checked.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn increment_operation(key: Bytes, delta: i64, limits: &Limits) -> Result<Operation, Refusal> {
    operation(key, &Increment { delta }, None, false, limits)
}

/// A client's change of an expiry, checked; `ttl_ms` of 0 is for ever.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn expire_operation(
    key: Bytes,
    ttl_ms: u64,
    condition: Option<proto::Condition>,
    return_previous: bool,
    limits: &Limits,
) -> Result<Operation, Refusal> {
    let set_expiry = SetExpiry { expiry: expiry(ttl_ms), rule: ExpiryRule::ALWAYS };
    operation(key, &set_expiry, condition, return_previous, limits)
}

/// Milliseconds to live, or 0 for ever.
fn expiry(ttl_ms: u64) -> Expiry {
    Expiry::after((ttl_ms != 0).then_some(ttl_ms))
}

fn operation(
    key: Bytes,
    command: &impl Command,
    condition: Option<proto::Condition>,
    return_previous: bool,
    limits: &Limits,
) -> Result<Operation, Refusal> {
    limits.check_key(&key)?;
    command.check(limits)?;
    let condition = condition_from(condition)?;
    Ok(Operation { condition, return_previous, ..command.on(key) })
}

/// Longest name of a keyspace, in bytes.
pub const KEYSPACE_NAME_MAX_BYTES: usize = 128;

/// Checks the name of a keyspace in a request; empty means `default`.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming the limit if it is too long.
pub fn check_keyspace(name: &str) -> Result<(), Refusal> {
    if name.len() > KEYSPACE_NAME_MAX_BYTES {
        let length = name.len();
        return Err(Refusal::invalid(
            "keyspace",
            format!("has {length} bytes; the limit is {KEYSPACE_NAME_MAX_BYTES}"),
        ));
    }
    Ok(())
}

/// How fresh a read must be.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming the values that are known.
pub fn consistency_from(consistency: i32) -> Result<proto::Consistency, Refusal> {
    proto::Consistency::try_from(consistency).map_err(|_| {
        let known = "STRONG (0), BOUNDED (1) and EVENTUAL (2)";
        Refusal::invalid("consistency", format!("is {consistency}; this version knows {known}"))
    })
}

/// Checks the keys of a `BatchGet`, one by one and as a whole.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn check_keys(keys: &[Bytes], limits: &Limits) -> Result<(), Refusal> {
    check_count("keys", keys.len(), limits)?;
    let mut size = 0;
    for key in keys {
        limits.check_key(key)?;
        size += key.len();
    }
    check_size("keys", size, limits)
}

/// Checks the bounds of a `Scan`.
///
/// # Errors
/// [`Refusal::InvalidArgument`] if both a prefix and a bound are given, or one is longer than a
/// key can be.
pub fn check_scan(scan: &proto::ScanRequest, limits: &Limits) -> Result<(), Refusal> {
    check_keyspace(&scan.keyspace)?;
    let bounded = !scan.start.is_empty() || !scan.end.is_empty();
    if bounded && !scan.prefix.is_empty() {
        return Err(Refusal::invalid("prefix", "can't be combined with start or end"));
    }
    let bounds = [("prefix", &scan.prefix), ("start", &scan.start), ("end", &scan.end)];
    for (field, bound) in bounds {
        // The first key after the longest one is longer by a byte.
        let limit = limits.key_max_bytes + 1;
        if bound.len() > limit {
            let length = bound.len();
            return Err(Refusal::invalid(
                field,
                format!("is {length} bytes; the limit is {limit}"),
            ));
        }
    }
    Ok(())
}

/// Checks what a `Watch` is of.
///
/// # Errors
/// [`Refusal::InvalidArgument`] for a combination that means nothing, or a key that is too long.
pub fn check_watch(watch: &proto::WatchRequest, limits: &Limits) -> Result<(), Refusal> {
    check_keyspace(&watch.keyspace)?;
    if !watch.key.is_empty() {
        limits.check_key(&watch.key)?;
    }
    if !watch.prefix.is_empty() {
        limits.check_key(&watch.prefix)?;
        if !watch.key.is_empty() {
            return Err(Refusal::invalid("prefix", "can't be combined with key"));
        }
    }
    if watch.from_version != 0 && !watch.cursor.is_empty() {
        return Err(Refusal::invalid("from_version", "can't be combined with cursor"));
    }
    Ok(())
}

fn check_count(field: &'static str, count: usize, limits: &Limits) -> Result<(), Refusal> {
    let limit = limits.request_max_items;
    match count {
        0 => Err(Refusal::invalid(field, "is empty; a batch has at least 1")),
        count if count > limit => {
            Err(Refusal::invalid(field, format!("has {count} entries; the limit is {limit}")))
        }
        _ => Ok(()),
    }
}

fn check_size(field: &'static str, size: usize, limits: &Limits) -> Result<(), Refusal> {
    let limit = limits.request_max_bytes;
    if size > limit {
        return Err(Refusal::invalid(
            field,
            format!("take {size} bytes together; the limit is {limit}"),
        ));
    }
    Ok(())
}

/// The operations of a batch, checked one by one and as a whole; `items` are 0, 1, 2, ...
///
/// # Errors
/// [`Refusal::InvalidArgument`] for too many or too large ones, or a bad one.
pub fn batch_operations(
    operations: Vec<proto::WriteOperation>,
    limits: &Limits,
) -> Result<Vec<Operation>, Refusal> {
    check_count("operations", operations.len(), limits)?;
    let mut out = Vec::with_capacity(operations.len());
    let mut size = 0;
    for (item, write) in operations.into_iter().enumerate() {
        let mut operation = batch_operation(write, limits)?;
        operation.item = item as u32;
        size += operation.size_bytes();
        out.push(operation);
    }
    check_size("operations", size, limits)?;
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
        Some(Kind::Expire(expire)) => expire_operation(
            write.key,
            expire.ttl_ms,
            write.condition,
            write.return_previous,
            limits,
        ),
        None => Err(Refusal::invalid(
            "operations.action",
            "is missing; it is a put, a delete or an expiry",
        )),
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
        valid_until_ms: match tag.valid_until {
            ValidUntil::Time(ms) => ms,
            ValidUntil::Age(_) => 0,
        },
        valid_until_age_ms: match tag.valid_until {
            ValidUntil::Time(_) => 0,
            ValidUntil::Age(ms) => ms,
        },
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

/// The answer of a change of an expiry.
pub fn expire_response(result: WriteResult) -> proto::ExpireResponse {
    proto::ExpireResponse {
        applied: result.applied,
        version: result.version.0,
        previous: result.previous.map(previous_to),
    }
}

/// The answer of an increment.
pub fn increment_response(result: WriteResult) -> proto::IncrementResponse {
    proto::IncrementResponse {
        value: result.reply.integer().unwrap_or_default(),
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

/// Leaves out the previous values that don't fit into `max_bytes` together, and says so in their
/// place.
pub fn omit_previous_beyond(results: &mut [proto::BatchWriteResult], max_bytes: usize) {
    let mut left = max_bytes;
    for previous in results.iter_mut().filter_map(|result| result.previous.as_mut()) {
        match left.checked_sub(previous.value.len()) {
            Some(rest) => left = rest,
            None => {
                previous.value = Bytes::new();
                previous.value_omitted = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_tag_from;
    use kvdb_model::RequestTag;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn request_ids_survive_the_way_over_the_wire(client in "[a-z0-9-]{1,64}", sequence in any::<u64>(), acked in any::<u64>(), by_age in any::<bool>(), ms in 1u64..) {
            let valid_until = if by_age { ValidUntil::Age(ms) } else { ValidUntil::Time(ms) };
            let tag = RequestTag { client_id: Bytes::from(client), sequence, acked_below: acked.min(sequence), valid_until };
            let back = request_tag_from(Some(request_id_to(&tag)), &Limits::default());
            prop_assert_eq!(back, Ok(Some(tag)));
        }
    }

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

    #[test]
    fn previous_values_without_room_are_marked() {
        let result = |value: &'static str| proto::BatchWriteResult {
            previous: Some(proto::Previous { value: value.into(), ..Default::default() }),
            ..Default::default()
        };
        let mut results = vec![result("12"), result("1234"), Default::default(), result("1")];
        omit_previous_beyond(&mut results, 3);
        let told: Vec<_> = results
            .iter()
            .filter_map(|result| result.previous.as_ref())
            .map(|previous| (previous.value.len(), previous.value_omitted))
            .collect();
        assert_eq!(told, [(2, false), (0, true), (1, false)]);
    }

    #[test]
    fn keys_of_a_batch_are_bounded_in_count_and_bytes() {
        let limits = Limits { request_max_items: 2, request_max_bytes: 5, ..Limits::default() };
        let check = |keys: &[&'static str]| {
            let keys: Vec<Bytes> =
                keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
            check_keys(&keys, &limits).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(check(&["a", "a"]), Ok(()));
        assert_eq!(check(&[]), Err("keys is empty; a batch has at least 1".into()));
        assert_eq!(check(&["a", "b", "c"]), Err("keys has 3 entries; the limit is 2".into()));
        assert_eq!(
            check(&["abc", "abc"]),
            Err("keys take 6 bytes together; the limit is 5".into())
        );
        assert_eq!(check(&["a", ""]), Err("key is empty; a key has at least 1 byte".into()));
    }

    #[test]
    fn a_scan_has_a_prefix_or_bounds() {
        let limits = Limits { key_max_bytes: 3, ..Limits::default() };
        let scan = |prefix: &'static str, start: &'static str, end: &'static str| {
            let request = proto::ScanRequest {
                prefix: prefix.into(),
                start: start.into(),
                end: end.into(),
                ..Default::default()
            };
            check_scan(&request, &limits).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(scan("", "", ""), Ok(()));
        assert_eq!(scan("p", "", ""), Ok(()));
        assert_eq!(scan("", "a", "abc\0"), Ok(()));
        assert_eq!(scan("p", "a", ""), Err("prefix can't be combined with start or end".into()));
        assert_eq!(scan("", "", "abcde"), Err("end is 5 bytes; the limit is 4".into()));
    }

    #[test]
    fn a_watch_is_of_a_key_a_prefix_or_a_keyspace() {
        let watch =
            |key: &'static str, prefix: &'static str, from_version, cursor: &'static str| {
                let request = proto::WatchRequest {
                    key: key.into(),
                    prefix: prefix.into(),
                    from_version,
                    cursor: cursor.into(),
                    ..Default::default()
                };
                check_watch(&request, &Limits::default()).is_ok()
            };
        assert!(watch("", "", 0, "") && watch("k", "", 7, "") && watch("", "p", 0, "c"));
        assert!(!watch("k", "p", 0, "") && watch("", "p", 7, "") && !watch("k", "", 7, "c"));
    }

    #[test]
    fn values_of_other_versions_are_refused() {
        assert!(consistency_from(2).is_ok());
        assert!(consistency_from(3).unwrap_err().to_string().contains("EVENTUAL"));
        assert!(check_keyspace(&"x".repeat(129)).is_err());
    }
}
