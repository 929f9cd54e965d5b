//! One replica of one shard: raft, its log, and everybody who waits on it.
//!
//! Events come in through [`events`], [`reconfigure`] and [`snapshots`]; they only change state.
//! What follows from them is worked out once, in [`ready`], however many there were: that is
//! where proposals are packed, messages released and entries handed out.
//!
//! # Who may stand for election
//!
//! Raft decides that by counting ticks. Three kinds of replica must not be counted in, and get a
//! timeout that never passes instead (they still vote, or the others might lack a majority):
//!
//! - one whose engine lost its state: its log may be the best there is, but it has nothing to serve;
//! - one whose log was reset by a snapshot that isn't applied yet: raft looks through the entries
//!   between what is applied and what is committed, and they are gone;
//! - the only voter of a group while something of its own is on its way to the disk: it would win
//!   without asking anybody, before its log is durable.

mod events;
mod hibernation;
mod ready;
mod reconfigure;
mod settle;
mod snapshots;
mod unsafe_recovery;

use crate::config::HostConfig;
use crate::convert::entry_to_raft;
use crate::effect::{GroupStatus, ReplicaProgress, ReplicaRole};
use crate::input::Now;
use crate::lease::Lease;
use crate::membership::conf_state_of;
use crate::permit::ReadPermit;
use crate::proposals::Proposals;
use crate::reads::Reads;
use crate::shard_time::{ShardTime, TimeKeeper};
use crate::store::LogStore;
use bytes::Bytes;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    EntryKind, EntryPayload, HardState, HybridClock, LogEntry, LogIndex, LogPosition, NodeId,
    ReplicaId, ShardDescriptor, ShardId, Term, TimeMark, Version, VolumeId,
};
use raft::eraftpb::{ConfChangeV2, Entry, Message};
use raft::{RawNode, ReadOnlyOption, StateRole};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

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
    /// How far time has come in the applied state.
    pub time: TimeMark,
    /// The engine lost what the log has forgotten: apply nothing and ask for a snapshot.
    pub engine_lost: bool,
}

/// A raft ready whose records are on their way to the disk.
struct Persisting {
    batch: u64,
    ready: u64,
    /// The term in it, if it holds a hard state.
    term: Option<Term>,
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
    time: TimeMark,
}

/// What raft was when it was last looked at: a change of it is an event.
#[derive(Clone, Copy, PartialEq, Eq)]
struct SoftState {
    role: StateRole,
    term: Term,
    leader: u64,
}

pub(crate) struct Group<T> {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    pub(crate) volume: Option<VolumeId>,
    /// Whether [`Group::process`] is due. Kept by the host.
    pub(crate) dirty: bool,
    raw: RawNode<LogStore>,
    descriptor: Option<ShardDescriptor>,
    /// Where replicas are that the descriptor doesn't tell of (yet): learned from messages.
    routes: BTreeMap<ReplicaId, NodeId>,
    clock: HybridClock,
    time: TimeKeeper,
    proposals: Proposals<T>,
    reads: Reads<T>,
    lease: Lease,
    pub(crate) permit: Arc<ReadPermit>,
    soft_state: SoftState,
    /// Ticks for which the waiters of a lost leadership may still learn their outcome.
    grace_ticks: Option<usize>,
    persisting: VecDeque<Persisting>,
    /// The highest term that is durable (with the vote in it).
    durable_term: Term,
    hard_state_dirty: bool,
    applied: LogIndex,
    flushed: LogIndex,
    /// Membership entries handed out to be applied.
    conf_changes: VecDeque<(LogIndex, ConfChangeV2)>,
    settling: Option<settle::Settling>,
    incoming: Option<Incoming>,
    /// A snapshot is being taken, or was taken and isn't sent yet.
    snapshot_pending: bool,
    engine_lost: bool,
    /// In which term it has asked its leader for a snapshot.
    asked_in: Option<Term>,
    stands_when_durable: bool,
    /// The host's log has stalled lately: others had better lead.
    wary: bool,
    /// It was handed over for that, and nothing has become durable since.
    handed_over_stalled: bool,
    /// Ticks for which it stands again and again: the others may be born a moment later, and not
    /// have heard it.
    eager_ticks: usize,
    /// Ticks during which members that have no state yet are left to be born: see
    /// [`Group::is_about_to_be_born`].
    young_ticks: usize,
    /// Ticks since something happened.
    idle_ticks: usize,
    hibernation: Option<hibernation::Hibernation>,
    /// Ticks during which votes are refused: what was promised before a restart is forgotten.
    silent_ticks: usize,
    election_timeout: usize,
    rng: ChaCha8Rng,
}

