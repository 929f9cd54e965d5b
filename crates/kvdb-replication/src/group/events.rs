//! What can happen to a replica. Nothing here has effects of its own; the host sees to it that
//! [`Group::process`] is called afterwards.

use super::Group;
use super::hibernation::{self, LastHeartbeat};
use crate::config::HostConfig;
use crate::effect::PromiseLost;
use crate::host::Outbox;
use crate::input::{ConfOutcome, Rejection};
use crate::membership::conf_state_of;
use bytes::Bytes;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{LogIndex, LogPosition, NodeId, ReplicaId, Term};
use raft::StateRole;
use raft::eraftpb::{Entry, Message, MessageType};
use std::collections::BTreeSet;

/// For so long a group that has just come to be leaves it to its first members to be born, each on
/// its own node. (One that knows that it will take longer doesn't answer before: see
/// [`Input::Expect`](crate::Input::Expect).)
const YOUNG_TICKS: usize = 150;

impl<T> Group<T> {
    /// Returns whether something may follow from it.
    pub(crate) fn tick(&mut self, config: &HostConfig) -> bool {
        self.silent_ticks = self.silent_ticks.saturating_sub(1);
        self.young_ticks = self.young_ticks.saturating_sub(1);
        let mut eventful = self.count_down_grace();
        if self.engine_lost {
            self.ask_for_snapshot();
            eventful = true;
        }
        self.arm_election(config);
        eventful |= self.stand_again();
        eventful |= self.could_hibernate(config);
        self.raw.tick() || eventful
    }

    /// It has just come to be, with a state of its own.
    pub(crate) fn is_born(&mut self) {
        self.young_ticks = YOUNG_TICKS;
    }

    /// The first to lead a shard that has just come to be.
    pub(crate) fn lead_first(&mut self, config: &HostConfig) {
        self.eager_ticks = config.election_ticks;
        self.campaign();
    }

    fn stand_again(&mut self) -> bool {
        if self.raw.raft.leader_id != raft::INVALID_ID {
            self.eager_ticks = 0;
        }
        let is_due = self.eager_ticks > 0
            && self.persisting.is_empty()
            && matches!(self.raw.raft.state, StateRole::Follower | StateRole::PreCandidate);
        self.eager_ticks = self.eager_ticks.saturating_sub(1);
        if is_due {
            self.campaign();
        }
        is_due
    }

    fn count_down_grace(&mut self) -> bool {
        self.grace_ticks = self.grace_ticks.map(|left| left.saturating_sub(1));
        self.grace_ticks == Some(0)
    }

    fn ask_for_snapshot(&mut self) {
        // Refused while there is no leader; asked again at the next tick.
        if !self.is_receiving() && self.raw.request_snapshot().is_ok() {
            self.asked_in = Some(self.term());
        }
    }

