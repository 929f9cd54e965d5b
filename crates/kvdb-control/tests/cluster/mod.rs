//! A cluster without processes: the control state, its planner, and shard leaders that do what they
//! are told.
#![allow(dead_code, reason = "each test uses some of it")]

use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, ControlState, LedShard, Loads, Observed,
    OperatorRequest, OperatorState, Planner, PlannerConfig,
};
use kvdb_model::{
    KeyRange, NodeId, NodeStatus, OperatorId, ShardDescriptor, ShardId, Step, Term, next_step,
};
use std::collections::{BTreeMap, BTreeSet};

/// A cluster whose shards do one step a round.
pub struct Cluster {
    pub state: ControlState,
    pub planner: Planner,
    pub now_ms: u64,
    pub silent_ms: BTreeMap<NodeId, u64>,
    pub term: u64,
    /// What the shards themselves say.
    pub shards: BTreeMap<ShardId, ShardDescriptor>,
    pub leaders: BTreeMap<ShardId, NodeId>,
    pub loads: Loads,
}

impl Cluster {
    pub fn new(zones: &[&str], shards: u32) -> Self {
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

    pub fn apply(&mut self, command: ControlCommand) -> Result<ControlResponse, ControlError> {
        let command = ControlCommand::decode(&command.to_bytes()).expect("it was just encoded");
        self.state.apply(&command).result
    }

    pub fn add_node(&mut self, zone: &str) -> NodeId {
        let token = self.state.map().nodes.len() as u128 + 1;
        let address = format!("127.0.0.1:{}", 7000 + token);
        let command = ControlCommand::RegisterNode { token, address, zone: zone.to_owned() };
        match self.apply(command) {
            Ok(ControlResponse::Registered(node, _)) => node,
            other => panic!("{other:?}"),
        }
    }

    pub fn start(&mut self, request: OperatorRequest) -> Result<OperatorId, ControlError> {
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

    pub fn set_status(&mut self, node: NodeId, status: NodeStatus) {
        self.apply(ControlCommand::SetNodeStatus { node, status }).unwrap();
    }

    pub fn report(&mut self) {
        for (shard, descriptor) in self.shards.clone() {
            let led = vec![LedShard { descriptor, term: Term(self.term) }];
            self.apply(ControlCommand::ReportShards { node: self.leaders[&shard], led }).unwrap();
        }
    }

    /// Each leader does the next step of its task.
    pub fn work(&mut self) {
        let nodes: Vec<NodeId> = self.state.map().nodes.keys().copied().collect();
        for node in nodes {
            if self.state.map().nodes[&node].status == NodeStatus::Dead {
                continue;
            }
            for task in self.state.tasks_of(node) {
                let Some(descriptor) = self.shards.get(&task.shard).cloned() else { continue };
                if task.is_outdated(&descriptor) {
                    continue;
                }
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
    pub fn check(&self) {
        for descriptor in self.shards.values() {
            let nodes: BTreeSet<NodeId> =
                descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            assert_eq!(nodes.len(), descriptor.replicas.len(), "{descriptor:?}");
        }
        let map = self.state.map();
        for keyspace in map.keyspaces.values().filter(|keyspace| !keyspace.is_dropped()) {
            let whole = KeyRange::of_keyspace(keyspace.keyspace_id);
            let mut ranges: Vec<_> = map
                .shards_in(&whole)
                .iter()
                .map(|record| record.descriptor.range.clone())
                .collect();
            ranges.sort();
            let ends: Vec<_> = ranges.iter().map(|range| range.end.clone()).collect();
            let starts: Vec<_> = ranges.iter().map(|range| range.start.clone()).collect();
            assert_eq!(starts.first(), Some(&whole.start), "{map:?}");
            assert_eq!(ends.last(), Some(&whole.end), "{map:?}");
            assert_eq!(starts[1..], ends[..ends.len() - 1], "a gap or an overlap in the map");
        }
    }

    pub fn plan(&mut self) -> usize {
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
    pub fn settle(&mut self) {
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

    pub fn outcome(&self, id: OperatorId) -> &OperatorState {
        &self.state.operator(id).expect("it is remembered").state
    }

    pub fn replicas_on(&self, node: NodeId) -> usize {
        self.shards.values().filter(|shard| shard.replica_on(node).is_some()).count()
    }

    pub fn nodes_of(&self, shard: u64) -> BTreeSet<u64> {
        self.shards[&ShardId(shard)].replicas.iter().map(|replica| replica.node_id.0).collect()
    }
}
