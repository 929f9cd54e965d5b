//! A gateway and a coordinator in memory, that can be told to misbehave.
#![allow(dead_code, reason = "each test file uses a part of it")]

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use kvdb_model::{Keyspace, MapChange, NodeRecord, NodeStatus, Partitioning, Refusal, ShardMap};
use kvdb_wire::proto::{self, coordinator_server, kv_server};
use kvdb_wire::{shard_map_to, status_of, transport};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, async_trait};

/// What happens to the next request instead of a plain answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is done, and the refusal says so.
    Refuse(Refusal),
    /// It is carried out, and the answer is lost.
    LoseAnswer,
    /// It is never answered.
    Hang,
    /// A scan breaks after this many chunks.
    BreakScanAfter(usize),
    /// This operation of a batch is refused, the others are carried out.
    RefuseItem(usize, Refusal),
}

#[derive(Default)]
pub struct State {
    pub data: BTreeMap<Bytes, (Bytes, u64)>,
    pub faults: VecDeque<Fault>,
    /// The request ids of all writes that came in, carried out or not.
    pub request_ids: Vec<Option<proto::RequestId>>,
    /// Puts carried out; a repeated request is carried out once.
    pub puts: u64,
    /// Where the leader of the coordinators is, if it isn't here.
    pub leader_elsewhere: Option<String>,
    pub map: ShardMap,
    /// What the clocks of shards say that hold keys with these prefixes. Other shards take any id.
    pub clocks: Vec<(&'static str, u64)>,
    settled: HashMap<(String, u64, usize), proto::BatchWriteResult>,
    version: u64,
}

#[derive(Clone, Default)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
}

/// Items of a chunk of a scan.
const CHUNK: usize = 3;

impl Fake {
    /// Serves until the test's runtime ends; gives the address.
    pub async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let kv = kv_server::KvServer::new(self.clone())
            .max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
        let coordinator = coordinator_server::CoordinatorServer::new(self.clone());
        let server = transport::server()
            .add_service(kv)
            .add_service(coordinator)
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        address
    }

    pub fn fail_next(&self, fault: Fault) {
        self.state.lock().unwrap().faults.push_back(fault);
    }

    /// A map with one node and the keyspace `default`.
    pub fn with_map(self) -> Self {
        {
            let map = &mut self.state.lock().unwrap().map;
            map.change(MapChange::Node(NodeRecord {
                node_id: kvdb_model::NodeId(1),
                address: "127.0.0.1:7201".into(),
                zone: "a".into(),
                status: NodeStatus::Alive,
                least_replica: Default::default(),
            }));
            map.change(MapChange::Keyspace(Keyspace::new(
                kvdb_model::KeyspaceId(1),
                "default",
                Partitioning::Hash,
            )));
        }
        self
    }

    fn fault(&self) -> Option<Fault> {
        self.state.lock().unwrap().faults.pop_front()
    }

    async fn write(
        &self,
        operations: Vec<proto::WriteOperation>,
        request_id: Option<proto::RequestId>,
    ) -> Result<Vec<proto::BatchWriteResult>, Status> {
        self.state.lock().unwrap().request_ids.push(request_id.clone());
        let fault = self.fault();
        match &fault {
            Some(Fault::Refuse(refusal)) => return Err(status_of(refusal)),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        let mut state = self.state.lock().unwrap();
        let mut results = Vec::new();
        let is_alone = operations.len() == 1;
        for (item, operation) in operations.into_iter().enumerate() {
            if operation.key.is_empty() {
                let refusal = Refusal::invalid("key", "is empty; a key has at least 1 byte");
                return Err(status_of(&refusal));
            }
            if let Some(refusal) = state.judge(&operation.key, request_id.as_ref()) {
                if is_alone {
                    return Err(status_of(&refusal));
                }
                let refusal = Some(kvdb_wire::refusal_to_proto(&refusal));
                results.push(proto::BatchWriteResult { refusal, ..Default::default() });
                continue;
            }
            let result = match &fault {
                Some(Fault::RefuseItem(refused, refusal)) if *refused == item => {
                    proto::BatchWriteResult {
                        refusal: Some(kvdb_wire::refusal_to_proto(refusal)),
                        ..Default::default()
                    }
                }
                _ => state.settle(operation, item, request_id.as_ref()),
            };
            results.push(result);
        }
        match fault {
            Some(Fault::LoseAnswer) => Err(Status::unavailable("the connection was cut")),
            _ => Ok(results),
        }
    }
}

