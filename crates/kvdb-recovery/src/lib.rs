//! What a process is after a restart: its log and its engine put together.
//!
//! The log says which replicas exist, where they live and what they have promised; a replica's
//! volume holds its state as of the last flush. From both follow the groups of the replication
//! host and the shards of the apply thread. Pure: the simulator runs it too.
//!
//! # Rules
//!
//! - Applied above the end of the log: the log has lost synced bytes. The process doesn't start.
//! - Applied below the start of the log, or the volume gone or damaged: the engine is lost. The
//!   replica keeps its id and its vote, applies nothing, and asks its leader for a snapshot.
//! - A child of a split has its state from the parent's apply. If the parent's flushed state is
//!   before the split, the parent's log is applied up to it *first*: otherwise the parent's older
//!   entries would come over the child's newer ones, in the volume that they share.
//! - A volume that holds the state of a replica that the log doesn't know: the split was flushed
//!   and its record was not. The child is born now ([`Recovered::unborn`]).

mod unsafe_recovery;

pub use unsafe_recovery::{Copied, UnsafeRecoveryError, copy_alone};

use kvdb_engine::{Engine, EngineError, SequenceNumber};
use kvdb_model::codec::Reader;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    LogEntry, LogIndex, LogPosition, ReplicaId, ShardDescriptor, ShardId, TimeMark, VolumeId,
};
use kvdb_replication::RecoveredGroup;
use kvdb_store::{ApplyError, Machine, OpenError, Shard, is_in, replicas_in};
use kvdb_wal::{LiveReplica, LiveState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use thiserror::Error;

/// Why a process can't go on from what is on its disks. Nothing was damaged.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A replica's state.
    #[error("replica {replica} of shard {shard} can't be opened: {source}")]
    Replica {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Why.
        source: OpenError,
    },
    /// The parent of a split.
    #[error("shard {shard} can't be applied up to the split at {index}: {source}")]
    Replay {
        /// The parent.
        shard: ShardId,
        /// The entry that splits it.
        index: LogIndex,
        /// Why.
        source: ApplyError,
    },
    /// The engine holds more than the log: the log has lost bytes.
    #[error(
        "the log of replica {replica} of shard {shard} ends at {log_end}, but {applied} is applied: \
         the log has lost synced bytes. This node's replicas must not vote again; rebuild them from \
         the others with `kvdb admin replace NODE` and start with an empty directory"
    )]
    LogLost {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// The last entry in the log.
        log_end: u64,
        /// The last entry applied.
        applied: u64,
    },
}

/// A batch that was written while a parent was applied up to a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// The parent.
    pub shard: ShardId,
    /// Its replica.
    pub replica: ReplicaId,
    /// Where it lives.
    pub volume: VolumeId,
    /// Which batch it is.
    pub sequence: SequenceNumber,
    /// What is applied with it.
    pub applied: LogIndex,
}

/// A child whose split was flushed, but not remembered by the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unborn {
    /// The child.
    pub descriptor: ShardDescriptor,
    /// Its volume.
    pub volume: VolumeId,
    /// The highest version in it.
    pub time: TimeMark,
}

/// What was found.
pub struct Recovered<M> {
    /// For the replication host.
    pub groups: Vec<RecoveredGroup>,
    /// For the apply thread.
    pub shards: BTreeMap<ShardId, Shard<M>>,
    /// For whoever notes which flush covers what.
    pub replayed: Vec<Replayed>,
    /// To be handed to the host as splits.
    pub unborn: Vec<Unborn>,
    /// Replicas whose engine state is gone: they ask for a snapshot.
    pub lost: Vec<ShardId>,
    /// What is wrong with volumes that were found damaged only now.
    pub damage: Vec<String>,
    /// Volumes that no replica names: what a crash between making and naming them left.
    pub unused: Vec<VolumeId>,
}

