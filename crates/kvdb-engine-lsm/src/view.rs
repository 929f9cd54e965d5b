//! Views of a volume as of a published number.
//!
//! A view holds on to the memtables and the tables that were the volume's when it was opened. They
//! rank by age: what is newer hides what is older. Nothing that happens later changes what it shows:
//! a memtable keeps the changes that an open view sees, and a flush or a compaction puts other
//! sources in the place of these, for views to come.

use crate::memtable::{Memtable, Scan};
use bytes::Bytes;
use kvdb_engine::{EngineError, Item, SequenceNumber, Snapshot};
use kvdb_model::KeyRange;
use lsm_tree::table::filter::standard_bloom::Builder as Filter;
use lsm_tree::{AbstractTree, SeqNo, Tree};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::volume::Volume;

pub(crate) type Bounds = (Bound<Bytes>, Bound<Bytes>);
type Walk = Box<dyn DoubleEndedIterator<Item = lsm_tree::Result<(Bytes, Bytes)>> + Send>;
type Get = dyn Fn(&[u8]) -> lsm_tree::Result<Option<Bytes>> + Send + Sync;
type Range = dyn Fn(Bounds) -> Walk + Send + Sync;

/// Sees everything in tables: which tables a view reads says what it sees.
const EVERYTHING: SeqNo = SeqNo::MAX;

/// One version of the tree: its tables at one time. The library gives it no name.
pub(crate) struct Tables {
    get: Box<Get>,
    range: Box<Range>,
}

impl Tables {
    /// The tables that the tree has now.
    pub(crate) fn of(tree: &Tree) -> Self {
        let latest = tree.get_version_history_lock().latest_version();
        let version = tree.current_version();
        let get = move |key: &[u8]| {
            let hash = Filter::get_hash(key);
            // From the newest to the oldest.
            let runs = version.iter_levels().flat_map(|level| level.iter());
            for table in runs.filter_map(|run| run.get_for_key(key)) {
                if let Some(found) = table.get(key, EVERYTHING, hash)? {
                    return Ok((!found.is_tombstone()).then(|| Bytes::from(found.value)));
                }
            }
            Ok(None)
        };
        let range = move |bounds: Bounds| -> Walk {
            let items = Tree::create_internal_range(latest.clone(), &bounds, EVERYTHING, None);
            Box::new(items.map(|item| {
                let item = item?;
                Ok((Bytes::from(item.key.user_key), Bytes::from(item.value)))
            }))
        };
        Tables { get: Box::new(get), range: Box::new(range) }
    }
}

/// A memtable that takes no more changes, and will be flushed.
pub(crate) struct Frozen {
    pub(crate) memtable: Arc<Memtable>,
    /// All changes with numbers below this are in it, or were before.
    pub(crate) through: u64,
}

/// Where a volume's data is.
#[derive(Clone)]
pub(crate) struct Sources {
    /// Takes the changes.
    pub(crate) active: Arc<Memtable>,
    /// The newest first. More than one only after a flush has failed.
    frozen: Vec<Arc<Frozen>>,
    tables: Arc<Tables>,
}

impl Sources {
    /// All memtables, the newest first.
    fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(self.frozen.iter().map(|frozen| &frozen.memtable))
    }
}

/// The published number of a volume, its sources, and the views that are open.
pub(crate) struct Views {
    /// Reads see numbers below this.
    published: AtomicU64,
    open: Mutex<Open>,
}

/// Changed together: a view's number and its sources must belong to each other.
struct Open {
    /// How many read as of each number.
    readers: BTreeMap<u64, usize>,
    sources: Arc<Sources>,
}

impl Views {
    pub(crate) fn new(published: u64, tables: Tables) -> Self {
        let (active, frozen, tables) = (Arc::default(), Vec::new(), Arc::new(tables));
        let sources = Arc::new(Sources { active, frozen, tables });
        Views {
            published: AtomicU64::new(published),
            open: Mutex::new(Open { readers: BTreeMap::new(), sources }),
        }
    }

    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Shows numbers below `next`. By the holder of the volume's writer lock only.
    pub(crate) fn publish(&self, next: u64) {
        self.published.fetch_max(next, Ordering::AcqRel);
    }

    /// The memtable to write to, and the number that the oldest reader sees up to: no view that
    /// is open sees less, and none that is opened later. By the holder of the writer lock only.
    pub(crate) fn for_writing(&self) -> (Arc<Memtable>, u64) {
        let open = self.open.lock();
        let published = self.published();
        let oldest = open.readers.keys().next().map_or(published, |oldest| *oldest);
        (open.sources.active.clone(), oldest.min(published))
    }

