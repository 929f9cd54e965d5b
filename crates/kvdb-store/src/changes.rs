//! What a run of entries has changed and not written yet, over a volume as it was before.
//!
//! Changes can be taken back, alone or together with what came before them in an atomic write: what stood
//! in the place of each is kept until the next write begins.

use crate::apply::ApplyError;
use crate::collection::{Header, encode_element};
use crate::command::READ_MAX_BYTES;
use crate::layout::{garbage_key, routing_key_of};
use crate::recent::{ChangeEvent, ElementChanges};
use crate::record::{Record, Type};
use bytes::Bytes;
use kvdb_engine::Snapshot;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{KeyRange, Version};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use std::collections::BTreeMap;

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
    pub(crate) records: FxHashMap<Bytes, Change>,
    /// Elements and garbage by engine key, as they are stored; `None` for one that is removed.
    pub(crate) elements: BTreeMap<Bytes, Option<Bytes>>,
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
    pub(crate) clock_ms: Option<u64>,
    /// A read has met a key that has expired by the clock, not yet by what is applied.
    pub(crate) expires_by_clock: bool,
    /// Bytes of elements that the present write has read, or the present command outside of one.
    read_bytes: Cell<u64>,
    /// Whether a command reads: what is done beside commands has other limits.
    is_bounded: bool,
    /// Places that scans of elements have looked at, those of removed ones too.
    #[cfg(test)]
    pub(crate) looked_at: Cell<u64>,
}

/// Which way a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first on.
    Ascending,
    /// From the last on.
    Descending,
}

/// How the changes were at some moment of the present write.
#[derive(Clone, Copy)]
pub(crate) struct Savepoint {
    undone: usize,
    events: usize,
}

impl Changes {
    /// Those of reads: none. `clock_ms` is shard time by the clock, in milliseconds since 1970.
    pub(crate) fn of_reads(clock_ms: u64) -> Self {
        Changes { clock_ms: Some(clock_ms), ..Changes::default() }
    }

    /// A write begins: what came before it is not taken back any more.
    pub(crate) fn begin(&mut self) {
        self.undone.clear();
        self.read_bytes.set(0);
    }

    /// A command begins or ends.
    pub(crate) fn bound_reads(&mut self, is_bounded: bool) {
        self.is_bounded = is_bounded;
    }

