//! The change history of a shard: what [`crate::Recent`] has forgotten, or never knew after a
//! restart, for keyspaces that ask for it.
//!
//! ```text
//! suffix of the key                       content
//! (none)                                  bounds, floor and marks
//! version (u64 BE), part (u32 BE)         changes, ascending; the key has the last one's version
//! ```
//!
//! History is state of the shard like any other: written in the batch of the data that it tells of,
//! carried by snapshots, copied to the child of a split as far as it is of its range, and covered by
//! the digest. What is kept is decided by the entries alone, never by a clock.
//!
//! The records lie in runs, the *marks*, each of about a 32nd part of what may be kept, by bytes and
//! by time. A mark goes as a whole, at most [`FREED_PER_ENTRY`] with each entry: so what is kept is
//! remembered in a few hundred bytes, and no entry pays for an hour of silence. The *floor* is the
//! version up to which changes are missing: whoever asks for older ones is told of a gap.
//!
//! Left out: whether a keyspace has a history (the coordinators say so, and the leader's node has it
//! proposed as [`kvdb_model::EntryCommand::History`]).

use crate::command::flag;
use crate::layout::{Kind, kind_range, record_key, suffix_of};
use crate::recent::{ChangeEvent, ElementChanges};
use crate::record::{ElementTimes, Record, Type};
use crate::seal::{seal, unseal};
use crate::shard::OpenError;
use crate::unordered::{decode_list, encode_list};
use bytes::Bytes;
use kvdb_engine::{Batch, Snapshot};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{HistoryLimits, HistoryPolicy, KeyRange, ReplicaId, Version};
use std::collections::{BTreeMap, VecDeque};

const FORMAT: u8 = 1;
/// Of the records of changes.
const CHANGES_FORMAT: u8 = 2;
/// Parts that the bounds are cut into. More forgets in smaller steps, and makes the record that is
/// written with each run of entries larger.
const PARTS: u64 = 32;
/// Marks freed with an entry at most. More than an entry begins, so that a history shrinks.
const FREED_PER_ENTRY: usize = 2;
/// Changes are put together in records of about so many bytes.
const RECORD_BYTES: usize = 256 * 1024;
/// What a record costs beside its content, roughly.
const RECORD_OVERHEAD_BYTES: u64 = 64;
/// What a change costs beside its key and value while records are put together, roughly.
const CHANGE_OVERHEAD_BYTES: usize = 24;
const REMOVED: u8 = 0;
const SET: u8 = 1;

/// A run of history records that goes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    first: Version,
    through: Version,
    size_bytes: u64,
}

/// What is known of a shard's history beside its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    policy: HistoryPolicy,
    /// Changes up to here are missing.
    floor: Version,
    /// Records up to here are gone.
    freed: Version,
    /// Oldest first; the last one grows.
    marks: VecDeque<Mark>,
    is_changed: bool,
}

/// History records of a run of entries that aren't written yet, by suffix of their key.
pub(crate) type Pending = BTreeMap<Bytes, Bytes>;

/// What a run of entries has to do with the records of a replica.
pub(crate) struct Store<'a> {
    pub(crate) replica: ReplicaId,
    /// As they were before the run.
    pub(crate) before: &'a dyn Snapshot,
    pub(crate) pending: &'a mut Pending,
    /// Gets what is to be removed.
    pub(crate) batch: &'a mut Batch,
}

impl History {
    pub(crate) fn load(snapshot: &dyn Snapshot, replica: ReplicaId) -> Result<Self, OpenError> {
        let key = record_key(replica, Kind::History, &[]);
        match snapshot.get(&key)? {
            Some(stored) => Ok(Self::decode(unseal(Kind::History, &key, &stored)?)?),
            None => Ok(History::default()),
        }
    }

    pub(crate) fn policy(&self) -> HistoryPolicy {
        self.policy
    }

    pub(crate) fn floor(&self) -> Version {
        self.floor
    }

    /// Takes over a decision, at `version`. `from_birth`: the shard has never changed before.
    pub(crate) fn decide(&mut self, policy: HistoryPolicy, version: Version, from_birth: bool) {
        if policy.revision <= self.policy.revision {
            return;
        }
        let begins = self.policy.limits.is_none() && policy.limits.is_some();
        if begins && !from_birth {
            self.floor = version;
        }
        self.policy = policy;
        self.is_changed = true;
    }

