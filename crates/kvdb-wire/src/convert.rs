//! Conversions of everything but refusals.

use crate::proto;
use bytes::Bytes;
use kvdb_model::{
    ClusterId, Condition, Generation, HistoryLimits, HistoryPolicy, KeyRange, Keyspace, KeyspaceId,
    LAST_REDIS_DB, Limits, MOST_GENERATIONS, MapChange, MapDelta, MapVersion, MembershipEpoch,
    NewKeyspace, NodeId, NodeRecord, NodeStatus, Partitioning, Previous, RangeEpoch, Refusal,
    Replica, ReplicaId, RequestTag, Role, ShardDescriptor, ShardId, ShardMap, ShardRecord, Term,
    ValidUntil, Version,
};
use thiserror::Error;

/// A message with a field that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("field {field} {problem}")]
pub struct FieldError {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Refusal::invalid(error.field, error.problem)
    }
}

pub(crate) fn missing(field: &'static str) -> FieldError {
    FieldError { field, problem: "is missing" }
}

fn unknown(field: &'static str) -> FieldError {
    FieldError { field, problem: "has a value that this version doesn't know" }
}

/// A cluster id as its 16 bytes; nothing if it isn't known.
pub fn cluster_id_to(id: ClusterId) -> Bytes {
    if id.is_known() { Bytes::copy_from_slice(&id.0.to_be_bytes()) } else { Bytes::new() }
}

/// A cluster id from its 16 bytes, or from none.
///
/// # Errors
/// For any other length.
pub fn cluster_id_from(bytes: &[u8]) -> Result<ClusterId, FieldError> {
    if bytes.is_empty() {
        return Ok(ClusterId::UNKNOWN);
    }
    token_from("cluster_id", bytes).map(ClusterId)
}

/// A 128-bit number from its 16 bytes.
///
/// # Errors
/// For any other length.
pub fn token_from(field: &'static str, bytes: &[u8]) -> Result<u128, FieldError> {
    let array: [u8; 16] =
        bytes.try_into().map_err(|_| FieldError { field, problem: "must have 16 bytes" })?;
    Ok(u128::from_be_bytes(array))
}

/// A generation as protobuf; nothing for the first.
pub fn generation_to(generation: Generation) -> Option<proto::Generation> {
    (generation != Generation::default()).then(|| proto::Generation {
        number: generation.number,
        nonce: Bytes::copy_from_slice(&generation.nonce.to_be_bytes()),
    })
}

/// A generation from protobuf.
///
/// # Errors
/// For a nonce that is none, and for a number that no group can have.
pub fn generation_from(generation: Option<proto::Generation>) -> Result<Generation, FieldError> {
    let Some(generation) = generation else { return Ok(Generation::default()) };
    if generation.number == 0 || generation.number > MOST_GENERATIONS {
        let problem = "must be from 1 to 1000";
        return Err(FieldError { field: "generation.number", problem });
    }
    let nonce = token_from("generation.nonce", &generation.nonce)?;
    Ok(Generation { number: generation.number, nonce })
}

/// A descriptor as protobuf.
pub fn descriptor_to(descriptor: &ShardDescriptor) -> proto::ShardDescriptor {
    proto::ShardDescriptor {
        shard_id: descriptor.shard_id.0,
        keyspace_id: descriptor.keyspace_id.0,
        start: descriptor.range.start.clone(),
        end: descriptor.range.end.clone(),
        range_epoch: descriptor.range_epoch.0,
        membership_epoch: descriptor.membership_epoch.0,
        replicas: descriptor.replicas.iter().map(replica_to).collect(),
    }
}

/// A role as protobuf.
pub fn role_to(role: Role) -> proto::ReplicaRole {
    match role {
        Role::Voter => proto::ReplicaRole::Voter,
        Role::Learner => proto::ReplicaRole::Learner,
        Role::Incoming => proto::ReplicaRole::Incoming,
        Role::Outgoing => proto::ReplicaRole::Outgoing,
    }
}

