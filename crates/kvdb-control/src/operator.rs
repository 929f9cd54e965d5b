//! Operators: what the coordinators do to the cluster, kept in their log until long after it ended.
//!
//! An operator names a goal. The shard's leader works towards it ([`kvdb_model::task`]), the
//! leading coordinator sees in the map how far it is ([`crate::Planner`]). Both can change hands at
//! any time: whoever is next reads the same record.

use crate::command::ControlError;
use crate::standings::Loads;
use crate::state::ControlState;
use bytes::Bytes;
use kvdb_model::task::left;
use kvdb_model::{
    MembershipEpoch, NodeId, NodeStatus, OperatorId, RecoveryPlan, Replica, ReplicaId, Role,
    ShardDescriptor, ShardId, ShardRecord, ShardTask, SplitPlan, Work,
};
use serde::{Deserialize, Serialize};

/// Operators that have ended are remembered up to this many.
const MOST_ENDED: usize = 500;
/// Steps that an operator remembers: the first ones and the last.
const MOST_STEPS: usize = 64;

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorRequest {
    /// The shard's replicas are on these nodes, and nowhere else.
    SetReplicas {
        /// The shard.
        shard: ShardId,
        /// Distinct nodes, 1 to 7.
        nodes: Vec<NodeId>,
        /// The membership epoch that the caller has seen; `None` for any.
        membership_epoch: Option<MembershipEpoch>,
    },
    /// One replica of the shard is elsewhere.
    Move {
        /// The shard.
        shard: ShardId,
        /// Where it is.
        from: NodeId,
        /// Where it is to be.
        to: NodeId,
    },
    /// The shard is led from this node.
    Lead {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The shard is cut in two.
    Split {
        /// The shard.
        shard: ShardId,
        /// The first *user* key of the upper part (in a hash keyspace: of its slot); the middle
        /// slot of a hash keyspace if not given.
        at: Option<Bytes>,
    },
    /// The node is emptied, and gets nothing any more.
    Drain {
        /// The node.
        node: NodeId,
    },
    /// The node is gone for good: everything that it held is rebuilt elsewhere, and it is removed.
    Replace {
        /// The node.
        node: NodeId,
    },
    /// Replicas and leaders are spread evenly.
    Rebalance,
    /// The shard has fewer replicas than it is to have, and gets more.
    Restore {
        /// The shard.
        shard: ShardId,
        /// Where all of its replicas are to be, those that it has included.
        nodes: Vec<NodeId>,
    },
    /// The shard has lost its majority for good: it goes on from one replica.
    ForceRecover {
        /// The shard.
        shard: ShardId,
        /// Where that replica is.
        from: NodeId,
        /// The nodes that aren't there any more, as the proposer has found.
        gone: Vec<NodeId>,
    },
    /// The shard is cut in two at a *routing* key; in a hash keyspace that begins a slot.
    SplitAt {
        /// The shard.
        shard: ShardId,
        /// The first routing key of the upper part.
        at: Bytes,
    },
}

/// What an operator does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorKind {
    /// Changes the replicas of a shard.
    Replicas {
        /// The shard.
        shard: ShardId,
        /// What they were.
        from: Vec<Replica>,
        /// What they are to be: voters, all of them.
        goal: Vec<Replica>,
    },
    /// Hands over the leadership of a shard.
    Lead {
        /// The shard.
        shard: ShardId,
        /// To the replica there.
        to: Replica,
    },
    /// Splits a shard.
    Split {
        /// The shard.
        shard: ShardId,
        /// How.
        plan: SplitPlan,
    },
    /// Empties a node.
    Drain {
        /// The node.
        node: NodeId,
    },
    /// Rebuilds elsewhere what a node held.
    Replace {
        /// The node.
        node: NodeId,
    },
    /// Spreads replicas and leaders.
    Rebalance,
    /// Lets a shard without a majority go on from one replica.
    ForceRecover {
        /// The shard.
        shard: ShardId,
        /// What its replicas were.
        from: Vec<Replica>,
        /// How.
        plan: RecoveryPlan,
    },
}

