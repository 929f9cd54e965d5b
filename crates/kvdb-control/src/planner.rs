//! What is to be done next, and why: pure, from the state and what the leader has heard.
//!
//! Each round looks at the operators under way (what have they come to, are they done, too late?),
//! at the nodes that are to be emptied, at nodes that are dead for too long, and, if everything is
//! well, at the balance. What follows are commands for the log; each was tried on a copy of the
//! state, so that they don't contradict each other.

use crate::balance::{self, Proposal};
use crate::command::{ControlCommand, ControlResponse, shard_words, status_word};
use crate::operator::{Operator, OperatorKind, OperatorRequest, OperatorState};
use crate::preference::Reason;
use crate::standings::Loads;
use crate::state::ControlState;
use kvdb_model::{
    NodeId, NodeRecord, NodeStatus, OperatorId, Replica, Role, ShardDescriptor, ShardId,
    ShardRecord,
};
use std::collections::{BTreeMap, BTreeSet};

/// How eagerly the cluster mends and spreads itself.
#[derive(Clone, Copy, Debug)]
pub struct PlannerConfig {
    /// A node that is dead for so long is taken to be gone for good: its replicas are rebuilt.
    pub repair_after_ms: u64,
    /// Whether replicas and leaders are spread without being asked.
    pub rebalance: bool,
    /// Replicas that come to a node at a time.
    pub moves_per_node: usize,
    /// An operator on a shard fails after so long.
    pub time_limit_ms: u64,
    /// A shard with more bytes is split, without being asked; 0 for never. Smaller shards move
    /// faster and share the load better; each costs every process some memory and ticks.
    pub split_size_bytes: u64,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        PlannerConfig {
            repair_after_ms: 5 * 60 * 1000,
            rebalance: true,
            moves_per_node: 2,
            time_limit_ms: 60 * 60 * 1000,
            split_size_bytes: 256 << 20,
        }
    }
}

/// What the leading coordinator knows beside the state.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// For how long each node was not heard, in milliseconds.
    pub silent_ms: BTreeMap<NodeId, u64>,
    /// What shard leaders say can't be done, by operator.
    pub impossible: BTreeMap<OperatorId, String>,
    /// What shards hold and are asked.
    pub loads: Loads,
}

/// What somebody must decide.
pub(crate) const FORCE: &str = "start its nodes again, or, if they are gone for good, see \
     `kvdb admin force-recover --help`";

/// Splits that nobody has asked for, at a time.
const SPLITS_AT_A_TIME: usize = 2;
/// A shard that was handed over isn't so again for its load alone until then.
const LEADER_STAYS_MS: u64 = 30_000;
/// A leader hands over within a moment, or not at all; until then nothing else changes the shard.
const HAND_OVER_LIMIT_MS: u64 = 30_000;
/// Shards that are handed over at a time because their leaders should rather not lead.
const HAND_OVERS_AT_A_TIME: usize = 16;
/// Until new replicas that were given up are tried again.
const RESTORE_AGAIN_MS: u64 = 10_000;
/// Shards that a sentence names.
const MOST_NAMED: usize = 10;
/// Shards in a preview that get more replicas.
const MOST_RESTORED: usize = 1000;
/// Until what has failed is tried again.
const TRY_AGAIN_MS: u64 = 60_000;

/// Plans.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planner {
    /// How.
    pub config: PlannerConfig,
}

/// A round under way: the state as it will be, and the commands that lead there.
struct Round<'a> {
    config: &'a PlannerConfig,
    observed: &'a Observed,
    state: ControlState,
    commands: Vec<ControlCommand>,
}

impl Planner {
    /// What to do now.
    pub fn plan(&self, state: &ControlState, observed: &Observed) -> Vec<ControlCommand> {
        if !state.awaited().is_empty() {
            return vec![];
        }
        let mut round =
            Round { config: &self.config, observed, state: state.clone(), commands: Vec::new() };
        let running: Vec<Operator> = state.running().cloned().collect();
        for operator in &running {
            round.look_at(operator);
        }
        for operator in &running {
            round.lead_on(operator);
        }
        round.repair();
        round.relieve();
        round.split_large();
        if self.config.rebalance {
            round.rebalance(None);
        }
        round.commands
    }

