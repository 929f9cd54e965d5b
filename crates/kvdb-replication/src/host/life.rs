//! How replicas come to be here, and how they end.

use super::Host;
use crate::effect::{ApplyTask, Effect, SnapshotRefusal};
use crate::group::RecoveredGroup;
use crate::input::UnsafeRecovery;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::time::MAX_CLOCK_SKEW_MS;
use kvdb_model::{
    HardState, LogIndex, LogPosition, ReplicaId, ShardDescriptor, ShardId, Term, TimeMark,
    VolumeId, WalRecord,
};

/// What a new replica begins with.
pub(super) struct Birth {
    pub(super) descriptor: ShardDescriptor,
    pub(super) volume: VolumeId,
    pub(super) time: TimeMark,
    /// For a child of a split: the parent's replica and entry.
    pub(super) origin: Option<(ReplicaId, LogIndex)>,
}

/// Where the time of a shard begins that goes on without its majority: above all that the lost
/// replicas can have given out. They kept to cluster time, give or take what clocks may differ; those of
/// a shard that is far ahead of it may have gone on for as long as the survivor was away.
fn leap_to_ms(known_ms: u64, agreed_ms: Option<u64>) -> u64 {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    match agreed_ms {
        Some(agreed_ms) if known_ms <= agreed_ms + MAX_CLOCK_SKEW_MS => {
            agreed_ms + 2 * MAX_CLOCK_SKEW_MS
        }
        _ => known_ms + DAY_MS,
    }
}

impl<T> Host<T> {
    /// A candidate asks a replica for its vote. Returns whether it is here, now at least.
    pub(super) fn asked_for_vote(&mut self, shard: ShardId, receiver: ReplicaId) -> bool {
        if self.groups.contains_key(&shard) {
            return true;
        }
        // Coordinators come to be by greeting each other.
        shard != ShardId::CONTROL
            && !self.is_buried(shard, receiver)
            && self.pending_votes.heard(&self.config, shard, receiver)
            && self.admit(shard, receiver)
    }

    /// Makes room for a replica that a leader speaks to, if it may exist here. Returns whether it
    /// does now.
    pub(super) fn admit(&mut self, shard: ShardId, receiver: ReplicaId) -> bool {
        // Also one that is here takes nothing in any more.
        if receiver < self.least_replica {
            return false;
        }
        if let Some(group) = self.groups.get(&shard) {
            if group.replica >= receiver {
                return group.replica == receiver;
            }
            let old = group.replica;
            self.destroy(shard, old);
        }
        if receiver.0 == 0 || self.is_buried(shard, receiver) {
            return false;
        }
        self.out.records.push(WalRecord::Created {
            replica: receiver,
            shard,
            volume: None,
            start: LogPosition::default(),
            birth: bytes::Bytes::new(),
        });
        self.insert(
            RecoveredGroup {
                replica: receiver,
                shard,
                volume: None,
                hard_state: HardState::default(),
                start: LogPosition::default(),
                entries: Vec::new(),
                applied: LogPosition::default(),
                descriptor: None,
                time: TimeMark::default(),
                engine_lost: false,
            },
            false,
        );
        true
    }

    pub(super) fn create(&mut self, descriptor: ShardDescriptor, volume: VolumeId, campaign: bool) {
        let birth = Birth { descriptor, volume, time: TimeMark::default(), origin: None };
        let shard = birth.descriptor.shard_id;
        let admissible = self.own_replica(&birth.descriptor).filter(|replica| {
            let here = self.groups.get(&shard);
            here.is_none_or(|group| group.replica == *replica && group.may_be_born())
                && !self.is_buried(shard, *replica)
                && *replica >= self.least_replica
        });
        match admissible {
            Some(replica) => {
                let stored = self.end_unborn(shard);
                self.bear(replica, birth, stored, campaign);
            }
            None => self.out.effects.push(Effect::DropVolume(volume)),
        }
    }

