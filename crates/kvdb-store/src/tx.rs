//! The one view through which commands read and change what a shard holds.
//!
//! An [`Overlay`] is what a run of entries has changed and not written yet, over the volume as it
//! was before. A [`Tx`] shows it to one command: only the keys that its operation names, as of one
//! version. What it changes can be taken back, alone or together with what came before it in an
//! atomic write.

use crate::apply::ApplyError;
use crate::collection::{Elements, decode_element, encode_element};
use crate::command::{self, Done, Effect, Fault, wrong};
use crate::history::{Pending, Store};
use crate::layout::{
    Kind, data_key, element_key, element_prefix_len, element_range, garbage_key, record_key,
    routing_key_of,
};
use crate::recent::ChangeEvent;
use crate::record::{Record, Type};
use bytes::Bytes;
use kvdb_engine::{Batch, Engine, EngineError, Item, SequenceNumber, Snapshot};
use kvdb_model::planted::{Bug, has};
use kvdb_model::wrong_value::{TOO_MANY_ELEMENTS, WRONG_TYPE};
use kvdb_model::{
    Condition, KeyRange, Operation, OperationOutcome, Previous, Refusal, ReplicaId, Version,
    VolumeId, WriteResult,
};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Most elements that one command copies. A part of the state machine: fixed.
const COPIED_MOST: u64 = 100_000;

/// What happens to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(Record),
    Remove,
}

/// A change that may be taken back: what stood in its place.
enum Undone {
    Record(Bytes, Option<Change>),
    Element(Bytes, Option<Option<Bytes>>),
}

/// What a run of entries has changed and not written yet.
#[derive(Default)]
pub(crate) struct Changes {
    /// By data key; the last change of each.
    records: FxHashMap<Bytes, Change>,
    /// Elements and garbage by engine key, as they are stored; `None` for one that is removed.
    elements: BTreeMap<Bytes, Option<Bytes>>,
    /// What stood in their places before each change since the present write began.
    undone: Vec<Undone>,
    /// All changes of keys, in order.
    pub(crate) events: Vec<ChangeEvent>,
    /// The last incarnation that was given out; 0 if there never was any.
    pub(crate) incarnation: u64,
    pub(crate) size_bytes: usize,
    /// Elements were left that nobody reads any more.
    pub(crate) made_garbage: bool,
    /// Of reads: shard time by the clock, in milliseconds since 1970.
    clock_ms: Option<u64>,
    /// A read has met a key that has expired by the clock, not yet by what is applied.
    expires_by_clock: bool,
}

/// How the changes were at some moment of the present write.
#[derive(Clone, Copy)]
pub(crate) struct Savepoint {
    undone: usize,
    events: usize,
}

impl Changes {
    fn savepoint(&self) -> Savepoint {
        Savepoint { undone: self.undone.len(), events: self.events.len() }
    }

    fn roll_back(&mut self, to: Savepoint) {
        self.events.truncate(to.events);
        for undone in self.undone.drain(to.undone..).rev() {
            match undone {
                Undone::Record(key, Some(change)) => {
                    self.records.insert(key, change);
                }
                Undone::Record(key, None) => {
                    self.records.remove(&key);
                }
                Undone::Element(key, Some(stored)) => {
                    self.elements.insert(key, stored);
                }
                Undone::Element(key, None) => {
                    self.elements.remove(&key);
                }
            }
        }
    }

    /// The record that is there, expired or not.
    fn stored(
        &self,
        before: &dyn Snapshot,
        data_key: &Bytes,
    ) -> Result<Option<Record>, ApplyError> {
        Ok(match self.records.get(data_key) {
            Some(Change::Set(record)) => Some(record.clone()),
            Some(Change::Remove) => None,
            None => match before.get(data_key)? {
                Some(stored) => Some(Record::decode(&data_key[1..], &stored)?),
                None => None,
            },
        })
    }

    fn current(
        &mut self,
        before: &dyn Snapshot,
        data_key: &Bytes,
        now: Version,
    ) -> Result<Option<Record>, ApplyError> {
        let record = self.stored(before, data_key)?.filter(|record| !record.is_expired(now));
        if let (Some(record), Some(clock_ms)) = (&record, self.clock_ms) {
            self.expires_by_clock |= record.expires_at_ms != 0 && record.expires_at_ms <= clock_ms;
        }
        Ok(record)
    }

