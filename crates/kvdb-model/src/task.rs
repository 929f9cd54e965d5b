//! What the coordinators ask of a shard's leader, and the next step towards it.
//!
//! A task names a goal, not a step: whoever leads the shard compares the goal with the descriptor
//! as applied and does what is due. So a task can be given twice, to a new leader, or again after
//! a crash, and a step that was done already isn't done again.
//!
//! The way of a membership change (Ongaro's dissertation, sections 4.2.1 and 4.3): new replicas
//! learn until they have caught up; then voters change, by a joint configuration where more than
//! one does; then the joint configuration is left. A leader that isn't to stay hands over first.

use crate::codec::{DecodeError, Reader, Writer};
use crate::descriptor::{Replica, Role, ShardDescriptor, decode_replicas, encode_replicas};
use crate::id::{MembershipEpoch, OperatorId, RangeEpoch, ReplicaId, ShardId, Term};
use crate::key::KeyRange;
use crate::planted::{Bug, has};
use bytes::Bytes;

/// Something to be done with a shard, by its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardTask {
    /// Which operator wants it; 0 for what tidies up after one.
    pub operator: OperatorId,
    /// The shard.
    pub shard: ShardId,
    /// What.
    pub work: Work,
    /// The members that the coordinators knew when they chose the goal.
    pub members: Vec<ReplicaId>,
}

impl ShardTask {
    /// Whether its goal keeps a replica that was removed meanwhile: a replica never comes back under
    /// its number, and would be waited for in vain. The coordinators find another goal as soon as they
    /// hear of it.
    pub fn is_outdated(&self, descriptor: &ShardDescriptor) -> bool {
        let Work::Replicas(goal) = &self.work else { return false };
        let is_gone = |replica: &Replica| {
            self.members.contains(&replica.replica_id)
                && descriptor.replica(replica.replica_id).is_none()
        };
        goal.iter().any(is_gone)
    }
}

/// The goal of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// These replicas, all of them voters, and no others.
    Replicas(Vec<Replica>),
    /// Leadership is here.
    Lead(ReplicaId),
    /// The upper part of the range is a shard of its own.
    Split(SplitPlan),
    /// The shard goes on from one replica, without the majority that it has lost for good. The only
    /// work that isn't a leader's: it is for the node of the survivor, and there is no leader.
    ForceRecover(RecoveryPlan),
}

/// How a shard goes on from one replica. The survivor itself never votes again: its state and its
/// log become those of a *new* replica, alone in its shard, so that whatever the lost majority has
/// promised, and whoever of it comes back, is of another life.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RecoveryPlan {
    /// Whose state it is.
    pub survivor: ReplicaId,
    /// As which it goes on, on the same node: the shard's only voter.
    pub replica: Replica,
    /// The shard's membership epoch from then on: above any that the lost majority can have
    /// reached, so that the map proves each of its replicas to be removed.
    pub membership_epoch: MembershipEpoch,
    /// The shard's range epoch from then on: requests that are routed by the new map are refused
    /// by replicas of the old life.
    pub range_epoch: RangeEpoch,
    /// A survivor with a lower range epoch doesn't know of a split that has been done: what it
    /// holds belongs to two shards.
    pub least_range_epoch: RangeEpoch,
    /// It leads in a higher term.
    pub term: Term,
}

/// How a shard is to be split.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SplitPlan {
    /// The first routing key of the child; strictly inside the parent's range.
    pub at: Bytes,
    /// The child's id.
    pub child: ShardId,
    /// The child's replicas: one on each node that has one of the parent, all voters.
    pub replicas: Vec<Replica>,
    /// The parent's membership epoch for which `replicas` was made.
    pub membership_epoch: MembershipEpoch,
}

impl SplitPlan {
    pub(crate) fn encode(&self, out: &mut Writer) {
        out.bytes(&self.at);
        out.varint(self.child.0);
        out.varint(self.membership_epoch.0);
        encode_replicas(&self.replicas, out);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let at = input.bytes()?;
        let child = ShardId(input.varint()?);
        let membership_epoch = MembershipEpoch(input.varint()?);
        Ok(SplitPlan { at, child, replicas: decode_replicas(input)?, membership_epoch })
    }

