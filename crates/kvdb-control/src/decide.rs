//! What a request becomes: checked against the state, with ids given.

use crate::command::ControlError;
use crate::operator::{OperatorKind, OperatorRequest};
use crate::state::ControlState;
use bytes::Bytes;
use kvdb_model::task::left;
use kvdb_model::{
    NodeId, NodeStatus, Partitioning, Replica, Role, SLOT_COUNT, ShardDescriptor, ShardId,
    SplitPlan, key::slot_start,
};
use std::collections::BTreeSet;

/// Most replicas of a shard.
const MOST_REPLICAS: usize = 7;

impl ControlState {
    pub(crate) fn decide(
        &mut self,
        request: &OperatorRequest,
    ) -> Result<OperatorKind, ControlError> {
        match request {
            OperatorRequest::SetReplicas { shard, nodes, membership_epoch } => {
                if self.map.shards.contains_key(shard) {
                    self.may_be_named(*shard, nodes)?;
                }
                let descriptor = self.free_shard(*shard)?;
                let current = descriptor.membership_epoch;
                if membership_epoch.is_some_and(|seen| seen != current) {
                    return Err(ControlError::StaleEpoch { shard: *shard, current });
                }
                let kind = self.new_replicas(&descriptor, nodes)?;
                // More or fewer than its keyspace says, because somebody wants it so.
                self.set_wanted(&descriptor, nodes.len() as u32);
                Ok(kind)
            }
            OperatorRequest::Restore { shard, nodes } => {
                let descriptor = self.free_shard(*shard)?;
                self.new_replicas(&descriptor, nodes)
            }
            OperatorRequest::ForceRecover { shard, from, gone } => {
                self.plan_recovery(*shard, *from, gone)
            }
            OperatorRequest::Move { shard, from, to } => {
                let descriptor = self.free_shard(*shard)?;
                let on: Vec<NodeId> =
                    descriptor.replicas.iter().map(|replica| replica.node_id).collect();
                if !on.contains(from) {
                    return Err(ControlError::NotAReplica { shard: *shard, node: *from, on });
                }
                if on.contains(to) {
                    return Err(ControlError::ReplicaThere { shard: *shard, node: *to });
                }
                let nodes: Vec<NodeId> =
                    on.iter().map(|node| if node == from { *to } else { *node }).collect();
                self.new_replicas(&descriptor, &nodes)
            }
            OperatorRequest::Lead { shard, node } => {
                let descriptor = self.free_shard(*shard)?;
                let replica = descriptor.replica_on(*node);
                let Some(to) = replica.filter(|replica| replica.role == Role::Voter) else {
                    let on = descriptor.replicas.iter().map(|replica| replica.node_id).collect();
                    return Err(ControlError::NotAReplica { shard: *shard, node: *node, on });
                };
                self.may_lead(*node)?;
                Ok(OperatorKind::Lead { shard: *shard, to: *to })
            }
            OperatorRequest::Split { shard, at } => {
                let descriptor = self.free_shard(*shard)?;
                self.plan_split(&descriptor, at.as_ref())
            }
            OperatorRequest::SplitAt { shard, at } => {
                let descriptor = self.free_shard(*shard)?;
                let keyspace = descriptor.keyspace_id;
                let known = self.map.keyspaces.get(&keyspace);
                let is_hash = known.is_some_and(|known| known.partitioning == Partitioning::Hash);
                let begins_slot = slot_at(at).map(|slot| slot_start(keyspace, slot));
                if is_hash && begins_slot.as_ref() != Some(at) {
                    let why = "in a hash keyspace it is split between slots".to_owned();
                    return Err(ControlError::NotSplittable { shard: *shard, why });
                }
                self.plan_split_at(&descriptor, at.clone())
            }
            OperatorRequest::Drain { node } => {
                self.may_be_emptied(*node)?;
                Ok(OperatorKind::Drain { node: *node })
            }
            OperatorRequest::Replace { node } => {
                self.may_be_emptied(*node)?;
                Ok(OperatorKind::Replace { node: *node })
            }
            OperatorRequest::Rebalance => {
                let running = self.running().find(|other| other.kind == OperatorKind::Rebalance);
                match running {
                    Some(other) => Err(ControlError::AlreadyUnderWay(other.id)),
                    None => Ok(OperatorKind::Rebalance),
                }
            }
        }
    }

