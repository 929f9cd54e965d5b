//! The `Kv` service.

use crate::admission::{Admitted, weight_of};
use crate::ages::Stamping;
use crate::figures::Figures;
use crate::route::{Gateway, Nature, Place};
use crate::{scan, watch};
use bytes::Bytes;
use kvdb_model::{Keyspace, Refusal, RequestTag, ShardId};
use kvdb_wire::proto::kv_server::Kv;
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{client_tag_from, proto, requests, status_of};
use prost::Message;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
const LONGEST_DEADLINE: Duration = Duration::from_secs(120);

/// The caller's deadline, from `grpc-timeout`.
pub(crate) fn deadline_of(metadata: &MetadataMap) -> Instant {
    let given = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let given = given.and_then(parse_timeout).unwrap_or(DEFAULT_DEADLINE);
    Instant::now() + given.min(LONGEST_DEADLINE)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A request id: the caller's own, or one of a lane.
pub(crate) struct Identified {
    pub(crate) tag: RequestTag,
    /// Settled when it is dropped.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub(crate) lane: Option<crate::lanes::Ticket>,
}

/// A call under way.
struct Call<'a> {
    gateway: &'a Gateway,
    method: &'static str,
    figures: Arc<Figures>,
    started: Instant,
    _admitted: Option<Admitted>,
}

impl Call<'_> {
    fn end<T>(self, result: Result<T, Refusal>) -> Result<Response<T>, Status> {
        match result {
            Ok(answer) => {
                self.figures.count(self.started, true);
                self.gateway.metrics.request(self.method, "OK");
                Ok(Response::new(answer))
            }
            Err(refusal) => Err(self.refuse(&refusal)),
        }
    }

    fn refuse(self, refusal: &Refusal) -> Status {
        self.figures.count(self.started, false);
        self.gateway.metrics.request(self.method, refusal.code());
        status_of(refusal)
    }
}

/// How fresh a read must be, as the caller has said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freshness {
    pub(crate) consistency: i32,
    pub(crate) max_staleness_ms: u64,
    pub(crate) min_version: u64,
}

impl Freshness {
    /// Linearizable, whatever was written before.
    pub(crate) const STRONG: Freshness = Freshness {
        consistency: proto::Consistency::Strong as i32,
        max_staleness_ms: 0,
        min_version: 0,
    };

    /// Who may serve it.
    pub(crate) fn nature(self) -> Nature {
        match self.consistency {
            consistency if consistency == proto::Consistency::Strong as i32 => Nature::Read,
            _ => Nature::ReplicaRead,
        }
    }
}

impl Gateway {
    /// A call begins, if there is room for it. How it ends is counted.
    fn call<T: Message>(
        &self,
        method: &'static str,
        keyspace: &str,
        request: &Request<T>,
        weight: usize,
    ) -> Result<Call<'_>, Status> {
        let figures = self.figures.of(keyspace, &self.map.routes.load());
        let started = Instant::now();
        let call = |admitted| Call { gateway: self, method, figures, started, _admitted: admitted };
        let bytes = request.get_ref().encoded_len();
        match self.admission.admit(request.remote_addr(), weight, bytes) {
            Ok(admitted) => Ok(call(Some(admitted))),
            Err(refusal) => Err(call(None).refuse(&refusal)),
        }
    }

    pub(crate) fn identify(&self, own: Option<RequestTag>, key: &[u8]) -> Identified {
        if let Some(tag) = own {
            return Identified { tag, lane: None };
        }
        let shard = self.find(Place::At(key), None).map_or(ShardId(0), |route| route.shard_id);
        let lane = self.lanes.begin(shard);
        Identified { tag: lane.tag.clone(), lane: Some(lane) }
    }

    pub(crate) fn routing_key(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Bytes, Refusal> {
        self.limits.check_key(key)?;
        Ok(keyspace.partitioning.routing_key(keyspace.keyspace_id, key))
    }

    async fn get_one(
        &self,
        request: proto::GetRequest,
        deadline: Instant,
    ) -> Result<proto::GetResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let routing_key = self.routing_key(&keyspace, &request.key)?;
        let keyspace_id = keyspace.keyspace_id.0;
        let fresh = Freshness {
            consistency: request.consistency,
            max_staleness_ms: request.max_staleness_ms,
            min_version: request.min_version,
        };
        let build = |route: &kvdb_router::Route, _: Stamping<'_>| {
            Asked::Get(proto::NodeGetRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id,
                key: request.key.clone(),
                consistency: fresh.consistency,
                head_only: request.head_only,
                max_staleness_ms: fresh.max_staleness_ms,
                min_version: fresh.min_version,
            })
        };
        match self.ask(Place::At(&routing_key), fresh.nature(), deadline, build).await?.answer {
            Answer::Get(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    async fn put_one(
        &self,
        request: proto::PutRequest,
        deadline: Instant,
    ) -> Result<proto::PutResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let own = client_tag_from(request.request_id, &self.limits)?;
        let operation = requests::put_operation(
            request.key,
            request.value,
            request.ttl_ms,
            request.condition,
            request.return_previous,
            &self.limits,
        )?;
        self.write_one(&keyspace, operation, own, deadline).await.map(requests::put_response)
    }

    async fn delete_one(
        &self,
        request: proto::DeleteRequest,
        deadline: Instant,
    ) -> Result<proto::DeleteResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let own = client_tag_from(request.request_id, &self.limits)?;
        let operation = requests::delete_operation(
            request.key,
            request.condition,
            request.return_previous,
            &self.limits,
        )?;
        self.write_one(&keyspace, operation, own, deadline).await.map(requests::delete_response)
    }

    async fn expire_one(
        &self,
        request: proto::ExpireRequest,
        deadline: Instant,
    ) -> Result<proto::ExpireResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let own = client_tag_from(request.request_id, &self.limits)?;
        let operation = requests::expire_operation(
            request.key,
            request.ttl_ms,
            request.condition,
            request.return_previous,
            &self.limits,
        )?;
        let result = self.write_one(&keyspace, operation, own, deadline).await?;
        Ok(requests::expire_response(result))
    }

    async fn increment_one(
        &self,
        request: proto::IncrementRequest,
        deadline: Instant,
    ) -> Result<proto::IncrementResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let own = client_tag_from(request.request_id, &self.limits)?;
        let operation = requests::increment_operation(request.key, request.delta, &self.limits)?;
        self.write_one(&keyspace, operation, own, deadline).await.map(requests::increment_response)
    }
}

