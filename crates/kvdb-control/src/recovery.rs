//! A shard that has lost its majority for good: whether it has, from which replica it may go on,
//! and what is lost by it.
//!
//! Going on without a majority breaks what everything else here keeps: what the others have
//! acknowledged and the survivor hasn't heard of is lost. So it is never done of the planner's own
//! accord, and refused wherever the shard may still have its majority. What of that can be seen
//! from the log of the coordinators is checked when the command is applied; what only the leader
//! has heard (who is silent, how far which replica is) is checked before, by [`preview`]; and the
//! survivor itself refuses if it hears a leader.

use crate::command::ControlError;
use crate::liveness::LivenessConfig;
use crate::operator::OperatorKind;
use crate::standings::{ReplicaReport, Standings};
use crate::state::ControlState;
use kvdb_model::{
    MembershipEpoch, NodeId, NodeStatus, RangeEpoch, RecoveryPlan, Replica, Role, ShardId, Term,
};
use std::collections::BTreeMap;

/// How far epochs and the term are raised: further than a lost majority can have got since it was
/// last heard.
const LEAP: u64 = 1 << 20;

/// What is known of one replica of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStanding {
    /// The replica.
    pub replica: Replica,
    /// How its node is.
    pub status: NodeStatus,
    /// For how long the node was not heard, in milliseconds.
    pub silent_ms: Option<u64>,
    /// What was last heard of it.
    pub report: Option<ReplicaReport>,
}

/// What going on from one replica would mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPreview {
    /// The survivor first.
    pub replicas: Vec<ReplicaStanding>,
    /// Nodes that aren't there any more.
    pub gone: Vec<NodeId>,
    /// What should be known before, in sentences.
    pub warnings: Vec<String>,
}

fn votes(replica: &Replica) -> bool {
    replica.role != Role::Learner
}

impl ControlState {
    /// The plan by which a shard goes on from the replica on a node.
    pub(crate) fn plan_recovery(
        &mut self,
        shard: ShardId,
        from: NodeId,
        gone: &[NodeId],
    ) -> Result<OperatorKind, ControlError> {
        let descriptor = self.free_shard(shard)?;
        let term = self.map.shards.get(&shard).map(|record| record.leader_term);
        let on = || descriptor.replicas.iter().map(|replica| replica.node_id).collect();
        let survivor = descriptor.replica_on(from).filter(|replica| votes(replica));
        let Some(survivor) = survivor.copied() else {
            return Err(ControlError::NotAReplica { shard, node: from, on: on() });
        };
        // One of an older copy has forgotten what it promised: it is only good to go on from.
        let has_forgotten = |node: NodeId| {
            descriptor.replica_on(node).is_some_and(|replica| !self.map.takes_part(replica))
        };
        for node in gone {
            let status = self.map.nodes.get(node).map(|record| record.status);
            if !has_forgotten(*node)
                && matches!(
                    status,
                    Some(NodeStatus::Alive | NodeStatus::Suspect | NodeStatus::Unreachable)
                )
            {
                return Err(ControlError::NodeIsThere { shard, node: *node });
            }
        }
        if gone.contains(&from) {
            return Err(ControlError::SurvivorIsGone { shard, node: from });
        }
        let is_there = |node: NodeId| !gone.contains(&node) && !has_forgotten(node);
        if descriptor.has_majority(is_there) {
            let there: Vec<NodeId> = descriptor
                .replicas
                .iter()
                .filter(|replica| votes(replica) && is_there(replica.node_id))
                .map(|replica| replica.node_id)
                .collect();
            return Err(ControlError::HasMajority { shard, there });
        }
        let voters = descriptor
            .replicas
            .iter()
            .filter(|replica| replica.role == Role::Voter || replica.role == Role::Incoming)
            .count();
        let replica_id = self.counters.next_replica;
        self.counters.next_replica = replica_id.next();
        if voters as u32 > self.wanted(&descriptor) {
            self.set_wanted(&descriptor, voters as u32);
        }
        let plan = RecoveryPlan {
            survivor: survivor.replica_id,
            replica: Replica { node_id: from, replica_id, role: Role::Voter },
            membership_epoch: MembershipEpoch(descriptor.membership_epoch.0 + LEAP),
            range_epoch: RangeEpoch(descriptor.range_epoch.0 + LEAP),
            least_range_epoch: descriptor.range_epoch,
            term: Term(term.unwrap_or_default().0 + LEAP),
        };
        Ok(OperatorKind::ForceRecover { shard, from: descriptor.replicas, plan })
    }
}