struct Recovery<'a, M> {
    engine: &'a Arc<dyn Engine>,
    live: &'a LiveState,
    /// Volumes that are there and sound.
    sound: BTreeSet<VolumeId>,
    machine: &'a dyn Fn() -> M,
    done: BTreeSet<ReplicaId>,
    out: Recovered<M>,
}

/// Puts log and engine together. `damaged` are volumes that the engine has found broken.
///
/// # Errors
/// [`RecoveryError`].
pub fn recover<M: Machine>(
    engine: &Arc<dyn Engine>,
    live: &LiveState,
    damaged: &[VolumeId],
    machine: &dyn Fn() -> M,
) -> Result<Recovered<M>, RecoveryError> {
    let mut recovery = Recovery {
        engine,
        live,
        sound: engine.volumes().into_iter().filter(|volume| !damaged.contains(volume)).collect(),
        machine,
        done: BTreeSet::new(),
        out: Recovered {
            groups: Vec::new(),
            shards: BTreeMap::new(),
            replayed: Vec::new(),
            unborn: Vec::new(),
            lost: Vec::new(),
            damage: Vec::new(),
            unused: Vec::new(),
        },
    };
    for replica in live.replicas.keys() {
        recovery.visit(*replica)?;
    }
    recovery.find_unborn()?;
    let used: BTreeSet<VolumeId> =
        live.replicas.values().filter_map(|found| found.volume).collect();
    let all: BTreeSet<VolumeId> =
        engine.volumes().into_iter().chain(damaged.iter().copied()).collect();
    recovery.out.unused = all.difference(&used).copied().collect();
    Ok(recovery.out)
}

