//! Commands on their way into the log, and who waits for what is in it.
//!
//! Commands that arrive while the host is busy are packed into one entry each time it comes round
//! (group commit begins here). What has been proposed is remembered by index *and* term: an entry
//! that commits at the same index in another term is somebody else's.

use crate::shard_time::Stamp;
use bytes::Bytes;
use kvdb_model::{EntryPayload, HybridClock, LogIndex, Term};
use std::collections::VecDeque;

struct Arrived<T> {
    command: Bytes,
    version_count: u64,
    ticket: T,
}

struct Proposed<T> {
    index: LogIndex,
    term: Term,
    proposed_us: u64,
    tickets: Vec<T>,
}

/// A packed entry, ready to be proposed.
pub(crate) struct Packed<T> {
    pub(crate) data: Bytes,
    pub(crate) tickets: Vec<T>,
}

/// What became of the proposals at and below a committed index.
pub(crate) struct Settled<T> {
    /// Tickets of the committed entry itself.
    pub(crate) tickets: Vec<T>,
    /// When it was proposed here, if it was.
    pub(crate) proposed_us: Option<u64>,
    /// Tickets of proposals that were replaced by it or by entries before it.
    pub(crate) superseded: Vec<T>,
}

pub(crate) struct Proposals<T> {
    arrived: VecDeque<Arrived<T>>,
    arrived_bytes: usize,
    proposed: VecDeque<Proposed<T>>,
    waiting: usize,
}

impl<T> Proposals<T> {
    pub(crate) fn new() -> Self {
        Proposals {
            arrived: VecDeque::new(),
            arrived_bytes: 0,
            proposed: VecDeque::new(),
            waiting: 0,
        }
    }

    /// Commands without an answer yet.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether there is anything to pack.
    pub(crate) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Bytes of commands that aren't in the log yet.
    pub(crate) fn arrived_bytes(&self) -> usize {
        self.arrived_bytes
    }

    pub(crate) fn arrive(&mut self, command: Bytes, version_count: u64, ticket: T) {
        self.waiting += 1;
        self.arrived_bytes += command.len();
        self.arrived.push_back(Arrived { command, version_count, ticket });
    }

    /// Packs what has arrived, up to `max_bytes` (one larger command goes alone).
    pub(crate) fn pack(
        &mut self,
        clock: &mut HybridClock,
        stamp: Stamp,
        max_bytes: usize,
    ) -> Option<Packed<T>> {
        let mut commands = Vec::new();
        let mut tickets = Vec::new();
        let mut size = 0;
        let mut version_count = 0;
        while let Some(next) = self.arrived.front() {
            if !commands.is_empty() && size + next.command.len() > max_bytes {
                break;
            }
            let Some(next) = self.arrived.pop_front() else { break };
            size += next.command.len();
            self.arrived_bytes -= next.command.len();
            version_count += next.version_count;
            commands.push(next.command);
            tickets.push(next.ticket);
        }
        if commands.is_empty() {
            return None;
        }
        let version = clock.reserve(stamp.time_ms, version_count);
        let payload = EntryPayload { version, version_count, jump_ms: stamp.jump_ms, commands };
        Some(Packed { data: payload.to_bytes(), tickets })
    }

    pub(crate) fn proposed(
        &mut self,
        index: LogIndex,
        term: Term,
        proposed_us: u64,
        tickets: Vec<T>,
    ) {
        self.proposed.push_back(Proposed { index, term, proposed_us, tickets });
    }

    /// For a membership change, which isn't packed.
    pub(crate) fn proposed_alone(
        &mut self,
        index: LogIndex,
        term: Term,
        proposed_us: u64,
        ticket: T,
    ) {
        self.waiting += 1;
        self.proposed(index, term, proposed_us, vec![ticket]);
    }

