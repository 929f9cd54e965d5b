//! The `Kv` service.

use crate::route::{Gateway, Nature, Place, wall_ms};
use crate::scan;
use bytes::Bytes;
use futures_util::future::join_all;
use kvdb_model::{Keyspace, Operation, Refusal, RequestTag, ShardId};
use kvdb_wire::proto::kv_server::Kv;
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{proto, refusal_to_proto, request_tag_from, requests, status_of};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
const LONGEST_DEADLINE: Duration = Duration::from_secs(120);
/// Keys of one `BatchGet` that are asked for at the same time.
const CONCURRENT_KEYS: usize = 1024;

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

/// A request id as it goes to a node: the caller's own, or one of a lane.
struct Identified {
    request_id: proto::RequestId,
    _lane: Option<crate::lanes::Ticket>,
}

impl Gateway {
    fn counted<T>(
        &self,
        method: &'static str,
        result: Result<T, Refusal>,
    ) -> Result<Response<T>, Status> {
        match result {
            Ok(answer) => {
                self.metrics.request(method, "OK");
                Ok(Response::new(answer))
            }
            Err(refusal) => {
                self.metrics.request(method, refusal.code());
                Err(status_of(&refusal))
            }
        }
    }

    fn identify(&self, own: Option<RequestTag>, key: &[u8]) -> Identified {
        let given = own.map(|tag| requests::request_id_to(&tag));
        match given {
            Some(request_id) => Identified { request_id, _lane: None },
            None => {
                let shard =
                    self.find(Place::At(key), None).map_or(ShardId(0), |route| route.shard_id);
                let lane = self.lanes.begin(shard, wall_ms());
                Identified { request_id: requests::request_id_to(&lane.tag), _lane: Some(lane) }
            }
        }
    }

    fn routing_key(&self, keyspace: &Keyspace, key: &[u8]) -> Result<Bytes, Refusal> {
        self.limits.check_key(key)?;
        Ok(keyspace.partitioning.routing_key(keyspace.keyspace_id, key))
    }

