//! What a node tells of its replicas, whether they lead or not: a part of them with each heartbeat,
//! so that its size and its cost are bounded, and all of them in turn.

use crate::sizes::Sizes;
use kvdb_model::{ReplicaId, ShardId};
use kvdb_replication::{GroupStatus, ReplicaRole};
use kvdb_runtime::drive::Drive;
use kvdb_wire::proto;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Replicas in one heartbeat.
const AT_A_TIME: usize = 256;

/// Rates are taken over so long at least.
const RATE_OVER: Duration = Duration::from_secs(2);

/// Goes round the replicas.
pub(crate) struct Reports {
    next: ShardId,
    sizes: Arc<Sizes>,
    rates: BTreeMap<ShardId, Rates>,
}

/// What a replica was asked, and how often lately.
struct Rates {
    replica: ReplicaId,
    at: Instant,
    counted: (u64, u64),
    per_second: (u64, u64),
}

impl Rates {
    fn begin(replica: ReplicaId, counted: (u64, u64)) -> Self {
        Rates { replica, at: Instant::now(), counted, per_second: (0, 0) }
    }

    /// Each time counts for half of what is told: a moment's rush is no load.
    fn take_in(&mut self, counted: (u64, u64)) {
        let over = self.at.elapsed();
        if over < RATE_OVER {
            return;
        }
        let rate = |now: u64, before: u64, told: u64| {
            let now = now.saturating_sub(before) * 1000 / over.as_millis().max(1) as u64;
            now.midpoint(told)
        };
        let (told, before) = (self.per_second, self.counted);
        self.per_second = (rate(counted.0, before.0, told.0), rate(counted.1, before.1, told.1));
        self.counted = counted;
        self.at = Instant::now();
    }
}

impl Reports {
    pub(crate) fn new(sizes: Arc<Sizes>) -> Self {
        Reports { next: ShardId::default(), sizes, rates: BTreeMap::new() }
    }

    /// The next part.
    pub(crate) async fn next(&mut self, drive: &Drive) -> Vec<proto::ReplicaReport> {
        let groups = drive.statuses_from(self.next, AT_A_TIME).await;
        self.next = match groups.last() {
            Some(last) if groups.len() == AT_A_TIME => last.shard.next(),
            _ => ShardId::default(),
        };
        if self.next == ShardId::default() {
            let views = drive.views().all();
            self.rates.retain(|shard, _| views.contains_key(shard));
        }
        groups.iter().map(|group| self.report(drive, group)).collect()
    }

    fn report(&mut self, drive: &Drive, group: &GroupStatus) -> proto::ReplicaReport {
        let changes = drive.changes().get(group.shard);
        let leads = group.role == ReplicaRole::Leader;
        let counted = changes.as_ref().filter(|_| leads).map_or((0, 0), |one| one.counted());
        let begin = || Rates::begin(group.replica, counted);
        let rates = self.rates.entry(group.shard).or_insert_with(begin);
        if rates.replica != group.replica || counted.0 < rates.counted.0 {
            *rates = begin();
        }
        rates.take_in(counted);
        let per_second = rates.per_second;
        let size = self.sizes.of(drive, group.shard);
        let descriptor = group.descriptor.as_ref();
        proto::ReplicaReport {
            shard_id: group.shard.0,
            replica_id: group.replica.0,
            applied_index: group.applied.0,
            last_index: group.last_index.0,
            last_term: group.last_term.0,
            version: changes.map_or(0, |changes| changes.last().0),
            range_epoch: descriptor.map_or(0, |descriptor| descriptor.range_epoch.0),
            awaits_snapshot: group.awaits_snapshot,
            bytes: size.bytes,
            reads_per_second: per_second.0,
            writes_per_second: per_second.1,
            split_at: size.middle.unwrap_or_default(),
        }
    }
}