    pub(super) fn split(&mut self, parent: Option<ShardDescriptor>, birth: Birth) {
        let mut leads = false;
        if let Some(parent) = parent
            && let Some(group) = self.touch(parent.shard_id)
        {
            leads = group.is_leader();
            group.range_changed(&parent);
        }
        let shard = birth.descriptor.shard_id;
        let Some(replica) = self.own_replica(&birth.descriptor) else { return };
        let here = self.groups.get(&shard);
        if here.is_some_and(|group| group.replica == replica && !group.may_be_born()) {
            return;
        }
        if here.is_some_and(|group| group.replica > replica) || self.is_buried(shard, replica) {
            let volume = Some(birth.volume);
            self.out.effects.push(Effect::Apply(ApplyTask::Close { shard, replica, volume }));
            return;
        }
        if let Some(old) = here.map(|group| group.replica).filter(|old| *old != replica) {
            self.destroy(shard, old);
        }
        let stored = self.end_unborn(shard);
        self.bear(replica, birth, stored, leads);
    }

    /// A replica that a message has created makes way for its own birth. It may have voted: that
    /// stays.
    fn end_unborn(&mut self, shard: ShardId) -> HardState {
        let Some(mut group) = self.groups.remove(&shard) else { return HardState::default() };
        self.awake.remove(&shard);
        let stored = group.hard_state();
        group.close(&mut self.out);
        self.awaiting_apply.remove(&shard);
        stored
    }

    fn own_replica(&self, descriptor: &ShardDescriptor) -> Option<ReplicaId> {
        descriptor.replica_on(self.config.node_id).map(|replica| replica.replica_id)
    }

    fn is_buried(&self, shard: ShardId, replica: ReplicaId) -> bool {
        self.tombstones.get(&shard).is_some_and(|highest| replica <= *highest)
    }

    /// A replica begins its life with a state of its own.
    fn bear(&mut self, replica: ReplicaId, from: Birth, stored: HardState, campaign: bool) {
        let Birth { descriptor, volume, time, origin } = from;
        let shard = descriptor.shard_id;
        let birth = descriptor.to_bytes();
        let first = HardState {
            term: INITIAL_POSITION.term,
            vote: ReplicaId(0),
            commit: INITIAL_POSITION.index,
        };
        let hard_state = if stored.term >= first.term {
            HardState { commit: first.commit, ..stored }
        } else {
            first
        };
        self.out.records.push(match origin {
            Some((parent, index)) => {
                WalRecord::Split { replica, shard, volume, birth: birth.clone(), parent, index }
            }
            None => WalRecord::Created {
                replica,
                shard,
                volume: Some(volume),
                start: INITIAL_POSITION,
                birth: birth.clone(),
            },
        });
        self.out.records.push(WalRecord::HardState { replica, state: hard_state });
        self.out.effects.push(Effect::Apply(ApplyTask::Open {
            shard,
            replica,
            volume,
            birth,
            start: INITIAL_POSITION,
        }));
        let group = RecoveredGroup {
            replica,
            shard,
            volume: Some(volume),
            hard_state,
            start: INITIAL_POSITION,
            entries: Vec::new(),
            applied: INITIAL_POSITION,
            descriptor: Some(descriptor),
            time,
            engine_lost: false,
        };
        self.insert(group, false);
        if let Some(group) = self.groups.get_mut(&shard) {
            group.await_birth(&mut self.out);
            group.is_born();
        }
        self.touch(shard);
        if campaign && let Some(group) = self.groups.get_mut(&shard) {
            group.lead_first(&self.config);
        }
    }