    /// A shard that no other operator changes.
    pub(crate) fn free_shard(&self, shard: ShardId) -> Result<ShardDescriptor, ControlError> {
        let record = self.map.shards.get(&shard).ok_or(ControlError::UnknownShard(shard))?;
        if let Some(other) = self.running_on(shard) {
            return Err(ControlError::ShardBusy { shard, operator: other.id });
        }
        if record.creating {
            return Err(ControlError::ShardNotReady(shard));
        }
        Ok(record.descriptor.clone())
    }

    /// One that is gone can't.
    pub(crate) fn may_lead(&self, node: NodeId) -> Result<(), ControlError> {
        let record = self.map.nodes.get(&node).ok_or(ControlError::UnknownNode(node))?;
        match record.status {
            NodeStatus::Removed => Err(ControlError::NodeRemoved(node)),
            _ => Ok(()),
        }
    }

    fn may_be_emptied(&self, node: NodeId) -> Result<(), ControlError> {
        let record = self.map.nodes.get(&node).ok_or(ControlError::UnknownNode(node))?;
        if record.status == NodeStatus::Removed {
            return Err(ControlError::NodeRemoved(node));
        }
        match self.running().find(|other| other.kind.empties() == Some(node)) {
            Some(other) => Err(ControlError::AlreadyUnderWay(other.id)),
            None => Ok(()),
        }
    }

    /// Whether a shard could ever be on these nodes. What makes no sense is said first, whatever is
    /// done to the shard at the moment.
    fn may_be_named(&self, shard: ShardId, nodes: &[NodeId]) -> Result<(), ControlError> {
        if nodes.is_empty() || nodes.len() > MOST_REPLICAS {
            return Err(ControlError::OutOfRange {
                field: "nodes".to_owned(),
                value: nodes.len() as u64,
                accepted: format!("1 to {MOST_REPLICAS}"),
            });
        }
        let distinct: BTreeSet<&NodeId> = nodes.iter().collect();
        if distinct.len() < nodes.len() {
            return Err(ControlError::DuplicateNode { shard });
        }
        match nodes.iter().find(|node| !self.map.nodes.contains_key(node)) {
            Some(unknown) => Err(ControlError::UnknownNode(*unknown)),
            None => Ok(()),
        }
    }

    pub(crate) fn new_replicas(
        &mut self,
        descriptor: &ShardDescriptor,
        nodes: &[NodeId],
    ) -> Result<OperatorKind, ControlError> {
        let shard = descriptor.shard_id;
        self.may_be_named(shard, nodes)?;
        let distinct: BTreeSet<&NodeId> = nodes.iter().collect();
        let current = left(&descriptor.replicas);
        for node in nodes {
            let record = self.map.nodes.get(node).ok_or(ControlError::UnknownNode(*node))?;
            let stays = current.iter().any(|replica| replica.node_id == *node);
            if !stays && record.status != NodeStatus::Alive {
                return Err(ControlError::NodeUnusable { node: *node, status: record.status });
            }
        }
        let on: BTreeSet<&NodeId> = current.iter().map(|replica| &replica.node_id).collect();
        if on == distinct && current.len() == descriptor.replicas.len() {
            return Err(ControlError::NothingToDo(format!(
                "shard {shard} is on these nodes already"
            )));
        }
        let mut goal = Vec::with_capacity(nodes.len());
        for node in nodes {
            let there = current.iter().find(|replica| replica.node_id == *node);
            let replica_id = match there {
                Some(replica) => replica.replica_id,
                None => {
                    let id = self.counters.next_replica;
                    self.counters.next_replica = id.next();
                    id
                }
            };
            goal.push(Replica { node_id: *node, replica_id, role: Role::Voter });
        }
        goal.sort_by_key(|replica| replica.replica_id);
        Ok(OperatorKind::Replicas { shard, from: descriptor.replicas.clone(), goal })
    }

