//! The `Coordinator` service. Only the leader answers; a follower says who leads.

use crate::clocks::SharedClocks;
use crate::figures;
use crate::founders::Founders;
use crate::refusals::{bad_field, invalid};
use crate::view::View;
use crate::{members, operators, recovery, watch};
use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, Liveness, OperatorRequest, Planner, Standings,
    Synced, decode_result, generation_of,
};
use kvdb_model::{
    EntryCommand, Generation, MapVersion, NodeId, NodeStatus, OperatorId, Refusal, ShardId,
};
use kvdb_replication::{Input, Rejection};
use kvdb_runtime::clock;
use kvdb_runtime::cluster_time::ClusterTime;
use kvdb_runtime::contacts::Contacts;
use kvdb_runtime::drive::{Drive, Outcome, Ticket};
use kvdb_wire::proto::coordinator_server::Coordinator;
use kvdb_wire::{
    history_from, new_keyspace_from, node_status_from, proto, shard_map_to, status_of, token_from,
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
    pub(crate) synced: Arc<Mutex<Synced>>,
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

    pub(crate) fn check_leader(&self) -> Result<(), Status> {
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

    /// Waits until everything that was committed before is applied here, and leadership is sure.
    pub(crate) async fn catch_up(&self) -> Result<(), Status> {
        self.check_leader()?;
        self.outcome(|ticket| Input::Read { shard: ShardId::CONTROL, ticket }).await.map(|_| ())
    }
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
        self.register(request.into_inner()).await.map(Response::new)
    }

    async fn heartbeat(
        &self,
        request: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatResponse>, Status> {
        self.hear_heartbeat(request.into_inner()).await.map(Response::new)
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