    /// Adds what was done, in order; all changes of a version come in one call. Returns how many
    /// bytes it takes up.
    pub(crate) fn add(&mut self, events: &[ChangeEvent], pending: &mut Pending) -> usize {
        let (Some(limits), Some(first)) = (self.policy.limits, events.first()) else { return 0 };
        let has_room = |mark: &&Mark| {
            let age_ms = first.version.millis().saturating_sub(mark.first.millis());
            mark.size_bytes < limits.max_bytes / PARTS && age_ms < limits.max_age_ms / PARTS
        };
        let mut mark = match self.marks.back().filter(has_room).copied() {
            Some(mark) => {
                self.marks.pop_back();
                mark
            }
            None => Mark { first: first.version, through: first.version, size_bytes: 0 },
        };
        let mut added = 0;
        let mut last_key: Option<(Version, u32)> = None;
        for chunk in chunks(events) {
            mark.through = chunk.last().map_or(mark.through, |event| event.version);
            let part = match last_key {
                Some((version, part)) if version == mark.through => part + 1,
                _ => 0,
            };
            last_key = Some((mark.through, part));
            let suffix = suffix(mark.through, part);
            let stored = seal(Kind::History, &suffix, &encode(chunk));
            added += stored.len();
            mark.size_bytes += stored.len() as u64 + RECORD_OVERHEAD_BYTES;
            pending.insert(suffix, stored);
        }
        self.marks.push_back(mark);
        self.is_changed = true;
        added
    }

    /// Frees what is beyond the bounds at shard time `now`.
    pub(crate) fn keep_bounds(
        &mut self,
        now: Version,
        store: &mut Store<'_>,
    ) -> Result<(), OpenError> {
        for _ in 0..FREED_PER_ENTRY {
            let Some(oldest) = self.marks.front().copied().filter(|mark| self.is_due(mark, now))
            else {
                return Ok(());
            };
            self.marks.pop_front();
            self.is_changed = true;
            let range = between(store.replica, self.freed, Some(oldest.through));
            for item in store.before.scan(&range, false) {
                store.batch.delete(item?.0);
            }
            let kept = store.pending.split_off(&suffix(oldest.through.plus(1), 0));
            *store.pending = kept;
            self.freed = oldest.through;
            self.floor = self.floor.max(oldest.through);
        }
        Ok(())
    }

    fn is_due(&self, mark: &Mark, now: Version) -> bool {
        let Some(HistoryLimits { max_age_ms, max_bytes }) = self.policy.limits else { return true };
        let size_bytes: u64 = self.marks.iter().map(|mark| mark.size_bytes).sum();
        mark.through <= self.floor
            || size_bytes > max_bytes
            || mark.through.millis().saturating_add(max_age_ms) < now.millis()
    }

    /// Writes the history of a range as that of another replica in the same volume.
    pub(crate) fn copy_to(
        &self,
        child: ReplicaId,
        range: &KeyRange,
        store: &mut Store<'_>,
    ) -> Result<(), OpenError> {
        let mut copy = History { freed: self.floor, ..self.clone() };
        copy.marks.iter_mut().for_each(|mark| mark.size_bytes = 0);
        if self.policy.limits.is_some() {
            let old = store.before.scan(&between(store.replica, self.floor, None), false);
            let old = old.map(|item| item.map(|(key, stored)| (suffix_of(&key), stored)));
            // Also what isn't written yet may be below the floor.
            let new = store.pending.range(suffix(self.floor.plus(1), 0)..);
            let new = new.map(|(suffix, stored)| Ok((suffix.clone(), stored.clone())));
            for item in old.chain(new) {
                let (suffix, stored) = item?;
                let key = record_key(store.replica, Kind::History, &suffix);
                let mut events = decode(unseal(Kind::History, &key, &stored)?)?;
                let through = events.last().map_or(Version::ZERO, |event| event.version);
                events.retain(|event| range.contains(&event.routing_key));
                let mark = copy.marks.iter_mut().find(|mark| through <= mark.through);
                let Some(mark) = mark.filter(|_| !events.is_empty()) else { continue };
                let stored = seal(Kind::History, &suffix, &encode(&events));
                mark.size_bytes += stored.len() as u64 + RECORD_OVERHEAD_BYTES;
                store.batch.put(record_key(child, Kind::History, &suffix), stored);
            }
        }
        copy.marks.retain(|mark| mark.size_bytes > 0);
        copy.is_changed = copy.policy.revision > 0;
        copy.write(child, store.batch);
        Ok(())
    }

    /// Writes what has changed since the last time.
    pub(crate) fn write(&mut self, replica: ReplicaId, batch: &mut Batch) {
        if std::mem::take(&mut self.is_changed) {
            let key = record_key(replica, Kind::History, &[]);
            batch.put(key, seal(Kind::History, &[], &self.encode()));
        }
    }

    fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(48 + self.marks.len() * 16);
        out.u8(FORMAT);
        self.policy.encode(&mut out);
        out.u64(self.floor.0);
        out.u64(self.freed.0);
        out.varint(self.marks.len() as u64);
        let mut last = 0;
        for mark in &self.marks {
            out.varint(mark.first.0.wrapping_sub(last));
            out.varint(mark.through.0.wrapping_sub(mark.first.0));
            out.varint(mark.size_bytes);
            last = mark.through.0;
        }
        out.finish()
    }

    fn decode(content: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(content);
        input.version("change history", FORMAT)?;
        let policy = HistoryPolicy::decode(&mut input)?;
        let (floor, freed) = (Version(input.u64()?), Version(input.u64()?));
        let mut marks = VecDeque::new();
        let mut last = 0u64;
        for _ in 0..input.count(3)? {
            let first = last.wrapping_add(input.varint()?);
            last = first.wrapping_add(input.varint()?);
            let size_bytes = input.varint()?;
            marks.push_back(Mark { first: Version(first), through: Version(last), size_bytes });
        }
        input.end()?;
        Ok(History { policy, floor, freed, marks, is_changed: false })
    }
}

/// The changes after a version, a record at a time.
pub(crate) fn after<'a>(
    snapshot: &'a dyn Snapshot,
    replica: ReplicaId,
    version: Version,
) -> impl Iterator<Item = Result<Vec<ChangeEvent>, OpenError>> + 'a {
    snapshot.scan(&between(replica, version, None), false).map(|item| {
        let (key, stored) = item?;
        Ok(decode(unseal(Kind::History, &key, &stored)?)?)
    })
}

fn suffix(version: Version, part: u32) -> Bytes {
    Bytes::from([&version.0.to_be_bytes()[..], &part.to_be_bytes()[..]].concat())
}

/// The records whose last change is after `low` and not after `high`.
fn between(replica: ReplicaId, low: Version, high: Option<Version>) -> KeyRange {
    let from = |version: Version| record_key(replica, Kind::History, &suffix(version.plus(1), 0));
    let end = high.map_or_else(|| kind_range(replica, Kind::History).end, from);
    KeyRange { start: from(low), end }
}

/// Changes that go together into a record.
fn chunks(events: &[ChangeEvent]) -> impl Iterator<Item = &[ChangeEvent]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut size_bytes = 0;
        let fits = |event: &&ChangeEvent| {
            let is_first = size_bytes == 0;
            let value = event.record.as_ref().map_or(0, |record| record.value.len());
            let content = event.routing_key.len() + value + event.elements.size_bytes();
            size_bytes += content + CHANGE_OVERHEAD_BYTES;
            is_first || size_bytes <= RECORD_BYTES
        };
        let count = rest.iter().take_while(fits).count();
        let (chunk, left) = rest.split_at(count);
        rest = left;
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn encode(events: &[ChangeEvent]) -> Bytes {
    let mut out = Writer::with_capacity(256);
    out.u8(CHANGES_FORMAT);
    out.varint(events.len() as u64);
    let mut last = 0;
    for event in events {
        out.varint(event.version.0.wrapping_sub(last));
        last = event.version.0;
        out.bytes(&event.routing_key);
        match &event.record {
            Some(record) => {
                debug_assert_eq!(record.version, event.version, "a change makes its record");
                out.u8(SET + record.kind as u8);
                out.varint(record.expires_at_ms);
                out.bytes(&record.value);
                if record.kind != Type::String {
                    encode_elements(&event.elements, &mut out);
                }
            }
            None => out.u8(REMOVED),
        }
    }
    out.finish()
}

fn encode_elements(elements: &ElementChanges, out: &mut Writer) {
    out.varint(elements.count);
    out.u8(u8::from(elements.has_more));
    encode_list(&elements.names, out);
}

fn decode_elements(input: &mut Reader) -> Result<ElementChanges, DecodeError> {
    let count = input.varint()?;
    Ok(ElementChanges { count, has_more: flag(input)?, names: decode_list(input)? })
}

fn decode(content: Bytes) -> Result<Vec<ChangeEvent>, DecodeError> {
    let mut input = Reader::new(content);
    input.version("change history", CHANGES_FORMAT)?;
    let count = input.count(3)?;
    let mut events = Vec::with_capacity(count);
    let mut last = 0u64;
    for _ in 0..count {
        last = last.wrapping_add(input.varint()?);
        let (version, routing_key) = (Version(last), input.bytes()?);
        let mut elements = ElementChanges::default();
        let record = match input.u8()? {
            REMOVED => None,
            code => {
                let kind = code.checked_sub(SET).and_then(Type::from_code);
                let kind = kind.ok_or(DecodeError::unknown_tag("change", code))?;
                let (expires_at_ms, value) = (input.varint()?, input.bytes()?);
                if kind != Type::String {
                    elements = decode_elements(&mut input)?;
                }
                Some(Record {
                    version,
                    expires_at_ms,
                    elements: ElementTimes::default(),
                    kind,
                    value,
                })
            }
        };
        events.push(ChangeEvent { version, routing_key, record, elements });
    }
    input.end()?;
    Ok(events)
}
