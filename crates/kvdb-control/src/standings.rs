//! What the leading coordinator has heard of single replicas: kept in its memory alone, and
//! forgotten when it no longer leads.
//!
//! Bounded by the map: only what is told of a replica that the map knows is kept, one report each.

use crate::operator::{Operator, OperatorKind};
use crate::preference::{Preferences, Reason};
use crate::state::ControlState;
use bytes::Bytes;
use kvdb_model::{
    LogIndex, LogPosition, NodeId, RangeEpoch, Replica, ReplicaId, Role, ShardId, ShardMap, Version,
};
use std::collections::{BTreeMap, BTreeSet};

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
    /// It has led for long enough to know what it is asked to read.
    pub reads_known: bool,
    /// What it holds and is asked.
    pub load: Load,
}

/// What a shard holds and is asked, as its leader has told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Of keys and values, or about as many.
    pub bytes: u64,
    /// Keys, as its leader has last counted them.
    pub keys: Option<u64>,
    /// Strong reads a second, lately.
    pub reads_per_second: u64,
    /// Changes of keys a second, lately.
    pub writes_per_second: u64,
    /// The routing key that cuts it into halves, if it is large.
    pub split_at: Option<Bytes>,
}

/// What weighs on the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loads {
    /// By shard; one that nothing is known of is missing.
    pub shards: BTreeMap<ShardId, Load>,
    /// Nodes whose disks have too little room to take anything more.
    pub short: BTreeSet<NodeId>,
    /// Nodes that should rather not lead, and why.
    pub less_preferred: BTreeMap<NodeId, Vec<Reason>>,
}

impl Load {
    /// A write costs about as much as two reads.
    pub(crate) fn operations(&self) -> u64 {
        self.reads_per_second.saturating_add(self.writes_per_second.saturating_mul(2))
    }
}

/// All that was heard.
#[derive(Debug, Default)]
pub struct Standings {
    reports: BTreeMap<ShardId, BTreeMap<NodeId, ReplicaReport>>,
    /// Reads a second of shards, in the range of which epoch: they stay known while leaders change,
    /// so that a shard that was handed over doesn't seem idle, and draw more of its like after it.
    reads: BTreeMap<ShardId, (RangeEpoch, u64)>,
    /// Keys of shards, likewise: a new leader hasn't counted them yet.
    keys: BTreeMap<ShardId, (RangeEpoch, u64)>,
    /// At what rate each node sends snapshots.
    rates: BTreeMap<NodeId, u64>,
    /// Nodes that have said that their disks have too little room.
    short: BTreeSet<NodeId>,
    /// Which nodes should rather not lead.
    pub preferences: Preferences,
}

impl Standings {
    /// A new leader knows nothing.
    pub fn reset(&mut self) {
        self.reports.clear();
        self.reads.clear();
        self.keys.clear();
        self.rates.clear();
        self.short.clear();
        self.preferences.reset();
    }

    /// A node of the map tells whether its disk has too little room.
    pub fn heard_room(&mut self, node: NodeId, is_short: bool) {
        if is_short {
            self.short.insert(node);
        } else {
            self.short.remove(&node);
        }
    }

    /// A node of the map tells how many bytes of snapshots it sends a second, at most.
    pub fn heard_rate(&mut self, node: NodeId, bytes_per_second: u64) {
        self.rates.insert(node, bytes_per_second);
    }

    /// What new replicas of an operator's shard have yet to get, and the rate at which it comes;
    /// `None` where that isn't known, or nothing is to come.
    pub fn left_to_send(&self, state: &ControlState, operator: &Operator) -> Option<(u64, u64)> {
        let OperatorKind::Replicas { shard, goal, .. } = &operator.kind else { return None };
        let record = state.map().shards.get(shard).filter(|_| operator.is_running())?;
        let leader = record.leader?;
        let bytes = self.of(*shard, leader)?.load.bytes;
        let comes = |goal: &&Replica| {
            let now = record.descriptor.replica(goal.replica_id);
            now.is_none_or(|now| now.role == Role::Learner)
        };
        let newcomers = goal.iter().filter(comes).count() as u64;
        let rate = self.rates.get(&leader).copied().unwrap_or_default();
        (newcomers > 0).then_some((bytes.saturating_mul(newcomers), rate))
    }

    /// A node tells of a replica.
    pub fn heard(&mut self, map: &ShardMap, shard: ShardId, node: NodeId, report: ReplicaReport) {
        let Some(record) = map.shards.get(&shard) else { return };
        let known = record.descriptor.replica_on(node);
        if known.is_some_and(|replica| replica.replica_id == report.replica) {
            if let Some(keys) = report.load.keys.filter(|_| record.leader == Some(node)) {
                self.keys.insert(shard, (report.range_epoch, keys));
            }
            if report.reads_known && record.leader == Some(node) {
                self.reads.insert(shard, (report.range_epoch, report.load.reads_per_second));
            }
            self.reports.entry(shard).or_default().insert(node, report);
        }
    }

    /// What was last heard of the replica on a node.
    pub fn of(&self, shard: ShardId, node: NodeId) -> Option<&ReplicaReport> {
        self.reports.get(&shard)?.get(&node)
    }

    /// What the leaders of shards have told of them, in their present ranges.
    pub fn loads(&self, map: &ShardMap) -> Loads {
        let of = |(shard, record): (&ShardId, &kvdb_model::ShardRecord)| {
            let report = self.of(*shard, record.leader?)?;
            let is_present = report.range_epoch == record.descriptor.range_epoch;
            let reads = self.reads.get(shard).filter(|(epoch, _)| *epoch == report.range_epoch);
            let reads_per_second = reads.map_or(0, |(_, reads)| *reads);
            let keys = self.keys.get(shard).filter(|(epoch, _)| *epoch == report.range_epoch);
            let keys = keys.map(|(_, keys)| *keys);
            is_present.then(|| (*shard, Load { reads_per_second, keys, ..report.load.clone() }))
        };
        let shards = map.shards.iter().filter_map(of).collect();
        let less_preferred = self.preferences.reasons();
        Loads { shards, short: self.short.clone(), less_preferred }
    }

    /// Forgets what the map doesn't know any more.
    pub fn forget_gone(&mut self, map: &ShardMap) {
        self.preferences.retain(|node| map.nodes.contains_key(&node));
        self.reads.retain(|shard, _| map.shards.contains_key(shard));
        self.keys.retain(|shard, _| map.shards.contains_key(shard));
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
