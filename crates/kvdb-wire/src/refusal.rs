//! Refusals as gRPC statuses with trailers, as messages, and back.
//!
//! The trailers of the contract hold what routing needs. Facts that have no trailer of their own
//! (which field, which request id, which shards) travel as a serialized `Refusal` in
//! `x-refusal-bin`, so that a Rust client gets back what the server refused with. Other clients
//! have the status's message, which says the same in words.
//!
//! Trailers share one bounded header list with everything else, so all of them are bounded here:
//! a long message is cut, and descriptors that don't fit are left out. Whoever reads them treats
//! what is missing or garbled as not said.

use crate::convert::{descriptor_from, descriptor_to};
use crate::proto;
use kvdb_model::{RangeEpoch, Refusal, ShardDescriptor, ShardId, ShardTimes, ValidUntil};
use kvdb_model::{unavailable, wrong_value};
use prost::Message as _;
use tonic::metadata::{BinaryMetadataValue, MetadataMap, MetadataValue};
use tonic::{Code, Status};

const ERROR_CODE: &str = "x-error-code";
/// In a refused heartbeat: the highest frame up to which the node has reported its log to be synced.
pub const HIGHEST_SYNCED: &str = "x-highest-synced";
const SHARD_ID: &str = "x-shard-id";
const LEADER_HINT: &str = "x-leader-hint";
const NEW_NODE_HINT: &str = "x-new-node-hint";
const SHARD_EPOCH: &str = "x-shard-epoch";
const DESCRIPTORS: &str = "x-shard-descriptors-bin";
const RETRY_AFTER_MS: &str = "x-retry-after-ms";
const SHARD_TIME_MS: &str = "x-shard-time-ms";
const REFUSAL: &str = "x-refusal-bin";

/// Longest text that a refusal carries, in bytes.
const TEXT_MAX_BYTES: usize = 1024;
/// Most shards that a refusal names.
const SHARDS_MAX: usize = 64;
/// Most bytes of descriptors in a trailer: both sides of a split with the longest keys fit.
const DESCRIPTORS_MAX_BYTES: usize = 72 * 1024;

/// The refusal as a message.
pub fn refusal_to_proto(refusal: &Refusal) -> proto::Refusal {
    let mut out = proto::Refusal {
        code: refusal.code().to_owned(),
        message: short(refusal.to_string()),
        shard_id: refusal.shard_id().map(|id| id.0),
        ..Default::default()
    };
    match refusal {
        Refusal::NotLeader { leader_hint, .. } => {
            out.leader_hint = leader_hint.clone().unwrap_or_default();
        }
        Refusal::ShardMoved { new_node_hint, descriptors, .. } => {
            out.new_node_hint = new_node_hint.clone().unwrap_or_default();
            out.descriptors = descriptors.iter().map(descriptor_to).collect();
        }
        Refusal::StaleEpoch { current, descriptors, .. } => {
            out.shard_epoch = Some(current.0);
            out.descriptors = descriptors.iter().map(descriptor_to).collect();
        }
        Refusal::Overloaded { retry_after_ms, .. } => out.retry_after_ms = *retry_after_ms,
        Refusal::RequestIdReused { client_id, sequence } => {
            out.client_id = client_id.clone();
            out.sequence = *sequence;
        }
        Refusal::RequestIdExpired { client_id, sequence, valid_until, shard } => {
            out.client_id = client_id.clone();
            out.sequence = *sequence;
            match valid_until {
                ValidUntil::Time(ms) => out.valid_until_ms = *ms,
                ValidUntil::Age(ms) => out.valid_until_age_ms = *ms,
            }
            out.shard_time_ms = shard.time_ms;
            out.shard_age_ms = shard.age_ms;
        }
        Refusal::RequestIdTooFarAhead { valid_until_ms, shard } => {
            out.field = Refusal::VALID_UNTIL.to_owned();
            out.problem = "is too far ahead of the shard's clock".to_owned();
            out.valid_until_ms = *valid_until_ms;
            out.shard_time_ms = shard.time_ms;
            out.shard_age_ms = shard.age_ms;
        }
        Refusal::InvalidArgument { field, problem } => {
            out.field = (*field).to_owned();
            out.problem = short(problem.clone());
        }
        Refusal::UnknownKeyspace { name } => out.keyspace = short(name.clone()),
        Refusal::CrossShard { shards } => {
            out.shard_ids = shards.iter().take(SHARDS_MAX).map(|id| id.0).collect();
        }
        Refusal::RequestTooLarge { limit_bytes } | Refusal::ResponseTooLarge { limit_bytes } => {
            out.limit_bytes = *limit_bytes;
        }
        _ => {}
    }
    out
}

