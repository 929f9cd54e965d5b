//! What a node tells of its replicas, whether they lead or not: a part of them with each heartbeat,
//! so that its size and its cost are bounded, and all of them in turn.

use crate::sizes::{Here, Sizes};
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
    leads: bool,
    counted: (u64, u64),
    /// Only of a leader that has led for long enough.
    reads: Option<u64>,
    writes: Option<u64>,
}

impl Rates {
    fn begin(replica: ReplicaId, leads: bool, counted: (u64, u64), at: Instant) -> Self {
        Rates { replica, at, leads, counted, reads: None, writes: None }
    }

    /// Each time counts for half of what is told: a moment's rush is no load. Every replica applies
    /// the writes; reads come to the leader alone, and count from when it began to lead.
    fn take_in(&mut self, leads: bool, counted: (u64, u64), at: Instant) {
        if leads != self.leads {
            (self.leads, self.reads) = (leads, None);
            self.counted.0 = counted.0;
            if leads {
                (self.at, self.counted) = (at, counted);
            }
        }
        let over = at.saturating_duration_since(self.at);
        if over < RATE_OVER {
            return;
        }
        let rate = |now: u64, before: u64, told: Option<u64>| {
            let now = now.saturating_sub(before) * 1000 / over.as_millis().max(1) as u64;
            Some(told.map_or(now, |told| now.midpoint(told)))
        };
        self.writes = rate(counted.1, self.counted.1, self.writes);
        if leads {
            self.reads = rate(counted.0, self.counted.0, self.reads);
        }
        (self.at, self.counted) = (at, counted);
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
        let here = Here::now(drive);
        if self.next == ShardId::default() {
            self.rates.retain(|shard, _| here.has(*shard));
        }
        groups.iter().map(|group| self.report(drive, &here, group)).collect()
    }

    fn report(&mut self, drive: &Drive, here: &Here, group: &GroupStatus) -> proto::ReplicaReport {
        let changes = drive.changes().get(group.shard);
        let leads = group.role == ReplicaRole::Leader;
        let counted = changes.as_ref().map_or((0, 0), |one| one.counted());
        let now = Instant::now();
        let begin = || Rates::begin(group.replica, leads, counted, now);
        let rates = self.rates.entry(group.shard).or_insert_with(begin);
        if rates.replica != group.replica || counted.1 < rates.counted.1 {
            *rates = begin();
        }
        rates.take_in(leads, counted, now);
        let (reads, writes) = (rates.reads, rates.writes);
        let size = self.sizes.of(drive, here, group.shard);
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
            keys: size.keys,
            reads_per_second: reads.unwrap_or_default(),
            writes_per_second: writes.unwrap_or_default(),
            split_at: size.middle.unwrap_or_default(),
            reads_known: reads.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_secs(2);

    #[test]
    fn a_replica_that_begins_to_lead_is_not_asked_for_all_that_it_ever_applied() {
        let start = Instant::now();
        let mut rates = Rates::begin(ReplicaId(1), false, (0, 100_000), start);
        for round in 1..=3 {
            // As a follower it applies 1,000 writes a second.
            rates.take_in(false, (0, 100_000 + 2000 * u64::from(round)), start + ROUND * round);
            assert_eq!((rates.reads, rates.writes), (None, Some(1000)));
        }
        // It leads; nothing changes in what is written.
        rates.take_in(true, (10, 107_000), start + Duration::from_millis(6500));
        assert_eq!((rates.reads, rates.writes), (None, Some(1000)));
        rates.take_in(true, (1010, 109_000), start + Duration::from_millis(8500));
        assert_eq!((rates.reads, rates.writes), (Some(500), Some(1000)));
        // It leads no more: of reads it knows nothing.
        rates.take_in(false, (1010, 110_000), start + Duration::from_millis(9500));
        assert_eq!((rates.reads, rates.writes), (None, Some(1000)));
    }

    #[test]
    fn a_rush_counts_for_half() {
        let start = Instant::now();
        let mut rates = Rates::begin(ReplicaId(1), true, (0, 0), start);
        rates.take_in(true, (0, 2000), start + ROUND);
        rates.take_in(true, (0, 10_000), start + 2 * ROUND);
        assert_eq!(rates.writes, Some(2500));
    }
}
