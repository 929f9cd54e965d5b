//! Which start of each peer is heard: so that an older copy of a data directory, and a second process
//! on a copy, never vote or acknowledge beside the one that counts.
//!
//! Each start of a process has a number, which rises, and a nonce. A host remembers the newest start of
//! each peer that it has met, and how far that one's log was synced when it spoke last. It *vouches* for
//! a newer start whose directory shows the nonce that it knows, and whose log reaches as far. From then on
//! it turns older starts away, and must do so after a restart too: it answers when that is durable.
//!
//! The process before a start may be alive still. Before a start takes part in a group, so many of the
//! other voters have vouched for it that the rest and the older process have no majority ([`Others`]).
//! Two majorities of a group share a voter, so one of those that are asked has heard each promise that
//! the older process has made to a majority: what lacks that promise is found.

use kvdb_model::planted::{Bug, has};
use kvdb_model::{NodeId, Role, ShardDescriptor, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// Nonces of starts before it that a start shows, at most.
pub const MOST_SHOWN: usize = 16;
/// A process that was heard so lately is asked to be stopped before another one takes its place. It is
/// only politeness: what is safe doesn't depend on time.
const LATELY_US: u64 = 3_000_000;

/// The number of a start says, above the low 32 bits, on how many older copies of its directory that somebody has
/// accepted the process has been started. What was heard of those before says nothing of the next one: what it
/// holds has no part in anything any more.
fn copies(number: u64) -> u64 {
    number >> 32
}

/// The number of a start on a directory that is the `count`th older copy that was accepted.
pub fn number_on_copy(number: u64, count: u64) -> u64 {
    (count << 32) | (number & u64::from(u32::MAX))
}

/// What a process says of itself when it speaks up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Of its start; 0 if it doesn't say.
    pub number: u64,
    /// Drawn for its start.
    pub nonce: u128,
    /// The last synced frame of its log, if what is said comes in order.
    pub synced: Option<u64>,
    /// Where it is reached; empty if it doesn't say.
    pub address: String,
}

/// The newest start of a process that was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    number: u64,
    nonce: u128,
    /// The highest that was heard of.
    synced: u64,
    /// Where it was; empty if that isn't known.
    address: String,
    /// By the boot clock, in microseconds; 0 if it wasn't heard since this process was started.
    heard_us: u64,
    /// Streams that are open from it.
    open: usize,
    /// Whether it is durable that older ones are turned away.
    is_kept: bool,
}

impl Known {
    /// Who it is that counts, for people.
    fn words(&self, node: NodeId, now_us: u64) -> String {
        let at =
            if self.address.is_empty() { String::new() } else { format!(" at {}", self.address) };
        let heard = match self.heard_us {
            0 => String::new(),
            heard_us => {
                let silent_us = now_us.saturating_sub(heard_us);
                format!(" and was heard {:.1} s ago", silent_us as f64 / 1e6)
            }
        };
        format!("another process of number {node} runs{at}{heard}")
    }

    /// Whether a start is on an older copy that was accepted after this one.
    fn precedes_copy(&self, said: &Said) -> bool {
        copies(said.number) > copies(self.number)
    }

    fn check_synced(&self, node: NodeId, synced: u64) -> Result<(), String> {
        if synced >= self.synced || has(Bug::FramesNotCompared) {
            return Ok(());
        }
        Err(format!(
            "the log of number {node} ends at frame {synced}, and it has told of frame {}: its data directory is an \
             older copy, or synced bytes are lost. It must not take part. Start it with its newest directory; if that \
             is lost, `kvdb admin replace {node}` and start a new node with an empty directory",
            self.synced
        ))
    }
}

/// Whether a process is the one that somebody wants to speak to: where a node was, another one may be by now.
pub fn is_meant(own: NodeId, to: NodeId) -> bool {
    own == to || has(Bug::ForOthersTaken)
}

/// Why a start isn't vouched for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotVouched {
    /// Nothing is known of its process.
    #[error("{0}")]
    NeverMet(String),
    /// Its directory is older than what is known.
    #[error("{0}")]
    Older(String),
    /// Not now.
    #[error("{0}")]
    Waits(String),
}

/// What is to be done before a start is heard or vouched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Go,
    /// What is known now has to be made durable.
    Keep,
}

/// The newest starts of peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    known: BTreeMap<NodeId, Known>,
}

