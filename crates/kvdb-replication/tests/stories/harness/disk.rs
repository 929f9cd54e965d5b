//! The log of a node: what is durable, what is written, and what a crash leaves of it.

use kvdb_model::{
    HardState, LogEntry, LogIndex, LogPosition, ReplicaId, ShardId, Term, VolumeId, WalRecord,
};
use kvdb_replication::PersistBatch;
use std::collections::{BTreeMap, VecDeque};

/// What records say about one replica.
#[derive(Clone, Debug, Default)]
pub struct ReplicaLog {
    pub shard: ShardId,
    pub volume: Option<VolumeId>,
    pub birth: bytes::Bytes,
    pub start: LogPosition,
    pub entries: Vec<LogEntry>,
    pub hard_state: HardState,
}

impl ReplicaLog {
    pub fn last(&self) -> LogIndex {
        self.entries.last().map_or(self.start.index, |entry| entry.index)
    }

    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        let entry = self.entries.get(index.0.checked_sub(self.start.index.0 + 1)? as usize)?;
        Some(entry.term)
    }

    fn append(&mut self, entries: &[LogEntry]) {
        let first = entries.first().expect("records hold at least one entry").index;
        assert!(first > self.start.index && first <= self.last().next(), "a gap before {first}");
        self.entries.retain(|entry| entry.index < first);
        self.entries.extend_from_slice(entries);
    }
}

/// All replicas of a node, as records tell of them.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pub replicas: BTreeMap<ReplicaId, ReplicaLog>,
    pub tombstones: BTreeMap<ShardId, ReplicaId>,
}

impl Records {
    pub fn take_in(&mut self, record: &WalRecord) {
        let known = self.replicas.get_mut(&record.replica());
        match (record, known) {
            (WalRecord::Created { replica, shard, volume, start, birth }, None) => {
                let log = ReplicaLog {
                    shard: *shard,
                    volume: *volume,
                    birth: birth.clone(),
                    start: *start,
                    ..ReplicaLog::default()
                };
                self.replicas.insert(*replica, log);
            }
            (WalRecord::Split { replica, shard, volume, birth, .. }, known) => {
                let hard_state = known.map(|log| log.hard_state).unwrap_or_default();
                let log = ReplicaLog {
                    shard: *shard,
                    volume: Some(*volume),
                    birth: birth.clone(),
                    start: kvdb_model::log::INITIAL_POSITION,
                    entries: Vec::new(),
                    hard_state,
                };
                self.replicas.insert(*replica, log);
            }
            (WalRecord::Created { volume, start, birth, .. }, Some(log))
                if log.volume.is_none() && log.start.index.0 == 0 && volume.is_some() =>
            {
                (log.volume, log.start, log.birth) = (*volume, *start, birth.clone());
            }
            (WalRecord::Append { entries, .. }, Some(log)) => log.append(entries),
            (WalRecord::HardState { state, .. }, Some(log)) => log.hard_state = *state,
            (WalRecord::Compacted { through, .. }, Some(log)) => {
                assert_eq!(log.term_at(through.index), Some(through.term));
                log.entries.retain(|entry| entry.index > through.index);
                log.start = *through;
            }
            (WalRecord::VolumeSwitched { volume, start, .. }, Some(log)) => {
                log.volume = Some(*volume);
                log.start = *start;
                log.entries.clear();
            }
            (WalRecord::Destroyed { replica, shard }, Some(_)) => {
                self.replicas.remove(replica);
                let highest = self.tombstones.entry(*shard).or_default();
                *highest = (*highest).max(*replica);
            }
            (record, known) => panic!("{record:?} doesn't fit {known:?}"),
        }
    }
}

#[derive(Default)]
pub struct Disk {
    /// What a crash leaves.
    pub durable: Records,
    /// What was ever written since the last crash.
    pub written: Records,
    pending: VecDeque<PersistBatch>,
    syncing: Option<u64>,
    pub held: bool,
}

impl Disk {
    pub fn queue(&mut self, batch: PersistBatch) {
        self.pending.push_back(batch);
    }

    /// Starts a sync of all that is written. Returns whether one was started.
    pub fn start_sync(&mut self) -> bool {
        let Some(last) = self.pending.back() else { return false };
        if self.held || self.syncing.is_some() {
            return false;
        }
        self.syncing = Some(last.number);
        true
    }

    /// The sync is done. Returns the last batch in it.
    pub fn finish_sync(&mut self) -> u64 {
        let through = self.syncing.take().expect("a sync was started");
        while let Some(batch) = self.pending.pop_front_if(|batch| batch.number <= through) {
            for record in &batch.records {
                self.durable.take_in(record);
            }
        }
        through
    }

    /// The node stops. Of the records that weren't synced the first `kept` happen to be there.
    pub fn crash(&mut self, kept: usize) {
        let batches = std::mem::take(&mut self.pending);
        for record in batches.iter().flat_map(|batch| &batch.records).take(kept) {
            self.durable.take_in(record);
        }
        self.written = self.durable.clone();
        self.syncing = None;
        self.held = false;
    }

    pub fn unsynced_records(&self) -> usize {
        self.pending.iter().map(|batch| batch.records.len()).sum()
    }
}
