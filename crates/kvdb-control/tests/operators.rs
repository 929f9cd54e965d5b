//! Operators from the request to the end, with shard leaders that do what they are told.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, ControlState, LedShard, Load, Loads, Observed,
    OperatorRequest, OperatorState, Planner, PlannerConfig,
};
use kvdb_model::{
    MembershipEpoch, NodeId, NodeStatus, OperatorId, Partitioning, ReplicaId, Role,
    ShardDescriptor, ShardId, Step, Term, next_step, slot_of,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// A cluster whose shards do one step a round.
struct Cluster {
    state: ControlState,
    planner: Planner,
    now_ms: u64,
    silent_ms: BTreeMap<NodeId, u64>,
    term: u64,
    /// What the shards themselves say.
    shards: BTreeMap<ShardId, ShardDescriptor>,
    leaders: BTreeMap<ShardId, NodeId>,
    loads: Loads,
}

impl Cluster {
    fn new(zones: &[&str], shards: u32) -> Self {
        let mut cluster = Cluster {
            state: ControlState::default(),
            planner: Planner {
                config: PlannerConfig { rebalance: false, ..PlannerConfig::default() },
            },
            now_ms: 1_000_000,
            silent_ms: BTreeMap::new(),
            term: 6,
            shards: BTreeMap::new(),
            leaders: BTreeMap::new(),
            loads: Loads::default(),
        };
        for zone in zones {
            cluster.add_node(zone);
        }
        cluster.apply(ControlCommand::InitShards { shards, replication_factor: 0 }).unwrap();
        for (shard, record) in cluster.state.map().shards.clone() {
            cluster.leaders.insert(shard, record.descriptor.replicas[0].node_id);
            cluster.shards.insert(shard, record.descriptor);
        }
        cluster.report();
        cluster
    }

    fn apply(&mut self, command: ControlCommand) -> Result<ControlResponse, ControlError> {
        let command = ControlCommand::decode(&command.to_bytes()).expect("it was just encoded");
        self.state.apply(&command).result
    }

    fn add_node(&mut self, zone: &str) -> NodeId {
        let token = self.state.map().nodes.len() as u128 + 1;
        let address = format!("127.0.0.1:{}", 7000 + token);
        let command = ControlCommand::RegisterNode { token, address, zone: zone.to_owned() };
        match self.apply(command) {
            Ok(ControlResponse::Registered(node, _)) => node,
            other => panic!("{other:?}"),
        }
    }

    fn start(&mut self, request: OperatorRequest) -> Result<OperatorId, ControlError> {
        let command = ControlCommand::StartOperator {
            request,
            reason: "a test".to_owned(),
            parent: None,
            now_ms: self.now_ms,
            time_limit_ms: 3_600_000,
        };
        match self.apply(command)? {
            ControlResponse::OperatorStarted(id, _) => Ok(id),
            other => panic!("{other:?}"),
        }
    }

    fn set_status(&mut self, node: NodeId, status: NodeStatus) {
        self.apply(ControlCommand::SetNodeStatus { node, status }).unwrap();
    }

    fn report(&mut self) {
        for (shard, descriptor) in self.shards.clone() {
            let led = vec![LedShard { descriptor, term: Term(self.term) }];
            self.apply(ControlCommand::ReportShards { node: self.leaders[&shard], led }).unwrap();
        }
    }

    /// Each leader does the next step of its task.
    fn work(&mut self) {
        let nodes: Vec<NodeId> = self.state.map().nodes.keys().copied().collect();
        for node in nodes {
            if self.state.map().nodes[&node].status == NodeStatus::Dead {
                continue;
            }
            for task in self.state.tasks_of(node) {
                let Some(descriptor) = self.shards.get(&task.shard).cloned() else { continue };
                let own = descriptor.replica_on(node).expect("a leader has a replica").replica_id;
                match next_step(&task.work, &descriptor, own, &|_| true) {
                    Step::Done | Step::Wait(_) => {}
                    Step::Change(mut replicas) => {
                        replicas.sort_by_key(|replica| replica.replica_id);
                        let after = ShardDescriptor {
                            membership_epoch: descriptor.membership_epoch.next(),
                            replicas,
                            ..descriptor
                        };
                        self.shards.insert(task.shard, after);
                    }
                    Step::HandOver(to) => {
                        let to = descriptor.replica(to).expect("an heir is a replica").node_id;
                        self.term += 1;
                        self.leaders.insert(task.shard, to);
                    }
                    Step::Split(plan) => {
                        let (parent, child) = plan.apply_to(&descriptor).expect("it fits");
                        self.leaders.insert(child.shard_id, self.leaders[&task.shard]);
                        self.shards.insert(child.shard_id, child);
                        self.shards.insert(task.shard, parent);
                    }
                    Step::Impossible(why) => panic!("{why}"),
                }
            }
        }
        self.check();
    }

    /// The map is whole, and no shard has two replicas on a node or too few voters.
    fn check(&self) {
        for descriptor in self.shards.values() {
            let nodes: BTreeSet<NodeId> =
                descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            assert_eq!(nodes.len(), descriptor.replicas.len(), "{descriptor:?}");
        }
        let mut ranges: Vec<_> =
            self.state.map().shards.values().map(|record| &record.descriptor.range).collect();
        ranges.sort();
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].end, pair[1].start, "a gap or an overlap in the map");
        }
    }

    fn plan(&mut self) -> usize {
        self.now_ms += 250;
        let observed = Observed {
            now_ms: self.now_ms,
            silent_ms: self.silent_ms.clone(),
            impossible: BTreeMap::new(),
            loads: self.loads.clone(),
        };
        let commands = self.planner.plan(&self.state, &observed);
        let count = commands.len();
        for command in commands {
            self.apply(command.clone()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
        }
        count
    }

    /// Rounds until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..2000 {
            let planned = self.plan();
            self.work();
            self.report();
            if planned == 0 && self.state.running().next().is_none() {
                return;
            }
        }
        panic!("no end: {:#?}", self.state.running().collect::<Vec<_>>());
    }

    fn outcome(&self, id: OperatorId) -> &OperatorState {
        &self.state.operator(id).expect("it is remembered").state
    }

    fn replicas_on(&self, node: NodeId) -> usize {
        self.shards.values().filter(|shard| shard.replica_on(node).is_some()).count()
    }

    fn nodes_of(&self, shard: u64) -> BTreeSet<u64> {
        self.shards[&ShardId(shard)].replicas.iter().map(|replica| replica.node_id.0).collect()
    }
}