    /// Bytes of elements that the present write has read, or the present command outside of one.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    fn count_read(&self, bytes: usize) -> Result<(), ApplyError> {
        self.read_bytes.set(self.read_bytes.get() + bytes as u64);
        match self.is_bounded && self.read_bytes.get() > READ_MAX_BYTES {
            true => Err(ApplyError::TooMuchRead),
            false => Ok(()),
        }
    }

    pub(crate) fn savepoint(&self) -> Savepoint {
        Savepoint { undone: self.undone.len(), events: self.events.len() }
    }

    pub(crate) fn roll_back(&mut self, to: Savepoint) {
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
    pub(crate) fn stored(
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

    pub(crate) fn current(
        &mut self,
        before: &dyn Snapshot,
        data_key: &Bytes,
        now: Version,
    ) -> Result<Option<Record>, ApplyError> {
        let record = self.stored(before, data_key)?.filter(|record| !record.is_expired(now));
        if let (Some(found), Some(clock_ms)) = (&record, self.clock_ms) {
            let is_over = found.is_over_at(clock_ms);
            if is_over && (has(Bug::GoneByClockAlone) || has(Bug::HiddenByWallClock)) {
                return Ok(None);
            }
            self.expires_by_clock |= is_over;
        }
        Ok(record)
    }

    /// Changes a key. The elements of what it held, if they had records of their own and the new
    /// content doesn't go on with them, are marked as garbage.
    pub(crate) fn change(
        &mut self,
        before: &dyn Snapshot,
        data_key: Bytes,
        version: Version,
        change: Change,
    ) -> Result<(), ApplyError> {
        self.change_elements(before, data_key, version, change, ElementChanges::default())
    }

    /// The same, where it is told which elements of a collection have changed.
    pub(crate) fn change_elements(
        &mut self,
        before: &dyn Snapshot,
        data_key: Bytes,
        version: Version,
        change: Change,
        elements: ElementChanges,
    ) -> Result<(), ApplyError> {
        let routing_key = routing_key_of(&data_key);
        // Where no collection ever had such elements, nothing is looked up.
        if self.incarnation > 0 {
            let old = incarnations_in(self.stored(before, &data_key)?.as_ref())?;
            let new = match &change {
                Change::Set(record) => incarnations_in(Some(record))?,
                Change::Remove => [0, 0],
            };
            for old in old.into_iter().filter(|old| *old != 0 && !new.contains(old)) {
                let mark = encode_element(b"", b"", 0);
                self.set_element(garbage_key(&routing_key, old), Some(mark));
                self.made_garbage = true;
            }
        }
        let record = match &change {
            Change::Set(record) if record.kind == Type::String => Some(record.clone()),
            // What a collection's record keeps of its elements is nothing to tell.
            Change::Set(record) => Some(Record { value: Bytes::new(), ..record.clone() }),
            Change::Remove => None,
        };
        self.events.push(ChangeEvent { version, routing_key, record, elements });
        let before = self.records.insert(data_key.clone(), change);
        self.undone.push(Undone::Record(data_key, before));
        Ok(())
    }

    pub(crate) fn set_element(&mut self, key: Bytes, stored: Option<Bytes>) {
        self.size_bytes += key.len() + stored.as_ref().map_or(0, Bytes::len);
        let before = self.elements.insert(key.clone(), stored);
        self.undone.push(Undone::Element(key, before));
    }

    pub(crate) fn stored_element(
        &self,
        before: &dyn Snapshot,
        key: &Bytes,
    ) -> Result<Option<Bytes>, ApplyError> {
        let found = match self.elements.get(key) {
            Some(changed) => changed.clone(),
            None => before.get(key)?,
        };
        self.count_read(found.as_ref().map_or(0, Bytes::len))?;
        Ok(found)
    }

    /// Elements in a range of engine keys as they are stored, ascending or descending, while `more`
    /// says so.
    pub(crate) fn scan_elements(
        &self,
        before: &dyn Snapshot,
        range: &KeyRange,
        direction: Direction,
        mut more: impl FnMut(Bytes, Bytes) -> Result<bool, ApplyError>,
    ) -> Result<(), ApplyError> {
        if range.is_empty() {
            return Ok(());
        }
        let is_reverse = direction == Direction::Descending;
        let mut stored = before.scan(range, is_reverse).peekable();
        let changed = self.elements.range(range.start.clone()..range.end.clone());
        let changed: &mut dyn Iterator<Item = _> = match direction {
            Direction::Ascending => &mut { changed },
            Direction::Descending => &mut changed.rev(),
        };
        let mut changed = changed.peekable();
        loop {
            #[cfg(test)]
            self.looked_at.set(self.looked_at.get() + 1);
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
                (Some(key), Some((other, _)))
                    if key != **other && (key < **other) != is_reverse =>
                {
                    (key, None)
                }
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
            if let Some(value) = value {
                self.count_read(key.len() + value.len())?;
                if !more(key, value)? {
                    return Ok(());
                }
            }
        }
    }

    pub(crate) fn next_incarnation(&mut self) -> u64 {
        if has(Bug::IncarnationReused) && self.incarnation > 0 {
            return self.incarnation;
        }
        self.incarnation += 1;
        self.incarnation
    }
}

/// The lives of the elements and of the deadlines that a record's collection has; 0 for none.
pub(crate) fn incarnations_in(record: Option<&Record>) -> Result<[u64; 2], ApplyError> {
    match record {
        Some(record) if record.kind != Type::String => Ok(Header::incarnations_of(&record.value)?),
        _ => Ok([0, 0]),
    }
}

/// Whether a collection's elements have records of their own.
pub(crate) fn is_promoted(record: &Record) -> Result<bool, ApplyError> {
    Ok(incarnations_in(Some(record))?[0] != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::data_key;
    use crate::overlay::Nothing;
    use crate::overlay::tests::record;
    use kvdb_engine::Batch;
    use kvdb_model::VolumeId;

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
        changes.scan_elements(&*snapshot, &range, Direction::Ascending, more).unwrap();
        assert_eq!(seen, "a=1 b=old e=2 f=3 ");
        let mut seen = String::new();
        let more = |key: Bytes, _| {
            seen += &key.escape_ascii().to_string();
            Ok(seen.len() < 3)
        };
        changes.scan_elements(&*snapshot, &range, Direction::Descending, more).unwrap();
        assert_eq!(seen, "feb");
    }
}
