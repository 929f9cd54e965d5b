//! One operation: from the wire to a proposal or a read, and from its outcome to an answer.

use crate::access::Access;
use crate::freshness::Freshness;
use bytes::Bytes;
use kvdb_engine::Snapshot;
use kvdb_model::wrong_value::WRONG_TYPE;
use kvdb_model::{
    EntryCommand, KeyRange, KeyspaceId, Operation, OperationOutcome, Partitioning, RangeEpoch,
    Refusal, RequestTag, ShardId, ShardTimes, ValidUntil, Version, VolumeId, Write, slot_of,
    unavailable,
};
use kvdb_replication::{Input, Rejection};
use kvdb_runtime::drive::{Outcome, ShardView, Ticket, fatal};
use kvdb_store::{ReadError, Record, ScanRequest, View};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{execute, proto, refusal_to_proto, requests};
use std::sync::Arc;

const PAGE_ITEMS: usize = 1000;
const PAGE_BYTES: usize = 1024 * 1024;
const PAGE_EXAMINED: usize = 50_000;
/// More keys than this are read on a thread of their own.
const KEYS_AT_ONCE: usize = 64;

/// What an operation waits for.
pub(crate) enum Pending {
    Get {
        shard: ShardId,
        epoch: RangeEpoch,
        key: Bytes,
        head_only: bool,
        fresh: Freshness,
    },
    BatchGet {
        shard: ShardId,
        wanted: Box<Wanted>,
    },
    Scan {
        shard: ShardId,
        page: Box<Page>,
    },
    Query {
        shard: ShardId,
        query: Box<Query>,
    },
    /// With the places of commands that were refused at once.
    Execute {
        shard: ShardId,
        refused: Vec<(usize, Refusal)>,
    },
}

/// Commands of one shard that change nothing.
pub(crate) struct Query {
    epoch: RangeEpoch,
    operations: Vec<Operation>,
    fresh: Freshness,
    max_bytes: usize,
}

impl Pending {
    pub(crate) fn shard(&self) -> ShardId {
        match self {
            Pending::Get { shard, .. }
            | Pending::BatchGet { shard, .. }
            | Pending::Query { shard, .. }
            | Pending::Execute { shard, .. }
            | Pending::Scan { shard, .. } => *shard,
        }
    }

    /// Whether it reads so much that it must not hold up a thread of the network.
    pub(crate) fn takes_long(&self) -> bool {
        match self {
            Pending::Scan { .. } => true,
            Pending::BatchGet { wanted, .. } => wanted.keys.len() > KEYS_AT_ONCE,
            _ => false,
        }
    }
}

/// Keys of one shard that are asked for together.
pub(crate) struct Wanted {
    epoch: RangeEpoch,
    /// User key and routing key.
    keys: Vec<(Bytes, Bytes)>,
    head_only: bool,
    fresh: Freshness,
    max_bytes: usize,
}

/// A page of a scan that is asked for.
pub(crate) struct Page {
    request: ScanRequest,
    prefix_len: usize,
    user_prefix: Bytes,
    user_start: Bytes,
    user_end: Bytes,
}

/// What became of an operation when its outcome was looked at.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one match; a box would be per operation"
)]
pub(crate) enum Finished {
    Answer(Answer),
    /// Shard time must advance before it can be answered; then it is to be read again.
    NeedsTime(Pending),
    /// The state is older than the version that was asked for.
    Behind(Box<Behind>),
}

/// A read that asks for a newer state than the leader's.
pub(crate) struct Behind {
    pub(crate) pending: Pending,
    pub(crate) wanted: Version,
    /// The state's own.
    pub(crate) reached: Version,
}

/// The shard that an operation names.
pub(crate) fn shard_of(asked: &Asked) -> ShardId {
    ShardId(match asked {
        Asked::Get(asked) => asked.shard_id,
        Asked::BatchGet(asked) => asked.shard_id,
        Asked::Scan(asked) => asked.shard_id,
        Asked::Query(asked) => asked.shard_id,
        Asked::Execute(asked) => asked.shard_id,
    })
}