    /// Changes a key. The elements of what it held, if they had records of their own and the new
    /// content doesn't go on with them, are marked as garbage.
    fn change(
        &mut self,
        before: &dyn Snapshot,
        data_key: Bytes,
        version: Version,
        change: Change,
    ) -> Result<(), ApplyError> {
        let routing_key = routing_key_of(&data_key);
        // Where no collection ever had such elements, nothing is looked up.
        if self.incarnation > 0 {
            let old = incarnation_in(self.stored(before, &data_key)?.as_ref())?;
            let new = match &change {
                Change::Set(record) => incarnation_in(Some(record))?,
                Change::Remove => None,
            };
            if let Some(old) = old.filter(|old| Some(*old) != new) {
                self.set_element(garbage_key(&routing_key, old), Some(encode_element(b"", b"")));
                self.made_garbage = true;
            }
        }
        let record = match &change {
            Change::Set(record) if record.kind == Type::String => Some(record.clone()),
            // What a collection's record keeps of its elements is nothing to tell.
            Change::Set(record) => Some(Record { value: Bytes::new(), ..record.clone() }),
            Change::Remove => None,
        };
        self.events.push(ChangeEvent { version, routing_key, record });
        let before = self.records.insert(data_key.clone(), change);
        self.undone.push(Undone::Record(data_key, before));
        Ok(())
    }

    fn set_element(&mut self, key: Bytes, stored: Option<Bytes>) {
        self.size_bytes += key.len() + stored.as_ref().map_or(0, Bytes::len);
        let before = self.elements.insert(key.clone(), stored);
        self.undone.push(Undone::Element(key, before));
    }

    fn stored_element(
        &self,
        before: &dyn Snapshot,
        key: &Bytes,
    ) -> Result<Option<Bytes>, EngineError> {
        match self.elements.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => before.get(key),
        }
    }

    /// Elements in a range of engine keys as they are stored, ascending, while `more` says so.
    fn scan_elements(
        &self,
        before: &dyn Snapshot,
        range: &KeyRange,
        mut more: impl FnMut(Bytes, Bytes) -> Result<bool, ApplyError>,
    ) -> Result<(), ApplyError> {
        if range.is_empty() {
            return Ok(());
        }
        let mut stored = before.scan(range, false).peekable();
        let mut changed = self.elements.range(range.start.clone()..range.end.clone()).peekable();
        loop {
            let next_stored = match stored.peek() {
                Some(Ok((key, _))) => Some(key.clone()),
                Some(Err(_)) => {
                    stored.next().transpose()?;
                    None
                }
                None => None,
            };
            let (key, value) = match (next_stored, changed.peek()) {
                (None, None) => return Ok(()),
                (Some(key), Some((changed_key, _))) if key < **changed_key => (key, None),
                (Some(key), None) => (key, None),
                (key, Some((changed_key, value))) => {
                    if key.as_ref() == Some(*changed_key) {
                        stored.next();
                    }
                    let found = ((*changed_key).clone(), Some((*value).clone()));
                    changed.next();
                    found
                }
            };
            let value = match value {
                Some(changed) => changed,
                None => stored.next().transpose()?.map(|(_, value)| value),
            };
            if let Some(value) = value
                && !more(key, value)?
            {
                return Ok(());
            }
        }
    }

    fn next_incarnation(&mut self) -> u64 {
        if has(Bug::IncarnationReused) && self.incarnation > 0 {
            return self.incarnation;
        }
        self.incarnation += 1;
        self.incarnation
    }
}

/// The life of the elements that a record's collection has, if it is one that has such.
fn incarnation_in(record: Option<&Record>) -> Result<Option<u64>, ApplyError> {
    match record {
        Some(record) if record.kind != Type::String => {
            Ok(Elements::incarnation_of(&record.value).map_err(ApplyError::Collection)?)
        }
        _ => Ok(None),
    }
}

