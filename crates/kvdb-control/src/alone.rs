//! Coordinators that have lost their majority for good: one of them goes on alone.
//!
//! It breaks what everything else here keeps: what the lost ones have decided and the survivor hasn't heard
//! is lost. So nobody does it but a person, and what follows is made safe without knowing what that was:
//!
//! - The survivor begins a new *generation* ([`Generation`]). Nodes, gateways and coordinators that have met it
//!   turn earlier ones away, so that the lost coordinators find nobody who listens, should they come back.
//! - Every number that the lost ones may have given out leaps: ids, and the version of the map.
//! - Nodes have heard of what was decided: each sends the last map that it has seen, and reports the shards that
//!   it leads, unknown ones too. Nothing is planned before all of them have, or are declared gone.
//! - Operations under way have ended: whether they had ended already nobody knows.
//!
//! Epochs and terms of shards don't leap: shards count them by themselves, and report.

use crate::command::{ControlError, ControlResponse, LedShard};
use crate::members::CoordinatorRecord;
use crate::operator::{OperatorKind, OperatorState};
use crate::state::ControlState;
use kvdb_model::{
    Generation, GenerationOrder, HistoryPolicy, Keyspace, KeyspaceId, MapChange, MapVersion,
    MembershipEpoch, NodeId, NodeRecord, NodeStatus, OperatorId, RangeEpoch, RecoveryPlan, Replica,
    ReplicaId, Role, ShardDescriptor, ShardId, ShardMap, ShardRecord, Term,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Further than the lost coordinators can have got since the survivor last heard them.
pub(crate) const LEAP: u64 = 1 << 20;
/// Coordinators have smaller numbers: the generation stands above them in the ids of their replicas.
pub(crate) const MOST_COORDINATOR_ID: u64 = u32::MAX as u64;

/// What the last recovery has left behind, and left to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovered {
    /// The generation that the survivor was of.
    pub(crate) before: Generation,
    /// The version of its map.
    pub(crate) version_before: MapVersion,
    /// Coordinators that the group went on without, in all recoveries.
    pub(crate) left_behind: BTreeSet<NodeId>,
    /// Nodes that have yet to report.
    pub(crate) awaited: BTreeSet<NodeId>,
}

/// A coordinator's replica of the group, in a generation.
pub(crate) fn replica_in(generation: &Generation, id: NodeId) -> Replica {
    let replica_id = ReplicaId((generation.number << 32) | id.0);
    Replica { node_id: id, replica_id, role: Role::Voter }
}

/// The number of the generation that a replica of the coordinators' group belongs to. It is ahead of that of the
/// state while a recovery isn't finished.
pub fn generation_of(replica: ReplicaId) -> u64 {
    replica.0 >> 32
}

/// The plan by which the coordinators' group goes on from one of them, which has got to `term`.
///
/// # Errors
/// It has no vote there, or a number that no replica could have.
pub fn plan_alone(
    group: &ShardDescriptor,
    id: NodeId,
    generation: &Generation,
    term: Term,
) -> Result<RecoveryPlan, String> {
    let survivor = group.replica_on(id).filter(|replica| replica.role != Role::Learner);
    let Some(survivor) = survivor else {
        return Err(format!(
            "coordinator {id} has no vote in the group: recover from one that has"
        ));
    };
    if id.0 > MOST_COORDINATOR_ID {
        return Err(format!(
            "coordinator {id} can't be recovered from: its number is above {MOST_COORDINATOR_ID}"
        ));
    }
    Ok(RecoveryPlan {
        survivor: survivor.replica_id,
        replica: replica_in(generation, id),
        membership_epoch: MembershipEpoch(group.membership_epoch.0 + LEAP),
        range_epoch: RangeEpoch(group.range_epoch.0 + LEAP),
        least_range_epoch: group.range_epoch,
        term: Term(term.0 + LEAP),
    })
}

impl ControlState {
    /// The generation of these coordinators.
    pub fn generation(&self) -> Generation {
        self.map.generation
    }

    /// Nodes that have yet to report since the coordinators were recovered. Nothing is planned before.
    pub fn awaited(&self) -> &BTreeSet<NodeId> {
        &self.recovered.awaited
    }

