//! One operation: from the wire to a proposal or a read, and from its outcome to an answer.

use crate::access::Access;
use crate::freshness::Freshness;
use bytes::Bytes;
use kvdb_engine::Snapshot;
use kvdb_model::{
    Action, Command, KeyRange, KeyspaceId, Operation, RangeEpoch, Refusal, RequestTag, ShardId,
    ShardTimes, ValidUntil, Version, VolumeId, Write, WriteResult, unavailable,
};
use kvdb_replication::{Input, Rejection};
use kvdb_runtime::drive::{Outcome, ShardView, Ticket, fatal};
use kvdb_store::{ReadError, Record, ScanRequest, View};
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::{proto, refusal_to_proto, request_tag_from, requests, strings};
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
    Put {
        shard: ShardId,
    },
    Delete {
        shard: ShardId,
    },
    Increment {
        shard: ShardId,
    },
    BatchWrite {
        shard: ShardId,
    },
    Scan {
        shard: ShardId,
        page: Box<Page>,
    },
    ReadMany {
        shard: ShardId,
        reads: Box<Reads>,
    },
    /// With the places of operations that were refused at once.
    StringWrite {
        shard: ShardId,
        refused: Vec<(usize, Refusal)>,
    },
}

/// Reads of one shard that are asked for together.
pub(crate) struct Reads {
    epoch: RangeEpoch,
    /// Routing keys, and whether only the head is wanted.
    keys: Vec<(Bytes, bool)>,
    max_bytes: u64,
}

