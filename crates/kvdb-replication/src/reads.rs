//! Strong reads: who waits for leadership to be confirmed, and who for entries to be applied.
//!
//! A read first notes the commit index, then needs proof that this replica still leads: the
//! lease, or one round of heartbeats (raft's ReadIndex) that all reads waiting at its start share.
//! Then it waits until that index is applied. (Ongaro's dissertation, section 6.4.)

use kvdb_model::{LogIndex, Term};
use std::collections::VecDeque;

/// A ReadIndex round under way.
struct Round<T> {
    id: u64,
    term: Term,
    started_us: u64,
    tickets: Vec<T>,
}

pub(crate) struct Reads<T> {
    /// Arrived; not yet given a round or covered by the lease.
    arrived: Vec<T>,
    round: Option<Round<T>>,
    next_round: u64,
    /// Confirmed: served once the index is applied. Indexes rise.
    confirmed: VecDeque<(LogIndex, Vec<T>)>,
}

impl<T> Reads<T> {
    pub(crate) fn new() -> Self {
        Reads { arrived: Vec::new(), round: None, next_round: 1, confirmed: VecDeque::new() }
    }

    pub(crate) fn arrive(&mut self, ticket: T) {
        self.arrived.push(ticket);
    }

    pub(crate) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.arrived.len()
            + self.round.as_ref().map_or(0, |round| round.tickets.len())
            + self.confirmed.iter().map(|(_, tickets)| tickets.len()).sum::<usize>()
    }

    /// The lease holds: all that has arrived only waits for `commit` to be applied.
    pub(crate) fn confirm_arrived(&mut self, commit: LogIndex) {
        let tickets = std::mem::take(&mut self.arrived);
        self.confirm(commit, tickets);
    }

    fn confirm(&mut self, index: LogIndex, tickets: Vec<T>) {
        if tickets.is_empty() {
            return;
        }
        let index = self.confirmed.back().map_or(index, |(last, _)| index.max(*last));
        self.confirmed.push_back((index, tickets));
    }

    /// Starts a round for all that has arrived, unless one is under way. Returns its id.
    pub(crate) fn start_round(&mut self, term: Term, now_us: u64) -> Option<u64> {
        if self.round.is_some() || self.arrived.is_empty() {
            return None;
        }
        let id = self.next_round;
        self.next_round += 1;
        let tickets = std::mem::take(&mut self.arrived);
        self.round = Some(Round { id, term, started_us: now_us, tickets });
        Some(id)
    }

    /// A quorum answered a round: its reads wait for `index` to be applied. Returns when the round
    /// was started, if it is the one under way.
    pub(crate) fn finish_round(&mut self, id: u64, term: Term, index: LogIndex) -> Option<u64> {
        let round = self.round.take_if(|round| round.id == id && round.term == term)?;
        self.confirm(index, round.tickets);
        Some(round.started_us)
    }

    /// Whether a read waits for nothing but entries to be applied.
    pub(crate) fn awaits_apply(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// Reads that `applied` is enough for.
    pub(crate) fn take_ready(&mut self, applied: LogIndex) -> Vec<T> {
        let mut ready = Vec::new();
        while self.confirmed.front().is_some_and(|(index, _)| *index <= applied) {
            if let Some((_, tickets)) = self.confirmed.pop_front() {
                ready.extend(tickets);
            }
        }
        ready
    }

    /// Leadership is gone: everything that waits is given back. (What was confirmed could still be
    /// served, but would have to wait for entries that may come late.)
    pub(crate) fn drain(&mut self) -> Vec<T> {
        let mut all: Vec<T> = self.confirmed.drain(..).flat_map(|(_, tickets)| tickets).collect();
        all.extend(self.round.take().into_iter().flat_map(|round| round.tickets));
        all.append(&mut self.arrived);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_arrive_during_a_round_wait_for_the_next() {
        let mut reads = Reads::new();
        reads.arrive(1);
        let first = reads.start_round(Term(1), 10).unwrap();
        reads.arrive(2);
        assert_eq!(reads.start_round(Term(1), 11), None);
        assert_eq!(reads.finish_round(first, Term(1), LogIndex(5)), Some(10));
        assert_eq!(reads.take_ready(LogIndex(4)), []);
        assert_eq!(reads.take_ready(LogIndex(5)), [1]);
        assert!(reads.start_round(Term(1), 12).is_some());
    }

    #[test]
    fn an_answer_to_an_older_term_or_round_confirms_nothing() {
        let mut reads = Reads::new();
        reads.arrive(1);
        let id = reads.start_round(Term(1), 10).unwrap();
        assert_eq!(reads.finish_round(id, Term(2), LogIndex(5)), None);
        assert_eq!(reads.finish_round(id + 1, Term(1), LogIndex(5)), None);
        assert_eq!(reads.drain(), [1]);
    }

    #[test]
    fn reads_under_the_lease_wait_for_what_was_committed_when_they_came() {
        let mut reads = Reads::new();
        reads.arrive(1);
        reads.confirm_arrived(LogIndex(9));
        assert_eq!(reads.take_ready(LogIndex(8)), []);
        assert_eq!(reads.take_ready(LogIndex(9)), [1]);
    }
}
