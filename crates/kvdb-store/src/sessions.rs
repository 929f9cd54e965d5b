//! The request window: a write under a request id takes effect once.
//!
//! For each client the answers of its recent requests are kept, by sequence and item, until the
//! client says (`acked_below`) that it doesn't need them any more. A request also says until when it
//! is valid: past it, by the version of the entry, it is refused. (Sessions are those of
//! Ongaro's dissertation, section 6.3; acknowledging explicitly is RIFL's, Lee et al., SOSP 2015.)
//!
//! # Why a late copy can't slip in
//!
//! A copy of a request finds its answer; or its sequence is below what the client acknowledged,
//! and it is refused; or both are forgotten, and then it has expired. For the last, an answer is
//! kept for the longest window that a request may ask for, and a grace, from the version that
//! wrote it: every copy that was sent before has expired by then. How long it is kept counts the
//! shard's age, which is never put forward; the validity counts the age too, or shard time, which
//! goes on at least as fast.
//!
//! # Records
//!
//! One record a request is kept in the engine, so that an entry writes little; most are forgotten
//! before a flush, so they are written as short-lived. `acked_below` has
//! no record of its own: each record holds the highest that was known when it was written. That
//! of a client is therefore in its newest record, and the newest goes last: by time because
//! `keep_until` rises with versions, by acknowledgement because a request can't acknowledge
//! itself. So what is in memory is at all times what [`Sessions::load`] would find.
//!
//! # Bounds
//!
//! Nothing is forgotten for want of room: beyond the caps new requests are refused as overloaded,
//! while retries of known ones still get their answers. The caps are part of the state machine:
//! they can't differ between replicas or be configured.

use crate::answers::{
    Answer, CLIENT_ID_MAX_BYTES, Request, parse_suffix, request_key, request_suffix,
};
use crate::layout::{Kind, kind_range, suffix_of};
use crate::seal::{seal, unseal};
use crate::shard::OpenError;
use bytes::Bytes;
use kvdb_engine::{Batch, ShortLived, Snapshot};
use kvdb_model::planted::{Bug, has};
use kvdb_model::time::MAX_CLOCK_SKEW_MS;
use kvdb_model::{
    Operation, OperationOutcome, Refusal, ReplicaId, RequestTag, ShardTimes, ValidUntil, Version,
};
use std::collections::{BTreeMap, BTreeSet};

/// What a request takes up beside its record, roughly: map entries and allocations.
const OVERHEAD_BYTES: usize = 160;
/// How long a client should wait for room.
const RETRY_AFTER_MS: u64 = 1000;

/// Bounds of the request window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// Furthest that a request may ask to be valid ahead of its version: the window, and room for
    /// clocks that differ.
    pub(crate) window_ms: u64,
    /// How much longer than that an answer is kept.
    pub(crate) grace_ms: u64,
    /// How much later than it says a request by shard time is still taken: clients' clocks differ.
    /// Less than the grace.
    pub(crate) tolerance_ms: u64,
    /// Unacknowledged requests of one client, in memory and on disk each. One request more may
    /// fit in, however large it is.
    pub(crate) client_max_bytes: usize,
    /// The same for all clients of a shard.
    pub(crate) shard_max_bytes: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        SessionLimits {
            window_ms: 11 * 60 * 1000,
            grace_ms: 60 * 1000,
            tolerance_ms: MAX_CLOCK_SKEW_MS,
            client_max_bytes: 8 << 20,
            shard_max_bytes: 64 << 20,
        }
    }
}

/// Whether there is room for a request that isn't known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    Full,
}

impl Room {
    pub(crate) fn check(self) -> Result<(), Refusal> {
        match self {
            Room::Free => Ok(()),
            Room::Full => Err(Refusal::Overloaded {
                what: "the request window",
                retry_after_ms: RETRY_AFTER_MS,
            }),
        }
    }
}

struct Held {
    request: Request,
    size_bytes: usize,
}

#[derive(Default)]
struct Session {
    acked_below: u64,
    requests: BTreeMap<u64, Held>,
    size_bytes: usize,
}

/// All sessions of one replica.
pub(crate) struct Sessions {
    limits: SessionLimits,
    clients: BTreeMap<Bytes, Session>,
    size_bytes: usize,
    /// All requests, in the order in which they may be dropped.
    expiries: BTreeSet<(Version, Bytes, u64)>,
}

impl Sessions {
    pub(crate) fn new(limits: SessionLimits) -> Self {
        Sessions { limits, clients: BTreeMap::new(), size_bytes: 0, expiries: BTreeSet::new() }
    }

