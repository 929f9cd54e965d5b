//! Where replicas and leaders should be: by number, bytes and load, in distinct zones, with
//! hysteresis.
//!
//! Each replica weighs what it holds, and a little for being there; each leadership what it is
//! asked, and a little. A replica moves, or a leadership, only between two nodes of which one has
//! much more, and only one that weighs about half of the difference at most: so each step makes the
//! whole more even (the sum of the squares becomes smaller), and it ends.
//! Nothing moves to a node whose disk has too little room.
//! Where nothing is known of bytes and load, that comes to counting: the difference must be two.

use crate::command::status_word;
use crate::operator::{OperatorKind, OperatorRequest};
use crate::standings::Loads;
use crate::state::ControlState;
use kvdb_model::{
    NodeId, NodeRecord, NodeStatus, OperatorId, Replica, Role, ShardDescriptor, ShardId,
    ShardRecord,
};
use std::collections::{BTreeMap, BTreeSet};

/// Moves in a preview end here.
const MOST_PREVIEWED: usize = 1000;
/// Pairs of nodes that are looked at for one step, the most different first.
const MOST_PAIRS: usize = 64;
/// What a replica weighs beside its bytes.
const REPLICA_BYTES: u64 = 16 << 20;
/// Nodes that differ by less, and by less than a fifth of what a node has on average, are even.
const EVEN_BYTES: u64 = 128 << 20;
/// What a leadership weighs beside its operations a second.
const LEADER_LOAD: u64 = 100;
/// As [`EVEN_BYTES`], in operations a second, and a third of the average.
const EVEN_LOAD: u64 = 1000;

/// Something worth doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What.
    pub request: OperatorRequest,
    /// Why.
    pub reason: String,
}

/// What a node has.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    count: usize,
    weight: u64,
}

/// A node with much, one with little, and by how much they differ.
struct Pair {
    from: NodeId,
    to: NodeId,
    more: Share,
    less: Share,
}

impl Pair {
    fn difference(&self) -> u64 {
        self.more.weight - self.less.weight
    }

    /// Whether something that weighs so much makes the two more even. A little more than half of the
    /// difference still does, and what it weighs for being there must not keep the larger of two
    /// busy shards where both are.
    fn takes(&self, weight: u64) -> bool {
        20 * weight <= 11 * self.difference()
    }

    fn differs_by_number(&self) -> bool {
        self.more.count >= self.less.count + 2
    }
}

/// Pairs of nodes that differ by much, the most different first.
fn uneven(shares: &BTreeMap<NodeId, Share>, even: u64, part: u64) -> Vec<Pair> {
    let all: u64 = shares.values().map(|share| share.weight).sum();
    let even = even.max(all / part / shares.len().max(1) as u64);
    let mut pairs: Vec<Pair> = shares
        .iter()
        .flat_map(|(from, more)| {
            let less = shares.iter().filter(move |(_, less)| less.weight < more.weight);
            less.map(move |(to, less)| Pair { from: *from, to: *to, more: *more, less: *less })
        })
        .filter(|pair| pair.differs_by_number() || pair.difference() >= even)
        .collect();
    pairs.sort_by_key(|pair| (std::cmp::Reverse(pair.difference()), pair.from, pair.to));
    pairs.truncate(MOST_PAIRS);
    pairs
}

/// A shard's replicas as they will be when its operator is done.
fn replicas_of<'a>(state: &'a ControlState, descriptor: &'a ShardDescriptor) -> &'a [Replica] {
    match state.running_on(descriptor.shard_id).map(|operator| &operator.kind) {
        Some(OperatorKind::Replicas { goal, .. }) => goal,
        _ => &descriptor.replicas,
    }
}

pub(crate) fn usable(state: &ControlState) -> impl Iterator<Item = &NodeRecord> {
    state.map().nodes.values().filter(|node| {
        node.status == NodeStatus::Alive
            && !state.running().any(|operator| operator.kind.empties() == Some(node.node_id))
    })
}

fn nobody_has_any(state: &ControlState) -> BTreeMap<NodeId, Share> {
    usable(state).map(|node| (node.node_id, Share::default())).collect()
}

fn replica_weight(loads: &Loads, shard: ShardId) -> u64 {
    REPLICA_BYTES + loads.shards.get(&shard).map_or(0, |load| load.bytes)
}

fn leader_weight(loads: &Loads, shard: ShardId) -> u64 {
    LEADER_LOAD + loads.shards.get(&shard).map_or(0, |load| load.operations())
}

fn replica_shares(state: &ControlState, loads: &Loads) -> BTreeMap<NodeId, Share> {
    let mut shares = nobody_has_any(state);
    for record in state.map().shards.values() {
        for replica in replicas_of(state, &record.descriptor) {
            if let Some(share) = shares.get_mut(&replica.node_id) {
                share.count += 1;
                share.weight += replica_weight(loads, record.descriptor.shard_id);
            }
        }
    }
    shares
}