    async fn get_one(
        &self,
        keyspace: &Keyspace,
        key: Bytes,
        consistency: i32,
        head_only: bool,
        deadline: Instant,
    ) -> Result<proto::GetResponse, Refusal> {
        let routing_key = self.routing_key(keyspace, &key)?;
        let keyspace_id = keyspace.keyspace_id.0;
        let build = |route: &kvdb_router::Route| {
            Asked::Get(proto::NodeGetRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id,
                key: key.clone(),
                consistency,
                head_only,
            })
        };
        match self.ask(Place::At(&routing_key), Nature::Read, deadline, build).await?.0 {
            Answer::Get(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    async fn put_one(
        &self,
        request: proto::PutRequest,
        deadline: Instant,
    ) -> Result<proto::PutResponse, Refusal> {
        let keyspace = self.keyspace(&request.keyspace)?;
        let routing_key = self.routing_key(&keyspace, &request.key)?;
        self.limits.check_value(&request.value)?;
        let own = request_tag_from(request.request_id.clone(), &self.limits)?;
        let identified = self.identify(own, &routing_key);
        let build = |route: &kvdb_router::Route| {
            Asked::Put(proto::NodePutRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id: keyspace.keyspace_id.0,
                key: request.key.clone(),
                value: request.value.clone(),
                ttl_ms: request.ttl_ms,
                condition: request.condition.clone(),
                return_previous: request.return_previous,
                request_id: Some(identified.request_id.clone()),
            })
        };
        match self.ask(Place::At(&routing_key), Nature::TaggedWrite, deadline, build).await?.0 {
            Answer::Put(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    async fn delete_one(
        &self,
        request: proto::DeleteRequest,
        deadline: Instant,
    ) -> Result<proto::DeleteResponse, Refusal> {
        let keyspace = self.keyspace(&request.keyspace)?;
        let routing_key = self.routing_key(&keyspace, &request.key)?;
        let own = request_tag_from(request.request_id.clone(), &self.limits)?;
        let identified = self.identify(own, &routing_key);
        let build = |route: &kvdb_router::Route| {
            Asked::Delete(proto::NodeDeleteRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id: keyspace.keyspace_id.0,
                key: request.key.clone(),
                condition: request.condition.clone(),
                return_previous: request.return_previous,
                request_id: Some(identified.request_id.clone()),
            })
        };
        match self.ask(Place::At(&routing_key), Nature::TaggedWrite, deadline, build).await?.0 {
            Answer::Delete(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    async fn increment_one(
        &self,
        request: proto::IncrementRequest,
        deadline: Instant,
    ) -> Result<proto::IncrementResponse, Refusal> {
        let keyspace = self.keyspace(&request.keyspace)?;
        let routing_key = self.routing_key(&keyspace, &request.key)?;
        let own = request_tag_from(request.request_id.clone(), &self.limits)?;
        let identified = self.identify(own, &routing_key);
        let build = |route: &kvdb_router::Route| {
            Asked::Increment(proto::NodeIncrementRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id: keyspace.keyspace_id.0,
                key: request.key.clone(),
                delta: request.delta,
                request_id: Some(identified.request_id.clone()),
            })
        };
        match self.ask(Place::At(&routing_key), Nature::TaggedWrite, deadline, build).await?.0 {
            Answer::Increment(answer) => Ok(answer),
            _ => Err(other_kind()),
        }
    }

    async fn get_many(
        &self,
        request: proto::BatchGetRequest,
        deadline: Instant,
    ) -> Result<proto::BatchGetResponse, Refusal> {
        let keyspace = self.keyspace(&request.keyspace)?;
        requests::check_keys(&request.keys, &self.limits)?;
        let mut results = Vec::with_capacity(request.keys.len());
        for keys in request.keys.chunks(CONCURRENT_KEYS) {
            let reads = keys.iter().map(|key| {
                self.get_one(
                    &keyspace,
                    key.clone(),
                    request.consistency,
                    request.head_only,
                    deadline,
                )
            });
            let found = join_all(reads).await;
            results.extend(keys.iter().zip(found).map(|(key, found)| get_result(key, found)));
        }
        Ok(proto::BatchGetResponse { results })
    }

    async fn write_many(
        &self,
        request: proto::BatchWriteRequest,
        deadline: Instant,
    ) -> Result<proto::BatchWriteResponse, Refusal> {
        let keyspace = self.keyspace(&request.keyspace)?;
        let own = request_tag_from(request.request_id.clone(), &self.limits)?;
        let operations = requests::batch_operations(request.operations, &self.limits)?;
        let mut groups: BTreeMap<ShardId, Group> = BTreeMap::new();
        for operation in operations {
            let key = self.routing_key(&keyspace, &operation.key)?;
            let route = self.find(Place::At(&key), None).ok_or(Refusal::NotInitialised)?;
            groups.entry(route.shard_id).or_default().push(key, operation);
        }
        if request.atomic && groups.len() > 1 {
            return Err(Refusal::CrossShard { shards: groups.into_keys().collect() });
        }
        let count = groups.values().map(|group| group.operations.len()).sum();
        let writes = groups
            .into_values()
            .map(|group| self.write_group(&keyspace, group, request.atomic, own.clone(), deadline));
        let mut results = vec![proto::BatchWriteResult::default(); count];
        for written in join_all(writes).await {
            for (item, result) in written? {
                if let Some(place) = results.get_mut(item as usize) {
                    *place = result;
                }
            }
        }
        Ok(proto::BatchWriteResponse { results })
    }

    /// The operations of a batch that lie on one shard. A refusal of the whole group is that of
    /// each of them, unless the batch is atomic.
    async fn write_group(
        &self,
        keyspace: &Keyspace,
        group: Group,
        atomic: bool,
        own: Option<RequestTag>,
        deadline: Instant,
    ) -> Result<Vec<(u32, proto::BatchWriteResult)>, Refusal> {
        let items: Vec<u32> = group.operations.iter().map(|operation| operation.item).collect();
        let operations: Vec<proto::WriteOperation> = group
            .operations
            .iter()
            .filter_map(|operation| requests::write_operation_to(operation, operation.key.clone()))
            .collect();
        let identified = self.identify(own, &group.first);
        let build = |route: &kvdb_router::Route| {
            Asked::BatchWrite(proto::NodeBatchWriteRequest {
                shard_id: route.shard_id.0,
                epoch: route.epoch.0,
                keyspace_id: keyspace.keyspace_id.0,
                operations: operations.clone(),
                atomic,
                request_id: Some(identified.request_id.clone()),
                items: items.clone(),
            })
        };
        let place = Place::At(&group.first);
        match self.ask(place, Nature::TaggedWrite, deadline, build).await {
            Ok((Answer::BatchWrite(answer), _)) => {
                Ok(items.into_iter().zip(answer.results).collect())
            }
            Ok(_) => Err(other_kind()),
            Err(refusal) if atomic => Err(refusal),
            Err(refusal) => {
                let result = proto::BatchWriteResult {
                    refusal: Some(refusal_to_proto(&refusal)),
                    ..Default::default()
                };
                Ok(items.into_iter().map(|item| (item, result.clone())).collect())
            }
        }
    }
}

/// Operations for one shard, with the routing key of the first.
#[derive(Default)]
struct Group {
    first: Bytes,
    operations: Vec<Operation>,
}

impl Group {
    fn push(&mut self, routing_key: Bytes, operation: Operation) {
        if self.operations.is_empty() {
            self.first = routing_key;
        }
        self.operations.push(operation);
    }
}

fn get_result(key: &Bytes, found: Result<proto::GetResponse, Refusal>) -> proto::BatchGetResult {
    let key = key.clone();
    match found {
        Ok(found) => proto::BatchGetResult {
            key,
            found: found.found,
            value: found.value,
            version: found.version,
            expires_at_ms: found.expires_at_ms,
            served_by: found.served_by,
            refusal: None,
        },
        Err(refusal) => proto::BatchGetResult {
            key,
            refusal: Some(refusal_to_proto(&refusal)),
            ..Default::default()
        },
    }
}

pub(crate) fn other_kind() -> Refusal {
    Refusal::OutcomeUnknown { reason: "the node gave an answer of another kind" }
}

#[tonic::async_trait]
impl Kv for Gateway {
    type ScanStream = ReceiverStream<Result<proto::ScanResponse, Status>>;
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchResponse, Status>> + Send>>;

    async fn get(
        &self,
        request: Request<proto::GetRequest>,
    ) -> Result<Response<proto::GetResponse>, Status> {
        let deadline = deadline_of(request.metadata());
        let request = request.into_inner();
        let result = match self.keyspace(&request.keyspace) {
            Ok(keyspace) => {
                self.get_one(
                    &keyspace,
                    request.key,
                    request.consistency,
                    request.head_only,
                    deadline,
                )
                .await
            }
            Err(refusal) => Err(refusal),
        };
        self.counted("get", result)
    }

    async fn put(
        &self,
        request: Request<proto::PutRequest>,
    ) -> Result<Response<proto::PutResponse>, Status> {
        let deadline = deadline_of(request.metadata());
        let result = self.put_one(request.into_inner(), deadline).await;
        self.counted("put", result)
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let deadline = deadline_of(request.metadata());
        let result = self.delete_one(request.into_inner(), deadline).await;
        self.counted("delete", result)
    }

    async fn increment(
        &self,
        request: Request<proto::IncrementRequest>,
    ) -> Result<Response<proto::IncrementResponse>, Status> {
        let deadline = deadline_of(request.metadata());
        let result = self.increment_one(request.into_inner(), deadline).await;
        self.counted("increment", result)
    }

    async fn batch_get(
        &self,
        request: Request<proto::BatchGetRequest>,
    ) -> Result<Response<proto::BatchGetResponse>, Status> {
        let deadline = deadline_of(request.metadata());
        let result = self.get_many(request.into_inner(), deadline).await;
        self.counted("batch_get", result)
    }

    async fn batch_write(
        &self,
        request: Request<proto::BatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        let deadline = deadline_of(request.metadata());
        let result = self.write_many(request.into_inner(), deadline).await;
        self.counted("batch_write", result)
    }

    async fn scan(
        &self,
        request: Request<proto::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let result = scan::start(self, request.into_inner());
        self.counted("scan", result)
    }

    async fn watch(
        &self,
        _request: Request<proto::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("this version has no watches yet"))
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