/// Whether a collection's elements have records of their own.
pub(crate) fn is_promoted(record: &Record) -> Result<bool, ApplyError> {
    Ok(incarnation_in(Some(record))?.is_some())
}

/// A run under way: what is changed, over the volume as it was before.
pub(crate) struct Overlay {
    before: Box<dyn Snapshot>,
    pub(crate) changes: Changes,
    /// Replica records.
    pub(crate) records: Batch,
    /// History records.
    pub(crate) history: Pending,
    /// How many events the history has been told.
    pub(crate) told: usize,
}

impl Overlay {
    pub(crate) fn start(
        engine: &dyn Engine,
        volume: VolumeId,
        incarnation: u64,
    ) -> Result<Self, EngineError> {
        let mut overlay = Self::over(engine.snapshot_of_lasting(volume)?);
        overlay.changes.incarnation = incarnation;
        Ok(overlay)
    }

    fn over(before: Box<dyn Snapshot>) -> Self {
        Overlay {
            before,
            changes: Changes::default(),
            records: Batch::default(),
            history: Pending::new(),
            told: 0,
        }
    }

    pub(crate) fn history_store(&mut self, replica: ReplicaId) -> Store<'_> {
        let (before, pending) = (&*self.before, &mut self.history);
        Store { replica, before, pending, batch: &mut self.records }
    }

    /// A write begins: what came before it is not taken back any more.
    pub(crate) fn begin(&mut self) {
        self.changes.undone.clear();
    }

    pub(crate) fn savepoint(&self) -> Savepoint {
        self.changes.savepoint()
    }

    pub(crate) fn roll_back(&mut self, to: Savepoint) {
        self.changes.roll_back(to);
    }

    /// Removes a key if it has expired at a version.
    pub(crate) fn reclaim(
        &mut self,
        routing_key: &[u8],
        version: Version,
    ) -> Result<bool, ApplyError> {
        let key = data_key(routing_key);
        let stored = self.changes.stored(&*self.before, &key)?;
        let frees =
            stored.is_some_and(|record| record.is_expired(version) || has(Bug::FreedThoughWritten));
        if frees {
            self.changes.change(&*self.before, key, version, Change::Remove)?;
        }
        Ok(frees)
    }

    /// Frees the elements of a life of a key that is over, those before a place or all that are left.
    pub(crate) fn free_elements(
        &mut self,
        routing_key: &[u8],
        incarnation: u64,
        end: Option<&[u8]>,
    ) -> Result<u64, ApplyError> {
        let garbage = garbage_key(routing_key, incarnation);
        let is_over = self.changes.stored_element(&*self.before, &garbage)?.is_some();
        if !is_over {
            return Ok(0);
        }
        let mut range = element_range(routing_key, incarnation);
        if has(Bug::LiveElementsFreed) {
            range.end = element_range(routing_key, u64::MAX).end;
        }
        if let Some(end) = end {
            range.end = element_key(routing_key, incarnation, end);
        }
        let mut dead = Vec::new();
        self.changes.scan_elements(&*self.before, &range, |key, _| {
            dead.push(key);
            Ok(true)
        })?;
        let freed = dead.len() as u64;
        dead.into_iter().for_each(|key| self.changes.set_element(key, None));
        if end.is_none() {
            self.changes.set_element(garbage, None);
        }
        Ok(freed)
    }

    /// Carries an operation out at a version. What it has changed is taken back if it fails.
    ///
    /// # Errors
    /// What stops the replica.
    pub(crate) fn carry_out(
        &mut self,
        operation: &Operation,
        version: Version,
    ) -> Result<OperationOutcome, ApplyError> {
        carry_out(&*self.before, &mut self.changes, operation, version)
    }

    /// The answer of an operation that changes nothing.
    pub(crate) fn unapplied(
        &mut self,
        operation: &Operation,
        version: Version,
    ) -> Result<WriteResult, ApplyError> {
        Tx::new(&*self.before, &mut self.changes, operation, version).unapplied()
    }

    pub(crate) fn into_batch(self, replica: ReplicaId) -> Batch {
        let mut batch = self.records;
        let Changes { records, elements, .. } = self.changes;
        batch.changes.reserve(records.len() + elements.len() + self.history.len() + 2);
        for (suffix, stored) in self.history {
            batch.put(record_key(replica, Kind::History, &suffix), stored);
        }
        for (key, change) in records {
            let stored = match change {
                Change::Set(record) => Some(record.encode(&key[1..])),
                Change::Remove => None,
            };
            batch.changes.push((key, stored));
        }
        batch.changes.extend(elements);
        batch
    }
}

