//! What a node tells of its replicas, whether they lead or not: a part of them with each heartbeat,
//! so that its size and its cost are bounded, and all of them in turn.

use kvdb_model::ShardId;
use kvdb_replication::GroupStatus;
use kvdb_runtime::drive::Drive;
use kvdb_wire::proto;

/// Replicas in one heartbeat.
const AT_A_TIME: usize = 256;

/// Goes round the replicas.
#[derive(Default)]
pub(crate) struct Reports {
    next: ShardId,
}

impl Reports {
    /// The next part.
    pub(crate) async fn next(&mut self, drive: &Drive) -> Vec<proto::ReplicaReport> {
        let groups = drive.statuses_from(self.next, AT_A_TIME).await;
        self.next = match groups.last() {
            Some(last) if groups.len() == AT_A_TIME => last.shard.next(),
            _ => ShardId::default(),
        };
        groups.iter().map(|group| report(drive, group)).collect()
    }
}

fn report(drive: &Drive, group: &GroupStatus) -> proto::ReplicaReport {
    let changes = drive.changes().get(group.shard);
    proto::ReplicaReport {
        shard_id: group.shard.0,
        replica_id: group.replica.0,
        applied_index: group.applied.0,
        last_index: group.last_index.0,
        last_term: group.last_term.0,
        version: changes.map_or(0, |changes| changes.last().0),
        range_epoch: group.descriptor.as_ref().map_or(0, |descriptor| descriptor.range_epoch.0),
        awaits_snapshot: group.awaits_snapshot,
    }
}
