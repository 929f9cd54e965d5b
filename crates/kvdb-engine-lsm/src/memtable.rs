//! The changes of a volume that aren't in its tables yet.
//!
//! Keys are found by hash: most of what is read was written lately, and a search in an ordered
//! structure of 100,000 keys waits for memory some twenty times. A key has its newest change in
//! place, and older ones only while a view may be open that sees them. So what is written often
//! takes no more room than what is written twice, and a scan meets each key once.
//!
//! Order is made when it is needed: a scan first puts the keys that are new since the last one in
//! order, and a flush sorts them all. A memtable whose predecessor was scanned keeps its keys in
//! order from the start, some at a time.
//!
//! One thread writes at a time; any number read meanwhile.

use crate::view::Bounds;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rustc_hash::FxBuildHasher;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Power of two. A part that grows is locked until all of it has moved.
const PARTS: usize = 16;

/// What a key takes up beside its bytes and those of its value: two handles of it, one of its value,
/// a number, and their share of a hash table and of an ordered set.
const KEY_BYTES: u64 = 208;

/// What a change takes up in the log beside its key and value, roughly.
const CHANGE_BYTES: usize = 64;

/// What an older change takes up beside the bytes of its value.
const OLDER_BYTES: u64 = 48;

/// So many new keys are put in order at once, where scans are to be expected.
const NEW_KEYS: usize = 256;

/// The most keys that a scan looks up at once: so long it keeps a writer from putting keys in order.
const SCAN_AHEAD: usize = 64;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Of the batch.
    pub(crate) sequence: u64,
    /// `None` if the key was removed.
    pub(crate) value: Option<Bytes>,
}

impl Change {
    fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// The changes of one key.
struct Changes {
    newest: Change,
    /// Those that a view may see, ascending.
    older: Vec<Change>,
}

impl Changes {
    /// What a reader sees that sees numbers below `at`.
    fn at(&self, at: u64) -> Option<&Change> {
        if self.newest.sequence < at {
            return Some(&self.newest);
        }
        self.older.iter().rev().find(|change| change.sequence < at)
    }
}

/// Changes of one volume, between two flushes.
#[derive(Default)]
pub(crate) struct Memtable {
    /// Within a part by a hash that nobody can foresee: clients choose the keys.
    parts: [RwLock<HashMap<Bytes, Changes>>; PARTS],
    /// Keys that a scan can walk through.
    ordered: RwLock<BTreeSet<Bytes>>,
    /// Those that have to be put in order.
    new: Mutex<Vec<Bytes>>,
    /// Whether scans are to be expected.
    scanned: AtomicBool,
    bytes: AtomicU64,
    written: AtomicU64,
}

impl Memtable {
    /// The one that follows on this.
    pub(crate) fn successor(&self) -> Self {
        let scanned = AtomicBool::new(self.scanned.load(Ordering::Relaxed));
        Memtable { scanned, ..Memtable::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.written() == 0
    }

    /// Bytes in use, roughly.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of all changes that were written, those that others took the place of included: for so much
    /// the log is kept, which has them all.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn part(&self, key: &[u8]) -> &RwLock<HashMap<Bytes, Changes>> {
        let hash = FxBuildHasher.hash_one(key);
        &self.parts[hash as usize % PARTS]
    }

    /// Takes a change in. Numbers never fall; of two changes with the same the second counts.
    /// No reader sees less than the numbers below `oldest_reader`, now or later.
    pub(crate) fn write(
        &self,
        key: Bytes,
        value: Option<Bytes>,
        sequence: u64,
        oldest_reader: u64,
    ) {
        let change = Change { sequence, value };
        let written = key.len() + change.value_bytes() + CHANGE_BYTES;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        let mut part = self.part(&key).write();
        match part.entry(key) {
            Entry::Occupied(mut known) => {
                let Changes { newest, older } = known.get_mut();
                self.bytes.fetch_add(change.value_bytes() as u64, Ordering::Relaxed);
                let before = std::mem::replace(newest, change);
                debug_assert!(before.sequence <= sequence, "{} after {sequence}", before.sequence);
                let freed_bytes = if before.sequence == sequence {
                    before.value_bytes() as u64
                } else {
                    self.bytes.fetch_add(OLDER_BYTES, Ordering::Relaxed);
                    older.push(before);
                    forget(older, oldest_reader)
                };
                self.bytes.fetch_sub(freed_bytes, Ordering::Relaxed);
            }
            Entry::Vacant(free) => {
                let bytes = (free.key().len() + change.value_bytes()) as u64 + KEY_BYTES;
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                let key = free.key().clone();
                free.insert(Changes { newest: change, older: Vec::new() });
                // A scan looks keys up while it holds on to their order.
                drop(part);
                self.note_new(key);
            }
        }
    }