/// An operation that was accepted: what to hand to the host, and what to wait for.
pub(crate) struct Accepted {
    pub(crate) pending: Pending,
    pub(crate) submit: Submit,
}

/// A replica's state at one moment.
pub(crate) struct Reader {
    shard: Arc<ShardView>,
    volume: VolumeId,
    snapshot: Box<dyn Snapshot>,
}

impl Reader {
    /// Shard time by the clock here, in milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        self.shard.times().time_ms
    }

    pub(crate) fn view(&self) -> Result<View<'_>, ReadError> {
        View::cached(&*self.snapshot, self.volume, self.shard.replica, &self.shard.states)
    }
}

/// How an operation starts.
pub(crate) enum Submit {
    Propose {
        shard: ShardId,
        command: Bytes,
        version_count: u64,
    },
    Read {
        shard: ShardId,
    },
    /// It can be answered from this replica as it is.
    Nothing,
}

impl Submit {
    pub(crate) fn input(self, ticket: Ticket) -> Option<Input<Ticket>> {
        match self {
            Submit::Propose { shard, command, version_count } => {
                Some(Input::Propose { shard, command, version_count, ticket })
            }
            Submit::Read { shard } => Some(Input::Read { shard, ticket }),
            Submit::Nothing => None,
        }
    }
}

impl Access {
    /// Checks an operation and prepares it.
    pub(crate) fn accept(&self, asked: Asked) -> Result<Accepted, Refusal> {
        match asked {
            Asked::Get(get) => self.accept_get(get),
            Asked::BatchGet(get) => self.accept_batch_get(get),
            Asked::Scan(scan) => self.accept_scan(scan),
            Asked::Query(asked) => self.accept_query(asked),
            Asked::Execute(asked) => self.accept_encoded(asked),
        }
    }

    fn accept_get(&self, get: proto::NodeGetRequest) -> Result<Accepted, Refusal> {
        let shard = ShardId(get.shard_id);
        let epoch = RangeEpoch(get.epoch);
        let key = self.routing_key(shard, get.keyspace_id, &get.key)?;
        let fresh = Freshness::of(get.consistency, get.max_staleness_ms, get.min_version)?;
        let (fresh, submit) = self.accept_read(shard, epoch, &key, fresh)?;
        let pending = Pending::Get { shard, epoch, key, head_only: get.head_only, fresh };
        Ok(Accepted { pending, submit })
    }

    fn accept_batch_get(&self, get: proto::NodeBatchGetRequest) -> Result<Accepted, Refusal> {
        requests::check_keys(&get.keys, &self.limits)?;
        let shard = ShardId(get.shard_id);
        let epoch = RangeEpoch(get.epoch);
        let mut keys = Vec::with_capacity(get.keys.len());
        for key in get.keys {
            let routing_key = self.routing_key(shard, get.keyspace_id, &key)?;
            keys.push((key, routing_key));
        }
        let fresh = Freshness::of(get.consistency, get.max_staleness_ms, get.min_version)?;
        let first = keys.first().map(|(_, key)| key.clone()).unwrap_or_default();
        let (fresh, submit) = self.accept_read(shard, epoch, &first, fresh)?;
        // What was asked for is echoed, so an answer is never larger than both together.
        let max_bytes = (get.max_bytes as usize).min(self.limits.request_max_bytes);
        let wanted = Wanted { epoch, keys, head_only: get.head_only, fresh, max_bytes };
        let pending = Pending::BatchGet { shard, wanted: Box::new(wanted) };
        Ok(Accepted { pending, submit })
    }

    fn accept_query(&self, asked: proto::NodeQueryRequest) -> Result<Accepted, Refusal> {
        let shard = ShardId(asked.shard_id);
        let Write { epoch, operations, .. } = execute::write_from(asked.write, &self.limits)?;
        let mut keyspace = None;
        operations.iter().try_for_each(|operation| self.check(shard, operation, &mut keyspace))?;
        let first = operations.first().map(|operation| operation.key.clone());
        let fresh = Freshness::of(asked.consistency, asked.max_staleness_ms, asked.min_version)?;
        let (fresh, submit) = self.accept_read(shard, epoch, &first.unwrap_or_default(), fresh)?;
        let max_bytes = usize::try_from(asked.max_bytes).unwrap_or(usize::MAX);
        let query = Box::new(Query { epoch, operations, fresh, max_bytes });
        Ok(Accepted { pending: Pending::Query { shard, query }, submit })
    }