/// The election timeout of who mustn't stand: above every draw, below raft's limit.
const NEVER: usize = MAX_ELECTION_TICKS - 1;

/// The range of raft's own draws ends here: so far out that what it draws is always recognised.
const MAX_ELECTION_TICKS: usize = usize::MAX / 2;

impl<T> Group<T> {
    /// Brings a replica to life.
    ///
    /// # Panics
    /// If `from` contradicts itself: something is applied that is neither in the log nor before
    /// its start, or less is applied than the log starts after without `engine_lost`.
    pub(crate) fn recover(
        config: &HostConfig,
        logger: &slog::Logger,
        rng: ChaCha8Rng,
        from: RecoveredGroup,
        restarted: bool,
        now: Now,
    ) -> Self {
        let mut reached = from.time;
        let unapplied = from.entries.iter().filter(|entry| entry.index > from.applied.index);
        for (first, last, jump_ms) in unapplied.filter_map(|entry| time_of(&entry.data, entry.kind))
        {
            reached = reached.after(first, last, jump_ms);
        }
        let clock = HybridClock::above(reached.version);
        let mut time = TimeKeeper::default();
        time.begin(reached, now.boot_us);
        let applied = if from.engine_lost { from.start.index } else { from.applied.index };
        let durable_term = from.hard_state.term;
        let store = recovered_store(&from, applied);
        let raw = RawNode::new(&raft_config(config, from.replica, applied), store, logger)
            .expect("a configuration that HostConfig::validate allows is valid");
        let mut group = Group {
            shard: from.shard,
            replica: from.replica,
            volume: from.volume,
            dirty: false,
            soft_state: SoftState {
                role: raw.raft.state,
                term: Term(raw.raft.term),
                leader: raw.raft.leader_id,
            },
            raw,
            descriptor: from.descriptor,
            routes: BTreeMap::new(),
            clock,
            time,
            proposals: Proposals::new(),
            reads: Reads::new(),
            lease: Lease::default(),
            permit: Arc::default(),
            grace_ticks: None,
            persisting: VecDeque::new(),
            durable_term,
            hard_state_dirty: false,
            applied,
            flushed: from.start.index,
            conf_changes: VecDeque::new(),
            settling: None,
            incoming: None,
            snapshot_pending: false,
            engine_lost: from.engine_lost,
            asked_in: None,
            stands_when_durable: false,
            wary: false,
            handed_over_stalled: false,
            eager_ticks: 0,
            young_ticks: 0,
            idle_ticks: 0,
            hibernation: None,
            silent_ticks: if restarted { config.election_ticks } else { 0 },
            election_timeout: 0,
            rng,
        };
        group.arm_election(config);
        group
    }

    /// Shard time, for other threads to look at.
    pub(crate) fn time(&self) -> &Arc<ShardTime> {
        &self.time.shared
    }

