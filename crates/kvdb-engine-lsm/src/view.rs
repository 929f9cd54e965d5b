//! Views of a volume as of a published number.
//!
//! The tree keeps a history of its versions (memtables and tables at one time) and finds for each
//! read the version that was current when the number was given out. While a reader is there, all
//! versions since would have to stay, with every memtable that was flushed meanwhile: a snapshot
//! that is streamed for minutes would hold gigabytes. So, before history is let go, views that
//! still need it are *pinned*: each takes hold of its own version, and of that alone.
//!
//! Reading and letting go exclude each other by `history`: a read holds it shared while it finds
//! its version, [`Views::release`] alone.

use bytes::Bytes;
use kvdb_engine::{EngineError, Item, SequenceNumber, Snapshot};
use kvdb_model::KeyRange;
use lsm_tree::{AbstractTree, Guard, Tree};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::volume::Volume;

pub(crate) type Bounds = (Bound<Bytes>, Bound<Bytes>);
type Walk = Box<dyn DoubleEndedIterator<Item = lsm_tree::Result<(Bytes, Bytes)>> + Send>;
/// Walks one version of the tree that it holds on to. The library gives that version no name.
type Pinned = Box<dyn Fn(Bounds) -> Walk + Send + Sync>;

/// What all snapshots of one published number share.
pub(crate) struct View {
    /// Sees numbers below this.
    at: u64,
    pinned: OnceLock<Pinned>,
}

/// The published number of a volume, and the views that are open.
pub(crate) struct Views {
    /// Reads see numbers below this.
    published: AtomicU64,
    /// By number, each with how many read it.
    open: Mutex<BTreeMap<u64, (usize, Arc<View>)>>,
    history: RwLock<()>,
}

impl Views {
    pub(crate) fn new(published: u64) -> Self {
        Views {
            published: AtomicU64::new(published),
            open: Mutex::default(),
            history: RwLock::default(),
        }
    }

    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// Shows numbers below `next`. By the holder of the volume's writer lock only.
    pub(crate) fn publish(&self, next: u64) {
        self.published.fetch_max(next, Ordering::AcqRel);
    }

    fn open(&self) -> Arc<View> {
        let mut open = self.open.lock();
        let at = self.published();
        let (readers, view) =
            open.entry(at).or_insert_with(|| (0, Arc::new(View { at, pinned: OnceLock::new() })));
        *readers += 1;
        view.clone()
    }

    fn close(&self, view: &View) {
        let mut open = self.open.lock();
        if let Some((readers, _)) = open.get_mut(&view.at) {
            *readers -= 1;
            if *readers == 0 {
                open.remove(&view.at);
            }
        }
    }

    /// Pins the open views and returns the number below which no reader needs history any more:
    /// what the tree may forget.
    pub(crate) fn release(&self, tree: &Tree) -> u64 {
        let _alone = self.history.write();
        let open = self.open.lock();
        let published = self.published();
        for (_, view) in open.range(..published).map(|(_, open)| open) {
            view.pinned.get_or_init(|| pin(tree, view.at));
        }
        published
    }
}

fn pin(tree: &Tree, at: u64) -> Pinned {
    let version = tree.get_version_history_lock().get_version_for_snapshot(at);
    Box::new(move |bounds| {
        let items = Tree::create_internal_range(version.clone(), &bounds, at, None);
        Box::new(items.map(|item| {
            let item = item?;
            Ok((Bytes::from(item.key.user_key), Bytes::from(item.value)))
        }))
    })
}

pub(crate) fn bounds(range: &KeyRange) -> Bounds {
    let end =
        if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.clone()) };
    (Bound::Included(range.start.clone()), end)
}

/// A snapshot of a volume, which lives at least as long.
pub(crate) struct LsmSnapshot {
    volume: Arc<Volume>,
    view: Arc<View>,
}

impl LsmSnapshot {
    pub(crate) fn new(volume: Arc<Volume>) -> Self {
        let view = volume.views.open();
        LsmSnapshot { volume, view }
    }

    fn walk(&self, bounds: Bounds) -> Walk {
        let _history = self.volume.views.history.read();
        match self.view.pinned.get() {
            Some(pinned) => pinned(bounds),
            // The walk takes hold of its version here; history may go while it is under way.
            None => Box::new(self.volume.tree.range::<Bytes, _>(bounds, self.view.at, None).map(
                |item| {
                    let (key, value) = item.into_inner()?;
                    Ok((Bytes::from(key), Bytes::from(value)))
                },
            )),
        }
    }
}

impl Drop for LsmSnapshot {
    fn drop(&mut self) {
        self.volume.views.close(&self.view);
    }
}

impl Snapshot for LsmSnapshot {
    fn sequence(&self) -> SequenceNumber {
        SequenceNumber(self.view.at.saturating_sub(1))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if let Some(known) = self.volume.newest.get(key, self.view.at) {
            return Ok(known);
        }
        let views = &self.volume.views;
        let history = views.history.read();
        if self.view.pinned.get().is_none() {
            let found = self.volume.tree.get(key, self.view.at);
            return found
                .map(|value| value.map(Bytes::from))
                .map_err(|error| self.volume.error(error));
        }
        drop(history);
        let key = Bytes::copy_from_slice(key);
        let only = (Bound::Included(key.clone()), Bound::Included(key));
        match self.walk(only).next().transpose() {
            Ok(found) => Ok(found.map(|(_, value)| value)),
            Err(error) => Err(self.volume.error(error)),
        }
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = Item> + Send + '_> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let items = self.walk(bounds(range));
        let named = |item: lsm_tree::Result<_>| item.map_err(|error| self.volume.error(error));
        if reverse { Box::new(items.rev().map(named)) } else { Box::new(items.map(named)) }
    }
}