/// At most [`TEXT_MAX_BYTES`] of a text, cut between characters.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_MAX_BYTES));
    text
}

/// The refusal that a message tells of. An unknown code becomes [`Refusal::OutcomeUnknown`]: the
/// one that claims least.
pub fn refusal_from_proto(refusal: proto::Refusal) -> Refusal {
    let shard_id = ShardId(refusal.shard_id.unwrap_or_default());
    let hint = |text: String| (!text.is_empty()).then_some(text);
    match refusal.code.as_str() {
        "NOT_LEADER" => Refusal::NotLeader { shard_id, leader_hint: hint(refusal.leader_hint) },
        "SHARD_MOVED" => Refusal::ShardMoved {
            shard_id,
            new_node_hint: hint(refusal.new_node_hint),
            descriptors: readable(refusal.descriptors),
        },
        "STALE_EPOCH" => Refusal::StaleEpoch {
            shard_id,
            current: RangeEpoch(refusal.shard_epoch.unwrap_or_default()),
            descriptors: readable(refusal.descriptors),
        },
        "SHARD_UNAVAILABLE" => {
            let reason = unavailable::known(&refusal.message);
            let reason = reason.unwrap_or("the node can't serve it for now");
            Refusal::ShardUnavailable { shard_id, reason }
        }
        "DISK_FULL" => Refusal::DiskFull { shard_id },
        "OVERLOADED" => {
            Refusal::Overloaded { what: "a queue", retry_after_ms: refusal.retry_after_ms }
        }
        "DEADLINE_EXCEEDED" => Refusal::DeadlineExceeded,
        "REQUEST_ID_REUSED" => {
            Refusal::RequestIdReused { client_id: refusal.client_id, sequence: refusal.sequence }
        }
        "REQUEST_ID_EXPIRED" => Refusal::RequestIdExpired {
            client_id: refusal.client_id,
            sequence: refusal.sequence,
            valid_until: match (refusal.valid_until_ms, refusal.valid_until_age_ms) {
                (0, age_ms) => ValidUntil::Age(age_ms),
                (ms, _) => ValidUntil::Time(ms),
            },
            shard: ShardTimes { time_ms: refusal.shard_time_ms, age_ms: refusal.shard_age_ms },
        },
        "INVALID_ARGUMENT"
            if refusal.field == Refusal::VALID_UNTIL && refusal.shard_time_ms > 0 =>
        {
            Refusal::RequestIdTooFarAhead {
                valid_until_ms: refusal.valid_until_ms,
                shard: ShardTimes { time_ms: refusal.shard_time_ms, age_ms: refusal.shard_age_ms },
            }
        }
        "INVALID_ARGUMENT" => invalid_argument(refusal),
        "UNKNOWN_KEYSPACE" => Refusal::UnknownKeyspace { name: refusal.keyspace },
        "CROSS_SHARD" => {
            Refusal::CrossShard { shards: refusal.shard_ids.into_iter().map(ShardId).collect() }
        }
        "WRONG_VALUE" => Refusal::WrongValue(
            wrong_value::known(&refusal.message)
                .unwrap_or("the value is not what the operation needs"),
        ),
        "REQUEST_TOO_LARGE" => Refusal::RequestTooLarge { limit_bytes: refusal.limit_bytes },
        "RESPONSE_TOO_LARGE" => Refusal::ResponseTooLarge { limit_bytes: refusal.limit_bytes },
        "NOT_INITIALISED" => Refusal::NotInitialised,
        _ => Refusal::OutcomeUnknown { reason: "the server couldn't tell" },
    }
}