    /// A front's write. Commands that can't be read or are beyond a limit are refused alone: those
    /// beside them are of other callers, maybe. (One that stands for all of an atomic write is the
    /// exception.) All others go into the log as they came.
    fn accept_encoded(&self, asked: proto::NodeExecuteRequest) -> Result<Accepted, Refusal> {
        let shard = ShardId(asked.shard_id);
        let mut write = execute::write_from(asked.write.clone(), &self.limits)?;
        let mut refused = Vec::new();
        let mut place = 0;
        let mut keyspace = None;
        let mut fatal = None;
        write.operations.retain(|operation| {
            let checked = self.check(shard, operation, &mut keyspace);
            if let Err(refusal) = checked {
                if write.atomic && operation.required {
                    fatal.get_or_insert(refusal);
                } else {
                    refused.push((place, refusal));
                }
                place += 1;
                return false;
            }
            place += 1;
            true
        });
        if let Some(refusal) = fatal {
            return Err(refusal);
        }
        if write.operations.is_empty()
            && let Some((_, refusal)) = refused.pop()
        {
            return Err(refusal);
        }
        let encoded = refused.is_empty().then_some(asked.write);
        let submit = self.accept_write(shard, write, encoded)?;
        Ok(Accepted { pending: Pending::Execute { shard, refused }, submit })
    }

    /// Checks a command from outside, and that its keys are what the partitioning of their keyspace
    /// makes: a key in the wrong slot would never be found again. `keyspace` is that of the last one.
    fn check(
        &self,
        shard: ShardId,
        operation: &Operation,
        keyspace: &mut Option<(KeyspaceId, Partitioning)>,
    ) -> Result<(), Refusal> {
        kvdb_store::check(operation, &self.limits)?;
        for key in operation.keys() {
            let malformed = |problem| Refusal::invalid("write", problem);
            let id = key.first_chunk().ok_or_else(|| malformed("holds a key without keyspace"))?;
            let id = KeyspaceId(u32::from_be_bytes(*id));
            let partitioning = match *keyspace {
                Some((known, partitioning)) if known == id => partitioning,
                _ => self.partitioning(shard, id)?,
            };
            *keyspace = Some((id, partitioning));
            let (prefix, user_key) = key
                .split_at_checked(partitioning.prefix_len())
                .ok_or_else(|| malformed("holds a key without slot"))?;
            self.limits.check_key(user_key)?;
            let is_placed = match partitioning {
                Partitioning::Hash => prefix[size_of::<u32>()..] == slot_of(user_key).to_be_bytes(),
                Partitioning::Range => true,
            };
            if !is_placed {
                return Err(malformed("holds a key with the slot of another one"));
            }
        }
        Ok(())
    }

    /// Prepares a write with routing keys, whose commands were checked.
    pub(crate) fn accept_write(
        &self,
        shard: ShardId,
        write: Write,
        encoded: Option<Bytes>,
    ) -> Result<Submit, Refusal> {
        // Of a write that isn't atomic each command is checked on its own when it is applied; here it
        // is enough that one of them belongs to this replica.
        let first = write.operations.first().map(|operation| operation.key.clone());
        let view = self.leader(shard, write.epoch, &first.unwrap_or_default())?;
        self.check_room(&view, &write.operations)?;
        if let Some(tag) = &write.request {
            check_request_early(tag, view.times())?;
        }
        let command = EntryCommand::Write(write);
        let version_count = command.version_count();
        let command = encoded.unwrap_or_else(|| command.to_bytes());
        Ok(Submit::Propose { shard, command, version_count })
    }