fn carry_out(
    before: &dyn Snapshot,
    changes: &mut Changes,
    operation: &Operation,
    version: Version,
) -> Result<OperationOutcome, ApplyError> {
    let savepoint = changes.savepoint();
    match Tx::new(before, changes, operation, version).carry_out() {
        Ok(result) => Ok(Ok(result)),
        Err(Fault::Refused(refusal)) => {
            changes.roll_back(savepoint);
            Ok(Err(refusal))
        }
        Err(Fault::Stop(error)) => Err(error),
    }
}

/// Reads as of one version, with commands that change nothing.
pub(crate) struct Reading<'a> {
    before: &'a dyn Snapshot,
    changes: Changes,
    version: Version,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(before: &'a dyn Snapshot, version: Version, clock_ms: u64) -> Self {
        let changes = Changes { clock_ms: Some(clock_ms), ..Changes::default() };
        Reading { before, changes, version }
    }

    pub(crate) fn carry_out(
        &mut self,
        operation: &Operation,
    ) -> Result<OperationOutcome, ApplyError> {
        if command::effect_of(operation) != Effect::Read {
            let problem = "may change what is stored; a read doesn't";
            return Ok(Err(Refusal::invalid("command", problem)));
        }
        carry_out(self.before, &mut self.changes, operation, self.version)
    }

    /// Whether a key that was read has expired by the clock, not yet by what is applied.
    pub(crate) fn expires_by_clock(&self) -> bool {
        self.changes.expires_by_clock
    }
}

/// A collection that a command works on. What was changed in it counts once it is stored
/// ([`Tx::store`]).
#[derive(Clone, Debug)]
pub struct Collection {
    kind: Type,
    expires_at_ms: u64,
    elements: Elements,
}

impl Collection {
    /// How many elements it has.
    pub fn count(&self) -> u64 {
        self.elements.count()
    }
}

/// What one command sees and changes: the keys of its operation, by their place in it (0 is the
/// operation's own), as of its version.
pub struct Tx<'a> {
    before: &'a dyn Snapshot,
    changes: &'a mut Changes,
    operation: &'a Operation,
    own: Bytes,
    version: Version,
    /// What the own key holds, once it was looked at.
    current: Option<Option<Record>>,
    changed: bool,
}

impl<'a> Tx<'a> {
    fn new(
        before: &'a dyn Snapshot,
        changes: &'a mut Changes,
        operation: &'a Operation,
        version: Version,
    ) -> Self {
        let own = data_key(&operation.key);
        Tx { before, changes, operation, own, version, current: None, changed: false }
    }

    fn carry_out(mut self) -> Result<WriteResult, Fault> {
        let body = &self.operation.body;
        let Some(row) = command::find(body) else {
            let (id, format) = (body.id, body.format);
            return Err(Fault::Stop(ApplyError::UnknownCommand { id, format }));
        };
        row.check_keys(self.operation)?;
        if let Some(condition) = &self.operation.condition
            && !holds(condition, self.get(0)?.as_ref())
        {
            return Ok(self.unapplied()?);
        }
        let previous = self.previous()?;
        if self.operation.return_previous && previous.is_none() && self.get(0)?.is_some() {
            return Err(wrong(WRONG_TYPE));
        }
        let Done { applied, reply } = (row.apply)(&body.args, &mut self)?;
        let version = match self.changed {
            true => self.version,
            // What is there is only looked at where it matters.
            false => self.get(0)?.map_or(Version::ZERO, |record| record.version),
        };
        Ok(WriteResult { applied, version, previous, reply, ..WriteResult::default() })
    }