    /// Whether the group was recovered without a coordinator.
    pub fn is_left_behind(&self, id: NodeId) -> bool {
        self.recovered.left_behind.contains(&id)
    }

    /// Refuses what needs to know all nodes, while some have yet to report.
    pub(crate) fn check_all_reported(&self) -> Result<(), ControlError> {
        match self.recovered.awaited.is_empty() {
            true => Ok(()),
            false => {
                Err(ControlError::AwaitsNodes(self.recovered.awaited.iter().copied().collect()))
            }
        }
    }

    pub(crate) fn recover_alone(
        &mut self,
        id: NodeId,
        address: &str,
        token: u128,
        generation: Generation,
    ) -> Result<ControlResponse, ControlError> {
        match self.map.generation.compare(&generation) {
            // It came twice.
            GenerationOrder::Same => return Ok(ControlResponse::Done(self.map.version)),
            GenerationOrder::Foreign => {
                return Err(ControlError::OldGeneration {
                    known: self.map.generation,
                    told: generation,
                });
            }
            GenerationOrder::Newer => {}
        }
        self.recovered.before = self.map.generation;
        self.recovered.version_before = self.map.version;
        self.map.generation = generation;
        for (other, record) in &mut self.coordinators {
            if *other != id && !record.is_removed {
                record.is_removed = true;
                self.recovered.left_behind.insert(*other);
            }
        }
        // What its log holds at the end may have been to remove it.
        let known = self.coordinators.get(&id).cloned();
        let own = known.unwrap_or(CoordinatorRecord {
            address: address.to_owned(),
            token,
            is_removed: false,
        });
        self.coordinators.insert(id, CoordinatorRecord { is_removed: false, ..own });
        self.recovered.left_behind.remove(&id);
        self.leap();
        self.end_all_operators();
        self.wanted_leaders.clear();
        let nodes = self.map.nodes.values();
        let here = nodes.filter(|node| node.status != NodeStatus::Removed).map(|node| node.node_id);
        self.recovered.awaited = here.collect();
        Ok(ControlResponse::Done(self.map.version))
    }

    /// So that nothing is given out twice.
    fn leap(&mut self) {
        let counters = &mut self.counters;
        self.map.version = MapVersion(self.map.version.0 + LEAP);
        counters.next_node = NodeId(counters.next_node.0 + LEAP);
        counters.next_shard = ShardId(counters.next_shard.0 + LEAP);
        counters.next_replica = ReplicaId(counters.next_replica.0 + LEAP);
        counters.next_keyspace = KeyspaceId(counters.next_keyspace.0 + LEAP as u32);
        counters.next_operator = OperatorId(counters.next_operator.0 + LEAP);
        for keyspace in self.map.keyspaces.values_mut() {
            keyspace.history = leapt(keyspace.history);
        }
    }

    fn end_all_operators(&mut self) {
        let why = "the coordinators were recovered from one of them alone: look at what has become of it, and \
                   start it again if it is still wanted";
        let mut drained = Vec::new();
        for operator in self.operators.values_mut().filter(|operator| operator.is_running()) {
            operator.state = OperatorState::Failed(why.to_owned());
            // When that was nobody knows.
            operator.ended_ms = operator.started_ms.max(1);
            if let OperatorKind::Drain { node } = operator.kind {
                drained.push(node);
            }
        }
        for node in drained {
            if let Some(record) = self.map.nodes.get_mut(&node) {
                record.status = no_longer_drained(record.status);
            }
        }
    }

    /// A node has reported, or is declared gone.
    pub(crate) fn is_no_longer_awaited(&mut self, node: NodeId) {
        self.recovered.awaited.remove(&node);
    }

    /// What of a map that a node has seen before a recovery isn't known here; `None` if all of it is, or if
    /// it isn't the map that the lost coordinators went on with.
    pub fn news_in(&self, mut map: ShardMap) -> Option<ShardMap> {
        let recovered = &self.recovered;
        let is_later = map.cluster_id == self.map.cluster_id
            && map.generation == recovered.before
            && map.version > recovered.version_before
            && !recovered.awaited.is_empty();
        map.shards.retain(|id, record| self.map.shards.get(id) != Some(record));
        is_later.then_some(map)
    }