#[test]
fn a_replica_moves_and_the_record_says_how() {
    let mut cluster = Cluster::new(&["", "", "", ""], 1);
    let from = *cluster.nodes_of(1).first().unwrap();
    let free = (1..=4).find(|node| !cluster.nodes_of(1).contains(node)).unwrap();
    let request = OperatorRequest::Move { shard: ShardId(1), from: NodeId(from), to: NodeId(free) };
    let id = cluster.start(request.clone()).unwrap();
    let busy = cluster.start(request);
    assert_eq!(busy, Err(ControlError::ShardBusy { shard: ShardId(1), operator: id }));
    cluster.settle();
    assert_eq!(cluster.outcome(id), &OperatorState::Done);
    let nodes = cluster.nodes_of(1);
    assert!(nodes.contains(&free) && !nodes.contains(&from) && nodes.len() == 3);
    let operator = cluster.state.operator(id).unwrap();
    assert!(operator.steps.iter().any(|step| step.what.contains("learns")), "{operator:?}");
    assert!(operator.ended_ms >= operator.started_ms && operator.reason == "a test");
}

#[test]
fn wrong_replica_sets_are_refused_and_change_nothing() {
    let mut cluster = Cluster::new(&["", "", "", ""], 2);
    cluster.set_status(NodeId(4), NodeStatus::Dead);
    let set = |nodes: &[u64], epoch| OperatorRequest::SetReplicas {
        shard: ShardId(1),
        nodes: nodes.iter().map(|node| NodeId(*node)).collect(),
        membership_epoch: epoch,
    };
    let here: Vec<u64> = cluster.nodes_of(1).into_iter().collect();
    let before = cluster.state.clone();
    let stale = Some(MembershipEpoch(7));
    let refused = [
        set(&[], None),
        set(&[1, 1], None),
        set(&[1, 99], None),
        set(&[1, 2, 4], None),
        set(&[1, 2], stale),
        set(&here, None),
        OperatorRequest::SetReplicas {
            shard: ShardId(99),
            nodes: vec![NodeId(1)],
            membership_epoch: None,
        },
        OperatorRequest::Move { shard: ShardId(1), from: NodeId(here[0]), to: NodeId(here[1]) },
        OperatorRequest::Move { shard: ShardId(1), from: NodeId(4), to: NodeId(here[1]) },
        OperatorRequest::Drain { node: NodeId(99) },
        OperatorRequest::Lead { shard: ShardId(1), node: NodeId(4) },
        OperatorRequest::Split { shard: ShardId(77), at: None },
    ];
    // Node 4 has no replica: it was alive when they were placed on the first three.
    assert_eq!(here, [1, 2, 3]);
    for request in refused {
        let refusal = cluster.start(request.clone());
        assert!(refusal.is_err(), "{request:?}");
        assert_eq!(cluster.state, before, "{request:?}");
    }
}

