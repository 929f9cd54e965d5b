//! The request window: a write under a request id takes effect once.
//!
//! For each client the answers of its recent requests are kept, by sequence and item, until the
//! client says (`acked_below`) that it doesn't need them any more. A request also carries
//! `valid_until_ms`: past it, by the version of the entry, it is refused; so once the answers of a
//! window are dropped (a little later than that), no retry can slip in unnoticed. (The idea of
//! sessions is in Ongaro's dissertation, section 6.3; acknowledging explicitly is RIFL's.)
//!
//! One record a request is kept in the engine. It also holds the `acked_below` that came with it:
//! that of a session is the highest among its records. A record is kept at least as long as any
//! that came before it, so that what it acknowledges stays known while a copy could still arrive.
//!
//! Nothing is ever forgotten for want of room: beyond the caps a request is refused as overloaded.

use crate::layout::{SESSION, kind_range, record_key};
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_engine::{Batch, EngineError, Snapshot};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{
    Operation, OperationOutcome, Previous, Refusal, ReplicaId, RequestTag, Version, WriteResult,
};
use std::collections::BTreeMap;

/// Caps of the request window.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// Furthest that a request may ask to be valid ahead of shard time, in milliseconds.
    pub window_ms: u64,
    /// How long after its window a request's answer is kept, in milliseconds.
    pub grace_ms: u64,
    /// Unacknowledged requests of one client. Raising it costs memory on every replica.
    pub requests_per_client: usize,
    /// Unacknowledged requests of all clients of a shard.
    pub requests_per_shard: usize,
    /// Longest previous value that is kept for a retry.
    pub previous_max_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        SessionLimits {
            // Ten minutes, and a minute for clocks that differ.
            window_ms: 11 * 60 * 1000,
            grace_ms: 60 * 1000,
            requests_per_client: 10_000,
            requests_per_shard: 200_000,
            previous_max_bytes: 1024,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    fingerprint: u64,
    result: WriteResult,
}

/// The answers of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Request {
    acked_below: u64,
    keep_until_ms: u64,
    answers: BTreeMap<u32, Answer>,
}

#[derive(Default)]
struct Session {
    acked_below: u64,
    requests: BTreeMap<u64, Request>,
}

/// All sessions of one replica.
pub(crate) struct Sessions {
    limits: SessionLimits,
    clients: BTreeMap<Bytes, Session>,
    count: usize,
    /// When requests may be dropped: (milliseconds, client, sequence).
    expiries: BTreeMap<(u64, Bytes, u64), ()>,
}