/// The names of fields are static in the model. One that this version doesn't know, or none, leaves
/// the server's own words.
fn invalid_argument(refusal: proto::Refusal) -> Refusal {
    const FIELDS: [&str; 21] = [
        "key",
        "keys",
        "value",
        "keyspace",
        "keyspace_id",
        "min_version",
        "condition",
        "consistency",
        "max_staleness_ms",
        "operations",
        "operations.action",
        "prefix",
        "cursor",
        "from_version",
        "request_id.client_id",
        "request_id.acked_below",
        "request_id.valid_until_ms",
        "request_id.valid_until_age_ms",
        "shard_id",
        "node_id",
        "address",
    ];
    match FIELDS.into_iter().find(|known| *known == refusal.field) {
        Some(field) => Refusal::InvalidArgument { field, problem: refusal.problem },
        None => {
            Refusal::invalid("request", format!("was refused by the server: {}", refusal.message))
        }
    }
}

fn readable(descriptors: Vec<proto::ShardDescriptor>) -> Vec<ShardDescriptor> {
    descriptors.into_iter().filter_map(|descriptor| descriptor_from(descriptor).ok()).collect()
}

fn grpc_code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::NotLeader { .. } | Refusal::ShardMoved { .. } | Refusal::StaleEpoch { .. } => {
            Code::FailedPrecondition
        }
        Refusal::NotInitialised | Refusal::WrongValue(_) => Code::FailedPrecondition,
        Refusal::ShardUnavailable { .. } => Code::Unavailable,
        Refusal::Overloaded { .. }
        | Refusal::RequestTooLarge { .. }
        | Refusal::ResponseTooLarge { .. }
        | Refusal::DiskFull { .. } => Code::ResourceExhausted,
        Refusal::OutcomeUnknown { .. } => Code::Unknown,
        Refusal::DeadlineExceeded => Code::DeadlineExceeded,
        Refusal::RequestIdReused { .. }
        | Refusal::RequestIdTooFarAhead { .. }
        | Refusal::InvalidArgument { .. }
        | Refusal::CrossShard { .. } => Code::InvalidArgument,
        Refusal::RequestIdExpired { .. } => Code::FailedPrecondition,
        Refusal::UnknownKeyspace { .. } => Code::NotFound,
    }
}

/// Whether the trailers of the contract can't say it all.
fn needs_message(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::RequestIdReused { .. }
            | Refusal::RequestIdExpired { .. }
            | Refusal::RequestIdTooFarAhead { .. }
            | Refusal::InvalidArgument { .. }
            | Refusal::UnknownKeyspace { .. }
            | Refusal::CrossShard { .. }
            | Refusal::RequestTooLarge { .. }
            | Refusal::ResponseTooLarge { .. }
    )
}

/// The refusal as a status with trailers.
pub fn status_of(refusal: &Refusal) -> Status {
    let mut trailers = MetadataMap::new();
    trailers.insert(ERROR_CODE, MetadataValue::from_static(refusal.code()));
    if let Some(shard) = refusal.shard_id() {
        trailers.insert(SHARD_ID, shard.0.into());
    }
    match refusal {
        Refusal::NotLeader { leader_hint, .. } => {
            insert_text(&mut trailers, LEADER_HINT, leader_hint)
        }
        Refusal::ShardMoved { new_node_hint, descriptors, .. } => {
            insert_text(&mut trailers, NEW_NODE_HINT, new_node_hint);
            insert_descriptors(&mut trailers, descriptors);
        }
        Refusal::StaleEpoch { current, descriptors, .. } => {
            trailers.insert(SHARD_EPOCH, current.0.into());
            insert_descriptors(&mut trailers, descriptors);
        }
        Refusal::Overloaded { retry_after_ms, .. } => {
            trailers.insert(RETRY_AFTER_MS, (*retry_after_ms).into());
        }
        _ => {}
    }
    if let Some(shard_time_ms) = refusal.stamp_from() {
        trailers.insert(SHARD_TIME_MS, shard_time_ms.into());
    }
    if needs_message(refusal) {
        let message = refusal_to_proto(refusal).encode_to_vec();
        trailers.insert_bin(REFUSAL, BinaryMetadataValue::from_bytes(&message));
    }
    Status::with_metadata(grpc_code(refusal), short(refusal.to_string()), trailers)
}