    /// Parent and child after the split, or `None` if it is refused: the key isn't strictly inside
    /// the range, or the shard's replicas aren't those that the plan was made for.
    pub fn apply_to(&self, parent: &ShardDescriptor) -> Option<(ShardDescriptor, ShardDescriptor)> {
        let plain = parent.replicas.iter().all(|replica| replica.role == Role::Voter);
        let same_nodes = self.replicas.len() == parent.replicas.len()
            && parent
                .replicas
                .iter()
                .all(|replica| self.replicas.iter().any(|child| child.node_id == replica.node_id));
        if parent.membership_epoch != self.membership_epoch
            || !plain
            || !same_nodes
            || parent.shard_id == self.child
            || !parent.range.contains(&self.at)
            || parent.range.start == self.at
        {
            return None;
        }
        let range_epoch = parent.range_epoch.next();
        let mut replicas = self.replicas.clone();
        replicas.sort_by_key(|replica| replica.replica_id);
        let child = ShardDescriptor {
            shard_id: self.child,
            keyspace_id: parent.keyspace_id,
            range: KeyRange { start: self.at.clone(), end: parent.range.end.clone() },
            range_epoch,
            membership_epoch: MembershipEpoch(1),
            replicas,
        };
        let end = if has(Bug::ParentKeepsRange) { &parent.range.end } else { &self.at };
        let range = KeyRange { start: parent.range.start.clone(), end: end.clone() };
        Some((ShardDescriptor { range, range_epoch, ..parent.clone() }, child))
    }
}

