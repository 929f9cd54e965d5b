//! The one view through which commands read and change what a shard holds.
//!
//! A [`Tx`] shows one command the keys that its operation names, as of one version: what was changed
//! before ([`Changes`]) over the volume as it was.

use crate::apply::ApplyError;
use crate::changes::{Change, Changes, Direction, incarnations_in};
use crate::collection::{Deadlines, Elements, Header, decode_element, encode_element};
use crate::command::{self, CHANGED_MOST, Done, Fault, wrong};
use crate::layout::{data_key, element_key, element_prefix_len, element_range};
use crate::recent::ElementChanges;
use crate::record::{ElementTimes, Record, Type};
use crate::zset;
use bytes::Bytes;
use kvdb_engine::Snapshot;
use kvdb_model::planted::{Bug, has};
use kvdb_model::wrong_value::{TOO_MANY_ELEMENTS, WRONG_TYPE};
use kvdb_model::{Condition, Operation, Previous, Version, WriteResult};
use std::collections::BTreeMap;
use std::ops::Bound;

/// A collection that a command works on. What was changed in it counts once it is stored
/// ([`Tx::store`]).
#[derive(Clone, Debug)]
pub struct Collection {
    pub(crate) kind: Type,
    pub(crate) expires_at_ms: u64,
    pub(crate) elements: Elements,
    pub(crate) deadlines: Deadlines,
    /// Of the elements with records of their own some are over.
    pub(crate) has_due: bool,
    /// It goes on from what the key holds, rather than taking its place: who is told which elements have changed knows
    /// all of it then.
    pub(crate) goes_on: bool,
}

impl Collection {
    /// One without elements, and without an end to its life.
    pub(crate) fn new(kind: Type) -> Self {
        Collection {
            kind,
            expires_at_ms: 0,
            elements: Elements::Inline(BTreeMap::new()),
            deadlines: Deadlines::default(),
            has_due: false,
            goes_on: false,
        }
    }

    /// One without elements in place of it, that lives as long.
    pub(crate) fn emptied(&self) -> Self {
        Collection { expires_at_ms: self.expires_at_ms, ..Self::new(self.kind) }
    }

    /// Whether its elements have records of their own.
    pub(crate) fn is_promoted(&self) -> bool {
        matches!(self.elements, Elements::Promoted { .. })
    }

    /// How many elements it has; those that are over and weren't freed yet are counted too, see
    /// [`Tx::count`].
    pub fn count(&self) -> u64 {
        self.elements.count()
    }
}

