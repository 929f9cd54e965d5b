//! The table of groups: who is here, who may come to be here, and who is gone for good.

use crate::config::HostConfig;
use crate::effect::{
    ApplyTask, CantGoOn, Effect, GroupStatus, LogTail, PeerMessage, PersistBatch, SnapshotRefusal,
};
use crate::group::{Group, RecoveredGroup};
use crate::input::{Input, Now, Rebirth, Rejection};
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    HardState, LogIndex, LogPosition, NodeId, ReplicaId, ShardDescriptor, ShardId, Term, Version,
    VolumeId, WalRecord,
};
use raft::eraftpb::MessageType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Effects under construction.
pub(crate) struct Outbox<T> {
    pub(crate) effects: Vec<Effect<T>>,
    pub(crate) records: Vec<WalRecord>,
    /// The number that the records will have as a batch.
    pub(crate) next_batch: u64,
    /// Whom the durability of which batch concerns, in order.
    pub(crate) awaiting: VecDeque<(u64, ShardId)>,
    messages: BTreeMap<NodeId, Vec<PeerMessage>>,
}

impl<T> Outbox<T> {
    pub(crate) fn send(&mut self, to: NodeId, message: PeerMessage) {
        self.messages.entry(to).or_default().push(message);
    }

    pub(crate) fn refuse(&mut self, shard: ShardId, tickets: Vec<T>, why: Rejection) {
        self.effects.extend(tickets.into_iter().map(|ticket| Effect::Refused {
            shard,
            ticket,
            why,
        }));
    }
}

/// What a new replica begins with.
struct Birth {
    descriptor: ShardDescriptor,
    volume: VolumeId,
    last_version: Version,
    /// For a child of a split: the parent's replica and entry.
    origin: Option<(ReplicaId, LogIndex)>,
}

/// All groups of a process. See the crate's head for the rules that it follows.
pub struct Host<T> {
    config: HostConfig,
    logger: slog::Logger,
    groups: BTreeMap<ShardId, Group<T>>,
    tombstones: BTreeMap<ShardId, ReplicaId>,
    /// Groups to be processed, once each.
    dirty: Vec<ShardId>,
    /// Groups with reads that wait for entries to be applied.
    awaiting_apply: BTreeSet<ShardId>,
    /// Closed replicas whose tombstone is on its way to the disk, by batch.
    closing: VecDeque<(u64, ApplyTask<T>)>,
    /// Wall clock minus boot clock when it was last believed, in milliseconds.
    clock_offset_ms: Option<i64>,
    out: Outbox<T>,
}

impl<T> Host<T> {
    /// A host without groups. `tombstones` are what the log remembers of destroyed replicas.
    ///
    /// # Panics
    /// If [`HostConfig::validate`] refuses the configuration.
    pub fn new(
        config: HostConfig,
        tombstones: BTreeMap<ShardId, ReplicaId>,
        logger: slog::Logger,
    ) -> Self {
        if let Err(error) = config.validate() {
            panic!("replication can't be configured like this: {error}");
        }
        Host {
            config,
            logger,
            groups: BTreeMap::new(),
            tombstones,
            dirty: Vec::new(),
            awaiting_apply: BTreeSet::new(),
            closing: VecDeque::new(),
            clock_offset_ms: None,
            out: Outbox {
                effects: Vec::new(),
                records: Vec::new(),
                next_batch: 1,
                awaiting: VecDeque::new(),
                messages: BTreeMap::new(),
            },
        }
    }

    /// Brings back a replica after a restart. It grants no vote for one election timeout.
    ///
    /// # Panics
    /// If `group` contradicts itself: something is applied that is neither in the log nor before
    /// its start, or less is applied than the log starts after without `engine_lost`.
    pub fn recover(&mut self, group: RecoveredGroup) {
        let (shard, replica) = (group.shard, group.replica);
        self.insert(group, true);
        self.destroy_if_removed(shard, replica);
    }

