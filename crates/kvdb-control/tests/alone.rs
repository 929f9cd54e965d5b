//! Coordinators that have lost their majority go on from one of them, which hasn't heard all that was decided.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod cluster;

use bytes::Bytes;
use cluster::Cluster;
use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, ControlState, CoordinatorRecord, LedShard,
    OperatorRequest, OperatorState, first_descriptor, generation_of, plan_alone,
};
use kvdb_model::{
    Generation, HistoryLimits, MapVersion, MembershipEpoch, NewKeyspace, NodeId, NodeStatus,
    Partitioning, RangeEpoch, ReplicaId, ShardId, ShardMap, Term,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const FIRST: Generation = Generation { number: 1, nonce: 99 };

fn recover(state: &mut ControlState, generation: Generation) -> Result<(), ControlError> {
    let (id, address, token) = (NodeId(1), "127.0.0.1:7101".to_owned(), 1);
    let command = ControlCommand::RecoverAlone { id, address, token, generation };
    let command = ControlCommand::decode(&command.to_bytes()).unwrap();
    state.apply(&command).result.map(|_| ())
}

fn found(state: &mut ControlState) {
    let founder = |id: u64| {
        let address = format!("127.0.0.1:{}", 7100 + id);
        (NodeId(id), CoordinatorRecord { address, token: id.into(), is_removed: false })
    };
    let founders = (1..=3).map(founder).collect();
    state.apply(&ControlCommand::FoundCoordinators { founders }).result.unwrap();
}

fn report(cluster: &mut Cluster, node: u64) {
    let led = cluster.shards.values().filter(|shard| cluster.leaders[&shard.shard_id].0 == node);
    let term = Term(cluster.term);
    let led = led.cloned().map(|descriptor| LedShard { descriptor, term }).collect();
    cluster.apply(ControlCommand::ReportShards { node: NodeId(node), led }).unwrap();
}

#[test]
fn all_that_is_given_out_leaps_and_the_others_are_left_behind() {
    let mut cluster = Cluster::new(&["", "", ""], 2);
    found(&mut cluster.state);
    let (name, limits) =
        ("default".to_owned(), HistoryLimits { max_age_ms: 5000, max_bytes: 1 << 20 });
    cluster.apply(ControlCommand::SetHistory { name, history: Some(limits) }).unwrap();
    let before = cluster.state.clone();
    recover(&mut cluster.state, FIRST).unwrap();
    let after = &cluster.state;
    assert_eq!(after.generation(), FIRST);
    let leap = 1 << 20;
    assert_eq!(after.map().version, MapVersion(before.map().version.0 + leap));
    let revision =
        |state: &ControlState| state.map().keyspace_named("default").unwrap().history.revision;
    assert_eq!(revision(after), revision(&before) + leap);
    // What shards count by themselves stays.
    assert_eq!(after.map().shards, before.map().shards);
    assert!(after.is_left_behind(NodeId(2)) && after.is_left_behind(NodeId(3)));
    let [own] = after.wanted_coordinators()[..] else {
        panic!("{:?}", after.wanted_coordinators())
    };
    assert_eq!((own.node_id, generation_of(own.replica_id)), (NodeId(1), 1));
    // Once is enough, and nothing older or beside it is taken.
    let once = after.clone();
    recover(&mut cluster.state, FIRST).unwrap();
    assert_eq!(cluster.state, once);
    let told = Generation { nonce: 98, ..FIRST };
    let refused = recover(&mut cluster.state, told);
    assert_eq!(refused, Err(ControlError::OldGeneration { known: FIRST, told }));
    // Records lead back to it.
    let mut loaded = ControlState::default();
    for (key, value) in ControlState::default().changed_records(&once) {
        loaded.load(&key, &value.unwrap()).unwrap();
    }
    assert_eq!(loaded, once);

    (1..=3).for_each(|node| report(&mut cluster, node));
    let made = cluster.apply(ControlCommand::CreateKeyspace(NewKeyspace {
        name: "new".to_owned(),
        partitioning: Partitioning::Range,
        shards: 1,
        replicas: 0,
        history: None,
        colocated: false,
        redis_db: 0,
    }));
    assert!(matches!(made, Ok(ControlResponse::KeyspaceCreated(id, _)) if id.0 > leap as u32));
    assert!(cluster.state.map().shards.keys().any(|shard| shard.0 > leap));
    let node = cluster.add_node("");
    assert!(node.0 > leap);
    // A new coordinator votes under an id of this generation; the numbers of those that are lost stay taken.
    let add = |id: u64| ControlCommand::AddCoordinator {
        id: NodeId(id),
        address: format!("127.0.0.1:{}", 7100 + id),
        token: u128::from(id),
    };
    assert_eq!(cluster.apply(add(2)), Err(ControlError::CoordinatorRemoved(NodeId(2))));
    cluster.apply(add(4)).unwrap();
    let ids = cluster.state.wanted_coordinators().into_iter().map(|replica| replica.replica_id);
    assert_eq!(ids.collect::<Vec<_>>(), [ReplicaId((1 << 32) | 1), ReplicaId((1 << 32) | 4)]);
}

#[test]
fn nothing_is_planned_until_every_node_has_reported_or_is_declared_gone() {
    let mut cluster = Cluster::new(&["", "", "", "", ""], 2);
    let drained = cluster.start(OperatorRequest::Drain { node: NodeId(5) }).unwrap();
    recover(&mut cluster.state, FIRST).unwrap();
    assert!(
        matches!(cluster.outcome(drained), OperatorState::Failed(why) if why.contains("recovered"))
    );
    assert_eq!(cluster.state.map().nodes[&NodeId(5)].status, NodeStatus::Alive);
    for node in [1, 2, 3] {
        report(&mut cluster, node);
    }
    cluster.set_status(NodeId(4), NodeStatus::Dead);
    cluster.silent_ms.insert(NodeId(4), 3_600_000);
    let waits = Err(ControlError::AwaitsNodes(vec![NodeId(4), NodeId(5)]));
    let split = OperatorRequest::Split { shard: ShardId(1), at: None };
    assert_eq!(cluster.start(split.clone()), waits);
    let name = "default".to_owned();
    assert_eq!(
        cluster.apply(ControlCommand::SetHistory { name, history: None }).map(|_| ()),
        waits.clone().map(|_: kvdb_model::OperatorId| ())
    );
    assert_eq!(cluster.plan(), 0);
    report(&mut cluster, 5);
    assert_eq!(cluster.plan(), 0);
    assert!((1..=5).all(|node| cluster.state.tasks_of(NodeId(node)).is_empty()));
    // Gone for good: said by replacing it.
    cluster.start(OperatorRequest::Replace { node: NodeId(4) }).unwrap();
    assert!(cluster.state.awaited().is_empty());
    cluster.start(split).unwrap();
    // Others lead what it led.
    cluster.term += 1;
    for (shard, descriptor) in &cluster.shards {
        let heir = descriptor.replicas.iter().find(|replica| replica.node_id != NodeId(4));
        cluster.leaders.insert(*shard, heir.unwrap().node_id);
    }
    cluster.report();
    cluster.settle();
    assert_eq!(cluster.state.map().nodes[&NodeId(4)].status, NodeStatus::Removed);
}

#[test]
fn a_node_that_only_the_lost_coordinators_knew_keeps_its_number() {
    let mut state = Cluster::new(&["", "", ""], 1).state;
    let adopt = |node| ControlCommand::AdoptNode { node: NodeId(node), token: 77 };
    let unknown = Err(ControlError::UnknownNode(NodeId(4)));
    assert_eq!(state.apply(&adopt(4)).result.map(|_| ()), unknown, "nothing was lost");
    recover(&mut state, FIRST).unwrap();
    let taken = Err(ControlError::UnknownNode(NodeId(3)));
    assert_eq!(state.apply(&adopt(3)).result.map(|_| ()), taken, "it is another one's");
    let beyond = state.apply(&adopt(1 << 30)).result;
    assert!(beyond.is_err(), "nobody ever gave it out");
    state.apply(&adopt(4)).result.unwrap();
    let enter = ControlCommand::EnterNode {
        token: 77,
        address: "127.0.0.1:7777".to_owned(),
        zone: String::new(),
        is_reached: true,
        start: None,
    };
    let entered = state.apply(&enter).result.unwrap();
    assert!(matches!(entered, ControlResponse::Registered(NodeId(4), _)), "{entered:?}");
}

#[test]
fn a_group_goes_on_from_one_that_votes_far_beyond_what_the_lost_ones_can_have_reached() {
    let group = first_descriptor([1, 2, 3].map(NodeId).into_iter());
    let plan = plan_alone(&group, NodeId(2), &FIRST, Term(7)).unwrap();
    assert_eq!((plan.survivor, plan.term), (ReplicaId(2), Term(7 + (1 << 20))));
    assert_eq!(plan.replica.replica_id, ReplicaId((1 << 32) | 2));
    assert_eq!(plan.membership_epoch, MembershipEpoch(1 + (1 << 20)));
    assert_eq!(
        (plan.range_epoch, plan.least_range_epoch),
        (RangeEpoch(1 + (1 << 20)), RangeEpoch(1))
    );
    assert!(plan_alone(&group, NodeId(4), &FIRST, Term(7)).unwrap_err().contains("no vote"));
}

/// What nodes have seen and done, and a survivor that has stopped hearing at some moment.
struct Story {
    cluster: Cluster,
    maps: BTreeMap<NodeId, ShardMap>,
    survivor: Option<ControlState>,
}

impl Story {
    fn new() -> Self {
        let mut cluster = Cluster::new(&["", "", "", ""], 3);
        found(&mut cluster.state);
        let mut story = Story { cluster, maps: BTreeMap::new(), survivor: None };
        (1..=4).for_each(|node| story.see(node));
        story
    }

    /// A node follows the map.
    fn see(&mut self, node: u64) {
        self.maps.insert(NodeId(node), self.cluster.state.map().clone());
    }

    fn work(&mut self) {
        self.cluster.plan();
        self.cluster.work();
    }

    fn do_it(&mut self, what: (u8, u64, u64, u64)) {
        let (kind, shard, node, other) = what;
        let (shard, node, other) = (ShardId(shard), NodeId(node), NodeId(other));
        let cluster = &mut self.cluster;
        match kind {
            0 => _ = cluster.start(OperatorRequest::Move { shard, from: node, to: other }),
            1 => _ = cluster.start(OperatorRequest::Split { shard, at: None }),
            2 => _ = cluster.start(OperatorRequest::Lead { shard, node }),
            3 => self.make_keyspace(),
            4 => self.drop_keyspace(),
            5 => {
                let node = cluster.add_node("");
                self.see(node.0);
            }
            6 => self.see(node.0),
            // A leader has gone on, and the coordinators haven't heard of it yet.
            7 => return self.work(),
            _ => self.survivor = self.survivor.take().or_else(|| Some(cluster.state.clone())),
        }
        self.work();
        self.cluster.report();
    }

    fn make_keyspace(&mut self) {
        let cluster = &mut self.cluster;
        let made = cluster.apply(ControlCommand::CreateKeyspace(NewKeyspace {
            name: format!("k{}", cluster.state.map().keyspaces.len()),
            partitioning: Partitioning::Hash,
            shards: 2,
            replicas: 0,
            history: None,
            colocated: false,
            redis_db: 0,
        }));
        made.unwrap();
        let new: Vec<_> =
            cluster.state.map().shards.values().filter(|record| record.creating).cloned().collect();
        for record in new {
            let descriptor = record.descriptor;
            // Whoever makes a replica of it has seen it in a map.
            for replica in &descriptor.replicas {
                self.maps.insert(replica.node_id, cluster.state.map().clone());
            }
            cluster.leaders.insert(descriptor.shard_id, descriptor.replicas[0].node_id);
            cluster.shards.insert(descriptor.shard_id, descriptor);
        }
    }

    fn drop_keyspace(&mut self) {
        let cluster = &mut self.cluster;
        let mut names =
            cluster.state.map().keyspaces.values().map(|keyspace| keyspace.name.clone());
        let last = names.rfind(|name| !name.is_empty() && name != "default");
        let Some(name) = last else { return };
        let id = cluster.state.map().keyspace_named(&name).unwrap().keyspace_id;
        cluster.apply(ControlCommand::DropKeyspace { name }).unwrap();
        cluster.shards.retain(|_, shard| shard.keyspace_id != id);
        let shards = &cluster.shards;
        cluster.leaders.retain(|shard, _| shards.contains_key(shard));
        // A node that still leads one of its shards would report it: here all of them have seen it go.
        (1..=self.cluster.state.map().nodes.len() as u64).for_each(|node| self.see(node));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_nodes_have_heard_of_is_known_again_once_all_have_reported(
        asks in prop::collection::vec((0u8..10, 1u64..12, 1u64..7, 1u64..7), 1..40),
        order in any::<u64>(),
    ) {
        let mut story = Story::new();
        for ask in asks {
            story.do_it(ask);
        }
        let Story { mut cluster, maps, survivor } = story;
        let lost = cluster.state.clone();
        let ids = |state: &ControlState| -> BTreeSet<u64> { state.map().shards.keys().map(|shard| shard.0).collect() };
        let version = maps.values().map(|map| map.version).max().unwrap();
        cluster.state = survivor.unwrap_or_else(|| lost.clone());
        recover(&mut cluster.state, FIRST).unwrap();
        prop_assert!(cluster.state.map().version > version);

        let mut nodes: Vec<NodeId> = lost.map().nodes.keys().copied().collect();
        let turn = order as usize % nodes.len();
        nodes.rotate_left(turn);
        for node in &nodes {
            prop_assert_eq!(cluster.plan(), 0);
            prop_assert!(nodes.iter().all(|node| cluster.state.tasks_of(*node).is_empty()));
            let token = lost.token_of_node(*node).unwrap();
            if cluster.state.may_adopt(*node, token) {
                cluster.apply(ControlCommand::AdoptNode { node: *node, token }).unwrap();
                let record = &lost.map().nodes[node];
                let (address, zone) = (record.address.clone(), record.zone.clone());
                let start = None;
                cluster.apply(ControlCommand::EnterNode { token, address, zone, is_reached: true, start }).unwrap();
            }
            if let Some(map) = cluster.state.news_in(maps[node].clone()) {
                cluster.apply(ControlCommand::TakeMap { map }).unwrap();
            }
            report(&mut cluster, node.0);
        }
        prop_assert!(cluster.state.awaited().is_empty());
        let known: BTreeMap<_, _> = cluster.state.map().shards.iter().map(|(id, record)| (*id, record.descriptor.clone())).collect();
        prop_assert_eq!(&known, &cluster.shards, "as the shards themselves say");
        prop_assert_eq!(cluster.state.map().nodes.len(), lost.map().nodes.len());
        // And it goes on: whatever is given out now is new.
        let busy = cluster.shards.keys().next().copied().unwrap();
        let _ = cluster.start(OperatorRequest::SplitAt { shard: busy, at: Bytes::from_static(b"x") });
        cluster.start(OperatorRequest::Rebalance).unwrap();
        cluster.settle();
        let made = ids(&cluster.state);
        let given: BTreeSet<u64> = ids(&lost);
        prop_assert!(made.difference(&given).all(|id| *id > 1 << 20));
    }
}