    fn unapplied(mut self) -> Result<WriteResult, ApplyError> {
        let version = self.get(0)?.map_or(Version::ZERO, |record| record.version);
        Ok(WriteResult { version, previous: self.previous()?, ..WriteResult::default() })
    }

    fn previous(&mut self) -> Result<Option<Previous>, ApplyError> {
        if !self.operation.return_previous {
            return Ok(None);
        }
        let record = self.get(0)?.filter(|record| record.kind == Type::String);
        Ok(record.map(|record| Previous {
            value: record.value,
            version: record.version,
            expires_at_ms: record.expires_at_ms,
        }))
    }

    /// The version that what is changed now gets; its milliseconds are the only clock.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How many keys the operation names.
    pub fn key_count(&self) -> usize {
        1 + self.operation.others.len()
    }

    /// Whether two places name the same key.
    pub fn is_same_key(&self, one: usize, other: usize) -> bool {
        self.routing_key(one) == self.routing_key(other)
    }

    fn routing_key(&self, place: usize) -> &'a Bytes {
        match place.checked_sub(1) {
            None => &self.operation.key,
            // A row says how many keys its command has, and that was checked.
            Some(other) => &self.operation.others[other],
        }
    }

    fn data_key(&self, place: usize) -> Bytes {
        if place == 0 { self.own.clone() } else { data_key(self.routing_key(place)) }
    }

    /// What a key holds, unless it has expired.
    ///
    /// # Errors
    /// If it can't be read.
    ///
    /// # Panics
    /// If the command touches more keys than its row says.
    pub fn get(&mut self, place: usize) -> Result<Option<Record>, ApplyError> {
        if place > 0 {
            let key = self.data_key(place);
            return self.changes.current(self.before, &key, self.version);
        }
        if self.current.is_none() {
            self.current = Some(self.changes.current(self.before, &self.own, self.version)?);
        }
        Ok(self.current.clone().flatten())
    }

    /// The string that a key holds, and when it expires.
    ///
    /// # Errors
    /// If it holds another type, or can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn string(&mut self, place: usize) -> Result<Option<(Bytes, u64)>, Fault> {
        match self.get(place)? {
            None => Ok(None),
            Some(record) if record.kind == Type::String => {
                Ok(Some((record.value, record.expires_at_ms)))
            }
            Some(_) => Err(wrong(WRONG_TYPE)),
        }
    }

    /// Stores a string under a key, unless that has expired already: then there is none.
    ///
    /// # Errors
    /// If what is there can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn set(
        &mut self,
        place: usize,
        value: Bytes,
        expires_at_ms: u64,
    ) -> Result<(), ApplyError> {
        self.put(place, Type::String, value, expires_at_ms)
    }

    fn put(
        &mut self,
        place: usize,
        kind: Type,
        value: Bytes,
        expires_at_ms: u64,
    ) -> Result<(), ApplyError> {
        let record = Record { version: self.version, expires_at_ms, kind, value };
        let gone = record.is_expired(self.version);
        self.change(place, if gone { Change::Remove } else { Change::Set(record) })
    }

    /// Leaves what a key holds as it is, but for when it expires.
    ///
    /// # Errors
    /// As [`Tx::set`].
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn set_expiry(
        &mut self,
        place: usize,
        record: Record,
        expires_at_ms: u64,
    ) -> Result<(), ApplyError> {
        self.put(place, record.kind, record.value, expires_at_ms)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Tx::set`].
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn remove(&mut self, place: usize) -> Result<(), ApplyError> {
        self.change(place, Change::Remove)
    }

    fn change(&mut self, place: usize, change: Change) -> Result<(), ApplyError> {
        self.changed = true;
        self.current = None;
        let key = self.data_key(place);
        self.changes.change(self.before, key, self.version, change)
    }

    /// Copies what a key holds, and when it expires, to another one.
    ///
    /// # Errors
    /// If it has too many elements, or can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn copy(&mut self, from: usize, record: Record, to: usize) -> Result<(), Fault> {
        let incarnation = incarnation_in(Some(&record))?;
        let Record { kind, expires_at_ms, value, .. } = record;
        let Some(incarnation) = incarnation else {
            return Ok(self.put(to, kind, value, expires_at_ms)?);
        };
        let elements = Elements::decode(&value).map_err(ApplyError::Collection)?;
        if elements.count() > COPIED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        let (source, target) = (self.routing_key(from), self.routing_key(to));
        let prefix = element_prefix_len(source, incarnation);
        let mut copied = Vec::new();
        let range = element_range(source, incarnation);
        self.changes.scan_elements(self.before, &range, |key, stored| {
            copied.push((key.slice(prefix..), stored));
            Ok(true)
        })?;
        let incarnation = self.changes.next_incarnation();
        for (place, stored) in copied {
            self.changes.set_element(element_key(target, incarnation, &place), Some(stored));
        }
        let elements = Elements::Promoted { incarnation, count: elements.count() };
        Ok(self.put(to, kind, elements.encode(), expires_at_ms)?)
    }

    /// The collection that a key holds.
    ///
    /// # Errors
    /// If it holds another type, or can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn collection(&mut self, place: usize, kind: Type) -> Result<Option<Collection>, Fault> {
        let Some(record) = self.get(place)? else { return Ok(None) };
        if record.kind != kind {
            return Err(wrong(WRONG_TYPE));
        }
        let elements = Elements::decode(&record.value).map_err(ApplyError::Collection)?;
        Ok(Some(Collection { kind, expires_at_ms: record.expires_at_ms, elements }))
    }

    /// The same, or a new one without elements.
    ///
    /// # Errors
    /// As [`Tx::collection`].
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn collection_or_new(&mut self, place: usize, kind: Type) -> Result<Collection, Fault> {
        let new =
            Collection { kind, expires_at_ms: 0, elements: Elements::Inline(BTreeMap::new()) };
        Ok(self.collection(place, kind)?.unwrap_or(new))
    }

    /// The payload of an element.
    ///
    /// # Errors
    /// If it can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn element(
        &self,
        place: usize,
        collection: &Collection,
        element: &[u8],
    ) -> Result<Option<Bytes>, ApplyError> {
        match &collection.elements {
            Elements::Inline(elements) => Ok(elements.get(element).cloned()),
            Elements::Promoted { incarnation, .. } => {
                let key = element_key(self.routing_key(place), *incarnation, element);
                let stored = self.changes.stored_element(self.before, &key)?;
                Ok(stored.map(|stored| decode_element(element, &stored)).transpose()?)
            }
        }
    }

    /// Sets an element. Returns whether it is new.
    ///
    /// # Errors
    /// If what is there can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn set_element(
        &mut self,
        place: usize,
        collection: &mut Collection,
        element: Bytes,
        payload: Bytes,
    ) -> Result<bool, ApplyError> {
        match &mut collection.elements {
            Elements::Inline(elements) => Ok(elements.insert(element, payload).is_none()),
            Elements::Promoted { incarnation, count } => {
                let key = element_key(self.routing_key(place), *incarnation, &element);
                let is_new = self.changes.stored_element(self.before, &key)?.is_none();
                *count += u64::from(is_new);
                self.changes.set_element(key, Some(encode_element(&element, &payload)));
                Ok(is_new)
            }
        }
    }

    /// Removes an element. Returns whether it was there.
    ///
    /// # Errors
    /// If what is there can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn remove_element(
        &mut self,
        place: usize,
        collection: &mut Collection,
        element: &[u8],
    ) -> Result<bool, ApplyError> {
        match &mut collection.elements {
            Elements::Inline(elements) => Ok(elements.remove(element).is_some()),
            Elements::Promoted { incarnation, count } => {
                let key = element_key(self.routing_key(place), *incarnation, element);
                if self.changes.stored_element(self.before, &key)?.is_none() {
                    return Ok(false);
                }
                *count = count.saturating_sub(1);
                self.changes.set_element(key, None);
                Ok(true)
            }
        }
    }

    /// Elements with their payloads, ascending, from a place on (inclusive), while `more` says so.
    ///
    /// # Errors
    /// If they can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn scan(
        &self,
        place: usize,
        collection: &Collection,
        from: &[u8],
        mut more: impl FnMut(Bytes, Bytes) -> bool,
    ) -> Result<(), ApplyError> {
        match &collection.elements {
            Elements::Inline(elements) => {
                let from = Bytes::copy_from_slice(from);
                for (element, payload) in elements.range(from..) {
                    if !more(element.clone(), payload.clone()) {
                        break;
                    }
                }
                Ok(())
            }
            Elements::Promoted { incarnation, .. } => {
                let routing_key = self.routing_key(place);
                let prefix = element_prefix_len(routing_key, *incarnation);
                let mut range = element_range(routing_key, *incarnation);
                range.start = element_key(routing_key, *incarnation, from);
                if has(Bug::DeadElementsRead) {
                    range.start = element_range(routing_key, 0).start;
                }
                self.changes.scan_elements(self.before, &range, |key, stored| {
                    let element = key.slice(prefix..);
                    let payload = decode_element(&element, &stored)?;
                    Ok(more(element, payload))
                })
            }
        }
    }

    /// Stores a collection that was changed: its elements get records of their own if they have
    /// become too many, and one without elements isn't there any more.
    ///
    /// # Errors
    /// If what is there can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn store(&mut self, place: usize, collection: Collection) -> Result<(), ApplyError> {
        let Collection { kind, expires_at_ms, mut elements } = collection;
        if elements.count() == 0 {
            return self.remove(place);
        }
        if elements.are_too_many()
            && let Elements::Inline(inline) = &elements
        {
            let (incarnation, count) = (self.changes.next_incarnation(), elements.count());
            let routing_key = self.routing_key(place);
            for (element, payload) in inline {
                let key = element_key(routing_key, incarnation, element);
                self.changes.set_element(key, Some(encode_element(element, payload)));
            }
            elements = Elements::Promoted { incarnation, count };
        }
        self.put(place, kind, elements.encode(), expires_at_ms)
    }
}

fn holds(condition: &Condition, current: Option<&Record>) -> bool {
    match condition {
        _ if has(Bug::ConditionIgnored) => true,
        Condition::IfAbsent => current.is_none(),
        Condition::IfPresent => current.is_some(),
        Condition::IfVersion(version) => current.is_some_and(|record| record.version == *version),
        Condition::IfValue(value) => {
            current.and_then(Record::string).is_some_and(|current| current == value)
        }
    }
}

/// A volume without anything.
struct Nothing;

impl Snapshot for Nothing {
    fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(None)
    }

    fn scan(
        &self,
        _range: &KeyRange,
        _reverse: bool,
    ) -> Box<dyn Iterator<Item = Item> + Send + '_> {
        Box::new(std::iter::empty())
    }

    fn sequence(&self) -> SequenceNumber {
        SequenceNumber(0)
    }
}

/// What an operation comes to where there are no keys at all.
///
/// # Errors
/// [`Refusal`], as any shard would answer.
pub fn on_nothing(operation: &Operation) -> OperationOutcome {
    let outcome = Overlay::over(Box::new(Nothing)).carry_out(operation, Version::ZERO.plus(1));
    outcome.unwrap_or_else(|error| Err(Refusal::invalid("command", error.to_string())))
}

/// A command's trial run on keys in memory, for the tests of families.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::command::Command;

    /// The time of a trial run, in milliseconds since 1970.
    pub(crate) const NOW_MS: u64 = 1_000;

    pub(crate) fn record(value: &[u8], expires_at_ms: u64) -> Record {
        let value = Bytes::copy_from_slice(value);
        Record { version: Version(1), expires_at_ms, kind: Type::String, value }
    }

    /// Keys, and what commands make of them.
    pub(crate) struct Trial(Overlay);

    impl Trial {
        pub(crate) fn new(there: &[(&'static str, Record)]) -> Self {
            let mut overlay = Overlay::over(Box::new(Nothing));
            for (key, record) in there {
                let change = Change::Set(record.clone());
                overlay.changes.records.insert(data_key(key.as_bytes()), change);
            }
            Trial(overlay)
        }

        pub(crate) fn run(
            &mut self,
            command: &impl Command,
            keys: &[&'static str],
        ) -> OperationOutcome {
            let others = keys[1..].iter().map(|key| Bytes::from(*key)).collect();
            let operation = Operation { others, ..command.on(keys[0].into()) };
            self.carry_out(&operation)
        }

        pub(crate) fn carry_out(&mut self, operation: &Operation) -> OperationOutcome {
            self.0.begin();
            let version = Version::from_millis(NOW_MS);
            self.0.carry_out(operation, version).expect("nothing is damaged")
        }

        /// Frees what is garbage of a key, so many elements at a time; returns how many there were.
        pub(crate) fn free(&mut self, key: &str, incarnation: u64) -> u64 {
            self.0.free_elements(key.as_bytes(), incarnation, None).expect("it is sound")
        }

        /// Whether a key's elements have records of their own, and of which life.
        pub(crate) fn incarnation(&mut self, key: &str) -> Option<u64> {
            incarnation_in(self.record(key).as_ref()).expect("it is sound")
        }

        /// How many elements and garbage records are kept.
        pub(crate) fn elements(&self) -> usize {
            self.0.changes.elements.values().flatten().count()
        }

        fn record(&mut self, key: &str) -> Option<Record> {
            let now = Version::from_millis(NOW_MS);
            let found = self.0.changes.current(&Nothing, &data_key(key.as_bytes()), now);
            found.expect("it is sound")
        }

        /// Value and expiry of a key.
        pub(crate) fn value(&mut self, key: &str) -> Option<(Vec<u8>, u64)> {
            self.record(key).map(|record| (record.value.to_vec(), record.expires_at_ms))
        }

        /// How many changes were made.
        pub(crate) fn changes(&self) -> usize {
            self.0.changes.events.len()
        }
    }

    #[test]
    fn what_a_failed_command_has_changed_is_taken_back_and_what_came_before_stays() {
        let mut changes = Changes::default();
        let (a, b) = (data_key(b"a"), data_key(b"b"));
        let set = |value: &[u8]| Change::Set(record(value, 0));
        changes.change(&Nothing, a.clone(), Version(1), set(b"1")).unwrap();
        changes.undone.clear();
        changes.change(&Nothing, b.clone(), Version(2), set(b"2")).unwrap();
        let savepoint = changes.savepoint();
        changes.change(&Nothing, a.clone(), Version(3), Change::Remove).unwrap();
        changes.change(&Nothing, b.clone(), Version(3), set(b"3")).unwrap();
        changes.change(&Nothing, b.clone(), Version(3), Change::Remove).unwrap();
        changes.set_element("e".into(), Some("1".into()));
        changes.roll_back(savepoint);
        let values = [&a, &b].map(|key| changes.stored(&Nothing, key).unwrap().map(|r| r.value));
        assert_eq!(values, [Some("1".into()), Some("2".into())]);
        assert_eq!((changes.events.len(), changes.elements.len()), (2, 0));
        changes.roll_back(Savepoint { undone: 0, events: 1 });
        assert_eq!(changes.stored(&Nothing, &b).unwrap(), None);
    }

    #[test]
    fn what_is_changed_comes_over_what_is_stored_in_a_scan() {
        use kvdb_engine::{Engine, MemoryEngine};
        let engine = MemoryEngine::new();
        engine.create_volume(VolumeId(1)).unwrap();
        let mut batch = Batch::default();
        for key in ["b", "d", "f"] {
            batch.put(Bytes::from(key), Bytes::from("old"));
        }
        engine.write(VolumeId(1), batch).unwrap();
        let mut changes = Changes::default();
        for (key, value) in
            [("a", Some("1")), ("d", None), ("e", Some("2")), ("f", Some("3")), ("g", None)]
        {
            changes.set_element(key.into(), value.map(Bytes::from));
        }
        let snapshot = engine.snapshot(VolumeId(1)).unwrap();
        let mut seen = String::new();
        let range = KeyRange::new("a", "z");
        let more = |key: Bytes, value: Bytes| {
            seen += &format!("{}={} ", key.escape_ascii(), value.escape_ascii());
            Ok(true)
        };
        changes.scan_elements(&*snapshot, &range, more).unwrap();
        assert_eq!(seen, "a=1 b=old e=2 f=3 ");
    }
}
