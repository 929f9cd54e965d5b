//! What must be true at every step, whatever happens.

use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryKind, EntryPayload, HardState, LogEntry, LogIndex, MapVersion, MembershipEpoch,
    RangeEpoch, Replica, ReplicaId, Role, ShardDescriptor, ShardId, Term, Version,
};
use kvdb_replication::message::{Message, MessageType};
use rustc_hash::FxHasher;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// A replica: ids are unique among data shards, and among coordinators.
pub(crate) type Member = (ShardId, ReplicaId);

/// Remembers what was seen, and says what contradicts it.
#[derive(Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    applied: BTreeMap<(ShardId, LogIndex), (Term, u64)>,
    /// The last entry that is durable, by replica.
    durable: BTreeMap<Member, LogIndex>,
    /// Term and vote that are durable, by replica.
    promised: BTreeMap<Member, HardState>,
    /// The last entry whose effects are in what an engine has flushed, by replica.
    flushed: BTreeMap<Member, LogIndex>,
    /// The highest version in each entry.
    versions: BTreeMap<(ShardId, LogIndex), Version>,
    map_versions: BTreeMap<(usize, u64), MapVersion>,
    born: BTreeMap<ShardId, ShardDescriptor>,
    /// Each configuration that a shard had.
    configurations: BTreeMap<(ShardId, MembershipEpoch), ShardDescriptor>,
    /// The entry that led to it.
    changes: BTreeMap<(ShardId, MembershipEpoch), LogIndex>,
    epochs: BTreeMap<(usize, u64, ShardId), (RangeEpoch, MembershipEpoch)>,
    pub(crate) violations: Vec<String>,
}

impl Checks {
    fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    /// The newest configuration of a shard that was seen anywhere.
    pub(crate) fn newest(&self, shard: ShardId) -> Option<&ShardDescriptor> {
        let last = (shard, MembershipEpoch(u64::MAX));
        let known = self.configurations.range((shard, MembershipEpoch(0))..=last);
        known.map(|(_, descriptor)| descriptor).next_back()
    }

    /// At most one leader a term.
    pub(crate) fn leads(&mut self, shard: ShardId, term: Term, replica: ReplicaId) {
        let first = *self.leaders.entry((shard, term)).or_insert(replica);
        if first != replica {
            self.violated(format!(
                "shard {shard} has two leaders in term {term}: replicas {first} and {replica}"
            ));
        }
    }

    /// What is applied at an index is the same on every replica, in every life.
    pub(crate) fn applies(&mut self, shard: ShardId, entry: &LogEntry) {
        let mut hasher = FxHasher::default();
        (&entry.data[..], &entry.context[..]).hash(&mut hasher);
        let seen = (entry.term, hasher.finish());
        if entry.kind == EntryKind::Normal && !entry.data.is_empty() {
            self.has_versions(shard, entry);
        }
        let first = *self.applied.entry((shard, entry.index)).or_insert(seen);
        if first != seen {
            self.violated(format!(
                "shard {shard}: entry {} was applied in term {}, and another one in term {}",
                entry.index, first.0, entry.term
            ));
        }
    }

    /// Versions rise with the log, whoever led.
    fn has_versions(&mut self, shard: ShardId, entry: &LogEntry) {
        let Ok(payload) = EntryPayload::decode(entry.data.clone()) else {
            return self.violated(format!("shard {shard}: entry {} can't be read", entry.index));
        };
        let before = self.versions.range(..(shard, entry.index)).next_back();
        let before = before.filter(|((of, _), _)| *of == shard).map(|(_, last)| *last);
        if before.is_some_and(|before| before >= payload.version) {
            self.violated(format!(
                "shard {shard}: entry {} has version {}, the one before {before:?}",
                entry.index, payload.version
            ));
        }
        self.versions.insert((shard, entry.index), payload.last_version());
    }

    /// A process has synced a shard's log up to here, with this term and vote.
    pub(crate) fn is_durable(&mut self, member: Member, last: LogIndex, state: HardState) {
        self.remembers(member, state);
        self.durable.insert(member, last);
        self.promised.insert(member, state);
    }

    /// An engine holds a shard's state up to here, durably.
    pub(crate) fn is_flushed(&mut self, member: Member, applied: LogIndex) {
        let last = self.flushed.entry(member).or_default();
        *last = applied.max(*last);
    }

    /// A log begins after `start`: what came before must be in the engine.
    pub(crate) fn log_begins(&mut self, member: Member, start: LogIndex) {
        let flushed = self.flushed.get(&member).copied().unwrap_or_default();
        if start > INITIAL_POSITION.index.max(flushed) {
            self.violated(format!(
                "replica {} of shard {} has cut its log up to {start}, but flushed up to {flushed}",
                member.1, member.0
            ));
        }
    }

    /// A process has started with this term and vote: it must not have forgotten any.
    pub(crate) fn remembers(&mut self, member: Member, state: HardState) {
        let Some(promised) = self.promised.get(&member) else { return };
        let forgot_vote = state.term == promised.term
            && promised.vote != ReplicaId(0)
            && state.vote != promised.vote;
        if state.term < promised.term || forgot_vote {
            self.violated(format!(
                "replica {} of shard {} has forgotten its vote: {promised:?}, now {state:?}",
                member.1, member.0
            ));
        }
    }

