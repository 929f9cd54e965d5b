//! The `Node` service, call by call.

use crate::access::Access;
use crate::metrics::Begun;
use crate::operation::{Accepted, Behind, Finished, Pending, shard_of, unexpected};
use crate::stream;
use kvdb_model::{
    EntryCommand, Operation, OperationOutcome, RangeEpoch, Refusal, ShardId, Write, WriteResult,
    unavailable,
};
use kvdb_replication::Input;
use kvdb_runtime::drive::{Outcome, Ticket};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::proto::node_server::Node;
use kvdb_wire::{proto, request_tag_from, requests, status_about, status_of};
use std::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) fn overloaded() -> Refusal {
    Refusal::Overloaded { what: "the node's queue", retry_after_ms: 20 }
}

impl Access {
    /// Carries out one operation.
    pub(crate) async fn carry_out(&self, asked: Asked) -> Result<Answer, Refusal> {
        let begun = Begun::new(&asked, Instant::now());
        let answer = self.carried_out(asked).await;
        self.metrics.answered(begun, answer.as_ref().err());
        answer
    }

    async fn carried_out(&self, asked: Asked) -> Result<Answer, Refusal> {
        let Accepted { pending, submit } = self.accept(asked)?;
        let (ticket, receiver) = Ticket::oneshot();
        let outcome = match submit.input(ticket) {
            None => Outcome::ReadReady,
            Some(input) => {
                self.drive.submit(input).map_err(|_| overloaded())?;
                receiver.await.map_err(|_| stopping())?
            }
        };
        self.conclude(pending, outcome).await
    }

    /// Finishes an operation, advancing shard time first where that is needed.
    pub(crate) async fn conclude(
        &self,
        mut pending: Pending,
        mut outcome: Outcome,
    ) -> Result<Answer, Refusal> {
        let mut has_waited = false;
        loop {
            let access = self.clone();
            let finished = if pending.takes_long() {
                tokio::task::spawn_blocking(move || access.finish(pending, outcome))
                    .await
                    .map_err(|_| stopping())?
            } else {
                access.finish(pending, outcome)
            };
            match finished? {
                Finished::Answer(answer) => return Ok(answer),
                Finished::NeedsTime(again) => {
                    self.advance_time(again.shard()).await?;
                    pending = again;
                    outcome = Outcome::ReadReady;
                }
                Finished::Behind(behind) if has_waited => return Err(behind.refusal()),
                Finished::Behind(behind) => {
                    self.advance_time(behind.pending.shard()).await?;
                    pending = behind.pending;
                    outcome = Outcome::ReadReady;
                    has_waited = true;
                }
            }
        }
    }

    /// Lets shard time reach the present, so that no later leader brings an expired key back.
    pub(crate) async fn advance_time(&self, shard: ShardId) -> Result<(), Refusal> {
        let (ticket, receiver) = Ticket::oneshot();
        let command = EntryCommand::AdvanceTime.to_bytes();
        let input = Input::Propose { shard, command, version_count: 1, ticket };
        self.drive.submit(input).map_err(|_| overloaded())?;
        match receiver.await.map_err(|_| stopping())? {
            Outcome::TimeAdvanced(_) => Ok(()),
            // Nothing was read yet: whoever asked may ask elsewhere.
            _ => Err(self.not_leader(shard)),
        }
    }
}

/// A version that lies further ahead than any deadline reaches won't be reached by it.
const LONGEST_WAIT_MS: u64 = 120_000;

impl Behind {
    /// Shard time is the present, and still the version lies ahead. Soon reached, it is worth
    /// another try.
    fn refusal(&self) -> Refusal {
        let ahead_ms = self.wanted.millis().saturating_sub(self.reached.millis());
        if ahead_ms <= LONGEST_WAIT_MS {
            let shard_id = self.pending.shard();
            return Refusal::ShardUnavailable { shard_id, reason: unavailable::BEHIND };
        }
        let problem = format!(
            "{} lies ahead of the shard, whose latest version is {}; give one that a write or a \
             read of the same shard has returned",
            self.wanted, self.reached
        );
        Refusal::invalid("min_version", problem)
    }
}

