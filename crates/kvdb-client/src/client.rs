//! The data API: one method an operation.

use crate::call::{Manner, call};
use crate::error::{Effect, Error};
use crate::lanes::{Lanes, Ticket};
use crate::options::Options;
use crate::outgoing::Outgoing;
use crate::pool::Pool;
use crate::reply::Reply;
use crate::scan::Scan;
use crate::stamps::{self, Identified, Stamps, stamp_from};
use crate::types::{
    BatchOperation, Counter, Executed, ReadOptions, Record, ScanOptions, WriteOptions, Written,
    expiry_from, previous_from,
};
use crate::watch::{Watch, WatchOptions};
use bytes::Bytes;
use kvdb_model::{NodeId, Refusal, RetryClass, Version};
use kvdb_wire::proto::{self, kv_client::KvClient};
use kvdb_wire::transport::{AddressError, MAX_MESSAGE_BYTES};
use kvdb_wire::{refusal_from_proto, requests::condition_to};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// A client of the data API, bound to one keyspace. Cloning is cheap and shares connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    keyspace: String,
}

pub(crate) struct Shared {
    pub(crate) pool: Pool,
    pub(crate) options: Options,
    lanes: Lanes,
    stamps: Stamps,
}

/// The generated client with the common limits, for one message.
pub(crate) fn kv(outgoing: Outgoing) -> KvClient<Outgoing> {
    KvClient::new(outgoing).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

impl Client {
    /// A client of the keyspace `default`. Nothing is sent yet.
    ///
    /// # Errors
    /// If an address isn't `host:port`, or there is none.
    ///
    /// # Panics
    /// Outside of a tokio runtime, or if the operating system gives no random bytes.
    pub fn new(options: Options) -> Result<Self, AddressError> {
        let pool = Pool::new(&options)?;
        let client = getrandom::u64().expect("the operating system has random bytes");
        let shared = Shared { pool, options, lanes: Lanes::new(client), stamps: Stamps::default() };
        Ok(Client { shared: Arc::new(shared), keyspace: String::new() })
    }

    /// The same client for another keyspace; empty is `default`. Whether it exists is found out by
    /// the first call.
    #[must_use]
    pub fn keyspace(&self, name: impl Into<String>) -> Self {
        Client { shared: Arc::clone(&self.shared), keyspace: name.into() }
    }

    /// Reads one key, linearizably. `None` if it isn't there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Record>, Error> {
        self.get_with(key, ReadOptions::default()).await
    }

    /// Reads one key.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get_with(
        &self,
        key: impl Into<Bytes>,
        options: ReadOptions,
    ) -> Result<Option<Record>, Error> {
        let message = proto::GetRequest {
            keyspace: self.keyspace.clone(),
            key: key.into(),
            consistency: options.consistency.to_proto(),
            head_only: options.head_only,
            max_staleness_ms: options.max_staleness_ms.unwrap_or_default(),
            min_version: options.min_version.0,
        };
        let answer = self
            .call(Manner::READ, &message, |mut kv, request| async move { kv.get(request).await })
            .await?;
        Ok(answer.found.then(|| Record {
            value: answer.value,
            version: Version(answer.version),
            expires_at_ms: expiry_from(answer.expires_at_ms),
            served_by: NodeId(answer.served_by),
            as_of: Version(answer.as_of_version),
        }))
    }

    /// Reads many keys, up to 10,000: one answer a key, in the order asked. What doesn't fit into
    /// one answer of a gateway is asked for again until all is there.
    ///
    /// # Errors
    /// [`Error`] if nothing could be read; the answers have their own errors besides.
    pub async fn batch_get(
        &self,
        keys: Vec<Bytes>,
        options: ReadOptions,
    ) -> Result<Vec<Result<Option<Record>, Error>>, Error> {
        let deadline = Instant::now() + self.shared.options.deadline;
        let mut results = self.batch_get_once(keys.clone(), options, deadline).await?;
        loop {
            let missing: Vec<usize> =
                (0..results.len()).filter(|place| had_no_room(&results[*place])).collect();
            if missing.is_empty() {
                return Ok(results);
            }
            let again = missing.iter().map(|place| keys[*place].clone()).collect();
            let more = self.batch_get_once(again, options, deadline).await?;
            let is_stuck = more.iter().all(had_no_room);
            for (place, result) in missing.into_iter().zip(more) {
                results[place] = result;
            }
            if is_stuck {
                return Ok(results);
            }
        }
    }

    async fn batch_get_once(
        &self,
        keys: Vec<Bytes>,
        options: ReadOptions,
        deadline: Instant,
    ) -> Result<Vec<Result<Option<Record>, Error>>, Error> {
        let message = proto::BatchGetRequest {
            keyspace: self.keyspace.clone(),
            keys,
            consistency: options.consistency.to_proto(),
            head_only: options.head_only,
            max_staleness_ms: options.max_staleness_ms.unwrap_or_default(),
            min_version: options.min_version.0,
        };
        let answer = self
            .call_until(deadline, Manner::READ, &message, |mut kv, request| async move {
                kv.batch_get(request).await
            })
            .await?;
        check_count(message.keys.len(), answer.results.len(), Effect::Read)?;
        Ok(answer.results.into_iter().map(read_result).collect())
    }

    /// Sets a key. Returns when a majority of the shard's replicas have it on disk.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Written, Error> {
        self.put_with(key, value, WriteOptions::default()).await
    }

    /// Sets a key, under a condition or for a time.
    ///
    /// # Errors
    /// [`Error`]. A condition that failed isn't one: see [`Written::applied`].
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let message = proto::PutRequest {
            keyspace: self.keyspace.clone(),
            key: key.into(),
            value: value.into(),
            ttl_ms: options.ttl_ms.unwrap_or_default(),
            condition: options.condition.as_ref().map(condition_to),
            return_previous: options.return_previous,
            request_id: None,
        };
        let answer =
            self.write(message, |mut kv, request| async move { kv.put(request).await }).await?;
        Ok(written(answer.applied, answer.version, answer.previous))
    }

    /// Removes a key. [`Written::applied`] is false if it wasn't there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Written, Error> {
        self.delete_with(key, WriteOptions::default()).await
    }

    /// Removes a key, under a condition. (`ttl_ms` means nothing here.)
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete_with(
        &self,
        key: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let message = proto::DeleteRequest {
            keyspace: self.keyspace.clone(),
            key: key.into(),
            condition: options.condition.as_ref().map(condition_to),
            return_previous: options.return_previous,
            request_id: None,
        };
        let answer =
            self.write(message, |mut kv, request| async move { kv.delete(request).await }).await?;
        Ok(written(answer.applied, answer.version, answer.previous))
    }

    /// Lets a key live for `ttl_ms` from now on, or for ever, whatever it was to before; its value
    /// stays. [`Written::applied`] is false if it isn't there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn expire(
        &self,
        key: impl Into<Bytes>,
        ttl_ms: Option<u64>,
    ) -> Result<Written, Error> {
        self.expire_with(key, WriteOptions { ttl_ms, ..WriteOptions::default() }).await
    }

    /// As [`Client::expire`], under a condition.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn expire_with(
        &self,
        key: impl Into<Bytes>,
        options: WriteOptions,
    ) -> Result<Written, Error> {
        let message = proto::ExpireRequest {
            keyspace: self.keyspace.clone(),
            key: key.into(),
            ttl_ms: options.ttl_ms.unwrap_or_default(),
            condition: options.condition.as_ref().map(condition_to),
            return_previous: options.return_previous,
            request_id: None,
        };
        let answer =
            self.write(message, |mut kv, request| async move { kv.expire(request).await }).await?;
        Ok(written(answer.applied, answer.version, answer.previous))
    }

    /// Adds `delta` to a counter; one that isn't there counts as 0.
    ///
    /// # Errors
    /// [`Error`], also if the value isn't a number or the sum doesn't fit 64 bits.
    pub async fn increment(&self, key: impl Into<Bytes>, delta: i64) -> Result<Counter, Error> {
        let message = proto::IncrementRequest {
            keyspace: self.keyspace.clone(),
            key: key.into(),
            delta,
            request_id: None,
        };
        let answer = self
            .write(message, |mut kv, request| async move { kv.increment(request).await })
            .await?;
        Ok(Counter { value: answer.value, version: Version(answer.version) })
    }

    /// Carries a command of the Redis vocabulary out, such as `HSET user:1 name Ada`: the words are its
    /// name and what follows it. A command that is wrong in itself is answered with [`Reply::Error`].
    ///
    /// # Errors
    /// [`Error`] if the cluster couldn't carry it out, or it isn't a command on keys.
    pub async fn execute<W: Into<Bytes>>(
        &self,
        words: impl IntoIterator<Item = W>,
    ) -> Result<Reply, Error> {
        Ok(self.execute_with(words, ReadOptions::default()).await?.reply)
    }

    /// As [`Client::execute`], and tells which version was written or read. `options` say how fresh the state must be that
    /// a command reads which changes nothing; `head_only` has no effect. A command that may change something is refused
    /// with any but the default ones.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn execute_with<W: Into<Bytes>>(
        &self,
        words: impl IntoIterator<Item = W>,
        options: ReadOptions,
    ) -> Result<Executed, Error> {
        let mut words = words.into_iter().map(Into::into);
        let name = words.next().unwrap_or_default();
        let message = proto::ExecuteRequest {
            keyspace: self.keyspace.clone(),
            command: String::from_utf8_lossy(&name).into_owned(),
            arguments: words.collect(),
            consistency: options.consistency.to_proto(),
            max_staleness_ms: options.max_staleness_ms.unwrap_or_default(),
            min_version: options.min_version.0,
            ..Default::default()
        };
        let answer =
            self.write(message, |mut kv, request| async move { kv.execute(request).await }).await?;
        Ok(Executed {
            reply: answer.reply.map_or(Reply::Nil, Reply::from_proto),
            version: Version(answer.version),
            served_by: NodeId(answer.served_by),
            as_of: Version(answer.as_of_version),
        })
    }

    /// Writes many keys, up to 10,000: one answer an operation, in order. Atomic within a shard if
    /// asked (then all keys must be on one); otherwise each operation stands alone.
    ///
    /// With [`Options::exactly_once`] operations that were refused for the moment, or whose outcome
    /// is unknown, are sent again until the deadline.
    ///
    /// # Errors
    /// [`Error`] if the batch had no answer as a whole; the answers have their own errors besides.
    pub async fn batch_write(
        &self,
        operations: &[BatchOperation],
        atomic: bool,
    ) -> Result<Vec<Result<Written, Error>>, Error> {
        let deadline = Instant::now() + self.shared.options.deadline;
        let until = self.guess();
        let first = self.batch_until(operations.iter(), atomic, until, deadline).await;
        let mut results = match first {
            Err(error) if stamp_from(&error).is_some() => vec![Err(error); operations.len()],
            first => first?,
        };
        if !results.iter().any(|result| stamp_of(result).is_some()) {
            self.shared.stamps.was_right();
        }
        // What a shard has refused because it goes by another clock goes there again, by that clock and
        // under an id of its own: nothing of it was done.
        for _ in 0..operations.len() {
            let Some(time_ms) = results.iter().find_map(stamp_of) else { break };
            if Instant::now() >= deadline {
                break;
            }
            self.shared.stamps.was_wrong(time_ms, Instant::now());
            let is_near = |time: u64| time.abs_diff(time_ms) < NEAR_MS;
            let places: Vec<usize> = (0..operations.len())
                .filter(|place| stamp_of(&results[*place]).is_some_and(is_near))
                .collect();
            let again = places.iter().map(|place| &operations[*place]);
            let again = self.batch_until(again, atomic, stamps::until(time_ms), deadline).await;
            let again = again.unwrap_or_else(|error| vec![Err(error); places.len()]);
            for (place, result) in places.into_iter().zip(again) {
                results[place] = result;
            }
        }
        Ok(results)
    }

    /// Writes a batch under one id, again and again as long as that may bring better answers.
    async fn batch_until(
        &self,
        operations: impl Iterator<Item = &BatchOperation>,
        atomic: bool,
        valid_until_ms: u64,
        deadline: Instant,
    ) -> Result<Vec<Result<Written, Error>>, Error> {
        let ticket = self.ticket(valid_until_ms);
        let message = proto::BatchWriteRequest {
            keyspace: self.keyspace.clone(),
            operations: operations.map(BatchOperation::to_proto).collect(),
            atomic,
            request_id: request_id(&ticket),
        };
        let repeatable = ticket.is_some();
        let mut results = self.batch_attempt(&message, repeatable, deadline).await?;
        let mut pause = self.shared.options.first_pause;
        while repeatable && results.iter().any(is_open) && Instant::now() + pause < deadline {
            sleep(pause).await;
            pause = (pause * 2).min(self.shared.options.longest_pause);
            let again = self.batch_attempt(&message, repeatable, deadline).await;
            results = settle(results, again);
        }
        Ok(results)
    }

    async fn batch_attempt(
        &self,
        message: &proto::BatchWriteRequest,
        repeatable: bool,
        deadline: Instant,
    ) -> Result<Vec<Result<Written, Error>>, Error> {
        let manner = Manner::write(repeatable);
        let answer = self
            .call_until(deadline, manner, message, |mut kv, request| async move {
                kv.batch_write(request).await
            })
            .await?;
        check_count(message.operations.len(), answer.results.len(), Effect::Write)?;
        Ok(answer.results.into_iter().map(write_result).collect())
    }

    /// Reads a range of keys in bounded chunks. Nothing is sent before the first chunk is asked
    /// for.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        Scan::new(Arc::clone(&self.shared), self.keyspace.clone(), options)
    }

    /// Follows changes as they happen. Nothing is sent before the first update is asked for.
    pub fn watch(&self, options: WatchOptions) -> Watch {
        Watch::new(Arc::clone(&self.shared), self.keyspace.clone(), options)
    }

    /// Asks the gateway whether it is well, and how long that takes there and back.
    ///
    /// # Errors
    /// [`Error::Unavailable`] also if it answers that it isn't serving.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let message = HealthCheckRequest { service: String::new() };
        let Shared { pool, options, .. } = &*self.shared;
        let deadline = Instant::now() + options.deadline;
        let ask = |outgoing: Outgoing, request| async move {
            let asked = Instant::now();
            let answer = HealthClient::new(outgoing).check(request).await?.into_inner();
            match answer.status {
                SERVING => Ok(Response::new(asked.elapsed())),
                status => Err(Status::unavailable(format!("it is up but not serving ({status})"))),
            }
        };
        call(pool, options, deadline, Manner::READ, &message, ask).await
    }

    /// A place for the request among those in flight, if it is to have a request id.
    fn ticket(&self, valid_until_ms: u64) -> Option<Ticket<'_>> {
        self.shared.options.exactly_once.then(|| self.shared.lanes.take(valid_until_ms))
    }

    /// Until when a request id is valid that is made now, as far as can be guessed.
    fn guess(&self) -> u64 {
        self.shared.stamps.now(SystemTime::now(), Instant::now())
    }

    /// Sends a write under an id of its own, which is stamped anew if the shard says that it goes by
    /// another clock.
    async fn write<M, A, S, F>(&self, mut message: M, send: S) -> Result<A, Error>
    where
        M: Identified,
        S: Fn(KvClient<Outgoing>, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.shared.options.deadline;
        let ticket = self.ticket(self.guess());
        *message.request_id() = request_id(&ticket);
        let manner = Manner::write(ticket.is_some());
        let mut stamps_left = stamps::MOST_STAMPS;
        loop {
            let error = match self.call_until(deadline, manner, &message, &send).await {
                Ok(answer) => {
                    if stamps_left == stamps::MOST_STAMPS {
                        self.shared.stamps.was_right();
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            // A call one of whose attempts may have been carried out never ends with a refusal.
            let (Some(time_ms), Some(id)) = (stamp_from(&error), message.request_id()) else {
                return Err(error);
            };
            if stamps_left == 0 || Instant::now() >= deadline {
                return Err(error);
            }
            stamps_left -= 1;
            id.valid_until_ms = stamps::until(time_ms);
            self.shared.stamps.was_wrong(time_ms, Instant::now());
        }
    }

    async fn call<M, A, S, F>(&self, manner: Manner, message: &M, send: S) -> Result<A, Error>
    where
        M: Clone,
        S: Fn(KvClient<Outgoing>, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = Instant::now() + self.shared.options.deadline;
        self.call_until(deadline, manner, message, send).await
    }

    async fn call_until<M, A, S, F>(
        &self,
        deadline: Instant,
        manner: Manner,
        message: &M,
        send: S,
    ) -> Result<A, Error>
    where
        M: Clone,
        S: Fn(KvClient<Outgoing>, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let Shared { pool, options, .. } = &*self.shared;
        let send = |outgoing: Outgoing, request| send(kv(outgoing), request);
        call(pool, options, deadline, manner, message, send).await
    }
}

/// Shards whose clocks differ by less take an id that is stamped by either's.
const NEAR_MS: u64 = 60_000;

/// `grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;

fn request_id(ticket: &Option<Ticket<'_>>) -> Option<proto::RequestId> {
    ticket.as_ref().map(|ticket| ticket.request_id.clone())
}

fn written(applied: bool, version: u64, previous: Option<proto::Previous>) -> Written {
    Written { applied, version: Version(version), previous: previous.map(previous_from) }
}

fn read_result(result: proto::BatchGetResult) -> Result<Option<Record>, Error> {
    if let Some(refusal) = result.refusal {
        return Err(item_error(refusal, Effect::Read));
    }
    Ok(result.found.then(|| Record {
        value: result.value,
        version: Version(result.version),
        expires_at_ms: expiry_from(result.expires_at_ms),
        served_by: NodeId(result.served_by),
        as_of: Version(result.as_of_version),
    }))
}

fn write_result(result: proto::BatchWriteResult) -> Result<Written, Error> {
    match result.refusal {
        Some(refusal) => Err(item_error(refusal, Effect::Write)),
        None => Ok(written(result.applied, result.version, result.previous)),
    }
}

fn item_error(refusal: proto::Refusal, effect: Effect) -> Error {
    let message = refusal.message.clone();
    effect.refused("the gateway", refusal_from_proto(refusal), &message)
}

/// Whether the gateway's answer had no room for it.
fn had_no_room(result: &Result<Option<Record>, Error>) -> bool {
    let refusal = result.as_ref().err().and_then(Error::refusal);
    matches!(refusal, Some(Refusal::ResponseTooLarge { .. }))
}

/// An answer of another length than the question can't be matched to it.
fn check_count(asked: usize, answered: usize, effect: Effect) -> Result<(), Error> {
    if asked == answered {
        return Ok(());
    }
    Err(effect.unanswered("the gateway", format!("{answered} results for {asked} operations")))
}

/// The shard's time, if an operation was refused because its id was stamped by another clock.
fn stamp_of(result: &Result<Written, Error>) -> Option<u64> {
    result.as_ref().err().and_then(stamp_from)
}

/// Whether another attempt may bring a better answer.
fn is_open(result: &Result<Written, Error>) -> bool {
    matches!(result, Err(error) if error.class() != RetryClass::Final)
}

/// The results of a batch after another attempt under the same request id. What was done stays
/// done; and once an operation's outcome was unknown, no refusal settles it.
fn settle(
    before: Vec<Result<Written, Error>>,
    again: Result<Vec<Result<Written, Error>>, Error>,
) -> Vec<Result<Written, Error>> {
    let again = match again {
        Ok(again) => again,
        Err(error) => before.iter().map(|_| Err(error.clone())).collect(),
    };
    let unknown = |error: &Error| error.class() == RetryClass::OutcomeUnknown;
    before
        .into_iter()
        .zip(again)
        .map(|pair| match pair {
            (Ok(written), _) | (Err(_), Ok(written)) => Ok(written),
            // What was refused for its stamp may be taken a moment later: then it counts what became
            // of that.
            (Err(old), Err(new)) if unknown(&new) && stamp_from(&old).is_some() => Err(new),
            (Err(old), Err(_)) if unknown(&old) || old.class() == RetryClass::Final => Err(old),
            (Err(_), Err(new)) => Err(new),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ShardId;

    fn done(version: u64) -> Result<Written, Error> {
        Ok(Written { applied: true, version: Version(version), previous: None })
    }

    fn unknown() -> Result<Written, Error> {
        Err(Error::OutcomeUnknown { reason: "lost".into() })
    }

    fn busy() -> Result<Written, Error> {
        let refusal = Refusal::ShardUnavailable { shard_id: ShardId(1), reason: "no leader" };
        Err(Error::Refused { message: refusal.to_string(), refusal })
    }

    fn classes(results: &[Result<Written, Error>]) -> Vec<Option<RetryClass>> {
        results.iter().map(|result| result.as_ref().err().map(Error::class)).collect()
    }

    #[test]
    fn a_refusal_never_settles_an_operation_that_was_unknown() {
        let before = vec![done(1), unknown(), unknown(), busy()];
        let after = settle(before, Ok(vec![done(1), done(2), busy(), done(3)]));
        let expected = [None, None, Some(RetryClass::OutcomeUnknown), None];
        assert_eq!(classes(&after), expected);
    }

    #[test]
    fn what_was_refused_for_its_stamp_and_then_lost_is_unknown() {
        let valid_until = kvdb_model::ValidUntil::Time(1);
        let shard = kvdb_model::ShardTimes { time_ms: 9, age_ms: 9 };
        let client_id = "c".to_owned();
        let refusal = Refusal::RequestIdExpired { client_id, sequence: 1, valid_until, shard };
        let error = Error::Refused { message: refusal.to_string(), refusal };
        let after = settle(vec![Err(error.clone()), Err(error)], Ok(vec![unknown(), busy()]));
        assert_eq!(classes(&after)[0], Some(RetryClass::OutcomeUnknown));
        assert_eq!(stamp_of(&after[1]), Some(9));
    }

    #[test]
    fn an_attempt_without_an_answer_leaves_what_is_done() {
        let lost = Error::OutcomeUnknown { reason: "lost".into() };
        let after = settle(vec![done(1), busy()], Err(lost));
        assert_eq!(classes(&after), [None, Some(RetryClass::OutcomeUnknown)]);
    }
}
