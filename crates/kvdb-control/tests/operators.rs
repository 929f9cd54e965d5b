//! Operators from the request to the end, with shard leaders that do what they are told.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod cluster;

use cluster::Cluster;
use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, LedShard, OperatorKind, OperatorRequest,
    OperatorState,
};
use kvdb_model::{
    MembershipEpoch, NewKeyspace, NodeId, NodeStatus, Partitioning, ReplicaId, Role, ShardId, Term,
    slot_of,
};
use proptest::prelude::*;
use std::collections::BTreeSet;

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
    assert!(operator.steps.iter().any(|step| step.what.contains("(learner)")), "{operator:?}");
    assert!(operator.ended_ms >= operator.started_ms && operator.reason == "a test");
}

/// An operation was given up while a leader was still at it, and the next one was planned by what was
/// reported before.
#[test]
fn a_replica_that_was_removed_meanwhile_is_not_brought_back() {
    let mut cluster = Cluster::new(&["", "", "", ""], 1);
    let shard = ShardId(1);
    let here = cluster.shards[&shard].replicas.clone();
    let leader = cluster.leaders[&shard];
    let gone = *here.iter().rfind(|replica| replica.node_id != leader).unwrap();
    let free = (1..=4).map(NodeId).find(|node| here.iter().all(|one| one.node_id != *node));
    let free = free.unwrap();
    let moved = OperatorRequest::Move { shard, from: gone.node_id, to: free };
    let first = cluster.start(moved).unwrap();
    cluster.work();
    cluster.report();
    let now_ms = cluster.now_ms;
    cluster.apply(ControlCommand::CancelOperator { id: first, now_ms }).unwrap();
    let nodes = vec![leader, gone.node_id, free];
    let request = OperatorRequest::SetReplicas { shard, nodes, membership_epoch: None };
    let second = cluster.start(request).unwrap();

    // The leader has gone on with what it was asked before.
    let descriptor = cluster.shards.get_mut(&shard).unwrap();
    descriptor.replicas.retain(|replica| replica.replica_id != gone.replica_id);
    descriptor.replicas.iter_mut().for_each(|replica| replica.role = Role::Voter);
    descriptor.membership_epoch = MembershipEpoch(descriptor.membership_epoch.0 + 2);
    cluster.work();
    assert!(cluster.shards[&shard].replica(gone.replica_id).is_none(), "nothing is done");
    cluster.report();
    cluster.plan();
    let why = "a replica that it was to keep was removed meanwhile".to_owned();
    assert_eq!(cluster.outcome(second), &OperatorState::Failed(why));
    cluster.settle();
    assert!(cluster.shards[&shard].replica(gone.replica_id).is_none());
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
fn what_makes_no_sense_is_said_even_while_the_shard_is_busy() {
    let mut cluster = Cluster::new(&["", "", "", ""], 1);
    let from = *cluster.nodes_of(1).first().unwrap();
    let free = (1..=4).find(|node| !cluster.nodes_of(1).contains(node)).unwrap();
    let (shard, from, to) = (ShardId(1), NodeId(from), NodeId(free));
    cluster.start(OperatorRequest::Move { shard, from, to }).unwrap();
    let mut set = |nodes: &[u64]| {
        let nodes = nodes.iter().map(|node| NodeId(*node)).collect();
        cluster.start(OperatorRequest::SetReplicas { shard, nodes, membership_epoch: None })
    };
    assert_eq!(set(&[1, 1, 2]), Err(ControlError::DuplicateNode { shard }));
    assert_eq!(set(&[1, 2, 77]), Err(ControlError::UnknownNode(NodeId(77))));
    assert!(matches!(set(&[1, 2]), Err(ControlError::ShardBusy { .. })));
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
    let command = ControlCommand::CreateKeyspace(NewKeyspace {
        name: "ordered".to_owned(),
        partitioning: Partitioning::Range,
        history: None,
        shards: 0,
        replicas: 0,
        colocated: false,
        redis_db: 0,
    });
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
fn the_status_of_a_node_that_is_drained_is_left_alone_until_the_drain_ends() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    let node = NodeId(2);
    let operator = cluster.start(OperatorRequest::Drain { node }).unwrap();
    for status in [NodeStatus::Alive, NodeStatus::Dead, NodeStatus::Suspect] {
        let set = cluster.apply(ControlCommand::SetNodeStatus { node, status });
        assert_eq!(set.map(|_| ()), Err(ControlError::NodeDrains { node, operator }));
    }
    cluster.set_status(NodeId(3), NodeStatus::Suspect);
    assert_eq!(cluster.state.map().nodes[&node].status, NodeStatus::Draining);
    cluster.add_node("");
    cluster.set_status(NodeId(3), NodeStatus::Alive);
    cluster.settle();
    assert_eq!(cluster.outcome(operator), &OperatorState::Done);
    cluster.set_status(node, NodeStatus::Alive);
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
fn a_hand_over_to_a_node_that_dies_does_not_hold_up_the_repair() {
    let mut cluster = Cluster::new(&["", "", "", ""], 1);
    let leader = cluster.leaders[&ShardId(1)];
    let heir = cluster.nodes_of(1).into_iter().map(NodeId).find(|node| *node != leader).unwrap();
    let id = cluster.start(OperatorRequest::Lead { shard: ShardId(1), node: heir }).unwrap();
    // It dies before the leader has heard of it.
    cluster.set_status(heir, NodeStatus::Dead);
    cluster.silent_ms.insert(heir, 300_000);
    cluster.plan();
    assert!(matches!(cluster.outcome(id), OperatorState::Failed(why) if why.contains("is DEAD")));
    cluster.settle();
    assert_eq!(cluster.replicas_on(heir), 0);
    assert_eq!(cluster.nodes_of(1).len(), 3);
}

#[test]
fn a_hand_over_that_does_not_come_about_is_given_up_soon() {
    let mut cluster = Cluster::new(&["", "", ""], 6);
    cluster.planner.config.rebalance = true;
    let node = NodeId(1);
    cluster.leaders.values_mut().for_each(|leader| *leader = node);
    cluster.term += 1;
    cluster.report();
    cluster.plan();
    let operator = cluster.state.running().next().expect("leaders are to be spread").clone();
    assert!(matches!(operator.kind, OperatorKind::Lead { .. }), "{operator:?}");
    cluster.now_ms += 31_000;
    cluster.plan();
    assert!(
        matches!(cluster.outcome(operator.id), OperatorState::Failed(why) if why.contains("30 s"))
    );
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

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