    /// An entry is committed. Must be called for each, in order.
    pub(crate) fn settle(&mut self, index: LogIndex, term: Term) -> Settled<T> {
        let mut settled =
            Settled { tickets: Vec::new(), proposed_us: None, superseded: Vec::new() };
        while self.proposed.front().is_some_and(|first| first.index <= index) {
            let Some(first) = self.proposed.pop_front() else { break };
            self.waiting -= first.tickets.len();
            if first.index == index && first.term == term {
                settled.tickets = first.tickets;
                settled.proposed_us = Some(first.proposed_us);
            } else {
                settled.superseded.extend(first.tickets);
            }
        }
        settled
    }

    /// Takes out what was refused before it was proposed.
    pub(crate) fn unpropose(&mut self, tickets: Vec<T>) -> Vec<T> {
        self.waiting -= tickets.len();
        tickets
    }

    /// Takes out all that has only arrived: nothing of it is in any log.
    pub(crate) fn drain_arrived(&mut self) -> Vec<T> {
        self.waiting -= self.arrived.len();
        self.arrived_bytes = 0;
        self.arrived.drain(..).map(|arrived| arrived.ticket).collect()
    }

    /// The term of the first proposal that isn't known to be committed.
    pub(crate) fn oldest_term(&self) -> Option<Term> {
        self.proposed.front().map(|first| first.term)
    }

    /// Takes out all that is in the log without being known to be committed, but for what was
    /// proposed in the `leading` term.
    pub(crate) fn drain_proposed_except(&mut self, leading: Option<Term>) -> Vec<T> {
        let mut tickets = Vec::new();
        while self.proposed.front().is_some_and(|first| Some(first.term) != leading) {
            let Some(first) = self.proposed.pop_front() else { break };
            tickets.extend(first.tickets);
        }
        self.waiting -= tickets.len();
        tickets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time_ms: u64) -> Stamp {
        Stamp { time_ms, jump_ms: 0 }
    }

    fn arrive(proposals: &mut Proposals<u32>, sizes: &[usize]) {
        for (ticket, size) in sizes.iter().enumerate() {
            proposals.arrive(vec![0; *size].into(), 1, ticket as u32);
        }
    }

    #[test]
    fn commands_are_packed_up_to_the_limit_and_a_larger_one_goes_alone() {
        let mut proposals = Proposals::new();
        let mut clock = HybridClock::default();
        arrive(&mut proposals, &[40, 40, 40, 500, 10]);
        let packs: Vec<_> = std::iter::from_fn(|| proposals.pack(&mut clock, at(1), 100))
            .map(|packed| packed.tickets)
            .collect();
        assert_eq!(packs, [vec![0, 1], vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn an_entry_of_another_term_supersedes_and_does_not_answer() {
        let mut proposals = Proposals::new();
        for ticket in 0..3 {
            proposals.arrive(Bytes::new(), 1, ticket);
        }
        let mut clock = HybridClock::default();
        let packed = proposals.pack(&mut clock, at(1), 100).unwrap();
        assert_eq!(packed.tickets.len(), 3);
        proposals.proposed(LogIndex(7), Term(2), 0, vec![0, 1]);
        proposals.proposed(LogIndex(8), Term(2), 0, vec![2]);
        let settled = proposals.settle(LogIndex(7), Term(3));
        assert!(settled.tickets.is_empty());
        assert_eq!(settled.superseded, [0, 1]);
        let settled = proposals.settle(LogIndex(8), Term(2));
        assert_eq!(settled.tickets, [2]);
        assert_eq!(proposals.waiting(), 0);
    }

    #[test]
    fn versions_of_packed_commands_rise_over_entries() {
        let mut proposals = Proposals::new();
        let mut clock = HybridClock::default();
        arrive(&mut proposals, &[10, 200]);
        let first = proposals.pack(&mut clock, at(1000), 100).unwrap();
        let second = proposals.pack(&mut clock, at(999), 100).unwrap();
        let first = EntryPayload::decode(first.data).unwrap();
        let second = EntryPayload::decode(second.data).unwrap();
        assert!(second.version > first.last_version());
    }
}
