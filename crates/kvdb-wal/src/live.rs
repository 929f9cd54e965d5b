//! What the log amounts to: the live state of every replica, and which segments hold it.
//!
//! The same code follows the log while it is written and while it is read back, so what recovery
//! gives is by construction what was there.

use bytes::Bytes;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    HardState, LogEntry, LogIndex, LogPosition, ReplicaId, ShardId, VolumeId, WalRecord,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The live state of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveReplica {
    /// Its shard.
    pub shard: ShardId,
    /// Where it lives; `None` while it waits for its first snapshot.
    pub volume: Option<VolumeId>,
    /// The encoded descriptor that it was born with.
    pub birth: Bytes,
    /// The parent's replica, and the entry of its log by which this one was split off.
    pub origin: Option<(ReplicaId, LogIndex)>,
    /// Where its log starts.
    pub start: LogPosition,
    /// The last hard state.
    pub hard_state: HardState,
    /// Entries after `start`.
    pub entries: VecDeque<LogEntry>,
    /// The segment of each entry.
    segments: VecDeque<u64>,
    base_segment: u64,
    hard_state_segment: u64,
}

/// The live state of all replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveState {
    /// Replicas that exist.
    pub replicas: BTreeMap<ReplicaId, LiveReplica>,
    /// For each shard the highest replica that was destroyed here, and the segment that says so.
    tombstones: BTreeMap<ShardId, (ReplicaId, u64)>,
    /// The highest volume that any record named.
    highest_volume: VolumeId,
}

/// A record that can't follow what came before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inconsistent(pub(crate) String);

impl LiveState {
    /// For each shard the highest replica that was destroyed here.
    pub fn tombstones(&self) -> BTreeMap<ShardId, ReplicaId> {
        self.tombstones.iter().map(|(shard, (replica, _))| (*shard, *replica)).collect()
    }

    /// The highest volume that the log names; new ones start above it.
    pub fn highest_volume(&self) -> VolumeId {
        self.highest_volume
    }

    /// The oldest segment that is needed; `None` if none is.
    pub(crate) fn oldest_needed(&self) -> Option<u64> {
        let replicas = self.replicas.values().map(LiveReplica::oldest_segment);
        replicas.chain(self.tombstones.values().map(|(_, segment)| *segment)).min()
    }

    /// Replicas and tombstones that need a segment up to this one.
    pub(crate) fn pinned_by(&self, segment: u64) -> (Vec<ReplicaId>, Vec<WalRecord>) {
        let replicas = self
            .replicas
            .iter()
            .filter(|(_, replica)| replica.oldest_segment() <= segment)
            .map(|(id, _)| *id)
            .collect();
        let tombstones = self
            .tombstones
            .iter()
            .filter(|(_, (_, at))| *at <= segment)
            .map(|(shard, (replica, _))| WalRecord::Destroyed { replica: *replica, shard: *shard })
            .collect();
        (replicas, tombstones)
    }

    /// A replica's whole state as records.
    pub(crate) fn rewrite_of(&self, id: ReplicaId) -> Vec<WalRecord> {
        let Some(replica) = self.replicas.get(&id) else { return Vec::new() };
        let mut records = vec![
            WalRecord::Created {
                replica: id,
                shard: replica.shard,
                volume: replica.volume,
                start: replica.start,
                birth: replica.birth.clone(),
            },
            WalRecord::HardState { replica: id, state: replica.hard_state },
        ];
        if has(Bug::RewriteForgetsVote) {
            records.pop();
        }
        if let (Some((parent, index)), Some(volume)) = (replica.origin, replica.volume) {
            let (shard, birth) = (replica.shard, replica.birth.clone());
            records.push(WalRecord::Split { replica: id, shard, volume, birth, parent, index });
        }
        records.extend(
            replica
                .entries
                .iter()
                .map(|entry| WalRecord::Append { replica: id, entries: vec![entry.clone()] }),
        );
        records
    }

    /// A replica's whole state takes the place of what was known of it.
    pub(crate) fn replace(
        &mut self,
        records: &[WalRecord],
        segment: u64,
    ) -> Result<(), Inconsistent> {
        if let Some(record) = records.first() {
            self.replicas.remove(&record.replica());
        }
        records.iter().try_for_each(|record| self.follow(record, segment))
    }

