//! Shards without a majority over gRPC: what is heard of single replicas, and what going on from
//! one of them would mean.

use crate::refusals::invalid;
use crate::service::Member;
use kvdb_control::{Load, RecoveryPreview, ReplicaReport, ReplicaStanding, preview_recovery};
use kvdb_model::{LogIndex, LogPosition, NodeId, RangeEpoch, ReplicaId, ShardId, Term, Version};
use kvdb_runtime::clock;
use kvdb_wire::{node_status_to, proto};
use tonic::Status;

/// Replicas that one heartbeat may tell of; what is beyond is left out.
const MOST_REPORTS: usize = 1024;
/// A longer routing key isn't one.
const MOST_KEY_BYTES: usize = u16::MAX as usize;

/// A node tells how its replicas are.
pub(crate) fn hear(member: &Member, node: NodeId, told: Vec<proto::ReplicaReport>) {
    if told.is_empty() {
        return;
    }
    let state = member.view.state();
    let mut standings = member.standings.lock();
    for report in told.into_iter().take(MOST_REPORTS) {
        standings.heard(state.map(), ShardId(report.shard_id), node, report_from(&report));
    }
}

pub(crate) fn preview(
    member: &Member,
    shard: ShardId,
    from: NodeId,
) -> Result<RecoveryPreview, Status> {
    let state = member.view.state();
    let silent_ms = member.liveness.lock().silent_ms(clock::now().boot_us / 1000);
    let standings = member.standings.lock();
    preview_recovery(&state, &standings, &silent_ms, shard, from).map_err(|error| invalid(&error))
}

pub(crate) fn to_proto(
    shard: ShardId,
    from: NodeId,
    preview: RecoveryPreview,
    operator_id: u64,
) -> proto::ForceRecoverResponse {
    proto::ForceRecoverResponse {
        shard_id: shard.0,
        from_node_id: from.0,
        replicas: preview.replicas.iter().map(|standing| standing_to(shard, standing)).collect(),
        warnings: preview.warnings,
        operator_id,
    }
}

fn report_from(report: &proto::ReplicaReport) -> ReplicaReport {
    ReplicaReport {
        replica: ReplicaId(report.replica_id),
        applied: LogIndex(report.applied_index),
        last: LogPosition { index: LogIndex(report.last_index), term: Term(report.last_term) },
        version: Version(report.version),
        range_epoch: RangeEpoch(report.range_epoch),
        awaits_snapshot: report.awaits_snapshot,
        reads_known: report.reads_known,
        load: Load {
            bytes: report.bytes,
            keys: report.keys,
            reads_per_second: report.reads_per_second,
            writes_per_second: report.writes_per_second,
            split_at: Some(report.split_at.clone())
                .filter(|at| (1..=MOST_KEY_BYTES).contains(&at.len())),
        },
    }
}

fn standing_to(shard: ShardId, standing: &ReplicaStanding) -> proto::ReplicaStanding {
    let replica_id = standing.replica.replica_id.0;
    proto::ReplicaStanding {
        node_id: standing.replica.node_id.0,
        replica_id,
        node_status: node_status_to(standing.status) as i32,
        silent_ms: standing.silent_ms,
        report: standing.report.as_ref().map(|report| proto::ReplicaReport {
            shard_id: shard.0,
            replica_id,
            applied_index: report.applied.0,
            last_index: report.last.index.0,
            last_term: report.last.term.0,
            version: report.version.0,
            range_epoch: report.range_epoch.0,
            awaits_snapshot: report.awaits_snapshot,
            bytes: report.load.bytes,
            keys: report.load.keys,
            reads_per_second: report.load.reads_per_second,
            writes_per_second: report.load.writes_per_second,
            split_at: report.load.split_at.clone().unwrap_or_default(),
            reads_known: report.reads_known,
        }),
    }
}