    /// A replica ends, and another one goes on from what it has left: see [`UnsafeRecovery`].
    pub(super) fn recover_unsafely(&mut self, unsafe_recovery: UnsafeRecovery) {
        let shard = unsafe_recovery.descriptor.shard_id;
        let Some(replica) = self.may_be_reborn(&unsafe_recovery) else {
            self.out.effects.push(Effect::DropVolume(unsafe_recovery.volume));
            return;
        };
        let term = self.groups.get(&shard).map(|group| group.hard_state().term);
        let term = Term(unsafe_recovery.term.max(term.unwrap_or_default()).0 + 1);
        let hard_state =
            HardState { term, vote: ReplicaId(0), commit: unsafe_recovery.log_end.index };
        let known_ms =
            self.groups.get(&shard).map(|group| group.time().times(self.now.boot_us).time_ms);
        let known_ms = known_ms.unwrap_or_default().max(unsafe_recovery.time.version.millis());
        let agreed_ms = self.cluster.now_ms(self.now.boot_us);
        let birth = unsafe_recovery.descriptor.to_bytes();
        let (volume, start) = (Some(unsafe_recovery.volume), unsafe_recovery.log_end);
        // These three stay together in one frame of the log (`kvdb_wal`): the old replica's end
        // and the new one's birth.
        self.destroy(shard, unsafe_recovery.survivor);
        self.out.records.push(WalRecord::Created {
            replica,
            shard,
            volume,
            start,
            birth: birth.clone(),
        });
        self.out.records.push(WalRecord::HardState { replica, state: hard_state });
        self.out.effects.push(Effect::Apply(ApplyTask::Open {
            shard,
            replica,
            volume: unsafe_recovery.volume,
            birth,
            start,
        }));
        let group = RecoveredGroup {
            replica,
            shard,
            volume,
            hard_state,
            start,
            entries: Vec::new(),
            applied: start,
            descriptor: Some(unsafe_recovery.descriptor),
            time: unsafe_recovery.time,
            engine_lost: false,
        };
        self.insert(group, false);
        let now = self.now;
        if let Some(group) = self.groups.get_mut(&shard) {
            group.leap(leap_to_ms(known_ms, agreed_ms), now);
            group.await_birth(&mut self.out);
        }
        if let Some(group) = self.touch(shard) {
            group.campaign();
        }
    }

    /// The id that a replica may go on under.
    fn may_be_reborn(&self, unsafe_recovery: &UnsafeRecovery) -> Option<ReplicaId> {
        let descriptor = &unsafe_recovery.descriptor;
        let replica = self.own_replica(descriptor).filter(|_| descriptor.replicas.len() == 1)?;
        let group = self.groups.get(&descriptor.shard_id)?;
        let is_free = replica > group.replica && !self.is_buried(descriptor.shard_id, replica);
        let unchanged =
            group.replica == unsafe_recovery.survivor && group.log_end() == unsafe_recovery.log_end;
        (is_free && unchanged && group.cant_go_on().is_ok()).then_some(replica)
    }

    pub(super) fn destroy(&mut self, shard: ShardId, replica: ReplicaId) {
        if self.groups.get(&shard).is_none_or(|group| group.replica != replica) {
            return;
        }
        let Some(mut group) = self.groups.remove(&shard) else { return };
        self.awake.remove(&shard);
        group.close(&mut self.out);
        self.awaiting_apply.remove(&shard);
        self.out.records.push(WalRecord::Destroyed { replica, shard });
        let highest = self.tombstones.entry(shard).or_default();
        *highest = (*highest).max(replica);
        let task = ApplyTask::Close { shard, replica, volume: group.volume };
        self.closing.push_back((self.out.next_batch, task));
    }

    pub(super) fn consider_snapshot(
        &mut self,
        shard: ShardId,
        receiver: ReplicaId,
        descriptor: &ShardDescriptor,
    ) -> Result<(), SnapshotRefusal> {
        // One whose engine is lost has no data, and only knows the range that it was born with.
        let overlapping = self.groups.iter().find(|(other, group)| {
            **other != shard
                && !group.is_engine_lost()
                && group.descriptor().is_some_and(|here| here.range.overlaps(&descriptor.range))
        });
        if let Some((other, _)) = overlapping {
            return Err(SnapshotRefusal::Overlaps(*other));
        }
        if !self.admit(shard, receiver) {
            return Err(SnapshotRefusal::WrongReplica);
        }
        match self.groups.get(&shard) {
            Some(group) if group.is_receiving() => Err(SnapshotRefusal::Busy),
            _ => Ok(()),
        }
    }
}
