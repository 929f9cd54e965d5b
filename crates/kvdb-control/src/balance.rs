//! Where replicas and leaders should be: by count, in distinct zones, with hysteresis.
//!
//! A replica moves only from a node that has at least two more than the one that gets it, and so
//! does a leader: one move makes the difference smaller, so that it ends, and a balanced cluster
//! is left alone.

use crate::operator::{OperatorKind, OperatorRequest};
use crate::state::ControlState;
use kvdb_model::{
    NodeId, NodeRecord, NodeStatus, OperatorId, Replica, Role, ShardDescriptor, ShardId,
};
use std::collections::{BTreeMap, BTreeSet};

/// Moves in a preview end here.
const MOST_PREVIEWED: usize = 1000;

/// Something worth doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What.
    pub request: OperatorRequest,
    /// Why.
    pub reason: String,
}

/// A shard's replicas as they will be when its operator is done.
fn replicas_of<'a>(state: &'a ControlState, descriptor: &'a ShardDescriptor) -> &'a [Replica] {
    match state.running_on(descriptor.shard_id).map(|operator| &operator.kind) {
        Some(OperatorKind::Replicas { goal, .. }) => goal,
        _ => &descriptor.replicas,
    }
}

fn usable(state: &ControlState) -> impl Iterator<Item = &NodeRecord> {
    state.map().nodes.values().filter(|node| {
        node.status == NodeStatus::Alive
            && !state.running().any(|operator| operator.kind.empties() == Some(node.node_id))
    })
}

fn replica_counts(state: &ControlState) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<NodeId, usize> = usable(state).map(|node| (node.node_id, 0)).collect();
    for record in state.map().shards.values() {
        for replica in replicas_of(state, &record.descriptor) {
            if let Some(count) = counts.get_mut(&replica.node_id) {
                *count += 1;
            }
        }
    }
    counts
}

/// The best node for the replica of a shard that leaves `leaving`: one that is alive and has none
/// of the shard, in a zone of its own if there is one, with the fewest replicas.
pub(crate) fn target(
    state: &ControlState,
    descriptor: &ShardDescriptor,
    leaving: NodeId,
) -> Option<NodeId> {
    let counts = replica_counts(state);
    let replicas = replicas_of(state, descriptor);
    let has_one = |node: NodeId| {
        replicas.iter().chain(&descriptor.replicas).any(|replica| replica.node_id == node)
    };
    let zones = zones_of(state, replicas, Some(leaving));
    usable(state)
        .filter(|node| !has_one(node.node_id))
        .min_by_key(|node| {
            let crowded = !node.zone.is_empty() && zones.contains(node.zone.as_str());
            (crowded, counts.get(&node.node_id).copied().unwrap_or(0), node.node_id)
        })
        .map(|node| node.node_id)
}

fn zones_of<'a>(
    state: &'a ControlState,
    replicas: &[Replica],
    without: Option<NodeId>,
) -> BTreeSet<&'a str> {
    replicas
        .iter()
        .filter(|replica| Some(replica.node_id) != without)
        .filter_map(|replica| state.map().nodes.get(&replica.node_id))
        .map(|node| node.zone.as_str())
        .filter(|zone| !zone.is_empty())
        .collect()
}

/// Why nothing is moved for balance now. `parent` is the operator that asks.
pub(crate) fn why_not(state: &ControlState, parent: Option<OperatorId>) -> Option<String> {
    let map = state.map();
    if map.shards.is_empty() {
        return Some("there are no shards yet".to_owned());
    }
    let holds = |node: &&NodeRecord| {
        map.shards.values().any(|record| record.descriptor.replica_on(node.node_id).is_some())
    };
    let unwell = map
        .nodes
        .values()
        .filter(holds)
        .find(|node| matches!(node.status, NodeStatus::Suspect | NodeStatus::Dead));
    if let Some(node) = unwell {
        return Some(format!("node {} is {:?}: its shards come first", node.node_id, node.status));
    }
    let other = state.running().find(|other| {
        parent != Some(other.id) && (other.parent.is_none() || other.parent != parent)
            || other.kind.shard().is_some()
    });
    other.map(|other| format!("operator {} is under way: {}", other.id, other.kind.describe()))
}

