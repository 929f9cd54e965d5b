//! What coordinators ask of shard leaders, both ways.

use crate::convert::{FieldError, missing, replica_from, replica_to};
use crate::proto;
use kvdb_model::{
    MembershipEpoch, OperatorId, RangeEpoch, RecoveryPlan, Replica, ReplicaId, ShardId, ShardTask,
    SplitPlan, Term, Work,
};

/// A task as protobuf.
pub fn shard_task_to(task: &ShardTask) -> proto::ShardTask {
    use proto::shard_task::Work as Sent;
    let work = match &task.work {
        Work::Replicas(goal) => {
            Sent::Replicas(proto::ReplicaGoal { replicas: goal.iter().map(replica_to).collect() })
        }
        Work::Lead(replica) => Sent::LeadReplicaId(replica.0),
        Work::Split(plan) => Sent::Split(proto::SplitTask {
            at: plan.at.clone(),
            child_shard_id: plan.child.0,
            replicas: plan.replicas.iter().map(replica_to).collect(),
            membership_epoch: plan.membership_epoch.0,
        }),
        Work::ForceRecover(plan) => Sent::ForceRecover(proto::ForceRecoverTask {
            survivor_replica_id: plan.survivor.0,
            replica: Some(replica_to(&plan.replica)),
            membership_epoch: plan.membership_epoch.0,
            range_epoch: plan.range_epoch.0,
            least_range_epoch: plan.least_range_epoch.0,
            term: plan.term.0,
        }),
    };
    let member_ids = task.members.iter().map(|member| member.0).collect();
    let (operator_id, shard_id) = (task.operator.0, task.shard.0);
    proto::ShardTask { operator_id, shard_id, member_ids, work: Some(work) }
}

/// A task from protobuf.
///
/// # Errors
/// For work that this version doesn't know, or a role that can't be.
pub fn shard_task_from(task: proto::ShardTask) -> Result<ShardTask, FieldError> {
    use proto::shard_task::Work as Sent;
    let replicas = |sent: &[proto::Replica]| -> Result<Vec<Replica>, FieldError> {
        sent.iter().map(replica_from).collect()
    };
    let work = match task.work.ok_or(missing("work"))? {
        Sent::Replicas(goal) => Work::Replicas(replicas(&goal.replicas)?),
        Sent::LeadReplicaId(replica) => Work::Lead(ReplicaId(replica)),
        Sent::Split(plan) => Work::Split(SplitPlan {
            at: plan.at,
            child: ShardId(plan.child_shard_id),
            replicas: replicas(&plan.replicas)?,
            membership_epoch: MembershipEpoch(plan.membership_epoch),
        }),
        Sent::ForceRecover(plan) => Work::ForceRecover(RecoveryPlan {
            survivor: ReplicaId(plan.survivor_replica_id),
            replica: replica_from(&plan.replica.ok_or(missing("replica"))?)?,
            membership_epoch: MembershipEpoch(plan.membership_epoch),
            range_epoch: RangeEpoch(plan.range_epoch),
            least_range_epoch: RangeEpoch(plan.least_range_epoch),
            term: Term(plan.term),
        }),
    };
    let members = task.member_ids.into_iter().map(ReplicaId).collect();
    let (operator, shard) = (OperatorId(task.operator_id), ShardId(task.shard_id));
    Ok(ShardTask { operator, shard, work, members })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kvdb_model::{NodeId, Role};

    #[test]
    fn tasks_survive_the_way_over_the_wire() {
        let replica =
            |id| Replica { node_id: NodeId(id), replica_id: ReplicaId(id), role: Role::Voter };
        let works = [
            Work::Replicas(vec![replica(1), replica(4)]),
            Work::Lead(ReplicaId(7)),
            Work::ForceRecover(RecoveryPlan {
                survivor: ReplicaId(2),
                replica: replica(9),
                membership_epoch: MembershipEpoch(1 << 20),
                range_epoch: RangeEpoch(1 << 21),
                least_range_epoch: RangeEpoch(4),
                term: Term(11),
            }),
            Work::Split(SplitPlan {
                at: Bytes::from_static(b"\0\0\0\x01\x20\0"),
                child: ShardId(9),
                replicas: vec![replica(3)],
                membership_epoch: MembershipEpoch(5),
            }),
        ];
        for work in works {
            let members = vec![ReplicaId(1), ReplicaId(9)];
            let task = ShardTask { operator: OperatorId(3), shard: ShardId(2), work, members };
            assert_eq!(shard_task_from(shard_task_to(&task)), Ok(task));
        }
    }

    #[test]
    fn work_that_is_not_known_is_refused() {
        let task = proto::ShardTask { operator_id: 1, shard_id: 1, ..Default::default() };
        assert!(shard_task_from(task).is_err());
    }
}