#[test]
fn a_split_puts_both_sides_into_the_map_whoever_reports_first() {
    for child_first in [false, true] {
        let mut cluster = Cluster::new(&["", "", ""], 1);
        let id = cluster.start(OperatorRequest::Split { shard: ShardId(1), at: None }).unwrap();
        let before = cluster.shards[&ShardId(1)].clone();
        cluster.work();
        let first = ShardId(if child_first { 2 } else { 1 });
        let led = vec![LedShard { descriptor: cluster.shards[&first].clone(), term: Term(9) }];
        let node = cluster.leaders[&first];
        cluster.apply(ControlCommand::ReportShards { node, led }).unwrap();
        cluster.check();
        assert_eq!(cluster.state.map().shards.len(), 2);
        // An old word of the parent doesn't undo it.
        let led = vec![LedShard { descriptor: before, term: Term(9) }];
        cluster.apply(ControlCommand::ReportShards { node, led }).unwrap();
        cluster.check();
        cluster.settle();
        assert_eq!(cluster.outcome(id), &OperatorState::Done);
        let halves: Vec<_> = cluster.shards.values().map(|shard| shard.range.clone()).collect();
        assert_eq!(halves[0].end, halves[1].start);
    }
}

#[test]
fn a_split_that_was_called_off_and_is_asked_for_again_makes_the_same_child() {
    let mut cluster = Cluster::new(&["", "", ""], 1);
    let split = OperatorRequest::Split { shard: ShardId(1), at: None };
    let first = cluster.start(split.clone()).unwrap();
    // The leader has proposed it already; nobody has heard of its end.
    cluster.work();
    let now_ms = cluster.now_ms;
    cluster.apply(ControlCommand::CancelOperator { id: first, now_ms }).unwrap();
    cluster.start(split).unwrap();
    cluster.report();
    let told: BTreeSet<ShardId> = cluster.state.map().shards.keys().copied().collect();
    let there: BTreeSet<ShardId> = cluster.shards.keys().copied().collect();
    assert_eq!(told, there, "the map names a shard that nobody has made");
}

#[test]
fn a_split_is_made_where_it_is_asked_for_and_only_inside_the_range() {
    let mut cluster = Cluster::new(&["", "", ""], 1);
    let key = bytes::Bytes::from_static(b"{tag}:1");
    let at = Some(key.clone());
    cluster.start(OperatorRequest::Split { shard: ShardId(1), at: at.clone() }).unwrap();
    cluster.settle();
    let keyspace = cluster.shards[&ShardId(2)].keyspace_id;
    let first = kvdb_model::key::slot_start(keyspace, slot_of(&key));
    assert_eq!(cluster.shards[&ShardId(2)].range.start, first);
    // The same place again is the start of the child, not inside it.
    let again = cluster.start(OperatorRequest::Split { shard: ShardId(2), at });
    assert!(matches!(again, Err(ControlError::NotSplittable { .. })), "{again:?}");
    let command = ControlCommand::CreateKeyspace {
        name: "ordered".to_owned(),
        partitioning: Partitioning::Range,
        history: None,
        shards: 0,
        replication_factor: 0,
    };
    cluster.apply(command).unwrap();
    let new = ShardId(3);
    let descriptor = cluster.state.map().shards[&new].descriptor.clone();
    cluster.leaders.insert(new, descriptor.replicas[0].node_id);
    cluster.shards.insert(new, descriptor);
    cluster.report();
    let blind = cluster.start(OperatorRequest::Split { shard: new, at: None });
    assert!(matches!(blind, Err(ControlError::NotSplittable { .. })), "{blind:?}");
    let at = Some(bytes::Bytes::from_static(b"m"));
    cluster.start(OperatorRequest::Split { shard: new, at }).unwrap();
    cluster.settle();
    assert_eq!(cluster.shards.len(), 4);
}

