//! When the members of a group are settled: so many of them know for good who they are that an
//! older configuration will never decide anything again.
//!
//! A replica that was removed mustn't go as soon as it hears of it. That its removal is committed
//! is known to the leader and to whom the leader has told; a crash of these leaves a group that has
//! the change in its logs, can't know that it is committed, and needs a majority of the *old*
//! members to find out: the removed one may be needed for it, if another is lost.
//!
//! So a leader sees to one more entry, proposed after it has applied the change. Whoever has that
//! entry from it was told with it how far the log is committed, and has both on the disk when it
//! acknowledges it. Once the entry is committed, a majority of the new members comes out of any
//! crash with the change applied before anybody stands for election. From then on others may hear
//! who the members are; the removed replica goes when it is told.
//!
//! The entry with which a leader begins does the same for the members that it has applied by then.

use super::Group;
use crate::effect::Effect;
use crate::host::Outbox;
use kvdb_model::{LogIndex, Term};
use raft::eraftpb::Entry;

/// How a leader knows that its members are settled.
pub(super) struct Settling {
    /// It leads in this term.
    term: Term,
    /// Proposed in it, after the members as they are now were applied.
    entry: LogIndex,
    told: bool,
}

impl<T> Group<T> {
    fn last_index(&self) -> LogIndex {
        LogIndex(self.raw.raft.raft_log.last_index())
    }

    /// A change of the members was applied. One that learns so that it leads a group that it isn't
    /// in leaves it to the others.
    pub(super) fn members_changed(&mut self) {
        let known = self.descriptor.as_ref();
        if known.is_some_and(|known| known.replica(self.replica).is_none()) {
            self.step_down();
        }
        let (term, entry) = (self.term(), self.last_index().next());
        self.settling = self.is_leader().then_some(Settling { term, entry, told: false });
    }

    /// Leaves the lead without a successor.
    fn step_down(&mut self) {
        if self.is_leader() {
            self.wake();
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// This replica has begun to lead, and its log ends with an entry of its own.
    pub(super) fn members_inherited(&mut self) {
        let term = self.term();
        // A change that it has applied since it leads has its own entry to wait for.
        if self.settling.as_ref().is_none_or(|settling| settling.term != term) {
            self.settling = Some(Settling { term, entry: self.last_index(), told: false });
        }
    }

    fn settling(&self) -> Option<&Settling> {
        let term = self.term();
        self.settling.as_ref().filter(|settling| self.is_leader() && settling.term == term)
    }

    /// Whether it leads, and a majority knows for good who the members are.
    pub(super) fn is_settled(&self) -> bool {
        let committed = LogIndex(self.raw.raft.raft_log.committed);
        self.settling().is_some_and(|settling| settling.entry <= committed)
    }

    /// Where nothing else is to be written, an empty entry is.
    pub(super) fn propose_to_settle(&mut self) {
        let last = self.last_index();
        let due = self.settling().is_some_and(|settling| settling.entry > last);
        if due && self.proposals.arrived_bytes() == 0 {
            // Refused while leadership is handed over; tried again at the next tick.
            let _ = self.append_proposal(Entry::default());
        }
    }

    pub(super) fn tell_settled(&mut self, out: &mut Outbox<T>) {
        if !self.is_leader() || !self.is_settled() {
            return;
        }
        let (shard, replica, term) = (self.shard, self.replica, self.term());
        let Some(descriptor) = &self.descriptor else { return };
        let membership_epoch = descriptor.membership_epoch;
        if let Some(settling) = self.settling.as_mut().filter(|settling| !settling.told) {
            settling.told = true;
            out.effects.push(Effect::Settled { shard, replica, term, membership_epoch });
        }
    }
}
