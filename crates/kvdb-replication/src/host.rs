//! The table of groups: what comes in for which of them, and what is to be done. How they come to be
//! here and end is in [`life`].

mod life;

use crate::config::HostConfig;
use crate::effect::{ApplyTask, CantGoOn, Effect, GroupStatus, LogTail, PeerMessage, PersistBatch};
use crate::group::{Group, RecoveredGroup};
use crate::input::{Input, Now, Rejection};
use crate::liveness::{NodeLiveness, store_heartbeat};
use crate::pending_votes::PendingVotes;
use crate::permit::ReadPermit;
use crate::shard_time::ShardTime;
use crate::stall::Stall;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{ClusterClock, LogPosition, NodeId, ReplicaId, ShardId, Term, WalRecord};
use life::Birth;
use raft::eraftpb::MessageType;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

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

/// How long a first replica that is to be created is waited for, at most. A node to which a thousand
/// shards come at once takes seconds to make them.
const EXPECTED_TICKS: u64 = 3000;

/// All groups of a process. See the crate's head for the rules that it follows.
pub struct Host<T> {
    config: HostConfig,
    logger: slog::Logger,
    groups: BTreeMap<ShardId, Group<T>>,
    tombstones: BTreeMap<ShardId, ReplicaId>,
    /// Groups that count ticks.
    awake: BTreeSet<ShardId>,
    /// Groups to be processed, once each.
    dirty: Vec<ShardId>,
    /// Groups with reads that wait for entries to be applied.
    awaiting_apply: BTreeSet<ShardId>,
    /// Closed replicas whose tombstone is on its way to the disk, by batch.
    closing: VecDeque<(u64, ApplyTask<T>)>,
    pending_votes: PendingVotes,
    /// Shards whose first replica is to be created here, and until which tick it is waited for.
    expected: BTreeMap<ShardId, u64>,
    liveness: NodeLiveness,
    stall: Stall,
    /// Peers whose logs have stalled lately.
    wary_peers: BTreeSet<NodeId>,
    /// Replicas with lower ids take no part.
    least_replica: ReplicaId,
    /// Cluster time, as far as this process knows it.
    cluster: ClusterClock,
    /// The time of the present step.
    now: Now,
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
            awake: BTreeSet::new(),
            dirty: Vec::new(),
            awaiting_apply: BTreeSet::new(),
            closing: VecDeque::new(),
            pending_votes: PendingVotes::default(),
            expected: BTreeMap::new(),
            liveness: NodeLiveness::default(),
            stall: Stall::default(),
            wary_peers: BTreeSet::new(),
            least_replica: ReplicaId(0),
            cluster: ClusterClock::default(),
            now: Now::default(),
            out: Outbox {
                effects: Vec::new(),
                records: Vec::new(),
                next_batch: 1,
                awaiting: VecDeque::new(),
                messages: BTreeMap::new(),
            },
        }
    }

    /// Replicas with ids below this one have forgotten what they promised, also those that aren't here: the host runs
    /// on an older copy of its directory. They hear nobody and say nothing; all that is left to do with one is to go on
    /// from it as another one ([`Input::RecoverUnsafely`]).
    pub fn silence_below(&mut self, least: ReplicaId) {
        self.least_replica = self.least_replica.max(least);
    }

    /// Brings back a replica after a restart. It grants no vote for one election timeout.
    ///
    /// # Panics
    /// If `group` contradicts itself: something is applied that is neither in the log nor before
    /// its start, or less is applied than the log starts after without `engine_lost`.
    pub fn recover(&mut self, now: Now, group: RecoveredGroup) {
        self.now = now;
        self.insert(group, true);
    }

    fn insert(&mut self, from: RecoveredGroup, restarted: bool) {
        let shard = from.shard;
        let rng = self.rng_for(from.replica);
        let mut group = Group::recover(&self.config, &self.logger, rng, from, restarted, self.now);
        if self.stall.is_wary() {
            group.be_wary(true);
        }
        self.groups.insert(shard, group);
        self.awake.insert(shard);
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

    /// The highest term that any replica here knows, for diagnostics.
    pub fn highest_term(&self) -> Term {
        self.statuses().map(|status| status.term).max().unwrap_or_default()
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

    /// Whether a replica may serve strong reads at once, for other threads to look at.
    pub fn permit(&self, shard: ShardId, replica: ReplicaId) -> Option<&Arc<ReadPermit>> {
        let group = self.groups.get(&shard).filter(|group| group.replica == replica);
        group.map(|group| &group.permit)
    }

    /// Shard time as a replica knows it, for other threads to look at.
    pub fn shard_time(&self, shard: ShardId, replica: ReplicaId) -> Option<&Arc<ShardTime>> {
        let group = self.groups.get(&shard).filter(|group| group.replica == replica);
        group.map(Group::time)
    }

    /// Takes in one event. What follows from it comes with the next [`Host::drain`].
    pub fn step(&mut self, now: Now, input: Input<T>) {
        self.now = now;
        match input {
            Input::Tick => {
                self.tick();
                self.look_at_clocks();
            }
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
            }
            Input::Flushed { shard, replica, applied } => {
                self.with_replica(shard, replica, |group, config, out| {
                    group.flushed(config, applied, out);
                });
            }
            Input::Expect { shards } => {
                let until = self.liveness.now() + EXPECTED_TICKS;
                self.expected.extend(shards.into_iter().map(|shard| (shard, until)));
            }
            Input::Create { descriptor, volume, campaign } => {
                self.expected.remove(&descriptor.shard_id);
                self.create(descriptor, volume, campaign);
            }
            Input::Split { from, child, volume, time } => {
                let origin = from.as_ref().map(|from| (from.replica, from.index));
                let origin = Some(origin.unwrap_or_default());
                let birth = Birth { descriptor: child, volume, time, origin };
                self.split(from.map(|from| from.parent), birth);
            }
            Input::RecoverUnsafely(unsafe_recovery) => self.recover_unsafely(unsafe_recovery),
            Input::Destroy { shard, replica } => self.destroy(shard, replica),
            Input::TransferLeader { shard, to } => self.transfer_leader(shard, to),
            Input::TransferAll => {
                for shard in self.groups.keys().copied().collect::<Vec<_>>() {
                    self.transfer_leader(shard, None);
                }
            }
            Input::SnapshotTaken { shard, to, position, descriptor } => {
                if let Some(group) = self.touch(shard) {
                    group.wake();
                    group.snapshot_taken(to, position, &descriptor);
                }
            }
            Input::SnapshotSent { shard, to, delivered } => {
                if let Some(group) = self.touch(shard) {
                    group.wake();
                    group.snapshot_sent(to, delivered);
                }
            }
            Input::SnapshotOffered { from_node: _, shard, message, descriptor, offer } => {
                let answer = self.consider_snapshot(shard, ReplicaId(message.to), &descriptor);
                self.out.effects.push(Effect::SnapshotAnswer { offer, answer });
            }
            Input::SnapshotIngested { from_node, shard, message, descriptor, time, volume } => {
                let receiver = ReplicaId(message.to);
                let wanted = self.consider_snapshot(shard, receiver, &descriptor).is_ok();
                let tick = self.liveness.now();
                match self.touch(shard).filter(|_| wanted) {
                    Some(group) => {
                        group.snapshot_ingested(from_node, message, descriptor, time, volume, tick);
                        // The next event for the group might otherwise come between the message
                        // and the volume that belongs to it.
                        self.process(shard, now);
                    }
                    None => self.out.effects.push(Effect::DropVolume(volume)),
                }
            }
            Input::PeerWary { node, wary } => {
                if wary {
                    self.wary_peers.insert(node);
                } else {
                    self.wary_peers.remove(&node);
                }
            }
            Input::PeerClock { from_node, wall_ms } => {
                self.cluster.heard(from_node, wall_ms, now.boot_us);
            }
            Input::ClusterTime(cluster_ms) => {
                let was_known = self.agreed_ms().is_some();
                self.cluster.told(cluster_ms, now.boot_us);
                self.time_is_known(was_known);
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
        self.now = now;
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
            self.stall.issued(self.out.next_batch);
            effects.push(Effect::Persist(PersistBatch { number: self.out.next_batch, records }));
            self.out.next_batch += 1;
        }
        effects
    }

    fn process(&mut self, shard: ShardId, now: Now) {
        let agreed_ms = self.agreed_ms();
        if let Some(group) = self.groups.get_mut(&shard) {
            group.process(&self.config, self.liveness.now(), now, agreed_ms, &mut self.out);
            // Whatever wakes one has it processed too.
            if group.is_hibernating() {
                self.awake.remove(&shard);
            } else {
                self.awake.insert(shard);
            }
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
            Some(group) => {
                group.wake();
                event(group, &self.config, ticket).err()
            }
            None => Some((ticket, Rejection::NoSuchShard)),
        };
        if let Some((ticket, why)) = refused {
            self.out.effects.push(Effect::Refused { shard, ticket, why });
        }
    }

    fn tick(&mut self) {
        self.pending_votes.tick(&self.config);
        self.liveness.tick();
        let now = self.liveness.now();
        self.expected.retain(|_, until| *until > now);
        let was_wary = self.stall.is_wary();
        self.stall.tick(&self.config);
        if self.stall.is_wary() != was_wary {
            for group in self.groups.values_mut() {
                group.be_wary(!was_wary);
            }
        }
        if self.stall.is_stalled(&self.config) {
            self.hand_over_stalled();
        }
        for shard in &self.awake {
            if let Some(group) = self.groups.get_mut(shard)
                && group.replica >= self.least_replica
                && group.tick(&self.config)
                && !std::mem::replace(&mut group.dirty, true)
            {
                self.dirty.push(*shard);
            }
        }
        let is_due = self.liveness.now().is_multiple_of(self.config.heartbeat_ticks as u64);
        if is_due || self.liveness.any_falls_silent(self.config.election_ticks) {
            self.check_hibernating();
        }
    }

    /// Whether the log of this host can't be synced, or couldn't a moment ago: others lead better.
    pub fn is_wary(&self) -> bool {
        self.stall.is_wary()
    }

    /// Hands over what is led here, without the log: see [`crate::stall`].
    fn hand_over_stalled(&mut self) {
        let led = self.led();
        let of = |shard: &ShardId| self.groups.get(shard).map(Group::beyond_own_log);
        let able: BTreeSet<NodeId> = led.iter().filter_map(of).flatten().collect();
        for shard in led {
            let Some(group) = self.groups.get_mut(&shard) else { continue };
            if group.hand_over_stalled(&able, &self.wary_peers) {
                self.touch(shard);
            }
        }
    }

    /// Wakes groups that must not hibernate any longer, and sends a store heartbeat to all hosts that
    /// rely on it for the others.
    fn check_hibernating(&mut self) {
        let mut nodes = BTreeSet::new();
        let mut woken = Vec::new();
        for (shard, group) in self.groups.iter_mut().filter(|(_, group)| group.is_hibernating()) {
            if group.stays_hibernating(&self.config, &self.liveness) {
                nodes.extend(group.others());
            } else {
                woken.push(*shard);
            }
        }
        for shard in woken {
            self.touch(shard);
        }
        for node in nodes {
            self.out.send(node, store_heartbeat());
        }
    }

    /// How many groups hibernate: they are idle, and neither tick nor send heartbeats.
    pub fn hibernating(&self) -> usize {
        self.groups.len() - self.awake.len()
    }

    fn led(&self) -> Vec<ShardId> {
        let led = self.groups.iter().filter(|(_, group)| group.is_leader());
        led.map(|(shard, _)| *shard).collect()
    }

    fn transfer_leader(&mut self, shard: ShardId, to: Option<ReplicaId>) {
        self.touch(shard);
        if let Some(group) = self.groups.get_mut(&shard) {
            group.wake();
            group.transfer_leader(to, &self.wary_peers);
        }
    }

    /// Cluster time now, in milliseconds since 1970, as far as it is known.
    fn agreed_ms(&self) -> Option<u64> {
        if has(Bug::WallClockTrusted) {
            return Some(self.now.wall_ms);
        }
        self.cluster.now_ms(self.now.boot_us)
    }

    /// Cluster time, as this process knows it.
    pub fn cluster_time(&self) -> &ClusterClock {
        &self.cluster
    }

    /// Without word from the coordinators the nodes agree among themselves, as far as they hear of each
    /// other.
    fn look_at_clocks(&mut self) {
        let was_known = self.agreed_ms().is_some();
        let Now { boot_us, wall_ms } = self.now;
        self.cluster.heard(self.config.node_id, wall_ms, boot_us);
        self.cluster.look(0, boot_us);
        self.time_is_known(was_known);
    }

    /// What waits for a time to make its version of can go on.
    fn time_is_known(&mut self, was_known: bool) {
        if !was_known && self.agreed_ms().is_some() {
            for shard in self.led() {
                self.touch(shard);
            }
        }
    }

    fn persisted(&mut self, batch: u64) {
        self.stall.persisted(batch);
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

    /// Whether a replica is on its way by other means than its leader's messages.
    fn is_expected(&self, shard: ShardId) -> bool {
        self.expected.contains_key(&shard) && !self.groups.contains_key(&shard)
    }

    fn message(&mut self, from_node: NodeId, message: PeerMessage) {
        let PeerMessage { shard, message } = message;
        let receiver = ReplicaId(message.to);
        let is_for_all = message.get_msg_type() == MessageType::MsgBeat;
        if receiver < self.least_replica && !is_for_all {
            return;
        }
        let is_possible = match message.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                !self.is_expected(shard) && self.admit(shard, receiver)
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                self.asked_for_vote(shard, receiver)
            }
            MessageType::MsgAppendResponse
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgTimeoutNow => true,
            MessageType::MsgBeat => return self.liveness.heard(from_node),
            // Snapshots come by their own way; proposals, reads and transfers are not forwarded;
            // the rest is raft's talk with itself.
            _ => return,
        };
        if !is_possible {
            return;
        }
        let tick = self.liveness.now();
        let group = self.groups.get(&shard).filter(|group| group.replica == receiver);
        if let Some(Err(lost)) = group.map(|group| group.check_own_log(&message)) {
            self.out.effects.push(Effect::PromiseLost(lost));
            return;
        }
        if let Some(group) = self.touch(shard).filter(|group| group.replica == receiver) {
            group.step(from_node, message, tick);
        }
    }
}