pub(crate) fn stopping() -> Refusal {
    Refusal::OutcomeUnknown { reason: "the node stops" }
}

/// Which shard a caller's write with user keys goes to.
#[derive(Clone, Copy)]
struct Target {
    method: &'static str,
    shard: ShardId,
    epoch: RangeEpoch,
    keyspace: u32,
}

impl Target {
    fn new(method: &'static str, shard: u64, epoch: u64, keyspace: u32) -> Self {
        Target { method, shard: ShardId(shard), epoch: RangeEpoch(epoch), keyspace }
    }
}

/// The operations of a batch with the places that its caller has given them.
fn numbered(mut operations: Vec<Operation>, items: Vec<u32>) -> Result<Vec<Operation>, Refusal> {
    if !items.is_empty() && items.len() != operations.len() {
        return Err(Refusal::invalid("items", "must be one an operation, or none"));
    }
    for (operation, item) in operations.iter_mut().zip(items) {
        operation.item = item;
    }
    Ok(operations)
}

impl Access {
    /// Carries out a write that comes with user keys: what gateways send is encoded already.
    async fn write(
        &self,
        target: Target,
        operations: Result<Vec<Operation>, Refusal>,
        atomic: bool,
        request_id: Option<proto::RequestId>,
    ) -> Result<Vec<OperationOutcome>, Status> {
        let begun = Begun::write(target.method, Instant::now());
        let written = async {
            let mut operations = operations?;
            for operation in &mut operations {
                operation.key = self.routing_key(target.shard, target.keyspace, &operation.key)?;
            }
            let request = request_tag_from(request_id, &self.limits)?;
            let write = Write { epoch: target.epoch, atomic, request, operations };
            let submit = self.accept_write(target.shard, write, None)?;
            let (ticket, receiver) = Ticket::oneshot();
            let input = submit.input(ticket).ok_or_else(unexpected)?;
            self.drive.submit(input).map_err(|_| overloaded())?;
            match receiver.await.map_err(|_| stopping())? {
                Outcome::Rejected(why) => Err(self.rejected(target.shard, why)),
                outcome => self.written(outcome),
            }
        };
        let written = written.await;
        self.metrics.answered(begun, written.as_ref().err());
        written.map_err(|refusal| status_about(&refusal, target.shard))
    }

    async fn write_one<T>(
        &self,
        target: Target,
        operation: Result<Operation, Refusal>,
        request_id: Option<proto::RequestId>,
        response: fn(WriteResult) -> T,
    ) -> Result<Response<T>, Status> {
        let operations = operation.map(|operation| vec![operation]);
        let mut outcomes = self.write(target, operations, false, request_id).await?;
        let outcome = outcomes.pop().unwrap_or_else(|| Err(unexpected()));
        let result = outcome.map_err(|refusal| status_about(&refusal, target.shard))?;
        Ok(Response::new(response(result)))
    }
}

macro_rules! one {
    ($self:ident, $request:ident, $kind:ident) => {{
        let asked = Asked::$kind($request.into_inner());
        let shard = shard_of(&asked);
        match $self.carry_out(asked).await {
            Ok(Answer::$kind(answer)) => Ok(Response::new(answer)),
            Ok(_) => Err(Status::internal("an answer of another kind")),
            Err(refusal) => Err(status_about(&refusal, shard)),
        }
    }};
}

#[tonic::async_trait]
impl Node for Access {
    type BatchStream = ReceiverStream<Result<proto::NodeBatchResponse, Status>>;

    async fn get(
        &self,
        request: Request<proto::NodeGetRequest>,
    ) -> Result<Response<proto::GetResponse>, Status> {
        one!(self, request, Get)
    }