impl Starts {
    /// A start that somebody has vouched for speaks up.
    ///
    /// # Errors
    /// Why it isn't heard.
    pub fn meet(&mut self, node: NodeId, said: &Said, now_us: u64) -> Result<Then, String> {
        if said.number == 0 {
            return Ok(Then::Go);
        }
        if let Some(known) = self.known.get_mut(&node) {
            let is_same = (known.number, known.nonce) == (said.number, said.nonce);
            if !is_same && said.number <= known.number && !has(Bug::OlderNonceTaken) {
                return Err(format!(
                    "{}: this one was started before it, or is a copy, and takes no part any more",
                    known.words(node, now_us)
                ));
            }
            if let Some(synced) = said.synced.filter(|_| !known.precedes_copy(said)) {
                known.check_synced(node, synced)?;
            }
            if is_same {
                known.synced = known.synced.max(said.synced.unwrap_or_default());
                known.heard_us = now_us;
                if !said.address.is_empty() {
                    known.address.clone_from(&said.address);
                }
                return Ok(if known.is_kept { Then::Go } else { Then::Keep });
            }
        }
        self.replace(node, said, now_us);
        Ok(Then::Keep)
    }

    /// A start asks to be vouched for. It waits while an older one is being heard, unless it is known
    /// that that one is gone or doesn't count any more (`succeeds`).
    ///
    /// # Errors
    /// Why not.
    pub fn may_vouch(
        &self,
        node: NodeId,
        said: &Said,
        shown: &[u128],
        succeeds: bool,
        now_us: u64,
    ) -> Result<(), NotVouched> {
        let Some(known) = self.known.get(&node) else {
            return Err(NotVouched::NeverMet(format!("number {node} was never met here")));
        };
        if known.precedes_copy(said) {
            return Ok(());
        }
        known.check_synced(node, said.synced.unwrap_or_default()).map_err(NotVouched::Older)?;
        if known.nonce == said.nonce {
            return Ok(());
        }
        // Of one that was met long ago the list says nothing any more; its number does.
        let is_long_ago = shown.len() >= MOST_SHOWN && known.number < said.number;
        let is_shown = shown.contains(&known.nonce) || is_long_ago;
        let is_newer = known.number < said.number && is_shown;
        if !is_newer && !has(Bug::OlderNonceTaken) {
            let other = match known.heard_us {
                0 => String::new(),
                _ => format!(": {}", known.words(node, now_us)),
            };
            return Err(NotVouched::Older(format!(
                "number {node} has been started since from another copy of its data directory{other}"
            )));
        }
        let silent_us = now_us.saturating_sub(known.heard_us);
        if !succeeds && known.open > 0 && silent_us < LATELY_US {
            let other = known.words(node, now_us);
            return Err(NotVouched::Waits(format!("{other}: stop that one first")));
        }
        Ok(())
    }

    /// As [`Starts::may_vouch`]; and from then on older starts are turned away.
    ///
    /// # Errors
    /// Why not.
    pub fn vouch(
        &mut self,
        node: NodeId,
        said: &Said,
        shown: &[u128],
        succeeds: bool,
        now_us: u64,
    ) -> Result<Then, NotVouched> {
        self.may_vouch(node, said, shown, succeeds, now_us)?;
        let same = self.known.get(&node).filter(|known| known.nonce == said.nonce);
        if same.is_some_and(|known| known.is_kept) {
            return Ok(Then::Go);
        }
        if same.is_none() {
            self.replace(node, said, now_us);
        }
        Ok(Then::Keep)
    }

    fn replace(&mut self, node: NodeId, said: &Said, now_us: u64) {
        let before = self.known.get(&node).filter(|known| !known.precedes_copy(said));
        let before = before.map_or(0, |known| known.synced);
        let known = Known {
            number: said.number,
            nonce: said.nonce,
            synced: before.max(said.synced.unwrap_or_default()),
            address: said.address.clone(),
            heard_us: now_us,
            open: 0,
            is_kept: false,
        };
        self.known.insert(node, known);
    }

    /// Something has come from a start of a peer, whose log was synced so far. Returns whether that is
    /// to be heard: whether it is the newest.
    pub fn hears(&mut self, node: NodeId, number: u64, synced: u64, now_us: u64) -> bool {
        if number == 0 {
            return true;
        }
        let Some(known) = self.known.get_mut(&node).filter(|known| known.number == number) else {
            return false;
        };
        known.synced = known.synced.max(synced);
        known.heard_us = now_us;
        true
    }

    /// A stream from a start of a peer has begun.
    pub fn opens(&mut self, node: NodeId, number: u64) {
        if let Some(known) = self.known.get_mut(&node).filter(|known| known.number == number) {
            known.open += 1;
        }
    }

    /// A stream from a start of a peer has ended.
    pub fn closes(&mut self, node: NodeId, number: u64) {
        if let Some(known) = self.known.get_mut(&node).filter(|known| known.number == number) {
            known.open = known.open.saturating_sub(1);
        }
    }