    fn accept_scan(&self, scan: proto::NodeScanRequest) -> Result<Accepted, Refusal> {
        let shard = ShardId(scan.shard_id);
        let epoch = RangeEpoch(scan.epoch);
        let Some(view) = self.drive.views().get(shard) else {
            let reason = unavailable::NO_REPLICA;
            return Err(Refusal::ShardUnavailable { shard_id: shard, reason });
        };
        if !view.is_leader {
            return Err(self.not_leader(shard));
        }
        let keyspace = view.descriptor.as_ref().map_or(KeyspaceId(0), |known| known.keyspace_id);
        let limit = match scan.limit {
            0 => PAGE_ITEMS,
            limit => (limit as usize).min(PAGE_ITEMS),
        };
        let request = ScanRequest {
            epoch,
            range: KeyRange { start: scan.start, end: scan.end },
            reverse: scan.reverse,
            keys_only: scan.keys_only,
            limit,
            max_bytes: PAGE_BYTES,
            max_examined: PAGE_EXAMINED,
            now_ms: view.times().time_ms,
        };
        let page = Page {
            request,
            prefix_len: self.partitioning(shard, keyspace)?.prefix_len(),
            user_prefix: scan.user_prefix,
            user_start: scan.user_start,
            user_end: scan.user_end,
        };
        let pending = Pending::Scan { shard, page: Box::new(page) };
        Ok(Accepted { pending, submit: self.strong_read(shard, &view) })
    }

    /// How a read starts that must see all that was acknowledged before. Where the lease says so,
    /// nobody has to be asked.
    pub(crate) fn strong_read(&self, shard: ShardId, view: &ShardView) -> Submit {
        if self.drive.may_read_now(shard, view) { Submit::Nothing } else { Submit::Read { shard } }
    }

    /// Turns an outcome into an answer. Reads the engine where the operation is a read.
    pub(crate) fn finish(&self, pending: Pending, outcome: Outcome) -> Result<Finished, Refusal> {
        let outcome = match outcome {
            Outcome::Rejected(why) => return Err(self.rejected(pending.shard(), why)),
            outcome => outcome,
        };
        match pending {
            Pending::Get { .. } => self.read(pending),
            Pending::BatchGet { shard, wanted } => self.batch_get(shard, wanted),
            Pending::Scan { shard, page } => self.scan(shard, page),
            Pending::Query { shard, query } => self.query(shard, query),
            Pending::Execute { refused, .. } => {
                let mut outcomes = self.written(outcome)?;
                for (place, refusal) in refused {
                    outcomes.insert(place.min(outcomes.len()), Err(refusal));
                }
                Ok(Finished::Answer(Answer::Execute(execute::results_to(outcomes))))
            }
        }
    }

    /// What each command of a write came to.
    pub(crate) fn written(&self, outcome: Outcome) -> Result<Vec<OperationOutcome>, Refusal> {
        let Outcome::Written(mut outcomes) = outcome else { return Err(unexpected()) };
        for outcome in &mut outcomes {
            if let Err(refusal) = outcome {
                *refusal = self.with_siblings(refusal.clone());
            }
        }
        Ok(outcomes)
    }

    pub(crate) fn rejected(&self, shard_id: ShardId, why: Rejection) -> Refusal {
        match why {
            Rejection::NotLeader(_) | Rejection::NoSuchShard | Rejection::Superseded => {
                self.not_leader(shard_id)
            }
            Rejection::Unavailable => {
                Refusal::ShardUnavailable { shard_id, reason: unavailable::HANDED_OVER }
            }
            Rejection::Overloaded => {
                Refusal::Overloaded { what: "the shard's log", retry_after_ms: 20 }
            }
            Rejection::InvalidMembership => {
                Refusal::invalid("replicas", "don't follow from those that the shard has")
            }
            Rejection::OutcomeUnknown => Refusal::OutcomeUnknown { reason: "leadership was lost" },
        }
    }

