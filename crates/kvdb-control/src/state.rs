//! The state, and what each command does to it.

use crate::command::{ControlCommand, ControlError, ControlResponse, LedShard, decode, encode};
use crate::operator::{Operator, OperatorKind, OperatorRequest, OperatorState};
use crate::placement::place_replicas;
use bytes::Bytes;
use kvdb_model::key::slot_start;
use kvdb_model::{
    HistoryLimits, HistoryPolicy, KeyRange, Keyspace, KeyspaceId, MapChange, MapDelta, MapVersion,
    MembershipEpoch, NodeId, NodeRecord, NodeStatus, OperatorId, Partitioning, RangeEpoch, Replica,
    ReplicaId, Role, SLOT_COUNT, ShardDescriptor, ShardId, ShardMap, ShardRecord, Term,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The keyspace that exists once shards were initialised.
const DEFAULT_KEYSPACE: KeyspaceId = KeyspaceId(1);

/// What never comes back: the next ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    map_version: MapVersion,
    cluster_id: kvdb_model::ClusterId,
    next_node: NodeId,
    pub(crate) next_shard: ShardId,
    pub(crate) next_replica: ReplicaId,
    next_keyspace: KeyspaceId,
    pub(crate) next_operator: OperatorId,
}

/// The cluster as the coordinators know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    pub(crate) map: ShardMap,
    pub(crate) counters: Counters,
    /// Which node a registration token belongs to.
    tokens: BTreeMap<u128, NodeId>,
    /// Where leadership is wanted.
    wanted_leaders: BTreeMap<ShardId, NodeId>,
    pub(crate) operators: BTreeMap<OperatorId, Operator>,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// For whoever proposed it.
    pub result: Result<ControlResponse, ControlError>,
    /// For watchers; `None` if the map is as before.
    pub delta: Option<MapDelta>,
    /// Records that changed; `None` for a removal.
    pub records: Vec<(Bytes, Option<Bytes>)>,
}

impl Default for ControlState {
    fn default() -> Self {
        ControlState {
            map: ShardMap::default(),
            counters: Counters {
                map_version: MapVersion(0),
                cluster_id: kvdb_model::ClusterId::UNKNOWN,
                next_node: NodeId(1),
                next_shard: ShardId(1),
                next_replica: ReplicaId(1),
                next_keyspace: KeyspaceId(1),
                next_operator: OperatorId(1),
            },
            tokens: BTreeMap::new(),
            wanted_leaders: BTreeMap::new(),
            operators: BTreeMap::new(),
        }
    }
}

const META: &[u8] = b"meta";
const NODE: u8 = b'n';
const KEYSPACE: u8 = b'k';
const SHARD: u8 = b's';
const TOKEN: u8 = b't';
const WANTED: u8 = b'w';
const OPERATOR: u8 = b'o';

fn record_key(kind: u8, id: &[u8]) -> Bytes {
    Bytes::from([&[kind], id].concat())
}

impl ControlState {
    /// The map.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// Where leadership is wanted and isn't yet.
    pub fn wanted_leaders(&self) -> &BTreeMap<ShardId, NodeId> {
        &self.wanted_leaders
    }

    /// Every record of the state.
    fn records(&self) -> BTreeMap<Bytes, Bytes> {
        let mut out = BTreeMap::from([(Bytes::from_static(META), encode(&self.counters))]);
        for (id, node) in &self.map.nodes {
            out.insert(record_key(NODE, &id.0.to_be_bytes()), encode(node));
        }
        for (id, keyspace) in &self.map.keyspaces {
            out.insert(record_key(KEYSPACE, &id.0.to_be_bytes()), encode(keyspace));
        }
        for (id, shard) in &self.map.shards {
            out.insert(record_key(SHARD, &id.0.to_be_bytes()), encode(shard));
        }
        for (token, node) in &self.tokens {
            out.insert(record_key(TOKEN, &token.to_be_bytes()), encode(node));
        }
        for (shard, node) in &self.wanted_leaders {
            out.insert(record_key(WANTED, &shard.0.to_be_bytes()), encode(node));
        }
        for (id, operator) in &self.operators {
            out.insert(record_key(OPERATOR, &id.0.to_be_bytes()), encode(operator));
        }
        out
    }

