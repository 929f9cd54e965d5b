//! The `Coordinator` service. Only the leader answers; a follower says who leads.

use crate::clocks::SharedClocks;
use crate::figures;
use crate::founders::Founders;
use crate::view::View;
use crate::{members, operators, reach, recovery, starts, watch};
use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, ControlState, LedShard, Liveness,
    OperatorRequest, Planner, Standings, Vitals, decode_result, generation_of,
};
use kvdb_model::{
    ClusterId, EntryCommand, Generation, MapVersion, NodeId, NodeStatus, OperatorId, Refusal,
    ShardId, ShardRecord, Term,
};
use kvdb_replication::{Input, Rejection};
use kvdb_runtime::clock;
use kvdb_runtime::cluster_time::ClusterTime;
use kvdb_runtime::contacts::Contacts;
use kvdb_runtime::drive::{Drive, Outcome, Ticket};
use kvdb_wire::proto::coordinator_server::Coordinator;
use kvdb_wire::{
    cluster_id_from, cluster_id_to, descriptor_from, generation_from, generation_to, history_from,
    new_keyspace_from, node_status_from, proto, shard_map_from, shard_map_to, shard_task_to,
    status_of, token_from,
};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Longest that a command waits for its majority.
const PATIENCE: Duration = Duration::from_secs(5);
/// Characters of what a node says about a task; the rest is cut off.
const MOST_WORDS: usize = 300;
/// Updates that wait for one watcher; it is held back beyond, and gets a snapshot if it falls
/// out of the history.
const WATCH_QUEUE: usize = 16;

/// A reason for which a node should rather not lead.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct PoorLeader {
    pub(crate) node: u64,
    pub(crate) reason: &'static str,
}

/// Shared by the service and the leader's duties.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) drive: Drive,
    pub(crate) view: Arc<View>,
    /// As `--peers` says: of itself it is right, of others it may be old ([`Member::addresses_of`]).
    pub(crate) peers: Arc<BTreeMap<NodeId, String>>,
    pub(crate) founders: Arc<Founders>,
    /// Where coordinators have said that they are, or others of them, before this one's own state
    /// could.
    pub(crate) introduced: Arc<Mutex<BTreeMap<NodeId, String>>>,
    /// Where others have said lately that coordinators are.
    pub(crate) hearsay: Arc<Mutex<BTreeMap<NodeId, String>>>,
    /// Which coordinators were reached where.
    pub(crate) contacts: Contacts,
    /// Made with the data directory.
    pub(crate) token: u128,
    pub(crate) liveness: Arc<Mutex<Liveness>>,
    /// How far the logs of nodes are synced, as they have told this leader.
    pub(crate) synced: Arc<Mutex<BTreeMap<NodeId, (u128, u64)>>>,
    /// How far single replicas are.
    pub(crate) standings: Arc<Mutex<Standings>>,
    /// What nodes have told of themselves, for people to see.
    pub(crate) told: Arc<Mutex<BTreeMap<NodeId, figures::Told>>>,
    pub(crate) planner: Planner,
    /// Nodes that should rather not lead, for metrics.
    pub(crate) poor_leaders: Family<PoorLeader, Gauge>,
    /// Cluster time.
    pub(crate) time: ClusterTime,
    pub(crate) clocks: SharedClocks,
    /// Told why this process has to end.
    pub(crate) refuse: mpsc::Sender<String>,
    /// What shard leaders say can't be done, since the last round of planning.
    pub(crate) impossible: Arc<Mutex<BTreeMap<OperatorId, String>>>,
}

impl Member {
    pub(crate) fn leads(&self) -> bool {
        self.drive.views().get(ShardId::CONTROL).is_some_and(|view| view.is_leader)
    }

    pub(crate) fn not_leader(&self) -> Status {
        let view = self.drive.views().get(ShardId::CONTROL);
        let leader = view.and_then(|view| view.leader).filter(|id| *id != self.drive.node_id());
        let leader_hint = leader.and_then(|id| self.address_of(id));
        status_of(&Refusal::NotLeader { shard_id: ShardId::CONTROL, leader_hint })
    }

