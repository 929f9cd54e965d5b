//! Reads, from an engine snapshot.
//!
//! A [`View`] is one snapshot and the replica's state *in it*: range, epoch and shard time are
//! checked in the very state that the answer comes from, so no change of the shard can come
//! between. Whether the shard may serve a strong read now (leadership, applied index) is for
//! replication to say, before the snapshot is taken.

use crate::apply::{ApplyError, check_range};
use crate::history::{self, History};
use crate::layout::{
    data_key, data_range, element_prefix_len, element_range, garbage_range, parse_garbage,
    routing_key_of,
};
use crate::overlay::Reading;
use crate::recent::{ChangePage, WatchQuery};
use crate::record::{Record, RecordDamage};
use crate::shard::{OpenError, State};
use bytes::Bytes;
use kvdb_engine::{EngineError, SequenceNumber, Snapshot};
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    KeyRange, LogPosition, Operation, OperationOutcome, RangeEpoch, Refusal, ReplicaId,
    ShardDescriptor, Version, VolumeId,
};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// What an item of a scan costs beside its key and value, for [`ScanRequest::max_bytes`].
const ITEM_OVERHEAD_BYTES: usize = 32;

/// History that is looked through for one page.
const EXAMINED_BYTES: usize = 4 << 20;

/// Why a read can't be served.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It belongs elsewhere.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The volume doesn't hold the replica: it was switched, or the replica wasn't opened yet.
    #[error("replica {0} is not in this volume")]
    NotHere(ReplicaId),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The record is damaged: the process should stop.
    #[error(transparent)]
    Damage(#[from] RecordDamage),
    /// The replica's own record is damaged.
    #[error(transparent)]
    State(#[from] OpenError),
    /// A command can't be carried out on what is stored.
    #[error(transparent)]
    Command(#[from] ApplyError),
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadResult {
    /// The record, unless it is absent or has expired by shard time.
    pub record: Option<Record>,
    /// It has expired by what shard time is here by now, not yet by what is applied: commit a
    /// [`kvdb_model::EntryCommand::AdvanceTime`] and read again before saying that it is gone, so that
    /// no later leader can bring it back.
    pub expires_by_clock: bool,
}

/// A part of a scan.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// The range epoch by which it was routed.
    pub epoch: RangeEpoch,
    /// Routing keys; clipped to the shard.
    pub range: KeyRange,
    /// From the end backwards.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Most items in the page, at least 1.
    pub limit: usize,
    /// Bytes of keys and values after which the page ends; it may be larger by one item.
    pub max_bytes: usize,
    /// Most records to look at, at least 1: bounds the time that a page takes where most are
    /// expired or unwanted.
    pub max_examined: usize,
    /// Shard time by the clock here, in milliseconds since 1970; see [`ScanPage::expires_by_clock`].
    pub now_ms: u64,
}

/// A record found by a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedItem {
    /// Its routing key.
    pub routing_key: Bytes,
    /// The record; its value is empty if only keys were asked for, or it isn't a string.
    pub record: Record,
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// In order.
    pub items: Vec<ScannedItem>,
    /// The range that is left (clipped to the shard), or `None` if the shard is done.
    pub rest: Option<KeyRange>,
    /// Some item has expired by what shard time is here by now, not yet by what is applied; see
    /// [`ReadResult::expires_by_clock`].
    pub expires_by_clock: bool,
}

/// A part of a look for expired records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepPage {
    /// Routing keys of records that have expired.
    pub expired: Vec<Bytes>,
    /// Routing keys of collections that are there, and have elements that have expired.
    pub due: Vec<Bytes>,
    /// When the first of the others expires, or of their elements, in milliseconds since 1970.
    pub soonest_ms: Option<u64>,
    /// The routing key to go on from, or `None` at the end of the shard.
    pub next: Option<Bytes>,
}

/// Elements that are to be freed: see [`kvdb_model::EntryCommand::Free`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GarbagePage {
    /// The routing key that they belonged to.
    pub key: Bytes,
    /// In which life of the key.
    pub incarnation: u64,
    /// The place at which others follow, if there are more.
    pub end: Option<Bytes>,
}

