//! From a shard's replicas to raft's configurations and back.
//!
//! A descriptor lists every replica with its [`Role`]; raft knows two sets of voters (one of them
//! empty outside a joint configuration) and learners. The change from one list to the next is the
//! difference of the two. More than one change of voters always goes through a joint
//! configuration that is left explicitly, by an entry of its own that any leader may propose.

use kvdb_model::{Replica, Role};
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState,
};

/// Raft's configuration of a list of replicas.
pub fn conf_state_of(replicas: &[Replica]) -> ConfState {
    let joint =
        replicas.iter().any(|replica| matches!(replica.role, Role::Incoming | Role::Outgoing));
    let ids = |roles: &[Role]| {
        replicas
            .iter()
            .filter(|replica| roles.contains(&replica.role))
            .map(|replica| replica.replica_id.0)
            .collect::<Vec<_>>()
    };
    let mut state = ConfState::default();
    state.voters = ids(&[Role::Voter, Role::Incoming]);
    state.learners = ids(&[Role::Learner]);
    if joint {
        state.voters_outgoing = ids(&[Role::Voter, Role::Outgoing]);
    }
    state
}

/// The raft change that leads from one list of replicas to another.
pub(crate) fn conf_change_between(from: &[Replica], to: &[Replica]) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    let was_joint = conf_state_of(from).voters_outgoing.len();
    let is_joint = conf_state_of(to).voters_outgoing.len();
    if was_joint > 0 && is_joint == 0 {
        // Leaving is a change without content.
        return change;
    }
    let mut changes = Vec::new();
    let mut single = |kind: ConfChangeType, id: u64| {
        let mut change = ConfChangeSingle::default();
        change.set_change_type(kind);
        change.node_id = id;
        changes.push(change);
    };
    for replica in to {
        let before = from.iter().find(|old| old.replica_id == replica.replica_id);
        match (before.map(|old| old.role), replica.role) {
            (Some(old), new) if old == new => {}
            (_, Role::Voter | Role::Incoming) => {
                single(ConfChangeType::AddNode, replica.replica_id.0)
            }
            (_, Role::Learner) => single(ConfChangeType::AddLearnerNode, replica.replica_id.0),
            (_, Role::Outgoing) => single(ConfChangeType::RemoveNode, replica.replica_id.0),
        }
    }
    for old in from {
        if !to.iter().any(|replica| replica.replica_id == old.replica_id) {
            single(ConfChangeType::RemoveNode, old.replica_id.0);
        }
    }
    change.set_transition(if is_joint > 0 {
        ConfChangeTransition::Explicit
    } else {
        ConfChangeTransition::Auto
    });
    change.changes = changes.into();
    change
}