/// What one command sees and changes: the keys of its operation, by their place in it (0 is the
/// operation's own), as of its version.
pub struct Tx<'a> {
    pub(crate) before: &'a dyn Snapshot,
    pub(crate) changes: &'a mut Changes,
    operation: &'a Operation,
    own: Bytes,
    version: Version,
    /// What the own key holds, once it was looked at.
    current: Option<Option<Record>>,
    changed: bool,
    /// Which elements have changed of collections that aren't stored yet, by the place of their key.
    touched: Vec<(usize, ElementChanges)>,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(
        before: &'a dyn Snapshot,
        changes: &'a mut Changes,
        operation: &'a Operation,
        version: Version,
    ) -> Self {
        let own = data_key(&operation.key);
        let (current, changed, touched) = (None, false, vec![]);
        Tx { before, changes, operation, own, version, current, changed, touched }
    }

    /// Carries the operation out.
    ///
    /// # Errors
    /// [`Fault`]: what was changed so far is to be taken back.
    pub(crate) fn carry_out(mut self) -> Result<WriteResult, Fault> {
        let body = &self.operation.body;
        let Some(row) = command::find(body) else {
            let (id, format) = (body.id, body.format);
            return Err(Fault::Stop(ApplyError::UnknownCommand { id, format }));
        };
        row.check_keys(self.operation)?;
        let previous = self.previous()?;
        // Whoever asks for a value is told that there is none to have, also where a condition fails.
        if self.operation.return_previous && previous.is_none() && self.get(0)?.is_some() {
            return Err(wrong(WRONG_TYPE));
        }
        if let Some(condition) = &self.operation.condition
            && !holds(condition, self.get(0)?.as_ref())
        {
            return Ok(self.unapplied()?);
        }
        let Done { applied, reply } = (row.apply)(&body.args, &mut self)?;
        let version = match self.changed {
            true => self.version,
            // What is there is only looked at where it matters.
            false => self.get(0)?.map_or(Version::ZERO, |record| record.version),
        };
        Ok(WriteResult { applied, version, previous, reply, ..WriteResult::default() })
    }

    /// The answer of the operation, where it changes nothing.
    pub(crate) fn unapplied(mut self) -> Result<WriteResult, ApplyError> {
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

    /// How long a key is.
    pub(crate) fn key_bytes(&self, place: usize) -> usize {
        self.routing_key(place).len()
    }

    pub(crate) fn routing_key(&self, place: usize) -> &'a Bytes {
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
        let elements = ElementTimes::default();
        let kind = Type::String;
        let record = Record { version: self.version, expires_at_ms, elements, kind, value };
        self.put(place, record, ElementChanges::default())
    }

    /// A record under a key, with the command's version, unless it has expired already.
    fn put(
        &mut self,
        place: usize,
        record: Record,
        elements: ElementChanges,
    ) -> Result<(), ApplyError> {
        let record = Record { version: self.version, ..record };
        if record.is_expired(self.version) {
            return self.remove(place);
        }
        self.change(place, Change::Set(record), elements)
    }

    /// Notes that an element was set or removed, for those who are told of the change.
    pub(crate) fn touch(&mut self, place: usize, name: &[u8]) {
        match self.touched.iter_mut().find(|(of, _)| *of == place) {
            Some((_, elements)) => elements.add(name),
            None => {
                let mut elements = ElementChanges::default();
                elements.add(name);
                self.touched.push((place, elements));
            }
        }
    }

    fn take_touched(&mut self, place: usize) -> ElementChanges {
        match self.touched.iter().position(|(of, _)| *of == place) {
            Some(found) => self.touched.swap_remove(found).1,
            None => ElementChanges::default(),
        }
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
        let count = elements_in(&record)?;
        let elements = ElementChanges { count, ..ElementChanges::default() };
        self.put(place, Record { expires_at_ms, ..record }, elements)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Tx::set`].
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn remove(&mut self, place: usize) -> Result<(), ApplyError> {
        self.take_touched(place);
        self.change(place, Change::Remove, ElementChanges::default())
    }

    fn change(
        &mut self,
        place: usize,
        change: Change,
        elements: ElementChanges,
    ) -> Result<(), ApplyError> {
        self.changed = true;
        self.current = None;
        let key = self.data_key(place);
        self.changes.change_elements(self.before, key, self.version, change, elements)
    }

    /// Copies what a key holds, and when it expires, to another one.
    ///
    /// # Errors
    /// If it has too many elements, or can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn copy(&mut self, from: usize, record: Record, to: usize) -> Result<(), Fault> {
        let (count, has_more) = (elements_in(&record)?, record.kind != Type::String);
        let elements = ElementChanges { count, has_more, ..ElementChanges::default() };
        if incarnations_in(Some(&record))?[0] == 0 {
            return Ok(self.put(to, record, elements)?);
        }
        let mut header = Header::decode(&record.value).map_err(ApplyError::from)?;
        if header.elements.count() > CHANGED_MOST {
            return Err(wrong(TOO_MANY_ELEMENTS));
        }
        if let Elements::Promoted { incarnation, .. } = &mut header.elements {
            *incarnation = self.copy_elements(from, *incarnation, to)?;
        }
        if header.deadlines.order != 0 {
            header.deadlines.order = self.copy_elements(from, header.deadlines.order, to)?;
        }
        Ok(self.put(to, Record { value: header.encode(), ..record }, elements)?)
    }

    /// Copies the elements of an incarnation; returns that of the copies.
    fn copy_elements(
        &mut self,
        from: usize,
        incarnation: u64,
        to: usize,
    ) -> Result<u64, ApplyError> {
        let (source, target) = (self.routing_key(from), self.routing_key(to));
        let prefix = element_prefix_len(source, incarnation);
        let mut copied = Vec::new();
        let range = element_range(source, incarnation);
        self.changes.scan_elements(self.before, &range, Direction::Ascending, |key, stored| {
            copied.push((key.slice(prefix..), stored));
            Ok(true)
        })?;
        let incarnation = self.changes.next_incarnation();
        for (place, stored) in copied {
            self.changes.set_element(element_key(target, incarnation, &place), Some(stored));
        }
        Ok(incarnation)
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
        Ok(Some(self.open(place, &record)?))
    }

    /// The same, or a new one without elements.
    ///
    /// # Errors
    /// As [`Tx::collection`].
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn collection_or_new(&mut self, place: usize, kind: Type) -> Result<Collection, Fault> {
        let new = Collection { goes_on: true, ..Collection::new(kind) };
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
        Ok(self.element_until(place, collection, element)?.map(|(payload, _)| payload))
    }

    /// Sets an element, without a deadline. Returns whether it is new.
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
        self.set_element_until(place, collection, element, payload, 0)
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
        let Some(deadline_ms) = self.deadline(place, collection, element)? else {
            return Ok(false);
        };
        // One that is over isn't there, and goes when it is freed.
        if self.is_past(deadline_ms) {
            return Ok(false);
        }
        self.forget(place, collection, element, deadline_ms);
        Ok(true)
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
        let range = (Bytes::copy_from_slice(from), Bytes::new());
        let direction = Direction::Ascending;
        self.scan_places(place, collection, range, direction, |element, payload| {
            Ok(more(element, payload))
        })
    }

    /// Elements in a range of places (an empty end is that of all), in one of two directions, while `more`
    /// says so.
    pub(crate) fn scan_places(
        &self,
        place: usize,
        collection: &Collection,
        (start, end): (Bytes, Bytes),
        direction: Direction,
        mut more: impl FnMut(Bytes, Bytes) -> Result<bool, ApplyError>,
    ) -> Result<(), ApplyError> {
        if !end.is_empty() && start >= end {
            return Ok(());
        }
        match &collection.elements {
            Elements::Inline(elements) => {
                let end = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
                let found = elements.range((Bound::Included(start), end));
                let found: &mut dyn Iterator<Item = _> = match direction {
                    Direction::Ascending => &mut { found },
                    Direction::Descending => &mut found.rev(),
                };
                for (element, payload) in found {
                    if !more(element.clone(), payload.clone())? {
                        break;
                    }
                }
                Ok(())
            }
            Elements::Promoted { incarnation, .. } => {
                let routing_key = self.routing_key(place);
                let prefix = element_prefix_len(routing_key, *incarnation);
                let mut range = element_range(routing_key, *incarnation);
                range.start = element_key(routing_key, *incarnation, &start);
                if !end.is_empty() {
                    range.end = element_key(routing_key, *incarnation, &end);
                }
                if has(Bug::DeadElementsRead) {
                    range.start = element_range(routing_key, 0).start;
                }
                self.changes.scan_elements(self.before, &range, direction, |key, stored| {
                    let element = key.slice(prefix..);
                    let (payload, deadline_ms) = decode_element(&element, &stored)?;
                    if self.is_past(deadline_ms) { Ok(true) } else { more(element, payload) }
                })
            }
        }
    }

    /// Sets or removes what is kept beside the elements of a promoted collection, and not counted.
    pub(crate) fn set_row(
        &mut self,
        place: usize,
        collection: &Collection,
        element: &[u8],
        payload: Option<Bytes>,
    ) {
        let Elements::Promoted { incarnation, .. } = &collection.elements else { return };
        let key = element_key(self.routing_key(place), *incarnation, element);
        let stored = payload.map(|payload| encode_element(element, &payload, 0));
        self.changes.set_element(key, stored);
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
        if collection.count() == 0 {
            return self.remove(place);
        }
        let mut collection = collection;
        if collection.elements.are_too_many() {
            collection = self.promote(place, collection)?;
        }
        let times = self.element_times(place, &collection)?;
        let mut changes = self.take_touched(place);
        changes.count = collection.count();
        // Elements of a list have no names.
        changes.has_more |= !collection.goes_on || collection.kind == Type::List;
        let Collection { kind, expires_at_ms, elements, deadlines, .. } = collection;
        let value = Header { elements, deadlines }.encode();
        let version = self.version;
        let record = Record { version, expires_at_ms, elements: times, kind, value };
        self.put(place, record, changes)
    }

    /// Gives each element of a collection a record of its own.
    pub(crate) fn promote(
        &mut self,
        place: usize,
        collection: Collection,
    ) -> Result<Collection, ApplyError> {
        let Elements::Inline(inline) = collection.elements else { return Ok(collection) };
        let (kind, deadlines) = (collection.kind, collection.deadlines.inline);
        let incarnation = self.changes.next_incarnation();
        let mut promoted = Collection {
            expires_at_ms: collection.expires_at_ms,
            elements: Elements::Promoted { incarnation, count: 0 },
            goes_on: collection.goes_on,
            ..Collection::new(kind)
        };
        // Elements that move have not changed.
        let touched = std::mem::take(&mut self.touched);
        match kind {
            Type::String | Type::Hash | Type::Set => {
                for (element, payload) in &inline {
                    let until = deadlines.get(element).copied().unwrap_or(0);
                    let (element, payload) = (element.clone(), payload.clone());
                    self.set_element_until(place, &mut promoted, element, payload, until)?;
                }
            }
            Type::List | Type::SortedSet => {
                let mut order = self.order(place, &mut promoted);
                for (element, payload) in &inline {
                    order.insert(&element[1..], payload.clone())?;
                }
                order.close()?;
            }
        }
        if kind == Type::SortedSet {
            zset::note_members(self, place, &promoted, inline.keys());
        }
        self.touched = touched;
        Ok(promoted)
    }
}

/// How many elements a record has; none if it is a string.
fn elements_in(record: &Record) -> Result<u64, ApplyError> {
    match record.kind {
        Type::String => Ok(0),
        _ => Ok(Header::decode(&record.value)?.elements.count()),
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