    /// Versions begin here, for once: what others may have given out is below.
    pub(crate) fn leap(&mut self, time_ms: u64, now: Now) {
        self.clock.observe(Version::from_millis(time_ms));
        self.time.leap(time_ms, now.boot_us);
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

    /// Whether its state is gone and a snapshot is awaited.
    pub(crate) fn is_engine_lost(&self) -> bool {
        self.engine_lost
    }

    /// Whether it waits for its first state, and nothing that it has promised is on its way to the
    /// disk. (Otherwise a snapshot brings it up.)
    pub(crate) fn may_be_born(&self) -> bool {
        self.volume.is_none()
            && !self.is_receiving()
            && self.persisting.is_empty()
            && !self.raw.has_ready()
    }

    /// Term and vote, as on their way to the disk.
    pub(crate) fn hard_state(&self) -> HardState {
        HardState {
            term: self.term(),
            vote: ReplicaId(self.raw.raft.vote),
            commit: LogIndex(self.raw.raft.raft_log.committed),
        }
    }

    /// The shard has been split: less belongs to it.
    pub(crate) fn range_changed(&mut self, after: &ShardDescriptor) {
        if let Some(descriptor) = &mut self.descriptor
            && descriptor.range_epoch < after.range_epoch
        {
            descriptor.range = after.range.clone();
            descriptor.range_epoch = after.range_epoch;
        }
    }

    fn progress(&self) -> Vec<ReplicaProgress> {
        if !self.is_leader() {
            return Vec::new();
        }
        let of = |(id, progress): (&u64, &raft::Progress)| ReplicaProgress {
            replica: ReplicaId(*id),
            matched: LogIndex(progress.matched),
            is_active: progress.recent_active || *id == self.replica.0,
        };
        self.raw.raft.prs().iter().map(of).collect()
    }

    pub(crate) fn status(&self) -> GroupStatus {
        GroupStatus {
            shard: self.shard,
            replica: self.replica,
            role: if self.is_leader() { ReplicaRole::Leader } else { ReplicaRole::Follower },
            term: self.term(),
            leader: self.leader_node(),
            last_index: LogIndex(self.raw.raft.raft_log.last_index()),
            committed: LogIndex(self.raw.raft.raft_log.committed),
            applied: self.applied,
            last_term: self.log_end().term,
            awaits_snapshot: self.engine_lost || self.volume.is_none(),
            is_hibernating: self.is_hibernating(),
            descriptor: self.descriptor.clone(),
            progress: self.progress(),
        }
    }

    fn term(&self) -> Term {
        Term(self.raw.raft.term)
    }

    // ---- standing for election ----------------------------------------------------------

    fn may_stand(&self) -> bool {
        let raft = &self.raw.raft;
        let log_is_whole = raft.raft_log.applied >= self.raw.store().start().index.0;
        let would_win_alone = raft.prs().is_singleton() && !self.persisting.is_empty();
        !self.engine_lost && log_is_whole && !would_win_alone
    }

    /// Replaces what raft drew from its own generator by a draw from the seed, or by an endless
    /// timeout.
    fn arm_election(&mut self, config: &HostConfig) {
        if !self.is_leader() && !self.may_stand() {
            self.set_election_timeout(NEVER);
            return;
        }
        let current = self.raw.raft.randomized_election_timeout();
        if current == self.election_timeout && current != NEVER {
            return;
        }
        let spread = config.election_spread_ticks.max(1) as u64;
        let drawn = config.election_ticks + (self.rng.next_u64() % spread) as usize;
        // Whoever can sync comes first.
        let later = if self.wary { config.election_ticks } else { 0 };
        self.set_election_timeout(drawn + later);
    }

    fn set_election_timeout(&mut self, ticks: usize) {
        self.raw.raft.set_randomized_election_timeout(ticks);
        self.election_timeout = ticks;
    }
}

fn recovered_store(from: &RecoveredGroup, applied: LogIndex) -> LogStore {
    let conf_state = from.descriptor.as_ref().map(|descriptor| conf_state_of(&descriptor.replicas));
    let entries: Vec<Entry> = from.entries.iter().map(entry_to_raft).collect();
    let mut hard_state = from.hard_state;
    // A commit index needs no sync of its own; what was applied was committed.
    hard_state.commit = hard_state.commit.max(from.applied.index).max(from.start.index);
    let mut store = LogStore::new(from.start, entries, hard_state, conf_state.unwrap_or_default());
    store.advance_applied(applied);
    store
}

fn raft_config(config: &HostConfig, replica: ReplicaId, applied: LogIndex) -> raft::Config {
    raft::Config {
        id: replica.0,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        min_election_tick: config.election_ticks,
        max_election_tick: MAX_ELECTION_TICKS,
        applied: applied.0,
        max_size_per_msg: config.max_message_bytes,
        max_inflight_msgs: config.max_inflight_messages,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        max_uncommitted_size: raft::NO_LIMIT,
        max_committed_size_per_ready: 4 * 1024 * 1024,
        // Followers learn of a commit with the next append or heartbeat: a message and a wake-up
        // less for each entry and follower, against replica reads that are a heartbeat older.
        skip_bcast_commit: true,
        ..Default::default()
    }
}

/// What an entry says of time, if it does: its first and its highest version, and its jump.
fn time_of(data: &Bytes, kind: EntryKind) -> Option<(Version, Version, u64)> {
    let has_version =
        kind == EntryKind::Normal && !data.is_empty() && !has(Bug::VersionsFromClockAlone);
    if has_version { EntryPayload::peek_time(data).ok() } else { None }
}
