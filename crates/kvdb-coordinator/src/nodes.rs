//! What nodes say to the leader of the coordinators: that they are there, how they are, what they lead.

use crate::refusals::{bad_field, invalid};
use crate::service::Member;
use crate::{figures, reach, recovery, starts};
use kvdb_control::{ControlCommand, ControlError, ControlResponse, ControlState, LedShard, Vitals};
use kvdb_model::{
    ClusterId, Generation, NodeId, NodeStatus, OperatorId, Refusal, ShardId, ShardRecord, Term,
};
use kvdb_runtime::clock;
use kvdb_wire::{
    cluster_id_from, cluster_id_to, descriptor_from, generation_from, generation_to, proto,
    shard_map_from, shard_task_to, status_of, token_from,
};
use tonic::Status;

/// Characters of what a node says about a task; the rest is cut off.
const MOST_WORDS: usize = 300;

impl Member {
    /// A node, or somebody for it, asks to be known.
    pub(crate) async fn register(
        &self,
        request: proto::RegisterNodeRequest,
    ) -> Result<proto::RegisterNodeResponse, Status> {
        let theirs = cluster_id_from(&request.cluster_id).map_err(bad_field)?;
        let ours = self.view.state().map().cluster_id;
        // Also where this one doesn't lead: it may be told to end.
        self.hear_generation(theirs, NodeId(request.node_id), request.generation.clone())?;
        self.check_leader()?;
        if !ours.is_known() {
            return Err(status_of(&Refusal::ShardUnavailable {
                shard_id: ShardId::CONTROL,
                reason: "the cluster is being made",
            }));
        }
        if theirs.is_known() && theirs != ours {
            let problem = format!("is {theirs}; this is cluster {ours}");
            return Err(status_of(&Refusal::invalid("cluster_id", problem)));
        }
        let (address, zone) = (request.address, request.zone);
        let mut unreachable = String::new();
        let command = if request.token.is_empty() {
            // Registered by hand, ahead of its first start.
            let mut bytes = [0; 16];
            getrandom::fill(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
            let token = u128::from_be_bytes(bytes);
            ControlCommand::RegisterNode { token, address, zone }
        } else {
            let token = token_from("token", &request.token).map_err(bad_field)?;
            let start = request.start.map(starts::start_from).transpose().map_err(bad_field)?;
            if let Some(start) = &start {
                self.check_start_alone(token, start).await?;
            }
            let generation = self.view.state().generation();
            if request.only_asks {
                let state = self.view.state();
                let node = state.node_of(token);
                return Ok(proto::RegisterNodeResponse {
                    generation: generation_to(generation),
                    as_copy: node.is_some_and(|node| state.copies_of(node).is_awaited),
                    ..Default::default()
                });
            }
            let node = NodeId(request.node_id);
            if theirs == ours && self.view.state().may_adopt(node, token) {
                self.propose(ControlCommand::AdoptNode { node, token }).await?;
            }
            if let Err(missed) = self.dial_node(&address, token).await {
                unreachable = missed.why()?;
            }
            let is_reached = unreachable.is_empty();
            ControlCommand::EnterNode { token, address, zone, is_reached, start }
        };
        match self.propose(command).await? {
            ControlResponse::Registered(node, version) => {
                if request.node_id != 0 && request.node_id != node.0 {
                    let problem = format!("is {}; the cluster knows it as {node}", request.node_id);
                    return Err(status_of(&Refusal::invalid("node_id", problem)));
                }
                self.liveness.lock().heard(node, clock::now().boot_us / 1000);
                let state = self.view.state();
                let record = state.map().nodes.get(&node);
                Ok(proto::RegisterNodeResponse {
                    copies: state.copies_of(node).count,
                    least_replica_id: record.map_or(0, |record| record.least_replica.0),
                    as_copy: false,
                    node_id: node.0,
                    cluster_id: cluster_id_to(ours),
                    map_version: version.0,
                    unreachable,
                    generation: generation_to(state.generation()),
                })
            }
            _ => Err(Status::internal("an unexpected kind of result")),
        }
    }

    /// A node says how it is and what it leads, and is told what to do.
    pub(crate) async fn hear_heartbeat(
        &self,
        request: proto::HeartbeatRequest,
    ) -> Result<proto::HeartbeatResponse, Status> {
        let theirs = cluster_id_from(&request.cluster_id).map_err(bad_field)?;
        let node = NodeId(request.node_id);
        let met = self.hear_generation(theirs, node, request.generation.clone())?;
        self.check_leader()?;
        let told = figures::Told::of(&request);
        let state = self.view.state();
        if theirs != state.map().cluster_id {
            let problem = format!("is {theirs}; this is cluster {}", state.map().cluster_id);
            return Err(status_of(&Refusal::invalid("cluster_id", problem)));
        }
        let Some(record) = state.map().nodes.get(&node) else {
            if state.generation().number > 0 {
                // Coordinators that were lost may have known it: it registers once more.
                let why = format!("node {node} isn't known since the coordinators were recovered");
                return Err(Status::failed_precondition(why));
            }
            return Err(invalid(&ControlError::UnknownNode(node)));
        };
        if state.is_dismissed(node) {
            return Err(invalid(&ControlError::NodeRemoved(node)));
        }
        self.check_start(node, &request.nonce, request.synced).await?;
        let dial = self.hear_reach(node, &request.reached, &request.unreached);
        if !request.address.is_empty() && request.address != record.address {
            // It has moved, or another node was found where it was.
            tokio::spawn(reach::find_again(self.clone(), node, request.address));
        }
        self.hear_node_clock(node, request.wall_ms);
        let generation = state.generation();
        if met != generation {
            // What it says now may be of before the recovery, and what it is told it doesn't take up.
            return Ok(proto::HeartbeatResponse {
                map_version: state.map().version.0,
                generation: generation_to(generation),
                ..Default::default()
            });
        }
        if let Some(map) = request.map_before {
            let map = shard_map_from(map).map_err(bad_field)?;
            if let Some(map) = state.news_in(map) {
                self.propose(ControlCommand::TakeMap { map }).await?;
            }
        }
        let state = self.view.state();
        let is_awaited = state.awaited().contains(&node);
        let mut led = Vec::new();
        for report in request.led {
            let descriptor = report
                .descriptor
                .ok_or_else(|| status_of(&Refusal::invalid("led.descriptor", "is missing")))?;
            let descriptor = descriptor_from(descriptor).map_err(bad_field)?;
            let report = LedShard { descriptor, term: Term(report.term) };
            if state.is_news(node, &report) {
                led.push(report);
            }
        }
        if !led.is_empty() || is_awaited {
            let command = ControlCommand::ReportShards { node, led };
            // A report that tells nothing new needn't enter the log.
            let mut trial = (*state).clone();
            if trial.apply(&command).delta.is_some() || is_awaited {
                self.propose(command).await?;
            }
        }
        let state = self.view.state();
        self.hear_impossible(request.impossible);
        {
            let mut standings = self.standings.lock();
            standings.heard_rate(node, request.snapshot_bytes_per_second);
            standings.heard_room(node, request.short_of_room);
            let vitals = Vitals { sync_us: request.log_sync_us, stalled: request.log_stalled };
            let now_ms = clock::boot_us() / 1000;
            standings.preferences.heard(node, vitals, now_ms);
            let paths = request.paths.iter().map(|path| (NodeId(path.node_id), path.round_trip_us));
            let nodes = &state.map().nodes;
            let known = paths.filter(|(peer, _)| nodes.contains_key(peer));
            standings.preferences.heard_paths(node, known, now_ms);
        }
        figures::hear(self, node, told);
        recovery::hear(self, node, request.replicas);
        let mut state = state;
        if !transfers_of(&state, node).is_empty() || !state.tasks_of(node).is_empty() {
            // Only who leads still may ask for anything: what an earlier leader, paused for a while,
            // holds for wanted may undo what is under way.
            self.catch_up().await?;
            state = self.view.state();
        }
        Ok(proto::HeartbeatResponse {
            map_version: state.map().version.0,
            transfers: transfers_of(&state, node),
            tasks: state.tasks_of(node).iter().map(shard_task_to).collect(),
            split_size_bytes: self.planner.config.split_size_bytes,
            dial,
            cluster_time_ms: self.cluster_ms(),
            generation: generation_to(generation),
        })
    }

    /// A drained node isn't judged by its heartbeats: whether it runs still only this leader knows.
    pub(crate) fn check_silent(&self, node: NodeId) -> Result<(), Status> {
        self.check_leader()?;
        let state = self.view.state();
        let status = state.map().nodes.get(&node).map(|record| record.status);
        let lives = self.liveness.lock().may_live(node, clock::now().boot_us / 1000);
        match status {
            Some(status @ NodeStatus::Draining) if lives => {
                let held = |record: &&ShardRecord| record.descriptor.replica_on(node).is_some();
                let replicas = state.map().shards.values().filter(held).count() as u32;
                Err(invalid(&ControlError::NodeInUse { node, status, replicas }))
            }
            _ => Ok(()),
        }
    }

    /// What a shard's leader says can't be done. Only of operators under way, and in a few words:
    /// it is kept, and enters the log.
    fn hear_impossible(&self, told: Vec<proto::TaskProblem>) {
        let state = self.view.state();
        let mut impossible = self.impossible.lock();
        for proto::TaskProblem { operator_id, why } in told {
            let id = OperatorId(operator_id);
            if state.operator(id).is_some_and(|operator| operator.is_running()) {
                impossible.insert(id, why.chars().take(MOST_WORDS).collect());
            }
        }
    }

    /// Which generation of coordinators a node has met.
    fn hear_generation(
        &self,
        cluster: ClusterId,
        node: NodeId,
        met: Option<proto::Generation>,
    ) -> Result<Generation, Status> {
        let met = generation_from(met).map_err(bad_field)?;
        if cluster.is_known() && cluster == self.view.state().map().cluster_id {
            let who = if node.0 == 0 { "a node".to_owned() } else { format!("node {node}") };
            self.check_generation(&who, met)?;
        }
        Ok(met)
    }
}

/// Leaderships that a node is to hand over.
fn transfers_of(state: &ControlState, node: NodeId) -> Vec<proto::LeaderTransfer> {
    let is_led_there = |shard: &ShardId| {
        state.map().shards.get(shard).is_some_and(|record| record.leader == Some(node))
    };
    let wanted = state.wanted_leaders().iter().filter(|(shard, _)| is_led_there(shard));
    wanted
        .map(|(shard, to)| proto::LeaderTransfer { shard_id: shard.0, to_node_id: to.0 })
        .collect()
}
