//! One replica of one shard: raft, its log, and everybody who waits on it.

use crate::config::HostConfig;
use crate::convert::{entry_to_model, entry_to_raft, hard_state_to_model};
use crate::effect::{ApplyTask, CommittedEntry, Effect, GroupStatus, PeerMessage, ReplicaRole};
use crate::host::Outbox;
use crate::input::{ConfOutcome, Now, Rejection};
use crate::lease::Lease;
use crate::membership::{conf_change_between, conf_state_of};
use crate::proposals::Proposals;
use crate::reads::Reads;
use crate::store::LogStore;
use bytes::Bytes;
use kvdb_model::{
    EntryKind, EntryPayload, HardState, HybridClock, LogEntry, LogIndex, LogPosition, NodeId,
    Replica, ReplicaId, ShardDescriptor, ShardId, Term, Version, VolumeId, WalRecord,
};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType, Snapshot};
use raft::{RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use std::collections::{BTreeMap, VecDeque};

/// Everything that a replica remembered through a restart.
#[derive(Clone, Debug)]
pub struct RecoveredGroup {
    /// The replica.
    pub replica: ReplicaId,
    /// Its shard.
    pub shard: ShardId,
    /// Where it lives; `None` if it waits for its first snapshot.
    pub volume: Option<VolumeId>,
    /// From the log.
    pub hard_state: HardState,
    /// Where the log starts.
    pub start: LogPosition,
    /// The log after `start`.
    pub entries: Vec<LogEntry>,
    /// What the engine has applied; `start` at least, or the replica has lost state.
    pub applied: LogPosition,
    /// The descriptor in the applied state.
    pub descriptor: Option<ShardDescriptor>,
    /// The highest version in the applied state.
    pub last_version: Version,
    /// The engine lost what the log has forgotten: apply nothing and ask for a snapshot.
    pub engine_lost: bool,
}

/// A raft ready whose records are on their way to the disk.
struct Persisting {
    batch: u64,
    ready: u64,
    messages: Vec<Message>,
    /// A snapshot in it takes effect when it is durable.
    switch: Option<Switch>,
}

#[derive(Clone, Copy)]
struct Switch {
    volume: VolumeId,
    position: LogPosition,
}

/// An ingested snapshot that raft has been offered.
struct Incoming {
    volume: VolumeId,
    descriptor: ShardDescriptor,
    last_version: Version,
}

pub(crate) struct Group<T> {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    pub(crate) volume: Option<VolumeId>,
    raw: RawNode<LogStore>,
    descriptor: Option<ShardDescriptor>,
    /// Where replicas are that the descriptor doesn't tell of (yet): learned from messages.
    routes: BTreeMap<ReplicaId, NodeId>,
    clock: HybridClock,
    proposals: Proposals<T>,
    reads: Reads<T>,
    lease: Lease,
    persisting: VecDeque<Persisting>,
    incoming: Option<Incoming>,
    applied: LogIndex,
    flushed: LogIndex,
    /// Membership entries handed out to be applied.
    conf_changes: VecDeque<(LogIndex, ConfChangeV2)>,
    hard_state_dirty: bool,
    /// Ticks during which votes are refused: what was promised before a restart is forgotten.
    silent_ticks: usize,
    election_timeout: usize,
    rng: ChaCha8Rng,
    role: StateRole,
    term: Term,
    leader: u64,
    pub(crate) dirty: bool,
    snapshot_pending: bool,
    engine_lost: bool,
}

impl<T> Group<T> {
    pub(crate) fn recover(
        config: &HostConfig,
        logger: &slog::Logger,
        rng: ChaCha8Rng,
        from: RecoveredGroup,
        restarted: bool,
    ) -> Self {
        let conf_state =
            from.descriptor.as_ref().map(|descriptor| conf_state_of(&descriptor.replicas));
        let entries: Vec<Entry> = from.entries.iter().map(entry_to_raft).collect();
        let mut clock = HybridClock::above(from.last_version);
        for entry in &from.entries {
            observe(&mut clock, &entry.data, entry.kind);
        }
        let mut hard_state = from.hard_state;
        // A commit index needs no sync of its own; what was applied was committed.
        hard_state.commit = hard_state.commit.max(from.applied.index).max(from.start.index);
        let applied = if from.engine_lost { from.start.index } else { from.applied.index };
        let store = LogStore::new(from.start, entries, hard_state, conf_state.unwrap_or_default());
        let raft_config = raft::Config {
            id: from.replica.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            // A range so wide that what raft draws is always recognised and replaced.
            min_election_tick: config.election_ticks,
            max_election_tick: usize::MAX / 2,
            applied: applied.0,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: config.max_inflight_messages,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: raft::NO_LIMIT,
            max_committed_size_per_ready: 4 * 1024 * 1024,
            ..Default::default()
        };
        let raw = RawNode::new(&raft_config, store, logger)
            .expect("a configuration that HostConfig allows is valid");
        let mut group = Group {
            shard: from.shard,
            replica: from.replica,
            volume: from.volume,
            role: raw.raft.state,
            term: Term(raw.raft.term),
            leader: raw.raft.leader_id,
            raw,
            descriptor: from.descriptor,
            routes: BTreeMap::new(),
            clock,
            proposals: Proposals::new(),
            reads: Reads::new(),
            lease: Lease::default(),
            persisting: VecDeque::new(),
            incoming: None,
            applied,
            flushed: from.start.index,
            conf_changes: VecDeque::new(),
            hard_state_dirty: false,
            silent_ticks: if restarted { config.election_ticks } else { 0 },
            election_timeout: 0,
            rng,
            dirty: true,
            snapshot_pending: false,
            engine_lost: from.engine_lost,
        };
        group.draw_election_timeout(config);
        if group.engine_lost {
            // Takes effect with the next word from the leader.
            group.ask_for_snapshot();
        }
        group
    }

    pub(crate) fn descriptor(&self) -> Option<&ShardDescriptor> {
        self.descriptor.as_ref()
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub(crate) fn leader_node(&self) -> Option<NodeId> {
        self.node_of(ReplicaId(self.raw.raft.leader_id))
    }

    fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.replica(replica))
            .map(|replica| replica.node_id)
            .or_else(|| self.routes.get(&replica).copied())
    }

    pub(crate) fn status(&self) -> GroupStatus {
        GroupStatus {
            shard: self.shard,
            replica: self.replica,
            role: if self.is_leader() { ReplicaRole::Leader } else { ReplicaRole::Follower },
            term: Term(self.raw.raft.term),
            leader: self.leader_node(),
            last_index: LogIndex(self.raw.raft.raft_log.last_index()),
            committed: LogIndex(self.raw.raft.raft_log.committed),
            applied: self.applied,
            descriptor: self.descriptor.clone(),
        }
    }

    // ---- events -------------------------------------------------------------------------

    pub(crate) fn tick(&mut self, config: &HostConfig) {
        self.silent_ticks = self.silent_ticks.saturating_sub(1);
        if self.engine_lost {
            // Without state it mustn't lead, whatever its log holds.
            self.raw.raft.election_elapsed = 0;
            self.ask_for_snapshot();
            self.dirty = true;
        }
        if self.raw.tick() {
            self.dirty = true;
        }
        self.draw_election_timeout(config);
    }

    fn ask_for_snapshot(&mut self) {
        // Refused while there is no leader or one is on its way; asked again at the next tick.
        let _ = self.raw.request_snapshot();
    }

    /// Replaces what raft drew from its own generator by a draw from the seed.
    fn draw_election_timeout(&mut self, config: &HostConfig) {
        if self.raw.raft.randomized_election_timeout() == self.election_timeout {
            return;
        }
        let spread = config.election_spread_ticks.max(1) as u64;
        let drawn = config.election_ticks + (self.rng.next_u64() % spread) as usize;
        self.raw.raft.set_randomized_election_timeout(drawn);
        self.election_timeout = drawn;
    }

    pub(crate) fn campaign(&mut self) {
        self.dirty = true;
        // Fails only where it can't win anyway.
        let _ = self.raw.campaign();
    }

    pub(crate) fn step(&mut self, from_node: NodeId, message: Message) {
        let silenced = match message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => self.silent_ticks > 0,
            MessageType::MsgTimeoutNow => self.engine_lost,
            _ => false,
        };
        if silenced {
            return;
        }
        if message.from != 0 {
            self.routes.insert(ReplicaId(message.from), from_node);
        }
        self.dirty = true;
        // What raft refuses (a response of somebody who left) is of no consequence.
        let _ = self.raw.step(message);
    }

    pub(crate) fn propose(
        &mut self,
        config: &HostConfig,
        command: Bytes,
        version_count: u64,
        ticket: T,
    ) -> Result<(), (T, Rejection)> {
        if !self.is_leader() {
            return Err((ticket, Rejection::NotLeader(self.leader_node())));
        }
        if self.proposals.waiting() >= config.max_waiting_commands
            || self.proposals.arrived_bytes() + self.raw.store().unapplied_bytes()
                >= config.max_unapplied_bytes
        {
            return Err((ticket, Rejection::Overloaded));
        }
        self.proposals.arrive(command, version_count, ticket);
        self.dirty = true;
        Ok(())
    }

    pub(crate) fn change_membership(
        &mut self,
        now: Now,
        replicas: &[Replica],
        context: Bytes,
        ticket: T,
    ) -> Result<(), (T, Rejection)> {
        if !self.is_leader() {
            return Err((ticket, Rejection::NotLeader(self.leader_node())));
        }
        let Some(descriptor) = &self.descriptor else {
            return Err((ticket, Rejection::Unavailable));
        };
        let change = conf_change_between(&descriptor.replicas, replicas);
        let Ok(data) = change.write_to_bytes() else {
            return Err((ticket, Rejection::Unavailable));
        };
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = data.into();
        entry.context = context;
        let before = self.raw.raft.raft_log.last_index();
        if self.append_proposal(entry).is_err() {
            return Err((ticket, Rejection::Unavailable));
        }
        let index = self.raw.raft.raft_log.last_index();
        // Raft turns a change that it refuses into an empty normal entry.
        let kept =
            self.raw.raft.raft_log.entries(index, None, raft::GetEntriesContext::empty(false));
        let refused = kept.is_ok_and(|entries| {
            entries.first().is_none_or(|entry| entry.get_entry_type() == EntryType::EntryNormal)
        });
        self.dirty = true;
        if refused || index == before {
            return Err((ticket, Rejection::Unavailable));
        }
        let term = Term(self.raw.raft.term);
        self.proposals.proposed_alone(LogIndex(index), term, now.boot_us, ticket);
        Ok(())
    }

    fn append_proposal(&mut self, entry: Entry) -> raft::Result<()> {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.replica.0;
        message.entries = vec![entry].into();
        self.raw.raft.step(message)
    }

    pub(crate) fn read(&mut self, config: &HostConfig, ticket: T) -> Result<(), (T, Rejection)> {
        if !self.is_leader() {
            return Err((ticket, Rejection::NotLeader(self.leader_node())));
        }
        if self.reads.waiting() >= config.max_waiting_commands {
            return Err((ticket, Rejection::Overloaded));
        }
        self.reads.arrive(ticket);
        self.dirty = true;
        Ok(())
    }

    pub(crate) fn transfer_leader(&mut self, to: Option<ReplicaId>) {
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let Some(target) = to.map(|replica| replica.0).or_else(|| self.best_successor()) else {
            return;
        };
        if target == self.replica.0 {
            return;
        }
        self.lease.give_up(Term(self.raw.raft.term));
        self.raw.transfer_leader(target);
        self.dirty = true;
    }

    fn best_successor(&self) -> Option<u64> {
        let descriptor = self.descriptor.as_ref()?;
        let voters = conf_state_of(&descriptor.replicas).voters;
        self.raw
            .raft
            .prs()
            .iter()
            .filter(|(id, progress)| {
                **id != self.replica.0 && progress.recent_active && voters.contains(id)
            })
            .max_by_key(|(id, progress)| (progress.matched, std::cmp::Reverse(**id)))
            .map(|(id, _)| *id)
    }

    /// Gives up leadership without a successor: the wall clock can't be trusted.
    pub(crate) fn step_down(&mut self) {
        if self.is_leader() {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.dirty = true;
        }
    }

    pub(crate) fn report_unreachable(&mut self, node: NodeId) {
        if !self.is_leader() {
            return;
        }
        let there = self.descriptor.as_ref().and_then(|descriptor| descriptor.replica_on(node));
        if let Some(replica) = there {
            self.raw.report_unreachable(replica.replica_id.0);
            self.dirty = true;
        }
    }

    pub(crate) fn persisted(&mut self, batch: u64, out: &mut Outbox<T>) {
        while self.persisting.front().is_some_and(|first| first.batch <= batch) {
            let Some(done) = self.persisting.pop_front() else { break };
            self.finish_ready(done, out);
            self.dirty = true;
        }
    }

    fn finish_ready(&mut self, done: Persisting, out: &mut Outbox<T>) {
        self.raw.on_persist_ready(done.ready);
        if let Some(switch) = done.switch {
            let old = self.volume.replace(switch.volume);
            self.engine_lost = false;
            out.effects.push(Effect::Apply(ApplyTask::Switch {
                shard: self.shard,
                replica: self.replica,
                volume: switch.volume,
                position: switch.position,
                old,
            }));
        }
        self.send(done.messages, out);
    }

    pub(crate) fn applied(
        &mut self,
        config: &HostConfig,
        position: LogPosition,
        membership: Vec<ConfOutcome>,
    ) {
        for outcome in membership {
            self.apply_membership(outcome);
        }
        if position.index > self.applied {
            self.applied = position.index;
            self.raw.advance_apply_to(position.index.0);
            self.raw.mut_store().advance_applied(position.index);
        }
        self.draw_election_timeout(config);
        self.dirty = true;
    }

    fn apply_membership(&mut self, outcome: ConfOutcome) {
        while let Some((index, change)) = self.conf_changes.pop_front() {
            if index > outcome.index {
                self.conf_changes.push_front((index, change));
                break;
            }
            let (true, Some(descriptor)) = (index == outcome.index, &outcome.descriptor) else {
                continue;
            };
            match self.raw.apply_conf_change(&change) {
                Ok(state) => self.raw.mut_store().set_conf_state(state),
                Err(error) => panic!(
                    "shard {} replica {}: committed membership change at {index} can't be applied: {error}",
                    self.shard, self.replica
                ),
            }
            self.descriptor = Some(descriptor.clone());
        }
    }

    /// Whether an applied change has removed this replica from its group.
    pub(crate) fn is_removed(&self) -> bool {
        self.descriptor
            .as_ref()
            .is_some_and(|descriptor| descriptor.replica(self.replica).is_none())
    }

    pub(crate) fn flushed(&mut self, config: &HostConfig, applied: LogIndex, out: &mut Outbox<T>) {
        self.flushed = self.flushed.max(applied.min(self.applied));
        self.compact(config, out);
    }

    /// Forgets flushed entries, but keeps what followers still need while that is affordable.
    pub(crate) fn compact(&mut self, config: &HostConfig, out: &mut Outbox<T>) {
        let affordable = self.raw.store().index_leaving(config.log_retain_bytes);
        let needed = if self.is_leader() {
            let matched = self.raw.raft.prs().iter().map(|(_, progress)| progress.matched).min();
            LogIndex(matched.unwrap_or(0))
        } else {
            affordable
        };
        let through = self.flushed.min(needed.max(affordable));
        if let Some(start) = self.raw.mut_store().compact(through) {
            out.records.push(WalRecord::Compacted { replica: self.replica, through: start });
        }
    }

    pub(crate) fn snapshot_taken(
        &mut self,
        to: ReplicaId,
        position: LogPosition,
        descriptor: &ShardDescriptor,
    ) {
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index.0;
        metadata.term = position.term.0;
        metadata.set_conf_state(conf_state_of(&descriptor.replicas));
        self.raw.mut_store().offer_snapshot(to, snapshot);
        self.snapshot_pending = false;
        if self.is_leader() && self.raw.raft.prs().get(to.0).is_some() {
            self.raw.raft.send_append(to.0);
        }
        self.dirty = true;
    }

    pub(crate) fn snapshot_sent(&mut self, to: ReplicaId, delivered: bool) {
        self.raw.mut_store().retract_snapshot(to);
        self.snapshot_pending = false;
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(to.0, status);
        self.dirty = true;
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.incoming.is_some() || self.persisting.iter().any(|ready| ready.switch.is_some())
    }

    pub(crate) fn snapshot_ingested(
        &mut self,
        from_node: NodeId,
        message: Message,
        descriptor: ShardDescriptor,
        last_version: Version,
        volume: VolumeId,
    ) {
        self.incoming = Some(Incoming { volume, descriptor, last_version });
        self.step(from_node, message);
    }

    // ---- what follows from them ---------------------------------------------------------

    /// Carries out everything that the events since the last call have made possible.
    pub(crate) fn process(&mut self, config: &HostConfig, now: Now, out: &mut Outbox<T>) {
        self.dirty = false;
        self.notice_role(out);
        self.propose_arrived(config, now, out);
        self.confirm_reads(now);
        while self.raw.has_ready() {
            self.handle_ready(config, out);
            self.notice_role(out);
        }
        self.discard_unused_snapshot(out);
        self.want_snapshot(out);
        // Entries may have become committed, or applied, meanwhile.
        self.confirm_reads(now);
        let tickets = self.reads.take_ready(self.applied);
        if !tickets.is_empty() {
            out.effects.push(Effect::ReadReady { shard: self.shard, tickets });
        }
        self.draw_election_timeout(config);
    }

    fn notice_role(&mut self, out: &mut Outbox<T>) {
        let raft = &self.raw.raft;
        let (role, term, leader) = (raft.state, Term(raft.term), raft.leader_id);
        if (role, term, leader) == (self.role, self.term, self.leader) {
            return;
        }
        let was_leader = self.role == StateRole::Leader;
        let new_reign = role == StateRole::Leader && (!was_leader || term != self.term);
        if was_leader && (role != StateRole::Leader || term != self.term) {
            self.abdicate(out);
        }
        if new_reign {
            self.lease.reset();
        }
        let leads = role == StateRole::Leader;
        let visible = leads != was_leader || leader != self.leader || term != self.term;
        (self.role, self.term, self.leader) = (role, term, leader);
        if visible {
            out.effects.push(Effect::RoleChanged(self.status()));
        }
    }

    /// Leadership is over: nobody waits here any longer.
    fn abdicate(&mut self, out: &mut Outbox<T>) {
        self.lease.reset();
        self.raw.mut_store().retract_all_snapshots();
        self.snapshot_pending = false;
        let not_leader = Rejection::NotLeader(self.leader_node());
        let arrived = self.proposals.drain_arrived();
        let proposed = self.proposals.drain_proposed();
        let reads = self.reads.drain();
        out.refuse(self.shard, arrived, not_leader);
        out.refuse(self.shard, reads, not_leader);
        out.refuse(self.shard, proposed, Rejection::OutcomeUnknown);
    }

    /// Ends the replica: whoever waits is told.
    pub(crate) fn close(&mut self, out: &mut Outbox<T>) {
        self.abdicate(out);
        if let Some(incoming) = self.incoming.take() {
            out.effects.push(Effect::DropVolume(incoming.volume));
        }
        for ready in self.persisting.drain(..) {
            if let Some(switch) = ready.switch {
                out.effects.push(Effect::DropVolume(switch.volume));
            }
        }
    }

    fn propose_arrived(&mut self, config: &HostConfig, now: Now, out: &mut Outbox<T>) {
        if !self.proposals.has_arrived() {
            return;
        }
        if !self.is_leader() {
            let tickets = self.proposals.drain_arrived();
            out.refuse(self.shard, tickets, Rejection::NotLeader(self.leader_node()));
            return;
        }
        while let Some(packed) =
            self.proposals.pack(&mut self.clock, now.wall_ms, config.max_entry_bytes)
        {
            let mut entry = Entry::default();
            entry.data = packed.data;
            if self.append_proposal(entry).is_err() {
                // A transfer is under way, or this replica is leaving its group.
                let tickets = self.proposals.unpropose(packed.tickets);
                out.refuse(self.shard, tickets, Rejection::Unavailable);
                continue;
            }
            let index = LogIndex(self.raw.raft.raft_log.last_index());
            let term = Term(self.raw.raft.term);
            self.proposals.proposed(index, term, now.boot_us, packed.tickets);
        }
    }

    fn confirm_reads(&mut self, now: Now) {
        if !self.reads.has_arrived() || !self.is_leader() {
            return;
        }
        // Before an entry of its own term is committed, a leader doesn't know what is.
        if !self.raw.raft.commit_to_current_term() {
            return;
        }
        if self.lease.holds(now.boot_us) {
            self.reads.confirm_arrived(LogIndex(self.raw.raft.raft_log.committed));
            return;
        }
        let term = Term(self.raw.raft.term);
        if let Some(round) = self.reads.start_round(term, now.boot_us) {
            self.raw.read_index(round.to_le_bytes().to_vec());
        }
    }

    fn handle_ready(&mut self, config: &HostConfig, out: &mut Outbox<T>) {
        let mut ready = self.raw.ready();
        self.send(ready.take_messages(), out);
        for state in ready.take_read_states() {
            self.finish_read_round(config, &state.request_ctx, LogIndex(state.index));
        }
        let committed = ready.take_committed_entries();
        self.hand_out_committed(config, committed, out);

        let switch = self.take_snapshot_from(ready.snapshot(), out);
        let entries = ready.take_entries();
        if let Some(state) = ready.hs() {
            self.raw.mut_store().set_hard_state(hard_state_to_model(state));
            self.hard_state_dirty = true;
        }
        let must_sync = ready.must_sync();
        if must_sync {
            self.record(&entries, out);
        }
        self.raw.mut_store().append(&entries);
        let done = Persisting {
            batch: out.next_batch,
            ready: ready.number(),
            messages: ready.take_persisted_messages(),
            switch,
        };
        self.raw.advance_append_async(ready);
        if must_sync || !self.persisting.is_empty() {
            self.persisting.push_back(done);
        } else {
            // Nothing in it or before it needs the disk.
            self.finish_ready(done, out);
        }
    }

    fn record(&mut self, entries: &[Entry], out: &mut Outbox<T>) {
        if !entries.is_empty() {
            let entries: Vec<LogEntry> = entries.iter().map(entry_to_model).collect();
            for entry in &entries {
                observe(&mut self.clock, &entry.data, entry.kind);
            }
            out.records.push(WalRecord::Append { replica: self.replica, entries });
        }
        if std::mem::take(&mut self.hard_state_dirty) {
            let state = self.raw.store().hard_state();
            out.records.push(WalRecord::HardState { replica: self.replica, state });
        }
    }

    fn take_snapshot_from(&mut self, snapshot: &Snapshot, out: &mut Outbox<T>) -> Option<Switch> {
        if snapshot.is_empty() {
            return None;
        }
        let metadata = snapshot.get_metadata();
        let position = LogPosition { index: LogIndex(metadata.index), term: Term(metadata.term) };
        let incoming = self
            .incoming
            .take()
            .expect("a snapshot message is stepped only together with its volume");
        self.raw.mut_store().reset(position, conf_state_of(&incoming.descriptor.replicas));
        self.descriptor = Some(incoming.descriptor);
        self.clock.observe(incoming.last_version);
        self.conf_changes.clear();
        out.records.push(WalRecord::VolumeSwitched {
            replica: self.replica,
            volume: incoming.volume,
            start: position,
        });
        Some(Switch { volume: incoming.volume, position })
    }

    fn discard_unused_snapshot(&mut self, out: &mut Outbox<T>) {
        if let Some(incoming) = self.incoming.take() {
            out.effects.push(Effect::DropVolume(incoming.volume));
        }
    }

    fn want_snapshot(&mut self, out: &mut Outbox<T>) {
        let Some(to) = self.raw.store().take_wanted() else { return };
        if !self.snapshot_pending && self.is_leader() {
            self.snapshot_pending = true;
            out.effects.push(Effect::TakeSnapshot { shard: self.shard, to });
        }
    }

    fn finish_read_round(&mut self, config: &HostConfig, context: &[u8], index: LogIndex) {
        let Ok(id) = context.try_into().map(u64::from_le_bytes) else { return };
        let term = Term(self.raw.raft.term);
        if let Some(started_us) = self.reads.finish_round(id, term, index) {
            self.lease.renew(term, started_us, config.lease_us());
        }
    }

    fn hand_out_committed(
        &mut self,
        config: &HostConfig,
        entries: Vec<Entry>,
        out: &mut Outbox<T>,
    ) {
        if entries.is_empty() || self.engine_lost {
            // Without its engine it has no state to apply to; the snapshot that it asks for will
            // hold these entries.
            return;
        }
        let committed =
            entries.iter().map(|entry| self.committed_entry(config, entry, out)).collect();
        out.effects.push(Effect::Apply(ApplyTask::Entries {
            shard: self.shard,
            replica: self.replica,
            entries: committed,
        }));
    }

    fn committed_entry(
        &mut self,
        config: &HostConfig,
        entry: &Entry,
        out: &mut Outbox<T>,
    ) -> CommittedEntry<T> {
        let settled = self.proposals.settle(LogIndex(entry.index), Term(entry.term));
        out.refuse(self.shard, settled.superseded, Rejection::Superseded);
        let own_term = Term(entry.term) == Term(self.raw.raft.term) && self.is_leader();
        if let (Some(proposed_us), true) = (settled.proposed_us, own_term) {
            self.lease.renew(Term(entry.term), proposed_us, config.lease_us());
        }
        if entry.get_entry_type() != EntryType::EntryNormal {
            let mut change = ConfChangeV2::default();
            if let Err(error) = change.merge_from_bytes(&entry.data) {
                panic!(
                    "shard {}: membership entry {} is unreadable: {error}",
                    self.shard, entry.index
                );
            }
            self.conf_changes.push_back((LogIndex(entry.index), change));
        }
        CommittedEntry { entry: entry_to_model(entry), tickets: settled.tickets }
    }

    fn send(&mut self, messages: Vec<Message>, out: &mut Outbox<T>) {
        for message in messages {
            let Some(node) = self.node_of(ReplicaId(message.to)) else { continue };
            if message.get_msg_type() == MessageType::MsgSnapshot {
                let shard = self.shard;
                out.effects.push(Effect::StreamSnapshot { shard, to_node: node, message });
            } else {
                out.send(node, PeerMessage { shard: self.shard, message });
            }
        }
    }
}

fn observe(clock: &mut HybridClock, data: &Bytes, kind: EntryKind) {
    if kind == EntryKind::Normal
        && !data.is_empty()
        && let Ok(version) = EntryPayload::peek_last_version(data)
    {
        clock.observe(version);
    }
}