    /// Takes in what a node has heard from the lost coordinators. It is later than what the survivor had, and
    /// earlier than what nodes have reported since.
    pub(crate) fn take_map(&mut self, map: &ShardMap) -> Result<ControlResponse, ControlError> {
        let Some(map) = self.news_in(map.clone()) else {
            return Ok(ControlResponse::Done(self.map.version));
        };
        self.recovered.version_before = map.version;
        for (id, record) in map.nodes {
            let status = no_longer_drained(record.status);
            let is_known = self.map.nodes.contains_key(&id);
            if status == NodeStatus::Removed {
                self.recovered.awaited.remove(&id);
            } else if is_known && !self.recovered.awaited.contains(&id) {
                continue;
            } else {
                self.recovered.awaited.insert(id);
            }
            self.map.nodes.insert(id, NodeRecord { status, ..record });
        }
        for (id, keyspace) in map.keyspaces {
            let history = leapt(keyspace.history);
            self.map.keyspaces.insert(id, Keyspace { history, ..keyspace });
        }
        for (id, told) in map.shards {
            match self.map.shards.get_mut(&id) {
                Some(known) => fold_newer(known, &told),
                None => self.map.change(MapChange::Shard(told)),
            }
        }
        let (keyspaces, shards) = (&self.map.keyspaces, &mut self.map.shards);
        let is_there = |id| keyspaces.get(&id).is_some_and(|keyspace| !keyspace.is_dropped());
        shards.retain(|_, record| is_there(record.descriptor.keyspace_id));
        let shards = &self.map.shards;
        self.wanted_replicas.retain(|shard, _| shards.contains_key(shard));
        Ok(ControlResponse::Done(self.map.version))
    }

    /// A shard that nobody here has heard of is led by a node: the lost coordinators had it split off.
    pub(crate) fn adopt_shard(&mut self, node: NodeId, report: &LedShard) {
        let descriptor = &report.descriptor;
        let keyspace = self.map.keyspaces.get(&descriptor.keyspace_id);
        let is_lost = !self.recovered.awaited.is_empty()
            && !self.map.shards.contains_key(&descriptor.shard_id)
            && keyspace.is_some_and(|keyspace| !keyspace.is_dropped())
            && descriptor.replica_on(node).is_some();
        if is_lost {
            self.map.change(MapChange::Shard(ShardRecord {
                descriptor: descriptor.clone(),
                leader: Some(node),
                leader_term: report.term,
                creating: false,
            }));
        }
    }

    /// A node that the lost coordinators have given its number keeps it.
    pub(crate) fn adopt_node(
        &mut self,
        node: NodeId,
        token: u128,
    ) -> Result<ControlResponse, ControlError> {
        let is_lost = self.may_adopt(node, token);
        if self.tokens.get(&token) != Some(&node) {
            if !is_lost {
                return Err(ControlError::UnknownNode(node));
            }
            self.tokens.insert(token, node);
        }
        Ok(ControlResponse::Done(self.map.version))
    }

    /// Whether a node of this number and data directory may be one that only the lost coordinators knew.
    pub fn may_adopt(&self, node: NodeId, token: u128) -> bool {
        self.map.generation.number > 0
            && node.0 > 0
            && node < self.counters.next_node
            && !self.tokens.contains_key(&token)
            && self.token_of_node(node).is_none()
    }
}

/// The lost coordinators may have decided about it.
fn leapt(history: HistoryPolicy) -> HistoryPolicy {
    HistoryPolicy { revision: history.revision + LEAP, ..history }
}

/// The operation that drained it has ended.
fn no_longer_drained(status: NodeStatus) -> NodeStatus {
    if status == NodeStatus::Draining { NodeStatus::Alive } else { status }
}

fn fold_newer(known: &mut ShardRecord, told: &ShardRecord) {
    if told.descriptor.range_epoch > known.descriptor.range_epoch {
        known.descriptor.range = told.descriptor.range.clone();
        known.descriptor.range_epoch = told.descriptor.range_epoch;
    }
    if told.descriptor.membership_epoch > known.descriptor.membership_epoch {
        known.descriptor.replicas.clone_from(&told.descriptor.replicas);
        known.descriptor.membership_epoch = told.descriptor.membership_epoch;
    }
    if told.leader_term > known.leader_term {
        (known.leader, known.leader_term) = (told.leader, told.leader_term);
    }
    known.creating &= told.creating;
}