#[test]
fn a_drained_node_is_empty_and_gets_nothing() {
    let mut cluster = Cluster::new(&["", "", "", ""], 8);
    let id = cluster.start(OperatorRequest::Drain { node: NodeId(2) }).unwrap();
    cluster.settle();
    assert_eq!(cluster.outcome(id), &OperatorState::Done);
    assert_eq!(cluster.replicas_on(NodeId(2)), 0);
    assert_eq!(cluster.state.map().nodes[&NodeId(2)].status, NodeStatus::Draining);
    let balance = cluster.start(OperatorRequest::Rebalance).unwrap();
    cluster.settle();
    assert_eq!(cluster.outcome(balance), &OperatorState::Done);
    assert_eq!(cluster.replicas_on(NodeId(2)), 0);
}

#[test]
fn a_drain_without_a_place_to_go_says_so_and_goes_on_when_there_is_one() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    let id = cluster.start(OperatorRequest::Drain { node: NodeId(2) }).unwrap();
    for _ in 0..5 {
        cluster.plan();
        cluster.work();
        cluster.report();
    }
    let operator = cluster.state.operator(id).unwrap();
    assert!(operator.is_running());
    let last = &operator.steps.last().expect("it says what it waits for").what;
    assert!(last.contains("start another one"), "{last}");
    cluster.add_node("");
    cluster.settle();
    assert_eq!(cluster.replicas_on(NodeId(2)), 0);
}

#[test]
fn a_drain_that_is_called_off_leaves_no_learner_behind() {
    let mut cluster = Cluster::new(&["", "", "", ""], 2);
    let id = cluster.start(OperatorRequest::Drain { node: NodeId(2) }).unwrap();
    cluster.plan();
    cluster.work();
    cluster.report();
    assert!(cluster.shards.values().any(|shard| shard.replicas.len() == 4), "newcomers learn");
    let now_ms = cluster.now_ms;
    cluster.apply(ControlCommand::CancelOperator { id, now_ms }).unwrap();
    assert_eq!(cluster.state.running().count(), 0, "what it has started is called off with it");
    cluster.settle();
    for _ in 0..3 {
        cluster.work();
        cluster.report();
    }
    for shard in cluster.shards.values() {
        assert_eq!(shard.replicas.len(), 3);
        assert!(shard.replicas.iter().all(|replica| replica.role == Role::Voter));
    }
    assert_eq!(cluster.state.map().nodes[&NodeId(2)].status, NodeStatus::Alive);
}

#[test]
fn replicas_of_a_node_that_stays_dead_are_rebuilt_and_not_before() {
    let mut cluster = Cluster::new(&["", "", "", ""], 4);
    let dead = NodeId(2);
    for (shard, leader) in cluster.leaders.clone() {
        if leader == dead {
            let other = cluster.shards[&shard].replicas.iter().find(|r| r.node_id != dead).unwrap();
            cluster.leaders.insert(shard, other.node_id);
        }
    }
    cluster.term += 1;
    cluster.report();
    cluster.set_status(dead, NodeStatus::Dead);
    cluster.silent_ms.insert(dead, 299_999);
    assert_eq!(cluster.plan(), 0);
    cluster.silent_ms.insert(dead, 300_000);
    cluster.settle();
    assert_eq!(cluster.replicas_on(dead), 0);
    assert!(cluster.shards.values().all(|shard| shard.replicas.len() == 3));
}