/// A role from protobuf.
///
/// # Errors
/// For one that isn't known.
pub fn role_from(role: i32) -> Result<Role, FieldError> {
    match proto::ReplicaRole::try_from(role) {
        Ok(proto::ReplicaRole::Voter) => Ok(Role::Voter),
        Ok(proto::ReplicaRole::Learner) => Ok(Role::Learner),
        Ok(proto::ReplicaRole::Incoming) => Ok(Role::Incoming),
        Ok(proto::ReplicaRole::Outgoing) => Ok(Role::Outgoing),
        Err(_) => Err(unknown("role")),
    }
}

pub(crate) fn replica_to(replica: &Replica) -> proto::Replica {
    proto::Replica {
        node_id: replica.node_id.0,
        replica_id: replica.replica_id.0,
        role: role_to(replica.role).into(),
    }
}

/// A descriptor from protobuf.
///
/// # Errors
/// For a role that isn't known.
pub fn descriptor_from(descriptor: proto::ShardDescriptor) -> Result<ShardDescriptor, FieldError> {
    let replicas = descriptor.replicas.iter().map(replica_from).collect::<Result<Vec<_>, _>>()?;
    Ok(ShardDescriptor {
        shard_id: ShardId(descriptor.shard_id),
        keyspace_id: KeyspaceId(descriptor.keyspace_id),
        range: KeyRange { start: descriptor.start, end: descriptor.end },
        range_epoch: RangeEpoch(descriptor.range_epoch),
        membership_epoch: MembershipEpoch(descriptor.membership_epoch),
        replicas,
    })
}

pub(crate) fn replica_from(replica: &proto::Replica) -> Result<Replica, FieldError> {
    Ok(Replica {
        node_id: NodeId(replica.node_id),
        replica_id: ReplicaId(replica.replica_id),
        role: role_from(replica.role)?,
    })
}

/// A node's status as protobuf.
pub fn node_status_to(status: NodeStatus) -> proto::NodeStatus {
    match status {
        NodeStatus::Alive => proto::NodeStatus::Alive,
        NodeStatus::Suspect => proto::NodeStatus::Suspect,
        NodeStatus::Dead => proto::NodeStatus::Dead,
        NodeStatus::Draining => proto::NodeStatus::Draining,
        NodeStatus::Removed => proto::NodeStatus::Removed,
        NodeStatus::Unreachable => proto::NodeStatus::Unreachable,
    }
}

/// A node's status from protobuf.
///
/// # Errors
/// For a value that isn't known.
pub fn node_status_from(status: i32) -> Result<NodeStatus, FieldError> {
    Ok(match proto::NodeStatus::try_from(status) {
        Ok(proto::NodeStatus::Alive) => NodeStatus::Alive,
        Ok(proto::NodeStatus::Suspect) => NodeStatus::Suspect,
        Ok(proto::NodeStatus::Dead) => NodeStatus::Dead,
        Ok(proto::NodeStatus::Draining) => NodeStatus::Draining,
        Ok(proto::NodeStatus::Removed) => NodeStatus::Removed,
        Ok(proto::NodeStatus::Unreachable) => NodeStatus::Unreachable,
        Err(_) => return Err(unknown("status")),
    })
}

/// A layout as protobuf.
pub fn partitioning_to(partitioning: Partitioning) -> proto::Partitioning {
    match partitioning {
        Partitioning::Hash => proto::Partitioning::Hash,
        Partitioning::Range => proto::Partitioning::Range,
    }
}

/// A layout from protobuf.
///
/// # Errors
/// For a value that isn't known.
pub fn partitioning_from(partitioning: i32) -> Result<Partitioning, FieldError> {
    match proto::Partitioning::try_from(partitioning) {
        Ok(proto::Partitioning::Hash) => Ok(Partitioning::Hash),
        Ok(proto::Partitioning::Range) => Ok(Partitioning::Range),
        Err(_) => Err(unknown("partitioning")),
    }
}

fn node_to(node: &NodeRecord) -> proto::NodeRecord {
    proto::NodeRecord {
        node_id: node.node_id.0,
        address: node.address.clone(),
        zone: node.zone.clone(),
        status: node_status_to(node.status).into(),
        least_replica_id: node.least_replica.0,
    }
}