    /// What a shard's replica here holds now.
    pub(crate) fn reader(&self, shard_id: ShardId) -> Result<Reader, Refusal> {
        let gone = Refusal::ShardUnavailable { shard_id, reason: unavailable::REPLACED };
        let shard = self.drive.views().get(shard_id).ok_or(gone.clone())?;
        let volume = shard.volume.ok_or(gone.clone())?;
        let snapshot = self.drive.engine().snapshot_of_lasting(volume).map_err(|_| gone)?;
        Ok(Reader { shard, volume, snapshot })
    }

    fn read(&self, pending: Pending) -> Result<Finished, Refusal> {
        let Pending::Get { shard, epoch, ref key, head_only, fresh } = pending else {
            return Err(unexpected());
        };
        let reader = self.reader(shard)?;
        let view = reader.view().map_err(|error| self.unread(shard, error))?;
        let now_ms = reader.now_ms();
        if let Some(wanted) = self.check_freshness(shard, fresh, view.last_version(), now_ms)? {
            let reached = view.last_version();
            return Ok(Finished::Behind(Box::new(Behind { pending, wanted, reached })));
        }
        let found = view.get(epoch, key, now_ms);
        let found = found.map_err(|error| self.unread(shard, error))?;
        if found.expires_by_clock && fresh.is_linearizable() {
            return Ok(Finished::NeedsTime(pending));
        }
        let record = found.record.filter(|_| !found.expires_by_clock);
        check_type(record.as_ref())?;
        let response = self.get_response(record, head_only, view.last_version());
        Ok(Finished::Answer(Answer::Get(response)))
    }

    fn get_response(
        &self,
        record: Option<Record>,
        head_only: bool,
        as_of: Version,
    ) -> proto::GetResponse {
        let mut response = proto::GetResponse {
            served_by: self.drive.node_id().0,
            as_of_version: as_of.0,
            ..Default::default()
        };
        if let Some(record) = record {
            response.found = true;
            response.value = if head_only { Bytes::new() } else { record.value };
            response.version = record.version.0;
            response.expires_at_ms = record.expires_at_ms;
        }
        response
    }

    fn query(&self, shard: ShardId, query: Box<Query>) -> Result<Finished, Refusal> {
        let reader = self.reader(shard)?;
        let view = reader.view().map_err(|error| self.unread(shard, error))?;
        let (now_ms, reached) = (reader.now_ms(), view.last_version());
        if let Some(wanted) = self.check_freshness(shard, query.fresh, reached, now_ms)? {
            let pending = Pending::Query { shard, query };
            return Ok(Finished::Behind(Box::new(Behind { pending, wanted, reached })));
        }
        let Query { epoch, ref operations, fresh, max_bytes } = *query;
        let outcomes = match fresh.is_linearizable() {
            true => view.query(epoch, operations, now_ms, max_bytes),
            false => view.query_by_clock(epoch, operations, now_ms, max_bytes).map(Some),
        };
        match outcomes.map_err(|error| self.unread(shard, error))? {
            Some(outcomes) => Ok(Finished::Answer(Answer::Query(proto::NodeExecuteResponse {
                served_by: self.drive.node_id().0,
                as_of_version: reached.0,
                ..execute::results_to(outcomes)
            }))),
            None => Ok(Finished::NeedsTime(Pending::Query { shard, query })),
        }
    }

