//! What must be true at every step, whatever happens.

use kvdb_model::{
    LogEntry, LogIndex, MapVersion, MembershipEpoch, RangeEpoch, ReplicaId, ShardDescriptor,
    ShardId, Term,
};
use rustc_hash::FxHasher;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// Remembers what was seen, and says what contradicts it.
#[derive(Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<(ShardId, Term), ReplicaId>,
    applied: BTreeMap<(ShardId, LogIndex), (Term, u64)>,
    /// The last entry that is durable, by place and shard.
    durable: BTreeMap<(usize, ShardId), LogIndex>,
    map_versions: BTreeMap<(usize, u64), MapVersion>,
    epochs: BTreeMap<(usize, u64, ShardId), (RangeEpoch, MembershipEpoch)>,
    pub(crate) violations: Vec<String>,
}

impl Checks {
    fn violated(&mut self, what: String) {
        self.violations.push(what);
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
        let first = *self.applied.entry((shard, entry.index)).or_insert(seen);
        if first != seen {
            self.violated(format!(
                "shard {shard}: entry {} was applied in term {}, and another one in term {}",
                entry.index, first.0, entry.term
            ));
        }
    }

    /// A process has synced a shard's log up to here (or started with it).
    pub(crate) fn is_durable(&mut self, place: usize, shard: ShardId, last: LogIndex) {
        self.durable.insert((place, shard), last);
    }

    /// What is acknowledged is durable on a majority of the voters.
    pub(crate) fn acknowledged(&mut self, descriptor: &ShardDescriptor, index: LogIndex) {
        let shard = descriptor.shard_id;
        let holders =
            self.durable.iter().filter(|((_, of), last)| *of == shard && **last >= index).count();
        let voters = descriptor.replicas.len();
        if holders <= voters / 2 {
            self.violated(format!(
                "shard {shard}: entry {index} was acknowledged, but is durable on {holders} of {voters}"
            ));
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
        let epochs = (has.range_epoch, has.membership_epoch);
        let last = self.epochs.insert((place, life, has.shard_id), epochs);
        if last.is_some_and(|last| last.0 > epochs.0 || last.1 > epochs.1) {
            self.violated(format!("shard {}: epochs went back to {epochs:?}", has.shard_id));
        }
    }
}
