//! What the leading coordinator has heard of single replicas: kept in its memory alone, and
//! forgotten when it no longer leads.
//!
//! Bounded by the map: only what is told of a replica that the map knows is kept, one report each.

use kvdb_model::{
    LogIndex, LogPosition, NodeId, RangeEpoch, ReplicaId, ShardId, ShardMap, Version,
};
use std::collections::BTreeMap;

/// How a replica was when it was last heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The replica.
    pub replica: ReplicaId,
    /// The last entry applied.
    pub applied: LogIndex,
    /// The last entry in its log.
    pub last: LogPosition,
    /// The highest version applied.
    pub version: Version,
    /// The shard's range epoch, as applied.
    pub range_epoch: RangeEpoch,
    /// Its state is lost, or hasn't come yet.
    pub awaits_snapshot: bool,
}

/// All that was heard.
#[derive(Debug, Default)]
pub struct Standings {
    reports: BTreeMap<ShardId, BTreeMap<NodeId, ReplicaReport>>,
}

impl Standings {
    /// A new leader knows nothing.
    pub fn reset(&mut self) {
        self.reports.clear();
    }

    /// A node tells of a replica.
    pub fn heard(&mut self, map: &ShardMap, shard: ShardId, node: NodeId, report: ReplicaReport) {
        let known = map.shards.get(&shard).and_then(|record| record.descriptor.replica_on(node));
        if known.is_some_and(|replica| replica.replica_id == report.replica) {
            self.reports.entry(shard).or_default().insert(node, report);
        }
    }

    /// What was last heard of the replica on a node.
    pub fn of(&self, shard: ShardId, node: NodeId) -> Option<&ReplicaReport> {
        self.reports.get(&shard)?.get(&node)
    }

    /// Forgets what the map doesn't know any more.
    pub fn forget_gone(&mut self, map: &ShardMap) {
        self.reports.retain(|shard, reports| {
            let Some(record) = map.shards.get(shard) else { return false };
            reports.retain(|node, report| {
                let here = record.descriptor.replica_on(*node);
                here.is_some_and(|replica| replica.replica_id == report.replica)
            });
            true
        });
    }
}
