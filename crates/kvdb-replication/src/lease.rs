//! The read lease of a leader: until when it may serve reads without asking.
//!
//! A follower that heard from the leader grants no vote for one election timeout. So once a
//! quorum has answered something that the leader sent at time `t`, no other leader can exist
//! before `t` plus that timeout, less what clocks may differ. The lease is counted from `t`,
//! the moment *before* the message left, on the boot-time clock, which goes on while a process is
//! stopped or a machine suspended. (Ongaro's dissertation, section 6.4.1; raft-rs's own
//! `LeaseBased` reads know no clock.)
//!
//! What ends it for a whole term: a started leader transfer, since the chosen follower campaigns
//! with a mark that makes voters ignore their promise.

use kvdb_model::Term;
use kvdb_model::planted::{Bug, has};

#[derive(Debug, Default)]
pub(crate) struct Lease {
    until_us: u64,
    /// The term in which a transfer was started.
    given_up: Option<Term>,
}

impl Lease {
    /// A quorum has answered a message that was sent at `sent_us`.
    pub(crate) fn renew(&mut self, term: Term, sent_us: u64, length_us: u64) {
        if self.given_up != Some(term) {
            self.until_us = self.until_us.max(sent_us + length_us);
        }
    }

    /// Leadership was lost or gained: what was promised before says nothing any more.
    pub(crate) fn reset(&mut self) {
        self.until_us = 0;
    }

    /// A transfer starts: no lease again in this term.
    pub(crate) fn give_up(&mut self, term: Term) {
        if has(Bug::TransferKeepsLease) {
            return;
        }
        self.given_up = Some(term);
        self.until_us = 0;
    }

    /// When it ends.
    pub(crate) fn until_us(&self) -> u64 {
        if self.until_us > 0 && has(Bug::LeaseWithoutEnd) { u64::MAX } else { self.until_us }
    }

    pub(crate) fn holds(&self, now_us: u64) -> bool {
        now_us < self.until_us()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_sending_and_only_grows() {
        let mut lease = Lease::default();
        assert!(!lease.holds(0));
        lease.renew(Term(1), 100, 50);
        lease.renew(Term(1), 80, 50);
        assert!(lease.holds(149));
        assert!(!lease.holds(150));
    }

    #[test]
    fn a_started_transfer_ends_the_lease_for_the_whole_term() {
        let mut lease = Lease::default();
        lease.renew(Term(3), 100, 50);
        lease.give_up(Term(3));
        assert!(!lease.holds(100));
        lease.renew(Term(3), 120, 50);
        assert!(!lease.holds(121));
        lease.renew(Term(4), 120, 50);
        assert!(lease.holds(121));
    }
}
