//! Elements that expire by themselves, whatever their collection is.
//!
//! A deadline is absolute, and the version of what is applied is the only clock: an element whose deadline
//! is at or below it isn't there for any command, also while its record is. Counts change by replicated
//! commands alone.
//!
//! Where elements lie in the key's record, so do their deadlines, and those that are over go with the next
//! change. Where they have records of their own, each has its deadline in it. A second row, under an
//! incarnation of its own, stands in the order of deadlines:
//!
//! ```text
//! 'e' routing key, incarnation of the order, deadline (u64 BE), place      nothing
//! ```
//!
//! So those that are over are found without a look at the others: to be counted, and to be freed, a bounded
//! number in an entry. The key's record says when the first of them is due, and when the last element of
//! all is: then the key isn't there any more (`Record::is_expired`). Both are exact whenever a collection
//! is stored.

use crate::apply::ApplyError;
use crate::changes::Direction;
use crate::collection::{Elements, Header, decode_element, encode_element};
use crate::layout::{element_key, element_prefix_len, element_range};
use crate::record::{ElementTimes, Record, Type};
use crate::tx::{Collection, Tx};
use crate::unordered::name_in;
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::KeyRange;

/// Most elements that one entry frees. A part of the state machine: fixed.
pub const FREED_MOST: u64 = 2000;
/// Bytes of a deadline at the beginning of a row.
const DEADLINE_BYTES: usize = 8;

/// The row of an element in the order of deadlines.
fn row_of(deadline_ms: u64, element: &[u8]) -> Bytes {
    let mut row = BytesMut::with_capacity(DEADLINE_BYTES + element.len());
    row.put_u64(deadline_ms);
    row.put_slice(element);
    row.freeze()
}

fn deadline_in(row: &[u8]) -> u64 {
    row.first_chunk().map_or(0, |deadline| u64::from_be_bytes(*deadline))
}