    /// A snapshot is asked for that holds the whole log here. A later leader may never have had the
    /// end of that, and is asked anew.
    fn take_back_request(&mut self, message: &Message) {
        let kind = message.get_msg_type();
        let from_leader = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat);
        if from_leader && self.asked_in.is_some_and(|term| term < Term(message.term)) {
            self.asked_in = None;
            self.raw.raft.pending_request_snapshot = raft::INVALID_INDEX;
        }
    }

    /// Stands for election: at once, or, as the only voter, when its birth is durable.
    pub(crate) fn campaign(&mut self) {
        self.wake();
        if self.may_stand() {
            // Fails only where it can't win anyway.
            let _ = self.raw.campaign();
        } else {
            self.stands_when_durable = !self.persisting.is_empty();
        }
    }

    pub(crate) fn step(&mut self, from_node: NodeId, message: Message, tick: u64) {
        let last = LastHeartbeat::read(from_node, &message);
        if last.is_none() && hibernation::wakes(&message, self.raw.raft.term) {
            self.wake();
        }
        let ignored = match message.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => self.silent_ticks > 0,
            MessageType::MsgTimeoutNow => !self.may_stand(),
            _ => false,
        };
        if ignored {
            return;
        }
        if message.from != 0 {
            self.routes.insert(ReplicaId(message.from), from_node);
        }
        self.take_back_request(&message);
        self.settle_requested_snapshot(&message);
        self.take_ask_as_acknowledgement(&message);
        self.notice_birth(&message);
        // What raft refuses (a response of somebody who left) is of no consequence.
        let _ = self.raw.step(message);
        if let Some(last) = last {
            self.follow_into_hibernation(&last, tick);
        }
    }

    /// A leader tells a follower of commits only as far as the follower has acknowledged.
    ///
    /// # Errors
    /// If that is further than its log goes: it has lost what it had promised to keep.
    pub(crate) fn check_own_log(&self, message: &Message) -> Result<(), PromiseLost> {
        let ends_at = self.raw.raft.raft_log.last_index();
        if message.get_msg_type() == MessageType::MsgHeartbeat
            && message.term >= self.raw.raft.term
            && message.commit > ends_at
        {
            return Err(PromiseLost {
                shard: self.shard,
                replica: self.replica,
                ends_at: LogIndex(ends_at),
                acknowledged: LogIndex(message.commit),
            });
        }
        Ok(())
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
        let unapplied = self.proposals.arrived_bytes() + self.raw.store().unapplied_bytes();
        if self.proposals.waiting() >= config.max_waiting_commands
            || unapplied >= config.max_unapplied_bytes
        {
            return Err((ticket, Rejection::Overloaded));
        }
        self.proposals.arrive(command, version_count, ticket);
        Ok(())
    }

    /// Puts an entry into the log, if this replica may.
    pub(super) fn append_proposal(&mut self, entry: Entry) -> raft::Result<()> {
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
        Ok(())
    }

    /// Hands leadership over, to whichever replica is furthest or to a certain one. The latter is
    /// left alone as long as it isn't heard of: nothing is written while a hand-over is under way,
    /// and who wants it asks again.
    pub(crate) fn transfer_leader(&mut self, to: Option<ReplicaId>, wary: &BTreeSet<NodeId>) {
        if !self.is_leader() || self.raw.raft.lead_transferee.is_some() {
            return;
        }
        let chosen = match to {
            Some(replica) => Some(replica.0).filter(|id| self.may_follow(*id)),
            None => self.best_successor(wary),
        };
        if let Some(target) = chosen {
            self.lease.give_up(self.term());
            self.raw.transfer_leader(target);
        }
    }

    /// The host's log has stalled, or is well again.
    pub(crate) fn be_wary(&mut self, wary: bool) {
        self.wary = wary;
        // Drawn anew.
        self.election_timeout = 0;
    }

    /// Nodes that have made durable what this host's own log doesn't hold yet.
    pub(crate) fn beyond_own_log(&self) -> Vec<NodeId> {
        let raft = &self.raw.raft;
        let ahead = raft.prs().iter().filter(|(id, progress)| {
            **id != self.replica.0 && progress.matched > raft.raft_log.persisted
        });
        ahead.filter_map(|(id, _)| self.node_of(ReplicaId(*id))).collect()
    }

    /// Hands over to a follower that has everything and can write, if those that can are a majority
    /// without this replica: see [`crate::stall`]. `able` are nodes that have proved to be able to.
    pub(crate) fn hand_over_stalled(
        &mut self,
        able: &BTreeSet<NodeId>,
        wary: &BTreeSet<NodeId>,
    ) -> bool {
        let raft = &self.raw.raft;
        let Some(descriptor) = self.descriptor.as_ref().filter(|_| self.is_leader()) else {
            return false;
        };
        if raft.lead_transferee.is_some() {
            return false;
        }
        let last = raft.raft_log.last_index();
        let has_all = |id: &u64| {
            let matches = raft.prs().get(*id).is_some_and(|progress| progress.matched == last);
            let node = self.node_of(ReplicaId(*id));
            matches && *id != self.replica.0 && node.is_some_and(|node| able.contains(&node))
        };
        let voters = conf_state_of(&descriptor.replicas);
        let is_majority = |set: &[u64]| {
            set.is_empty() || 2 * set.iter().filter(|id| has_all(id)).count() > set.len()
        };
        if !is_majority(&voters.voters) || !is_majority(&voters.voters_outgoing) {
            return false;
        }
        let mut chosen: Vec<u64> = voters.voters.iter().copied().filter(has_all).collect();
        let is_wary =
            |id: &u64| self.node_of(ReplicaId(*id)).is_some_and(|node| wary.contains(&node));
        if !chosen.iter().all(is_wary) {
            chosen.retain(|id| !is_wary(id));
        }
        // Not all shards to the same one.
        let place = self.shard.0.checked_rem(chosen.len() as u64);
        let Some(target) = place.and_then(|place| chosen.get(place as usize).copied()) else {
            return false;
        };
        self.wake();
        self.handed_over_stalled = true;
        self.lease.give_up(self.term());
        self.raw.transfer_leader(target);
        true
    }

    fn may_follow(&self, id: u64) -> bool {
        let progress = self.raw.raft.prs().get(id);
        self.successors().contains(&id) && progress.is_some_and(|progress| progress.recent_active)
    }

    /// Who may lead after this replica.
    fn successors(&self) -> Vec<u64> {
        let Some(descriptor) = &self.descriptor else { return Vec::new() };
        let mut voters = conf_state_of(&descriptor.replicas).voters;
        voters.retain(|id| *id != self.replica.0);
        voters
    }

    /// The one that is there, as far as known, and furthest. (Raft forgets who is there each time
    /// it checks its quorum, so that alone must not rule anybody out.)
    fn best_successor(&self, wary: &BTreeSet<NodeId>) -> Option<u64> {
        let progress = self.raw.raft.prs();
        let is_wary =
            |id: u64| self.node_of(ReplicaId(id)).is_some_and(|node| wary.contains(&node));
        self.successors()
            .into_iter()
            .filter_map(|id| progress.get(id).map(|progress| (id, progress)))
            .max_by_key(|(id, progress)| {
                let rank = (progress.recent_active, !is_wary(*id), progress.matched);
                (rank, std::cmp::Reverse(*id))
            })
            .map(|(id, _)| id)
    }

    pub(crate) fn report_unreachable(&mut self, node: NodeId) {
        let there = self.descriptor.as_ref().and_then(|descriptor| descriptor.replica_on(node));
        if let Some(replica) = there {
            self.raw.report_unreachable(replica.replica_id.0);
        }
    }

    /// All batches up to this one are durable.
    pub(crate) fn persisted(&mut self, batch: u64, out: &mut Outbox<T>) {
        self.handed_over_stalled = false;
        while self.persisting.front().is_some_and(|first| first.batch <= batch) {
            let Some(done) = self.persisting.pop_front() else { break };
            self.finish_ready(done, out);
        }
        if self.persisting.is_empty() && std::mem::take(&mut self.stands_when_durable) {
            self.campaign();
        }
    }

    pub(crate) fn applied(&mut self, position: LogPosition, membership: Vec<ConfOutcome>) {
        for outcome in membership {
            self.apply_membership(outcome);
        }
        if position.index > self.applied {
            self.applied = position.index;
            self.raw.advance_apply_to(position.index.0);
            self.raw.mut_store().advance_applied(position.index);
        }
    }

    pub(crate) fn flushed(&mut self, config: &HostConfig, applied: LogIndex, out: &mut Outbox<T>) {
        let applied = if has(Bug::FlushOverstated) { self.applied } else { applied };
        self.flushed = self.flushed.max(applied.min(self.applied));
        self.compact(config, out);
    }
}