    /// What is known of each peer for good: number, nonce and synced frame of its newest start.
    pub fn kept(&self) -> impl Iterator<Item = (NodeId, (u64, u128, u64))> {
        self.known.iter().map(|(node, known)| (*node, (known.number, known.nonce, known.synced)))
    }

    /// What was known before a restart.
    pub fn from_kept(kept: impl IntoIterator<Item = (NodeId, (u64, u128, u64))>) -> Self {
        let kept = kept.into_iter().filter(|_| !has(Bug::FenceForgotten));
        let known = kept.map(|(node, (number, nonce, synced))| {
            (node, Known { number, nonce, synced, is_kept: true, ..Known::default() })
        });
        Starts { known: known.collect() }
    }

    /// What was known at some moment is durable.
    pub fn are_kept(&mut self, kept: &Starts) {
        for (node, kept) in &kept.known {
            if let Some(known) = self.known.get_mut(node).filter(|known| known.nonce == kept.nonce)
            {
                known.is_kept = true;
            }
        }
    }
}

/// The other voters of one half of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Others {
    /// The group's shard.
    pub shard: ShardId,
    /// Their nodes; none if a replica is alone.
    pub nodes: BTreeSet<NodeId>,
}

impl Others {
    /// In each half of a group in which a node votes.
    pub fn of(descriptor: &ShardDescriptor, own: NodeId) -> Vec<Others> {
        let half = |roles: [Role; 2]| {
            let votes = descriptor.replicas.iter().filter(|replica| roles.contains(&replica.role));
            let mut nodes: BTreeSet<NodeId> = votes.map(|replica| replica.node_id).collect();
            nodes.remove(&own).then_some(Others { shard: descriptor.shard_id, nodes })
        };
        let incoming = half([Role::Voter, Role::Incoming]);
        let mut halves: Vec<Others> =
            incoming.into_iter().chain(half([Role::Voter, Role::Outgoing])).collect();
        halves.dedup();
        halves
    }