fn node_from(node: proto::NodeRecord) -> Result<NodeRecord, FieldError> {
    Ok(NodeRecord {
        node_id: NodeId(node.node_id),
        address: node.address,
        zone: node.zone,
        status: node_status_from(node.status)?,
        least_replica: ReplicaId(node.least_replica_id),
    })
}

/// The limits of a history as they travel.
pub fn history_to(limits: &HistoryLimits) -> proto::HistoryLimits {
    proto::HistoryLimits { max_age_ms: limits.max_age_ms, max_bytes: limits.max_bytes }
}

/// The limits of a history, with defaults for what isn't said. Whether they are within bounds is for
/// the coordinators to say.
pub fn history_from(limits: proto::HistoryLimits) -> HistoryLimits {
    let or = |value, default| if value == 0 { default } else { value };
    HistoryLimits {
        max_age_ms: or(limits.max_age_ms, HistoryLimits::DEFAULT_AGE_MS),
        max_bytes: or(limits.max_bytes, HistoryLimits::DEFAULT_BYTES),
    }
}

fn keyspace_to(keyspace: &Keyspace) -> proto::Keyspace {
    proto::Keyspace {
        keyspace_id: keyspace.keyspace_id.0,
        name: keyspace.name.clone(),
        partitioning: partitioning_to(keyspace.partitioning).into(),
        history: keyspace.history.limits.as_ref().map(history_to),
        history_revision: keyspace.history.revision,
        replicas: keyspace.replicas,
        colocated: keyspace.colocated,
        redis_db: keyspace.redis_db.into(),
    }
}

/// The request for a new keyspace.
pub fn new_keyspace_to(new: &NewKeyspace) -> proto::CreateKeyspaceRequest {
    proto::CreateKeyspaceRequest {
        name: new.name.clone(),
        partitioning: partitioning_to(new.partitioning).into(),
        shards: new.shards,
        replication_factor: new.replicas,
        history: new.history.as_ref().map(history_to),
        colocated: new.colocated,
        redis_db: new.redis_db.into(),
    }
}

/// Reads one.
///
/// # Errors
/// [`FieldError`].
pub fn new_keyspace_from(request: proto::CreateKeyspaceRequest) -> Result<NewKeyspace, FieldError> {
    Ok(NewKeyspace {
        name: request.name,
        partitioning: partitioning_from(request.partitioning)?,
        shards: request.shards,
        replicas: request.replication_factor,
        history: request.history.map(history_from),
        colocated: request.colocated,
        redis_db: redis_db_from(request.redis_db)?,
    })
}

fn redis_db_from(db: u32) -> Result<u8, FieldError> {
    let known = u8::try_from(db).ok().filter(|db| *db <= LAST_REDIS_DB);
    known.ok_or(FieldError { field: "redis_db", problem: "must be 1 to 15, or 0 for none" })
}

fn keyspace_from(keyspace: proto::Keyspace) -> Result<Keyspace, FieldError> {
    Ok(Keyspace {
        keyspace_id: KeyspaceId(keyspace.keyspace_id),
        name: keyspace.name,
        partitioning: partitioning_from(keyspace.partitioning)?,
        history: HistoryPolicy {
            revision: keyspace.history_revision,
            limits: keyspace.history.map(history_from),
        },
        replicas: keyspace.replicas,
        colocated: keyspace.colocated,
        redis_db: redis_db_from(keyspace.redis_db)?,
    })
}

fn shard_to(shard: &ShardRecord) -> proto::ShardRecord {
    proto::ShardRecord {
        descriptor: Some(descriptor_to(&shard.descriptor)),
        leader_node_id: shard.leader.unwrap_or_default().0,
        leader_term: shard.leader_term.0,
        creating: shard.creating,
    }
}

