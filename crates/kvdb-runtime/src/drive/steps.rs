//! From a goal to what the host is asked next.

use crate::drive::Ticket;
use kvdb_model::{EntryCommand, Step, Work, next_step};
use kvdb_replication::{GroupStatus, Input};
use kvdb_store::MembershipChange;

/// What a leader is to submit for a goal now, if anything.
///
/// # Errors
/// Why the goal can't be reached any more.
pub fn next(group: &GroupStatus, work: &Work) -> Result<Option<Input<Ticket>>, &'static str> {
    let Some(descriptor) = &group.descriptor else { return Ok(None) };
    let shard = group.shard;
    let caught_up = |replica| group.has_caught_up(replica);
    // Nobody waits for the outcome: what became of it is seen in the shard's descriptor.
    let (ticket, _) = Ticket::oneshot();
    Ok(Some(match next_step(work, descriptor, group.replica, &caught_up) {
        Step::Done | Step::Wait(_) => return Ok(None),
        Step::Impossible(why) => return Err(why),
        Step::HandOver(to) => Input::TransferLeader { shard, to: Some(to) },
        Step::Change(replicas) => {
            let expected = descriptor.membership_epoch;
            let change = MembershipChange { expected, replicas: replicas.clone() };
            let context = change.to_bytes(descriptor);
            Input::ChangeMembership { shard, replicas, context, ticket }
        }
        Step::Split(plan) => {
            let command = EntryCommand::Split(plan);
            let version_count = command.version_count();
            Input::Propose { shard, command: command.to_bytes(), version_count, ticket }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{
        KeyRange, KeyspaceId, LogIndex, MembershipEpoch, NodeId, RangeEpoch, Replica, ReplicaId,
        Role, ShardDescriptor, ShardId, Term,
    };
    use kvdb_replication::{ReplicaProgress, ReplicaRole};

    fn replica(id: u64, role: Role) -> Replica {
        Replica { node_id: NodeId(id), replica_id: ReplicaId(id), role }
    }

    fn leader(replicas: Vec<Replica>, behind: u64) -> GroupStatus {
        let progress = |replica: &Replica| ReplicaProgress {
            replica: replica.replica_id,
            matched: LogIndex(if replica.role == Role::Learner { 1000 - behind } else { 1000 }),
            is_active: true,
        };
        GroupStatus {
            shard: ShardId(1),
            replica: ReplicaId(1),
            role: ReplicaRole::Leader,
            term: Term(6),
            leader: Some(NodeId(1)),
            last_index: LogIndex(1000),
            committed: LogIndex(1000),
            applied: LogIndex(1000),
            last_term: Term(6),
            awaits_snapshot: false,
            is_hibernating: false,
            progress: replicas.iter().map(progress).collect(),
            descriptor: Some(ShardDescriptor {
                shard_id: ShardId(1),
                keyspace_id: KeyspaceId(1),
                range: KeyRange::of_keyspace(KeyspaceId(1)),
                range_epoch: RangeEpoch(1),
                membership_epoch: MembershipEpoch(3),
                replicas,
            }),
        }
    }

    fn towards(goal: &[u64]) -> Work {
        Work::Replicas(goal.iter().map(|id| replica(*id, Role::Voter)).collect())
    }

    #[test]
    fn a_newcomer_votes_only_when_it_has_caught_up() {
        let replicas = vec![
            replica(1, Role::Voter),
            replica(2, Role::Voter),
            replica(3, Role::Voter),
            replica(4, Role::Learner),
        ];
        let behind = leader(replicas.clone(), 900);
        assert!(matches!(next(&behind, &towards(&[1, 2, 4])), Ok(None)));
        let level = leader(replicas, 0);
        let Ok(Some(Input::ChangeMembership { replicas, .. })) = next(&level, &towards(&[1, 2, 4]))
        else {
            panic!("a change was due");
        };
        assert!(replicas.contains(&replica(4, Role::Incoming)), "{replicas:?}");
        assert!(replicas.contains(&replica(3, Role::Outgoing)), "{replicas:?}");
    }

    #[test]
    fn what_the_shard_has_outgrown_is_reported_as_impossible() {
        let group = leader(vec![replica(1, Role::Voter)], 0);
        assert!(next(&group, &Work::Lead(ReplicaId(9))).is_err());
    }
}
