//! Taking a node out of the cluster for good.
//!
//! A removed node never comes back under its number. So it is refused while the node is alive or
//! holds replicas: `drain` empties a living node, `replace` one that is gone. By force it is done all
//! the same, and the planner rebuilds at once what the node held; but never where a shard would have
//! no majority without it.

use crate::command::{ControlError, ControlResponse};
use crate::state::ControlState;
use kvdb_model::{NodeId, NodeStatus, ShardId, ShardRecord};

/// Shards that a refusal names.
const MOST_NAMED: usize = 10;

impl ControlState {
    pub(crate) fn remove_node(
        &mut self,
        node: NodeId,
        force: bool,
    ) -> Result<ControlResponse, ControlError> {
        let status = self.map.nodes.get(&node).ok_or(ControlError::UnknownNode(node))?.status;
        if status == NodeStatus::Removed {
            return Ok(ControlResponse::Done(self.map.version));
        }
        let replicas = self.held_by(node).count() as u32;
        let lives =
            matches!(status, NodeStatus::Alive | NodeStatus::Suspect | NodeStatus::Unreachable);
        if !force && (lives || replicas > 0) {
            return Err(ControlError::NodeInUse { node, status, replicas });
        }
        if let Some(record) = self.map.nodes.get_mut(&node) {
            record.status = NodeStatus::Removed;
        }
        let lost = |record: &&ShardRecord| !self.map.has_majority(&record.descriptor);
        let lost = self.held_by(node).filter(lost).map(|record| record.descriptor.shard_id);
        let mut shards: Vec<ShardId> = lost.collect();
        if !shards.is_empty() {
            let more = shards.len().saturating_sub(MOST_NAMED) as u32;
            shards.truncate(MOST_NAMED);
            return Err(ControlError::NeededForMajority { node, shards, more });
        }
        self.wanted_leaders.retain(|_, wanted| *wanted != node);
        self.is_no_longer_awaited(node);
        Ok(ControlResponse::Done(self.map.version))
    }

    /// Shards with a replica on a node.
    pub(crate) fn held_by(&self, node: NodeId) -> impl Iterator<Item = &ShardRecord> {
        let shards = self.map.shards.values();
        shards.filter(move |record| record.descriptor.replica_on(node).is_some())
    }

    /// Whether a node was removed and holds nothing any more: it has no business here.
    pub fn is_dismissed(&self, node: NodeId) -> bool {
        let status = self.map.nodes.get(&node).map(|record| record.status);
        status == Some(NodeStatus::Removed) && self.held_by(node).next().is_none()
    }
}
