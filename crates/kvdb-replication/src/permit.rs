//! What other threads may know of a leader: whether a strong read may be served at once.
//!
//! Asking the host takes a message to its thread and one back. While the lease holds neither is
//! needed: three numbers say it all, and whoever serves reads can look at them.
//!
//! # Why a read is linearizable
//!
//! Let `t` be when [`ReadPermit::covers`] looked at the lease, after the read was asked for. The
//! lease held then, so no other replica could commit anything before `t`, and all that was
//! acknowledged before `t` by this leader, or by an earlier one (an entry of this one's own term is
//! committed), is at or below what is *then* known as committed. That number was put here before
//! any acknowledgement or message that tells of it left the host. All of it is applied, or the read
//! isn't covered. What is read later than `t` is the state after these entries and perhaps more,
//! which is committed as well.
//!
//! That the engine is read only after the check, when the lease may be over, does no harm: whatever
//! another leader has committed meanwhile goes on at the same time as the read.

use crate::lease::Lease;
use kvdb_model::LogIndex;
use kvdb_model::planted::{Bug, has};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether the replica of a shard may serve strong reads now. Shared with who reads and who
/// applies; see the head of this module.
#[derive(Debug, Default)]
pub struct ReadPermit {
    until_us: AtomicU64,
    committed: AtomicU64,
    applied: AtomicU64,
}

impl ReadPermit {
    /// Whether a read that was asked for before this call may be served from what is applied.
    /// `boot_us` is the boot-time clock, read during it.
    pub fn covers(&self, boot_us: u64) -> bool {
        // The lease first: what is committed must not be older than it.
        boot_us < self.until_us.load(Ordering::Acquire)
            && (self.applied.load(Ordering::Acquire) >= self.committed.load(Ordering::Acquire)
                || has(Bug::ReadBeforeApply))
    }

    /// Everything up to `index` can be read from now on.
    pub fn applied(&self, index: LogIndex) {
        self.applied.fetch_max(index.0, Ordering::AcqRel);
    }

    /// What a leader knows, before it tells anybody.
    pub(crate) fn leads(&self, lease: &Lease, committed: LogIndex) {
        self.committed.store(committed.0, Ordering::Release);
        let until_us = if has(Bug::ReadIndexSkipped) { u64::MAX } else { lease.until_us() };
        self.until_us.store(until_us, Ordering::Release);
    }

    /// It leads no more, or doesn't know yet what is committed.
    pub(crate) fn end(&self) {
        self.until_us.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::Term;

    #[test]
    fn a_read_is_covered_while_the_lease_holds_and_all_that_is_committed_is_applied() {
        let permit = ReadPermit::default();
        let mut lease = Lease::default();
        assert!(!permit.covers(0));
        lease.renew(Term(1), 100, 50);
        permit.leads(&lease, LogIndex(7));
        assert!(!permit.covers(149), "nothing is applied");
        permit.applied(LogIndex(6));
        assert!(!permit.covers(149));
        permit.applied(LogIndex(7));
        assert!(permit.covers(149));
        assert!(!permit.covers(150), "the lease is over");
        permit.applied(LogIndex(3));
        assert!(permit.covers(149), "what is applied stays so");
        permit.leads(&lease, LogIndex(8));
        assert!(!permit.covers(149), "more is committed than applied");
        permit.applied(LogIndex(8));
        permit.end();
        assert!(!permit.covers(149));
    }
}
