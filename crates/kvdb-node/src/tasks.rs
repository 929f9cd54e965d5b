//! What the coordinators want done with shards that are led here, step by step; and the end of
//! replicas that the map proves to be removed.

use kvdb_model::task::is_removed;
use kvdb_model::{OperatorId, ReplicaId, ShardId, ShardTask};
use kvdb_replication::{GroupStatus, Input, ReplicaRole};
use kvdb_runtime::drive::{Drive, Ticket, steps};
use kvdb_runtime::map::ClusterMap;
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
        if group.descriptor.as_ref().is_some_and(|descriptor| task.is_outdated(descriptor)) {
            continue;
        }
        match steps::next(group, &task.work) {
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
        tracing::info!(shard = shard.0, replica = replica.0, why, "replica removed");
        all_taken &= drive.submit(Input::Destroy { shard, replica }).is_ok();
    }
    all_taken
}