    /// All keys from one snapshot. What isn't here, or has no room, has its own refusal.
    fn batch_get(&self, shard: ShardId, wanted: Box<Wanted>) -> Result<Finished, Refusal> {
        let reader = self.reader(shard)?;
        let view = reader.view().map_err(|error| self.unread(shard, error))?;
        let now_ms = reader.now_ms();
        let fresh = self.check_freshness(shard, wanted.fresh, view.last_version(), now_ms)?;
        if let Some(version) = fresh {
            let reached = view.last_version();
            let pending = Pending::BatchGet { shard, wanted };
            return Ok(Finished::Behind(Box::new(Behind { pending, wanted: version, reached })));
        }
        let mut left = wanted.max_bytes;
        let mut results = Vec::with_capacity(wanted.keys.len());
        for (key, routing_key) in &wanted.keys {
            let mut result = proto::BatchGetResult {
                key: key.clone(),
                served_by: self.drive.node_id().0,
                as_of_version: view.last_version().0,
                ..Default::default()
            };
            let found = match view.get(wanted.epoch, routing_key, now_ms) {
                Ok(found) => found,
                Err(error) => {
                    result.refusal = Some(refusal_to_proto(&self.unread(shard, error)));
                    results.push(result);
                    continue;
                }
            };
            if found.expires_by_clock && wanted.fresh.is_linearizable() {
                return Ok(Finished::NeedsTime(Pending::BatchGet { shard, wanted }));
            }
            let record = found.record.filter(|_| !found.expires_by_clock);
            if let Err(refusal) = check_type(record.as_ref()) {
                result.refusal = Some(refusal_to_proto(&refusal));
                results.push(result);
                continue;
            }
            if let Some(record) = record {
                let value = if wanted.head_only { Bytes::new() } else { record.value };
                if value.len() > left {
                    let limit_bytes = wanted.max_bytes as u64;
                    let refusal = Refusal::ResponseTooLarge { limit_bytes };
                    result.refusal = Some(refusal_to_proto(&refusal));
                } else {
                    left -= value.len();
                    result.found = true;
                    result.value = value;
                    result.version = record.version.0;
                    result.expires_at_ms = record.expires_at_ms;
                }
            }
            results.push(result);
        }
        Ok(Finished::Answer(Answer::BatchGet(proto::BatchGetResponse { results })))
    }

    fn scan(&self, shard: ShardId, page: Box<Page>) -> Result<Finished, Refusal> {
        let reader = self.reader(shard)?;
        let wanted = |key: &Bytes| {
            let user_key = key.get(page.prefix_len..).unwrap_or_default();
            user_key.starts_with(&page.user_prefix)
                && user_key >= &page.user_start[..]
                && (page.user_end.is_empty() || user_key < &page.user_end[..])
        };
        let found = reader
            .view()
            .and_then(|view| view.scan(&page.request, &wanted))
            .map_err(|error| self.unread(shard, error))?;
        if found.expires_by_clock {
            return Ok(Finished::NeedsTime(Pending::Scan { shard, page }));
        }
        let reverse = page.request.reverse;
        let resume = found.rest.map(|rest| if reverse { rest.end } else { rest.start });
        let items = found
            .items
            .into_iter()
            .map(|item| proto::ScanItem {
                key: item.routing_key.slice(page.prefix_len.min(item.routing_key.len())..),
                value: item.record.value,
                version: item.record.version.0,
                expires_at_ms: item.record.expires_at_ms,
                r#type: kvdb_wire::type_to(item.record.kind),
            })
            .collect();
        let resume = resume.unwrap_or_default();
        Ok(Finished::Answer(Answer::Scan(proto::NodeScanResponse { items, resume })))
    }
}

impl Access {
    pub(crate) fn unread(&self, shard_id: ShardId, error: ReadError) -> Refusal {
        match error {
            ReadError::Refused(refusal) => self.with_siblings(refusal),
            ReadError::NotHere(_) => {
                Refusal::ShardUnavailable { shard_id, reason: unavailable::REPLACED }
            }
            // What can't be read must not be served, nor anything else from this disk.
            damage => fatal(&format!("shard {shard_id} can't be read: {damage}")),
        }
    }
}

/// That a key holds a string, if it is there.
fn check_type(record: Option<&Record>) -> Result<(), Refusal> {
    match record {
        Some(record) if record.string().is_none() => Err(Refusal::WrongValue(WRONG_TYPE)),
        _ => Ok(()),
    }
}

/// A front's own id that is refused here was made of a wrong guess of the shard's age, and nothing has
/// been done: the front makes another one.
fn check_request_early(tag: &RequestTag, times: ShardTimes) -> Result<(), Refusal> {
    let is_of_front = matches!(tag.valid_until, ValidUntil::Age(_));
    if is_of_front && times.time_ms > 0 { kvdb_store::check_request(tag, times) } else { Ok(()) }
}

pub(crate) fn unexpected() -> Refusal {
    Refusal::OutcomeUnknown { reason: "the shard gave an answer of another kind" }
}