fn shard_from(shard: proto::ShardRecord) -> Result<ShardRecord, FieldError> {
    Ok(ShardRecord {
        descriptor: descriptor_from(shard.descriptor.ok_or(missing("descriptor"))?)?,
        leader: (shard.leader_node_id != 0).then_some(NodeId(shard.leader_node_id)),
        leader_term: Term(shard.leader_term),
        creating: shard.creating,
    })
}

/// The map as protobuf.
pub fn shard_map_to(map: &ShardMap) -> proto::ShardMap {
    proto::ShardMap {
        cluster_id: cluster_id_to(map.cluster_id),
        map_version: map.version.0,
        nodes: map.nodes.values().map(node_to).collect(),
        keyspaces: map.keyspaces.values().map(keyspace_to).collect(),
        shards: map.shards.values().map(shard_to).collect(),
        generation: generation_to(map.generation),
    }
}

/// The map from protobuf.
///
/// # Errors
/// For a missing field or an unknown value.
pub fn shard_map_from(map: proto::ShardMap) -> Result<ShardMap, FieldError> {
    let mut out = ShardMap {
        cluster_id: cluster_id_from(&map.cluster_id)?,
        generation: generation_from(map.generation)?,
        version: MapVersion(map.map_version),
        ..ShardMap::default()
    };
    for node in map.nodes {
        out.change(MapChange::Node(node_from(node)?));
    }
    for keyspace in map.keyspaces {
        out.change(MapChange::Keyspace(keyspace_from(keyspace)?));
    }
    for shard in map.shards {
        out.change(MapChange::Shard(shard_from(shard)?));
    }
    Ok(out)
}

/// A change as protobuf.
pub fn map_change_to(change: &MapChange) -> proto::MapChange {
    use proto::map_change::Change;
    let change = match change {
        MapChange::Cluster(id) => Change::ClusterId(cluster_id_to(*id)),
        MapChange::Node(node) => Change::Node(node_to(node)),
        MapChange::NodeGone(id) => Change::NodeGone(id.0),
        MapChange::Keyspace(keyspace) => Change::Keyspace(keyspace_to(keyspace)),
        MapChange::KeyspaceGone(id) => Change::KeyspaceGone(id.0),
        MapChange::Shard(shard) => Change::Shard(shard_to(shard)),
        MapChange::ShardGone(id) => Change::ShardGone(id.0),
    };
    proto::MapChange { change: Some(change) }
}

/// A change from protobuf.
///
/// # Errors
/// For a missing field or an unknown value.
pub fn map_change_from(change: proto::MapChange) -> Result<MapChange, FieldError> {
    use proto::map_change::Change;
    Ok(match change.change.ok_or(missing("change"))? {
        Change::ClusterId(id) => MapChange::Cluster(cluster_id_from(&id)?),
        Change::Node(node) => MapChange::Node(node_from(node)?),
        Change::NodeGone(id) => MapChange::NodeGone(NodeId(id)),
        Change::Keyspace(keyspace) => MapChange::Keyspace(keyspace_from(keyspace)?),
        Change::KeyspaceGone(id) => MapChange::KeyspaceGone(KeyspaceId(id)),
        Change::Shard(shard) => MapChange::Shard(shard_from(shard)?),
        Change::ShardGone(id) => MapChange::ShardGone(ShardId(id)),
    })
}

/// A delta as protobuf.
pub fn map_delta_to(delta: &MapDelta) -> proto::MapDelta {
    proto::MapDelta {
        map_version: delta.version.0,
        changes: delta.changes.iter().map(map_change_to).collect(),
    }
}

/// A delta from protobuf.
///
/// # Errors
/// For a missing field or an unknown value.
pub fn map_delta_from(delta: proto::MapDelta) -> Result<MapDelta, FieldError> {
    Ok(MapDelta {
        version: MapVersion(delta.map_version),
        changes: delta.changes.into_iter().map(map_change_from).collect::<Result<_, _>>()?,
    })
}