    pub(crate) fn load(
        limits: SessionLimits,
        snapshot: &dyn Snapshot,
        replica: ReplicaId,
    ) -> Result<Self, OpenError> {
        let mut sessions = Sessions::new(limits);
        if has(Bug::WindowLostAtRestart) {
            return Ok(sessions);
        }
        for item in snapshot.scan(&kind_range(replica, Kind::Request), false) {
            let (key, stored) = item?;
            let content = unseal(Kind::Request, &key, &stored)?;
            let (client, sequence) = parse_suffix(suffix_of(&key))?;
            let size_bytes = content.len();
            sessions.insert(client, sequence, Request::decode(content)?, size_bytes);
        }
        Ok(sessions)
    }

    fn insert(&mut self, client: Bytes, sequence: u64, request: Request, record_bytes: usize) {
        let size_bytes = record_bytes + 2 * client.len() + OVERHEAD_BYTES;
        self.size_bytes += size_bytes;
        self.expiries.insert((request.keep_until, client.clone(), sequence));
        let session = self.clients.entry(client).or_default();
        session.acked_below = session.acked_below.max(request.acked_below);
        session.size_bytes += size_bytes;
        session.requests.insert(sequence, Held { request, size_bytes });
    }

    /// Takes a request out; its session stays, even if empty.
    fn take(&mut self, client: &Bytes, sequence: u64) -> Option<Request> {
        let session = self.clients.get_mut(client)?;
        let held = session.requests.remove(&sequence)?;
        session.size_bytes -= held.size_bytes;
        self.size_bytes -= held.size_bytes;
        self.expiries.remove(&(held.request.keep_until, client.clone(), sequence));
        Some(held.request)
    }

    /// Whether a request may be carried out at this version; its operations that are known
    /// already ([`Sessions::find`]) need no room.
    pub(crate) fn admit(
        &self,
        tag: &RequestTag,
        version: Version,
        age: Version,
    ) -> Result<Room, Refusal> {
        let shard = ShardTimes { time_ms: version.millis(), age_ms: age.millis() };
        if tag.client_id.len() > CLIENT_ID_MAX_BYTES {
            let problem =
                format!("is {} bytes; the limit is {CLIENT_ID_MAX_BYTES}", tag.client_id.len());
            return Err(Refusal::invalid("request_id.client_id", problem));
        }
        check_validity(tag, shard, &self.limits)?;
        let mut room = Room::Free;
        // What the tag acknowledges goes with it, and takes up no room.
        let mut freed = 0;
        if let Some(session) = self.clients.get(&tag.client_id) {
            // Its client has said that it is settled: a copy that was under way for long.
            if tag.sequence < session.acked_below {
                return Err(expired(tag, shard));
            }
            let acknowledged = session.requests.range(..tag.acked_below.min(tag.sequence));
            freed = acknowledged.map(|(_, held)| held.size_bytes).sum();
            if session.size_bytes.saturating_sub(freed) >= self.limits.client_max_bytes {
                room = Room::Full;
            }
        }
        if self.size_bytes.saturating_sub(freed) >= self.limits.shard_max_bytes {
            room = Room::Full;
        }
        Ok(room)
    }

    /// What an operation already came to, if it came before.
    pub(crate) fn find(&self, tag: &RequestTag, operation: &Operation) -> Option<OperationOutcome> {
        let held = self.clients.get(&tag.client_id)?.requests.get(&tag.sequence)?;
        let answer = held.request.find(operation.item)?;
        if answer.fingerprint != operation.fingerprint() {
            return Some(Err(reused(tag)));
        }
        Some(answer.repeated())
    }