impl<M: Machine> Recovery<'_, M> {
    /// Brings back a replica, its parent first.
    fn visit(&mut self, replica: ReplicaId) -> Result<(), RecoveryError> {
        if !self.done.insert(replica) {
            return Ok(());
        }
        let Some(found) = self.live.replicas.get(&replica) else { return Ok(()) };
        if let Some((parent, index)) = found.origin {
            let shares = |parent: &LiveReplica| parent.volume == found.volume;
            if self.live.replicas.get(&parent).is_some_and(shares)
                && !has(Bug::ChildStartsBeforeParent)
            {
                self.visit(parent)?;
                self.replay(parent, index)?;
            }
        }
        let (group, shard) = self.open(replica, found)?;
        if group.engine_lost {
            self.out.lost.push(found.shard);
        }
        self.out.groups.push(group);
        self.out.shards.extend(shard.map(|shard| (found.shard, shard)));
        Ok(())
    }

    /// Applies a parent's log up to the entry that split it. Its group was found before with less
    /// applied: that is mended too.
    fn replay(&mut self, parent: ReplicaId, index: LogIndex) -> Result<(), RecoveryError> {
        let Some(found) = self.live.replicas.get(&parent) else { return Ok(()) };
        let Some(shard) = self.out.shards.get_mut(&found.shard) else { return Ok(()) };
        let applied = shard.applied().index;
        let due: Vec<LogEntry> = found
            .entries
            .iter()
            .filter(|entry| entry.index > applied && entry.index <= index)
            .cloned()
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let failed = |source| RecoveryError::Replay { shard: found.shard, index, source };
        let outcome = shard.apply(&due).map_err(failed)?;
        if let Some(sequence) = outcome.sequence {
            self.out.replayed.push(Replayed {
                shard: found.shard,
                replica: parent,
                volume: shard.volume(),
                sequence,
                applied: outcome.position.index,
            });
        }
        let group = self.out.groups.iter_mut().find(|group| group.replica == parent);
        if let Some(group) = group {
            group.applied = shard.applied();
            group.descriptor = Some(shard.descriptor().clone());
            group.time = shard.time();
        }
        Ok(())
    }

    fn open(
        &mut self,
        replica: ReplicaId,
        found: &LiveReplica,
    ) -> Result<(RecoveredGroup, Option<Shard<M>>), RecoveryError> {
        // The descriptor that it was born with tells at least who its peers were.
        let birth = ShardDescriptor::decode(&mut Reader::new(found.birth.clone())).ok();
        let bare = RecoveredGroup {
            replica,
            shard: found.shard,
            volume: found.volume,
            hard_state: found.hard_state,
            start: found.start,
            entries: found.entries.iter().cloned().collect(),
            applied: LogPosition::default(),
            descriptor: birth.filter(|_| found.volume.is_some()),
            time: TimeMark::default(),
            engine_lost: found.volume.is_some(),
        };
        let Some(volume) = found.volume.filter(|volume| self.sound.contains(volume)) else {
            return Ok((bare, None));
        };
        let shard = match self.open_in(volume, replica, found) {
            Ok(Some(shard)) => shard,
            Ok(None) | Err(OpenError::Engine(EngineError::VolumeMissing(_))) => {
                return Ok((bare, None));
            }
            Err(source) if is_damage(&source) => {
                self.out.damage.push(format!("volume {volume}: {source}"));
                self.sound.remove(&volume);
                return Ok((bare, None));
            }
            Err(source) => {
                return Err(RecoveryError::Replica { shard: found.shard, replica, source });
            }
        };
        let applied = shard.applied();
        if applied.index > found.last_index() {
            return Err(RecoveryError::LogLost {
                shard: found.shard,
                replica,
                log_end: found.last_index().0,
                applied: applied.index.0,
            });
        }
        if applied.index < found.start.index {
            return Ok((bare, None));
        }
        let group = RecoveredGroup {
            applied,
            descriptor: Some(shard.descriptor().clone()),
            time: shard.time(),
            engine_lost: false,
            ..bare
        };
        Ok((group, Some(shard)))
    }

    /// The replica's state in its volume; nothing where a split has left none.
    fn open_in(
        &self,
        volume: VolumeId,
        replica: ReplicaId,
        found: &LiveReplica,
    ) -> Result<Option<Shard<M>>, OpenError> {
        if found.origin.is_some() && !has(Bug::ChildStartsBeforeParent) {
            let snapshot = self.engine.snapshot(volume)?;
            // The parent's apply has left its state here, or else it is lost: it is not empty.
            if !is_in(&*snapshot, replica)? {
                return Ok(None);
            }
        }
        let machine = (self.machine)();
        Shard::open(self.engine.clone(), replica, volume, &found.birth, found.start, machine)
            .map(Some)
    }

    fn find_unborn(&mut self) -> Result<(), RecoveryError> {
        let tombstones = self.live.tombstones();
        let used: BTreeSet<VolumeId> = self
            .live
            .replicas
            .values()
            .filter_map(|found| found.volume)
            .filter(|volume| self.sound.contains(volume))
            .collect();
        for volume in used {
            let snapshot = self.engine.snapshot(volume)?;
            let here = replicas_in(&*snapshot).map_err(|source| {
                let (shard, replica) = (ShardId::default(), ReplicaId::default());
                RecoveryError::Replica { shard, replica, source }
            })?;
            for (replica, descriptor, time) in here {
                let shard = descriptor.shard_id;
                let is_gone = tombstones.get(&shard).is_some_and(|highest| replica <= *highest);
                let has_home =
                    self.live.replicas.get(&replica).is_some_and(|found| found.volume.is_some());
                let is_outlived = self
                    .live
                    .replicas
                    .iter()
                    .any(|(other, found)| found.shard == shard && *other > replica);
                if !is_gone && !has_home && !is_outlived {
                    self.out.unborn.push(Unborn { descriptor, volume, time });
                }
            }
        }
        Ok(())
    }
}

/// Whether a replica can't be opened because its files are not what was written. Its log is whole:
/// the leader has what is missing.
fn is_damage(error: &OpenError) -> bool {
    matches!(error, OpenError::Engine(EngineError::Damaged { .. }) | OpenError::Damage(_))
}
