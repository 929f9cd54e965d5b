//! What the rest of the process may know about its replicas without asking their threads.
//!
//! A view is a hint: requests are checked against it early, so that most wrong ones are refused
//! cheaply, and checked again where it counts (at propose by the host, at apply and in the read's
//! own snapshot by the shard).

use arc_swap::ArcSwap;
use kvdb_model::{
    HistoryPolicy, LogIndex, MembershipEpoch, NodeId, ReplicaId, ShardDescriptor, ShardId,
    ShardTimes, Term, VolumeId,
};
use kvdb_replication::{ReadPermit, ShardTime};
use kvdb_store::StateCache;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// One replica, as of a moment ago.
#[derive(Clone, Debug)]
pub struct ShardView {
    /// The replica.
    pub replica: ReplicaId,
    /// Where it lives; `None` while it waits for its first snapshot.
    pub volume: Option<VolumeId>,
    /// As applied; `None` while it waits for its first snapshot.
    pub descriptor: Option<Arc<ShardDescriptor>>,
    /// What was decided about its change history, as applied.
    pub history: HistoryPolicy,
    /// Whether it leads.
    pub is_leader: bool,
    /// In which term.
    pub term: Term,
    /// The leader's node, where known.
    pub leader: Option<NodeId>,
    /// As a leader: in which term which members were settled last.
    pub(crate) settled: Option<(Term, MembershipEpoch)>,
    /// Whether it may serve strong reads at once.
    pub(crate) permit: Arc<ReadPermit>,
    /// Shard time as it is known here.
    pub(crate) time: Arc<ShardTime>,
    /// What its last reader found.
    pub states: Arc<StateCache>,
}

impl ShardView {
    /// Shard time and age now, by the clock here.
    pub fn times(&self) -> ShardTimes {
        self.time.times(crate::clock::boot_us())
    }

    /// Whether it leads, and its members, as applied, may be told to others: see
    /// [`Effect::Settled`](kvdb_replication::Effect::Settled).
    pub fn is_settled(&self) -> bool {
        let epoch = self.descriptor.as_ref().map(|descriptor| descriptor.membership_epoch);
        self.is_leader && epoch.is_some_and(|epoch| self.settled == Some((self.term, epoch)))
    }
}

/// All replicas of a process.
pub type ViewTable = BTreeMap<ShardId, Arc<ShardView>>;

/// The views, replaced as a whole with each change: reading takes no lock.
#[derive(Default)]
pub struct Views {
    table: ArcSwap<ViewTable>,
    writer: Mutex<()>,
    arrivals: watch::Sender<u64>,
}

impl Views {
    /// A replica has applied its log so far.
    pub(crate) fn applied(&self, shard: ShardId, replica: ReplicaId, index: LogIndex) {
        let table = self.table.load();
        if let Some(view) = table.get(&shard).filter(|view| view.replica == replica) {
            view.permit.applied(index);
        }
    }

    /// All of them.
    pub fn all(&self) -> Arc<ViewTable> {
        self.table.load_full()
    }

    /// One of them.
    pub fn get(&self, shard: ShardId) -> Option<Arc<ShardView>> {
        self.table.load().get(&shard).cloned()
    }

    /// Changes each time a replica has got its state: made here, or by its first snapshot.
    pub fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrivals.subscribe()
    }

    /// Changes the view of a replica; `change` starts from what there is, or from nothing if
    /// another replica of the shard (or none) was here.
    pub(crate) fn update(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        change: impl FnOnce(&mut ShardView),
    ) {
        let _writer = self.writer.lock();
        let mut table = ViewTable::clone(&self.table.load());
        let mut view = match table.get(&shard) {
            Some(view) if view.replica > replica => return,
            Some(view) if view.replica == replica => ShardView::clone(view),
            _ => ShardView {
                replica,
                volume: None,
                descriptor: None,
                history: HistoryPolicy::default(),
                is_leader: false,
                term: Term(0),
                leader: None,
                settled: None,
                permit: Arc::default(),
                time: Arc::default(),
                states: Arc::default(),
            },
        };
        let was_empty = view.descriptor.is_none();
        change(&mut view);
        let arrives = was_empty && view.descriptor.is_some();
        table.insert(shard, Arc::new(view));
        self.table.store(Arc::new(table));
        if arrives {
            self.arrivals.send_modify(|count| *count += 1);
        }
    }

    pub(crate) fn remove(&self, shard: ShardId, replica: ReplicaId) {
        let _writer = self.writer.lock();
        let mut table = ViewTable::clone(&self.table.load());
        if table.get(&shard).is_some_and(|view| view.replica == replica) {
            table.remove(&shard);
            self.table.store(Arc::new(table));
        }
    }
}