    /// Whether so many have vouched that the rest and an older process have no majority.
    pub fn are_enough(&self, vouched: &BTreeSet<NodeId>) -> bool {
        let have = self.nodes.intersection(vouched).count();
        self.nodes.is_empty() || have > self.nodes.len() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{KeyRange, KeyspaceId, MembershipEpoch, RangeEpoch, Replica, ReplicaId};

    const NODE: NodeId = NodeId(3);

    fn said(number: u64, nonce: u128, synced: u64) -> Said {
        Said { number, nonce, synced: Some(synced), address: "host:1".to_owned() }
    }

    fn kept(starts: &Starts) -> Starts {
        Starts::from_kept(starts.kept())
    }

    #[test]
    fn whoever_vouches_for_a_start_turns_older_ones_away_for_good() {
        let mut starts = Starts::default();
        let vouch = |starts: &mut Starts, number, nonce, shown: &[u128]| {
            starts.vouch(NODE, &said(number, nonce, 5), shown, false, 2_000_000)
        };
        assert!(matches!(vouch(&mut starts, 1, 10, &[]), Err(NotVouched::NeverMet(_))));
        assert_eq!(starts.meet(NODE, &said(1, 10, 5), 1), Ok(Then::Keep));
        starts.opens(NODE, 1);
        assert!(starts.hears(NODE, 1, 5, 1_500_000));
        let refused = vouch(&mut starts, 2, 20, &[10]).unwrap_err();
        let words = "another process of number 3 runs at host:1 and was heard 0.5 s ago: stop that one first";
        assert_eq!(refused, NotVouched::Waits(words.to_owned()));
        // One whose process before is gone needn't wait, however lately that was heard; nor one whose
        // process before hasn't been heard for a while.
        let second = said(2, 20, 5);
        assert_eq!(starts.may_vouch(NODE, &second, &[10], true, 2_000_000), Ok(()));
        assert_eq!(starts.may_vouch(NODE, &second, &[10], false, 5_000_000), Ok(()));
        assert_eq!(starts.vouch(NODE, &second, &[10], true, 2_000_000), Ok(Then::Keep));
        assert!(!starts.hears(NODE, 1, 6, 2_000_000));
        // Once more, after an answer that was lost, and after a restart of this process.
        assert_eq!(vouch(&mut starts, 2, 20, &[10]), Ok(Then::Keep));
        let mut starts = kept(&starts);
        assert_eq!(vouch(&mut starts, 2, 20, &[10]), Ok(Then::Go));
        // The process before, and other copies.
        assert!(starts.meet(NODE, &said(1, 10, 5), 1).is_err());
        assert!(starts.meet(NODE, &said(2, 21, 5), 1).is_err());
        assert!(vouch(&mut starts, 2, 22, &[10]).is_err());
        assert!(vouch(&mut starts, 5, 23, &[10]).is_err());
        assert_eq!(vouch(&mut starts, 5, 24, &[10, 20]), Ok(Then::Keep));
    }

    #[test]
    fn a_log_that_ends_earlier_than_was_heard_is_refused_also_after_a_restart() {
        let mut starts = Starts::default();
        starts.meet(NODE, &said(1, 10, 5), 1).unwrap();
        assert!(starts.hears(NODE, 1, 9, 1));
        // What was said in an older stream, and comes late, takes nothing back.
        assert!(starts.hears(NODE, 1, 7, 1));
        let after = kept(&starts);
        for mut starts in [starts, after] {
            let refused = starts.meet(NODE, &said(1, 10, 8), 1).unwrap_err();
            assert!(refused.contains("ends at frame 8, and it has told of frame 9"), "{refused}");
            assert!(starts.meet(NODE, &said(2, 20, 8), 1).is_err());
            assert!(starts.vouch(NODE, &said(2, 20, 8), &[10], true, 1).is_err());
            starts.meet(NODE, &said(1, 10, 9), 1).unwrap();
            // Where nothing is said of it, nothing is compared.
            starts.meet(NODE, &Said { synced: None, ..said(1, 10, 0) }, 1).unwrap();
        }
    }

    #[test]
    fn a_start_on_an_older_copy_that_was_accepted_begins_anew() {
        let mut starts = Starts::default();
        starts.meet(NODE, &said(7, 70, 900), 1).unwrap();
        starts.opens(NODE, 7);
        // Neither its nonce nor its log show what is known.
        let copy = said(number_on_copy(3, 1), 30, 5);
        assert!(starts.meet(NODE, &said(8, 80, 5), 1).is_err());
        assert_eq!(starts.may_vouch(NODE, &copy, &[10], false, 2), Ok(()));
        assert_eq!(starts.meet(NODE, &copy, 2), Ok(Then::Keep));
        for mut starts in [starts.clone(), kept(&starts)] {
            assert!(starts.meet(NODE, &said(7, 70, 900), 3).is_err());
            assert!(starts.meet(NODE, &said(number_on_copy(2, 1), 20, 900), 3).is_err());
            assert!(starts.meet(NODE, &said(number_on_copy(4, 1), 40, 4), 3).is_err());
            assert!(
                starts.vouch(NODE, &said(number_on_copy(4, 1), 40, 5), &[10], true, 3).is_err()
            );
            starts.meet(NODE, &said(number_on_copy(4, 1), 40, 5), 3).unwrap();
            // Another one, also if it is from before the first.
            starts.meet(NODE, &said(number_on_copy(1, 2), 11, 1), 3).unwrap();
            assert!(starts.meet(NODE, &said(number_on_copy(9, 1), 90, 900), 3).is_err());
        }
    }

    fn are_enough(members: &[(u64, Role)], vouched: &[u64]) -> bool {
        let replicas = members.iter().map(|(node, role)| Replica {
            node_id: NodeId(*node),
            replica_id: ReplicaId(*node),
            role: *role,
        });
        let descriptor = ShardDescriptor {
            shard_id: ShardId(4),
            keyspace_id: KeyspaceId(1),
            range: KeyRange::ALL,
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(1),
            replicas: replicas.collect(),
        };
        let vouched = vouched.iter().map(|node| NodeId(*node)).collect();
        Others::of(&descriptor, NodeId(1)).iter().all(|others| others.are_enough(&vouched))
    }

    #[test]
    fn so_many_must_vouch_that_an_older_process_has_no_majority_with_the_rest() {
        use Role::{Incoming, Learner, Outgoing, Voter};
        let of = |count: u64| (1..=count).map(|node| (node, Voter)).collect::<Vec<_>>();
        for (count, least) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3)] {
            let vouched: Vec<u64> = (2..2 + least).collect();
            assert!(are_enough(&of(count), &vouched), "{count}");
            if least > 0 {
                assert!(!are_enough(&of(count), &vouched[1..]), "{count}");
                // The older one and those that haven't vouched are no majority.
                assert!(2 * (count - least) <= count, "{count}");
            }
        }
        // Learners don't count, and one that is a learner itself has no promise to keep.
        assert!(are_enough(&[(1, Voter), (2, Voter), (3, Learner)], &[2]));
        assert!(are_enough(&[(1, Learner), (2, Voter), (3, Voter)], &[]));
        // Both halves of a change.
        let joint = [(1, Voter), (2, Incoming), (3, Incoming), (4, Outgoing), (5, Outgoing)];
        assert!(!are_enough(&joint, &[2, 3]) && !are_enough(&joint, &[4, 5, 2]));
        assert!(are_enough(&joint, &[2, 3, 4, 5]));
    }
}