    /// The newest change of `key` below number `at`, if there is one.
    pub(crate) fn get(&self, key: &[u8], at: u64) -> Option<Change> {
        self.part(key).read().get(key).and_then(|changes| changes.at(at)).cloned()
    }

    fn note_new(&self, key: Bytes) {
        let mut new = self.new.lock();
        new.push(key);
        if new.len() >= NEW_KEYS && self.scanned.load(Ordering::Relaxed) {
            self.put_in_order(&mut new);
        }
    }

    /// By the holder of their lock, so that nobody misses those that are on their way.
    fn put_in_order(&self, new: &mut Vec<Bytes>) {
        if !new.is_empty() {
            self.ordered.write().extend(new.drain(..));
        }
    }

    /// Walks through what a reader at number `at` sees inside of `bounds`, removals included.
    pub(crate) fn scan(self: Arc<Self>, bounds: Bounds, at: u64, reverse: bool) -> Scan {
        self.scanned.store(true, Ordering::Relaxed);
        // Keys that come later are of batches that the reader doesn't see.
        self.put_in_order(&mut self.new.lock());
        let left = Some(bounds);
        Scan { memtable: self, at, reverse, left, ahead: VecDeque::new(), look_up: 2 }
    }

    /// The newest change of each key, ascending by key.
    pub(crate) fn newest(&self) -> Vec<(Bytes, Change)> {
        let mut newest = Vec::new();
        for part in &self.parts {
            let part = part.read();
            newest.extend(part.iter().map(|(key, all)| (key.clone(), all.newest.clone())));
        }
        newest.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        newest
    }
}

/// Drops the changes that a later one hides from all who see at least the numbers below
/// `oldest_reader`. Returns how many bytes that frees.
fn forget(older: &mut Vec<Change>, oldest_reader: u64) -> u64 {
    let hidden = older.iter().rposition(|change| change.sequence < oldest_reader).unwrap_or(0);
    older.drain(..hidden).map(|change| OLDER_BYTES + change.value_bytes() as u64).sum()
}

/// A walk through a memtable, which it holds on to.
pub(crate) struct Scan {
    memtable: Arc<Memtable>,
    at: u64,
    reverse: bool,
    /// What hasn't been looked up yet.
    left: Option<Bounds>,
    ahead: VecDeque<(Bytes, Option<Bytes>)>,
    look_up: usize,
}

impl Scan {
    /// What comes next, and stays so until [`Iterator::next`] takes it.
    pub(crate) fn peek(&mut self) -> Option<&(Bytes, Option<Bytes>)> {
        while self.ahead.is_empty() {
            let left = self.left.take()?;
            self.left = self.look_ahead(left);
            self.look_up = SCAN_AHEAD.min(self.look_up * 2);
        }
        self.ahead.front()
    }

    /// Looks the next keys up, and says what is left after them.
    fn look_ahead(&mut self, (start, end): Bounds) -> Option<Bounds> {
        // An ordered set panics when it is asked for a range that starts behind its end.
        if let (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to)) = (&start, &end)
            && from >= to
        {
            return None;
        }
        let ordered = self.memtable.ordered.read();
        let mut keys = ordered.range::<Bytes, _>((start.as_ref(), end.as_ref()));
        for _ in 0..self.look_up {
            let key = if self.reverse { keys.next_back() } else { keys.next() }?;
            if let Some(change) = self.memtable.get(key, self.at) {
                self.ahead.push_back((key.clone(), change.value));
            }
        }
        let passed = if self.reverse { keys.next_back() } else { keys.next() }?.clone();
        let passed = Bound::Included(passed);
        Some(if self.reverse { (start, passed) } else { (passed, end) })
    }
}