/// A request id, if there is one.
///
/// # Errors
/// [`Refusal::InvalidArgument`] for an empty or too long client id, or without an end.
pub fn request_tag_from(
    request: Option<proto::RequestId>,
    limits: &Limits,
) -> Result<Option<RequestTag>, Refusal> {
    let Some(request) = request else { return Ok(None) };
    if request.client_id.is_empty() || request.client_id.len() > limits.client_id_max_bytes {
        return Err(Refusal::invalid(
            "request_id.client_id",
            format!(
                "has {} bytes; it must have 1 to {}",
                request.client_id.len(),
                limits.client_id_max_bytes
            ),
        ));
    }
    let valid_until = match (request.valid_until_ms, request.valid_until_age_ms) {
        (0, 0) => {
            return Err(Refusal::invalid(
                "request_id.valid_until_ms",
                "is missing; it must be the same on every retry and at most 10 minutes ahead",
            ));
        }
        (ms, 0) => ValidUntil::Time(ms),
        (0, age_ms) => ValidUntil::Age(age_ms),
        _ => {
            let problem = "is given together with valid_until_age_ms; one of the two is";
            return Err(Refusal::invalid("request_id.valid_until_ms", problem));
        }
    };
    if request.acked_below > request.sequence {
        return Err(Refusal::invalid(
            "request_id.acked_below",
            "is above the request's own sequence",
        ));
    }
    Ok(Some(RequestTag {
        client_id: Bytes::from(request.client_id),
        sequence: request.sequence,
        acked_below: request.acked_below,
        valid_until,
    }))
}

/// The request id that a client brings along, if it does.
///
/// # Errors
/// As [`request_tag_from`]; and for one by a shard's age, which clients don't know.
pub fn client_tag_from(
    request: Option<proto::RequestId>,
    limits: &Limits,
) -> Result<Option<RequestTag>, Refusal> {
    let tag = request_tag_from(request, limits)?;
    if tag.as_ref().is_some_and(|tag| matches!(tag.valid_until, ValidUntil::Age(_))) {
        let problem = "is for gateways; give valid_until_ms";
        return Err(Refusal::invalid("request_id.valid_until_age_ms", problem));
    }
    Ok(tag)
}

/// What a key holds, as a message tells it: nothing for a string.
pub fn type_to(kind: kvdb_store::Type) -> String {
    match kind {
        kvdb_store::Type::String => String::new(),
        other => other.name().to_owned(),
    }
}

/// A condition, if there is one.
///
/// # Errors
/// [`Refusal::InvalidArgument`] for a flag that is present and false.
pub fn condition_from(condition: Option<proto::Condition>) -> Result<Option<Condition>, Refusal> {
    use proto::condition::Kind;
    let Some(kind) = condition.and_then(|condition| condition.kind) else { return Ok(None) };
    Ok(Some(match kind {
        Kind::IfAbsent(true) => Condition::IfAbsent,
        Kind::IfPresent(true) => Condition::IfPresent,
        Kind::IfAbsent(false) | Kind::IfPresent(false) => {
            return Err(Refusal::invalid(
                "condition",
                "is a flag set to false; leave it out, or use the opposite one",
            ));
        }
        Kind::IfVersion(version) => Condition::IfVersion(Version(version)),
        Kind::IfValue(value) => Condition::IfValue(value),
    }))
}

