//! Records that are soon replaced or removed, kept beside the tree.
//!
//! In the memtable each of their changes would stay until it is flushed, and the removal until it
//! meets what it removes in some compaction. Here only the last value of each is kept, and what
//! comes and goes between two flushes leaves nothing.
//!
//! They go into the memtable before it is frozen, and before a snapshot is taken that is to show
//! them: so a flush takes whole batches, as ever.

use bytes::Bytes;
use kvdb_engine::ShortLived;
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;

/// What an entry takes up beside key and value, roughly.
const OVERHEAD_BYTES: usize = 96;

/// Changes that the tree doesn't have yet; the last of each key.
#[derive(Default)]
pub(crate) struct ShortLivedRecords {
    held: FxHashMap<Bytes, Held>,
    size_bytes: u64,
}

struct Held {
    /// `None` removes what the tree has.
    value: Option<Bytes>,
    /// The tree has nothing under the key.
    is_new: bool,
}

fn size_of(key: &Bytes, value: Option<&Bytes>) -> u64 {
    (key.len() + value.map_or(0, Bytes::len) + OVERHEAD_BYTES) as u64
}

impl ShortLivedRecords {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn take_in(&mut self, change: ShortLived) {
        let ShortLived { key, value, is_new } = change;
        match self.held.entry(key) {
            Entry::Vacant(free) => {
                self.size_bytes += size_of(free.key(), value.as_ref());
                let is_new = is_new && value.is_some();
                free.insert(Held { value, is_new });
            }
            Entry::Occupied(mut known) => {
                self.size_bytes -= size_of(known.key(), known.get().value.as_ref());
                if value.is_none() && known.get().is_new {
                    known.remove();
                } else {
                    self.size_bytes += size_of(known.key(), value.as_ref());
                    known.get_mut().value = value;
                }
            }
        }
    }

    /// Hands all of them over to the tree.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> + '_ {
        self.size_bytes = 0;
        self.held.drain().map(|(key, held)| (key, held.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &'static str, value: Option<&'static str>, is_new: bool) -> ShortLived {
        ShortLived { key: key.into(), value: value.map(Bytes::from), is_new }
    }

    fn drained(records: &mut ShortLivedRecords) -> Vec<(Bytes, Option<Bytes>)> {
        let mut all: Vec<_> = records.drain().collect();
        all.sort();
        all
    }

    #[test]
    fn what_comes_and_goes_leaves_nothing() {
        let mut records = ShortLivedRecords::default();
        records.take_in(change("a", Some("1"), true));
        records.take_in(change("a", Some("longer"), false));
        records.take_in(change("a", None, false));
        assert!(records.is_empty());
        assert_eq!(records.size_bytes(), 0);
    }

    #[test]
    fn what_the_tree_may_have_is_removed_there() {
        let mut records = ShortLivedRecords::default();
        records.take_in(change("a", None, false));
        records.take_in(change("b", Some("1"), false));
        records.take_in(change("b", None, false));
        // Handed over, it is in the tree.
        records.take_in(change("c", Some("1"), true));
        let none = |key: &'static str| (Bytes::from(key), None);
        assert_eq!(drained(&mut records), [none("a"), none("b"), ("c".into(), Some("1".into()))]);
        records.take_in(change("c", None, false));
        // It comes again before its removal is handed over: the tree still has the first.
        records.take_in(change("c", Some("2"), true));
        records.take_in(change("c", None, false));
        assert_eq!(drained(&mut records), [none("c")]);
        assert_eq!(records.size_bytes(), 0);
    }
}