/// The next step towards balance.
pub(crate) fn next(state: &ControlState) -> Option<Proposal> {
    next_replica(state).or_else(|| next_leader(state))
}

fn extremes(counts: &BTreeMap<NodeId, usize>) -> Option<((NodeId, usize), (NodeId, usize))> {
    let most = counts.iter().max_by_key(|(node, count)| (**count, std::cmp::Reverse(**node)))?;
    let least = counts.iter().min_by_key(|(node, count)| (**count, **node))?;
    (*most.1 >= least.1 + 2).then_some(((*most.0, *most.1), (*least.0, *least.1)))
}

fn next_replica(state: &ControlState) -> Option<Proposal> {
    let counts = replica_counts(state);
    let ((from, most), (to, least)) = extremes(&counts)?;
    let map = state.map();
    let to_zone = map.nodes.get(&to)?.zone.as_str();
    let candidates = map.shards.values().filter(|record| {
        let descriptor = &record.descriptor;
        let zones = zones_of(state, &descriptor.replicas, Some(from));
        let keeps_zones = to_zone.is_empty()
            || !zones.contains(to_zone)
            || zones_of(state, &descriptor.replicas, None).len() == zones.len();
        !record.creating
            && state.running_on(descriptor.shard_id).is_none()
            && descriptor.replicas.iter().all(|replica| replica.role == Role::Voter)
            && descriptor.replica_on(from).is_some()
            && descriptor.replica_on(to).is_none()
            && keeps_zones
    });
    // A leader would have to be handed over first.
    let best = candidates
        .min_by_key(|record| (record.leader == Some(from), record.descriptor.shard_id))?;
    Some(Proposal {
        request: OperatorRequest::Move { shard: best.descriptor.shard_id, from, to },
        reason: format!("node {from} has {most} replicas, node {to} has {least}"),
    })
}

fn next_leader(state: &ControlState) -> Option<Proposal> {
    let map = state.map();
    let mut counts: BTreeMap<NodeId, usize> = usable(state).map(|node| (node.node_id, 0)).collect();
    for record in map.shards.values() {
        if let Some(count) = record.leader.and_then(|leader| counts.get_mut(&leader)) {
            *count += 1;
        }
    }
    // The two furthest apart may share no shard: then the next pair.
    let mut pairs: Vec<(usize, NodeId, NodeId)> = counts
        .iter()
        .flat_map(|(from, most)| {
            counts
                .iter()
                .filter(move |(_, least)| *most >= **least + 2)
                .map(move |(to, least)| (most - least, *from, *to))
        })
        .collect();
    pairs.sort_by_key(|(difference, from, to)| (std::cmp::Reverse(*difference), *from, *to));
    pairs.into_iter().find_map(|(_, from, to)| {
        let shard: ShardId = map
            .shards
            .values()
            .filter(|record| record.leader == Some(from))
            .filter(|record| {
                let replica = record.descriptor.replica_on(to);
                replica.is_some_and(|replica| replica.role == Role::Voter)
            })
            .map(|record| record.descriptor.shard_id)
            .find(|shard| state.running_on(*shard).is_none())?;
        let reason =
            format!("node {from} leads {} shards, node {to} leads {}", counts[&from], counts[&to]);
        Some(Proposal { request: OperatorRequest::Lead { shard, node: to }, reason })
    })
}

/// All steps to balance, as if each were done at once, and why they end.
pub(crate) fn preview(state: &ControlState) -> (Vec<Proposal>, String) {
    if let Some(why) = why_not(state, None) {
        return (Vec::new(), format!("nothing to do now: {why}"));
    }
    let mut state = state.clone();
    let mut proposals = Vec::new();
    while proposals.len() < MOST_PREVIEWED
        && let Some(proposal) = next(&state)
    {
        state.pretend(&proposal.request);
        proposals.push(proposal);
    }
    let nodes = usable(&state).count();
    let end = format!(
        "nothing {}to do because no two of {nodes} nodes differ by two replicas or two leaders",
        if proposals.is_empty() { "" } else { "more " }
    );
    (proposals, end)
}