    fn insert(&mut self, from: RecoveredGroup, restarted: bool) {
        let shard = from.shard;
        let rng = self.rng_for(from.replica);
        let group = Group::recover(&self.config, &self.logger, rng, from, restarted);
        self.groups.insert(shard, group);
        self.touch(shard);
    }

    fn rng_for(&self, replica: ReplicaId) -> ChaCha8Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.config.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&replica.0.to_le_bytes());
        ChaCha8Rng::from_seed(seed)
    }

    /// How each group is doing, by shard.
    pub fn statuses(&self) -> impl Iterator<Item = GroupStatus> {
        self.groups.values().map(Group::status)
    }

    /// How the next groups are doing, by shard: at most `most`, from `from` on.
    pub fn statuses_from(&self, from: ShardId, most: usize) -> impl Iterator<Item = GroupStatus> {
        self.groups.range(from..).take(most).map(|(_, group)| group.status())
    }

    /// What a replica's log holds after a position, for a copy of it that is to go on alone.
    ///
    /// # Errors
    /// Why it can't.
    pub fn log_after(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        position: LogPosition,
    ) -> Result<LogTail, CantGoOn> {
        let group = self.groups.get(&shard).filter(|group| group.replica == replica);
        let group = group.ok_or(CantGoOn::NotHere)?;
        group.cant_go_on()?;
        let entries = group.log_after(position).ok_or(CantGoOn::Changing)?;
        Ok(LogTail { entries, end: group.log_end() })
    }

    /// How one group is doing.
    pub fn status(&self, shard: ShardId) -> Option<GroupStatus> {
        self.groups.get(&shard).map(Group::status)
    }

    /// Takes in one event. What follows from it comes with the next [`Host::drain`].
    pub fn step(&mut self, now: Now, input: Input<T>) {
        self.watch_clock(now);
        match input {
            Input::Tick => self.tick(),
            Input::Message { from_node, message } => self.message(from_node, message),
            Input::Propose { shard, command, version_count, ticket } => {
                self.with_ticket(shard, ticket, |group, config, ticket| {
                    group.propose(config, command, version_count, ticket)
                });
            }
            Input::Read { shard, ticket } => {
                self.with_ticket(shard, ticket, |group, config, ticket| group.read(config, ticket));
            }
            Input::ChangeMembership { shard, replicas, context, ticket } => {
                self.with_ticket(shard, ticket, |group, _, ticket| {
                    group.change_membership(now, &replicas, context, ticket)
                });
            }
            Input::Persisted(batch) => self.persisted(batch),
            Input::Applied { shard, replica, position, membership } => {
                self.with_replica(shard, replica, |group, _, _| {
                    group.applied(position, membership);
                });
                self.destroy_if_removed(shard, replica);
            }
            Input::Flushed { shard, replica, applied } => {
                self.with_replica(shard, replica, |group, config, out| {
                    group.flushed(config, applied, out);
                });
            }
            Input::Create { descriptor, volume, campaign } => {
                self.create(descriptor, volume, campaign);
            }
            Input::Split { from, child, volume, last_version } => {
                let origin = from.as_ref().map(|from| (from.replica, from.index));
                let origin = Some(origin.unwrap_or_default());
                let birth = Birth { descriptor: child, volume, last_version, origin };
                self.split(from.map(|from| from.parent), birth);
            }
            Input::Rebear(rebirth) => self.rebear(rebirth),
            Input::Destroy { shard, replica } => self.destroy(shard, replica),
            Input::TransferLeader { shard, to } => self.transfer_leader(shard, to),
            Input::TransferAll => {
                for shard in self.groups.keys().copied().collect::<Vec<_>>() {
                    self.transfer_leader(shard, None);
                }
            }
            Input::SnapshotTaken { shard, to, position, descriptor } => {
                if let Some(group) = self.touch(shard) {
                    group.snapshot_taken(to, position, &descriptor);
                }
            }
            Input::SnapshotSent { shard, to, delivered } => {
                if let Some(group) = self.touch(shard) {
                    group.snapshot_sent(to, delivered);
                }
            }
            Input::SnapshotOffered { from_node: _, shard, message, descriptor, offer } => {
                let answer = self.consider_snapshot(shard, ReplicaId(message.to), &descriptor);
                self.out.effects.push(Effect::SnapshotAnswer { offer, answer });
            }
            Input::SnapshotIngested {
                from_node,
                shard,
                message,
                descriptor,
                last_version,
                volume,
            } => {
                let receiver = ReplicaId(message.to);
                let wanted = self.consider_snapshot(shard, receiver, &descriptor).is_ok();
                match self.touch(shard).filter(|_| wanted) {
                    Some(group) => {
                        group.snapshot_ingested(
                            from_node,
                            message,
                            descriptor,
                            last_version,
                            volume,
                        );
                        // The next event for the group might otherwise come between the message
                        // and the volume that belongs to it.
                        self.process(shard, now);
                    }
                    None => self.out.effects.push(Effect::DropVolume(volume)),
                }
            }
            Input::PeerUnreachable(node) => {
                for shard in self.led() {
                    if let Some(group) = self.touch(shard) {
                        group.report_unreachable(node);
                    }
                }
            }
        }
    }

    /// What is to be done now. Call it after a run of [`Host::step`]s: what came in together is
    /// packed together.
    ///
    /// `now` must have been read after the last of those events was taken in: reads that came
    /// with them are covered by a lease if it holds at that moment.
    pub fn drain(&mut self, now: Now) -> Vec<Effect<T>> {
        for shard in std::mem::take(&mut self.dirty) {
            if self.groups.get(&shard).is_some_and(|group| group.dirty) {
                self.process(shard, now);
            }
        }
        let mut effects = std::mem::take(&mut self.out.effects);
        for (to, messages) in std::mem::take(&mut self.out.messages) {
            effects.push(Effect::Send { to, messages });
        }
        if !self.out.records.is_empty() {
            let records = std::mem::take(&mut self.out.records);
            effects.push(Effect::Persist(PersistBatch { number: self.out.next_batch, records }));
            self.out.next_batch += 1;
        }
        effects
    }

    fn process(&mut self, shard: ShardId, now: Now) {
        if let Some(group) = self.groups.get_mut(&shard) {
            group.process(&self.config, now, &mut self.out);
            if group.reads_await_apply() {
                self.awaiting_apply.insert(shard);
            } else {
                self.awaiting_apply.remove(&shard);
            }
        }
    }

    /// Whether somebody waits for the next [`Input::Applied`]. Where nobody does, it may come with
    /// the event after it.
    pub fn awaits_apply(&self) -> bool {
        !self.awaiting_apply.is_empty()
    }

    /// The group, marked to be processed.
    fn touch(&mut self, shard: ShardId) -> Option<&mut Group<T>> {
        let group = self.groups.get_mut(&shard)?;
        if !std::mem::replace(&mut group.dirty, true) {
            self.dirty.push(shard);
        }
        Some(group)
    }

    fn with_replica(
        &mut self,
        shard: ShardId,
        replica: ReplicaId,
        event: impl FnOnce(&mut Group<T>, &HostConfig, &mut Outbox<T>),
    ) {
        if self.groups.get(&shard).is_none_or(|group| group.replica != replica) {
            return;
        }
        self.touch(shard);
        if let Some(group) = self.groups.get_mut(&shard) {
            event(group, &self.config, &mut self.out);
        }
    }

    fn with_ticket(
        &mut self,
        shard: ShardId,
        ticket: T,
        event: impl FnOnce(&mut Group<T>, &HostConfig, T) -> Result<(), (T, Rejection)>,
    ) {
        self.touch(shard);
        let refused = match self.groups.get_mut(&shard) {
            Some(group) => event(group, &self.config, ticket).err(),
            None => Some((ticket, Rejection::NoSuchShard)),
        };
        if let Some((ticket, why)) = refused {
            self.out.effects.push(Effect::Refused { shard, ticket, why });
        }
    }

    fn tick(&mut self) {
        for (shard, group) in &mut self.groups {
            if group.tick(&self.config) && !std::mem::replace(&mut group.dirty, true) {
                self.dirty.push(*shard);
            }
        }
    }

    fn led(&self) -> Vec<ShardId> {
        let led = self.groups.iter().filter(|(_, group)| group.is_leader());
        led.map(|(shard, _)| *shard).collect()
    }

    fn transfer_leader(&mut self, shard: ShardId, to: Option<ReplicaId>) {
        if let Some(group) = self.touch(shard) {
            group.transfer_leader(to);
        }
    }

    /// A wall clock that jumped would give versions far from real time: who leads steps down
    /// first, and the next leader is chosen by the others.
    fn watch_clock(&mut self, now: Now) {
        let offset_ms = now.wall_ms as i64 - (now.boot_us / 1000) as i64;
        let Some(believed) = self.clock_offset_ms else {
            self.clock_offset_ms = Some(offset_ms);
            return;
        };
        if offset_ms.abs_diff(believed) > self.config.max_clock_skew_ms {
            self.clock_offset_ms = Some(offset_ms);
            for shard in self.led() {
                if let Some(group) = self.touch(shard) {
                    group.step_down();
                }
            }
        }
    }

    fn persisted(&mut self, batch: u64) {
        while let Some((_, shard)) = self.out.awaiting.pop_front_if(|(number, _)| *number <= batch)
        {
            self.touch(shard);
            if let Some(group) = self.groups.get_mut(&shard) {
                group.persisted(batch, &mut self.out);
            }
        }
        while let Some((_, task)) = self.closing.pop_front_if(|(number, _)| *number <= batch) {
            self.out.effects.push(Effect::Apply(task));
        }
    }

    // ---- the life of replicas -----------------------------------------------------------

    fn message(&mut self, from_node: NodeId, message: PeerMessage) {
        let PeerMessage { shard, message } = message;
        let from_leader = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => true,
            MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgTimeoutNow => false,
            // Snapshots come by their own way; proposals, reads and transfers are not forwarded;
            // the rest is raft's talk with itself.
            _ => return,
        };
        let receiver = ReplicaId(message.to);
        if from_leader && !self.admit(shard, receiver) {
            return;
        }
        if let Some(group) = self.touch(shard).filter(|group| group.replica == receiver) {
            group.step(from_node, message);
        }
    }

    /// Makes room for a replica that a leader speaks to, if it may exist here. Returns whether it
    /// does now.
    fn admit(&mut self, shard: ShardId, receiver: ReplicaId) -> bool {
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
                last_version: Version::ZERO,
                engine_lost: false,
            },
            false,
        );
        true
    }

    fn create(&mut self, descriptor: ShardDescriptor, volume: VolumeId, campaign: bool) {
        let birth = Birth { descriptor, volume, last_version: Version::ZERO, origin: None };
        let shard = birth.descriptor.shard_id;
        let admissible = self.own_replica(&birth.descriptor).filter(|replica| {
            !self.groups.contains_key(&shard) && !self.is_buried(shard, *replica)
        });
        match admissible {
            Some(replica) => self.bear(replica, birth, HardState::default(), campaign),
            None => self.out.effects.push(Effect::DropVolume(volume)),
        }
    }

    fn split(&mut self, parent: Option<ShardDescriptor>, birth: Birth) {
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
        // One that a message has created may have voted: that stays.
        let mut stored = HardState::default();
        if here.is_some_and(|group| group.replica == replica) {
            if let Some(mut group) = self.groups.remove(&shard) {
                stored = group.hard_state();
                group.close(&mut self.out);
            }
            self.awaiting_apply.remove(&shard);
        } else if let Some(old) = here.map(|group| group.replica) {
            self.destroy(shard, old);
        }
        self.bear(replica, birth, stored, leads);
    }

    fn own_replica(&self, descriptor: &ShardDescriptor) -> Option<ReplicaId> {
        descriptor.replica_on(self.config.node_id).map(|replica| replica.replica_id)
    }

    fn is_buried(&self, shard: ShardId, replica: ReplicaId) -> bool {
        self.tombstones.get(&shard).is_some_and(|highest| replica <= *highest)
    }

    /// A replica begins its life with a state of its own.
    fn bear(&mut self, replica: ReplicaId, from: Birth, stored: HardState, campaign: bool) {
        let Birth { descriptor, volume, last_version, origin } = from;
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
            last_version,
            engine_lost: false,
        };
        self.insert(group, false);
        if let Some(group) = self.groups.get_mut(&shard) {
            group.await_birth(&mut self.out);
        }
        if campaign && let Some(group) = self.touch(shard) {
            group.campaign();
        }
    }

    /// A replica ends, and another one goes on from what it has left: see [`Rebirth`].
    fn rebear(&mut self, rebirth: Rebirth) {
        let shard = rebirth.descriptor.shard_id;
        let Some(replica) = self.may_be_reborn(&rebirth) else {
            self.out.effects.push(Effect::DropVolume(rebirth.volume));
            return;
        };
        let term = self.groups.get(&shard).map(|group| group.hard_state().term);
        let term = Term(rebirth.term.max(term.unwrap_or_default()).0 + 1);
        let hard_state = HardState { term, vote: ReplicaId(0), commit: rebirth.log_end.index };
        let birth = rebirth.descriptor.to_bytes();
        let (volume, start) = (Some(rebirth.volume), rebirth.log_end);
        // These three stay together in one frame of the log (`kvdb_wal`): the old replica's end
        // and the new one's birth.
        self.destroy(shard, rebirth.survivor);
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
            volume: rebirth.volume,
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
            descriptor: Some(rebirth.descriptor),
            last_version: rebirth.last_version,
            engine_lost: false,
        };
        self.insert(group, false);
        if let Some(group) = self.groups.get_mut(&shard) {
            group.await_birth(&mut self.out);
        }
        if let Some(group) = self.touch(shard) {
            group.campaign();
        }
    }

    /// The id that a replica may go on under.
    fn may_be_reborn(&self, rebirth: &Rebirth) -> Option<ReplicaId> {
        let descriptor = &rebirth.descriptor;
        let replica = self.own_replica(descriptor).filter(|_| descriptor.replicas.len() == 1)?;
        let group = self.groups.get(&descriptor.shard_id)?;
        let is_free = replica > group.replica && !self.is_buried(descriptor.shard_id, replica);
        let unchanged = group.replica == rebirth.survivor && group.log_end() == rebirth.log_end;
        (is_free && unchanged && group.cant_go_on().is_ok()).then_some(replica)
    }

    fn destroy(&mut self, shard: ShardId, replica: ReplicaId) {
        if self.groups.get(&shard).is_none_or(|group| group.replica != replica) {
            return;
        }
        let Some(mut group) = self.groups.remove(&shard) else { return };
        group.close(&mut self.out);
        self.awaiting_apply.remove(&shard);
        self.out.records.push(WalRecord::Destroyed { replica, shard });
        let highest = self.tombstones.entry(shard).or_default();
        *highest = (*highest).max(replica);
        let task = ApplyTask::Close { shard, replica, volume: group.volume };
        self.closing.push_back((self.out.next_batch, task));
    }

    fn destroy_if_removed(&mut self, shard: ShardId, replica: ReplicaId) {
        if self.groups.get(&shard).is_some_and(Group::is_removed) {
            self.destroy(shard, replica);
        }
    }

    fn consider_snapshot(
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

    /// The highest term that any replica here knows, for diagnostics.
    pub fn highest_term(&self) -> Term {
        self.statuses().map(|status| status.term).max().unwrap_or_default()
    }
}