    /// What would be done, in order, and why nothing more: replicas that shards lack, which come by
    /// themselves, and what [`OperatorRequest::Rebalance`] would do.
    pub fn preview(&self, state: &ControlState, loads: &Loads) -> (Vec<Proposal>, String) {
        let mut with = state.clone();
        let mut proposals = Vec::new();
        let mut stuck = Vec::new();
        for shard in state.short_shards() {
            let Some(record) = with.map().shards.get(&shard) else { continue };
            let descriptor = record.descriptor.clone();
            let nodes = with.fuller(loads, &descriptor, &|_| true);
            if nodes.len() < with.wanted(&descriptor) as usize {
                stuck.push(shard);
            }
            if nodes.len() > descriptor.replicas.len() && proposals.len() < MOST_RESTORED {
                let reason = why_restored(&with, &descriptor);
                let request = OperatorRequest::Restore { shard, nodes };
                with.simulate(&request);
                proposals.push(Proposal { request, reason });
            }
        }
        let (moves, mut why_no_more) = balance::preview(&with, loads);
        proposals.extend(moves);
        if !stuck.is_empty() {
            let more = stuck.len().saturating_sub(MOST_NAMED) as u32;
            stuck.truncate(MOST_NAMED);
            why_no_more = format!(
                "{} can't get as many replicas as wanted: there are too few nodes that are alive and have room. \
                 {why_no_more}",
                shard_words(&stuck, more)
            );
        }
        (proposals, why_no_more)
    }

    /// What is done about a shard that has too few replicas, or what keeps it from being done.
    pub fn why_short(&self, state: &ControlState, loads: &Loads, shard: ShardId) -> String {
        let Some(record) = state.map().shards.get(&shard) else { return String::new() };
        let descriptor = &record.descriptor;
        if let Some(operator) = state.running_on(shard) {
            return format!("operation {} is running", operator.id);
        }
        if !state.map().has_majority(descriptor) {
            return format!("it has lost its majority: {FORCE}");
        }
        let forgotten = descriptor.replicas.iter().find(|replica| !state.map().takes_part(replica));
        if let Some(Replica { node_id, .. }) = forgotten {
            return format!(
                "its replica on node {node_id} is from an older copy of a directory and takes no part: `kvdb admin \
                 set-replicas {shard} NODE...` without that node, and then with it again"
            );
        }
        let status = |node: NodeId| state.map().nodes.get(&node).map(|record| record.status);
        let replicas = || descriptor.replicas.iter().map(|replica| replica.node_id);
        let gone =
            |node: &NodeId| matches!(status(*node), Some(NodeStatus::Dead | NodeStatus::Removed));
        let leaving = replicas().find(gone);
        let could =
            balance::target(state, loads, descriptor, leaving.unwrap_or_default(), &|_| true);
        if could.is_none() {
            return no_target(shard);
        }
        match leaving {
            Some(node) if status(node) == Some(NodeStatus::Dead) => format!(
                "node {node} is DEAD: what it holds is rebuilt elsewhere when it is so for {} s",
                self.config.repair_after_ms / 1000
            ),
            _ if record.creating => "it is being created".to_owned(),
            _ => "more replicas are about to be created".to_owned(),
        }
    }

    /// What keeps replicas on a node that is to be emptied, if something does.
    pub fn why_stuck(&self, state: &ControlState, loads: &Loads, node: NodeId) -> Option<String> {
        let stuck = |record: &&ShardRecord| {
            !state.map().has_majority(&record.descriptor)
                || balance::target(state, loads, &record.descriptor, node, &|_| true).is_none()
        };
        let mut shards = state.held_by(node).filter(stuck).map(|record| record.descriptor.shard_id);
        let named: Vec<ShardId> = shards.by_ref().take(MOST_NAMED).collect();
        let more = shards.count() as u32;
        (!named.is_empty()).then(|| {
            format!(
                "{} can't leave node {node} now: no other node that is alive and has room could take a \
                 replica. Start another node",
                shard_words(&named, more)
            )
        })
    }
}