impl Sessions {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        Sessions { limits, clients: BTreeMap::new(), count: 0, expiries: BTreeMap::new() }
    }

    pub(crate) fn load(
        limits: SessionLimits,
        snapshot: &dyn Snapshot,
        replica: ReplicaId,
    ) -> Result<Self, LoadError> {
        let mut sessions = Sessions::new(limits);
        for item in snapshot.scan(&kind_range(replica, SESSION), false) {
            let (key, value) = item?;
            let (client, sequence) = parse_key(&crate::layout::suffix_of(&key))?;
            let request = Request::decode(value)?;
            sessions.insert(client, sequence, request);
        }
        Ok(sessions)
    }

    fn insert(&mut self, client: Bytes, sequence: u64, request: Request) {
        self.expiries.insert((request.keep_until_ms, client.clone(), sequence), ());
        let session = self.clients.entry(client).or_default();
        session.acked_below = session.acked_below.max(request.acked_below);
        if session.requests.insert(sequence, request).is_none() {
            self.count += 1;
        }
    }

    /// Whether a request may be carried out at all at this version.
    pub(crate) fn admit(&self, tag: &RequestTag, version: Version) -> Result<(), Refusal> {
        let client_id = || String::from_utf8_lossy(&tag.client_id).into_owned();
        let expired =
            || Refusal::RequestIdExpired { client_id: client_id(), sequence: tag.sequence };
        let now_ms = version.millis();
        if tag.valid_until_ms <= now_ms {
            return Err(expired());
        }
        if tag.valid_until_ms > now_ms.saturating_add(self.limits.window_ms) {
            return Err(Refusal::invalid(
                "request_id",
                "valid_until_ms is more than 10 minutes ahead",
            ));
        }
        let Some(session) = self.clients.get(&tag.client_id) else {
            return self.admit_new(self.count, usize::MAX);
        };
        if session.requests.contains_key(&tag.sequence) {
            return Ok(());
        }
        if tag.sequence < session.acked_below {
            // Its client has said that it is settled: a copy that was under way for long.
            return Err(expired());
        }
        let left = self.limits.requests_per_client.saturating_sub(session.requests.len());
        self.admit_new(self.count, left)
    }

    fn admit_new(&self, count: usize, left_for_client: usize) -> Result<(), Refusal> {
        if count >= self.limits.requests_per_shard || left_for_client == 0 {
            return Err(Refusal::Overloaded { what: "the request window", retry_after_ms: 1000 });
        }
        Ok(())
    }

    /// The answer that an operation already got, if it came before.
    pub(crate) fn find(&self, tag: &RequestTag, operation: &Operation) -> Option<OperationOutcome> {
        let request = self.clients.get(&tag.client_id)?.requests.get(&tag.sequence)?;
        let answer = request.answers.get(&operation.item)?;
        if answer.fingerprint != fingerprint(operation) {
            return Some(Err(Refusal::RequestIdReused {
                client_id: String::from_utf8_lossy(&tag.client_id).into_owned(),
                sequence: tag.sequence,
            }));
        }
        Some(Ok(WriteResult { deduplicated: true, ..answer.result.clone() }))
    }

    /// Remembers answers, and writes them to the batch with what the acknowledgement frees.
    pub(crate) fn remember(
        &mut self,
        replica: ReplicaId,
        tag: &RequestTag,
        answers: &[(&Operation, &WriteResult)],
        batch: &mut Batch,
    ) {
        if answers.is_empty() {
            return;
        }
        let client = tag.client_id.clone();
        let known =
            self.clients.get(&client).and_then(|session| session.requests.get(&tag.sequence));
        let mut request = known.cloned().unwrap_or_default();
        request.acked_below = request.acked_below.max(tag.acked_below);
        let before = request.keep_until_ms;
        let others =
            self.clients.get(&client).and_then(|session| session.requests.values().next_back());
        request.keep_until_ms = tag
            .valid_until_ms
            .saturating_add(self.limits.grace_ms)
            .max(before)
            .max(others.map_or(0, |last| last.keep_until_ms));
        self.expiries.remove(&(before, client.clone(), tag.sequence));
        for (operation, result) in answers {
            let mut kept = WriteResult::clone(result);
            kept.previous = kept
                .previous
                .filter(|previous| previous.value.len() <= self.limits.previous_max_bytes);
            let answer = Answer { fingerprint: fingerprint(operation), result: kept };
            request.answers.insert(operation.item, answer);
        }
        batch.put(session_key(replica, &client, tag.sequence), request.encode());
        self.insert(client.clone(), tag.sequence, request);
        self.acknowledge(replica, &client, batch);
    }

    fn acknowledge(&mut self, replica: ReplicaId, client: &Bytes, batch: &mut Batch) {
        let Some(session) = self.clients.get_mut(client) else { return };
        let kept = session.requests.split_off(&session.acked_below);
        let settled = std::mem::replace(&mut session.requests, kept);
        for (sequence, request) in settled {
            self.expiries.remove(&(request.keep_until_ms, client.clone(), sequence));
            self.count -= 1;
            batch.delete(session_key(replica, client, sequence));
        }
    }

    /// Drops what no retry can ask for any more at this shard time. At most `limit` requests, so
    /// that one entry doesn't pay for an hour of silence; the same number on every replica.
    pub(crate) fn expire(
        &mut self,
        replica: ReplicaId,
        now: Version,
        limit: usize,
        batch: &mut Batch,
    ) {
        for _ in 0..limit {
            let Some(((drop_at, client, sequence), ())) = self.expiries.first_key_value() else {
                return;
            };
            if *drop_at > now.millis() {
                return;
            }
            let (client, sequence) = (client.clone(), *sequence);
            self.expiries.pop_first();
            batch.delete(session_key(replica, &client, sequence));
            if let Some(session) = self.clients.get_mut(&client) {
                if session.requests.remove(&sequence).is_some() {
                    self.count -= 1;
                }
                if session.requests.is_empty() {
                    self.clients.remove(&client);
                }
            }
        }
    }
}