/// What was there before, as protobuf.
pub fn previous_to(previous: Previous) -> proto::Previous {
    proto::Previous {
        value: previous.value,
        version: previous.version.0,
        expires_at_ms: previous.expires_at_ms,
        value_omitted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    fn any_shard() -> impl Strategy<Value = ShardRecord> {
        let roles = [Role::Voter, Role::Learner, Role::Incoming, Role::Outgoing];
        let replica = (any::<u64>(), any::<u64>(), prop::sample::select(roles.to_vec())).prop_map(
            |(node, replica, role)| Replica {
                node_id: NodeId(node),
                replica_id: ReplicaId(replica),
                role,
            },
        );
        let bound = || prop::collection::vec(any::<u8>(), 0..9);
        let descriptor = (
            (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>()),
            (bound(), bound()),
            prop::collection::vec(replica, 0..4),
        )
            .prop_map(|((shard, keyspace, range, membership), (start, end), replicas)| {
                ShardDescriptor {
                    shard_id: ShardId(shard),
                    keyspace_id: KeyspaceId(keyspace),
                    range: KeyRange::new(start, end),
                    range_epoch: RangeEpoch(range),
                    membership_epoch: MembershipEpoch(membership),
                    replicas,
                }
            });
        (descriptor, prop::option::of(1u64..), any::<u64>(), any::<bool>()).prop_map(
            |(descriptor, leader, term, creating)| ShardRecord {
                descriptor,
                leader: leader.map(NodeId),
                leader_term: Term(term),
                creating,
            },
        )
    }

    fn any_change() -> impl Strategy<Value = MapChange> {
        let statuses = [
            NodeStatus::Alive,
            NodeStatus::Suspect,
            NodeStatus::Dead,
            NodeStatus::Draining,
            NodeStatus::Removed,
            NodeStatus::Unreachable,
        ];
        let layouts = [Partitioning::Hash, Partitioning::Range];
        prop_oneof![
            any::<u128>().prop_map(|id| MapChange::Cluster(ClusterId(id))),
            (
                any::<u64>(),
                "[a-z:0-9]{0,9}",
                ".{0,4}",
                prop::sample::select(statuses.to_vec()),
                0..9u64
            )
                .prop_map(|(id, address, zone, status, least)| MapChange::Node(
                    NodeRecord {
                        node_id: NodeId(id),
                        address,
                        zone,
                        status,
                        least_replica: ReplicaId(least),
                    }
                )),
            any::<u64>().prop_map(|id| MapChange::NodeGone(NodeId(id))),
            (
                any::<u32>(),
                ".{0,9}",
                prop::sample::select(layouts.to_vec()),
                (any::<u64>(), prop::option::of((1..u64::MAX, 1..u64::MAX))),
                (any::<u32>(), any::<bool>(), 0..=LAST_REDIS_DB),
            )
                .prop_map(|(id, name, partitioning, (revision, limits), rest)| {
                    let (replicas, colocated, redis_db) = rest;
                    let limits = limits
                        .map(|(max_age_ms, max_bytes)| HistoryLimits { max_age_ms, max_bytes });
                    MapChange::Keyspace(Keyspace {
                        keyspace_id: KeyspaceId(id),
                        name,
                        partitioning,
                        history: HistoryPolicy { revision, limits },
                        replicas,
                        colocated,
                        redis_db,
                    })
                }),
            any::<u32>().prop_map(|id| MapChange::KeyspaceGone(KeyspaceId(id))),
            any_shard().prop_map(MapChange::Shard),
            any::<u64>().prop_map(|id| MapChange::ShardGone(ShardId(id))),
        ]
    }

    proptest! {
        #[test]
        fn maps_and_deltas_survive_the_way_over_the_wire(version in any::<u64>(), number in 0u64..1000, changes in prop::collection::vec(any_change(), 0..8)) {
            let generation = Generation { number, nonce: u128::from(number) << 90 };
            let mut map = ShardMap { version: MapVersion(version), generation, ..Default::default() };
            for change in &changes { map.change(change.clone()); }
            let sent = shard_map_to(&map).encode_to_vec();
            let received = proto::ShardMap::decode(&sent[..]).unwrap();
            prop_assert_eq!(shard_map_from(received), Ok(map));

            let delta = MapDelta { version: MapVersion(version), changes };
            let sent = map_delta_to(&delta).encode_to_vec();
            let received = proto::MapDelta::decode(&sent[..]).unwrap();
            prop_assert_eq!(map_delta_from(received), Ok(delta));
        }
    }

    #[test]
    fn values_that_are_not_known_are_refused() {
        assert!(node_status_from(99).is_err());
        assert!(partitioning_from(-1).is_err());
        assert!(cluster_id_from(&[1, 2, 3]).is_err());
        let replica = proto::Replica { node_id: 1, replica_id: 1, role: 44 };
        assert!(replica_from(&replica).is_err());
        assert!(map_change_from(proto::MapChange { change: None }).is_err());
    }
}