impl State {
    /// As a shard judges the time of an id.
    fn judge(&self, key: &[u8], id: Option<&proto::RequestId>) -> Option<Refusal> {
        let (_, time_ms) =
            *self.clocks.iter().find(|(prefix, _)| key.starts_with(prefix.as_bytes()))?;
        let id = id?;
        let shard = kvdb_model::ShardTimes { time_ms, age_ms: time_ms };
        if id.valid_until_ms <= time_ms {
            let valid_until = kvdb_model::ValidUntil::Time(id.valid_until_ms);
            let (client_id, sequence) = (id.client_id.clone(), id.sequence);
            return Some(Refusal::RequestIdExpired { client_id, sequence, valid_until, shard });
        }
        let is_too_far = id.valid_until_ms > time_ms + 600_000;
        let valid_until_ms = id.valid_until_ms;
        is_too_far.then_some(Refusal::RequestIdTooFarAhead { valid_until_ms, shard })
    }

    fn settle(
        &mut self,
        operation: proto::WriteOperation,
        item: usize,
        id: Option<&proto::RequestId>,
    ) -> proto::BatchWriteResult {
        let id = id.map(|id| (id.client_id.clone(), id.sequence, item));
        if let Some(known) = id.as_ref().and_then(|id| self.settled.get(id)) {
            return known.clone();
        }
        let result = self.carry_out(operation);
        if let Some(id) = id {
            self.settled.insert(id, result.clone());
        }
        result
    }

    fn carry_out(&mut self, operation: proto::WriteOperation) -> proto::BatchWriteResult {
        use proto::condition::Kind;
        let old = self.data.get(&operation.key).cloned();
        let met = match operation.condition.and_then(|condition| condition.kind) {
            Some(Kind::IfAbsent(_)) => old.is_none(),
            Some(Kind::IfPresent(_)) => old.is_some(),
            Some(Kind::IfVersion(version)) => old.as_ref().is_some_and(|old| old.1 == version),
            Some(Kind::IfValue(value)) => old.as_ref().is_some_and(|old| old.0 == value),
            None => true,
        };
        let applied = met
            && match operation.action {
                Some(proto::write_operation::Action::Put(put)) => {
                    self.puts += 1;
                    self.version += 1;
                    self.data.insert(operation.key, (put.value, self.version));
                    true
                }
                Some(proto::write_operation::Action::Expire(_)) => old.is_some(),
                _ => self.data.remove(&operation.key).is_some(),
            };
        let previous = old.filter(|_| operation.return_previous);
        proto::BatchWriteResult {
            applied,
            version: self.version,
            previous: previous.map(|(value, version)| proto::Previous {
                value,
                version,
                ..Default::default()
            }),
            refusal: None,
        }
    }
}

fn put_operation(request: proto::PutRequest) -> proto::WriteOperation {
    proto::WriteOperation {
        key: request.key,
        action: Some(proto::write_operation::Action::Put(proto::PutAction {
            value: request.value,
            ttl_ms: request.ttl_ms,
        })),
        condition: request.condition,
        return_previous: request.return_previous,
    }
}