    fn check_leader(&self) -> Result<(), Status> {
        if !self.leads() {
            return Err(self.not_leader());
        }
        if self.is_being_recovered() {
            return Err(status_of(&Refusal::ShardUnavailable {
                shard_id: ShardId::CONTROL,
                reason: "the coordinators are being recovered",
            }));
        }
        Ok(())
    }

    async fn outcome(
        &self,
        input: impl FnOnce(Ticket) -> Input<Ticket>,
    ) -> Result<Outcome, Status> {
        let (ticket, receiver) = Ticket::oneshot();
        let overloaded =
            Refusal::Overloaded { what: "the coordinator's queue", retry_after_ms: 50 };
        self.drive.submit(input(ticket)).map_err(|_| status_of(&overloaded))?;
        let unknown = |reason| status_of(&Refusal::OutcomeUnknown { reason });
        match tokio::time::timeout(PATIENCE, receiver).await {
            Ok(Ok(Outcome::Rejected(why))) => Err(self.rejected(why)),
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(unknown("the coordinator stops")),
            Err(_) => Err(unknown("no majority of coordinators has answered in time")),
        }
    }

    fn rejected(&self, why: Rejection) -> Status {
        match why {
            Rejection::NotLeader(_) | Rejection::NoSuchShard | Rejection::Superseded => {
                self.not_leader()
            }
            Rejection::Unavailable => status_of(&Refusal::ShardUnavailable {
                shard_id: ShardId::CONTROL,
                reason: "leadership is being handed over",
            }),
            Rejection::Overloaded => status_of(&Refusal::Overloaded {
                what: "the coordinators' log",
                retry_after_ms: 50,
            }),
            Rejection::InvalidMembership => status_of(&Refusal::invalid(
                "replicas",
                "don't follow from those that the group has",
            )),
            Rejection::OutcomeUnknown => {
                status_of(&Refusal::OutcomeUnknown { reason: "leadership was lost" })
            }
        }
    }

    /// Puts a command through the log.
    pub(crate) async fn propose(&self, command: ControlCommand) -> Result<ControlResponse, Status> {
        self.check_leader()?;
        self.submit(command).await
    }

