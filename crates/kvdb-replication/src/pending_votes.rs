//! Candidates that ask replicas for their vote which aren't here.
//!
//! A voter that was never born is one that has promised nothing, so its vote is as good as any:
//! the first members of a shard are voters from its beginning, and one of them may have missed
//! that, as a parent whose snapshot took it past the split does. Without its vote a group that has
//! lost one more member would find no leader, and without a leader nobody would bring it to life.
//!
//! But mostly its birth is only a moment away, and one that waits for a snapshot instead is much
//! dearer. So only who is asked again and again comes to life for it.

use crate::config::HostConfig;
use kvdb_model::{ReplicaId, ShardId};
use std::collections::BTreeMap;

/// So many replicas can be asked for at once; more have to wait for one of them to be given up.
const MOST: usize = 1024;

struct PendingVote {
    first: u64,
    last: u64,
}

/// Who was asked for, and since when.
#[derive(Default)]
pub(crate) struct PendingVotes {
    now: u64,
    asked: BTreeMap<(ShardId, ReplicaId), PendingVote>,
}

impl PendingVotes {
    /// Time goes by; who isn't asked for any more is forgotten.
    pub(crate) fn tick(&mut self, config: &HostConfig) {
        self.now += 1;
        let (now, patience) = (self.now, 2 * longest_election(config));
        if !self.asked.is_empty() {
            self.asked.retain(|_, pending| pending.last + patience > now);
        }
    }

    /// A candidate asks for a replica that isn't here. Returns whether it has been asked for long
    /// enough to come to life: for longer, too, than a promise of before a restart holds.
    pub(crate) fn heard(&mut self, config: &HostConfig, shard: ShardId, asked: ReplicaId) -> bool {
        let now = self.now;
        if self.asked.len() >= MOST && !self.asked.contains_key(&(shard, asked)) {
            return false;
        }
        let pending =
            self.asked.entry((shard, asked)).or_insert(PendingVote { first: now, last: now });
        pending.last = now;
        let is_enough = pending.first + longest_election(config) <= now;
        if is_enough {
            self.asked.remove(&(shard, asked));
        }
        is_enough
    }
}

/// Within so many ticks a candidate stands again.
fn longest_election(config: &HostConfig) -> u64 {
    (config.election_ticks + config.election_spread_ticks) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::NodeId;

    const SHARD: ShardId = ShardId(7);

    fn wait(pending_votes: &mut PendingVotes, config: &HostConfig, ticks: u64) {
        (0..ticks).for_each(|_| pending_votes.tick(config));
    }

    #[test]
    fn who_is_asked_for_longer_than_an_election_comes_to_life() {
        let config = HostConfig::new(NodeId(1), 1);
        let mut pending_votes = PendingVotes::default();
        assert!(!pending_votes.heard(&config, SHARD, ReplicaId(3)));
        wait(&mut pending_votes, &config, longest_election(&config) - 1);
        assert!(!pending_votes.heard(&config, SHARD, ReplicaId(3)));
        wait(&mut pending_votes, &config, 1);
        assert!(!pending_votes.heard(&config, SHARD, ReplicaId(4)), "another one");
        assert!(pending_votes.heard(&config, SHARD, ReplicaId(3)));
    }

    #[test]
    fn who_is_not_asked_for_any_more_is_forgotten() {
        let config = HostConfig::new(NodeId(1), 1);
        let mut pending_votes = PendingVotes::default();
        pending_votes.heard(&config, SHARD, ReplicaId(3));
        wait(&mut pending_votes, &config, 2 * longest_election(&config));
        assert!(pending_votes.asked.is_empty());
        assert!(!pending_votes.heard(&config, SHARD, ReplicaId(3)));
    }

    #[test]
    fn no_more_than_the_limit_are_remembered() {
        let config = HostConfig::new(NodeId(1), 1);
        let mut pending_votes = PendingVotes::default();
        for replica in 0..2 * MOST as u64 {
            pending_votes.heard(&config, SHARD, ReplicaId(replica));
        }
        assert_eq!(pending_votes.asked.len(), MOST);
    }
}