impl OperatorKind {
    /// The shard that it changes; none for one that starts others.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            OperatorKind::Replicas { shard, .. }
            | OperatorKind::Lead { shard, .. }
            | OperatorKind::Split { shard, .. }
            | OperatorKind::ForceRecover { shard, .. } => Some(*shard),
            _ => None,
        }
    }

    /// The replicas that were known when its goal was chosen.
    fn members(&self) -> Vec<ReplicaId> {
        match self {
            OperatorKind::Replicas { from, .. } => {
                from.iter().map(|replica| replica.replica_id).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether it is to keep a replica that isn't there any more. An earlier operation that was given up
    /// may still have been at work when the goal was chosen.
    pub(crate) fn keeps_one_that_is_gone(&self, descriptor: &ShardDescriptor) -> bool {
        let OperatorKind::Replicas { from, goal, .. } = self else { return false };
        let is_there = |id| descriptor.replica(id).is_some();
        let was_there = |id| from.iter().any(|replica| replica.replica_id == id);
        goal.iter().map(|replica| replica.replica_id).any(|id| was_there(id) && !is_there(id))
    }

    /// The node that it empties.
    pub fn empties(&self) -> Option<NodeId> {
        match self {
            OperatorKind::Drain { node } | OperatorKind::Replace { node } => Some(*node),
            _ => None,
        }
    }

    /// In a word.
    pub fn name(&self) -> &'static str {
        match self {
            OperatorKind::Replicas { .. } => "set-replicas",
            OperatorKind::Lead { .. } => "set-leader",
            OperatorKind::Split { .. } => "split",
            OperatorKind::Drain { .. } => "drain",
            OperatorKind::Replace { .. } => "replace",
            OperatorKind::Rebalance => "rebalance",
            OperatorKind::ForceRecover { .. } => "force-recover",
        }
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        let nodes = |replicas: &[Replica]| {
            let nodes: Vec<_> =
                replicas.iter().map(|replica| replica.node_id.to_string()).collect();
            nodes.join(",")
        };
        match self {
            OperatorKind::Replicas { shard, from, goal } => {
                format!("shard {shard}: nodes {} to {}", nodes(from), nodes(goal))
            }
            OperatorKind::Lead { shard, to } => {
                format!("shard {shard}: leader to node {}", to.node_id)
            }
            OperatorKind::Split { shard, plan } => {
                format!("shard {shard}: split off shard {}", plan.child)
            }
            OperatorKind::Drain { node } => format!("node {node}: drain"),
            OperatorKind::Replace { node } => format!("node {node}: replace"),
            OperatorKind::Rebalance => "all nodes: rebalance".to_owned(),
            OperatorKind::ForceRecover { shard, from, plan } => format!(
                "shard {shard}: go on from node {} alone, of {}",
                plan.replica.node_id,
                nodes(from)
            ),
        }
    }
}

/// How an operator stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperatorState {
    /// It is under way.
    Running,
    /// Its goal is reached.
    Done,
    /// It has given up.
    Failed(String),
    /// Somebody has called it off.
    Cancelled,
}

/// Something that an operator has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorStep {
    /// When, in milliseconds since 1970, by the coordinator's clock.
    pub at_ms: u64,
    /// What.
    pub what: String,
}

/// A running or finished change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Its number.
    pub id: OperatorId,
    /// The operator that has started it.
    pub parent: Option<OperatorId>,
    /// What it does.
    pub kind: OperatorKind,
    /// Why.
    pub reason: String,
    /// How it stands.
    pub state: OperatorState,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended; 0 while it runs.
    pub ended_ms: u64,
    /// It fails after so long.
    pub time_limit_ms: u64,
    /// What happened, in order.
    pub steps: Vec<OperatorStep>,
}

impl Operator {
    /// Whether it is under way.
    pub fn is_running(&self) -> bool {
        self.state == OperatorState::Running
    }
}

