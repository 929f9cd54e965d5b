//! What follows from the events of a step: raft's readies, and who is served by them.
//!
//! Raft hands out its work as numbered *readies*: entries and hard state to persist, messages, and
//! committed entries. They are taken in at once (`advance_append_async`) and reported durable
//! later, in order (`on_persist_ready`). Which messages may leave before that is the heart of the
//! matter:
//!
//! - a leader's may: its appends reach the followers while its own disk works (Ongaro's
//!   dissertation, section 10.2.1), as raft counts the leader's own copy only when it is reported
//!   durable. But not before its vote for itself in this term is durable, which is in doubt only
//!   for one who won without asking (the only voter of a group with learners): after a crash it
//!   could lead the same term again, with other entries at the same places;
//! - all others' wait for their ready: a vote or an acknowledgement is a promise to remember.

use super::{Group, Persisting, SoftState, time_of};
use crate::config::HostConfig;
use crate::convert::{entry_to_model, hard_state_to_model};
use crate::effect::{ApplyTask, CommittedEntry, Effect, PeerMessage};
use crate::host::Outbox;
use crate::input::{Now, Rejection};
use kvdb_model::planted::{Bug, has};
use kvdb_model::{EntryKind, LogEntry, LogIndex, ReplicaId, Term, WalRecord};
use protobuf::Message as _;
use raft::StateRole;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType, Message, MessageType};

/// Raft numbers its readies from 1.
const NO_READY: u64 = 0;

impl<T> Group<T> {
    /// Carries out everything that the events since the last call have made possible.
    pub(crate) fn process(
        &mut self,
        config: &HostConfig,
        tick: u64,
        now: Now,
        agreed_ms: Option<u64>,
        out: &mut Outbox<T>,
    ) {
        self.dirty = false;
        self.notice_soft_state(config, out);
        if self.is_leader() {
            // Readers look at it, too.
            self.time.lead(agreed_ms, now.boot_us);
        }
        self.propose_arrived(config, now, agreed_ms, out);
        self.propose_to_settle();
        loop {
            // Each ready may commit or finish what reads wait for, and a round that is started
            // now makes the next one.
            self.confirm_reads(now);
            if !self.raw.has_ready() {
                break;
            }
            self.handle_ready(config, now, out);
            self.notice_soft_state(config, out);
        }
        self.end_grace(out);
        self.discard_unused_snapshot(out);
        self.want_snapshot(out);
        self.serve_reads(out);
        self.tell_settled(out);
        self.hibernate(config, tick, out);
        self.arm_election(config);
        self.tell_permit();
    }

    /// Before anything of this step leaves the host.
    fn tell_permit(&self) {
        let raft = &self.raw.raft;
        if self.is_leader() && raft.commit_to_current_term() {
            self.permit.leads(&self.lease, LogIndex(raft.raft_log.committed));
        } else {
            self.permit.end();
        }
    }

    /// Ends the replica: whoever waits is told.
    pub(crate) fn close(&mut self, out: &mut Outbox<T>) {
        self.permit.end();
        self.fail_unproposed(Rejection::NoSuchShard, out);
        self.fail_proposed(out);
        self.discard_unused_snapshot(out);
        let switches = self.persisting.drain(..).filter_map(|ready| ready.switch);
        out.effects.extend(switches.map(|switch| Effect::DropVolume(switch.volume)));
    }

    // ---- leadership ---------------------------------------------------------------------

    fn notice_soft_state(&mut self, config: &HostConfig, out: &mut Outbox<T>) {
        let raft = &self.raw.raft;
        let seen = SoftState { role: raft.state, term: Term(raft.term), leader: raft.leader_id };
        let known = std::mem::replace(&mut self.soft_state, seen);
        let leads = seen.role == StateRole::Leader;
        if !leads {
            // Checked always: it may have led for less than a step.
            self.fail_unproposed(Rejection::NotLeader(self.leader_node()), out);
        }
        if seen == known {
            return;
        }
        self.wake();
        let led = known.role == StateRole::Leader;
        if led != leads || seen.term != known.term {
            self.lease.reset();
            self.raw.mut_store().retract_all_snapshots();
            self.snapshot_pending = false;
            self.begin_grace(config, out);
            if leads {
                self.members_inherited();
            }
        }
        if led != leads || seen.term != known.term || seen.leader != known.leader {
            out.effects.push(Effect::RoleChanged(self.status()));
        }
    }

    /// Proposals of a leadership that is over: if the others have moved on, the next leader's
    /// entries will show within moments what became of them, so their waiters get a little time.
    ///
    /// It ends when this replica leads again: its log may be shorter than it was, and who waits
    /// must be in the order of the log.
    fn begin_grace(&mut self, config: &HostConfig, out: &mut Outbox<T>) {
        let Some(oldest) = self.proposals.oldest_term() else { return };
        if self.is_leader() {
            self.grace_ticks = Some(0);
            self.end_grace(out);
        } else if self.grace_ticks.is_none() {
            // A log that hangs can't tell what became of them.
            let succeeded = self.term() > oldest && !self.handed_over_stalled;
            self.grace_ticks = Some(if succeeded { config.election_ticks } else { 0 });
        }
    }