#[async_trait]
impl kv_server::Kv for Fake {
    async fn get(
        &self,
        request: Request<proto::GetRequest>,
    ) -> Result<Response<proto::GetResponse>, Status> {
        match self.fault() {
            Some(Fault::Refuse(refusal)) => return Err(status_of(&refusal)),
            Some(Fault::LoseAnswer) => return Err(Status::unavailable("the connection was cut")),
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        let request = request.into_inner();
        if !matches!(request.keyspace.as_str(), "" | "default") {
            return Err(status_of(&Refusal::UnknownKeyspace { name: request.keyspace }));
        }
        let found = self.state.lock().unwrap().data.get(&request.key).cloned();
        Ok(Response::new(match found {
            None => proto::GetResponse::default(),
            Some((value, version)) => {
                let as_of_version = version;
                proto::GetResponse {
                    found: true,
                    value,
                    version,
                    expires_at_ms: 0,
                    served_by: 1,
                    as_of_version,
                }
            }
        }))
    }

    async fn put(
        &self,
        request: Request<proto::PutRequest>,
    ) -> Result<Response<proto::PutResponse>, Status> {
        let request = request.into_inner();
        let id = request.request_id.clone();
        let result = self.write(vec![put_operation(request)], id).await?.remove(0);
        let (applied, version, previous) = (result.applied, result.version, result.previous);
        Ok(Response::new(proto::PutResponse { applied, version, previous }))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let request = request.into_inner();
        let operation = proto::WriteOperation {
            key: request.key,
            action: Some(proto::write_operation::Action::Delete(proto::DeleteAction {})),
            condition: request.condition,
            return_previous: request.return_previous,
        };
        let result = self.write(vec![operation], request.request_id).await?.remove(0);
        let (applied, version, previous) = (result.applied, result.version, result.previous);
        Ok(Response::new(proto::DeleteResponse { applied, version, previous }))
    }

    /// Answers with how many arguments there were: what commands do is for the real one.
    async fn execute(
        &self,
        request: Request<proto::ExecuteRequest>,
    ) -> Result<Response<proto::ExecuteResponse>, Status> {
        let count = request.into_inner().arguments.len() as i64;
        let kind = Some(proto::reply::Kind::Integer(count));
        let reply = Some(proto::Reply { kind });
        Ok(Response::new(proto::ExecuteResponse { reply, ..Default::default() }))
    }

    async fn expire(
        &self,
        request: Request<proto::ExpireRequest>,
    ) -> Result<Response<proto::ExpireResponse>, Status> {
        let request = request.into_inner();
        let ttl_ms = request.ttl_ms;
        let operation = proto::WriteOperation {
            key: request.key,
            action: Some(proto::write_operation::Action::Expire(proto::ExpireAction { ttl_ms })),
            condition: request.condition,
            return_previous: request.return_previous,
        };
        let result = self.write(vec![operation], request.request_id).await?.remove(0);
        let (applied, version, previous) = (result.applied, result.version, result.previous);
        Ok(Response::new(proto::ExpireResponse { applied, version, previous }))
    }

    async fn batch_get(
        &self,
        request: Request<proto::BatchGetRequest>,
    ) -> Result<Response<proto::BatchGetResponse>, Status> {
        let state = self.state.lock().unwrap();
        let results = request.into_inner().keys.into_iter().map(|key| {
            let found = state.data.get(&key).cloned();
            let (value, version) = found.clone().unwrap_or_default();
            proto::BatchGetResult {
                key,
                found: found.is_some(),
                value,
                version,
                ..Default::default()
            }
        });
        Ok(Response::new(proto::BatchGetResponse { results: results.collect() }))
    }

    async fn batch_write(
        &self,
        request: Request<proto::BatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        let request = request.into_inner();
        let results = self.write(request.operations, request.request_id).await?;
        Ok(Response::new(proto::BatchWriteResponse { results }))
    }

    async fn increment(
        &self,
        request: Request<proto::IncrementRequest>,
    ) -> Result<Response<proto::IncrementResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        let old = state.data.get(&request.key).map_or("0".into(), |(value, _)| value.clone());
        let number: Option<i64> = std::str::from_utf8(&old).ok().and_then(|old| old.parse().ok());
        let Some(value) = number.and_then(|number| number.checked_add(request.delta)) else {
            return Err(status_of(&Refusal::WrongValue("the value is not a 64-bit number")));
        };
        state.version += 1;
        let version = state.version;
        state.data.insert(request.key, (value.to_string().into(), version));
        Ok(Response::new(proto::IncrementResponse { value, version }))
    }

    type ScanStream = BoxStream<'static, Result<proto::ScanResponse, Status>>;

