//! What the replicas of a process did lately, for watchers, and when their keys expire.
//!
//! Fed by the apply thread, so only what is committed and applied is ever told. Bounded: the
//! replicas share a number of bytes, and none gets more than [`SHARD_BYTES`] (but for the newest
//! version of each, which is kept however large it is).

use kvdb_model::{RangeEpoch, ReplicaId, ShardDescriptor, ShardId, Version};
use kvdb_store::{ChangeEvent, ChangePage, EpochOver, Recent, WatchQuery};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// Changes of one replica.
const SHARD_BYTES: usize = 4 << 20;

/// The latest changes of one replica.
pub struct ShardChanges {
    replica: ReplicaId,
    recent: Mutex<Recent>,
    changed: Notify,
    /// No key expires before, in milliseconds since 1970; 0 = not known.
    next_expiry_ms: AtomicU64,
    /// Strong reads that were allowed, and changes that were applied.
    reads: AtomicU64,
    writes: AtomicU64,
    /// Elements of collections may be there that nobody reads any more.
    has_garbage: AtomicBool,
}

impl ShardChanges {
    fn new(replica: ReplicaId, recent: Recent) -> Arc<Self> {
        Arc::new(ShardChanges {
            replica,
            recent: Mutex::new(recent),
            changed: Notify::new(),
            next_expiry_ms: AtomicU64::new(0),
            has_garbage: AtomicBool::new(true),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        })
    }

    /// What a watcher is to be told next.
    ///
    /// # Errors
    /// [`EpochOver`].
    pub fn read(&self, query: &WatchQuery<'_>) -> Result<ChangePage, EpochOver> {
        self.recent.lock().read(query)
    }

    /// Changes up to this version have come.
    pub fn last(&self) -> Version {
        self.recent.lock().last()
    }

    /// Strong reads that were allowed and changes that were applied, since the replica began here.
    pub fn counted(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed))
    }

    /// Wakes when there is more to read than before the call.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Whether a look for elements that nobody reads any more may find any; from now on it finds what is
    /// noted after this.
    pub fn take_garbage(&self) -> bool {
        self.has_garbage.swap(false, Ordering::AcqRel)
    }

    /// Elements that nobody reads any more were left.
    pub fn note_garbage(&self) {
        self.has_garbage.store(true, Ordering::Release);
    }

    /// Whether a look for expired records may find any at `now_ms`.
    pub fn may_have_expired(&self, now_ms: u64) -> bool {
        self.next_expiry_ms.load(Ordering::Acquire) <= now_ms
    }

    /// A look for expired records begins: what is written from now on counts from anew.
    pub fn begin_sweep(&self) {
        self.next_expiry_ms.store(u64::MAX, Ordering::Release);
    }

    /// A record that expires at `at_ms` was seen or written.
    pub fn note_expiry(&self, at_ms: u64) {
        self.next_expiry_ms.fetch_min(at_ms, Ordering::AcqRel);
    }
}

/// All replicas of a process.
pub struct Changes {
    total_bytes: usize,
    shards: Mutex<FxHashMap<ShardId, Arc<ShardChanges>>>,
}

impl Changes {
    pub(crate) fn new(total_bytes: usize) -> Self {
        Changes { total_bytes, shards: Mutex::default() }
    }

    /// Bytes in use.
    pub(crate) fn size_bytes(&self) -> usize {
        self.shards.lock().values().map(|shard| shard.recent.lock().size_bytes()).sum()
    }

    /// The changes of a shard's replica here.
    pub fn get(&self, shard: ShardId) -> Option<Arc<ShardChanges>> {
        self.shards.lock().get(&shard).cloned()
    }

    pub(crate) fn count_reads(&self, shard: ShardId, reads: usize) {
        if let Some(changes) = self.shards.lock().get(&shard) {
            changes.reads.fetch_add(reads as u64, Ordering::Relaxed);
        }
    }

    /// A replica begins, or begins anew from a snapshot: what came before isn't known.
    pub(crate) fn begin(&self, replica: ReplicaId, descriptor: &ShardDescriptor, last: Version) {
        let recent = Recent::new(descriptor.range_epoch, last);
        let new = ShardChanges::new(replica, recent);
        self.replace(descriptor.shard_id, Some(new));
    }

    /// A replica is gone.
    pub(crate) fn end(&self, shard: ShardId, replica: ReplicaId) {
        let is_own = self.get(shard).is_some_and(|known| known.replica == replica);
        if is_own {
            self.replace(shard, None);
        }
    }

    fn replace(&self, shard: ShardId, new: Option<Arc<ShardChanges>>) {
        let old = match new {
            Some(new) => self.shards.lock().insert(shard, new),
            None => self.shards.lock().remove(&shard),
        };
        if let Some(old) = old {
            old.changed.notify_waiters();
        }
    }

    /// A run of entries was applied.
    pub(crate) fn applied(
        &self,
        shard: ShardId,
        events: Vec<ChangeEvent>,
        last: Version,
        made_garbage: bool,
    ) {
        let (known, limit_bytes) = {
            let shards = self.shards.lock();
            let Some(known) = shards.get(&shard).cloned() else { return };
            (known, SHARD_BYTES.min(self.total_bytes / shards.len().max(1)))
        };
        for record in events.iter().filter_map(|event| event.record.as_ref()) {
            if let Some(due_ms) = record.due_ms() {
                known.note_expiry(due_ms);
            }
        }
        if made_garbage {
            known.note_garbage();
        }
        known.writes.fetch_add(events.len() as u64, Ordering::Relaxed);
        known.recent.lock().push(events, last, limit_bytes);
        known.changed.notify_waiters();
    }

    /// A split was applied; its entry was in what [`Changes::applied`] was told last.
    pub(crate) fn split(
        &self,
        parent: ShardId,
        next: RangeEpoch,
        child: &ShardDescriptor,
        replica: ReplicaId,
        at: Version,
    ) {
        let Some(parent) = self.get(parent) else { return };
        let recent = {
            let mut recent = parent.recent.lock();
            let child = recent.of_child(&child.range, child.range_epoch, at);
            recent.epoch_ended(next, at);
            child
        };
        if self.get(child.shard_id).is_none() {
            self.replace(child.shard_id, Some(ShardChanges::new(replica, recent)));
        }
        parent.changed.notify_waiters();
    }
}
