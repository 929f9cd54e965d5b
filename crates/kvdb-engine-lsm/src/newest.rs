//! The newest change of each key in the memtable, found without a search.
//!
//! The memtable is a skip list of keys behind pointers: a search in one of 100,000 keys waits for
//! memory some twenty times, and most of what is read was written lately. So each change is noted here,
//! too. A reader whose number is above the noted one has its answer; any other asks the tree. What
//! isn't noted may be in the tree all the same.
//!
//! Notes are never wrong, whatever becomes of the memtable: each change of a key goes over its note.
//! They are dropped when the memtable is sealed, to give back the memory.

use bytes::Bytes;
use parking_lot::RwLock;
use rustc_hash::FxBuildHasher;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher as _;

/// Power of two. A part that grows is locked until all of it has moved.
const PARTS: usize = 16;

/// What a note takes up, roughly; key and value are those of the memtable.
const NOTE_BYTES: u64 = 96;

/// Notes of one volume.
#[derive(Default)]
pub(crate) struct Newest {
    /// Within a part by a hash that nobody can foresee: clients choose the keys.
    parts: [RwLock<HashMap<Bytes, Change>>; PARTS],
}

struct Change {
    sequence: u64,
    /// `None` if the key was removed.
    value: Option<Bytes>,
}

impl Newest {
    fn part(&self, key: &[u8]) -> &RwLock<HashMap<Bytes, Change>> {
        let hash = FxBuildHasher.hash_one(key);
        &self.parts[hash as usize % PARTS]
    }

    /// Notes a change; by the holder of the volume's writer lock only, in the order of their numbers.
    /// Returns how many bytes more are in use.
    pub(crate) fn note(&self, key: &Bytes, value: Option<&Bytes>, sequence: u64) -> u64 {
        let change = Change { sequence, value: value.cloned() };
        match self.part(key).write().entry(key.clone()) {
            Entry::Occupied(mut known) => {
                known.insert(change);
                0
            }
            Entry::Vacant(free) => {
                free.insert(change);
                NOTE_BYTES
            }
        }
    }

    /// The value of `key` for a reader that sees numbers below `at`, or that there is none; or `None`
    /// if that isn't known here.
    pub(crate) fn get(&self, key: &[u8], at: u64) -> Option<Option<Bytes>> {
        let part = self.part(key).read();
        part.get(key).filter(|change| change.sequence < at).map(|change| change.value.clone())
    }

    /// Drops all notes.
    pub(crate) fn forget(&self) {
        for part in &self.parts {
            // Freed when nobody waits for it.
            let notes = std::mem::take(&mut *part.write());
            drop(notes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_told_the_newest_or_nothing() {
        let newest = Newest::default();
        let (key, value) = (Bytes::from("k"), Bytes::from("v"));
        assert_eq!(newest.get(&key, u64::MAX), None);
        assert_eq!(newest.note(&key, Some(&value), 5), NOTE_BYTES);
        assert_eq!(newest.get(&key, 5), None, "what it sees was before");
        assert_eq!(newest.get(&key, 6), Some(Some(value)));
        assert_eq!(newest.note(&key, None, 7), 0);
        assert_eq!(newest.get(&key, 7), None);
        assert_eq!(newest.get(&key, 8), Some(None), "it was removed");
    }

    #[test]
    fn what_is_forgotten_is_not_known() {
        let newest = Newest::default();
        for number in 0..100 {
            newest.note(&Bytes::from(format!("{number}")), None, number);
        }
        newest.forget();
        assert!((0..100).all(|number| newest.get(number.to_string().as_bytes(), 1000).is_none()));
    }
}