pub(crate) fn other_kind() -> Refusal {
    Refusal::OutcomeUnknown { reason: "the node gave an answer of another kind" }
}

#[tonic::async_trait]
impl Kv for Gateway {
    type ScanStream = ReceiverStream<Result<proto::ScanResponse, Status>>;
    type WatchStream = ReceiverStream<Result<proto::WatchResponse, Status>>;

    async fn get(
        &self,
        request: Request<proto::GetRequest>,
    ) -> Result<Response<proto::GetResponse>, Status> {
        let call = self.call("get", &request.get_ref().keyspace, &request, 1)?;
        let deadline = deadline_of(request.metadata());
        let result = self.get_one(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn put(
        &self,
        request: Request<proto::PutRequest>,
    ) -> Result<Response<proto::PutResponse>, Status> {
        let call = self.call("put", &request.get_ref().keyspace, &request, 1)?;
        let deadline = deadline_of(request.metadata());
        let result = self.put_one(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let call = self.call("delete", &request.get_ref().keyspace, &request, 1)?;
        let deadline = deadline_of(request.metadata());
        let result = self.delete_one(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn increment(
        &self,
        request: Request<proto::IncrementRequest>,
    ) -> Result<Response<proto::IncrementResponse>, Status> {
        let call = self.call("increment", &request.get_ref().keyspace, &request, 1)?;
        let deadline = deadline_of(request.metadata());
        let result = self.increment_one(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn expire(
        &self,
        request: Request<proto::ExpireRequest>,
    ) -> Result<Response<proto::ExpireResponse>, Status> {
        let call = self.call("expire", &request.get_ref().keyspace, &request, 1)?;
        let deadline = deadline_of(request.metadata());
        let result = self.expire_one(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn execute(
        &self,
        request: Request<proto::ExecuteRequest>,
    ) -> Result<Response<proto::ExecuteResponse>, Status> {
        let weight = weight_of(request.get_ref().arguments.len().div_ceil(2));
        let call = self.call("execute", &request.get_ref().keyspace, &request, weight)?;
        let deadline = deadline_of(request.metadata());
        let result = self.execute_one(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn batch_get(
        &self,
        request: Request<proto::BatchGetRequest>,
    ) -> Result<Response<proto::BatchGetResponse>, Status> {
        let call = self.call(
            "batch_get",
            &request.get_ref().keyspace,
            &request,
            weight_of(request.get_ref().keys.len()),
        )?;
        let deadline = deadline_of(request.metadata());
        let result = self.get_many(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn batch_write(
        &self,
        request: Request<proto::BatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        let call = self.call(
            "batch_write",
            &request.get_ref().keyspace,
            &request,
            weight_of(request.get_ref().operations.len()),
        )?;
        let deadline = deadline_of(request.metadata());
        let result = self.write_many(request.into_inner(), deadline).await;
        call.end(result)
    }

    async fn scan(
        &self,
        request: Request<proto::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let call = self.call("scan", &request.get_ref().keyspace, &request, 1)?;
        let result = scan::start(self, request.into_inner()).await;
        call.end(result)
    }

    async fn watch(
        &self,
        request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let call = self.call("watch", &request.get_ref().keyspace, &request, 1)?;
        let result = watch::start(self, request.into_inner()).await;
        call.end(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_in_every_unit_and_bounded() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        for junk in ["", "m", "12", "-1S", "9999999999999999999H", "é"] {
            assert_eq!(parse_timeout(junk), None, "{junk}");
        }
    }
}