/// The best node for the replica of a shard that leaves `leaving`: one that is alive and has none
/// of the shard, in a zone of its own if there is one, with the least. Only one that `may`.
pub(crate) fn target(
    state: &ControlState,
    loads: &Loads,
    descriptor: &ShardDescriptor,
    leaving: NodeId,
    may: &dyn Fn(NodeId) -> bool,
) -> Option<NodeId> {
    let shares = replica_shares(state, loads);
    let replicas = replicas_of(state, descriptor);
    let has_one = |node: NodeId| {
        replicas.iter().chain(&descriptor.replicas).any(|replica| replica.node_id == node)
    };
    let zones = zones_of(state, replicas, Some(leaving));
    usable(state)
        .filter(|node| !has_one(node.node_id) && !loads.short.contains(&node.node_id))
        .filter(|node| may(node.node_id))
        .min_by_key(|node| {
            let crowded = zones.contains(node.zone.as_str());
            let weight = shares.get(&node.node_id).map_or(0, |share| share.weight);
            (crowded, weight, node.node_id)
        })
        .map(|node| node.node_id)
}

/// Nodes that name no zone share one.
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
    let unwell = map.nodes.values().filter(holds).find(|node| {
        matches!(node.status, NodeStatus::Suspect | NodeStatus::Dead | NodeStatus::Unreachable)
    });
    if let Some(node) = unwell {
        return Some(format!(
            "node {} is {}: its shards come first",
            node.node_id,
            status_word(node.status)
        ));
    }
    let other = state.running().find(|other| {
        parent != Some(other.id) && (other.parent.is_none() || other.parent != parent)
            || other.kind.shard().is_some()
    });
    other.map(|other| format!("operation {} is running: {}", other.id, other.kind.describe()))
}

/// The next step towards balance. Load comes and goes: what was led from elsewhere a moment ago
/// (`rests`) isn't handed over again because of it.
pub(crate) fn next(
    state: &ControlState,
    loads: &Loads,
    rests: &dyn Fn(ShardId) -> bool,
) -> Option<Proposal> {
    next_zone(state, loads)
        .or_else(|| next_replica(state, loads))
        .or_else(|| next_leader(state, loads, rests))
}

/// A shard with two replicas in one zone, while there is a node in a zone that has none. No later
/// step undoes it: moves for balance keep the number of zones of a shard.
fn next_zone(state: &ControlState, loads: &Loads) -> Option<Proposal> {
    let map = state.map();
    let zones: BTreeSet<&str> = usable(state).map(|node| node.zone.as_str()).collect();
    if zones.len() < 2 {
        return None;
    }
    let shares = replica_shares(state, loads);
    let weight = |node: NodeId| shares.get(&node).map_or(0, |share| share.weight);
    map.shards.values().filter(|record| is_settled(state, record)).find_map(|record| {
        let replicas = &record.descriptor.replicas;
        let taken = zones_of(state, replicas, None);
        if taken.len() == replicas.len() {
            return None;
        }
        let to = usable(state)
            .filter(|node| !taken.contains(node.zone.as_str()))
            .filter(|node| !loads.short.contains(&node.node_id))
            .min_by_key(|node| (weight(node.node_id), node.node_id))?;
        // One of two that share a zone: not the leader, and from where there is more.
        let shares_zone = |replica: &&Replica| {
            zones_of(state, replicas, Some(replica.node_id)).len() == taken.len()
        };
        let from = replicas.iter().filter(shares_zone).map(|replica| replica.node_id).min_by_key(
            |node| (record.leader == Some(*node), std::cmp::Reverse(weight(*node)), *node),
        )?;
        let (shard, zone) = (record.descriptor.shard_id, &map.nodes.get(&from)?.zone);
        let reason = format!(
            "shard {shard} has more than one replica in zone `{zone}`, and none in zone `{}`",
            to.zone
        );
        let request = OperatorRequest::Move { shard, from, to: to.node_id };
        Some(Proposal { request, reason })
    })
}

/// Whether a replica of it may be moved: it is made, and nothing changes it.
fn is_settled(state: &ControlState, record: &ShardRecord) -> bool {
    let descriptor = &record.descriptor;
    !record.creating
        && descriptor.replicas.iter().all(|replica| replica.role == Role::Voter)
        && state.running_on(descriptor.shard_id).is_none()
}