    /// Takes in the next record.
    pub(crate) fn follow(&mut self, record: &WalRecord, segment: u64) -> Result<(), Inconsistent> {
        match record {
            WalRecord::Created { replica, shard, volume, start, birth } => {
                self.name_volume(*volume);
                if let Some(known) = self.replicas.get_mut(replica) {
                    // A message has created it; now it is born. What it has voted stays.
                    if !known.is_unborn() || volume.is_none() || known.shard != *shard {
                        return Err(Inconsistent(format!("replica {replica} is created twice")));
                    }
                    (known.volume, known.birth, known.start) = (*volume, birth.clone(), *start);
                    known.pin_base(segment);
                    return Ok(());
                }
                let created = LiveReplica {
                    volume: *volume,
                    birth: birth.clone(),
                    start: *start,
                    ..LiveReplica::empty(*shard, segment)
                };
                self.replicas.insert(*replica, created);
            }
            WalRecord::Split { replica, shard, volume, birth, parent, index } => {
                self.name_volume(Some(*volume));
                let child =
                    self.replicas.entry(*replica).or_insert(LiveReplica::empty(*shard, segment));
                if child.is_unborn() {
                    child.volume = Some(*volume);
                    child.birth = birth.clone();
                    child.start = INITIAL_POSITION;
                }
                child.origin = Some((*parent, *index));
                child.pin_base(segment);
            }
            WalRecord::Append { replica, entries } => {
                self.replica(*replica)?.append(entries, segment)?;
            }
            WalRecord::HardState { replica, state } => {
                let replica = self.replica(*replica)?;
                replica.hard_state = *state;
                replica.hard_state_segment = segment;
            }
            WalRecord::Compacted { replica, through } => {
                self.replica(*replica)?.compact(*through, segment)?;
            }
            WalRecord::VolumeSwitched { replica, volume, start } => {
                self.name_volume(Some(*volume));
                let replica = self.replica(*replica)?;
                replica.volume = Some(*volume);
                replica.origin = None;
                replica.start = *start;
                replica.entries.clear();
                replica.segments.clear();
                // The switch itself must be found again.
                replica.pin_base(segment);
            }
            WalRecord::Destroyed { replica, shard } => {
                self.replicas.remove(replica);
                let tombstone = self.tombstones.entry(*shard).or_insert((*replica, segment));
                if *replica >= tombstone.0 {
                    *tombstone = (*replica, segment);
                }
            }
        }
        Ok(())
    }

    fn name_volume(&mut self, volume: Option<VolumeId>) {
        self.highest_volume = self.highest_volume.max(volume.unwrap_or_default());
    }

    fn replica(&mut self, id: ReplicaId) -> Result<&mut LiveReplica, Inconsistent> {
        self.replicas
            .get_mut(&id)
            .ok_or_else(|| Inconsistent(format!("replica {id} was not created")))
    }
}

/// The volumes that must be flushed before these records are appended to a log in state `live`.
///
/// When a replica leaves a volume that a child of it lives in too, the log forgets the entries
/// that the child's state came from: the engine must hold it durably first. The same where a child
/// comes after its parent has gone.
pub fn volumes_to_flush(live: &LiveState, records: &[WalRecord]) -> BTreeSet<VolumeId> {
    let born = |volume: VolumeId| {
        records.iter().any(
            |record| matches!(record, WalRecord::Split { volume: shared, .. } if *shared == volume),
        )
    };
    let leaves = |replica: &ReplicaId| {
        let volume = live.replicas.get(replica)?.volume?;
        let others = |(other, found): (&ReplicaId, &LiveReplica)| {
            other != replica && found.volume == Some(volume)
        };
        (born(volume) || live.replicas.iter().any(others)).then_some(volume)
    };
    let due = |record: &WalRecord| match record {
        WalRecord::Destroyed { replica, .. } | WalRecord::VolumeSwitched { replica, .. } => {
            leaves(replica)
        }
        WalRecord::Split { volume, parent, .. } => {
            let parent = live.replicas.get(parent);
            parent.is_none_or(|parent| parent.volume != Some(*volume)).then_some(*volume)
        }
        _ => None,
    };
    records.iter().filter_map(due).collect()
}

impl LiveReplica {
    fn empty(shard: ShardId, segment: u64) -> Self {
        LiveReplica {
            shard,
            volume: None,
            birth: Bytes::new(),
            origin: None,
            start: LogPosition::default(),
            hard_state: HardState::default(),
            entries: VecDeque::new(),
            segments: VecDeque::new(),
            base_segment: segment,
            hard_state_segment: segment,
        }
    }

    fn oldest_segment(&self) -> u64 {
        let entries = self.segments.front().copied().unwrap_or(u64::MAX);
        self.base_segment.min(self.hard_state_segment).min(entries)
    }

    /// Whether it has neither a state nor a log of its own yet.
    fn is_unborn(&self) -> bool {
        self.volume.is_none() && self.start.index < INITIAL_POSITION.index
    }

    /// `base_segment` stays where `Created` is: what came later needs it as well.
    fn pin_base(&mut self, segment: u64) {
        self.base_segment = self.base_segment.min(segment);
    }

    fn append(&mut self, entries: &[LogEntry], segment: u64) -> Result<(), Inconsistent> {
        for entry in entries {
            let next = self.start.index.0 + self.entries.len() as u64 + 1;
            if entry.index.0 <= self.start.index.0 || entry.index.0 > next {
                return Err(Inconsistent(format!(
                    "entry {} doesn't follow a log of {}..{next}",
                    entry.index, self.start.index
                )));
            }
            let keep = (entry.index.0 - self.start.index.0 - 1) as usize;
            self.entries.truncate(keep);
            self.segments.truncate(keep);
            self.entries.push_back(entry.clone());
            self.segments.push_back(segment);
        }
        Ok(())
    }

    fn compact(&mut self, through: LogPosition, segment: u64) -> Result<(), Inconsistent> {
        if through.index <= self.start.index {
            return Ok(());
        }
        let gone = (through.index.0 - self.start.index.0) as usize;
        if gone > self.entries.len() {
            return Err(Inconsistent(format!(
                "compacted through {}, which isn't there",
                through.index
            )));
        }
        self.entries.drain(..gone);
        self.segments.drain(..gone);
        self.start = through;
        self.pin_base(segment);
        Ok(())
    }

    /// The last entry, or where the log starts.
    pub fn last_index(&self) -> LogIndex {
        self.entries.back().map_or(self.start.index, |entry| entry.index)
    }
}
