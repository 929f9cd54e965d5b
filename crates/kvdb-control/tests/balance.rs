//! What the planner does of its own accord: replicas and leaders are spread, large shards are split.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod cluster;

use cluster::Cluster;
use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, Load, OperatorRequest, PlannerConfig,
};
use kvdb_model::{NewKeyspace, NodeId, ShardId};
use proptest::prelude::*;
use std::collections::BTreeSet;

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
fn the_shard_of_a_colocated_keyspace_is_never_split() {
    let mut cluster = Cluster::new(&["", "", ""], 1);
    let colocated = |shards| NewKeyspace { colocated: true, shards, ..NewKeyspace::named("app") };
    let refused = Err(ControlError::Colocated("app".to_owned()));
    assert_eq!(cluster.apply(ControlCommand::CreateKeyspace(colocated(2))), refused);
    let made = cluster.apply(ControlCommand::CreateKeyspace(colocated(0))).unwrap();
    let ControlResponse::KeyspaceCreated(keyspace, _) = made else { panic!("it is new") };
    let shard = ShardId(2);
    let descriptor = cluster.state.map().shards[&shard].descriptor.clone();
    assert_eq!(descriptor.keyspace_id, keyspace);
    assert_eq!(descriptor.range, kvdb_model::KeyRange::of_keyspace(keyspace));
    cluster.leaders.insert(shard, descriptor.replicas[0].node_id);
    cluster.shards.insert(shard, descriptor);
    cluster.report();
    let at = kvdb_model::key::slot_start(keyspace, 5000);
    let large = Load { bytes: 300 * MIB, split_at: Some(at.clone()), ..Load::default() };
    cluster.loads.shards.insert(shard, large);
    cluster.plan();
    assert_eq!(cluster.state.running().count(), 0);
    for request in [
        OperatorRequest::Split { shard, at: None },
        OperatorRequest::Split { shard, at: Some("k".into()) },
        OperatorRequest::SplitAt { shard, at },
    ] {
        assert_eq!(cluster.start(request).err(), refused.clone().err());
    }
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

/// All that is asked is asked where shard 1 is led, wherever that is.
fn ask_all_of_one_node(cluster: &mut Cluster) {
    let node = cluster.leaders[&ShardId(1)];
    for (shard, leader) in &cluster.leaders {
        let asked = if *leader == node { 10_000 } else { 0 };
        let load = Load { reads_per_second: asked, ..Load::default() };
        cluster.loads.shards.insert(*shard, load);
    }
}

#[test]
fn leaders_are_spread_by_what_their_shards_are_asked() {
    let mut cluster = Cluster::new(&["", "", ""], 6);
    cluster.planner.config.rebalance = true;
    cluster.settle();
    // By number all is even.
    ask_all_of_one_node(&mut cluster);
    cluster.settle();
    let busy: BTreeSet<NodeId> = cluster
        .leaders
        .iter()
        .filter(|(shard, _)| cluster.loads.shards[shard].reads_per_second > 0)
        .map(|(_, leader)| *leader)
        .collect();
    assert_eq!(busy.len(), 2, "both busy shards are led from one node");
}

#[test]
fn a_shard_that_was_handed_over_stays_where_it_is_for_a_while() {
    let mut cluster = Cluster::new(&["", "", ""], 6);
    cluster.planner.config.rebalance = true;
    cluster.settle();
    let minutes = |cluster: &mut Cluster, minutes: u64| {
        let before = cluster.state.operators().count();
        for round in 0..minutes * 240 {
            if round % 8 == 0 {
                ask_all_of_one_node(cluster);
            }
            cluster.plan();
            cluster.work();
            cluster.report();
        }
        cluster.state.operators().count() - before
    };
    let hand_overs = minutes(&mut cluster, 5);
    assert!(hand_overs > 0, "this proves nothing");
    // Each of six shards twice a minute, and as often back since the number must be even.
    assert!(hand_overs <= 2 * 6 * 2 * 5, "{hand_overs} hand-overs in five minutes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn a_steady_load_that_is_measured_inexactly_keeps_leaders_where_they_are(
        shards in 3u32..20,
        errors in proptest::collection::vec(900u64..1100, 97),
    ) {
        let mut cluster = Cluster::new(&["", "", ""], shards);
        cluster.planner.config.rebalance = true;
        cluster.settle();
        let before = cluster.state.operators().count();
        for round in 0..1200 {
            for shard in cluster.leaders.keys() {
                let error = errors[(shard.0 as usize * 31 + round / 8 * 7) % errors.len()];
                let load = Load { writes_per_second: 3 * error, ..Load::default() };
                cluster.loads.shards.insert(*shard, load);
            }
            cluster.plan();
            cluster.work();
            cluster.report();
        }
        let hand_overs = cluster.state.operators().count() - before;
        prop_assert!(hand_overs <= 3, "{hand_overs} hand-overs in five minutes");
    }
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

#[test]
fn a_node_that_should_rather_not_lead_hands_over_and_gets_nothing_back() {
    let mut cluster = Cluster::new(&["", "", ""], 9);
    cluster.planner.config.rebalance = true;
    cluster.settle();
    let leads = |cluster: &Cluster, node: u64| {
        cluster.leaders.values().filter(|leader| leader.0 == node).count()
    };
    assert_eq!(leads(&cluster, 2), 3);
    let reason = kvdb_control::Reason::SlowDisk { sync_us: 50_000, peers_us: 900 };
    cluster.loads.less_preferred.insert(NodeId(2), vec![reason]);
    cluster.settle();
    assert_eq!(leads(&cluster, 2), 0);
    // It keeps its replicas.
    assert_eq!(cluster.replicas_on(NodeId(2)), 9);
    let why = |cluster: &Cluster| {
        let mut reasons = cluster.state.operators().map(|operator| operator.reason.clone());
        reasons.find(|reason| reason.contains("is a less preferred leader"))
    };
    assert!(why(&cluster).unwrap().contains("takes 50 ms, on the other nodes 0.9 ms"));
    // Nor where it is the only other one: then it leads on.
    for node in [1, 3] {
        cluster.loads.less_preferred.insert(NodeId(node), vec![reason]);
    }
    assert_eq!(cluster.plan(), 0);
    // All well again: it gets its part back.
    cluster.loads.less_preferred.clear();
    cluster.now_ms += 60_000;
    cluster.settle();
    assert_eq!(leads(&cluster, 2), 3);
}