    fn end_grace(&mut self, out: &mut Outbox<T>) {
        if self.grace_ticks == Some(0) {
            self.grace_ticks = None;
            let leading = self.is_leader().then(|| self.term());
            let tickets = self.proposals.drain_proposed_except(leading);
            out.refuse(self.shard, tickets, Rejection::OutcomeUnknown);
        }
    }

    /// Tells those whose command is in no log.
    fn fail_unproposed(&mut self, why: Rejection, out: &mut Outbox<T>) {
        let arrived = self.proposals.drain_arrived();
        let reads = self.reads.drain();
        out.refuse(self.shard, arrived, why);
        out.refuse(self.shard, reads, why);
    }

    pub(super) fn fail_proposed(&mut self, out: &mut Outbox<T>) {
        let tickets = self.proposals.drain_proposed_except(None);
        out.refuse(self.shard, tickets, Rejection::OutcomeUnknown);
    }

    // ---- proposals and reads ------------------------------------------------------------

    /// One entry is on its way to this replica's disk at a time, unless it is full: what arrives
    /// meanwhile couldn't be durable here before the next sync anyhow, and goes as one entry then.
    ///
    /// Nothing is proposed before there is a time that its version can be made of.
    fn propose_arrived(
        &mut self,
        config: &HostConfig,
        now: Now,
        agreed_ms: Option<u64>,
        out: &mut Outbox<T>,
    ) {
        while self.proposals.has_arrived()
            && (self.persisting.is_empty()
                || self.proposals.arrived_bytes() >= config.max_entry_bytes)
        {
            let Some(stamp) = self.time.lead(agreed_ms, now.boot_us) else { return };
            let clock = self.clock;
            let packed = self.proposals.pack(&mut self.clock, stamp, config.max_entry_bytes);
            let Some(packed) = packed else { return };
            let mut entry = Entry::default();
            entry.data = packed.data;
            if self.append_proposal(entry).is_err() {
                // A transfer is under way, or this replica is leaving its group.
                self.clock = clock;
                let tickets = self.proposals.unpropose(packed.tickets);
                out.refuse(self.shard, tickets, Rejection::Unavailable);
                continue;
            }
            let index = LogIndex(self.raw.raft.raft_log.last_index());
            self.proposals.proposed(index, self.term(), now.boot_us, packed.tickets);
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
        if self.lease.holds(now.boot_us) || has(Bug::ReadIndexSkipped) {
            self.reads.confirm_arrived(LogIndex(self.raw.raft.raft_log.committed));
        } else if let Some(round) = self.reads.start_round(self.term(), now.boot_us) {
            self.raw.read_index(round.to_le_bytes().to_vec());
        }
    }

    fn finish_read_round(&mut self, config: &HostConfig, context: &[u8], index: LogIndex) {
        let Ok(id) = context.try_into().map(u64::from_le_bytes) else { return };
        let term = self.term();
        if let Some(started_us) = self.reads.finish_round(id, term, index) {
            self.lease.renew(term, started_us, config.lease_us());
        }
    }

    pub(crate) fn reads_await_apply(&self) -> bool {
        self.reads.awaits_apply()
    }

    fn serve_reads(&mut self, out: &mut Outbox<T>) {
        let applied = if has(Bug::ReadBeforeApply) { LogIndex(u64::MAX) } else { self.applied };
        let tickets = self.reads.take_ready(applied);
        if !tickets.is_empty() {
            out.effects.push(Effect::ReadReady { shard: self.shard, tickets });
        }
    }

    // ---- readies ------------------------------------------------------------------------

    fn handle_ready(&mut self, config: &HostConfig, now: Now, out: &mut Outbox<T>) {
        let mut ready = self.raw.ready();
        let mut held = ready.take_persisted_messages();
        let at_once = ready.take_messages();
        if self.term() <= self.durable_term {
            self.send(at_once, out);
        } else {
            held.extend(at_once);
        }
        for state in ready.take_read_states() {
            self.finish_read_round(config, &state.request_ctx, LogIndex(state.index));
        }
        self.hand_out_committed(config, ready.take_committed_entries(), out);

        let switch = self.take_snapshot_from(ready.snapshot(), now, out);
        let entries = ready.take_entries();
        if let Some(state) = ready.hs() {
            self.raw.mut_store().set_hard_state(hard_state_to_model(state));
            self.hard_state_dirty = true;
        }
        let term = if ready.must_sync() { self.record(&entries, now, out) } else { None };
        self.raw.mut_store().append(&entries);
        let batch = if ready.must_sync() && !has(Bug::AcknowledgeBeforeSync) {
            Some(out.next_batch)
        } else {
            // Nothing of its own to persist; but in order after what there is.
            self.persisting.back().map(|last| last.batch)
        };
        let done = Persisting {
            batch: batch.unwrap_or_default(),
            ready: ready.number(),
            term,
            messages: held,
            switch,
        };
        self.raw.advance_append_async(ready);
        match batch {
            Some(_) => self.await_persistence(done, out),
            None => self.finish_ready(done, out),
        }
    }

    /// Nothing leaves a replica before its birth is on the disk: the others would count on one that
    /// a crash undoes.
    pub(crate) fn await_birth(&mut self, out: &mut Outbox<T>) {
        let batch = out.next_batch;
        let birth =
            Persisting { batch, ready: NO_READY, term: None, messages: Vec::new(), switch: None };
        self.await_persistence(birth, out);
    }

    fn await_persistence(&mut self, ready: Persisting, out: &mut Outbox<T>) {
        if self.persisting.back().is_none_or(|last| last.batch < ready.batch) {
            out.awaiting.push_back((ready.batch, self.shard));
        }
        self.persisting.push_back(ready);
    }

    /// Puts entries and hard state on their way to the disk. Returns the term in the latter.
    fn record(&mut self, entries: &[Entry], now: Now, out: &mut Outbox<T>) -> Option<Term> {
        if !entries.is_empty() {
            let entries: Vec<LogEntry> = entries.iter().map(entry_to_model).collect();
            self.notice_cut(entries[0].index, now);
            let leads = self.is_leader();
            for entry in &entries {
                if let Some((first, last, jump_ms)) = time_of(&entry.data, entry.kind) {
                    self.clock.observe(last);
                    self.time.heard((first, last), jump_ms, leads, now.boot_us);
                }
            }
            out.records.push(WalRecord::Append { replica: self.replica, entries });
        }
        if !std::mem::take(&mut self.hard_state_dirty) {
            return None;
        }
        let mut state = self.raw.store().hard_state();
        if has(Bug::VoteNotStored) {
            state.vote = ReplicaId(0);
        }
        out.records.push(WalRecord::HardState { replica: self.replica, state });
        Some(state.term)
    }

    /// Entries from `from` on replace what the log had there: the versions in it are in no log now.
    fn notice_cut(&mut self, from: LogIndex, now: Now) {
        let Some((kept, cut)) = self.raw.store().cut_at(from) else { return };
        let time_in = |entry: &Entry| {
            let is_normal = entry.get_entry_type() == EntryType::EntryNormal;
            is_normal.then(|| time_of(&entry.data, EntryKind::Normal)).flatten()
        };
        // What each of them jumped: the same reckoning as when it was added.
        let last = kept.rev().find_map(time_in).map(|(_, last, _)| last);
        let mut before = last;
        let mut jumped_ms = 0;
        for (first, last, jump_ms) in cut.filter_map(time_in) {
            let passed_ms = before.map_or(0, |before| first.millis() - before.millis());
            jumped_ms += jump_ms.min(passed_ms);
            before = Some(last);
        }
        self.time.cut_back(last, jumped_ms, now.boot_us);
    }

    /// A ready is durable, with all before it.
    pub(super) fn finish_ready(&mut self, mut done: Persisting, out: &mut Outbox<T>) {
        self.raw.on_persist_ready(done.ready);
        // What a leader of the past has sent may be overwritten by now, in the same batch: it is
        // not told that it is here.
        let term = self.raw.raft.term;
        done.messages.retain(|message| {
            message.get_msg_type() != MessageType::MsgAppendResponse || message.term >= term
        });
        self.durable_term = self.durable_term.max(done.term.unwrap_or_default());
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

    // ---- committed entries --------------------------------------------------------------

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
        let term = Term(entry.term);
        let settled = self.proposals.settle(LogIndex(entry.index), term);
        out.refuse(self.shard, settled.superseded, Rejection::Superseded);
        if let Some(proposed_us) = settled.proposed_us
            && self.is_leader()
            && term == self.term()
        {
            self.lease.renew(term, proposed_us, config.lease_us());
        }
        if entry.get_entry_type() != EntryType::EntryNormal {
            self.note_conf_change(entry);
        }
        CommittedEntry { entry: entry_to_model(entry), tickets: settled.tickets }
    }

    /// Keeps a membership change until the shard has applied it.
    ///
    /// # Panics
    /// If it is unreadable: a leader never proposes such a one.
    fn note_conf_change(&mut self, entry: &Entry) {
        let mut change = ConfChangeV2::default();
        if let Err(error) = change.merge_from_bytes(&entry.data) {
            panic!("shard {}: membership entry {} is unreadable: {error}", self.shard, entry.index);
        }
        self.conf_changes.push_back((LogIndex(entry.index), change));
    }
}