    /// Changes go to another memtable from now on, if there are any in this one. By the holder of the
    /// writer lock only. Returns the number below which everything is in frozen memtables or tables.
    pub(crate) fn freeze(&self) -> u64 {
        let mut open = self.open.lock();
        let through = self.published();
        let sources = Arc::make_mut(&mut open.sources);
        if !sources.active.is_empty() {
            let successor = Arc::new(sources.active.successor());
            let memtable = std::mem::replace(&mut sources.active, successor);
            sources.frozen.insert(0, Arc::new(Frozen { memtable, through }));
        }
        through
    }

    /// Bytes of all memtables.
    pub(crate) fn memtable_bytes(&self) -> u64 {
        let sources = self.open.lock().sources.clone();
        sources.memtables().map(|memtable| memtable.bytes()).sum()
    }

    /// What is to be flushed next.
    pub(crate) fn oldest_frozen(&self) -> Option<Arc<Frozen>> {
        self.open.lock().sources.frozen.last().cloned()
    }

    /// From now on the tables of the tree hold what the oldest frozen memtable held.
    pub(crate) fn flushed(&self, tree: &Tree) {
        let mut open = self.open.lock();
        let sources = Arc::make_mut(&mut open.sources);
        sources.tables = Arc::new(Tables::of(tree));
        sources.frozen.pop();
    }

    /// The tree has other tables now, with the same data. They are looked up under the lock: those that
    /// were looked up before might lack what a flush beside this has written, and has let go.
    pub(crate) fn rearranged(&self, tree: &Tree) {
        let mut open = self.open.lock();
        Arc::make_mut(&mut open.sources).tables = Arc::new(Tables::of(tree));
    }
}

pub(crate) fn bounds(range: &KeyRange) -> Bounds {
    let end =
        if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.clone()) };
    (Bound::Included(range.start.clone()), end)
}

/// A snapshot of a volume, which lives at least as long.
pub(crate) struct LsmSnapshot {
    volume: Arc<Volume>,
    /// Sees numbers below this.
    at: u64,
    sources: Arc<Sources>,
}

impl LsmSnapshot {
    pub(crate) fn new(volume: Arc<Volume>) -> Self {
        let (at, sources) = {
            let mut open = volume.views.open.lock();
            let at = volume.views.published();
            *open.readers.entry(at).or_default() += 1;
            (at, open.sources.clone())
        };
        LsmSnapshot { volume, at, sources }
    }
}

impl Drop for LsmSnapshot {
    fn drop(&mut self) {
        let mut open = self.volume.views.open.lock();
        if let Some(readers) = open.readers.get_mut(&self.at) {
            *readers -= 1;
            if *readers == 0 {
                open.readers.remove(&self.at);
            }
        }
    }
}

impl Snapshot for LsmSnapshot {
    fn sequence(&self) -> SequenceNumber {
        SequenceNumber(self.at.saturating_sub(1))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        for memtable in self.sources.memtables() {
            if let Some(change) = memtable.get(key, self.at) {
                return Ok(change.value);
            }
        }
        (self.sources.tables.get)(key).map_err(|error| self.volume.error(error))
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = Item> + Send + '_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let memtables = self.sources.memtables();
        let scans =
            memtables.map(|memtable| memtable.clone().scan(bounds(range), self.at, reverse));
        let tables = (self.sources.tables.range)(bounds(range));
        let tables: Forward = if reverse { Box::new(tables.rev()) } else { Box::new(tables) };
        let merged = Merge { memtables: scans.collect(), tables: tables.peekable(), reverse };
        Box::new(merged.map(|item| item.map_err(|error| self.volume.error(error))))
    }
}

type Forward = Box<dyn Iterator<Item = lsm_tree::Result<(Bytes, Bytes)>> + Send>;

/// The sources of a view in one walk.
struct Merge {
    /// The newest first.
    memtables: Vec<Scan>,
    tables: Peekable<Forward>,
    reverse: bool,
}

impl Merge {
    /// The key that comes next in any memtable.
    fn next_key(&mut self) -> Option<Bytes> {
        let heads = self.memtables.iter_mut().filter_map(|scan| scan.peek().map(|(key, _)| key));
        let next = if self.reverse { heads.max() } else { heads.min() };
        next.cloned()
    }

    /// What the newest memtable that has `key` says of it.
    fn take(&mut self, key: &Bytes) -> Option<Bytes> {
        let mut newest = None;
        for scan in &mut self.memtables {
            if scan.peek().is_some_and(|(head, _)| head == key) {
                let change = scan.next().map(|(_, value)| value);
                newest = newest.or(change);
            }
        }
        newest.flatten()
    }
}

impl Iterator for Merge {
    type Item = lsm_tree::Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(key) = self.next_key() else { return self.tables.next() };
            match self.tables.peek() {
                Some(Err(_)) => return self.tables.next(),
                Some(Ok((stored, _))) if *stored == key => {
                    self.tables.next();
                }
                Some(Ok((stored, _))) if (*stored < key) != self.reverse => {
                    return self.tables.next();
                }
                _ => {}
            }
            if let Some(value) = self.take(&key) {
                return Some(Ok((key, value)));
            }
        }
    }
}