impl Round<'_> {
    fn try_out(&mut self, command: ControlCommand) -> Option<ControlResponse> {
        let applied = self.state.apply(&command);
        let response = applied.result.ok()?;
        self.commands.push(command);
        Some(response)
    }

    fn finish(&mut self, id: OperatorId, failure: Option<String>) {
        let now_ms = self.observed.now_ms;
        self.try_out(ControlCommand::FinishOperator { id, failure, now_ms });
    }

    fn note(&mut self, operator: &Operator, what: String) {
        if operator.steps.last().is_none_or(|last| last.what != what) {
            let (id, now_ms) = (operator.id, self.observed.now_ms);
            self.try_out(ControlCommand::NoteStep { id, what, now_ms });
        }
    }

    fn start(
        &mut self,
        request: OperatorRequest,
        reason: String,
        parent: Option<OperatorId>,
    ) -> bool {
        let now_ms = self.observed.now_ms;
        let time_limit_ms = match request {
            OperatorRequest::Lead { .. } => self.config.time_limit_ms.min(HAND_OVER_LIMIT_MS),
            _ => self.config.time_limit_ms,
        };
        let command =
            ControlCommand::StartOperator { request, reason, parent, now_ms, time_limit_ms };
        self.try_out(command).is_some()
    }

    /// What an operator on a shard has come to.
    fn look_at(&mut self, operator: &Operator) {
        let Some(shard) = operator.kind.shard() else { return };
        let Some(record) = self.state.map().shards.get(&shard).cloned() else {
            return self.finish(operator.id, Some("the shard is gone".to_owned()));
        };
        let done = match &operator.kind {
            OperatorKind::Replicas { goal, .. } => {
                self.note(operator, describe(&record.descriptor));
                record.descriptor.replicas == *goal
            }
            OperatorKind::Lead { to, .. } => {
                if let Some(leader) = record.leader {
                    self.note(operator, format!("led by node {leader}"));
                }
                record.leader == Some(to.node_id)
            }
            OperatorKind::Split { plan, .. } => {
                let done = self.state.map().shards.contains_key(&plan.child);
                if done {
                    self.note(operator, format!("shard {} has been split off", plan.child));
                }
                done
            }
            OperatorKind::ForceRecover { plan, .. } => {
                record.descriptor.membership_epoch >= plan.membership_epoch
            }
            _ => false,
        };
        let late_ms = self.observed.now_ms.saturating_sub(operator.started_ms);
        if done {
            self.finish(operator.id, None);
        } else if let Some(why) = self.observed.impossible.get(&operator.id) {
            self.finish(operator.id, Some(why.clone()));
        } else if late_ms > operator.time_limit_ms {
            let why = format!("not done within {} s", operator.time_limit_ms / 1000);
            self.finish(operator.id, Some(why));
        } else if operator.kind.keeps_one_that_is_gone(&record.descriptor) {
            let why = "a replica that it was to keep was removed meanwhile";
            self.finish(operator.id, Some(why.to_owned()));
        } else if let Some(lost) = self.lost_target(operator) {
            self.finish(operator.id, Some(lost));
        }
    }

    /// A newcomer or heir that has died since: another place is better, and the shard is to be free
    /// for its repair.
    fn lost_target(&self, operator: &Operator) -> Option<String> {
        let gone = |node: NodeId| {
            let status = self.state.map().nodes.get(&node)?.status;
            let gone = matches!(status, NodeStatus::Dead | NodeStatus::Removed);
            gone.then(|| format!("node {node} is {}", status_word(status)))
        };
        match &operator.kind {
            OperatorKind::Replicas { from, goal, .. } => {
                let comes = |node: NodeId| !from.iter().any(|replica| replica.node_id == node);
                let newcomers = goal.iter().map(|replica| replica.node_id);
                newcomers.filter(|node| comes(*node)).find_map(gone)
            }
            OperatorKind::Lead { to, .. } => gone(to.node_id),
            _ => None,
        }
    }

    /// Operators that start others.
    fn lead_on(&mut self, operator: &Operator) {
        match &operator.kind {
            OperatorKind::Drain { node } | OperatorKind::Replace { node } => {
                self.empty(operator, *node);
            }
            OperatorKind::Rebalance => self.balance(operator.id),
            _ => {}
        }
    }

    fn balance(&mut self, id: OperatorId) {
        if !self.rebalance(Some(id)) && !self.has_children(id) {
            self.finish(id, None);
        }
    }

    fn has_children(&self, id: OperatorId) -> bool {
        self.state.running().any(|child| child.parent == Some(id))
    }

    fn empty(&mut self, operator: &Operator, node: NodeId) {
        let left = self.shards_on(node);
        if left.is_empty() {
            if !self.has_children(operator.id) {
                self.finish(operator.id, None);
            }
            return;
        }
        let why = format!("operation {}: drain node {node}", operator.id);
        let stuck = self.move_away(node, &left, &why, Some(operator.id));
        self.note(
            operator,
            match stuck {
                Some(stuck) => format!("{} replicas left; {stuck}", left.len()),
                None => format!("{} replicas left", left.len()),
            },
        );
    }

    /// Shards with a replica on a node, the most endangered first.
    fn shards_on(&self, node: NodeId) -> Vec<ShardId> {
        let map = self.state.map();
        let lost = |descriptor: &ShardDescriptor| {
            let dead = |node: &NodeId| {
                map.nodes.get(node).is_none_or(|record| {
                    matches!(record.status, NodeStatus::Dead | NodeStatus::Removed)
                })
            };
            descriptor.replicas.iter().filter(|replica| dead(&replica.node_id)).count()
        };
        let mut shards: Vec<(usize, ShardId)> = map
            .shards
            .values()
            .filter(|record| record.descriptor.replica_on(node).is_some())
            .map(|record| (lost(&record.descriptor), record.descriptor.shard_id))
            .collect();
        shards.sort_by_key(|(lost, shard)| (std::cmp::Reverse(*lost), *shard));
        shards.into_iter().map(|(_, shard)| shard).collect()
    }

    /// Starts moves as far as the limits allow; says what keeps one from starting, if something
    /// other than a limit does.
    fn move_away(
        &mut self,
        node: NodeId,
        shards: &[ShardId],
        why: &str,
        parent: Option<OperatorId>,
    ) -> Option<String> {
        let mut stuck = None;
        for shard in shards {
            if self.state.running_on(*shard).is_some() {
                continue;
            }
            let Some(record) = self.state.map().shards.get(shard) else { continue };
            let descriptor = record.descriptor.clone();
            if !self.state.map().has_majority(&descriptor) {
                stuck = Some(format!("shard {shard} has lost its majority: {FORCE}"));
                continue;
            }
            let loads = &self.observed.loads;
            let Some(to) = balance::target(&self.state, loads, &descriptor, node, &|_| true) else {
                stuck = Some(no_target(*shard));
                continue;
            };
            if self.coming_to(to) >= self.config.moves_per_node {
                continue;
            }
            let request = OperatorRequest::Move { shard: *shard, from: node, to };
            self.start(request, why.to_owned(), parent);
        }
        stuck
    }

    fn coming_to(&self, node: NodeId) -> usize {
        let comes = |operator: &&Operator| match &operator.kind {
            OperatorKind::Replicas { from, goal, .. } => {
                goal.iter().any(|replica| replica.node_id == node)
                    && !from.iter().any(|replica| replica.node_id == node)
            }
            _ => false,
        };
        self.state.running().filter(comes).count()
    }

    /// Replicas on nodes that are dead for too long, or were removed, are rebuilt.
    fn repair(&mut self) {
        let limit_ms = self.config.repair_after_ms;
        let silent = |node| self.observed.silent_ms.get(&node).copied().unwrap_or_default();
        let why = |node: &NodeRecord| match node.status {
            NodeStatus::Removed => Some(format!("node {} was removed", node.node_id)),
            NodeStatus::Dead if silent(node.node_id) >= limit_ms => {
                let seconds = limit_ms / 1000;
                Some(format!("node {} is dead for more than {seconds} s", node.node_id))
            }
            NodeStatus::Unreachable if silent(node.node_id) >= limit_ms => {
                let seconds = limit_ms / 1000;
                Some(format!("node {} can't be reached for more than {seconds} s", node.node_id))
            }
            _ => None,
        };
        let nodes = self.state.map().nodes.values();
        let gone: Vec<(NodeId, String)> =
            nodes.filter_map(|node| Some((node.node_id, why(node)?))).collect();
        for (node, why) in gone {
            if self.state.running().any(|other| other.kind.empties() == Some(node)) {
                continue;
            }
            let shards = self.shards_on(node);
            self.move_away(node, &shards, &why, None);
        }
        self.restore();
    }

    /// Shards that have fewer replicas than they are to have get more, where there are nodes for them.
    fn restore(&mut self) {
        for shard in self.state.short_shards() {
            let open = self.open_nodes();
            if open.is_empty() {
                return;
            }
            let Some(record) = self.state.map().shards.get(&shard) else { continue };
            let descriptor = record.descriptor.clone();
            // All that it lacks at once, if that will soon be possible: two changes cost more than one.
            let lacks = |node: &&NodeId| descriptor.replica_on(**node).is_none();
            let usable: Vec<NodeId> =
                balance::usable(&self.state).map(|node| node.node_id).collect();
            let short = &self.observed.loads.short;
            let could = usable.iter().filter(|node| lacks(node) && !short.contains(node)).count();
            let missing = self.state.wanted(&descriptor) as usize - descriptor.replicas.len();
            if open.iter().filter(|node| lacks(node)).count() < missing.min(could).max(1)
                || self.failed_to_restore_lately(shard)
            {
                continue;
            }
            let loads = &self.observed.loads;
            let nodes = self.state.fuller(loads, &descriptor, &|node| open.contains(&node));
            let why = why_restored(&self.state, &descriptor);
            self.start(OperatorRequest::Restore { shard, nodes }, why, None);
        }
    }

    /// Nodes that may take another replica now.
    fn open_nodes(&self) -> BTreeSet<NodeId> {
        let usable = balance::usable(&self.state).map(|node| node.node_id);
        let is_open = |node: &NodeId| {
            !self.observed.loads.short.contains(node)
                && self.coming_to(*node) < self.config.moves_per_node
        };
        usable.filter(is_open).collect()
    }

    /// Whether new replicas were given up not long ago: another try can wait a little.
    fn failed_to_restore_lately(&self, shard: ShardId) -> bool {
        self.state.operators().any(|operator| {
            matches!(operator.kind, OperatorKind::Replicas { .. })
                && operator.kind.shard() == Some(shard)
                && matches!(operator.state, OperatorState::Failed(_) | OperatorState::Cancelled)
                && operator.ended_ms + RESTORE_AGAIN_MS > self.observed.now_ms
        })
    }

    /// Nodes that should rather not lead hand over where somebody else can: a few shards at a time,
    /// and none that was handed over a moment ago.
    fn relieve(&mut self) {
        let poor = &self.observed.loads.less_preferred;
        if poor.is_empty() {
            return;
        }
        let is_lead = |operator: &&Operator| matches!(operator.kind, OperatorKind::Lead { .. });
        let mut running = self.state.running().filter(is_lead).count();
        let led: Vec<(ShardId, NodeId)> = self
            .state
            .map()
            .shards
            .values()
            .filter_map(|record| Some((record.descriptor.shard_id, record.leader?)))
            .filter(|(_, leader)| poor.contains_key(leader))
            .collect();
        for (shard, leader) in led {
            if running >= HAND_OVERS_AT_A_TIME {
                return;
            }
            if self.state.running_on(shard).is_some() || self.was_handed_over_lately(shard) {
                continue;
            }
            let Some(node) = self.better_leader(shard) else { continue };
            let reasons = poor.get(&leader).into_iter().flatten().map(Reason::describe);
            let reasons = reasons.collect::<Vec<_>>().join("; ");
            let why = format!("node {leader} is a less preferred leader: {reasons}");
            if self.start(OperatorRequest::Lead { shard, node }, why, None) {
                running += 1;
            }
        }
    }

    /// The voter of a shard on a node that nothing speaks against; the one that leads least.
    fn better_leader(&self, shard: ShardId) -> Option<NodeId> {
        let map = self.state.map();
        let loads = &self.observed.loads;
        let good = |node: &NodeId| {
            let status = map.nodes.get(node).map(|record| record.status);
            status == Some(NodeStatus::Alive)
                && !loads.less_preferred.contains_key(node)
                && !loads.short.contains(node)
        };
        let leads =
            |node: NodeId| map.shards.values().filter(|other| other.leader == Some(node)).count();
        let replicas = &map.shards.get(&shard)?.descriptor.replicas;
        let voters = replicas.iter().filter(|replica| replica.role == Role::Voter);
        voters.map(|replica| replica.node_id).filter(good).min_by_key(|node| (leads(*node), *node))
    }

    /// Shards that have grown too large are cut into halves, a few at a time.
    fn split_large(&mut self) {
        let limit_bytes = self.config.split_size_bytes;
        let observed = self.observed;
        let is_split = |operator: &&Operator| matches!(operator.kind, OperatorKind::Split { .. });
        let mut running = self.state.running().filter(is_split).count();
        for (shard, load) in &observed.loads.shards {
            if limit_bytes == 0 || running >= SPLITS_AT_A_TIME {
                return;
            }
            let Some(at) = load.split_at.clone().filter(|_| load.bytes > limit_bytes) else {
                continue;
            };
            if self.state.running_on(*shard).is_some()
                || self.failed_lately(*shard)
                || self.is_colocated(*shard)
            {
                continue;
            }
            let (shard, has) = (*shard, balance::mebibytes(load.bytes));
            let why = format!("it holds {has}, more than {}", balance::mebibytes(limit_bytes));
            if self.start(OperatorRequest::SplitAt { shard, at }, why, None) {
                running += 1;
            }
        }
    }

    fn is_colocated(&self, shard: ShardId) -> bool {
        let record = self.state.map().shards.get(&shard);
        record.is_some_and(|record| self.state.colocated(record.descriptor.keyspace_id).is_some())
    }

    /// Whether a split of the shard has failed not long ago: another try can wait.
    fn failed_lately(&self, shard: ShardId) -> bool {
        self.state.operators().any(|operator| {
            matches!(operator.kind, OperatorKind::Split { .. })
                && operator.kind.shard() == Some(shard)
                && matches!(operator.state, OperatorState::Failed(_))
                && operator.ended_ms + TRY_AGAIN_MS > self.observed.now_ms
        })
    }

    /// Whether a hand-over of the shard has ended not long ago.
    fn was_handed_over_lately(&self, shard: ShardId) -> bool {
        self.state.operators().any(|operator| {
            matches!(operator.kind, OperatorKind::Lead { .. })
                && operator.kind.shard() == Some(shard)
                && operator.ended_ms + LEADER_STAYS_MS > self.observed.now_ms
        })
    }

    /// One step towards balance, if all is well otherwise. Whether one was started.
    fn rebalance(&mut self, parent: Option<OperatorId>) -> bool {
        if balance::why_not(&self.state, parent).is_some() {
            return false;
        }
        let rests = |shard| parent.is_none() && self.was_handed_over_lately(shard);
        match balance::next(&self.state, &self.observed.loads, &rests) {
            Some(Proposal { request, reason }) => self.start(request, reason, parent),
            None => false,
        }
    }
}

fn no_target(shard: ShardId) -> String {
    format!("no node that is alive could take a replica of shard {shard}: start another one")
}

fn why_restored(state: &ControlState, descriptor: &ShardDescriptor) -> String {
    let (has, wanted) = (descriptor.replicas.len(), state.wanted(descriptor));
    format!("it has {has} of {wanted} replicas")
}

fn describe(descriptor: &ShardDescriptor) -> String {
    let words: Vec<String> = descriptor
        .replicas
        .iter()
        .map(|replica| {
            let role = match replica.role {
                Role::Voter => "",
                Role::Learner => " (learner)",
                Role::Incoming => " (joining)",
                Role::Outgoing => " (leaving)",
            };
            format!("{}{role}", replica.node_id)
        })
        .collect();
    format!("replicas on nodes {}", words.join(", "))
}

impl OperatorState {
    /// In a word.
    pub fn name(&self) -> &'static str {
        match self {
            OperatorState::Running => "running",
            OperatorState::Done => "done",
            OperatorState::Failed(_) => "failed",
            OperatorState::Cancelled => "cancelled",
        }
    }
}