/// What is due now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The goal is reached.
    Done,
    /// Something must happen first.
    Wait(&'static str),
    /// Propose these replicas.
    Change(Vec<Replica>),
    /// Hand leadership to this replica.
    HandOver(ReplicaId),
    /// Propose the split.
    Split(SplitPlan),
    /// It can't be done any more: the shard has changed under it.
    Impossible(&'static str),
}

/// The next step of a task, for the replica `own` that leads the shard with this descriptor.
/// `caught_up` says whether another replica has (nearly) all of the log.
pub fn next_step(
    work: &Work,
    descriptor: &ShardDescriptor,
    own: ReplicaId,
    caught_up: &dyn Fn(ReplicaId) -> bool,
) -> Step {
    match work {
        Work::Replicas(goal) => next_membership(goal, &descriptor.replicas, own, caught_up),
        Work::Lead(to) if *to == own => Step::Done,
        Work::Lead(to) => match descriptor.replica(*to).map(|replica| replica.role) {
            Some(Role::Voter | Role::Incoming) if caught_up(*to) => Step::HandOver(*to),
            Some(Role::Voter | Role::Incoming) => Step::Wait("the replica catches up"),
            _ => Step::Impossible("the replica has no vote in the shard"),
        },
        Work::Split(plan) => next_split(plan, descriptor),
        Work::ForceRecover(plan) if plan.replica.replica_id == own => Step::Done,
        Work::ForceRecover(_) => Step::Impossible("the shard has a leader: its majority lives"),
    }
}

fn next_split(plan: &SplitPlan, descriptor: &ShardDescriptor) -> Step {
    if descriptor.range.end == plan.at {
        return Step::Done;
    }
    if descriptor.membership_epoch != plan.membership_epoch {
        return Step::Impossible("the shard's replicas have changed since");
    }
    if !descriptor.range.contains(&plan.at) || descriptor.range.start == plan.at {
        return Step::Impossible("the key is not inside the shard's range");
    }
    Step::Split(plan.clone())
}

fn with_role(replica: &Replica, role: Role) -> Replica {
    Replica { role, ..*replica }
}

fn next_membership(
    goal: &[Replica],
    current: &[Replica],
    own: ReplicaId,
    caught_up: &dyn Fn(ReplicaId) -> bool,
) -> Step {
    let wanted = |replica: &Replica| goal.iter().any(|to| to.replica_id == replica.replica_id);
    let stays = current.iter().find(|replica| replica.replica_id == own);
    let heir = || {
        let votes = |replica: &&Replica| {
            matches!(replica.role, Role::Voter | Role::Incoming) && wanted(replica)
        };
        let heir = current.iter().filter(votes).find(|replica| caught_up(replica.replica_id));
        heir.map_or(Step::Wait("no replica that stays has caught up"), |replica| {
            Step::HandOver(replica.replica_id)
        })
    };
    if current.iter().any(|replica| matches!(replica.role, Role::Incoming | Role::Outgoing)) {
        if stays.is_none_or(|replica| replica.role == Role::Outgoing) {
            return heir();
        }
        return Step::Change(left(current));
    }
    let missing: Vec<&Replica> = goal
        .iter()
        .filter(|to| !current.iter().any(|replica| replica.replica_id == to.replica_id))
        .collect();
    if !missing.is_empty() {
        return learners_come(current, &missing, own);
    }
    let comes = |replica: &&Replica| replica.role == Role::Learner && wanted(replica);
    if current.iter().filter(comes).any(|replica| !caught_up(replica.replica_id)) {
        return Step::Wait("new replicas catch up");
    }
    let coming: Vec<ReplicaId> =
        current.iter().filter(comes).map(|replica| replica.replica_id).collect();
    let leaves = |replica: &&Replica| !wanted(replica);
    let leaving = current.iter().filter(leaves).filter(|replica| replica.role == Role::Voter);
    let leaving: Vec<ReplicaId> = leaving.map(|replica| replica.replica_id).collect();
    if coming.is_empty() && current.iter().all(&wanted) {
        return Step::Done;
    }
    let stranger = |replica: &&Replica| replica.role == Role::Learner && !wanted(replica);
    if coming.len() + leaving.len() <= 1
        && let Some(stranger) = current.iter().find(stranger)
    {
        return Step::Change(without(current, stranger));
    }
    if leaving.contains(&own) {
        let voters_stay =
            current.iter().any(|replica| replica.role == Role::Voter && wanted(replica));
        if voters_stay || coming.is_empty() {
            return heir();
        }
        // Nobody who stays may lead yet: they get their votes first, and nobody goes.
        return Step::Change(voters_change(current, &coming, &[]));
    }
    Step::Change(voters_change(current, &coming, &leaving))
}

/// Whether the map proves that a replica was removed from its shard: it isn't among members that are
/// those that it knows, or came after them. (One that knows none yet may be too new for the map.)
pub fn is_removed(replica: ReplicaId, knows: &ShardDescriptor, map: &ShardDescriptor) -> bool {
    knows.shard_id == map.shard_id
        && map.membership_epoch >= knows.membership_epoch
        && map.replica(replica).is_none()
}

/// The replicas once a joint configuration is left.
pub fn left(current: &[Replica]) -> Vec<Replica> {
    current
        .iter()
        .filter(|replica| replica.role != Role::Outgoing)
        .map(|replica| match replica.role {
            Role::Learner => *replica,
            _ => with_role(replica, Role::Voter),
        })
        .collect()
}

/// Two replicas never share a node: whoever is in a newcomer's place goes first.
fn learners_come(current: &[Replica], missing: &[&Replica], own: ReplicaId) -> Step {
    let in_the_way = |replica: &&Replica| {
        missing.iter().any(|to| to.node_id == replica.node_id) && replica.replica_id != own
    };
    if let Some(old) = current.iter().find(in_the_way) {
        return Step::Change(without(current, old));
    }
    if missing.iter().any(|to| current.iter().any(|replica| replica.node_id == to.node_id)) {
        return Step::Impossible("the leader's own node is to get another replica of the shard");
    }
    // One at a time: raft takes several changes in one for a joint configuration.
    let mut replicas = current.to_vec();
    replicas.extend(missing.first().map(|to| with_role(to, Role::Learner)));
    Step::Change(replicas)
}

fn without(current: &[Replica], gone: &Replica) -> Vec<Replica> {
    current.iter().filter(|replica| replica.replica_id != gone.replica_id).copied().collect()
}

/// One voter changes in a single step, more by a joint configuration, in which learners that
/// nobody wants stay.
fn voters_change(current: &[Replica], coming: &[ReplicaId], leaving: &[ReplicaId]) -> Vec<Replica> {
    let joint = coming.len() + leaving.len() > 1;
    current
        .iter()
        .filter(|replica| joint || !leaving.contains(&replica.replica_id))
        .map(|replica| {
            if coming.contains(&replica.replica_id) {
                with_role(replica, if joint { Role::Incoming } else { Role::Voter })
            } else if leaving.contains(&replica.replica_id) {
                with_role(replica, Role::Outgoing)
            } else {
                *replica
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn voter(node: u64, id: u64) -> Replica {
        Replica { node_id: NodeId(node), replica_id: ReplicaId(id), role: Role::Voter }
    }

    fn voters(replicas: &[Replica]) -> BTreeSet<ReplicaId> {
        replicas
            .iter()
            .filter(|replica| matches!(replica.role, Role::Voter | Role::Incoming))
            .map(|replica| replica.replica_id)
            .collect()
    }

    fn outgoing(replicas: &[Replica]) -> BTreeSet<ReplicaId> {
        replicas
            .iter()
            .filter(|replica| matches!(replica.role, Role::Voter | Role::Outgoing))
            .map(|replica| replica.replica_id)
            .collect()
    }

    /// Whether raft would take the step: at most one replica changes without a joint
    /// configuration, one is entered from a plain one only and left whole.
    fn is_lawful(from: &[Replica], to: &[Replica]) -> bool {
        let was_joint = voters(from) != outgoing(from);
        let is_joint = voters(to) != outgoing(to);
        match (was_joint, is_joint) {
            (false, false) => {
                let differs = |one: &&Replica, other: &[Replica]| !other.contains(one);
                let gone = from.iter().filter(|one| differs(one, to));
                let new = to.iter().filter(|one| differs(one, from));
                let changed: BTreeSet<_> = gone.chain(new).map(|one| one.replica_id).collect();
                changed.len() <= 1
            }
            (false, true) => outgoing(to) == voters(from),
            (true, false) => voters(to) == voters(from),
            (true, true) => false,
        }
    }

    #[test]
    fn a_goal_that_keeps_a_replica_which_was_removed_meanwhile_is_outdated() {
        let goal = vec![voter(1, 1), voter(2, 2), voter(4, 104)];
        let task = |members: &[u64]| ShardTask {
            operator: OperatorId(1),
            shard: ShardId(1),
            work: Work::Replicas(goal.clone()),
            members: members.iter().map(|id| ReplicaId(*id)).collect(),
        };
        let descriptor = ShardDescriptor {
            shard_id: ShardId(1),
            keyspace_id: crate::KeyspaceId(1),
            range: KeyRange::ALL,
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(5),
            replicas: vec![voter(1, 1), voter(3, 3)],
        };
        assert!(task(&[1, 2, 3]).is_outdated(&descriptor), "2 is gone");
        assert!(!task(&[1, 3]).is_outdated(&descriptor), "2 and 104 are to come");
    }

    proptest! {
        #[test]
        fn every_goal_is_reached_by_lawful_steps(
            first in prop::collection::btree_set(1u64..8, 1..5),
            goal in prop::collection::btree_set(1u64..8, 1..5),
            leader in any::<prop::sample::Index>(),
        ) {
            let mut current: Vec<Replica> = first.iter().map(|node| voter(*node, *node)).collect();
            // A node that has a replica keeps it; others get new ones.
            let goal: Vec<Replica> = goal.iter().map(|node| {
                voter(*node, if first.contains(node) { *node } else { node + 100 })
            }).collect();
            let mut own = current[leader.index(current.len())].replica_id;
            let mut steps = 0;
            loop {
                steps += 1;
                prop_assert!(steps < 16, "no end: {current:?}");
                match next_membership(&goal, &current, own, &|_| true) {
                    Step::Done => break,
                    Step::Change(next) => {
                        prop_assert!(is_lawful(&current, &next), "{current:?} to {next:?}");
                        prop_assert!(next.iter().any(|replica| replica.replica_id == own), "the leader removes itself");
                        let nodes: BTreeSet<_> = next.iter().map(|replica| replica.node_id).collect();
                        prop_assert_eq!(nodes.len(), next.len());
                        current = next;
                    }
                    Step::HandOver(to) => {
                        prop_assert!(voters(&current).contains(&to));
                        prop_assert_ne!(to, own);
                        own = to;
                    }
                    other => prop_assert!(false, "{other:?} with {current:?}"),
                }
            }
            prop_assert_eq!(voters(&current), goal.iter().map(|replica| replica.replica_id).collect());
            prop_assert!(current.iter().all(|replica| replica.role == Role::Voter));
        }

        #[test]
        fn a_goal_that_changes_on_the_way_is_reached_too(
            goals in prop::collection::vec(prop::collection::btree_set(1u64..8, 1..5), 2..5),
            after in prop::collection::vec(1usize..5, 5),
        ) {
            let mut current = vec![voter(1, 1)];
            let mut own = ReplicaId(1);
            let mut next_id = 100;
            let last = goals.len() - 1;
            for (number, nodes) in goals.iter().enumerate() {
                let goal: Vec<Replica> = nodes.iter().map(|node| {
                    let there = current.iter().find(|replica| {
                        replica.node_id.0 == *node && replica.role != Role::Outgoing
                    });
                    let id = there.map_or_else(|| { next_id += 1; next_id }, |replica| replica.replica_id.0);
                    voter(*node, id)
                }).collect();
                let most = if number == last { 20 } else { after[number] };
                let mut reached = false;
                for _ in 0..most {
                    match next_membership(&goal, &current, own, &|_| true) {
                        Step::Done => { reached = true; break }
                        Step::Change(next) => {
                            prop_assert!(is_lawful(&current, &next), "{current:?} to {next:?}");
                            current = next;
                        }
                        Step::HandOver(to) => own = to,
                        other => prop_assert!(false, "{other:?} with {current:?} to {goal:?}"),
                    }
                }
                prop_assert!(number < last || reached, "{current:?} to {goal:?}");
            }
        }
    }

    #[test]
    fn nobody_votes_before_it_has_caught_up() {
        let goal = [voter(1, 1), voter(2, 2), voter(4, 104)];
        let current = [voter(1, 1), voter(2, 2), voter(3, 3)];
        let step = next_membership(&goal, &current, ReplicaId(1), &|_| false);
        let Step::Change(learning) = step else { panic!("{step:?}") };
        assert_eq!(learning[3].role, Role::Learner);
        let step = next_membership(&goal, &learning, ReplicaId(1), &|_| false);
        assert_eq!(step, Step::Wait("new replicas catch up"));
    }
}