    /// Takes back one record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn load(&mut self, key: &Bytes, value: &Bytes) -> Result<(), String> {
        let unreadable = || format!("control record {} can't be read", key.escape_ascii());
        if key == META {
            self.counters = decode(value).map_err(|_| unreadable())?;
            self.map.version = self.counters.map_version;
            self.map.cluster_id = self.counters.cluster_id;
            return Ok(());
        }
        let Some((kind, id)) = key.split_first() else { return Err(unreadable()) };
        match *kind {
            NODE => self.map.change(MapChange::Node(decode(value).map_err(|_| unreadable())?)),
            KEYSPACE => {
                self.map.change(MapChange::Keyspace(decode(value).map_err(|_| unreadable())?));
            }
            SHARD => self.map.change(MapChange::Shard(decode(value).map_err(|_| unreadable())?)),
            TOKEN => {
                let token = id.try_into().map_err(|_| unreadable())?;
                let node = decode(value).map_err(|_| unreadable())?;
                self.tokens.insert(u128::from_be_bytes(token), node);
            }
            WANTED => {
                let shard = id.try_into().map_err(|_| unreadable())?;
                let node = decode(value).map_err(|_| unreadable())?;
                self.wanted_leaders.insert(ShardId(u64::from_be_bytes(shard)), node);
            }
            OPERATOR => {
                let operator: Operator = decode(value).map_err(|_| unreadable())?;
                self.operators.insert(operator.id, operator);
            }
            _ => return Err(unreadable()),
        }
        Ok(())
    }

    /// Whether a command would be carried out now.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self, command: &ControlCommand) -> Result<(), ControlError> {
        self.clone().carry_out(command).map(|_| ())
    }

    /// Applies a command. An invalid one changes nothing.
    pub fn apply(&mut self, command: &ControlCommand) -> Applied {
        let mut next = self.clone();
        let (response, changes) = match next.carry_out(command) {
            Ok(done) => done,
            Err(error) => return Applied { result: Err(error), delta: None, records: vec![] },
        };
        let mut delta = None;
        if !changes.is_empty() {
            let version = next.map.version.next();
            delta = Some(MapDelta { version, changes });
            next.map.version = version;
            next.counters.map_version = version;
            next.counters.cluster_id = next.map.cluster_id;
        }
        let records = self.changed_records(&next);
        *self = next;
        Applied { result: Ok(with_version(response, self.map.version)), delta, records }
    }

    /// The records in which another state differs from this one.
    pub fn changed_records(&self, next: &ControlState) -> Vec<(Bytes, Option<Bytes>)> {
        let (before, after) = (self.records(), next.records());
        let gone = before.keys().filter(|key| !after.contains_key(*key));
        let mut changed: Vec<_> = gone.map(|key| (key.clone(), None)).collect();
        changed.extend(
            after
                .into_iter()
                .filter(|(key, value)| before.get(key) != Some(value))
                .map(|(key, value)| (key, Some(value))),
        );
        changed
    }

    fn carry_out(
        &mut self,
        command: &ControlCommand,
    ) -> Result<(ControlResponse, Vec<MapChange>), ControlError> {
        let before = self.map.clone();
        let response = match command {
            ControlCommand::Bootstrap { cluster_id } => {
                if !self.map.cluster_id.is_known() {
                    self.map.cluster_id = *cluster_id;
                }
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::RegisterNode { token, address, zone } => {
                self.register(*token, address, zone)?
            }
            ControlCommand::ReportShards { node, led } => self.report(*node, led)?,
            ControlCommand::InitShards { shards, replication_factor } => {
                self.init_shards(*shards, *replication_factor)?
            }
            ControlCommand::CreateKeyspace {
                name,
                partitioning,
                shards,
                replication_factor,
                history,
            } => {
                check_history(history.as_ref())?;
                let made =
                    self.create_keyspace(name, *partitioning, *shards, *replication_factor)?;
                if history.is_some() {
                    self.set_history(name, *history)?;
                }
                made
            }
            ControlCommand::SetHistory { name, history } => {
                check_history(history.as_ref())?;
                self.set_history(name, *history)?
            }
            ControlCommand::DropKeyspace { name } => self.drop_keyspace(name)?,
            ControlCommand::SetNodeStatus { node, status } => {
                let record =
                    self.map.nodes.get_mut(node).ok_or(ControlError::UnknownNode(*node))?;
                if record.status == NodeStatus::Removed && *status != NodeStatus::Removed {
                    return Err(ControlError::NodeRemoved(*node));
                }
                record.status = *status;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::SetShardLeader { shard, node } => self.want_leader(*shard, *node)?,
            ControlCommand::StartOperator { request, reason, parent, now_ms, time_limit_ms } => {
                let id = self.start_operator(request, reason, *parent, *now_ms, *time_limit_ms)?;
                ControlResponse::OperatorStarted(id, self.map.version)
            }
            ControlCommand::CancelOperator { id, now_ms } => {
                self.end_operator(*id, OperatorState::Cancelled, *now_ms)?;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::FinishOperator { id, failure, now_ms } => {
                let state = failure.clone().map_or(OperatorState::Done, OperatorState::Failed);
                self.end_operator(*id, state, *now_ms)?;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::NoteStep { id, what, now_ms } => {
                self.note_step(*id, what, *now_ms)?;
                ControlResponse::Done(self.map.version)
            }
        };
        Ok((response, before.diff(&self.map)))
    }

    fn register(
        &mut self,
        token: u128,
        address: &str,
        zone: &str,
    ) -> Result<ControlResponse, ControlError> {
        check_address(address)?;
        let known = self.tokens.get(&token).copied();
        let taken = self.map.nodes.values().find(|node| {
            node.address == address
                && Some(node.node_id) != known
                && node.status != NodeStatus::Removed
                && !self.is_being_replaced(node.node_id)
        });
        if let Some(other) = taken {
            return Err(ControlError::AddressTaken(address.to_owned(), other.node_id));
        }
        let node_id = match known {
            Some(node) => node,
            None => {
                let node = self.counters.next_node;
                self.counters.next_node = node.next();
                self.tokens.insert(token, node);
                node
            }
        };
        let status = match self.map.nodes.get(&node_id).map(|node| node.status) {
            Some(NodeStatus::Removed) => return Err(ControlError::NodeRemoved(node_id)),
            Some(NodeStatus::Draining) => NodeStatus::Draining,
            _ => NodeStatus::Alive,
        };
        let (address, zone) = (address.to_owned(), zone.to_owned());
        self.map.change(MapChange::Node(NodeRecord { node_id, address, zone, status }));
        Ok(ControlResponse::Registered(node_id, self.map.version))
    }

    /// A machine whose disk is new comes back at its old address as another node.
    fn is_being_replaced(&self, node: NodeId) -> bool {
        self.running().any(|operator| operator.kind == OperatorKind::Replace { node })
    }

    /// Higher epochs win for the same shard; where ranges overlap the higher range epoch wins.
    fn report(&mut self, node: NodeId, led: &[LedShard]) -> Result<ControlResponse, ControlError> {
        if !self.map.nodes.contains_key(&node) {
            return Err(ControlError::UnknownNode(node));
        }
        for report in led {
            self.fold(node, report);
        }
        Ok(ControlResponse::Done(self.map.version))
    }

    fn fold(&mut self, node: NodeId, report: &LedShard) {
        let id = report.descriptor.shard_id;
        self.fold_split(&report.descriptor);
        let outranked = self.map.shards.values().any(|other| {
            other.descriptor.shard_id != id
                && other.descriptor.range.overlaps(&report.descriptor.range)
                && other.descriptor.range_epoch >= report.descriptor.range_epoch
        });
        let Some(record) = self.map.shards.get_mut(&id).filter(|_| !outranked) else { return };
        if report.descriptor.range_epoch > record.descriptor.range_epoch {
            record.descriptor.range = report.descriptor.range.clone();
            record.descriptor.range_epoch = report.descriptor.range_epoch;
        }
        if report.descriptor.membership_epoch > record.descriptor.membership_epoch {
            record.descriptor.replicas = report.descriptor.replicas.clone();
            record.descriptor.membership_epoch = report.descriptor.membership_epoch;
        }
        if report.term >= record.leader_term && record.descriptor.replica_on(node).is_some() {
            record.leader = Some(node);
            record.leader_term = report.term;
            record.creating = false;
            if self.wanted_leaders.get(&id) == Some(&node) {
                self.wanted_leaders.remove(&id);
            }
        }
    }

    /// The first word of a split, from either side, puts both into the map: no key is without a
    /// shard in between, and none has two.
    fn fold_split(&mut self, report: &ShardDescriptor) {
        let id = report.shard_id;
        let split = match self.map.shards.get(&id) {
            None => self.split_of(|_, plan| plan.child == id),
            Some(record) if report.range_epoch > record.descriptor.range_epoch => {
                self.split_of(|shard, plan| shard == id && plan.at == report.range.end)
            }
            Some(_) => None,
        };
        let Some((parent, plan)) = split else { return };
        let Some(record) = self.map.shards.get_mut(&parent) else { return };
        let Some((after, child)) = plan.apply_to(&record.descriptor) else { return };
        if after.range_epoch > report.range_epoch {
            return;
        }
        record.descriptor = after;
        self.map.change(MapChange::Shard(ShardRecord {
            descriptor: child,
            leader: None,
            leader_term: Term(0),
            creating: false,
        }));
    }

    /// As if an operator were done: for previews.
    pub(crate) fn pretend(&mut self, request: &OperatorRequest) {
        match request {
            OperatorRequest::Move { shard, from, to } => {
                if let Some(record) = self.map.shards.get_mut(shard) {
                    let replicas = &mut record.descriptor.replicas;
                    for replica in replicas.iter_mut().filter(|replica| replica.node_id == *from) {
                        replica.node_id = *to;
                    }
                    if record.leader == Some(*from) {
                        record.leader =
                            record.descriptor.replicas.first().map(|first| first.node_id);
                    }
                }
            }
            OperatorRequest::Lead { shard, node } => {
                if let Some(record) = self.map.shards.get_mut(shard) {
                    record.leader = Some(*node);
                }
            }
            _ => {}
        }
    }

    fn init_shards(&mut self, shards: u32, factor: u32) -> Result<ControlResponse, ControlError> {
        let existing = self
            .map
            .shards
            .values()
            .filter(|shard| shard.descriptor.keyspace_id == DEFAULT_KEYSPACE)
            .count() as u32;
        if self.map.keyspaces.contains_key(&DEFAULT_KEYSPACE) {
            // More than were asked for may have come about by splits.
            if existing >= shards {
                return Ok(ControlResponse::ShardsInitialised(false, self.map.version));
            }
            return Err(ControlError::AlreadyInitialised(existing));
        }
        self.make_keyspace("default", Partitioning::Hash, shards, factor)?;
        Ok(ControlResponse::ShardsInitialised(true, self.map.version))
    }

    fn create_keyspace(
        &mut self,
        name: &str,
        partitioning: Partitioning,
        shards: u32,
        factor: u32,
    ) -> Result<ControlResponse, ControlError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(ControlError::BadName(name.to_owned()));
        }
        if self.map.keyspace_named(name).is_some() || name == "default" {
            return Err(ControlError::KeyspaceExists(name.to_owned()));
        }
        if self.counters.next_keyspace == DEFAULT_KEYSPACE {
            // The first id is kept for `default`.
            self.counters.next_keyspace = DEFAULT_KEYSPACE.next();
        }
        let shards = match partitioning {
            Partitioning::Range => 1,
            Partitioning::Hash if shards == 0 => 8,
            Partitioning::Hash => shards,
        };
        let id = self.make_keyspace(name, partitioning, shards, factor)?;
        Ok(ControlResponse::KeyspaceCreated(id, self.map.version))
    }

    fn set_history(
        &mut self,
        name: &str,
        limits: Option<HistoryLimits>,
    ) -> Result<ControlResponse, ControlError> {
        let known = self.map.keyspace_named(name).filter(|known| !known.is_dropped()).cloned();
        let keyspace = known.ok_or_else(|| ControlError::UnknownKeyspace(name.to_owned()))?;
        if keyspace.history.limits != limits {
            let history = HistoryPolicy { revision: keyspace.history.revision + 1, limits };
            self.map.change(MapChange::Keyspace(Keyspace { history, ..keyspace }));
        }
        Ok(ControlResponse::Done(self.map.version))
    }

    /// The shards leave the map at once; nodes clean up when they hear that the keyspace is dropped.
    /// Operators of its shards fail by themselves, as for any shard that is gone.
    fn drop_keyspace(&mut self, name: &str) -> Result<ControlResponse, ControlError> {
        if name.is_empty() || name == "default" {
            return Err(ControlError::DefaultStays);
        }
        let known = self.map.keyspace_named(name).cloned();
        let keyspace = known.ok_or_else(|| ControlError::UnknownKeyspace(name.to_owned()))?;
        let id = keyspace.keyspace_id;
        self.map.shards.retain(|_, shard| shard.descriptor.keyspace_id != id);
        let shards = &self.map.shards;
        self.wanted_leaders.retain(|shard, _| shards.contains_key(shard));
        self.map.change(MapChange::Keyspace(Keyspace { name: String::new(), ..keyspace }));
        Ok(ControlResponse::Done(self.map.version))
    }

    fn make_keyspace(
        &mut self,
        name: &str,
        partitioning: Partitioning,
        shards: u32,
        factor: u32,
    ) -> Result<KeyspaceId, ControlError> {
        if shards == 0 || shards > u32::from(SLOT_COUNT) {
            return Err(ControlError::OutOfRange {
                field: "shards".to_owned(),
                value: shards.into(),
                accepted: format!("1 to {SLOT_COUNT}"),
            });
        }
        let nodes: Vec<NodeRecord> = self
            .map
            .nodes
            .values()
            .filter(|node| node.status == NodeStatus::Alive)
            .cloned()
            .collect();
        let alive = nodes.len() as u32;
        // An even number of replicas survives no more failures than one fewer.
        let usual = if alive >= 3 { 3 } else { alive.min(1) };
        let factor = if factor == 0 { usual } else { factor };
        if alive == 0 || factor > alive {
            return Err(ControlError::TooFewNodes { needed: factor.max(1), alive });
        }
        if factor > 7 {
            return Err(ControlError::OutOfRange {
                field: "replication_factor".to_owned(),
                value: factor.into(),
                accepted: "1 to 7".to_owned(),
            });
        }
        let keyspace_id =
            if name == "default" { DEFAULT_KEYSPACE } else { self.counters.next_keyspace };
        self.counters.next_keyspace = self.counters.next_keyspace.max(keyspace_id.next());
        let name = name.to_owned();
        let history = HistoryPolicy::default();
        self.map.change(MapChange::Keyspace(Keyspace { keyspace_id, name, partitioning, history }));
        let refs: Vec<&NodeRecord> = nodes.iter().collect();
        let placed =
            place_replicas(&refs, &self.replica_counts(), shards as usize, factor as usize);
        for (place, nodes) in placed.into_iter().enumerate() {
            let range = range_of(keyspace_id, partitioning, place as u32, shards);
            self.make_shard(keyspace_id, range, &nodes);
        }
        Ok(keyspace_id)
    }

    fn replica_counts(&self) -> BTreeMap<NodeId, usize> {
        let mut load = BTreeMap::new();
        for shard in self.map.shards.values() {
            for replica in &shard.descriptor.replicas {
                *load.entry(replica.node_id).or_default() += 1;
            }
        }
        load
    }

    fn make_shard(&mut self, keyspace_id: KeyspaceId, range: KeyRange, nodes: &[NodeId]) {
        let shard_id = self.counters.next_shard;
        self.counters.next_shard = shard_id.next();
        let mut replicas = Vec::with_capacity(nodes.len());
        for node_id in nodes {
            let replica_id = self.counters.next_replica;
            self.counters.next_replica = replica_id.next();
            replicas.push(Replica { node_id: *node_id, replica_id, role: Role::Voter });
        }
        let descriptor = ShardDescriptor {
            shard_id,
            keyspace_id,
            range,
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(1),
            replicas,
        };
        self.map.change(MapChange::Shard(ShardRecord {
            descriptor,
            leader: None,
            leader_term: Term(0),
            creating: true,
        }));
    }

    fn want_leader(
        &mut self,
        shard: ShardId,
        node: NodeId,
    ) -> Result<ControlResponse, ControlError> {
        let record = self.map.shards.get(&shard).ok_or(ControlError::UnknownShard(shard))?;
        if !self.map.nodes.contains_key(&node) {
            return Err(ControlError::UnknownNode(node));
        }
        let votes =
            record.descriptor.replica_on(node).is_some_and(|replica| replica.role == Role::Voter);
        if !votes {
            let on: BTreeSet<NodeId> =
                record.descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            return Err(ControlError::NotAReplica { shard, node, on: on.into_iter().collect() });
        }
        if record.leader == Some(node) {
            self.wanted_leaders.remove(&shard);
        } else {
            self.wanted_leaders.insert(shard, node);
        }
        Ok(ControlResponse::Done(self.map.version))
    }
}

fn with_version(response: ControlResponse, version: MapVersion) -> ControlResponse {
    match response {
        ControlResponse::Done(_) => ControlResponse::Done(version),
        ControlResponse::Registered(node, _) => ControlResponse::Registered(node, version),
        ControlResponse::ShardsInitialised(made, _) => {
            ControlResponse::ShardsInitialised(made, version)
        }
        ControlResponse::KeyspaceCreated(id, _) => ControlResponse::KeyspaceCreated(id, version),
        ControlResponse::OperatorStarted(id, _) => ControlResponse::OperatorStarted(id, version),
    }
}

fn check_history(history: Option<&HistoryLimits>) -> Result<(), ControlError> {
    match history.and_then(HistoryLimits::problem) {
        Some((field, value, accepted)) => {
            Err(ControlError::OutOfRange { field: field.to_owned(), value, accepted })
        }
        None => Ok(()),
    }
}

/// One of `count` equal parts of a keyspace.
fn range_of(id: KeyspaceId, partitioning: Partitioning, place: u32, count: u32) -> KeyRange {
    let whole = KeyRange::of_keyspace(id);
    if partitioning == Partitioning::Range {
        return whole;
    }
    let slot = |place: u32| (u64::from(place) * u64::from(SLOT_COUNT) / u64::from(count)) as u16;
    let start = if place == 0 { whole.start } else { slot_start(id, slot(place)) };
    let end = if place + 1 == count { whole.end } else { slot_start(id, slot(place + 1)) };
    KeyRange { start, end }
}

fn check_address(address: &str) -> Result<(), ControlError> {
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && host.len() <= 255
            && !host.contains(char::is_whitespace)
            && !host.contains('/')
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if good { Ok(()) } else { Err(ControlError::BadAddress(address.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ClusterId;
    use proptest::prelude::*;

    fn register(state: &mut ControlState, token: u128) -> NodeId {
        let command = ControlCommand::RegisterNode {
            token,
            address: format!("127.0.0.1:{}", 7000 + token),
            zone: String::new(),
        };
        match state.apply(&command).result {
            Ok(ControlResponse::Registered(node, _)) => node,
            other => panic!("{other:?}"),
        }
    }

    fn initialised(nodes: u128, shards: u32) -> ControlState {
        let mut state = ControlState::default();
        for token in 1..=nodes {
            register(&mut state, token);
        }
        let command = ControlCommand::InitShards { shards, replication_factor: 0 };
        state.apply(&command).result.unwrap();
        state
    }

    #[test]
    fn shards_cover_the_keyspace_without_gap_or_overlap() {
        for count in [1, 2, 3, 7, 8, 100, 16384] {
            let state = initialised(3, count);
            let whole = KeyRange::of_keyspace(DEFAULT_KEYSPACE);
            let shards = state.map().shards_in(&whole);
            assert_eq!(shards.len(), count as usize);
            assert_eq!(shards[0].descriptor.range.start, whole.start);
            assert_eq!(shards[shards.len() - 1].descriptor.range.end, whole.end);
            for pair in shards.windows(2) {
                assert_eq!(pair[0].descriptor.range.end, pair[1].descriptor.range.start);
            }
        }
    }

    #[test]
    fn a_token_is_one_node_and_an_address_too() {
        let mut state = ControlState::default();
        let first = register(&mut state, 1);
        let version = state.map().version;
        assert_eq!(register(&mut state, 1), first);
        assert_eq!(state.map().version, version);
        let command = ControlCommand::RegisterNode {
            token: 2,
            address: "127.0.0.1:7001".into(),
            zone: String::new(),
        };
        let applied = state.apply(&command);
        assert_eq!(applied.result, Err(ControlError::AddressTaken("127.0.0.1:7001".into(), first)));
        assert_eq!(state.map().version, version);
    }

    #[test]
    fn initialising_twice_is_fine_and_with_more_shards_is_not() {
        let mut state = initialised(3, 8);
        let version = state.map().version;
        let mut again = |shards| {
            state.apply(&ControlCommand::InitShards { shards, replication_factor: 0 }).result
        };
        assert_eq!(again(8), Ok(ControlResponse::ShardsInitialised(false, version)));
        assert_eq!(again(9), Err(ControlError::AlreadyInitialised(8)));
    }

    #[test]
    fn a_stale_report_changes_nothing_and_a_newer_one_does() {
        let mut state = initialised(3, 1);
        let descriptor = state.map().shards[&ShardId(1)].descriptor.clone();
        let report = |state: &mut ControlState, node, term| {
            let led = vec![LedShard { descriptor: descriptor.clone(), term: Term(term) }];
            state.apply(&ControlCommand::ReportShards { node: NodeId(node), led })
        };
        report(&mut state, 2, 7).result.unwrap();
        let record = &state.map().shards[&ShardId(1)];
        assert_eq!((record.leader, record.creating), (Some(NodeId(2)), false));
        assert!(report(&mut state, 3, 6).delta.is_none());
        assert_eq!(state.map().shards[&ShardId(1)].leader, Some(NodeId(2)));
        assert!(report(&mut state, 3, 8).delta.is_some());
    }

    #[test]
    fn a_dropped_keyspace_takes_its_shards_along_and_frees_its_name_not_its_id() {
        let mut state = initialised(3, 2);
        let create = ControlCommand::CreateKeyspace {
            name: "k".into(),
            partitioning: Partitioning::Hash,
            shards: 3,
            replication_factor: 0,
            history: None,
        };
        let drop = |name: &str| ControlCommand::DropKeyspace { name: name.into() };
        let Ok(ControlResponse::KeyspaceCreated(id, _)) = state.apply(&create).result else {
            panic!("it is new");
        };
        assert_eq!(state.map().shards.len(), 5);
        let descriptor = state
            .map()
            .shards
            .values()
            .find(|shard| shard.descriptor.keyspace_id == id)
            .map(|shard| shard.descriptor.clone())
            .unwrap();
        state.apply(&drop("k")).result.unwrap();
        assert_eq!(state.map().shards.len(), 2);
        assert!(state.map().keyspaces[&id].is_dropped());
        assert_eq!(state.apply(&drop("k")).result, Err(ControlError::UnknownKeyspace("k".into())));
        for kept in ["", "default"] {
            assert_eq!(state.apply(&drop(kept)).result, Err(ControlError::DefaultStays));
        }
        // A leader that hasn't heard of it yet can't bring a shard back.
        let led = vec![LedShard { descriptor, term: Term(9) }];
        state.apply(&ControlCommand::ReportShards { node: NodeId(1), led }).result.unwrap();
        assert_eq!(state.map().shards.len(), 2);
        let Ok(ControlResponse::KeyspaceCreated(next, _)) = state.apply(&create).result else {
            panic!("the name is free");
        };
        assert!(next > id);
    }

    #[test]
    fn the_history_of_a_keyspace_is_set_within_bounds_and_each_decision_has_a_number() {
        let mut state = initialised(3, 1);
        let limits = HistoryLimits { max_age_ms: 5000, max_bytes: 2 << 20 };
        let create = ControlCommand::CreateKeyspace {
            name: "k".into(),
            partitioning: Partitioning::Hash,
            shards: 2,
            replication_factor: 0,
            history: Some(limits),
        };
        assert!(matches!(state.apply(&create).result, Ok(ControlResponse::KeyspaceCreated(..))));
        let policy = |state: &ControlState, name: &str| {
            state.map().keyspace_named(name).map(|known| known.history).unwrap()
        };
        assert_eq!(policy(&state, "k"), HistoryPolicy { revision: 1, limits: Some(limits) });
        let mut set = |name: &str, history| {
            let name = name.to_owned();
            state.apply(&ControlCommand::SetHistory { name, history }).result
        };
        let short = HistoryLimits { max_age_ms: 999, ..limits };
        let large = HistoryLimits { max_bytes: (256 << 20) + 1, ..limits };
        for bad in [short, large] {
            assert!(matches!(set("k", Some(bad)), Err(ControlError::OutOfRange { .. })), "{bad:?}");
        }
        assert_eq!(set("x", None), Err(ControlError::UnknownKeyspace("x".into())));
        for (name, history) in [("k", Some(limits)), ("k", None), ("", Some(limits))] {
            set(name, history).unwrap();
        }
        assert_eq!(policy(&state, "k"), HistoryPolicy { revision: 2, limits: None });
        assert_eq!(policy(&state, "default").limits, Some(limits));
    }

    #[test]
    fn a_wanted_leader_must_hold_a_vote_and_is_forgotten_once_it_leads() {
        let mut state = initialised(3, 1);
        register(&mut state, 9);
        let want = |node| ControlCommand::SetShardLeader { shard: ShardId(1), node: NodeId(node) };
        assert!(matches!(state.apply(&want(4)).result, Err(ControlError::NotAReplica { .. })));
        assert!(matches!(state.apply(&want(77)).result, Err(ControlError::UnknownNode(_))));
        state.apply(&want(2)).result.unwrap();
        assert_eq!(state.wanted_leaders()[&ShardId(1)], NodeId(2));
        let descriptor = state.map().shards[&ShardId(1)].descriptor.clone();
        let led = vec![LedShard { descriptor, term: Term(9) }];
        state.apply(&ControlCommand::ReportShards { node: NodeId(2), led }).result.unwrap();
        assert!(state.wanted_leaders().is_empty());
    }

    fn any_command() -> impl Strategy<Value = ControlCommand> {
        prop_oneof![
            any::<u128>().prop_map(|id| ControlCommand::Bootstrap { cluster_id: ClusterId(id) }),
            (0u128..6, "(127.0.0.1:70[0-9]{2}|bad|:1|host:0)", "[ab]?").prop_map(
                |(token, address, zone)| ControlCommand::RegisterNode { token, address, zone }
            ),
            (0u32..20, 0u32..5).prop_map(|(shards, replication_factor)| {
                ControlCommand::InitShards { shards, replication_factor }
            }),
            ("[a-c]{0,2}", any::<bool>(), 0u32..5).prop_map(|(name, range, shards)| {
                let partitioning = if range { Partitioning::Range } else { Partitioning::Hash };
                let (replication_factor, history) = (0, None);
                ControlCommand::CreateKeyspace {
                    name,
                    partitioning,
                    shards,
                    replication_factor,
                    history,
                }
            }),
            ("[a-c]{0,2}", prop::option::of(900u64..2000)).prop_map(|(name, age)| {
                let history =
                    age.map(|max_age_ms| HistoryLimits { max_age_ms, max_bytes: 1 << 20 });
                ControlCommand::SetHistory { name, history }
            }),
            "[a-c]{0,2}".prop_map(|name| ControlCommand::DropKeyspace { name }),
            (0u64..6, 0u8..5).prop_map(|(node, status)| ControlCommand::SetNodeStatus {
                node: NodeId(node),
                status: [
                    NodeStatus::Alive,
                    NodeStatus::Suspect,
                    NodeStatus::Dead,
                    NodeStatus::Draining,
                    NodeStatus::Removed
                ][usize::from(status)],
            }),
            (0u64..6, 0u64..6).prop_map(|(shard, node)| ControlCommand::SetShardLeader {
                shard: ShardId(shard),
                node: NodeId(node),
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_and_deltas_both_lead_to_the_state(commands in prop::collection::vec(any_command(), 0..40)) {
            let mut state = ControlState::default();
            let mut records: BTreeMap<Bytes, Bytes> = BTreeMap::new();
            let mut follower = ShardMap::default();
            for command in commands {
                let command = ControlCommand::decode(&command.to_bytes()).unwrap();
                let before = state.clone();
                let valid = state.validate(&command);
                let applied = state.apply(&command);
                prop_assert_eq!(valid.is_ok(), applied.result.is_ok());
                if applied.result.is_err() {
                    prop_assert_eq!(&state, &before);
                }
                for (key, value) in applied.records {
                    match value {
                        Some(value) => { records.insert(key, value); }
                        None => { records.remove(&key); }
                    }
                }
                if let Some(delta) = applied.delta {
                    follower.apply(&delta).unwrap();
                }
                prop_assert_eq!(&follower, state.map());
            }
            let mut loaded = ControlState::default();
            for (key, value) in &records {
                loaded.load(key, value).unwrap();
            }
            prop_assert_eq!(loaded, state);
        }

        #[test]
        fn junk_commands_never_panic(junk in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = ControlCommand::decode(&junk);
            let _ = crate::decode_result(&junk);
        }
    }
}