fn next_replica(state: &ControlState, loads: &Loads) -> Option<Proposal> {
    let shares = replica_shares(state, loads);
    let pairs = uneven(&shares, EVEN_BYTES, 5).into_iter();
    pairs.filter(|pair| !loads.short.contains(&pair.to)).find_map(|pair| {
        let shard = movable(state, loads, &pair)?;
        let (from, to, more, less) = (pair.from, pair.to, pair.more, pair.less);
        let reason = match pair.differs_by_number() {
            true => {
                format!("node {from} has {} replicas, node {to} has {}", more.count, less.count)
            }
            false => format!(
                "node {from} holds {}, node {to} holds {}",
                mebibytes(more.weight - REPLICA_BYTES * more.count as u64),
                mebibytes(less.weight - REPLICA_BYTES * less.count as u64)
            ),
        };
        Some(Proposal { request: OperatorRequest::Move { shard, from, to }, reason })
    })
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The shard of which a replica moves between two nodes: one that isn't led from there (it would
/// have to be handed over first), and of those the largest that fits.
fn movable(state: &ControlState, loads: &Loads, pair: &Pair) -> Option<ShardId> {
    let map = state.map();
    let to_zone = map.nodes.get(&pair.to)?.zone.as_str();
    let candidates = map.shards.values().filter(|record| {
        let descriptor = &record.descriptor;
        let keeps_zones = || {
            let zones = zones_of(state, &descriptor.replicas, Some(pair.from));
            !zones.contains(to_zone)
                || zones_of(state, &descriptor.replicas, None).len() == zones.len()
        };
        is_settled(state, record)
            && pair.takes(replica_weight(loads, descriptor.shard_id))
            && descriptor.replica_on(pair.from).is_some()
            && descriptor.replica_on(pair.to).is_none()
            && keeps_zones()
    });
    let best = candidates.min_by_key(|record| {
        let shard = record.descriptor.shard_id;
        let weight = replica_weight(loads, shard);
        (record.leader == Some(pair.from), std::cmp::Reverse(weight), shard)
    })?;
    Some(best.descriptor.shard_id)
}

fn next_leader(
    state: &ControlState,
    loads: &Loads,
    rests: &dyn Fn(ShardId) -> bool,
) -> Option<Proposal> {
    let map = state.map();
    let mut shares = nobody_has_any(state);
    for record in map.shards.values() {
        if let Some(share) = record.leader.and_then(|leader| shares.get_mut(&leader)) {
            share.count += 1;
            share.weight += leader_weight(loads, record.descriptor.shard_id);
        }
    }
    // The two furthest apart may share no shard: then the next pair.
    let pairs = uneven(&shares, EVEN_LOAD, 3).into_iter();
    let takes = |pair: &Pair| {
        !loads.short.contains(&pair.to) && !loads.less_preferred.contains_key(&pair.to)
    };
    pairs.filter(takes).find_map(|pair| {
        let (from, to, more, less) = (pair.from, pair.to, pair.more, pair.less);
        let shard: ShardId = map
            .shards
            .values()
            .filter(|record| record.leader == Some(from))
            .filter(|record| {
                let replica = record.descriptor.replica_on(to);
                replica.is_some_and(|replica| replica.role == Role::Voter)
            })
            .map(|record| record.descriptor.shard_id)
            .filter(|shard| pair.takes(leader_weight(loads, *shard)))
            .filter(|shard| state.running_on(*shard).is_none())
            .filter(|shard| pair.differs_by_number() || !rests(*shard))
            .min_by_key(|shard| (std::cmp::Reverse(leader_weight(loads, *shard)), *shard))?;
        let load = |share: Share| share.weight - LEADER_LOAD * share.count as u64;
        let reason = match pair.differs_by_number() {
            true => {
                format!("node {from} leads {} shards, node {to} leads {}", more.count, less.count)
            }
            false => format!(
                "node {from} leads shards with {} operations a second, node {to} with {}",
                load(more),
                load(less)
            ),
        };
        Some(Proposal { request: OperatorRequest::Lead { shard, node: to }, reason })
    })
}

/// All steps to balance, as if each were done at once, and why they end.
pub(crate) fn preview(state: &ControlState, loads: &Loads) -> (Vec<Proposal>, String) {
    if let Some(why) = why_not(state, None) {
        return (Vec::new(), format!("nothing to do now: {why}"));
    }
    let mut state = state.clone();
    let mut proposals = Vec::new();
    while proposals.len() < MOST_PREVIEWED
        && let Some(proposal) = next(&state, loads, &|_| false)
    {
        state.simulate(&proposal.request);
        proposals.push(proposal);
    }
    let nodes = usable(&state).count();
    let end = format!(
        "nothing {}to do because each shard is in as many zones as it can be, and no move would make any two of \
         {nodes} nodes that differ by two replicas or leaders, or by much in bytes or load, more even",
        if proposals.is_empty() { "" } else { "more " }
    );
    (proposals, end)
}
