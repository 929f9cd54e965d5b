//! The `Node` service, call by call.

use crate::access::Access;
use crate::metrics::Begun;
use crate::operation::{Accepted, Behind, Finished, Pending, shard_of};
use crate::stream;
use kvdb_model::{Command, Refusal, ShardId, unavailable};
use kvdb_replication::Input;
use kvdb_runtime::drive::{Outcome, Ticket};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::proto::node_server::Node;
use kvdb_wire::{proto, status_about, status_of};
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
        let command = Command::AdvanceTime.to_bytes();
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
        one!(self, request, Put)
    }

    async fn delete(
        &self,
        request: Request<proto::NodeDeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        one!(self, request, Delete)
    }

    async fn increment(
        &self,
        request: Request<proto::NodeIncrementRequest>,
    ) -> Result<Response<proto::IncrementResponse>, Status> {
        one!(self, request, Increment)
    }

    async fn batch_write(
        &self,
        request: Request<proto::NodeBatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        one!(self, request, BatchWrite)
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