impl Tx<'_> {
    /// The collection in a record of a key.
    pub(crate) fn open(&mut self, place: usize, record: &Record) -> Result<Collection, ApplyError> {
        let Header { mut elements, mut deadlines } = Header::decode(&record.value)?;
        let now_ms = self.version().millis();
        if let Elements::Inline(inline) = &mut elements {
            deadlines.inline.retain(|element, deadline_ms| {
                let lives = *deadline_ms > now_ms;
                if !lives {
                    inline.remove(element);
                    self.touch(place, name_in(element));
                }
                lives
            });
        }
        let first_ms = record.elements.first_ms;
        let collection = Collection {
            kind: record.kind,
            expires_at_ms: record.expires_at_ms,
            elements,
            deadlines,
            has_due: first_ms != 0 && first_ms <= now_ms,
            goes_on: true,
        };
        if let Some(clock_ms) = self.changes.clock_ms.filter(|at| first_ms != 0 && first_ms <= *at)
        {
            self.changes.expires_by_clock |= self.is_due_between(place, &collection, clock_ms)?;
        }
        Ok(collection)
    }

    /// Whether an element that is there is over at a later time.
    fn is_due_between(
        &self,
        place: usize,
        collection: &Collection,
        later_ms: u64,
    ) -> Result<bool, ApplyError> {
        if matches!(collection.elements, Elements::Inline(_)) {
            return Ok(collection.deadlines.inline.values().any(|at| *at <= later_ms));
        }
        let next_ms = self.version().millis().saturating_add(1);
        let mut is_due = false;
        self.rows(place, collection, next_ms, Direction::Ascending, |row| {
            is_due = deadline_in(&row) <= later_ms;
            false
        })?;
        Ok(is_due)
    }

    /// Whether an element that is there has a deadline.
    pub(crate) fn has_deadlines(
        &self,
        place: usize,
        collection: &Collection,
    ) -> Result<bool, ApplyError> {
        self.is_due_between(place, collection, u64::MAX)
    }

    /// Whether a deadline has passed; 0 never does.
    pub(crate) fn is_past(&self, deadline_ms: u64) -> bool {
        deadline_ms != 0 && deadline_ms <= self.version().millis()
    }

    /// How many elements a collection has; those that are over don't count. It takes a look at each of
    /// these, if there are any.
    ///
    /// # Errors
    /// If they can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn count(&self, place: usize, collection: &Collection) -> Result<u64, ApplyError> {
        let mut count = collection.count();
        if collection.has_due {
            let now_ms = self.version().millis();
            self.rows(place, collection, 0, Direction::Ascending, |row| {
                let is_due = deadline_in(&row) <= now_ms;
                count -= u64::from(is_due);
                is_due
            })?;
        }
        Ok(count)
    }

    /// The payload of an element, and its deadline (0 for never).
    ///
    /// # Errors
    /// If it can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn element_until(
        &self,
        place: usize,
        collection: &Collection,
        element: &[u8],
    ) -> Result<Option<(Bytes, u64)>, ApplyError> {
        match &collection.elements {
            Elements::Inline(elements) => {
                let until = collection.deadlines.inline.get(element).copied().unwrap_or(0);
                Ok(elements.get(element).map(|payload| (payload.clone(), until)))
            }
            Elements::Promoted { incarnation, .. } => {
                let key = element_key(self.routing_key(place), *incarnation, element);
                let stored = self.changes.stored_element(self.before, &key)?;
                let found = stored.map(|stored| decode_element(element, &stored)).transpose()?;
                Ok(found.filter(|(_, deadline_ms)| !self.is_past(*deadline_ms)))
            }
        }
    }

    /// Sets an element with a deadline (0 for never), which must not have passed. Returns whether it is
    /// new.
    ///
    /// # Errors
    /// If what is there can't be read.
    ///
    /// # Panics
    /// As [`Tx::get`].
    pub fn set_element_until(
        &mut self,
        place: usize,
        collection: &mut Collection,
        element: Bytes,
        payload: Bytes,
        deadline_ms: u64,
    ) -> Result<bool, ApplyError> {
        self.touch_named(place, collection, &element);
        let before = self.deadline(place, collection, &element)?;
        let is_new = before.is_none_or(|before_ms| self.is_past(before_ms));
        if before.unwrap_or(0) != deadline_ms {
            self.move_row(place, collection, &element, before.unwrap_or(0), deadline_ms);
        }
        match &mut collection.elements {
            Elements::Inline(elements) => {
                elements.insert(element, payload);
            }
            Elements::Promoted { incarnation, count } => {
                *count += u64::from(before.is_none());
                let key = element_key(self.routing_key(place), *incarnation, &element);
                let stored = encode_element(&element, &payload, deadline_ms);
                self.changes.set_element(key, Some(stored));
            }
        }
        Ok(is_new)
    }

    /// Notes that an element has changed, if it stands under its name.
    fn touch_named(&mut self, place: usize, collection: &Collection, element: &[u8]) {
        if matches!(collection.kind, Type::Hash | Type::Set) {
            self.touch(place, name_in(element));
        }
    }

    /// The deadline of an element (0 for never) that is there or over and not freed yet.
    pub(crate) fn deadline(
        &self,
        place: usize,
        collection: &Collection,
        element: &[u8],
    ) -> Result<Option<u64>, ApplyError> {
        match &collection.elements {
            Elements::Inline(elements) => {
                let until = collection.deadlines.inline.get(element).copied().unwrap_or(0);
                Ok(elements.contains_key(element).then_some(until))
            }
            Elements::Promoted { incarnation, .. } => {
                let key = element_key(self.routing_key(place), *incarnation, element);
                match self.changes.stored_element(self.before, &key)? {
                    None => Ok(None),
                    // Where no element has one, none is looked for.
                    Some(_) if collection.deadlines.count == 0 => Ok(Some(0)),
                    Some(stored) => Ok(Some(decode_element(element, &stored)?.1)),
                }
            }
        }
    }

    /// Removes an element that has this deadline.
    pub(crate) fn forget(
        &mut self,
        place: usize,
        collection: &mut Collection,
        element: &[u8],
        deadline_ms: u64,
    ) {
        self.touch_named(place, collection, element);
        if deadline_ms != 0 {
            self.move_row(place, collection, element, deadline_ms, 0);
        }
        match &mut collection.elements {
            Elements::Inline(elements) => {
                elements.remove(element);
            }
            Elements::Promoted { incarnation, count } => {
                *count = count.saturating_sub(1);
                let key = element_key(self.routing_key(place), *incarnation, element);
                self.changes.set_element(key, None);
            }
        }
    }

    /// Changes the deadline of an element in the order of them, from one to another (0 for none).
    fn move_row(
        &mut self,
        place: usize,
        collection: &mut Collection,
        element: &[u8],
        before_ms: u64,
        after_ms: u64,
    ) {
        let deadlines = &mut collection.deadlines;
        if matches!(collection.elements, Elements::Inline(_)) {
            match after_ms {
                0 => deadlines.inline.remove(element),
                after_ms => deadlines.inline.insert(Bytes::copy_from_slice(element), after_ms),
            };
            return;
        }
        if deadlines.order == 0 {
            deadlines.order = self.changes.next_incarnation();
        }
        let routing_key = self.routing_key(place);
        let key = |row: &[u8]| element_key(routing_key, deadlines.order, row);
        if before_ms != 0 {
            deadlines.count = deadlines.count.saturating_sub(1);
            self.changes.set_element(key(&row_of(before_ms, element)), None);
        }
        if after_ms != 0 {
            deadlines.count += 1;
            let row = row_of(after_ms, element);
            self.changes.set_element(key(&row), Some(encode_element(&row, &[], 0)));
        }
    }

    /// Rows of a promoted collection in the order of deadlines, from a deadline on, while `more` says so.
    fn rows(
        &self,
        place: usize,
        collection: &Collection,
        from_ms: u64,
        direction: Direction,
        mut more: impl FnMut(Bytes) -> bool,
    ) -> Result<(), ApplyError> {
        let order = collection.deadlines.order;
        if order == 0 || matches!(collection.elements, Elements::Inline(_)) {
            return Ok(());
        }
        let routing_key = self.routing_key(place);
        let prefix = element_prefix_len(routing_key, order);
        let start = element_key(routing_key, order, &from_ms.to_be_bytes());
        let range = KeyRange { start, end: element_range(routing_key, order).end };
        self.changes
            .scan_elements(self.before, &range, direction, |key, _| Ok(more(key.slice(prefix..))))
    }

    /// When elements of a collection expire, for its record.
    pub(crate) fn element_times(
        &self,
        place: usize,
        collection: &Collection,
    ) -> Result<ElementTimes, ApplyError> {
        let deadlines = &collection.deadlines;
        if let Elements::Inline(elements) = &collection.elements {
            let all_end = deadlines.inline.len() == elements.len();
            let first_ms = deadlines.inline.values().min().copied().unwrap_or(0);
            let last_ms = deadlines.inline.values().max().copied().filter(|_| all_end);
            return Ok(ElementTimes { first_ms, last_ms: last_ms.unwrap_or(0) });
        }
        let mut times = ElementTimes::default();
        if deadlines.count == 0 {
            return Ok(times);
        }
        self.rows(place, collection, 0, Direction::Ascending, |row| {
            times.first_ms = deadline_in(&row);
            false
        })?;
        if deadlines.count == collection.count() {
            self.rows(place, collection, 0, Direction::Descending, |row| {
                times.last_ms = deadline_in(&row);
                false
            })?;
        }
        Ok(times)
    }

    /// Frees elements of the own key that are over, at most so many. Returns how many there were.
    pub(crate) fn free_due(&mut self, most: u64) -> Result<u64, ApplyError> {
        let Some(record) = self.get(0)? else { return Ok(0) };
        if !self.is_past(record.elements.first_ms) || most == 0 {
            return Ok(0);
        }
        let mut collection = self.open(0, &record)?;
        let mut due = Vec::new();
        self.rows(0, &collection, 0, Direction::Ascending, |row| {
            let is_due = self.is_past(deadline_in(&row)) && (due.len() as u64) < most;
            if is_due {
                due.push(row);
            }
            is_due
        })?;
        // Those in the key's record went when it was opened.
        let freed = (due.len() as u64).max(1);
        for row in due {
            self.forget(0, &mut collection, &row[DEADLINE_BYTES..], deadline_in(&row));
        }
        self.store(0, collection)?;
        Ok(freed)
    }
}