#[test]
fn a_replaced_node_is_removed_and_its_address_free() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    let gone = NodeId(3);
    let address = cluster.state.map().nodes[&gone].address.clone();
    for (shard, leader) in cluster.leaders.clone() {
        if leader == gone {
            cluster.leaders.insert(shard, NodeId(1));
        }
    }
    cluster.term += 1;
    cluster.report();
    cluster.set_status(gone, NodeStatus::Dead);
    let id = cluster.start(OperatorRequest::Replace { node: gone }).unwrap();
    // The same machine with a new disk.
    let command = ControlCommand::RegisterNode { token: 77, address, zone: String::new() };
    let Ok(ControlResponse::Registered(heir, _)) = cluster.apply(command) else {
        panic!("its address is free")
    };
    cluster.settle();
    assert_eq!(cluster.outcome(id), &OperatorState::Done);
    assert_eq!(cluster.state.map().nodes[&gone].status, NodeStatus::Removed);
    assert_eq!((cluster.replicas_on(gone), cluster.replicas_on(heir)), (0, 2));
}

#[test]
fn an_operator_that_takes_too_long_fails_by_name() {
    let mut cluster = Cluster::new(&["", "", "", ""], 1);
    let from = cluster.leaders[&ShardId(1)];
    let free = NodeId((1..=4).find(|node| !cluster.nodes_of(1).contains(node)).unwrap());
    let id = cluster.start(OperatorRequest::Move { shard: ShardId(1), from, to: free }).unwrap();
    cluster.now_ms += 3_600_001;
    cluster.plan();
    assert!(matches!(cluster.outcome(id), OperatorState::Failed(why) if why.contains("3600 s")));
}

fn spread(counts: &[usize]) -> usize {
    counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn new_nodes_are_filled_and_a_balanced_cluster_is_left_alone(
        first in 3usize..5, more in 0usize..4, shards in 1u32..24, zoned in any::<bool>(),
    ) {
        let zone = |number: usize| if zoned { ["a", "b", "c"][number % 3] } else { "" };
        let zones: Vec<&str> = (0..first).map(zone).collect();
        let mut cluster = Cluster::new(&zones, shards);
        cluster.planner.config.rebalance = true;
        for number in first..first + more {
            cluster.add_node(zone(number));
        }
        let (preview, _) = cluster.planner.preview(&cluster.state, &cluster.loads);
        cluster.settle();
        prop_assert_eq!(cluster.plan(), 0);
        let nodes: Vec<NodeId> = cluster.state.map().nodes.keys().copied().collect();
        let replicas: Vec<usize> = nodes.iter().map(|node| cluster.replicas_on(*node)).collect();
        if !zoned {
            prop_assert!(spread(&replicas) <= 1, "{replicas:?}");
        }
        if zoned {
            for shard in cluster.shards.values() {
                let zones: BTreeSet<usize> = shard.replicas.iter().map(|r| (r.node_id.0 as usize - 1) % 3).collect();
                prop_assert_eq!(zones.len(), 3, "{:?}", shard);
            }
        }
        if more == 0 && !zoned {
            prop_assert!(preview.len() <= shards as usize);
        }
        let (left, why) = cluster.planner.preview(&cluster.state, &cluster.loads);
        prop_assert!(left.is_empty() && why.contains("nothing"), "{left:?} {why}");
    }

    #[test]
    fn shards_spread_over_as_many_zones_as_there_are(
        first in prop::collection::vec(0usize..3, 3..5),
        more in prop::collection::vec(0usize..4, 0..5),
        shards in 1u32..12,
    ) {
        let names = ["", "a", "b", "c"];
        let zones: Vec<&str> = first.iter().map(|zone| names[*zone]).collect();
        let mut cluster = Cluster::new(&zones, shards);
        cluster.planner.config.rebalance = true;
        for zone in &more {
            cluster.add_node(names[*zone]);
        }
        cluster.settle();
        prop_assert_eq!(cluster.plan(), 0);
        let nodes = &cluster.state.map().nodes;
        let there: BTreeSet<&str> = nodes.values().map(|node| node.zone.as_str()).collect();
        for shard in cluster.shards.values() {
            let zones = shard.replicas.iter().map(|replica| nodes[&replica.node_id].zone.as_str());
            let zones: BTreeSet<&str> = zones.collect();
            prop_assert_eq!(zones.len(), there.len().min(shard.replicas.len()), "{:?}", shard);
        }
    }

    #[test]
    fn whatever_is_asked_ends_and_leaves_the_map_whole(
        asks in prop::collection::vec((0u8..7, 1u64..12, 1u64..7, 1u64..7), 1..30),
    ) {
        let mut cluster = Cluster::new(&["", "", "", "", ""], 3);
        for (kind, shard, node, other) in asks {
            let (shard, node, other) = (ShardId(shard), NodeId(node), NodeId(other));
            let request = match kind {
                0 => OperatorRequest::Move { shard, from: node, to: other },
                1 => OperatorRequest::Lead { shard, node },
                2 => OperatorRequest::Split { shard, at: None },
                3 => OperatorRequest::SetReplicas { shard, nodes: vec![node, other], membership_epoch: None },
                4 => OperatorRequest::Rebalance,
                _ => {
                    let running = cluster.state.running().next().map(|operator| operator.id);
                    if let Some(id) = running {
                        let now_ms = cluster.now_ms;
                        cluster.apply(ControlCommand::CancelOperator { id, now_ms }).unwrap();
                    }
                    continue;
                }
            };
            let _ = cluster.start(request);
            cluster.plan();
            cluster.work();
            cluster.report();
        }
        cluster.settle();
        for _ in 0..6 {
            cluster.work();
            cluster.report();
        }
        cluster.check();
        let replicas = || cluster.shards.values().flat_map(|shard| &shard.replicas);
        prop_assert!(replicas().all(|replica| replica.role == Role::Voter));
        let ids: BTreeSet<ReplicaId> = cluster.shards.values().flat_map(|shard| &shard.replicas).map(|replica| replica.replica_id).collect();
        let all: usize = cluster.shards.values().map(|shard| shard.replicas.len()).sum();
        prop_assert_eq!(ids.len(), all, "a replica id was given twice");
    }
}