impl OperatorRequest {
    /// In a few words.
    pub fn describe(&self) -> String {
        match self {
            OperatorRequest::SetReplicas { shard, nodes, .. } => {
                let nodes: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
                format!("shard {shard}: to nodes {}", nodes.join(","))
            }
            OperatorRequest::Move { shard, from, to } => {
                format!("shard {shard}: from node {from} to node {to}")
            }
            OperatorRequest::Lead { shard, node } => {
                format!("shard {shard}: leader to node {node}")
            }
            OperatorRequest::Split { shard, .. } | OperatorRequest::SplitAt { shard, .. } => {
                format!("shard {shard}: split")
            }
            OperatorRequest::Drain { node } => format!("node {node}: drain"),
            OperatorRequest::Replace { node } => format!("node {node}: replace"),
            OperatorRequest::Rebalance => "rebalance".to_owned(),
            OperatorRequest::Restore { shard, nodes } => {
                let nodes: Vec<_> = nodes.iter().map(NodeId::to_string).collect();
                format!("shard {shard}: replicas on nodes {}", nodes.join(","))
            }
            OperatorRequest::ForceRecover { shard, from, .. } => {
                format!("shard {shard}: go on from node {from} alone")
            }
        }
    }
}

impl ControlState {
    /// How far an operator is, 0 to 100. A change of replicas is a third of its way when the new
    /// ones are there, and two thirds when they vote.
    pub fn progress_percent(&self, operator: &Operator) -> u32 {
        if operator.state == OperatorState::Done {
            return 100;
        }
        match &operator.kind {
            OperatorKind::Replicas { shard, goal, .. } => {
                let Some(record) = self.map.shards.get(shard) else { return 0 };
                let has = |goal: &Replica| record.descriptor.replica(goal.replica_id);
                let there = goal.iter().filter(|goal| has(goal).is_some()).count();
                let vote = goal
                    .iter()
                    .filter(|goal| has(goal).is_some_and(|now| now.role != Role::Learner))
                    .count();
                (33 * (there + vote) / goal.len().max(1)) as u32
            }
            OperatorKind::Lead { .. }
            | OperatorKind::Split { .. }
            | OperatorKind::ForceRecover { .. } => 0,
            OperatorKind::Drain { node } | OperatorKind::Replace { node } => {
                let holds = |record: &&ShardRecord| record.descriptor.replica_on(*node).is_some();
                self.share_done(operator.id, self.map.shards.values().filter(holds).count())
            }
            OperatorKind::Rebalance => self
                .share_done(operator.id, crate::balance::preview(self, &Loads::default()).0.len()),
        }
    }

    fn share_done(&self, parent: OperatorId, left: usize) -> u32 {
        let is_done =
            |other: &&Operator| other.parent == Some(parent) && other.state == OperatorState::Done;
        let done = self.operators.values().filter(is_done).count();
        (100 * done / (done + left).max(1)) as u32
    }

    /// All operators that are remembered, by id.
    pub fn operators(&self) -> impl Iterator<Item = &Operator> {
        self.operators.values()
    }

    /// One of them.
    pub fn operator(&self, id: OperatorId) -> Option<&Operator> {
        self.operators.get(&id)
    }

    /// Operators under way.
    pub fn running(&self) -> impl Iterator<Item = &Operator> {
        self.operators.values().filter(|operator| operator.is_running())
    }

    /// The operator that changes a shard now.
    pub fn running_on(&self, shard: ShardId) -> Option<&Operator> {
        self.running().find(|operator| operator.kind.shard() == Some(shard))
    }

    /// What is asked of the leaders on a node.
    pub fn tasks_of(&self, node: NodeId) -> Vec<ShardTask> {
        if !self.awaited().is_empty() {
            return vec![];
        }
        let led = self.map.shards.values().filter(|record| record.leader == Some(node));
        let of_survivors = self.running().filter_map(|operator| match &operator.kind {
            OperatorKind::ForceRecover { shard, plan, .. } if plan.replica.node_id == node => {
                let work = Work::ForceRecover(plan.clone());
                Some(ShardTask { operator: operator.id, shard: *shard, work, members: vec![] })
            }
            _ => None,
        });
        led.filter_map(|record| self.task_of(&record.descriptor)).chain(of_survivors).collect()
    }