    /// The group was recovered from this coordinator alone, and the log is to say so before anything else.
    pub(crate) async fn finish_recovery(&self) -> Result<(), Status> {
        // What it holds may not be applied here yet.
        self.outcome(|ticket| Input::Read { shard: ShardId::CONTROL, ticket }).await?;
        if !self.is_being_recovered() {
            return Ok(());
        }
        let group = self.drive.views().get(ShardId::CONTROL);
        let number = group.map_or(0, |group| generation_of(group.replica));
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| Status::internal(error.to_string()))?;
        let generation = Generation { number, nonce: u128::from_be_bytes(nonce) };
        let id = self.drive.node_id();
        let address = self.address_of(id).unwrap_or_default();
        let command = ControlCommand::RecoverAlone { id, address, token: self.token, generation };
        self.submit(command).await?;
        tracing::warn!(
            %generation,
            "recovered: this coordinator goes on alone. Nothing is planned until all nodes have reported, or are \
             declared gone"
        );
        Ok(())
    }

    async fn submit(&self, command: ControlCommand) -> Result<ControlResponse, Status> {
        // An invalid one needn't enter the log; it is checked again when it is applied.
        self.view.state().validate(&command).map_err(|error| invalid(&error))?;
        let bytes = EntryCommand::Control(command.to_bytes()).to_bytes();
        let outcome = self
            .outcome(|ticket| Input::Propose {
                shard: ShardId::CONTROL,
                command: bytes,
                version_count: 1,
                ticket,
            })
            .await?;
        match outcome {
            Outcome::Controlled(result) => decode_result(&result).map_err(|error| invalid(&error)),
            _ => Err(Status::internal("an unexpected kind of outcome")),
        }
    }

    /// A drained node isn't judged by its heartbeats: whether it runs still only this leader knows.
    fn check_silent(&self, node: NodeId) -> Result<(), Status> {
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

    /// The fewest replicas that a shard of a keyspace has, and how many each is to have.
    fn counts_of(&self, keyspace: &str) -> (u32, u32) {
        let state = self.view.state();
        let Some(known) = state.map().keyspace_named(keyspace) else { return (0, 0) };
        let shards = state.map().shards.values();
        let own = shards.filter(|record| record.descriptor.keyspace_id == known.keyspace_id);
        let fewest = own.map(|record| record.descriptor.replicas.len() as u32).min();
        let replicas = fewest.unwrap_or_default();
        if replicas < known.replicas {
            tracing::warn!(
                keyspace = known.name,
                replicas,
                wanted = known.replicas,
                "shards have fewer replicas than wanted: they get more as soon as enough nodes are alive"
            );
        }
        (replicas, known.replicas)
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

    /// Waits until everything that was committed before is applied here, and leadership is sure.
    pub(crate) async fn catch_up(&self) -> Result<(), Status> {
        self.check_leader()?;
        self.outcome(|ticket| Input::Read { shard: ShardId::CONTROL, ticket }).await.map(|_| ())
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

pub(crate) fn invalid(error: &ControlError) -> Status {
    let field = match error {
        ControlError::UnknownNode(_)
        | ControlError::NodeRuns { .. }
        | ControlError::NotAReplica { .. }
        | ControlError::SurvivorIsGone { .. }
        | ControlError::NodeInUse { .. }
        | ControlError::NeededForMajority { .. }
        | ControlError::NotHeard { .. }
        | ControlError::WithoutState { .. }
        | ControlError::BeforeSplit { .. } => "node_id",
        ControlError::UnknownShard(_) | ControlError::HasMajority { .. } => "shard_id",
        ControlError::BadAddress(_) | ControlError::AddressTaken(..) => "address",
        ControlError::BadName(_)
        | ControlError::KeyspaceExists(_)
        | ControlError::NameOfDatabase { .. }
        | ControlError::UnknownKeyspace(_)
        | ControlError::DefaultStays => "name",
        ControlError::DatabaseTaken { .. } => "redis_db",
        ControlError::OlderDirectory(_) => "start",
        ControlError::AlreadyInitialised(_) => "shards",
        ControlError::TooFewForReplicas { .. } => "replication_factor",
        ControlError::CoordinatorExists(_)
        | ControlError::UnknownCoordinator(_)
        | ControlError::CoordinatorRemoved(_)
        | ControlError::LastCoordinator(_) => "id",
        _ => "request",
    };
    // What is wrong is told in whole sentences.
    status_of(&Refusal::invalid(field, format!("is refused: {error}")))
}

pub(crate) fn bad_field(error: kvdb_wire::FieldError) -> Status {
    status_of(&error.into())
}

fn version_of(response: &ControlResponse) -> u64 {
    match response {
        ControlResponse::Done(version)
        | ControlResponse::Registered(_, version)
        | ControlResponse::ShardsInitialised(_, version)
        | ControlResponse::KeyspaceCreated(_, version)
        | ControlResponse::OperatorStarted(_, version) => version.0,
    }
}

#[tonic::async_trait]
impl Coordinator for Member {
    type WatchShardMapStream = ReceiverStream<Result<proto::ShardMapUpdate, Status>>;

    async fn get_shard_map(
        &self,
        request: Request<proto::GetShardMapRequest>,
    ) -> Result<Response<proto::GetShardMapResponse>, Status> {
        self.catch_up().await?;
        let state = self.view.state();
        let version = state.map().version.0;
        let newer = version > request.into_inner().if_newer_than;
        let map = newer.then(|| shard_map_to(state.map()));
        Ok(Response::new(proto::GetShardMapResponse { map_version: version, map }))
    }

    async fn watch_shard_map(
        &self,
        request: Request<proto::WatchShardMapRequest>,
    ) -> Result<Response<Self::WatchShardMapStream>, Status> {
        self.catch_up().await?;
        let (updates, receiver) = mpsc::channel(WATCH_QUEUE);
        let from = MapVersion(request.into_inner().from_version);
        tokio::spawn(watch::feed(self.clone(), from, updates));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn register_node(
        &self,
        request: Request<proto::RegisterNodeRequest>,
    ) -> Result<Response<proto::RegisterNodeResponse>, Status> {
        let request = request.into_inner();
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
                return Ok(Response::new(proto::RegisterNodeResponse {
                    generation: generation_to(generation),
                    as_copy: node.is_some_and(|node| state.copies_of(node).is_awaited),
                    ..Default::default()
                }));
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
                Ok(Response::new(proto::RegisterNodeResponse {
                    copies: state.copies_of(node).count,
                    least_replica_id: record.map_or(0, |record| record.least_replica.0),
                    as_copy: false,
                    node_id: node.0,
                    cluster_id: cluster_id_to(ours),
                    map_version: version.0,
                    unreachable,
                    generation: generation_to(state.generation()),
                }))
            }
            _ => Err(Status::internal("an unexpected kind of result")),
        }
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatResponse>, Status> {
        let request = request.into_inner();
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
            return Ok(Response::new(proto::HeartbeatResponse {
                map_version: state.map().version.0,
                generation: generation_to(generation),
                ..Default::default()
            }));
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
        Ok(Response::new(proto::HeartbeatResponse {
            map_version: state.map().version.0,
            transfers: transfers_of(&state, node),
            tasks: state.tasks_of(node).iter().map(shard_task_to).collect(),
            split_size_bytes: self.planner.config.split_size_bytes,
            dial,
            cluster_time_ms: self.cluster_ms(),
            generation: generation_to(generation),
        }))
    }

    async fn sync_clock(
        &self,
        request: Request<proto::SyncClockRequest>,
    ) -> Result<Response<proto::SyncClockResponse>, Status> {
        self.check_leader()?;
        Ok(Response::new(Member::sync_clock(self, request.into_inner())))
    }

    async fn init_shards(
        &self,
        request: Request<proto::InitShardsRequest>,
    ) -> Result<Response<proto::InitShardsResponse>, Status> {
        let request = request.into_inner();
        let command = ControlCommand::InitShards {
            shards: request.shards,
            replication_factor: request.replication_factor,
        };
        let response = self.propose(command).await?;
        let created = matches!(response, ControlResponse::ShardsInitialised(true, _));
        let map_version = version_of(&response);
        let (replicas, wanted_replicas) = self.counts_of("default");
        Ok(Response::new(proto::InitShardsResponse {
            map_version,
            created,
            replicas,
            wanted_replicas,
        }))
    }

    async fn create_keyspace(
        &self,
        request: Request<proto::CreateKeyspaceRequest>,
    ) -> Result<Response<proto::CreateKeyspaceResponse>, Status> {
        let request = request.into_inner();
        let new = new_keyspace_from(request).map_err(bad_field)?;
        let name = new.name.clone();
        let command = ControlCommand::CreateKeyspace(new);
        let response = self.propose(command).await?;
        let keyspace_id = match response {
            ControlResponse::KeyspaceCreated(id, _) => id.0,
            _ => 0,
        };
        let map_version = version_of(&response);
        let (replicas, wanted_replicas) = self.counts_of(&name);
        Ok(Response::new(proto::CreateKeyspaceResponse {
            keyspace_id,
            map_version,
            replicas,
            wanted_replicas,
        }))
    }

    async fn set_history(
        &self,
        request: Request<proto::SetHistoryRequest>,
    ) -> Result<Response<proto::SetHistoryResponse>, Status> {
        let request = request.into_inner();
        let history = request.history.map(history_from);
        let command = ControlCommand::SetHistory { name: request.keyspace, history };
        let map_version = version_of(&self.propose(command).await?);
        Ok(Response::new(proto::SetHistoryResponse { map_version }))
    }

    async fn drop_keyspace(
        &self,
        request: Request<proto::DropKeyspaceRequest>,
    ) -> Result<Response<proto::DropKeyspaceResponse>, Status> {
        let command = ControlCommand::DropKeyspace { name: request.into_inner().name };
        let map_version = version_of(&self.propose(command).await?);
        Ok(Response::new(proto::DropKeyspaceResponse { map_version }))
    }

    async fn set_node_status(
        &self,
        request: Request<proto::SetNodeStatusRequest>,
    ) -> Result<Response<proto::SetNodeStatusResponse>, Status> {
        let request = request.into_inner();
        let status = node_status_from(request.status).map_err(bad_field)?;
        let node = NodeId(request.node_id);
        let command = match (status, request.force) {
            (NodeStatus::Removed, true) => ControlCommand::RemoveNode { node },
            (NodeStatus::Removed, false) => {
                self.check_silent(node)?;
                ControlCommand::SetNodeStatus { node, status }
            }
            (_, true) => {
                let problem = "is for the status REMOVED alone".to_owned();
                return Err(status_of(&Refusal::invalid("force", problem)));
            }
            (NodeStatus::Draining, false) => {
                // Nobody would move anything.
                let problem = "can't be set to DRAINING; DrainNode moves the replicas off a node";
                return Err(status_of(&Refusal::invalid("status", problem)));
            }
            (_, false) => ControlCommand::SetNodeStatus { node, status },
        };
        let response = self.propose(command).await?;
        let map_version = version_of(&response);
        Ok(Response::new(proto::SetNodeStatusResponse { map_version }))
    }

    async fn set_shard_leader(
        &self,
        request: Request<proto::SetShardLeaderRequest>,
    ) -> Result<Response<proto::SetShardLeaderResponse>, Status> {
        let request = request.into_inner();
        let command = ControlCommand::SetShardLeader {
            shard: ShardId(request.shard_id),
            node: NodeId(request.node_id),
        };
        let response = self.propose(command).await?;
        let map_version = version_of(&response);
        Ok(Response::new(proto::SetShardLeaderResponse { map_version }))
    }

    async fn set_shard_replicas(
        &self,
        request: Request<proto::SetShardReplicasRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        self.start(operators::set_replicas(request.into_inner())).await
    }

    async fn move_replica(
        &self,
        request: Request<proto::MoveReplicaRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        self.start(operators::move_replica(request.get_ref())).await
    }

    async fn split_shard(
        &self,
        request: Request<proto::SplitShardRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        self.start(operators::split(request.into_inner())).await
    }

    async fn drain_node(
        &self,
        request: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        let node = NodeId(request.into_inner().node_id);
        self.start(OperatorRequest::Drain { node }).await
    }

    async fn replace_node(
        &self,
        request: Request<proto::ReplaceNodeRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        let node = NodeId(request.into_inner().node_id);
        self.start(OperatorRequest::Replace { node }).await
    }

    async fn force_recover(
        &self,
        request: Request<proto::ForceRecoverRequest>,
    ) -> Result<Response<proto::ForceRecoverResponse>, Status> {
        self.catch_up().await?;
        let request = request.into_inner();
        let (shard, from) = (ShardId(request.shard_id), NodeId(request.from_node_id));
        let preview = recovery::preview(self, shard, from)?;
        let operator_id = if request.confirm {
            let gone = preview.gone.clone();
            let started = self.start(OperatorRequest::ForceRecover { shard, from, gone }).await?;
            started.into_inner().operator_id
        } else {
            0
        };
        Ok(Response::new(recovery::to_proto(shard, from, preview, operator_id)))
    }

    async fn accept_copy(
        &self,
        request: Request<proto::AcceptCopyRequest>,
    ) -> Result<Response<proto::AcceptCopyResponse>, Status> {
        self.catch_up().await?;
        let node = NodeId(request.into_inner().node_id);
        let status = self.view.state().map().nodes.get(&node).map(|record| record.status);
        // A drained node isn't judged by its heartbeats.
        let lives = self.liveness.lock().may_live(node, clock::now().boot_us / 1000);
        if status == Some(NodeStatus::Draining) && lives {
            let status = NodeStatus::Draining;
            return Err(invalid(&ControlError::NodeRuns { node, status }));
        }
        let map_version = version_of(&self.propose(ControlCommand::AcceptCopy { node }).await?);
        Ok(Response::new(proto::AcceptCopyResponse { map_version }))
    }

    async fn list_operators(
        &self,
        request: Request<proto::ListOperationsRequest>,
    ) -> Result<Response<proto::ListOperationsResponse>, Status> {
        self.list_operations(request).await
    }

    async fn cancel_operator(
        &self,
        request: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::CancelOperationResponse>, Status> {
        self.cancel_operation(request).await
    }

    async fn list_operations(
        &self,
        request: Request<proto::ListOperationsRequest>,
    ) -> Result<Response<proto::ListOperationsResponse>, Status> {
        self.catch_up().await?;
        let running_only = request.into_inner().running_only;
        Ok(Response::new(operators::list(self, running_only)))
    }

    async fn cancel_operation(
        &self,
        request: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::CancelOperationResponse>, Status> {
        self.cancel(OperatorId(request.into_inner().operator_id)).await?;
        let map_version = self.view.state().map().version.0;
        Ok(Response::new(proto::CancelOperationResponse { map_version }))
    }

    async fn plan_rebalance(
        &self,
        request: Request<proto::PlanRebalanceRequest>,
    ) -> Result<Response<proto::PlanRebalanceResponse>, Status> {
        self.catch_up().await?;
        let (mut plan, rebalances) = operators::preview(self, &self.view.state());
        if request.into_inner().start && rebalances {
            let started = self.start(OperatorRequest::Rebalance).await?;
            plan.operator_id = started.into_inner().operator_id;
        }
        Ok(Response::new(plan))
    }

    async fn greet(
        &self,
        request: Request<proto::GreetRequest>,
    ) -> Result<Response<proto::GreetResponse>, Status> {
        let request = request.into_inner();
        let token = token_from("token", &request.token).map_err(bad_field)?;
        if self.token_of(NodeId(request.id)).is_none_or(|known| known == token) {
            self.hear_address(NodeId(request.id), request.address);
        }
        let answer = self.answer_to(NodeId(request.id), token).await;
        let members = answer.members.into_iter().map(|(id, address)| proto::CoordinatorMember {
            id: id.0,
            address,
            ..Default::default()
        });
        let founders = answer.founders.into_iter().map(|(id, record)| proto::Founder {
            id: id.0,
            address: record.address,
            token: record.token.to_be_bytes().to_vec().into(),
        });
        Ok(Response::new(proto::GreetResponse {
            id: answer.id.0,
            token: answer.token.to_be_bytes().to_vec().into(),
            standing: members::standing_to(answer.standing).into(),
            members: members.collect(),
            founders: founders.collect(),
        }))
    }

    async fn add_coordinator(
        &self,
        request: Request<proto::AddCoordinatorRequest>,
    ) -> Result<Response<proto::AddCoordinatorResponse>, Status> {
        self.catch_up().await?;
        let proto::AddCoordinatorRequest { id, address } = request.into_inner();
        let id = NodeId(id);
        // What is wrong with number or address is said before anybody is called.
        let unknown_token =
            ControlCommand::AddCoordinator { id, address: address.clone(), token: 0 };
        self.view.state().validate(&unknown_token).map_err(|error| invalid(&error))?;
        let token = self.newcomer(id, &address).await?;
        let response = self.propose(ControlCommand::AddCoordinator { id, address, token }).await?;
        let map_version = version_of(&response);
        Ok(Response::new(proto::AddCoordinatorResponse { map_version }))
    }

    async fn set_coordinator_address(
        &self,
        request: Request<proto::SetCoordinatorAddressRequest>,
    ) -> Result<Response<proto::SetCoordinatorAddressResponse>, Status> {
        self.catch_up().await?;
        let proto::SetCoordinatorAddressRequest { id, address } = request.into_inner();
        let id = NodeId(id);
        let command = ControlCommand::SetCoordinatorAddress { id, address: address.clone() };
        self.view.state().validate(&command).map_err(|error| invalid(&error))?;
        if let Err(why) = self.is_at(id, &address).await {
            let problem = format!("is refused: {why}; start coordinator {id} there first");
            return Err(status_of(&Refusal::invalid("address", problem)));
        }
        let map_version = version_of(&self.propose(command).await?);
        Ok(Response::new(proto::SetCoordinatorAddressResponse { map_version }))
    }

    async fn remove_coordinator(
        &self,
        request: Request<proto::RemoveCoordinatorRequest>,
    ) -> Result<Response<proto::RemoveCoordinatorResponse>, Status> {
        let id = NodeId(request.into_inner().id);
        let response = self.propose(ControlCommand::RemoveCoordinator { id }).await?;
        let map_version = version_of(&response);
        Ok(Response::new(proto::RemoveCoordinatorResponse { map_version }))
    }

    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        self.status(request.into_inner().figures).await.map(Response::new)
    }
}