const MIB: u64 = 1 << 20;

fn holding(bytes: u64) -> Load {
    Load { bytes, ..Load::default() }
}

#[test]
fn a_shard_that_has_grown_too_large_is_split_at_the_middle_of_its_bytes() {
    let at = kvdb_model::key::slot_start(kvdb_model::KeyspaceId(1), 5000);
    let large = Load { bytes: 300 * MIB, split_at: Some(at.clone()), ..Load::default() };
    let mut cluster = Cluster::new(&["", "", ""], 1);
    cluster.loads.shards.insert(ShardId(1), Load { bytes: 255 * MIB, ..large.clone() });
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 0, "it isn't too large");
    cluster.loads.shards.insert(ShardId(1), Load { split_at: None, ..large.clone() });
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 0, "nobody knows where");
    let inside_a_slot = bytes::Bytes::from([&at[..], b"key"].concat());
    cluster
        .loads
        .shards
        .insert(ShardId(1), Load { split_at: Some(inside_a_slot), ..large.clone() });
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 0, "keys of a slot stay together");
    cluster.loads.shards.insert(ShardId(1), large.clone());
    cluster.planner.config.split_size_bytes = 0;
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 0, "it is turned off");
    cluster.planner.config.split_size_bytes = PlannerConfig::default().split_size_bytes;
    cluster.plan();
    let operator = cluster.state.running().next().expect("it is too large").clone();
    assert!(operator.reason.contains("300 MiB, more than 256 MiB"), "{}", operator.reason);
    // What is known is of before.
    cluster.loads.shards.clear();
    cluster.settle();
    assert_eq!(cluster.shards[&ShardId(2)].range.start, at);
    assert_eq!(cluster.shards[&ShardId(1)].range.end, at);
}

