//! Changes of a group's members: proposed, checked, applied.
//!
//! A change that raft can't apply would stop every replica of the group when it is committed. So
//! it is tried out on raft's own tracker *before* it is proposed: no other change can come in
//! between, as raft allows one at a time and refuses the next until the last one is applied.

use super::Group;
use crate::input::{ConfOutcome, Now, Rejection};
use crate::membership::{conf_change_between, conf_state_of};
use bytes::Bytes;
use kvdb_model::{LogIndex, Replica, Role};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType};
use raft::{Changer, GetEntriesContext};
use raft_proto::conf_state_eq;
use std::collections::BTreeSet;

impl<T> Group<T> {
    pub(crate) fn change_membership(
        &mut self,
        now: Now,
        replicas: &[Replica],
        context: Bytes,
        ticket: T,
    ) -> Result<(), (T, Rejection)> {
        match self.propose_change(replicas, context) {
            Ok(index) => {
                self.proposals.proposed_alone(index, self.term(), now.boot_us, ticket);
                Ok(())
            }
            Err(why) => Err((ticket, why)),
        }
    }

    fn propose_change(
        &mut self,
        replicas: &[Replica],
        context: Bytes,
    ) -> Result<LogIndex, Rejection> {
        if !self.is_leader() {
            return Err(Rejection::NotLeader(self.leader_node()));
        }
        let Some(descriptor) = &self.descriptor else { return Err(Rejection::Unavailable) };
        let change = conf_change_between(&descriptor.replicas, replicas);
        if self.raw.raft.has_pending_conf() || !self.is_settled() {
            return Err(Rejection::Unavailable);
        }
        if !self.leads_to(&change, replicas) {
            return Err(Rejection::InvalidMembership);
        }
        if !self.stays_voter(replicas) {
            // A leader that removes itself would go on leading a group that it isn't in.
            self.transfer_leader(None, &BTreeSet::new());
            return Err(Rejection::Unavailable);
        }
        self.append_change(&change, context)
    }

    /// Whether raft, given `change`, arrives exactly at the configuration of `replicas`.
    fn leads_to(&self, change: &ConfChangeV2, replicas: &[Replica]) -> bool {
        let mut changer = Changer::new(self.raw.raft.prs());
        let outcome = if change.leave_joint() {
            changer.leave_joint()
        } else if let Some(auto_leave) = change.enter_joint() {
            changer.enter_joint(auto_leave, &change.changes)
        } else {
            changer.simple(&change.changes)
        };
        outcome.is_ok_and(|(configuration, _)| {
            conf_state_eq(&configuration.to_conf_state(), &conf_state_of(replicas))
        })
    }

    fn stays_voter(&self, replicas: &[Replica]) -> bool {
        replicas
            .iter()
            .any(|replica| replica.replica_id == self.replica && replica.role != Role::Learner)
    }

    fn append_change(
        &mut self,
        change: &ConfChangeV2,
        context: Bytes,
    ) -> Result<LogIndex, Rejection> {
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = change.write_to_bytes().map_err(|_| Rejection::InvalidMembership)?.into();
        entry.context = context;
        if self.append_proposal(entry).is_err() {
            return Err(Rejection::Unavailable);
        }
        // Raft turns a change that it refuses into an empty normal entry.
        let log = &self.raw.raft.raft_log;
        let index = log.last_index();
        let kept = log.entries(index, None, GetEntriesContext::empty(false)).is_ok_and(|entries| {
            entries.first().is_some_and(|entry| entry.get_entry_type() != EntryType::EntryNormal)
        });
        if kept { Ok(LogIndex(index)) } else { Err(Rejection::Unavailable) }
    }

    /// The shard has applied (or refused) a membership entry.
    ///
    /// # Panics
    /// If raft can't follow what the shard did: their states have diverged.
    pub(super) fn apply_membership(&mut self, outcome: ConfOutcome) {
        while self.conf_changes.front().is_some_and(|(index, _)| *index <= outcome.index) {
            let Some((index, change)) = self.conf_changes.pop_front() else { break };
            let (true, Some(descriptor)) = (index == outcome.index, &outcome.descriptor) else {
                continue;
            };
            let state = self.raw.apply_conf_change(&change).unwrap_or_else(|error| {
                panic!(
                    "shard {} replica {}: committed membership change at {index} can't be applied: {error}",
                    self.shard, self.replica
                )
            });
            assert!(
                conf_state_eq(&state, &conf_state_of(&descriptor.replicas)),
                "shard {} replica {}: the change at {index} leads raft to {state:?} and the shard to {:?}",
                self.shard,
                self.replica,
                descriptor.replicas
            );
            self.raw.mut_store().set_conf_state(state);
            // A split further on in the same run of entries is told of first, and stays.
            let split = self.descriptor.take();
            self.descriptor = Some(descriptor.clone());
            split.iter().for_each(|after| self.range_changed(after));
            self.members_changed();
        }
    }
}