/// The shard that a refusal of a request about `asked` names: its own, else the one asked for.
fn named_shard(refusal: &Refusal, asked: ShardId) -> ShardId {
    refusal.shard_id().filter(|named| *named != ShardId::CONTROL).unwrap_or(asked)
}

/// As [`status_of`], of a request about a shard: whatever was wrong, `x-shard-id` says which.
pub fn status_about(refusal: &Refusal, asked: ShardId) -> Status {
    let mut status = status_of(refusal);
    status.metadata_mut().insert(SHARD_ID, named_shard(refusal, asked).0.into());
    status
}

/// As [`refusal_to_proto`], of a request about a shard.
pub fn refusal_about(refusal: &Refusal, asked: ShardId) -> proto::Refusal {
    let shard_id = Some(named_shard(refusal, asked).0);
    proto::Refusal { shard_id, ..refusal_to_proto(refusal) }
}

fn insert_text(trailers: &mut MetadataMap, name: &'static str, text: &Option<String>) {
    if let Some(value) = text.as_ref().and_then(|text| MetadataValue::try_from(text).ok()) {
        trailers.insert(name, value);
    }
}

fn insert_descriptors(trailers: &mut MetadataMap, descriptors: &[ShardDescriptor]) {
    let mut message = proto::ShardDescriptors::default();
    for descriptor in descriptors {
        message.descriptors.push(descriptor_to(descriptor));
        if message.encoded_len() > DESCRIPTORS_MAX_BYTES {
            message.descriptors.pop();
            break;
        }
    }
    if !message.descriptors.is_empty() {
        let value = BinaryMetadataValue::from_bytes(&message.encode_to_vec());
        trailers.insert_bin(DESCRIPTORS, value);
    }
}

