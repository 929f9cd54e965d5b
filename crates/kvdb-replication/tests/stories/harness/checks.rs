//! What must hold at every step of every story, whatever goes wrong in it.

use super::disk::{Records, ReplicaLog};
use super::machine::words_in;
use kvdb_model::{
    LogEntry, LogIndex, MembershipEpoch, Replica, ReplicaId, Role, ShardDescriptor, ShardId, Term,
};
use kvdb_replication::message::{Message, MessageType};
use std::collections::{BTreeMap, BTreeSet};

type Content = (Option<Term>, LogEntry);

#[derive(Default)]
pub struct Checks {
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    committed: BTreeMap<(ShardId, LogIndex), LogEntry>,
    entries: BTreeMap<(ShardId, LogIndex, Term), Content>,
    applied_words: BTreeSet<String>,
    denied_words: BTreeSet<String>,
    /// The highest write that a client knows of.
    known: BTreeMap<ShardId, u64>,
    /// Which entry led to which members.
    changes: BTreeMap<(ShardId, MembershipEpoch), LogIndex>,
}

impl Checks {
    /// Election safety.
    pub fn leads(&mut self, shard: ShardId, term: Term, replica: ReplicaId) {
        let leader = *self.leaders.entry((shard, term)).or_insert(replica);
        assert_eq!(leader, replica, "two leaders of {shard:?} in {term:?}");
    }

    /// Log matching: an entry is known by index and term, and so is what stands before it.
    pub fn written(&mut self, records: &Records, replica: ReplicaId, entries: &[LogEntry]) {
        let log = &records.replicas[&replica];
        for entry in entries {
            let before = log.term_at(LogIndex(entry.index.0 - 1));
            let content = (before, entry.clone());
            let known = self
                .entries
                .entry((log.shard, entry.index, entry.term))
                .or_insert_with(|| content.clone());
            assert_eq!(*known, content, "two entries at the same place in the same term");
        }
    }

    /// State machine safety: nobody ever applies something else at an index.
    pub fn applied(&mut self, shard: ShardId, entry: &LogEntry) {
        let known = self.committed.entry((shard, entry.index)).or_insert_with(|| entry.clone());
        assert_eq!(known, entry, "a committed entry was lost");
        for word in words_in(entry) {
            assert!(!self.denied_words.contains(&word), "{word:?} was refused and yet applied");
            self.applied_words.insert(word);
        }
    }

    pub fn members_changed(&mut self, descriptor: &ShardDescriptor, index: LogIndex) {
        self.changes.insert((descriptor.shard_id, descriptor.membership_epoch), index);
    }

    /// Whatever crashes now, a majority of these members comes back knowing who they are.
    pub fn settled<'a>(
        &self,
        descriptor: &ShardDescriptor,
        durable: impl Fn(&Replica) -> Option<&'a ReplicaLog>,
    ) {
        let change = (descriptor.shard_id, descriptor.membership_epoch);
        let index = self.changes.get(&change).copied().unwrap_or_default();
        let knows = |replica: &&&Replica| {
            durable(replica).is_some_and(|log| {
                log.hard_state.commit.max(log.start.index) >= index && log.last() >= index
            })
        };
        for roles in [[Role::Voter, Role::Incoming], [Role::Voter, Role::Outgoing]] {
            let voters = descriptor.replicas.iter();
            let voters: Vec<&Replica> =
                voters.filter(|replica| roles.contains(&replica.role)).collect();
            let knowing = voters.iter().filter(knows).count();
            assert!(
                2 * knowing > voters.len(),
                "settled, and only {knowing} of {voters:?} know of the change at {index}"
            );
        }
    }

    /// A client is told that a write isn't and won't be carried out. Returns whether that may be.
    pub fn deny(&mut self, word: &str) -> bool {
        self.denied_words.insert(word.to_owned());
        !self.applied_words.contains(word)
    }

    pub fn known(&self, shard: ShardId) -> u64 {
        self.known.get(&shard).copied().unwrap_or_default()
    }

    /// A client got to know a write: by its own, or by a read.
    pub fn learned(&mut self, shard: ShardId, index: u64) {
        let known = self.known.entry(shard).or_default();
        *known = (*known).max(index);
    }
}

/// A message promises nothing that a crash could take back.
pub fn assert_durable(durable: &Records, written: &Records, message: &Message) {
    if matches!(
        message.get_msg_type(),
        MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgBeat
    ) {
        // They ask, guess or are of the host; nobody relies on them.
        return;
    }
    let Some(log) = durable.replicas.get(&ReplicaId(message.from)) else {
        panic!("{:?} from a replica that a crash would undo", message.get_msg_type());
    };
    let state = log.hard_state;
    let term = Term(message.term);
    match message.get_msg_type() {
        MessageType::MsgRequestVoteResponse if !message.reject => {
            let voted = state.term > term || state.term == term && state.vote.0 == message.to;
            assert!(voted, "a vote left before it was durable: {state:?}");
        }
        MessageType::MsgRequestVote => {
            let voted = state.term > term || state.term == term && state.vote.0 == message.from;
            assert!(voted, "a candidate's own vote wasn't durable: {state:?}");
        }
        MessageType::MsgAppend | MessageType::MsgHeartbeat => {
            assert!(state.term >= term, "a leader spoke before its term was durable: {state:?}");
        }
        MessageType::MsgAppendResponse if !message.reject || message.request_snapshot != 0 => {
            // Who asks for a snapshot says thereby what it holds.
            let index = if message.reject { message.reject_hint } else { message.index };
            let index = LogIndex(index);
            let view = &written.replicas[&ReplicaId(message.from)];
            // What a later term has overwritten since was true when it was said; the later term
            // itself must be durable then.
            let overtaken = state.term > term;
            let compacted = index <= log.start.index || index < view.start.index;
            let held = log.term_at(index).is_some() && log.term_at(index) == view.term_at(index);
            let same = overtaken || compacted || held;
            assert!(
                same,
                "entries up to {index} were acknowledged before they were durable: {message:?}, \
                 durable {log:?}, written {view:?}"
            );
        }
        _ => {}
    }
}