    /// Remembers answers that a command at this age got, and writes them to the batch together
    /// with what the acknowledgement in `tag` frees. `tag` was admitted.
    pub(crate) fn remember<'a>(
        &mut self,
        replica: ReplicaId,
        tag: &RequestTag,
        age: Version,
        outcomes: impl Iterator<Item = (&'a Operation, &'a OperationOutcome)>,
        batch: &mut Batch,
    ) {
        let mut answers =
            outcomes.filter_map(|(operation, outcome)| Answer::of(operation, outcome)).peekable();
        if answers.peek().is_none() {
            return;
        }
        let client = &tag.client_id;
        let known = self.take(client, tag.sequence);
        let is_new = known.is_none();
        let mut request = known.unwrap_or_default();
        answers.for_each(|answer| request.add(answer));
        let acked_below = self.clients.get(client).map_or(0, |session| session.acked_below);
        request.acked_below = acked_below.max(tag.acked_below.min(tag.sequence));
        let kept_ms = self.limits.window_ms + self.limits.grace_ms;
        request.keep_until = age.plus(Version::from_millis(kept_ms).0);

        let content = request.encode();
        let suffix = request_suffix(client, tag.sequence);
        batch.short_lived.push(ShortLived {
            key: request_key(replica, client, tag.sequence),
            value: Some(seal(Kind::Request, &suffix, &content)),
            is_new,
        });
        self.insert(client.clone(), tag.sequence, request, content.len());
        self.forget_acknowledged(replica, client, batch);
    }

    /// Writes all that is remembered as records of another replica.
    pub(crate) fn copy_to(&self, replica: ReplicaId, batch: &mut Batch) {
        for (client, session) in &self.clients {
            for (sequence, held) in &session.requests {
                let suffix = request_suffix(client, *sequence);
                batch.put(
                    request_key(replica, client, *sequence),
                    seal(Kind::Request, &suffix, &held.request.encode()),
                );
            }
        }
    }

    fn forget_acknowledged(&mut self, replica: ReplicaId, client: &Bytes, batch: &mut Batch) {
        while let Some(session) = self.clients.get(client)
            && let Some((&sequence, _)) = session.requests.first_key_value()
            && (sequence < session.acked_below || has(Bug::WindowForgetsEarly))
        {
            self.take(client, sequence);
            batch.short_lived.push(forgotten(replica, client, sequence));
        }
    }

    /// Drops what no retry can ask for any more at this age. At most `limit` requests, so
    /// that one entry doesn't pay for an hour of silence; the same ones on every replica.
    pub(crate) fn expire(
        &mut self,
        replica: ReplicaId,
        now: Version,
        limit: usize,
        batch: &mut Batch,
    ) {
        for _ in 0..limit {
            let Some((keep_until, client, sequence)) = self.expiries.first().cloned() else {
                return;
            };
            if keep_until > now {
                return;
            }
            self.take(&client, sequence);
            batch.short_lived.push(forgotten(replica, &client, sequence));
            if self.clients.get(&client).is_some_and(|session| session.requests.is_empty()) {
                self.clients.remove(&client);
            }
        }
    }
}

fn forgotten(replica: ReplicaId, client: &Bytes, sequence: u64) -> ShortLived {
    ShortLived { key: request_key(replica, client, sequence), value: None, is_new: false }
}

fn client_name(tag: &RequestTag) -> String {
    String::from_utf8_lossy(&tag.client_id).into_owned()
}

fn expired(tag: &RequestTag, shard: ShardTimes) -> Refusal {
    Refusal::RequestIdExpired {
        client_id: client_name(tag),
        sequence: tag.sequence,
        valid_until: tag.valid_until,
        shard,
    }
}

/// Whether a request is valid by what the shard's clock says, as far as that can be told before it is
/// proposed: applying it decides.
///
/// # Errors
/// [`Refusal::RequestIdExpired`], or [`Refusal::RequestIdTooFarAhead`] for a client's own id that is too
/// far ahead. Both name both times.
pub fn check_request(tag: &RequestTag, shard: ShardTimes) -> Result<(), Refusal> {
    check_validity(tag, shard, &SessionLimits::default())
}

fn check_validity(
    tag: &RequestTag,
    shard: ShardTimes,
    limits: &SessionLimits,
) -> Result<(), Refusal> {
    match tag.valid_until {
        ValidUntil::Age(until_ms) => {
            // A front that made it of an old answer, or of none, makes another one.
            let latest_ms = shard.age_ms.saturating_add(limits.window_ms);
            if until_ms <= shard.age_ms || until_ms > latest_ms {
                return Err(expired(tag, shard));
            }
        }
        ValidUntil::Time(until_ms) => {
            if until_ms.saturating_add(limits.tolerance_ms) <= shard.time_ms {
                return Err(expired(tag, shard));
            }
            if until_ms > shard.time_ms.saturating_add(limits.window_ms) {
                return Err(Refusal::RequestIdTooFarAhead { valid_until_ms: until_ms, shard });
            }
        }
    }
    Ok(())
}

/// Another request came under the same id.
pub(crate) fn reused(tag: &RequestTag) -> Refusal {
    Refusal::RequestIdReused { client_id: client_name(tag), sequence: tag.sequence }
}

#[cfg(test)]
mod tests;