/// One replica as of one engine snapshot. Make one for all reads that can share it: making it
/// reads and checks the replica's state.
pub struct View<'a> {
    snapshot: &'a dyn Snapshot,
    replica: ReplicaId,
    state: Arc<State>,
}

/// The state that was read last, for who reads from the same volume before anything is written to
/// it again.
#[derive(Debug, Default)]
pub struct StateCache(Mutex<Option<(VolumeId, SequenceNumber, Arc<State>)>>);

impl StateCache {
    fn get(&self, volume: VolumeId, sequence: SequenceNumber) -> Option<Arc<State>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = last.as_ref().filter(|(of, at, _)| (*of, *at) == (volume, sequence));
        here.map(|(.., state)| Arc::clone(state))
    }

    fn set(&self, volume: VolumeId, sequence: SequenceNumber, state: &Arc<State>) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((volume, sequence, Arc::clone(state)));
    }
}

impl<'a> View<'a> {
    /// The replica as it is in the snapshot.
    ///
    /// # Errors
    /// [`ReadError::NotHere`], or if its state can't be read.
    pub fn new(snapshot: &'a dyn Snapshot, replica: ReplicaId) -> Result<Self, ReadError> {
        let state = State::read(snapshot, replica)?.ok_or(ReadError::NotHere(replica))?;
        Ok(View { snapshot, replica, state: Arc::new(state) })
    }

    /// As [`View::new`], for a snapshot of `volume`. `states` is of this replica alone.
    ///
    /// # Errors
    /// As [`View::new`].
    pub fn cached(
        snapshot: &'a dyn Snapshot,
        volume: VolumeId,
        replica: ReplicaId,
        states: &StateCache,
    ) -> Result<Self, ReadError> {
        let sequence = snapshot.sequence();
        if let Some(state) = states.get(volume, sequence) {
            return Ok(View { snapshot, replica, state });
        }
        let view = View::new(snapshot, replica)?;
        states.set(volume, sequence, &view.state);
        Ok(view)
    }

    /// The descriptor in the snapshot.
    pub fn descriptor(&self) -> &ShardDescriptor {
        &self.state.descriptor
    }

    /// The last entry applied in the snapshot.
    pub fn applied(&self) -> LogPosition {
        self.state.applied
    }

    /// Shard time in the snapshot.
    pub fn last_version(&self) -> Version {
        self.state.time.version
    }