    async fn scan(
        &self,
        request: Request<proto::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let fault = self.fault();
        if let Some(Fault::Refuse(refusal)) = &fault {
            return Err(status_of(refusal));
        }
        let request = request.into_inner();
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let items: Vec<proto::ScanItem> = {
            let state = self.state.lock().unwrap();
            let wanted = state.data.iter().filter(|(key, _)| {
                key.starts_with(&request.prefix)
                    && **key >= request.start
                    && (request.end.is_empty() || **key < request.end)
                    && **key > request.cursor
            });
            let item = |(key, (value, version)): (&Bytes, &(Bytes, u64))| proto::ScanItem {
                key: key.clone(),
                value: if request.keys_only { Bytes::new() } else { value.clone() },
                version: *version,
                ..Default::default()
            };
            wanted.take(limit).map(item).collect()
        };
        let count = items.chunks(CHUNK).count();
        let mut chunks: Vec<_> = items
            .chunks(CHUNK)
            .enumerate()
            .map(|(number, items)| {
                let last = number + 1 == count;
                let cursor = items.last().filter(|_| !last).map(|item| item.key.clone());
                Ok(proto::ScanResponse {
                    items: items.to_vec(),
                    cursor: cursor.unwrap_or_default(),
                })
            })
            .collect();
        if let Some(Fault::BreakScanAfter(kept)) = fault {
            chunks.truncate(kept);
            chunks.push(Err(Status::unavailable("the connection was cut")));
        }
        Ok(Response::new(stream::iter(chunks).boxed()))
    }

    type WatchStream = BoxStream<'static, Result<proto::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("the fake doesn't watch"))
    }
}

impl Fake {
    fn lead(&self) -> Result<(), Status> {
        let leader_hint = self.state.lock().unwrap().leader_elsewhere.clone();
        match leader_hint {
            None => Ok(()),
            Some(_) => Err(status_of(&Refusal::NotLeader {
                shard_id: kvdb_model::ShardId::CONTROL,
                leader_hint,
            })),
        }
    }
}

fn no_operators() -> Status {
    Status::unimplemented("the fake has no operators")
}

#[async_trait]
impl coordinator_server::Coordinator for Fake {
    async fn get_shard_map(
        &self,
        _: Request<proto::GetShardMapRequest>,
    ) -> Result<Response<proto::GetShardMapResponse>, Status> {
        self.lead()?;
        let map = shard_map_to(&self.state.lock().unwrap().map);
        let map_version = map.map_version;
        Ok(Response::new(proto::GetShardMapResponse { map_version, map: Some(map) }))
    }

    type WatchShardMapStream = BoxStream<'static, Result<proto::ShardMapUpdate, Status>>;

    async fn watch_shard_map(
        &self,
        _: Request<proto::WatchShardMapRequest>,
    ) -> Result<Response<Self::WatchShardMapStream>, Status> {
        Err(Status::unimplemented("the fake has no watchers"))
    }

    async fn register_node(
        &self,
        request: Request<proto::RegisterNodeRequest>,
    ) -> Result<Response<proto::RegisterNodeResponse>, Status> {
        self.lead()?;
        let request = request.into_inner();
        if transport::endpoint(&request.address).is_err() {
            return Err(status_of(&Refusal::invalid("address", "is not host:port")));
        }
        Ok(Response::new(proto::RegisterNodeResponse {
            node_id: 4,
            cluster_id: request.token,
            map_version: 2,
            ..Default::default()
        }))
    }

    async fn heartbeat(
        &self,
        _: Request<proto::HeartbeatRequest>,
    ) -> Result<Response<proto::HeartbeatResponse>, Status> {
        Err(Status::unimplemented("the fake has no nodes"))
    }

    async fn sync_clock(
        &self,
        _: Request<proto::SyncClockRequest>,
    ) -> Result<Response<proto::SyncClockResponse>, Status> {
        Err(Status::unimplemented("the fake has no clock"))
    }

    async fn init_shards(
        &self,
        _: Request<proto::InitShardsRequest>,
    ) -> Result<Response<proto::InitShardsResponse>, Status> {
        self.lead()?;
        Ok(Response::new(proto::InitShardsResponse {
            map_version: 3,
            created: true,
            replicas: 1,
            wanted_replicas: 3,
        }))
    }

    async fn create_keyspace(
        &self,
        _: Request<proto::CreateKeyspaceRequest>,
    ) -> Result<Response<proto::CreateKeyspaceResponse>, Status> {
        self.lead()?;
        Ok(Response::new(proto::CreateKeyspaceResponse {
            keyspace_id: 2,
            map_version: 3,
            replicas: 1,
            wanted_replicas: 3,
        }))
    }

    async fn set_history(
        &self,
        _: Request<proto::SetHistoryRequest>,
    ) -> Result<Response<proto::SetHistoryResponse>, Status> {
        self.lead()?;
        Ok(Response::new(proto::SetHistoryResponse { map_version: 4 }))
    }

