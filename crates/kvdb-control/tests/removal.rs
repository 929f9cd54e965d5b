//! A node is taken away only where nothing depends on it, or by force and with repair.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod cluster;

use cluster::Cluster;
use kvdb_control::{ControlCommand, ControlError, OperatorRequest};
use kvdb_model::{NodeId, NodeStatus, ShardId};

fn remove(cluster: &mut Cluster, node: u64) -> Result<(), ControlError> {
    let (node, status) = (NodeId(node), NodeStatus::Removed);
    cluster.apply(ControlCommand::SetNodeStatus { node, status }).map(|_| ())
}

fn force(cluster: &mut Cluster, node: u64) -> Result<(), ControlError> {
    cluster.apply(ControlCommand::RemoveNode { node: NodeId(node) }).map(|_| ())
}

#[test]
fn a_living_node_and_one_that_holds_replicas_are_not_removed() {
    let mut cluster = Cluster::new(&["", "", ""], 4);
    let fourth = cluster.add_node("").0;
    for status in [NodeStatus::Alive, NodeStatus::Suspect] {
        for (node, replicas) in [(1, 4), (fourth, 0)] {
            cluster.set_status(NodeId(node), status);
            let refused = remove(&mut cluster, node).unwrap_err();
            assert_eq!(refused, ControlError::NodeInUse { node: NodeId(node), status, replicas });
            let words = refused.to_string();
            for advice in ["admin drain", "admin replace", "--force"] {
                assert!(words.contains(advice), "{words}");
            }
        }
    }
    cluster.set_status(NodeId(1), NodeStatus::Dead);
    assert!(matches!(remove(&mut cluster, 1), Err(ControlError::NodeInUse { replicas: 4, .. })));
    cluster.set_status(NodeId(fourth), NodeStatus::Dead);
    remove(&mut cluster, fourth).unwrap();
    // Again: it is so already. And it never comes back.
    remove(&mut cluster, fourth).unwrap();
    let status = NodeStatus::Alive;
    let again = cluster.apply(ControlCommand::SetNodeStatus { node: NodeId(fourth), status });
    assert_eq!(again, Err(ControlError::NodeRemoved(NodeId(fourth))));
}

#[test]
fn what_a_node_held_that_was_removed_by_force_is_rebuilt_at_once() {
    let mut cluster = Cluster::new(&["", "", "", ""], 8);
    force(&mut cluster, 1).unwrap();
    assert!(!cluster.state.is_dismissed(NodeId(1)));
    cluster.settle();
    assert_eq!(cluster.replicas_on(NodeId(1)), 0);
    assert!((1..=8).all(|shard| cluster.nodes_of(shard) == [2, 3, 4].into()));
    assert!(cluster.state.is_dismissed(NodeId(1)));
    assert_eq!(cluster.state.shortages(), []);
}

#[test]
fn nothing_is_removed_without_which_a_shard_would_have_no_majority() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    force(&mut cluster, 3).unwrap();
    assert_eq!(cluster.state.shortages().len(), 2);
    for status in [NodeStatus::Alive, NodeStatus::Dead] {
        cluster.set_status(NodeId(2), status);
        let refused = force(&mut cluster, 2).unwrap_err();
        let shards = vec![ShardId(1), ShardId(2)];
        assert_eq!(refused, ControlError::NeededForMajority { node: NodeId(2), shards, more: 0 });
        assert!(refused.to_string().contains("shards 1, 2 would have no majority"), "{refused}");
    }
    // The only replica of a shard.
    let mut cluster = Cluster::new(&[""], 30);
    let refused = force(&mut cluster, 1).unwrap_err();
    assert!(matches!(refused, ControlError::NeededForMajority { more: 20, .. }), "{refused:?}");
}

#[test]
fn a_removed_node_is_not_asked_to_lead() {
    let mut cluster = Cluster::new(&["", "", "", ""], 1);
    let shard = ShardId(1);
    let (node, leads) = (NodeId(2), cluster.leaders[&shard]);
    assert_ne!(node, leads);
    cluster.apply(ControlCommand::SetShardLeader { shard, node }).unwrap();
    force(&mut cluster, node.0).unwrap();
    assert!(cluster.state.wanted_leaders().is_empty());
    let asked = cluster.apply(ControlCommand::SetShardLeader { shard, node });
    assert_eq!(asked, Err(ControlError::NodeRemoved(node)));
    let asked = cluster.start(OperatorRequest::Lead { shard, node });
    assert_eq!(asked, Err(ControlError::NodeRemoved(node)));
}

#[test]
fn a_drain_that_has_nowhere_to_go_is_known_at_once() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    cluster.start(OperatorRequest::Drain { node: NodeId(2) }).unwrap();
    let why =
        |cluster: &Cluster| cluster.planner.why_stuck(&cluster.state, &cluster.loads, NodeId(2));
    let words = why(&cluster).unwrap();
    assert!(words.contains("shards 1, 2 can't leave node 2 now"), "{words}");
    cluster.add_node("");
    assert_eq!(why(&cluster), None);
}
