//! Refusals as gRPC statuses with trailers, as messages, and back.

use crate::convert::{descriptor_from, descriptor_to};
use crate::proto;
use kvdb_model::{RangeEpoch, Refusal, ShardDescriptor, ShardId};
use prost::Message as _;
use tonic::metadata::{BinaryMetadataValue, MetadataMap, MetadataValue};
use tonic::{Code, Status};

const ERROR_CODE: &str = "x-error-code";
const SHARD_ID: &str = "x-shard-id";
const LEADER_HINT: &str = "x-leader-hint";
const NEW_NODE_HINT: &str = "x-new-node-hint";
const SHARD_EPOCH: &str = "x-shard-epoch";
const DESCRIPTORS: &str = "x-shard-descriptors-bin";
const RETRY_AFTER_MS: &str = "x-retry-after-ms";

/// The refusal as a message.
pub fn refusal_to_proto(refusal: &Refusal) -> proto::Refusal {
    let mut out = proto::Refusal {
        code: refusal.code().to_owned(),
        message: refusal.to_string(),
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
        Refusal::RequestIdReused { client_id, sequence }
        | Refusal::RequestIdExpired { client_id, sequence } => {
            out.client_id = client_id.clone();
            out.sequence = *sequence;
        }
        Refusal::InvalidArgument { field, problem } => {
            out.field = (*field).to_owned();
            out.message = problem.clone();
        }
        Refusal::UnknownKeyspace { name } => out.message = name.clone(),
        Refusal::CrossShard { shards } => out.shard_ids = shards.iter().map(|id| id.0).collect(),
        _ => {}
    }
    out
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
            Refusal::ShardUnavailable { shard_id, reason: "the node can't serve it for now" }
        }
        "OVERLOADED" => {
            Refusal::Overloaded { what: "a queue", retry_after_ms: refusal.retry_after_ms }
        }
        "DEADLINE_EXCEEDED" => Refusal::DeadlineExceeded,
        "REQUEST_ID_REUSED" => {
            Refusal::RequestIdReused { client_id: refusal.client_id, sequence: refusal.sequence }
        }
        "REQUEST_ID_EXPIRED" => {
            Refusal::RequestIdExpired { client_id: refusal.client_id, sequence: refusal.sequence }
        }
        "INVALID_ARGUMENT" => Refusal::InvalidArgument {
            field: known_field(&refusal.field),
            problem: refusal.message,
        },
        "UNKNOWN_KEYSPACE" => Refusal::UnknownKeyspace { name: refusal.message },
        "CROSS_SHARD" => {
            Refusal::CrossShard { shards: refusal.shard_ids.into_iter().map(ShardId).collect() }
        }
        "WRONG_VALUE" => Refusal::WrongValue("the value is not what the operation needs"),
        "NOT_INITIALISED" => Refusal::NotInitialised,
        _ => Refusal::OutcomeUnknown { reason: "the server couldn't tell" },
    }
}

/// Field names are static in the model; those of other versions are told in the message.
fn known_field(field: &str) -> &'static str {
    const FIELDS: [&str; 6] = ["key", "value", "condition", "keyspace", "cursor", "request_id"];
    FIELDS.into_iter().find(|known| *known == field).unwrap_or("request")
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
        Refusal::Overloaded { .. } => Code::ResourceExhausted,
        Refusal::OutcomeUnknown { .. } => Code::Unknown,
        Refusal::DeadlineExceeded => Code::DeadlineExceeded,
        Refusal::RequestIdReused { .. }
        | Refusal::InvalidArgument { .. }
        | Refusal::CrossShard { .. } => Code::InvalidArgument,
        Refusal::RequestIdExpired { .. } => Code::FailedPrecondition,
        Refusal::UnknownKeyspace { .. } => Code::NotFound,
    }
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
    Status::with_metadata(grpc_code(refusal), refusal.to_string(), trailers)
}

fn insert_text(trailers: &mut MetadataMap, name: &'static str, text: &Option<String>) {
    if let Some(value) = text.as_ref().and_then(|text| MetadataValue::try_from(text).ok()) {
        trailers.insert(name, value);
    }
}

fn insert_descriptors(trailers: &mut MetadataMap, descriptors: &[ShardDescriptor]) {
    if descriptors.is_empty() {
        return;
    }
    let message =
        proto::ShardDescriptors { descriptors: descriptors.iter().map(descriptor_to).collect() };
    trailers.insert_bin(DESCRIPTORS, BinaryMetadataValue::from_bytes(&message.encode_to_vec()));
}

/// The refusal that a status tells of, or `None` if the server didn't say (`x-error-code` is
/// missing): a transport failure, or a server of another kind. Garbled trailers count as missing.
pub fn refusal_from_status(status: &Status) -> Option<Refusal> {
    let trailers = status.metadata();
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
    let descriptors = trailers
        .get_bin(DESCRIPTORS)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| proto::ShardDescriptors::decode(bytes).ok())
        .map_or_else(Vec::new, |message| message.descriptors);
    Some(refusal_from_proto(proto::Refusal {
        code: text(ERROR_CODE)?.to_owned(),
        message: status.message().to_owned(),
        shard_id: number(SHARD_ID),
        leader_hint: text(LEADER_HINT).unwrap_or_default().to_owned(),
        new_node_hint: text(NEW_NODE_HINT).unwrap_or_default().to_owned(),
        shard_epoch: number(SHARD_EPOCH),
        descriptors,
        retry_after_ms: number(RETRY_AFTER_MS).unwrap_or_default(),
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{KeyRange, KeyspaceId, MembershipEpoch};

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
    fn routing_hints_survive_as_trailers_and_as_fields() {
        for refusal in routed() {
            assert_eq!(refusal_from_status(&status_of(&refusal)), Some(refusal.clone()));
            assert_eq!(refusal_from_proto(refusal_to_proto(&refusal)), refusal);
        }
    }

    #[test]
    fn request_window_and_argument_refusals_survive_as_fields() {
        for refusal in [
            Refusal::RequestIdReused { client_id: "c".into(), sequence: 4 },
            Refusal::RequestIdExpired { client_id: "c".into(), sequence: 4 },
            Refusal::invalid("key", "is empty"),
            Refusal::CrossShard { shards: vec![ShardId(1), ShardId(2)] },
            Refusal::UnknownKeyspace { name: "x".into() },
        ] {
            assert_eq!(refusal_from_proto(refusal_to_proto(&refusal)), refusal);
        }
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
}
