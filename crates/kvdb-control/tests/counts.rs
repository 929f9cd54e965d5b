//! Shards get as many replicas as their keyspace wants, whenever there are nodes for them.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod cluster;

use cluster::Cluster;
use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, OperatorRequest, OperatorState, Shortage,
};
use kvdb_model::{NewKeyspace, NodeId, NodeStatus, Partitioning, ShardId};

fn create(cluster: &mut Cluster, name: &str, factor: u32) -> Result<(), ControlError> {
    let command = ControlCommand::CreateKeyspace(NewKeyspace {
        name: name.to_owned(),
        partitioning: Partitioning::Hash,
        shards: 2,
        replicas: factor,
        history: None,
        colocated: false,
        redis_db: 0,
    });
    let made = cluster.apply(command)?;
    assert!(matches!(made, ControlResponse::KeyspaceCreated(..)), "{made:?}");
    for (shard, record) in cluster.state.map().shards.clone() {
        if record.creating {
            cluster.leaders.insert(shard, record.descriptor.replicas[0].node_id);
            cluster.shards.insert(shard, record.descriptor);
        }
    }
    cluster.report();
    Ok(())
}

#[test]
fn a_keyspace_made_while_a_node_is_away_gets_its_replicas_when_it_is_back() {
    for away in [NodeStatus::Suspect, NodeStatus::Dead] {
        let mut cluster = Cluster::new(&["", "", ""], 1);
        cluster.set_status(NodeId(3), away);
        create(&mut cluster, "orders", 0).unwrap();
        let short = |shard, replicas| Shortage { shard: ShardId(shard), replicas, wanted: 3 };
        let mut expected = vec![short(2, 2), short(3, 2)];
        if away == NodeStatus::Dead {
            // One of its three replicas isn't there.
            expected.insert(0, short(1, 2));
        }
        assert_eq!(cluster.state.shortages(), expected);
        cluster.settle();
        assert_eq!(cluster.nodes_of(2).len(), 2, "there is no node for a third replica");
        cluster.set_status(NodeId(3), NodeStatus::Alive);
        cluster.settle();
        for shard in [2, 3] {
            assert_eq!(cluster.nodes_of(shard), [1, 2, 3].into(), "{away:?}");
        }
        assert_eq!(cluster.state.shortages(), []);
    }
}

#[test]
fn a_cluster_that_began_with_one_node_spreads_over_those_that_come() {
    let mut cluster = Cluster::new(&[""], 20);
    assert_eq!(cluster.state.shortages().len(), 20);
    cluster.add_node("");
    cluster.settle();
    assert!((1..=20).all(|shard| cluster.nodes_of(shard).len() == 2));
    cluster.add_node("");
    cluster.settle();
    assert!((1..=20).all(|shard| cluster.nodes_of(shard).len() == 3));
    // No more than is wanted.
    cluster.add_node("");
    cluster.settle();
    assert!((1..=20).all(|shard| cluster.nodes_of(shard).len() == 3));
}

#[test]
fn what_is_missing_comes_a_few_at_a_time() {
    let mut cluster = Cluster::new(&[""], 50);
    cluster.add_node("");
    cluster.add_node("");
    cluster.plan();
    let running = cluster.state.running().count();
    assert_eq!(running, cluster.planner.config.moves_per_node);
    cluster.settle();
    assert!((1..=50).all(|shard| cluster.nodes_of(shard).len() == 3));
}

#[test]
fn a_number_that_was_asked_for_is_the_keyspaces_own() {
    let mut cluster = Cluster::new(&["", "", ""], 1);
    cluster.set_status(NodeId(3), NodeStatus::Dead);
    create(&mut cluster, "one", 1).unwrap();
    create(&mut cluster, "all", 3).unwrap();
    let refused = create(&mut cluster, "four", 4).unwrap_err();
    assert_eq!(refused, ControlError::TooFewForReplicas { replicas: 4, nodes: 3 });
    let refused = create(&mut cluster, "many", 8).unwrap_err();
    assert!(matches!(refused, ControlError::OutOfRange { value: 8, .. }), "{refused:?}");
    cluster.set_status(NodeId(3), NodeStatus::Alive);
    cluster.settle();
    let wanted = |name| cluster.state.map().keyspace_named(name).unwrap().replicas;
    assert_eq!((wanted("default"), wanted("one"), wanted("all")), (3, 1, 3));
    assert_eq!((cluster.nodes_of(2).len(), cluster.nodes_of(4).len()), (1, 3));
}

#[test]
fn a_shard_that_was_put_on_fewer_nodes_by_hand_stays_there() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    let nodes = vec![NodeId(1), NodeId(2)];
    let request =
        |nodes| OperatorRequest::SetReplicas { shard: ShardId(1), nodes, membership_epoch: None };
    cluster.start(request(nodes)).unwrap();
    cluster.settle();
    assert_eq!(cluster.nodes_of(1), [1, 2].into());
    assert_eq!(cluster.state.shortages(), []);
    cluster.start(request(vec![NodeId(1), NodeId(2), NodeId(3)])).unwrap();
    cluster.settle();
    assert_eq!(cluster.nodes_of(1), [1, 2, 3].into());
}

#[test]
fn the_plan_names_what_shards_lack_and_why_they_dont_get_it() {
    let mut cluster = Cluster::new(&[""], 1);
    let (moves, why) = cluster.planner.preview(&cluster.state, &cluster.loads);
    assert_eq!(moves, []);
    assert!(why.contains("shard 1 can't get as many replicas as wanted"), "{why}");
    let why = cluster.planner.why_short(&cluster.state, &cluster.loads, ShardId(1));
    assert!(why.contains("start another one"), "{why}");
    cluster.add_node("");
    cluster.add_node("");
    let (moves, why) = cluster.planner.preview(&cluster.state, &cluster.loads);
    assert_eq!(moves[0].request.describe(), "shard 1: replicas on nodes 1,2,3");
    assert_eq!(moves[0].reason, "it has 1 of 3 replicas");
    assert!(!why.contains("can't get"), "{why}");
    cluster.plan();
    let why = cluster.planner.why_short(&cluster.state, &cluster.loads, ShardId(1));
    assert!(why.contains("is running"), "{why}");
}

#[test]
fn a_disk_without_room_gets_none_of_what_is_missing() {
    let mut cluster = Cluster::new(&[""], 3);
    let second = cluster.add_node("");
    let third = cluster.add_node("");
    cluster.loads.short.insert(third);
    cluster.settle();
    assert!((1..=3).all(|shard| cluster.nodes_of(shard) == [1, second.0].into()));
    cluster.loads.short.clear();
    cluster.settle();
    assert!((1..=3).all(|shard| cluster.nodes_of(shard).len() == 3));
}

#[test]
fn new_replicas_that_could_not_be_made_are_tried_again_after_a_while() {
    let mut cluster = Cluster::new(&[""], 1);
    cluster.add_node("");
    cluster.plan();
    let id = cluster.state.running().next().unwrap().id;
    let now_ms = cluster.now_ms;
    let failure = Some("a test".to_owned());
    cluster.apply(ControlCommand::FinishOperator { id, failure, now_ms }).unwrap();
    assert_eq!(cluster.plan(), 0);
    cluster.now_ms += 10_000;
    assert_eq!(cluster.plan(), 1);
    cluster.settle();
    assert_eq!(cluster.nodes_of(1).len(), 2);
    assert!(matches!(cluster.outcome(id), OperatorState::Failed(_)));
}