    async fn put(
        &self,
        request: Request<proto::NodePutRequest>,
    ) -> Result<Response<proto::PutResponse>, Status> {
        let put = request.into_inner();
        let target = Target::new("put", put.shard_id, put.epoch, put.keyspace_id);
        let operation = requests::put_operation(
            put.key,
            put.value,
            put.ttl_ms,
            put.condition,
            put.return_previous,
            &self.limits,
        );
        self.write_one(target, operation, put.request_id, requests::put_response).await
    }

    async fn delete(
        &self,
        request: Request<proto::NodeDeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let delete = request.into_inner();
        let target = Target::new("delete", delete.shard_id, delete.epoch, delete.keyspace_id);
        let operation = requests::delete_operation(
            delete.key,
            delete.condition,
            delete.return_previous,
            &self.limits,
        );
        self.write_one(target, operation, delete.request_id, requests::delete_response).await
    }

    async fn increment(
        &self,
        request: Request<proto::NodeIncrementRequest>,
    ) -> Result<Response<proto::IncrementResponse>, Status> {
        let asked = request.into_inner();
        let target = Target::new("increment", asked.shard_id, asked.epoch, asked.keyspace_id);
        let operation = requests::increment_operation(asked.key, asked.delta, &self.limits);
        self.write_one(target, operation, asked.request_id, requests::increment_response).await
    }

    async fn batch_write(
        &self,
        request: Request<proto::NodeBatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        let batch = request.into_inner();
        let target = Target::new("batch_write", batch.shard_id, batch.epoch, batch.keyspace_id);
        let operations = requests::batch_operations(batch.operations, &self.limits);
        let operations = operations.and_then(|operations| numbered(operations, batch.items));
        let outcomes = self.write(target, operations, batch.atomic, batch.request_id).await?;
        let mut results: Vec<_> = outcomes.into_iter().map(requests::batch_result).collect();
        requests::omit_previous_beyond(&mut results, self.limits.request_max_bytes);
        Ok(Response::new(proto::BatchWriteResponse { results }))
    }

    async fn scan(
        &self,
        request: Request<proto::NodeScanRequest>,
    ) -> Result<Response<proto::NodeScanResponse>, Status> {
        one!(self, request, Scan)
    }

    async fn watch(
        &self,
        request: Request<proto::NodeWatchRequest>,
    ) -> Result<Response<proto::NodeWatchResponse>, Status> {
        let request = request.into_inner();
        let shard = ShardId(request.shard_id);
        let watched = Access::watch(self, request).await;
        watched.map(Response::new).map_err(|refusal| status_about(&refusal, shard))
    }

    async fn batch(
        &self,
        request: Request<Streaming<proto::NodeBatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        Ok(Response::new(stream::serve(self.clone(), request.into_inner())))
    }

    async fn digest(
        &self,
        request: Request<proto::NodeDigestRequest>,
    ) -> Result<Response<proto::NodeDigestResponse>, Status> {
        let shard_id = ShardId(request.into_inner().shard_id);
        let here = self.drive.views().get(shard_id);
        let found = here.and_then(|view| view.volume.map(|volume| (view.replica, volume)));
        let Some((replica, volume)) = found else {
            let reason = unavailable::NO_REPLICA;
            return Err(status_of(&Refusal::ShardUnavailable { shard_id, reason }));
        };
        let engine = self.drive.engine().clone();
        let digest = tokio::task::spawn_blocking(move || {
            let snapshot = engine.snapshot(volume).map_err(|error| error.to_string())?;
            kvdb_store::digest(&*snapshot, replica).map_err(|error| error.to_string())
        });
        let digest = digest.await.map_err(|error| Status::internal(error.to_string()))?;
        let (position, digest) = digest.map_err(Status::internal)?;
        Ok(Response::new(proto::NodeDigestResponse {
            replica_id: replica.0,
            applied_index: position.index.0,
            digest,
        }))
    }
}