    fn task_of(&self, descriptor: &ShardDescriptor) -> Option<ShardTask> {
        let shard = descriptor.shard_id;
        if let Some(operator) = self.running_on(shard) {
            let work = match &operator.kind {
                OperatorKind::Replicas { goal, .. } => Work::Replicas(goal.clone()),
                OperatorKind::Lead { to, .. } => Work::Lead(to.replica_id),
                OperatorKind::Split { plan, .. } => Work::Split(plan.clone()),
                _ => return None,
            };
            let members = operator.kind.members();
            return Some(ShardTask { operator: operator.id, shard, work, members });
        }
        if descriptor.replicas.iter().all(|replica| replica.role == Role::Voter) {
            return None;
        }
        // What an operator that was called off has left: no newcomer stays.
        let mut goal = left(&descriptor.replicas);
        goal.retain(|replica| replica.role == Role::Voter);
        let members = descriptor.replicas.iter().map(|replica| replica.replica_id).collect();
        Some(ShardTask { operator: OperatorId(0), shard, work: Work::Replicas(goal), members })
    }

    pub(crate) fn start_operator(
        &mut self,
        request: &OperatorRequest,
        reason: &str,
        parent: Option<OperatorId>,
        now_ms: u64,
        time_limit_ms: u64,
    ) -> Result<OperatorId, ControlError> {
        let kind = self.decide(request)?;
        if let OperatorRequest::Drain { node } = request
            && let Some(record) = self.map.nodes.get_mut(node)
        {
            record.status = NodeStatus::Draining;
        }
        if let OperatorRequest::Replace { node } = request {
            self.is_no_longer_awaited(*node);
        }
        let id = self.counters.next_operator;
        self.counters.next_operator = id.next();
        let operator = Operator {
            id,
            parent,
            kind,
            reason: reason.chars().take(300).collect(),
            state: OperatorState::Running,
            started_ms: now_ms,
            ended_ms: 0,
            time_limit_ms,
            steps: Vec::new(),
        };
        self.operators.insert(id, operator);
        self.forget_old();
        Ok(id)
    }

    fn forget_old(&mut self) {
        let ended: Vec<OperatorId> = self
            .operators
            .values()
            .filter(|operator| !operator.is_running())
            .map(|operator| operator.id)
            .collect();
        for id in ended.iter().take(ended.len().saturating_sub(MOST_ENDED)) {
            self.operators.remove(id);
        }
    }

    pub(crate) fn end_operator(
        &mut self,
        id: OperatorId,
        state: OperatorState,
        now_ms: u64,
    ) -> Result<(), ControlError> {
        let operator = self.operators.get_mut(&id).ok_or(ControlError::UnknownOperator(id))?;
        if !operator.is_running() {
            return Err(ControlError::OperatorEnded(id));
        }
        operator.ended_ms = now_ms;
        // A node that is gone for good leaves the cluster with its last replica.
        if let (OperatorState::Done, OperatorKind::Replace { node }) = (&state, &operator.kind)
            && let Some(record) = self.map.nodes.get_mut(node)
        {
            record.status = NodeStatus::Removed;
        }
        let called_off = matches!(state, OperatorState::Cancelled);
        operator.state = state;
        if called_off {
            if let OperatorKind::Drain { node } = operator.kind
                && let Some(record) = self.map.nodes.get_mut(&node)
                && record.status == NodeStatus::Draining
            {
                record.status = NodeStatus::Alive;
            }
            let children: Vec<OperatorId> = self
                .running()
                .filter(|child| child.parent == Some(id))
                .map(|child| child.id)
                .collect();
            for child in children {
                self.end_operator(child, OperatorState::Cancelled, now_ms)?;
            }
        }
        Ok(())
    }

    pub(crate) fn note_step(
        &mut self,
        id: OperatorId,
        what: &str,
        at_ms: u64,
    ) -> Result<(), ControlError> {
        let operator = self.operators.get_mut(&id).ok_or(ControlError::UnknownOperator(id))?;
        if !operator.is_running() {
            return Err(ControlError::OperatorEnded(id));
        }
        if operator.steps.last().is_some_and(|last| last.what == what) {
            return Ok(());
        }
        if operator.steps.len() >= MOST_STEPS {
            operator.steps.remove(MOST_STEPS / 2);
        }
        operator.steps.push(OperatorStep { at_ms, what: what.chars().take(300).collect() });
        Ok(())
    }
}