    /// Reads one key that was routed under `epoch`. `now_ms` is shard time by the clock
    /// here, in milliseconds since 1970.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn get(
        &self,
        epoch: RangeEpoch,
        routing_key: &[u8],
        now_ms: u64,
    ) -> Result<ReadResult, ReadError> {
        check_range(&self.state.descriptor, epoch, routing_key)?;
        let record = match self.snapshot.get(&data_key(routing_key))? {
            Some(stored) => Some(Record::decode(routing_key, &stored)?),
            None => None,
        };
        let record = record.filter(|record| !record.is_expired(self.state.time.version));
        let expires_by_clock = record.as_ref().is_some_and(|record| is_past(record, now_ms));
        if expires_by_clock && (has(Bug::GoneByClockAlone) || has(Bug::HiddenByWallClock)) {
            return Ok(ReadResult { record: None, expires_by_clock: false });
        }
        Ok(ReadResult { record, expires_by_clock })
    }

    /// Carries out commands that change nothing, that were routed under `epoch`, in order, until their
    /// replies take up `max_bytes`; at least one. `now_ms` is as in [`View::get`]. `None` if a key has
    /// expired by the clock alone: see [`ReadResult::expires_by_clock`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn query(
        &self,
        epoch: RangeEpoch,
        operations: &[Operation],
        now_ms: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<OperationOutcome>>, ReadError> {
        let reading = Reading::new(self.snapshot, self.state.time.version, now_ms);
        let (outcomes, expires_by_clock) = self.carry_out(reading, epoch, operations, max_bytes)?;
        Ok((!expires_by_clock).then_some(outcomes))
    }

    /// The same for a read that needn't be linearizable: what has expired by the clock here is gone, whatever
    /// was applied. It is the state that the shard would be in had it let time pass.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn query_by_clock(
        &self,
        epoch: RangeEpoch,
        operations: &[Operation],
        now_ms: u64,
        max_bytes: usize,
    ) -> Result<Vec<OperationOutcome>, ReadError> {
        let version = self.state.time.version.max(Version::from_millis(now_ms));
        let reading = Reading::new(self.snapshot, version, now_ms);
        Ok(self.carry_out(reading, epoch, operations, max_bytes)?.0)
    }

    /// What operations come to, and whether one of them met what has expired by the clock alone.
    fn carry_out(
        &self,
        mut reading: Reading<'_>,
        epoch: RangeEpoch,
        operations: &[Operation],
        max_bytes: usize,
    ) -> Result<(Vec<OperationOutcome>, bool), ReadError> {
        let mut outcomes = Vec::with_capacity(operations.len());
        let mut size = 0;
        for operation in operations {
            for key in operation.keys() {
                check_range(&self.state.descriptor, epoch, key)?;
            }
            let outcome = reading.carry_out(operation)?;
            size += outcome.as_ref().map_or(64, |result| result.reply.size_bytes() + 32);
            outcomes.push(outcome);
            if size >= max_bytes {
                break;
            }
        }
        Ok((outcomes, reading.expires_by_clock()))
    }

    /// Looks for elements of collections that are over, at most so many, all of one key. They are freed
    /// by an [`kvdb_model::EntryCommand::Free`]; `None` if there are none.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn garbage(&self, most: usize) -> Result<Option<GarbagePage>, ReadError> {
        if self.state.incarnation == 0 {
            return Ok(None);
        }
        let range = garbage_range(&self.state.descriptor.range);
        let Some(first) = self.snapshot.scan(&range, false).next().transpose()? else {
            return Ok(None);
        };
        let Some((key, incarnation)) = parse_garbage(&first.0) else { return Ok(None) };
        let prefix = element_prefix_len(&key, incarnation);
        let mut elements = self.snapshot.scan(&element_range(&key, incarnation), false);
        let end = elements.nth(most).transpose()?;
        // Not a slice of the engine's block, which may be large.
        let end = end.map(|(element, _)| Bytes::copy_from_slice(&element[prefix..]));
        Ok(Some(GarbagePage { key, incarnation, end }))
    }

    /// The changes that a watcher is to be told next, from the shard's history; `None` if it keeps
    /// none. The page tells up to where it has looked: to shard time, if nothing is left.
    ///
    /// # Errors
    /// [`ReadError`]; a stale epoch is one.
    pub fn history(&self, query: &WatchQuery<'_>) -> Result<Option<ChangePage>, ReadError> {
        let descriptor = &self.state.descriptor;
        check_range(descriptor, query.epoch, &descriptor.range.start)?;
        let kept = History::load(self.snapshot, self.replica)?;
        if kept.policy().limits.is_none() {
            return Ok(None);
        }
        let gap = (query.after < kept.floor()).then(|| kept.floor());
        let after = gap.unwrap_or(query.after);
        let version = after.max(self.state.time.version);
        let mut page = ChangePage { events: vec![], version, gap };
        let (mut size_bytes, mut examined_bytes, mut last) = (0, 0, after);
        for events in history::after(self.snapshot, self.replica, after) {
            for event in events?.into_iter().filter(|event| event.version > after) {
                let is_full = size_bytes >= query.max_bytes || examined_bytes >= EXAMINED_BYTES;
                if is_full && event.version != last {
                    page.version = last;
                    return Ok(Some(page));
                }
                last = event.version;
                examined_bytes += event.size_bytes();
                if query.wants(&event.routing_key) {
                    size_bytes += event.size_bytes();
                    page.events.push(event);
                }
            }
        }
        Ok(Some(page))
    }

    /// Reads a page. `keep` sees each routing key and says whether it is wanted.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn scan(
        &self,
        request: &ScanRequest,
        keep: &dyn Fn(&Bytes) -> bool,
    ) -> Result<ScanPage, ReadError> {
        let descriptor = &self.state.descriptor;
        check_range(descriptor, request.epoch, &descriptor.range.start)?;
        let mut page = ScanPage { items: vec![], rest: None, expires_by_clock: false };
        let range = request.range.intersection(&descriptor.range);
        if range.is_empty() {
            return Ok(page);
        }
        let mut size_bytes = 0;
        let scanned = self.snapshot.scan(&data_range(&range), request.reverse);
        for (examined, item) in scanned.enumerate() {
            let (key, stored) = item?;
            let routing_key = routing_key_of(&key);
            let is_full = page.items.len() >= request.limit.max(1)
                || examined >= request.max_examined.max(1)
                || (size_bytes >= request.max_bytes && !page.items.is_empty());
            if is_full {
                page.rest = Some(rest_of(&range, &routing_key, request.reverse));
                break;
            }
            if !keep(&routing_key) {
                continue;
            }
            let mut record = Record::decode(&routing_key, &stored)?;
            if record.is_expired(self.state.time.version) {
                continue;
            }
            if request.keys_only || record.string().is_none() {
                record.value = Bytes::new();
            }
            page.expires_by_clock |= is_past(&record, request.now_ms);
            size_bytes += routing_key.len() + record.value.len() + ITEM_OVERHEAD_BYTES;
            page.items.push(ScannedItem { routing_key, record });
        }
        Ok(page)
    }

    /// Looks for records that have expired at `now_ms` (milliseconds since 1970), from a routing
    /// key on, at `max_examined` records and no more. They are freed by a
    /// [`kvdb_model::EntryCommand::Reclaim`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn sweep(
        &self,
        from: &Bytes,
        now_ms: u64,
        max_examined: usize,
    ) -> Result<SweepPage, ReadError> {
        let whole = &self.state.descriptor.range;
        let start = from.clone().max(whole.start.clone());
        let range = KeyRange { start, end: whole.end.clone() };
        let mut page = SweepPage::default();
        if range.is_empty() {
            return Ok(page);
        }
        let scanned = self.snapshot.scan(&data_range(&range), false);
        for (examined, item) in scanned.enumerate() {
            let (key, stored) = item?;
            let routing_key = routing_key_of(&key);
            if examined >= max_examined.max(1) {
                page.next = Some(routing_key);
                break;
            }
            let record = Record::decode(&routing_key, &stored)?;
            if is_past(&record, now_ms) {
                // Not a slice of the engine's block, which may be large.
                page.expired.push(Bytes::copy_from_slice(&routing_key));
            } else if let Some(due_ms) = record.due_ms() {
                let soonest_ms = match due_ms <= now_ms {
                    true => {
                        page.due.push(Bytes::copy_from_slice(&routing_key));
                        Some(record.expires_at_ms).filter(|at| *at != 0)
                    }
                    false => Some(due_ms),
                };
                page.soonest_ms = page.soonest_ms.into_iter().chain(soonest_ms).min();
            }
        }
        Ok(page)
    }
}