/// The refusal that a status tells of, or `None` if the server didn't say (`x-error-code` is
/// missing): a transport failure, or a server of another kind. Garbled trailers count as missing.
pub fn refusal_from_status(status: &Status) -> Option<Refusal> {
    let trailers = status.metadata();
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
    let binary = |name: &str| trailers.get_bin(name).and_then(|value| value.to_bytes().ok());
    let code = text(ERROR_CODE)?;
    let descriptors = binary(DESCRIPTORS)
        .and_then(|bytes| proto::ShardDescriptors::decode(bytes).ok())
        .map_or_else(Vec::new, |message| message.descriptors);
    let message = binary(REFUSAL)
        .and_then(|bytes| proto::Refusal::decode(bytes).ok())
        .filter(|message| message.code == code)
        .unwrap_or_default();
    Some(refusal_from_proto(proto::Refusal {
        code: code.to_owned(),
        message: status.message().to_owned(),
        shard_id: number(SHARD_ID),
        leader_hint: text(LEADER_HINT).unwrap_or_default().to_owned(),
        new_node_hint: text(NEW_NODE_HINT).unwrap_or_default().to_owned(),
        shard_epoch: number(SHARD_EPOCH),
        descriptors,
        retry_after_ms: number(RETRY_AFTER_MS).unwrap_or_default(),
        ..message
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{KeyRange, KeyspaceId, MembershipEpoch};
    use proptest::prelude::*;

    fn descriptor() -> ShardDescriptor {
        ShardDescriptor {
            shard_id: ShardId(7),
            keyspace_id: KeyspaceId(1),
            range: KeyRange::ALL,
            range_epoch: RangeEpoch(3),
            membership_epoch: MembershipEpoch(1),
            replicas: vec![],
        }
    }

    fn routed() -> Vec<Refusal> {
        let shard_id = ShardId(7);
        vec![
            Refusal::NotLeader { shard_id, leader_hint: Some("127.0.0.1:7201".into()) },
            Refusal::NotLeader { shard_id, leader_hint: None },
            Refusal::ShardMoved {
                shard_id,
                new_node_hint: Some("127.0.0.1:7202".into()),
                descriptors: vec![descriptor()],
            },
            Refusal::StaleEpoch {
                shard_id,
                current: RangeEpoch(3),
                descriptors: vec![descriptor(), descriptor()],
            },
            Refusal::DeadlineExceeded,
            Refusal::NotInitialised,
        ]
    }

    #[test]
    fn clients_without_our_types_read_the_shards_time_in_a_trailer() {
        let shard = ShardTimes { time_ms: 8, age_ms: 7 };
        let expired = |valid_until| Refusal::RequestIdExpired {
            client_id: "c".into(),
            sequence: 4,
            valid_until,
            shard,
        };
        let trailer = |refusal: &Refusal| {
            let status = status_of(refusal);
            status.metadata().get("x-shard-time-ms").map(|it| it.to_str().unwrap().to_owned())
        };
        for wrong in [
            expired(ValidUntil::Time(8)),
            Refusal::RequestIdTooFarAhead { valid_until_ms: 700_000, shard },
        ] {
            assert_eq!(trailer(&wrong).as_deref(), Some("8"), "{wrong}");
        }
        // Its time was right: it is no longer needed.
        assert_eq!(trailer(&expired(ValidUntil::Time(9))), None);
    }

    #[test]
    fn routing_hints_survive_as_trailers_and_as_fields() {
        for refusal in routed() {
            assert_eq!(refusal_from_status(&status_of(&refusal)), Some(refusal.clone()));
            assert_eq!(refusal_from_proto(refusal_to_proto(&refusal)), refusal);
        }
    }

    #[test]
    fn request_window_and_argument_refusals_survive_as_trailers_and_as_fields() {
        for refusal in [
            Refusal::RequestIdReused { client_id: "c".into(), sequence: 4 },
            Refusal::RequestIdExpired {
                client_id: "c".into(),
                sequence: 4,
                valid_until: ValidUntil::Age(3),
                shard: ShardTimes { time_ms: 8, age_ms: 7 },
            },
            Refusal::RequestIdExpired {
                client_id: "c".into(),
                sequence: 4,
                valid_until: ValidUntil::Time(3),
                shard: ShardTimes { time_ms: 8, age_ms: 7 },
            },
            Refusal::RequestIdTooFarAhead {
                valid_until_ms: 3,
                shard: ShardTimes { time_ms: 8, age_ms: 7 },
            },
            Refusal::invalid("key", "is empty"),
            Refusal::CrossShard { shards: vec![ShardId(1), ShardId(2)] },
            Refusal::UnknownKeyspace { name: "x".into() },
            Refusal::RequestTooLarge { limit_bytes: 8 },
            Refusal::ResponseTooLarge { limit_bytes: 9 },
            Refusal::ShardUnavailable { shard_id: ShardId(7), reason: unavailable::BEHIND },
        ] {
            assert_eq!(refusal_from_status(&status_of(&refusal)), Some(refusal.clone()));
            assert_eq!(refusal_from_proto(refusal_to_proto(&refusal)), refusal);
        }
    }

    #[test]
    fn a_field_of_another_version_leaves_the_servers_words() {
        let message = proto::Refusal {
            code: "INVALID_ARGUMENT".into(),
            message: "colour is green".into(),
            field: "colour".into(),
            ..Default::default()
        };
        let refusal = refusal_from_proto(message);
        assert_eq!(refusal.to_string(), "request was refused by the server: colour is green");
    }

    /// What the header list of a connection holds, name and value of each trailer.
    fn header_bytes(status: &Status) -> usize {
        let headers = status.metadata().clone().into_headers();
        let listed: usize =
            headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        listed + 3 * status.message().len()
    }

    #[test]
    fn the_largest_refusals_fit_the_header_list() {
        let long = vec![7u8; 16 * 1024 + 6];
        let wide = ShardDescriptor { range: KeyRange::new(long.clone(), long), ..descriptor() };
        let shard_id = ShardId(7);
        let largest = [
            Refusal::StaleEpoch { shard_id, current: RangeEpoch(3), descriptors: vec![wide; 5] },
            Refusal::CrossShard { shards: (0..16384).map(ShardId).collect() },
            Refusal::UnknownKeyspace { name: "é".repeat(1 << 20) },
            Refusal::invalid("key", "x".repeat(1 << 20)),
        ];
        for refusal in &largest {
            let size = header_bytes(&status_of(refusal));
            assert!(size < crate::transport::MAX_HEADER_LIST_BYTES as usize, "{size} bytes");
        }
        let Some(Refusal::StaleEpoch { descriptors, .. }) =
            refusal_from_status(&status_of(&largest[0]))
        else {
            panic!("still a refusal");
        };
        assert_eq!(descriptors.len(), 2, "both sides of a split");
    }

    #[test]
    fn a_refusal_about_a_shard_names_the_one_that_was_asked_for() {
        let shard = |refusal: &Refusal| {
            let status = status_about(refusal, ShardId(4));
            let trailer = status.metadata().get(SHARD_ID).and_then(|id| id.to_str().ok());
            let trailer = trailer.and_then(|id| id.parse().ok());
            assert_eq!(refusal_about(refusal, ShardId(4)).shard_id, trailer);
            trailer
        };
        assert_eq!(shard(&Refusal::invalid("keyspace_id", "is 0")), Some(4));
        let unheard = |shard_id| Refusal::ShardUnavailable { shard_id, reason: "?" };
        assert_eq!(shard(&unheard(ShardId::CONTROL)), Some(4));
        assert_eq!(shard(&unheard(ShardId(5))), Some(5), "its own");
    }

    #[test]
    fn a_status_without_a_code_tells_nothing() {
        assert_eq!(refusal_from_status(&Status::unavailable("no route")), None);
    }

    #[test]
    fn garbled_trailers_are_ignored() {
        let mut status = status_of(&routed()[2]);
        status
            .metadata_mut()
            .insert_bin(DESCRIPTORS, BinaryMetadataValue::from_bytes(&[255, 255, 1]));
        status.metadata_mut().insert(SHARD_ID, MetadataValue::from_static("seven"));
        let Some(Refusal::ShardMoved { descriptors, shard_id, .. }) = refusal_from_status(&status)
        else {
            panic!("still a refusal");
        };
        assert!(descriptors.is_empty());
        assert_eq!(shard_id, ShardId(0));
    }

    proptest! {
        #[test]
        fn junk_in_trailers_never_panics(
            code in prop::sample::select(vec!["NOT_LEADER", "SHARD_MOVED", "STALE_EPOCH", "OVERLOADED", "INVALID_ARGUMENT", "CROSS_SHARD", "?"]),
            text in "[ -~]{0,20}",
            junk in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut trailers = MetadataMap::new();
            trailers.insert(ERROR_CODE, MetadataValue::from_static(code));
            for name in [SHARD_ID, LEADER_HINT, NEW_NODE_HINT, SHARD_EPOCH, RETRY_AFTER_MS] {
                trailers.insert(name, MetadataValue::try_from(&text).unwrap());
            }
            for name in [DESCRIPTORS, REFUSAL] {
                trailers.insert_bin(name, BinaryMetadataValue::from_bytes(&junk));
            }
            let refusal = refusal_from_status(&Status::with_metadata(Code::Unknown, "", trailers));
            prop_assert!(refusal.is_some());
        }

        #[test]
        fn junk_messages_never_panic(junk in prop::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(message) = proto::Refusal::decode(&junk[..]) {
                let _ = refusal_from_proto(message);
            }
            if let Ok(message) = proto::ShardDescriptor::decode(&junk[..]) {
                let _ = descriptor_from(message);
            }
            if let Ok(message) = proto::ShardMap::decode(&junk[..]) {
                let _ = crate::shard_map_from(message);
            }
            if let Ok(message) = proto::MapDelta::decode(&junk[..]) {
                let _ = crate::map_delta_from(message);
            }
            if let Ok(message) = proto::BatchWriteRequest::decode(&junk[..]) {
                let _ = crate::requests::batch_operations(message.operations, &Default::default());
            }
            if let Ok(message) = proto::ScanRequest::decode(&junk[..]) {
                let _ = crate::requests::check_scan(&message, &Default::default());
            }
        }
    }
}