impl Pending {
    pub(crate) fn shard(&self) -> ShardId {
        match self {
            Pending::Get { shard, .. }
            | Pending::BatchGet { shard, .. }
            | Pending::Put { shard }
            | Pending::Delete { shard }
            | Pending::Increment { shard }
            | Pending::BatchWrite { shard }
            | Pending::ReadMany { shard, .. }
            | Pending::StringWrite { shard, .. }
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
        Asked::Put(asked) => asked.shard_id,
        Asked::Delete(asked) => asked.shard_id,
        Asked::Increment(asked) => asked.shard_id,
        Asked::BatchWrite(asked) => asked.shard_id,
        Asked::Scan(asked) => asked.shard_id,
        Asked::ReadMany(asked) => asked.shard_id,
        Asked::StringWrite(asked) => asked.shard_id,
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
            Asked::Put(put) => {
                let shard = ShardId(put.shard_id);
                let operation = requests::put_operation(
                    put.key,
                    put.value,
                    put.ttl_ms,
                    put.condition,
                    put.return_previous,
                    &self.limits,
                )?;
                let pending = Pending::Put { shard };
                self.accept_write(
                    put.epoch,
                    put.keyspace_id,
                    vec![operation],
                    false,
                    put.request_id,
                    pending,
                )
            }
            Asked::Delete(delete) => {
                let shard = ShardId(delete.shard_id);
                let operation = requests::delete_operation(
                    delete.key,
                    delete.condition,
                    delete.return_previous,
                    &self.limits,
                )?;
                let pending = Pending::Delete { shard };
                self.accept_write(
                    delete.epoch,
                    delete.keyspace_id,
                    vec![operation],
                    false,
                    delete.request_id,
                    pending,
                )
            }
            Asked::Increment(increment) => {
                let shard = ShardId(increment.shard_id);
                let operation =
                    requests::increment_operation(increment.key, increment.delta, &self.limits)?;
                let pending = Pending::Increment { shard };
                self.accept_write(
                    increment.epoch,
                    increment.keyspace_id,
                    vec![operation],
                    false,
                    increment.request_id,
                    pending,
                )
            }
            Asked::BatchWrite(batch) => self.accept_batch(batch),
            Asked::Scan(scan) => self.accept_scan(scan),
            Asked::ReadMany(reads) => self.accept_reads(reads),
            Asked::StringWrite(write) => self.accept_strings(write),
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

    fn accept_batch(&self, batch: proto::NodeBatchWriteRequest) -> Result<Accepted, Refusal> {
        let mut operations = requests::batch_operations(batch.operations, &self.limits)?;
        if !batch.items.is_empty() {
            if batch.items.len() != operations.len() {
                return Err(Refusal::invalid("items", "must be one an operation, or none"));
            }
            for (operation, item) in operations.iter_mut().zip(batch.items) {
                operation.item = item;
            }
        }
        let pending = Pending::BatchWrite { shard: ShardId(batch.shard_id) };
        self.accept_write(
            batch.epoch,
            batch.keyspace_id,
            operations,
            batch.atomic,
            batch.request_id,
            pending,
        )
    }

    fn accept_reads(&self, asked: proto::NodeReadManyRequest) -> Result<Accepted, Refusal> {
        strings::check_read(&asked.keys, &self.limits)?;
        let shard = ShardId(asked.shard_id);
        let epoch = RangeEpoch(asked.epoch);
        let keys = asked.keys.into_iter().map(|read| {
            Ok((self.routing_key(shard, asked.keyspace_id, &read.key)?, read.head_only))
        });
        let keys = keys.collect::<Result<Vec<_>, Refusal>>()?;
        let view = self.leader(shard, epoch, keys.first().map_or(&[][..], |(key, _)| key))?;
        let reads = Box::new(Reads { epoch, keys, max_bytes: asked.max_bytes });
        let submit = self.strong_read(shard, &view);
        Ok(Accepted { pending: Pending::ReadMany { shard, reads }, submit })
    }

    fn accept_strings(&self, asked: proto::NodeStringWriteRequest) -> Result<Accepted, Refusal> {
        let shard = ShardId(asked.shard_id);
        let strings::StringOperations { good: mut operations, refused } =
            strings::string_operations(asked.operations, &self.limits)?;
        for operation in &mut operations {
            if let Action::String(action) = &mut operation.action {
                action.map_other_keys(|key| self.routing_key(shard, asked.keyspace_id, key))?;
            }
        }
        let pending = Pending::StringWrite { shard, refused };
        self.accept_write(
            asked.epoch,
            asked.keyspace_id,
            operations,
            asked.atomic,
            asked.request_id,
            pending,
        )
    }

    fn accept_write(
        &self,
        epoch: u64,
        keyspace: u32,
        mut operations: Vec<Operation>,
        atomic: bool,
        request_id: Option<proto::RequestId>,
        pending: Pending,
    ) -> Result<Accepted, Refusal> {
        let shard = pending.shard();
        let epoch = RangeEpoch(epoch);
        let request = request_tag_from(request_id, &self.limits)?;
        for operation in &mut operations {
            operation.key = self.routing_key(shard, keyspace, &operation.key)?;
            // Of a batch that isn't atomic each operation is checked on its own when it is
            // applied; here it is enough that one of them belongs to this replica.
        }
        let first = operations.first().map(|operation| operation.key.clone()).unwrap_or_default();
        let view = self.leader(shard, epoch, &first)?;
        self.check_room(&view, &operations)?;
        if let Some(tag) = &request {
            check_request_early(tag, view.times())?;
        }
        let command = Command::Write(Write { epoch, atomic, request, operations });
        let version_count = command.version_count();
        let submit = Submit::Propose { shard, command: command.to_bytes(), version_count };
        Ok(Accepted { pending, submit })
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
            Pending::ReadMany { shard, reads } => self.read_many(shard, reads),
            Pending::StringWrite { refused, .. } => {
                let Outcome::Written(outcomes) = outcome else { return Err(unexpected()) };
                let outcomes = strings::with_refused(outcomes, refused);
                let results = strings::string_results(outcomes);
                let response = proto::NodeStringWriteResponse { results };
                Ok(Finished::Answer(Answer::StringWrite(response)))
            }
            Pending::Put { .. } => {
                let response = requests::put_response(self.only(outcome)?);
                Ok(Finished::Answer(Answer::Put(response)))
            }
            Pending::Delete { .. } => {
                let response = requests::delete_response(self.only(outcome)?);
                Ok(Finished::Answer(Answer::Delete(response)))
            }
            Pending::Increment { .. } => {
                let response = requests::increment_response(self.only(outcome)?);
                Ok(Finished::Answer(Answer::Increment(response)))
            }
            Pending::BatchWrite { .. } => {
                let Outcome::Written(outcomes) = outcome else { return Err(unexpected()) };
                let told = |outcome: Result<WriteResult, Refusal>| {
                    requests::batch_result(outcome.map_err(|refusal| self.with_siblings(refusal)))
                };
                let mut results: Vec<_> = outcomes.into_iter().map(told).collect();
                requests::omit_previous_beyond(&mut results, self.limits.request_max_bytes);
                Ok(Finished::Answer(Answer::BatchWrite(proto::BatchWriteResponse { results })))
            }
        }
    }

    fn rejected(&self, shard_id: ShardId, why: Rejection) -> Refusal {
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

    fn read_many(&self, shard: ShardId, reads: Box<Reads>) -> Result<Finished, Refusal> {
        let reader = self.reader(shard)?;
        let failed = |error| self.unread(shard, error);
        let view = reader.view().map_err(failed)?;
        let now_ms = reader.now_ms();
        let mut results = Vec::with_capacity(reads.keys.len());
        let mut size = 0;
        for (key, head_only) in &reads.keys {
            let found = view.get(reads.epoch, key, now_ms).map_err(failed)?;
            if found.expires_by_clock {
                return Ok(Finished::NeedsTime(Pending::ReadMany { shard, reads }));
            }
            let response = self.get_response(found.record, *head_only, view.last_version());
            size += strings::read_size(&response.value);
            results.push(response);
            if size >= reads.max_bytes {
                break;
            }
        }
        Ok(Finished::Answer(Answer::ReadMany(proto::NodeReadManyResponse { results })))
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
            if let Some(record) = found.record.filter(|_| !found.expires_by_clock) {
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
            })
            .collect();
        let resume = resume.unwrap_or_default();
        Ok(Finished::Answer(Answer::Scan(proto::NodeScanResponse { items, resume })))
    }
}

impl Access {
    fn only(&self, outcome: Outcome) -> Result<WriteResult, Refusal> {
        let outcome = match outcome {
            Outcome::Written(mut outcomes) => outcomes.pop().unwrap_or_else(|| Err(unexpected())),
            _ => Err(unexpected()),
        };
        outcome.map_err(|refusal| self.with_siblings(refusal))
    }

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

/// A front's own id that is refused here was made of a wrong guess of the shard's age, and nothing has
/// been done: the front makes another one.
fn check_request_early(tag: &RequestTag, times: ShardTimes) -> Result<(), Refusal> {
    let is_of_front = matches!(tag.valid_until, ValidUntil::Age(_));
    if is_of_front && times.time_ms > 0 { kvdb_store::check_request(tag, times) } else { Ok(()) }
}

fn unexpected() -> Refusal {
    Refusal::OutcomeUnknown { reason: "the shard gave an answer of another kind" }
}