    /// What a replica tells others must be on its disk: votes, and entries that it has.
    pub(crate) fn says(&mut self, shard: ShardId, message: &Message) {
        let replica = ReplicaId(message.from);
        if message.reject {
            return;
        }
        match message.get_msg_type() {
            MessageType::MsgRequestVoteResponse => {
                let promised = self.promised.get(&(shard, replica)).copied().unwrap_or_default();
                let kept = promised.term > Term(message.term)
                    || (promised.term == Term(message.term)
                        && promised.vote == ReplicaId(message.to));
                if !kept {
                    self.violated(format!(
                        "replica {replica} votes for replica {} in shard {shard}, term {}, with {promised:?} on its disk",
                        message.to, message.term
                    ));
                }
            }
            MessageType::MsgAppendResponse => {
                let last = self.durable.get(&(shard, replica)).copied().unwrap_or_default();
                if LogIndex(message.index) > last {
                    self.violated(format!(
                        "replica {replica} acknowledges entry {} of shard {shard}; its disk has {last}",
                        message.index
                    ));
                }
            }
            _ => {}
        }
    }

    /// What is acknowledged is durable on a majority of the voters: of the configuration at its
    /// place in the log, or of the one before, since a change takes effect when it is applied.
    pub(crate) fn acknowledged(&mut self, descriptor: &ShardDescriptor, index: LogIndex) {
        let shard = descriptor.shard_id;
        let epoch = descriptor.membership_epoch;
        self.configurations.insert((shard, epoch), descriptor.clone());
        let before = self.configurations.range(..(shard, epoch)).next_back();
        let before = before.filter(|((of, _), _)| *of == shard).map(|(_, before)| before);
        let holds = |replica: &Replica| {
            self.durable.get(&(shard, replica.replica_id)).is_some_and(|last| *last >= index)
        };
        if let Some((holders, voters)) = minority(descriptor, holds)
            && before.is_none_or(|before| minority(before, holds).is_some())
        {
            self.violated(format!(
                "shard {shard}: entry {index} was acknowledged, but is durable on {holders} of {voters}"
            ));
        }
    }

    /// An entry has given a shard these members.
    pub(crate) fn members_changed(&mut self, descriptor: &ShardDescriptor, index: LogIndex) {
        self.changes.insert((descriptor.shard_id, descriptor.membership_epoch), index);
    }

    /// Members may be told to others once a majority of them comes out of any crash knowing who
    /// they are.
    pub(crate) fn settled(&mut self, shard: ShardId, epoch: MembershipEpoch) {
        let Some(descriptor) = self.configurations.get(&(shard, epoch)) else { return };
        let Some(index) = self.changes.get(&(shard, epoch)).copied() else { return };
        let knows = |replica: &Replica| {
            let member = (shard, replica.replica_id);
            let committed = self.promised.get(&member).map(|state| state.commit);
            committed.max(self.flushed.get(&member).copied()) >= Some(index)
        };
        if let Some((knowing, voters)) = minority(descriptor, knows) {
            self.violated(format!(
                "shard {shard} is called settled, but {knowing} of {voters} know that entry {index} is committed"
            ));
        }
    }

    /// A split never gives a key to two shards: nobody was born twice, in two ways.
    pub(crate) fn is_born(&mut self, child: &ShardDescriptor) {
        let first = self.born.entry(child.shard_id).or_insert_with(|| child.clone());
        if first != child {
            let first = first.clone();
            self.violated(format!("a shard was born twice: {first:?} and {child:?}"));
        }
    }

    /// A process's map only goes on.
    pub(crate) fn sees_map(&mut self, place: usize, life: u64, version: MapVersion) {
        let last = self.map_versions.insert((place, life), version);
        if last.is_some_and(|last| last > version) {
            self.violated(format!("place {place} went back to map version {version}"));
        }
    }

    /// A replica's epochs only rise, as long as its process lives.
    pub(crate) fn has_descriptor(&mut self, place: usize, life: u64, has: &ShardDescriptor) {
        self.configurations.insert((has.shard_id, has.membership_epoch), has.clone());
        let epochs = (has.range_epoch, has.membership_epoch);
        let last = self.epochs.insert((place, life, has.shard_id), epochs);
        if last.is_some_and(|last| last.0 > epochs.0 || last.1 > epochs.1) {
            self.violated(format!("shard {}: epochs went back to {epochs:?}", has.shard_id));
        }
    }
}

/// Of how many of how many voters something is so, if those aren't a majority; of either half while
/// the configuration is joint.
fn minority(
    descriptor: &ShardDescriptor,
    is_so: impl Fn(&Replica) -> bool,
) -> Option<(usize, usize)> {
    [[Role::Voter, Role::Incoming], [Role::Voter, Role::Outgoing]].iter().find_map(|half| {
        let voters = descriptor.replicas.iter().filter(|replica| half.contains(&replica.role));
        let (few, voters) =
            (voters.clone().filter(|replica| is_so(replica)).count(), voters.count());
        (few <= voters / 2).then_some((few, voters))
    })
}