/// What going on from the replica on a node would mean, or why it is refused.
///
/// # Errors
/// The shard may have its majority, is being changed, or can't go on from there.
pub fn preview(
    state: &ControlState,
    standings: &Standings,
    silent_ms: &BTreeMap<NodeId, u64>,
    shard: ShardId,
    from: NodeId,
) -> Result<RecoveryPreview, ControlError> {
    let descriptor = state.free_shard(shard)?;
    let limits = LivenessConfig::default();
    let standing = |replica: &Replica| ReplicaStanding {
        replica: *replica,
        status: state
            .map
            .nodes
            .get(&replica.node_id)
            .map_or(NodeStatus::Removed, |node| node.status),
        silent_ms: silent_ms.get(&replica.node_id).copied(),
        report: standings
            .of(shard, replica.node_id)
            .filter(|report| report.replica == replica.replica_id)
            .cloned(),
    };
    let mut replicas: Vec<ReplicaStanding> = descriptor.replicas.iter().map(standing).collect();
    replicas
        .sort_by_key(|standing| (standing.replica.node_id != from, standing.replica.replica_id));
    let has_forgotten = |standing: &ReplicaStanding| !state.map.takes_part(&standing.replica);
    let is_gone = |standing: &ReplicaStanding| match standing.status {
        _ if standing.replica.node_id != from && has_forgotten(standing) => true,
        NodeStatus::Dead | NodeStatus::Removed => true,
        NodeStatus::Draining => standing.silent_ms.is_none_or(|silent| silent >= limits.dead_ms),
        NodeStatus::Alive | NodeStatus::Suspect | NodeStatus::Unreachable => false,
    };
    let gone: Vec<NodeId> = replicas
        .iter()
        .filter(|standing| is_gone(standing))
        .map(|standing| standing.replica.node_id)
        .collect();
    // What the log's own check says comes first.
    state.clone().plan_recovery(shard, from, &gone)?;
    let Some(survivor) = replicas.first().cloned() else {
        return Err(ControlError::NotAReplica { shard, node: from, on: vec![] });
    };
    let is_heard = survivor.silent_ms.is_some_and(|silent| silent < limits.suspect_ms);
    let Some(report) = survivor.report.clone().filter(|_| is_heard) else {
        return Err(ControlError::NotHeard { shard, node: from });
    };
    if report.awaits_snapshot {
        return Err(ControlError::WithoutState { shard, node: from });
    }
    if report.range_epoch < descriptor.range_epoch {
        return Err(ControlError::BeforeSplit { shard, node: from });
    }
    let mut warnings = warnings(&replicas, &report, &is_gone);
    if has_forgotten(&survivor) {
        warnings.push(format!(
            "the replica on node {from} is from an older copy of its directory: what it acknowledged after that copy \
             was made is lost, unless another one has it"
        ));
    }
    Ok(RecoveryPreview { replicas, gone, warnings })
}

fn warnings(
    replicas: &[ReplicaStanding],
    survivor: &ReplicaReport,
    is_gone: &dyn Fn(&ReplicaStanding) -> bool,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let others = || replicas.iter().skip(1).filter(|other| votes(&other.replica));
    let end = |report: &ReplicaReport| (report.last.term, report.last.index);
    let is_heard = |other: &&ReplicaStanding| {
        let limits = LivenessConfig::default();
        other.silent_ms.is_some_and(|silent| silent < limits.suspect_ms)
    };
    let longer = others().filter(|other| !is_gone(other) || is_heard(other)).filter_map(|other| {
        let report = other.report.as_ref().filter(|report| !report.awaits_snapshot)?;
        (end(report) > end(survivor)).then_some((other.replica.node_id, report))
    });
    if let Some((node, report)) = longer.max_by_key(|(_, report)| end(report)) {
        warnings.push(format!(
            "the replica on node {node} has more (log entry {}, this one {}): choose that one",
            report.last.index, survivor.last.index
        ));
    }
    let lost = || others().filter(|other| is_gone(other));
    let heard = lost().filter(|other| !is_heard(other)).filter_map(|other| other.report.as_ref());
    match heard.map(|report| report.last.index).max() {
        Some(furthest) if furthest > survivor.last.index => warnings.push(format!(
            "a lost replica had log entry {furthest} in its last report; this one ends at {}. At least {} \
             entries are lost",
            survivor.last.index,
            furthest.0 - survivor.last.index.0
        )),
        Some(furthest) => warnings.push(format!(
            "the lost replicas last reported log entry {furthest}; this one ends at {}. Writes that they \
             acknowledged later and that never reached this one are lost",
            survivor.last.index
        )),
        // They are there, as older copies: see below.
        None if lost().all(|other| is_heard(&other)) => {}
        None => warnings.push(format!(
            "no lost replica has reported since this coordinator leads. Writes after log entry {} are lost; \
             how many is not known",
            survivor.last.index
        )),
    }
    let nodes: Vec<String> = lost().map(|other| other.replica.node_id.to_string()).collect();
    if nodes.is_empty() {
        return warnings;
    }
    warnings.push(format!(
        "the replicas on node {} never vote again. If such a node still runs somewhere, stop it first: \
         until it is notified, it may answer clients that still ask it",
        nodes.join(", ")
    ));
    warnings
}