/// Why sessions can't be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("a record of the request window is unreadable: {0}")]
    Decode(#[from] DecodeError),
}

fn session_key(replica: ReplicaId, client: &Bytes, sequence: u64) -> Bytes {
    let mut suffix = BytesMut::with_capacity(client.len() + 9);
    suffix.put_u8(client.len() as u8);
    suffix.put_slice(client);
    suffix.put_u64(sequence);
    record_key(replica, SESSION, &suffix)
}

fn parse_key(suffix: &Bytes) -> Result<(Bytes, u64), DecodeError> {
    let mut input = Reader::new(suffix.clone());
    let length = usize::from(input.u8()?);
    let client = input.raw(length)?;
    let raw = input.raw(8)?;
    input.end()?;
    let mut array = [0; 8];
    array.copy_from_slice(&raw);
    Ok((client, u64::from_be_bytes(array)))
}

/// What tells one operation from another under the same id.
fn fingerprint(operation: &Operation) -> u64 {
    use kvdb_model::{Action, Condition};
    let mut out = Writer::with_capacity(operation.size_bytes());
    out.bytes(&operation.key);
    out.u8(u8::from(operation.return_previous));
    match &operation.action {
        Action::Put { value, ttl_ms } => {
            out.u8(1);
            out.varint(ttl_ms.unwrap_or(0));
            out.bytes(value);
        }
        Action::Delete => out.u8(2),
        Action::Increment { delta } => {
            out.u8(3);
            out.signed(*delta);
        }
    }
    match &operation.condition {
        None => out.u8(0),
        Some(Condition::IfAbsent) => out.u8(1),
        Some(Condition::IfPresent) => out.u8(2),
        Some(Condition::IfVersion(version)) => out.u64(version.0),
        Some(Condition::IfValue(value)) => out.bytes(value),
    }
    xxhash_rust::xxh3::xxh3_64(&out.finish())
}

const APPLIED: u8 = 1;
const HAS_PREVIOUS: u8 = 2;
const HAS_COUNTER: u8 = 4;

impl Request {
    fn encode(&self) -> Bytes {
        let mut out = Writer::new();
        out.u8(1);
        out.varint(self.acked_below);
        out.varint(self.keep_until_ms);
        out.varint(self.answers.len() as u64);
        for (item, answer) in &self.answers {
            out.varint(u64::from(*item));
            out.u64(answer.fingerprint);
            let result = &answer.result;
            out.u8((u8::from(result.applied) * APPLIED)
                | (u8::from(result.previous.is_some()) * HAS_PREVIOUS)
                | (u8::from(result.counter.is_some()) * HAS_COUNTER));
            out.u64(result.version.0);
            if let Some(previous) = &result.previous {
                out.u64(previous.version.0);
                out.varint(previous.expires_at_ms);
                out.bytes(&previous.value);
            }
            if let Some(counter) = result.counter {
                out.signed(counter);
            }
        }
        out.finish()
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        input.version("request window record", 1)?;
        let mut request = Request {
            acked_below: input.varint()?,
            keep_until_ms: input.varint()?,
            answers: BTreeMap::new(),
        };
        for _ in 0..input.count(18)? {
            let item = input.varint_u32()?;
            let fingerprint = input.u64()?;
            let flags = input.u8()?;
            let version = Version(input.u64()?);
            let previous = if flags & HAS_PREVIOUS != 0 {
                Some(Previous {
                    version: Version(input.u64()?),
                    expires_at_ms: input.varint()?,
                    value: input.bytes()?,
                })
            } else {
                None
            };
            let counter = if flags & HAS_COUNTER != 0 { Some(input.signed()?) } else { None };
            let applied = flags & APPLIED != 0;
            let result = WriteResult { applied, version, previous, counter, deduplicated: false };
            request.answers.insert(item, Answer { fingerprint, result });
        }
        input.end()?;
        Ok(request)
    }
}