impl Iterator for Scan {
    type Item = (Bytes, Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        self.peek()?;
        self.ahead.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(of: u8) -> Bytes {
        Bytes::copy_from_slice(&[b'k', of])
    }

    fn value(of: u64) -> Option<Bytes> {
        (!of.is_multiple_of(5)).then(|| Bytes::from(vec![b'v'; of as usize % 40]))
    }

    /// What a reader of `at` is to see, by the whole history.
    fn seen(history: &[(u64, u8)], at: u64) -> BTreeMap<Bytes, Option<Bytes>> {
        let visible = history.iter().filter(|(sequence, _)| *sequence < at);
        visible.map(|(sequence, of)| (key(*of), value(*sequence))).collect()
    }

    const ALL: Bounds = (Bound::Unbounded, Bound::Unbounded);

    proptest! {
        #[test]
        fn every_open_reader_sees_what_it_saw_at_first(
            writes in prop::collection::vec((any::<bool>(), 0..40_u8, 0..4_u8), 1..400),
            (from, to) in (0..40_u8, 0..40_u8),
        ) {
            let memtable = Arc::new(Memtable::default());
            let mut history = Vec::new();
            let mut readers: Vec<u64> = Vec::new();
            let mut published = 1;
            for (again, of, then) in writes {
                let sequence = if again && !history.is_empty() { published - 1 } else { published };
                let oldest = readers.iter().copied().min().unwrap_or(published).min(sequence);
                memtable.write(key(of), value(sequence), sequence, oldest);
                history.push((sequence, of));
                published = sequence + 1;
                match then {
                    0 => readers.push(published),
                    1 if !readers.is_empty() => drop(readers.remove(of as usize % readers.len())),
                    _ => {}
                }
                // A batch is one number: no reader is between two changes of it.
                readers.retain(|at| *at != sequence || !again);
            }
            for at in readers.into_iter().chain([published]) {
                let seen = seen(&history, at);
                for of in 0..40 {
                    let found = memtable.get(&key(of), at).map(|change| change.value);
                    prop_assert_eq!(found, seen.get(&key(of)).cloned());
                }
                let forwards: Vec<_> = memtable.clone().scan(ALL, at, false).collect();
                prop_assert_eq!(&forwards, &seen.clone().into_iter().collect::<Vec<_>>());
                let mut backwards: Vec<_> = memtable.clone().scan(ALL, at, true).collect();
                backwards.reverse();
                prop_assert_eq!(backwards, forwards);
                for reverse in [false, true] {
                    let bounds = (Bound::Included(key(from)), Bound::Excluded(key(to)));
                    let mut part: Vec<_> = memtable.clone().scan(bounds, at, reverse).collect();
                    if reverse {
                        part.reverse();
                    }
                    let inside = |key: &Bytes| (from..to).any(|of| self::key(of) == *key);
                    let expected = seen.iter().filter(|(key, _)| inside(key));
                    let expected: Vec<_> =
                        expected.map(|(key, value)| (key.clone(), value.clone())).collect();
                    prop_assert_eq!(part, expected);
                }
            }
            let newest = memtable.newest();
            let newest: Vec<_> =
                newest.into_iter().map(|(key, change)| (key, change.value)).collect();
            prop_assert_eq!(newest, seen(&history, u64::MAX).into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_written_again_and_again_takes_no_more_room() {
        let memtable = Memtable::default();
        let write = |sequence| {
            memtable.write(key(1), Some(Bytes::from(vec![1; 100])), sequence, sequence);
        };
        write(1);
        write(2);
        let bytes = memtable.bytes();
        (3..1000).for_each(write);
        assert_eq!(memtable.bytes(), bytes);
        assert!(bytes < 2 * 100 + KEY_BYTES + OLDER_BYTES + 10, "{bytes}");
    }

    #[test]
    fn where_it_was_scanned_its_successor_keeps_order_from_the_start() {
        let first = Arc::new(Memtable::default());
        let fill = |memtable: &Memtable| {
            for number in 0..NEW_KEYS as u32 * 2 {
                memtable.write(Bytes::from(number.to_be_bytes().to_vec()), None, 1, 1);
            }
        };
        fill(&first);
        assert!(first.ordered.read().is_empty());
        assert_eq!(first.clone().scan(ALL, 2, false).count(), NEW_KEYS * 2);
        let next = first.successor();
        fill(&next);
        assert_eq!(next.ordered.read().len(), NEW_KEYS * 2);
    }

    #[test]
    fn readers_and_a_writer_at_once_see_whole_batches() {
        let memtable = Arc::new(Memtable::default());
        let published = AtomicU64::new(1);
        const BATCHES: u64 = 3000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for sequence in 1..=BATCHES {
                    for of in 0..8 {
                        let value = Bytes::from(sequence.to_be_bytes().to_vec());
                        memtable.write(key(of), Some(value), sequence, 1);
                    }
                    published.store(sequence + 1, Ordering::Release);
                }
            });
            for reverse in [false, true] {
                let (memtable, published) = (&memtable, &published);
                scope.spawn(move || {
                    let mut at = 1;
                    while at <= BATCHES {
                        at = published.load(Ordering::Acquire);
                        let expected = Bytes::from((at - 1).to_be_bytes().to_vec());
                        let all = memtable.clone().scan(ALL, at, reverse);
                        let wrong = all.filter(|(_, value)| value.as_ref() != Some(&expected));
                        assert_eq!(wrong.count(), 0);
                    }
                });
            }
        });
    }
}
