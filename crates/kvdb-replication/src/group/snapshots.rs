//! Snapshots on both sides, and what makes them necessary: the end of a log that was compacted.
//!
//! As a leader: raft asks its storage for a snapshot and gets none; [`Effect::TakeSnapshot`] asks
//! for one of the applied state; when it exists raft is asked again, and its message goes out as
//! [`Effect::StreamSnapshot`], apart from other messages.
//!
//! As a follower: the state is ingested into a fresh volume *before* raft hears of the message.
//! Raft then either takes it, and one record switches volume and log together, or has no use for
//! it, and the volume goes.

use super::{Group, Incoming, Switch};
use crate::config::HostConfig;
use crate::effect::Effect;
use crate::host::Outbox;
use crate::input::Now;
use crate::membership::conf_state_of;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    LogIndex, LogPosition, NodeId, ReplicaId, Role, ShardDescriptor, Term, TimeMark, VolumeId,
    WalRecord,
};
use raft::eraftpb::{Message, MessageType, Snapshot};
use raft::{ProgressState, SnapshotStatus};

impl<T> Group<T> {
    // ---- sending ------------------------------------------------------------------------

    /// Asks for a snapshot that raft wants. One at a time: who is passed over asks again with its
    /// next answer to a heartbeat.
    pub(super) fn want_snapshot(&mut self, out: &mut Outbox<T>) {
        let Some((to, at_least)) = self.raw.store().take_wanted() else { return };
        if self.is_about_to_be_born(to, at_least) {
            return;
        }
        if !self.snapshot_pending && self.is_leader() && self.applied >= at_least {
            self.snapshot_pending = true;
            out.effects.push(Effect::TakeSnapshot { shard: self.shard, to });
        }
    }

    /// Whether a member is one of the first, and the group young: then it is likely to be born with
    /// its own, empty state in a moment. The log has all from the beginning, so it will need nothing
    /// else; a snapshot of nothing would cost a volume, a file and a stream for each of the shards
    /// that come to a node at once.
    fn is_about_to_be_born(&self, to: ReplicaId, at_least: LogIndex) -> bool {
        let is_first = |descriptor: &ShardDescriptor| {
            descriptor.replica(to).is_some_and(|replica| replica.role == Role::Voter)
        };
        self.young_ticks > 0
            && at_least == LogIndex(0)
            && self.raw.store().start() == INITIAL_POSITION
            && self.raw.raft.prs().get(to.0).is_some_and(|progress| progress.matched == 0)
            && self.descriptor.as_ref().is_some_and(is_first)
    }

    /// Before it was born a member refused all that was sent to it. Now it says that it holds what
    /// this log begins after: entries are sent from there on.
    pub(super) fn notice_birth(&mut self, message: &Message) {
        let start = self.raw.store().start().index.0;
        if message.get_msg_type() == MessageType::MsgHeartbeatResponse
            && message.term == self.raw.raft.term
            && message.commit >= start
            && self.is_leader()
            && let Some(progress) = self.raw.raft.mut_prs().get_mut(message.from)
            && progress.state == ProgressState::Probe
            && progress.matched == 0
            && progress.next_idx <= start
        {
            progress.next_idx = start + 1;
        }
    }

