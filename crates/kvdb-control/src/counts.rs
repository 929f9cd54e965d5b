//! How many replicas shards are to have, and which have fewer.
//!
//! The wanted number is a property of the keyspace. A single shard has another one where an
//! administrator has asked for it (`set-replicas`), or where it lost more than that by force. What
//! is missing is made up for by the planner whenever there are nodes for it.

use crate::balance;
use crate::standings::Loads;
use crate::state::ControlState;
use kvdb_model::{
    NodeId, NodeStatus, Replica, ReplicaId, Role, ShardDescriptor, ShardId, ShardRecord,
};

/// Wanted where nothing was said.
pub(crate) const USUAL_REPLICAS: u32 = 3;

/// A shard with fewer replicas than it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The shard.
    pub shard: ShardId,
    /// Voting replicas on nodes that are there.
    pub replicas: u32,
    /// How many it is to have.
    pub wanted: u32,
}

impl ControlState {
    /// How many replicas a shard is to have.
    pub(crate) fn wanted(&self, descriptor: &ShardDescriptor) -> u32 {
        let own = self.wanted_replicas.get(&descriptor.shard_id).copied();
        own.unwrap_or_else(|| self.wanted_by_keyspace(descriptor))
    }

    fn wanted_by_keyspace(&self, descriptor: &ShardDescriptor) -> u32 {
        self.map.keyspaces.get(&descriptor.keyspace_id).map_or(1, |known| known.replicas.max(1))
    }

    /// Sets how many replicas a shard is to have, whatever its keyspace says.
    pub(crate) fn set_wanted(&mut self, descriptor: &ShardDescriptor, count: u32) {
        if count == self.wanted_by_keyspace(descriptor) {
            self.wanted_replicas.remove(&descriptor.shard_id);
        } else {
            self.wanted_replicas.insert(descriptor.shard_id, count);
        }
    }

    /// Whether a node may still answer, as far as its status tells.
    fn is_there(&self, node: NodeId) -> bool {
        let status = self.map.nodes.get(&node).map(|record| record.status);
        !matches!(status, None | Some(NodeStatus::Dead | NodeStatus::Removed))
    }

    /// Shards that have fewer replicas on nodes that are there than they are to have.
    pub fn shortages(&self) -> Vec<Shortage> {
        let of = |record: &ShardRecord| {
            let descriptor = &record.descriptor;
            let votes = |replica: &&Replica| {
                matches!(replica.role, Role::Voter | Role::Incoming)
                    && self.is_there(replica.node_id)
                    && self.map.takes_part(replica)
            };
            let replicas = descriptor.replicas.iter().filter(votes).count() as u32;
            let wanted = self.wanted(descriptor);
            (replicas < wanted).then_some(Shortage { shard: descriptor.shard_id, replicas, wanted })
        };
        self.map.shards.values().filter_map(of).collect()
    }

    /// Shards that could get more replicas: they lack some, have a majority, and nothing changes
    /// them now.
    pub(crate) fn short_shards(&self) -> Vec<ShardId> {
        let is_short = |record: &&ShardRecord| {
            let descriptor = &record.descriptor;
            descriptor.replicas.len() < self.wanted(descriptor) as usize
                && record.leader.is_some()
                && !record.creating
                && self.map.has_majority(descriptor)
                && self.running_on(descriptor.shard_id).is_none()
        };
        let shards = self.map.shards.values().filter(is_short);
        shards.map(|record| record.descriptor.shard_id).collect()
    }

    /// The nodes of a shard's replicas, with more of those that may take one as far as it is to have
    /// more replicas.
    pub(crate) fn fuller(
        &self,
        loads: &Loads,
        descriptor: &ShardDescriptor,
        may: &dyn Fn(NodeId) -> bool,
    ) -> Vec<NodeId> {
        let wanted = self.wanted(descriptor) as usize;
        let mut with = descriptor.clone();
        while with.replicas.len() < wanted
            && let Some(node_id) = balance::target(self, loads, &with, NodeId(0), may)
        {
            // Only its node counts here.
            let replica_id = ReplicaId(u64::MAX);
            with.replicas.push(Replica { node_id, replica_id, role: Role::Voter });
        }
        with.replicas.iter().map(|replica| replica.node_id).collect()
    }
}
