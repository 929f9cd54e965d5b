//! What the coordinators want done with shards that are led here, step by step; and the end of
//! replicas that the map proves to be removed.

use kvdb_model::task::is_removed;
use kvdb_model::{Command, OperatorId, ReplicaId, ShardId, ShardTask, Step, next_step};
use kvdb_replication::{GroupStatus, Input, ReplicaRole};
use kvdb_runtime::drive::{Drive, Ticket};
use kvdb_runtime::map::ClusterMap;
use kvdb_shard::MembershipChange;
use std::collections::BTreeMap;

/// What can't be done any more, by operator, for the next heartbeat.
pub(crate) type Impossible = BTreeMap<OperatorId, String>;

/// Takes the next step of each task. A task names a goal, so a step that comes twice, or to a
/// leader that isn't any more, does no harm; its outcome shows in the descriptor.
pub(crate) async fn carry_out(drive: &Drive, tasks: Vec<ShardTask>) -> Impossible {
    let mut impossible = Impossible::new();
    if tasks.is_empty() {
        return impossible;
    }
    let groups: BTreeMap<ShardId, GroupStatus> =
        drive.statuses().await.into_iter().map(|group| (group.shard, group)).collect();
    for task in tasks {
        let group = groups.get(&task.shard).filter(|group| group.role == ReplicaRole::Leader);
        let Some(group) = group else { continue };
        match step(group, &task) {
            // It would hand leadership back; the operator waits until there is room.
            Ok(Some(input)) if leads_to_full_disk(drive, group, &input) => {}
            Ok(Some(input)) => {
                tracing::debug!(operator = task.operator.0, shard = task.shard.0, "a step");
                // Refused only under overload; the next heartbeat brings the task again.
                let _ = drive.submit(input);
            }
            Ok(None) => {}
            Err(why) => {
                impossible.insert(task.operator, why.to_owned());
            }
        }
    }
    impossible
}

fn leads_to_full_disk(drive: &Drive, group: &GroupStatus, input: &Input<Ticket>) -> bool {
    let Input::TransferLeader { to: Some(to), .. } = input else { return false };
    let known = group.descriptor.as_ref().and_then(|descriptor| descriptor.replica(*to));
    known.is_some_and(|to| drive.room().is_short(to.node_id))
}

/// What is to be submitted for a task now, if anything.
fn step(group: &GroupStatus, task: &ShardTask) -> Result<Option<Input<Ticket>>, &'static str> {
    let Some(descriptor) = &group.descriptor else { return Ok(None) };
    let shard = group.shard;
    let caught_up = |replica| group.has_caught_up(replica);
    // Nobody waits for the outcome: what became of it is seen in the shard's descriptor.
    let (ticket, _) = Ticket::oneshot();
    Ok(Some(match next_step(&task.work, descriptor, group.replica, &caught_up) {
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
            let command = Command::Split(plan);
            let version_count = command.version_count();
            Input::Propose { shard, command: command.to_bytes(), version_count, ticket }
        }
    }))
}

/// Ends replicas that the map proves to be gone: removed from their shards, or of keyspaces that
/// were dropped. Also those whose engine is lost: nobody else tells them. Returns whether all of
/// that was taken; under overload some is refused.
///
/// The map must say so: one that merely doesn't know a keyspace may be an old one.
pub(crate) async fn destroy_gone(drive: &Drive, map: &ClusterMap) -> bool {
    let groups = drive.statuses().await;
    let gone: Vec<(ShardId, ReplicaId, &str)> = {
        let cache = map.cache.lock();
        let why = |group: &GroupStatus| {
            let knows = group.descriptor.as_ref()?;
            let keyspace = cache.map().keyspaces.get(&knows.keyspace_id);
            if keyspace.is_some_and(|known| known.is_dropped()) {
                return Some("its keyspace was dropped");
            }
            let record = cache.map().shards.get(&group.shard)?;
            let is_removed = is_removed(group.replica, knows, &record.descriptor);
            is_removed.then_some("it was moved away")
        };
        let gone =
            groups.iter().filter_map(|group| Some((group.shard, group.replica, why(group)?)));
        gone.collect()
    };
    let mut all_taken = true;
    for (shard, replica, why) in gone {
        tracing::info!(shard = shard.0, replica = replica.0, why, "a replica ends");
        all_taken &= drive.submit(Input::Destroy { shard, replica }).is_ok();
    }
    all_taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{
        KeyRange, KeyspaceId, LogIndex, MembershipEpoch, NodeId, RangeEpoch, Replica, Role,
        ShardDescriptor, Term, Work,
    };
    use kvdb_replication::ReplicaProgress;

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

    fn towards(goal: &[u64]) -> ShardTask {
        let goal = goal.iter().map(|id| replica(*id, Role::Voter)).collect();
        ShardTask { operator: OperatorId(5), shard: ShardId(1), work: Work::Replicas(goal) }
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
        assert!(matches!(step(&behind, &towards(&[1, 2, 4])), Ok(None)));
        let level = leader(replicas, 0);
        let Ok(Some(Input::ChangeMembership { replicas, .. })) = step(&level, &towards(&[1, 2, 4]))
        else {
            panic!("a change was due");
        };
        assert!(replicas.contains(&replica(4, Role::Incoming)), "{replicas:?}");
        assert!(replicas.contains(&replica(3, Role::Outgoing)), "{replicas:?}");
    }

    #[test]
    fn what_the_shard_has_outgrown_is_reported_as_impossible() {
        let group = leader(vec![replica(1, Role::Voter)], 0);
        let work = Work::Lead(ReplicaId(9));
        let task = ShardTask { operator: OperatorId(5), shard: ShardId(1), work };
        assert!(step(&group, &task).is_err());
    }
}