#[test]
fn a_split_that_has_failed_is_not_tried_again_at_once() {
    let at = kvdb_model::key::slot_start(kvdb_model::KeyspaceId(1), 5000);
    let mut cluster = Cluster::new(&["", "", ""], 1);
    let large = Load { bytes: 300 * MIB, split_at: Some(at), ..Load::default() };
    cluster.loads.shards.insert(ShardId(1), large);
    cluster.plan();
    let id = cluster.state.running().next().unwrap().id;
    let (failure, now_ms) = (Some("no".to_owned()), cluster.now_ms);
    cluster.apply(ControlCommand::FinishOperator { id, failure, now_ms }).unwrap();
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 0);
    cluster.now_ms += 60_000;
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 1);
}

#[test]
fn a_node_whose_disk_is_full_gets_nothing_more() {
    let mut cluster = Cluster::new(&["", "", ""], 6);
    cluster.planner.config.rebalance = true;
    let new = cluster.add_node("");
    cluster.loads.short.insert(new);
    cluster.settle();
    assert_eq!(cluster.replicas_on(new), 0);
    // Not even what must leave another node.
    cluster.start(OperatorRequest::Drain { node: NodeId(1) }).unwrap();
    (0..10).for_each(|_| {
        cluster.plan();
    });
    assert_eq!(cluster.replicas_on(new), 0);
    cluster.loads.short.clear();
    cluster.settle();
    assert_eq!(cluster.replicas_on(NodeId(1)), 0);
    assert!(cluster.replicas_on(new) > 0);
}

#[test]
fn leaders_are_spread_by_what_their_shards_are_asked() {
    let mut cluster = Cluster::new(&["", "", ""], 6);
    cluster.planner.config.rebalance = true;
    cluster.settle();
    // By number all is even; all that is asked is asked of one node.
    let node = cluster.leaders[&ShardId(1)];
    for (shard, leader) in &cluster.leaders {
        let asked = if *leader == node { 10_000 } else { 0 };
        let load = Load { reads_per_second: asked, ..Load::default() };
        cluster.loads.shards.insert(*shard, load);
    }
    cluster.settle();
    let busy: BTreeSet<NodeId> = cluster
        .leaders
        .iter()
        .filter(|(shard, _)| cluster.loads.shards[shard].reads_per_second > 0)
        .map(|(_, leader)| *leader)
        .collect();
    assert_eq!(busy.len(), 2, "both busy shards are led from one node");
}

proptest! {
    #[test]
    fn bytes_are_spread_and_it_ends(
        nodes in 3usize..7,
        more in 0usize..3,
        sizes in prop::collection::vec(0u64..600, 1..24),
    ) {
        let mut cluster = Cluster::new(&vec![""; nodes], sizes.len() as u32);
        cluster.planner.config.rebalance = true;
        cluster.planner.config.split_size_bytes = 0;
        for (place, size) in sizes.iter().enumerate() {
            cluster.loads.shards.insert(ShardId(place as u64 + 1), holding(size * MIB));
        }
        (0..more).for_each(|_| { cluster.add_node(""); });
        // Ends, with no more than one replica of a shard on a node and never fewer than before.
        cluster.settle();
        prop_assert!(cluster.shards.values().all(|shard| shard.replicas.len() == 3));
        prop_assert_eq!(cluster.plan(), 0, "it is never content");
        // Nothing could move from one node to another and make the two much more even.
        let weight = |shard: &ShardId| 16 * MIB + cluster.loads.shards[shard].bytes;
        let on = |node: NodeId| -> Vec<ShardId> {
            let here = cluster.shards.iter().filter(|(_, shard)| shard.replica_on(node).is_some());
            here.map(|(id, _)| *id).collect()
        };
        let all: Vec<NodeId> = cluster.state.map().nodes.keys().copied().collect();
        let of = |node: NodeId| on(node).iter().map(weight).sum::<u64>();
        let mean = all.iter().map(|node| of(*node)).sum::<u64>() / all.len() as u64;
        for from in &all {
            for to in &all {
                let difference = of(*from).saturating_sub(of(*to));
                let much = difference >= (128 * MIB).max(mean / 5);
                let fits = |shard: &ShardId| {
                    2 * weight(shard) <= difference && !on(*to).contains(shard)
                };
                prop_assert!(!much || !on(*from).iter().any(fits), "{from} to {to}");
            }
        }
    }
}