    pub(crate) fn snapshot_taken(
        &mut self,
        to: ReplicaId,
        position: LogPosition,
        descriptor: &ShardDescriptor,
    ) {
        if !self.is_leader() {
            return;
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = position.index.0;
        metadata.term = position.term.0;
        metadata.set_conf_state(conf_state_of(&descriptor.replicas));
        self.raw.mut_store().offer_snapshot(to, snapshot);
        self.snapshot_pending = false;
        if self.raw.raft.prs().get(to.0).is_some() {
            self.raw.raft.send_append(to.0);
        }
    }

    pub(crate) fn snapshot_sent(&mut self, to: ReplicaId, delivered: bool) {
        self.raw.mut_store().retract_snapshot(to);
        self.snapshot_pending = false;
        let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raw.report_snapshot(to.0, status);
    }

    /// A snapshot that its receiver asked for is settled once the receiver speaks of what it
    /// holds. Raft itself forgets the request only in [`Group::snapshot_sent`], and would send the
    /// same snapshot again when that comes second.
    pub(super) fn settle_requested_snapshot(&mut self, message: &Message) {
        if message.get_msg_type() != MessageType::MsgAppendResponse || message.reject {
            return;
        }
        if message.term == self.raw.raft.term
            && let Some(progress) = self.raw.raft.mut_prs().get_mut(message.from)
            && progress.state == ProgressState::Snapshot
            && message.index >= progress.pending_snapshot
        {
            progress.pending_request_snapshot = raft::INVALID_INDEX;
        }
    }

    /// Who asks for a snapshot takes no entries until it has one, and acknowledges none. One that it
    /// had acknowledged in vain may need just that to be committed, and only then be in a snapshot.
    /// So the ask counts: it leaves when all before it is durable, and its last entry, being of this
    /// term, came from this leader, and with it what is before.
    pub(super) fn take_ask_as_acknowledgement(&mut self, message: &Message) {
        let raft = &self.raw.raft;
        let held = message.reject_hint;
        let is_ask = message.get_msg_type() == MessageType::MsgAppendResponse
            && message.reject
            && message.request_snapshot != raft::INVALID_INDEX;
        if !is_ask
            || !self.is_leader()
            || (message.term, message.log_term) != (raft.term, raft.term)
        {
            return;
        }
        let is_news = raft.prs().get(message.from).is_some_and(|known| known.matched < held);
        if is_news && raft.raft_log.term(held).is_ok_and(|term| term == message.log_term) {
            let mut acknowledgement = Message::default();
            acknowledgement.set_msg_type(MessageType::MsgAppendResponse);
            acknowledgement.from = message.from;
            acknowledgement.to = message.to;
            acknowledgement.term = message.term;
            acknowledgement.index = held;
            acknowledgement.commit = message.commit;
            // As in `step`.
            let _ = self.raw.step(acknowledgement);
        }
    }

    // ---- receiving ----------------------------------------------------------------------

    pub(crate) fn is_receiving(&self) -> bool {
        self.incoming.is_some() || self.persisting.iter().any(|ready| ready.switch.is_some())
    }

    pub(crate) fn snapshot_ingested(
        &mut self,
        from_node: NodeId,
        message: Message,
        descriptor: ShardDescriptor,
        time: TimeMark,
        volume: VolumeId,
        tick: u64,
    ) {
        self.incoming = Some(Incoming { volume, descriptor, time });
        if !self.would_shorten_the_log(&message) {
            self.step(from_node, message, tick);
        }
    }

    /// Who has asked for a snapshot has asked for one with all of its log in it. Raft would take
    /// any, an older one that comes late as well, and forget what has been acknowledged since.
    fn would_shorten_the_log(&self, message: &Message) -> bool {
        let asked_for = self.raw.raft.pending_request_snapshot;
        asked_for != raft::INVALID_INDEX && message.get_snapshot().get_metadata().index < asked_for
    }

    /// Raft has taken a snapshot: it replaces log and state.
    ///
    /// # Panics
    /// If no snapshot was ingested: messages with one are kept from raft otherwise.
    pub(super) fn take_snapshot_from(
        &mut self,
        snapshot: &Snapshot,
        now: Now,
        out: &mut Outbox<T>,
    ) -> Option<Switch> {
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
        self.clock.observe(incoming.time.version);
        self.time.begin(incoming.time, now.boot_us);
        self.conf_changes.clear();
        // Whether entries that somebody still waits for are in the snapshot can't be told.
        self.fail_proposed(out);
        out.records.push(WalRecord::VolumeSwitched {
            replica: self.replica,
            volume: incoming.volume,
            start: position,
        });
        Some(Switch { volume: incoming.volume, position })
    }

    pub(super) fn discard_unused_snapshot(&mut self, out: &mut Outbox<T>) {
        if let Some(incoming) = self.incoming.take() {
            out.effects.push(Effect::DropVolume(incoming.volume));
        }
    }

    // ---- compaction ---------------------------------------------------------------------

    /// Forgets flushed entries, but keeps what followers still need while that is affordable.
    pub(super) fn compact(&mut self, config: &HostConfig, out: &mut Outbox<T>) {
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
}