fn is_past(record: &Record, now_ms: u64) -> bool {
    record.is_over_at(now_ms)
}

/// The range from `next`, which wasn't taken, on.
fn rest_of(range: &KeyRange, next: &Bytes, reverse: bool) -> KeyRange {
    if reverse {
        // An exclusive end just above `next`.
        let mut end = next.to_vec();
        end.push(0);
        KeyRange { start: range.start.clone(), end: end.into() }
    } else {
        KeyRange { start: next.clone(), end: range.end.clone() }
    }
}

/// [`View::get`], for a single read.
///
/// # Errors
/// [`ReadError`].
pub fn get(
    snapshot: &dyn Snapshot,
    replica: ReplicaId,
    epoch: RangeEpoch,
    routing_key: &[u8],
    now_ms: u64,
) -> Result<ReadResult, ReadError> {
    View::new(snapshot, replica)?.get(epoch, routing_key, now_ms)
}

/// [`View::scan`], for a single page.
///
/// # Errors
/// [`ReadError`].
pub fn scan(
    snapshot: &dyn Snapshot,
    replica: ReplicaId,
    request: &ScanRequest,
    keep: &dyn Fn(&Bytes) -> bool,
) -> Result<ScanPage, ReadError> {
    View::new(snapshot, replica)?.scan(request, keep)
}