    async fn drop_keyspace(
        &self,
        _: Request<proto::DropKeyspaceRequest>,
    ) -> Result<Response<proto::DropKeyspaceResponse>, Status> {
        self.lead()?;
        Ok(Response::new(proto::DropKeyspaceResponse { map_version: 4 }))
    }

    async fn set_node_status(
        &self,
        request: Request<proto::SetNodeStatusRequest>,
    ) -> Result<Response<proto::SetNodeStatusResponse>, Status> {
        self.lead()?;
        if request.into_inner().node_id != 1 {
            return Err(status_of(&Refusal::invalid("node_id", "is not registered")));
        }
        Ok(Response::new(proto::SetNodeStatusResponse { map_version: 4 }))
    }

    async fn set_shard_leader(
        &self,
        _: Request<proto::SetShardLeaderRequest>,
    ) -> Result<Response<proto::SetShardLeaderResponse>, Status> {
        self.lead()?;
        Ok(Response::new(proto::SetShardLeaderResponse { map_version: 5 }))
    }

    async fn set_shard_replicas(
        &self,
        _: Request<proto::SetShardReplicasRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn move_replica(
        &self,
        _: Request<proto::MoveReplicaRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn split_shard(
        &self,
        _: Request<proto::SplitShardRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn drain_node(
        &self,
        _: Request<proto::DrainNodeRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn replace_node(
        &self,
        _: Request<proto::ReplaceNodeRequest>,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn accept_copy(
        &self,
        _: Request<proto::AcceptCopyRequest>,
    ) -> Result<Response<proto::AcceptCopyResponse>, Status> {
        Err(no_operators())
    }

    async fn force_recover(
        &self,
        _: Request<proto::ForceRecoverRequest>,
    ) -> Result<Response<proto::ForceRecoverResponse>, Status> {
        Err(no_operators())
    }

    async fn list_operations(
        &self,
        _: Request<proto::ListOperationsRequest>,
    ) -> Result<Response<proto::ListOperationsResponse>, Status> {
        Err(no_operators())
    }

    async fn cancel_operation(
        &self,
        _: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::CancelOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn list_operators(
        &self,
        _: Request<proto::ListOperationsRequest>,
    ) -> Result<Response<proto::ListOperationsResponse>, Status> {
        Err(no_operators())
    }

    async fn cancel_operator(
        &self,
        _: Request<proto::CancelOperationRequest>,
    ) -> Result<Response<proto::CancelOperationResponse>, Status> {
        Err(no_operators())
    }

    async fn plan_rebalance(
        &self,
        _: Request<proto::PlanRebalanceRequest>,
    ) -> Result<Response<proto::PlanRebalanceResponse>, Status> {
        Err(no_operators())
    }

    async fn greet(
        &self,
        _: Request<proto::GreetRequest>,
    ) -> Result<Response<proto::GreetResponse>, Status> {
        Err(Status::unimplemented("the fake is no coordinator"))
    }

    async fn add_coordinator(
        &self,
        _: Request<proto::AddCoordinatorRequest>,
    ) -> Result<Response<proto::AddCoordinatorResponse>, Status> {
        Err(Status::unimplemented("the fake is no coordinator"))
    }

    async fn set_coordinator_address(
        &self,
        _: Request<proto::SetCoordinatorAddressRequest>,
    ) -> Result<Response<proto::SetCoordinatorAddressResponse>, Status> {
        self.lead()?;
        Ok(Response::new(proto::SetCoordinatorAddressResponse { map_version: 6 }))
    }

    async fn remove_coordinator(
        &self,
        request: Request<proto::RemoveCoordinatorRequest>,
    ) -> Result<Response<proto::RemoveCoordinatorResponse>, Status> {
        self.lead()?;
        match request.into_inner().id {
            1 => Err(status_of(&Refusal::invalid("id", "is the last one"))),
            _ => Ok(Response::new(proto::RemoveCoordinatorResponse { map_version: 5 })),
        }
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        self.lead()?;
        let member = proto::CoordinatorMember {
            id: 1,
            address: "127.0.0.1:7101".into(),
            is_leader: true,
            role: proto::ReplicaRole::Voter.into(),
        };
        Ok(Response::new(proto::GetStatusResponse {
            cluster_id: Bytes::from_static(&[7; 16]),
            map_version: 9,
            leader_id: 1,
            term: 2,
            applied_index: 30,
            members: vec![member],
            ..Default::default()
        }))
    }
}