    fn plan_split(
        &mut self,
        descriptor: &ShardDescriptor,
        at: Option<&Bytes>,
    ) -> Result<OperatorKind, ControlError> {
        let shard = descriptor.shard_id;
        let keyspace = descriptor.keyspace_id;
        let partitioning = match self.map.keyspaces.get(&keyspace) {
            Some(keyspace) => keyspace.partitioning,
            None => return Err(ControlError::UnknownShard(shard)),
        };
        let range = &descriptor.range;
        let at = match (partitioning, at) {
            (Partitioning::Range, Some(key)) => partitioning.routing_key(keyspace, key),
            (Partitioning::Range, None) => {
                let why = "in a range keyspace the key must be given (--at KEY)";
                return Err(ControlError::NotSplittable { shard, why: why.to_owned() });
            }
            (Partitioning::Hash, Some(key)) => slot_start(keyspace, kvdb_model::slot_of(key)),
            (Partitioning::Hash, None) => {
                let first = slot_at(&range.start).unwrap_or(0);
                let end = slot_at(&range.end)
                    .filter(|_| range.end.starts_with(&keyspace.0.to_be_bytes()))
                    .unwrap_or(SLOT_COUNT);
                if end.saturating_sub(first) < 2 {
                    let why = "it has a single slot; keys of one slot stay together";
                    return Err(ControlError::NotSplittable { shard, why: why.to_owned() });
                }
                slot_start(keyspace, first + (end - first) / 2)
            }
        };
        self.plan_split_at(descriptor, at)
    }

    fn plan_split_at(
        &mut self,
        descriptor: &ShardDescriptor,
        at: Bytes,
    ) -> Result<OperatorKind, ControlError> {
        let shard = descriptor.shard_id;
        if let Some(colocated) = self.colocated(descriptor.keyspace_id) {
            return Err(ControlError::Colocated(colocated.name.clone()));
        }
        let range = &descriptor.range;
        if !range.contains(&at) || range.start == at {
            let why = "the key is not strictly inside the shard's range".to_owned();
            return Err(ControlError::NotSplittable { shard, why });
        }
        if descriptor.replicas.iter().any(|replica| replica.role != Role::Voter) {
            return Err(ControlError::ShardNotReady(shard));
        }
        // One that was called off may still be on its way through the shard's log. Under another id
        // for the same child nobody could tell which of the two was born.
        let same = |of: ShardId, plan: &SplitPlan| {
            of == shard && plan.at == at && plan.membership_epoch == descriptor.membership_epoch
        };
        if let Some((_, plan)) = self.split_of(same) {
            return Ok(OperatorKind::Split { shard, plan });
        }
        let child = self.counters.next_shard;
        self.counters.next_shard = child.next();
        let mut replicas = Vec::with_capacity(descriptor.replicas.len());
        for replica in &descriptor.replicas {
            let replica_id = self.counters.next_replica;
            self.counters.next_replica = replica_id.next();
            replicas.push(Replica { node_id: replica.node_id, replica_id, role: Role::Voter });
        }
        let membership_epoch = descriptor.membership_epoch;
        let plan = SplitPlan { at, child, replicas, membership_epoch };
        Ok(OperatorKind::Split { shard, plan })
    }

    /// The split that a child comes from, or that made its parent end at a key: the newest, since
    /// an older one with another plan for the same key is for replicas that the shard had left.
    pub(crate) fn split_of(
        &self,
        is_it: impl Fn(ShardId, &SplitPlan) -> bool,
    ) -> Option<(ShardId, SplitPlan)> {
        self.operators.values().rev().find_map(|operator| match &operator.kind {
            OperatorKind::Split { shard, plan } if is_it(*shard, plan) => {
                Some((*shard, plan.clone()))
            }
            _ => None,
        })
    }
}

/// The slot that a bound of a hash keyspace names.
fn slot_at(bound: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(*bound.get(4..)?.first_chunk()?))
}
