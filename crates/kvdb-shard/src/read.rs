//! Reads, from an engine snapshot.

use crate::apply::check_range;
use crate::layout::{data_key, data_range, routing_key_of};
use crate::record::{Record, RecordDamage};
use crate::shard::{OpenError, State};
use bytes::Bytes;
use kvdb_engine::{EngineError, Snapshot};
use kvdb_model::{KeyRange, RangeEpoch, Refusal, ReplicaId, Version};
use thiserror::Error;

/// Why a read can't be served.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It belongs elsewhere.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The record is damaged: the process should stop.
    #[error(transparent)]
    Damage(#[from] RecordDamage),
    /// The replica's own record is damaged.
    #[error(transparent)]
    State(#[from] OpenError),
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadResult {
    /// The record, unless it is absent or has expired by shard time.
    pub record: Option<Record>,
    /// It has expired by the local clock, not yet by shard time: commit a
    /// [`kvdb_model::Command::AdvanceTime`] and read again before saying that it is gone, so that
    /// no later leader can bring it back.
    pub expires_by_clock: bool,
}

/// Reads one key. Range and epoch are checked in the very snapshot that is read.
///
/// # Errors
/// [`ReadError`].
pub fn get(
    snapshot: &dyn Snapshot,
    replica: ReplicaId,
    epoch: RangeEpoch,
    routing_key: &Bytes,
    wall_ms: u64,
) -> Result<ReadResult, ReadError> {
    let state = state_in(snapshot, replica)?;
    check_range(&state.descriptor, epoch, routing_key)?;
    let Some(bytes) = snapshot.get(&data_key(routing_key))? else {
        return Ok(ReadResult { record: None, expires_by_clock: false });
    };
    let record = Record::decode(routing_key, &bytes)?;
    if record.is_expired(state.last_version) {
        return Ok(ReadResult { record: None, expires_by_clock: false });
    }
    let expires_by_clock = record.is_expired(Version::from_millis(wall_ms));
    Ok(ReadResult { record: Some(record), expires_by_clock })
}

fn state_in(snapshot: &dyn Snapshot, replica: ReplicaId) -> Result<State, ReadError> {
    State::read(snapshot, replica)?.ok_or(ReadError::Refused(Refusal::ShardUnavailable {
        shard_id: kvdb_model::ShardId(0),
        reason: "the replica has not applied anything yet",
    }))
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
    /// Most items in the page.
    pub limit: usize,
    /// Most bytes of keys and values in the page; at least one item is returned.
    pub max_bytes: usize,
    /// Most records to look at: bounds the time that a page takes where a filter drops most.
    pub max_examined: usize,
}

/// A record found by a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedItem {
    /// Its routing key.
    pub routing_key: Bytes,
    /// The record; its value is empty if only keys were asked for.
    pub record: Record,
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// In order.
    pub items: Vec<ScannedItem>,
    /// The range that is left (clipped to the shard), or `None` if the shard is done.
    pub rest: Option<KeyRange>,
}

/// Reads a page. `keep` sees each routing key and says whether it is wanted.
///
/// # Errors
/// [`ReadError`].
pub fn scan(
    snapshot: &dyn Snapshot,
    replica: ReplicaId,
    request: &ScanRequest,
    keep: &dyn Fn(&Bytes) -> bool,
) -> Result<ScanPage, ReadError> {
    let state = state_in(snapshot, replica)?;
    if request.epoch != state.descriptor.range_epoch {
        return Err(ReadError::Refused(Refusal::StaleEpoch {
            shard_id: state.descriptor.shard_id,
            current: state.descriptor.range_epoch,
            descriptors: vec![state.descriptor],
        }));
    }
    let range = request.range.intersection(&state.descriptor.range);
    let mut page = ScanPage { items: vec![], rest: None };
    if range.is_empty() {
        return Ok(page);
    }
    let mut bytes = 0;
    let scanned = snapshot.scan(&data_range(&range), request.reverse);
    for (examined, item) in scanned.enumerate() {
        let (key, value) = item?;
        let routing_key = routing_key_of(&key);
        let full = page.items.len() >= request.limit
            || bytes >= request.max_bytes
            || examined >= request.max_examined;
        if full {
            page.rest = Some(rest_of(&range, routing_key, request.reverse));
            break;
        }
        if !keep(&routing_key) {
            continue;
        }
        let mut record = Record::decode(&routing_key, &value)?;
        if record.is_expired(state.last_version) {
            continue;
        }
        if request.keys_only {
            record.value = Bytes::new();
        }
        bytes += routing_key.len() + record.value.len() + 32;
        page.items.push(ScannedItem { routing_key, record });
    }
    Ok(page)
}

/// The range from `next`, which wasn't taken, on.
fn rest_of(range: &KeyRange, next: Bytes, reverse: bool) -> KeyRange {
    if reverse {
        // An exclusive end just above `next`.
        let mut end = next.to_vec();
        end.push(0);
        KeyRange { start: range.start.clone(), end: end.into() }
    } else {
        KeyRange { start: next, end: range.end.clone() }
    }
}
