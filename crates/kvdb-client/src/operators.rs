//! Changes of the cluster that take their time: operators.

use crate::admin::AdminClient;
use crate::call::Manner;
use crate::error::Error;
use bytes::Bytes;
use kvdb_model::{
    LogIndex, MapVersion, NodeId, NodeStatus, OperatorId, ReplicaId, ShardId, Version,
};
use kvdb_wire::{node_status_from, proto};

/// An operator as the coordinators remember it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorStatus {
    /// Its id.
    pub id: OperatorId,
    /// The operator that started it, if one did.
    pub parent: Option<OperatorId>,
    /// What kind of change it is: `set-replicas`, `split`, `drain`, ...
    pub kind: String,
    /// What it does, in a few words.
    pub description: String,
    /// Why.
    pub reason: String,
    /// `running`, `done`, `failed` or `cancelled`.
    pub state: String,
    /// Why it has failed; empty if it hasn't.
    pub failure: String,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended; 0 while it runs.
    pub ended_ms: u64,
    /// It fails after so long.
    pub time_limit_ms: u64,
    /// How far it is, 0 to 100.
    pub progress_percent: u32,
    /// The shard that it changes, if it is about one.
    pub shard: Option<ShardId>,
    /// The node that it is about, if any.
    pub node: Option<NodeId>,
    /// What happened so far: when, and what.
    pub steps: Vec<(u64, String)>,
    /// What new replicas have yet to get, in bytes; 0 if nothing, or not known.
    pub left_bytes: u64,
    /// The rate at which that is sent, at most; 0 if it has no bound, or isn't known.
    pub bytes_per_second: u64,
    /// How long that takes; 0 if not known.
    pub left_ms: u64,
}

impl OperatorStatus {
    /// Whether it is under way.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Whether its goal is reached.
    pub fn is_done(&self) -> bool {
        self.state == "done"
    }
}

/// What rebalancing would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Each move and why, in order.
    pub moves: Vec<(String, String)>,
    /// Why nothing (more) is to be done.
    pub why_no_more: String,
    /// The operator that carries it out, if that was asked for.
    pub operator: Option<OperatorId>,
}

/// What letting a shard go on from one replica means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The replica that it goes on from first, then the others.
    pub replicas: Vec<ReplicaStanding>,
    /// What should be known before, in sentences.
    pub warnings: Vec<String>,
    /// The operator that does it, if it was confirmed.
    pub operator: Option<OperatorId>,
}

/// An operator that has started, which may take a while to get anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its id.
    pub operator: OperatorId,
    /// What keeps it from its goal for now, if something is known to.
    pub warning: Option<String>,
}

/// What is known of one replica of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStanding {
    /// Where it is.
    pub node: NodeId,
    /// The replica.
    pub replica: ReplicaId,
    /// How its node is.
    pub status: NodeStatus,
    /// For how long the node was not heard, in milliseconds, where that is known.
    pub silent_ms: Option<u64>,
    /// What it has told last, if anything: the last entry applied and the last of its log, and the
    /// highest version applied.
    pub told: Option<(LogIndex, LogIndex, Version)>,
}

macro_rules! starts {
    ($self:ident, $method:ident, $message:expr) => {{
        let answer = $self
            .call(Manner::write(false), &$message, |mut coordinator, request| async move {
                coordinator.$method(request).await
            })
            .await?;
        let warning = (!answer.warning.is_empty()).then_some(answer.warning);
        Started { operator: OperatorId(answer.operator_id), warning }
    }};
}

impl AdminClient {
    /// Has a shard's replicas put on these nodes, and nowhere else.
    ///
    /// # Errors
    /// [`Error`], also for an unknown, repeated or unusable node.
    pub async fn set_shard_replicas(
        &self,
        shard: ShardId,
        nodes: &[NodeId],
    ) -> Result<OperatorId, Error> {
        let message = proto::SetShardReplicasRequest {
            shard_id: shard.0,
            node_ids: nodes.iter().map(|node| node.0).collect(),
            membership_epoch: 0,
        };
        Ok(starts!(self, set_shard_replicas, message).operator)
    }

    /// Has one replica of a shard moved.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn move_replica(
        &self,
        shard: ShardId,
        from: NodeId,
        to: NodeId,
    ) -> Result<OperatorId, Error> {
        let (shard_id, from_node_id, to_node_id) = (shard.0, from.0, to.0);
        let message = proto::MoveReplicaRequest { shard_id, from_node_id, to_node_id };
        Ok(starts!(self, move_replica, message).operator)
    }

    /// Has a shard cut in two: at a user key (in a hash keyspace, at its slot), or in the middle
    /// of its slots if none is given.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn split_shard(
        &self,
        shard: ShardId,
        at: Option<Bytes>,
    ) -> Result<OperatorId, Error> {
        let message = proto::SplitShardRequest { shard_id: shard.0, at: at.unwrap_or_default() };
        Ok(starts!(self, split_shard, message).operator)
    }

    /// Has a node emptied.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn drain_node(&self, node: NodeId) -> Result<Started, Error> {
        Ok(starts!(self, drain_node, proto::DrainNodeRequest { node_id: node.0 }))
    }

    /// Has everything that a node held rebuilt elsewhere; then the node is removed for good.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn replace_node(&self, node: NodeId) -> Result<Started, Error> {
        Ok(starts!(self, replace_node, proto::ReplaceNodeRequest { node_id: node.0 }))
    }

    /// Takes the next start of a node that is refused for an older copy of its directory, so that shards can be
    /// recovered from it.
    ///
    /// # Errors
    /// [`Error`]: also where the node runs.
    pub async fn accept_copy(&self, node: NodeId) -> Result<MapVersion, Error> {
        let message = proto::AcceptCopyRequest { node_id: node.0 };
        // Not twice: it may have started meanwhile.
        let answer = self
            .call(Manner::write(false), &message, |mut coordinator, request| async move {
                coordinator.accept_copy(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// What it would mean to let a shard that has lost its majority go on from the replica on a
    /// node; `confirm` has it done.
    ///
    /// # Errors
    /// [`Error`]: also where the shard may have its majority.
    pub async fn force_recover(
        &self,
        shard: ShardId,
        from: NodeId,
        confirm: bool,
    ) -> Result<Recovery, Error> {
        let message =
            proto::ForceRecoverRequest { shard_id: shard.0, from_node_id: from.0, confirm };
        let manner = if confirm { Manner::write(false) } else { Manner::READ };
        let answer = self
            .call(manner, &message, |mut coordinator, request| async move {
                coordinator.force_recover(request).await
            })
            .await?;
        Ok(Recovery {
            replicas: answer.replicas.into_iter().map(standing).collect(),
            warnings: answer.warnings,
            operator: (answer.operator_id != 0).then_some(OperatorId(answer.operator_id)),
        })
    }

    /// What rebalancing would do now; `start` has it done.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn plan_rebalance(&self, start: bool) -> Result<Plan, Error> {
        let message = proto::PlanRebalanceRequest { start };
        let manner = if start { Manner::write(false) } else { Manner::READ };
        let answer = self
            .call(manner, &message, |mut coordinator, request| async move {
                coordinator.plan_rebalance(request).await
            })
            .await?;
        Ok(Plan {
            moves: answer.moves.into_iter().map(|step| (step.description, step.reason)).collect(),
            why_no_more: answer.why_no_more,
            operator: (answer.operator_id != 0).then_some(OperatorId(answer.operator_id)),
        })
    }

    /// Operations: all that are remembered, or those that are running.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn operators(&self, running_only: bool) -> Result<Vec<OperatorStatus>, Error> {
        let message = proto::ListOperationsRequest { running_only };
        let answer = self
            .call(Manner::READ, &message, |mut coordinator, request| async move {
                coordinator.list_operations(request).await
            })
            .await?;
        Ok(answer.operations.into_iter().map(status).collect())
    }

    /// Cancels an operation, with those that it has started.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn cancel_operator(&self, id: OperatorId) -> Result<MapVersion, Error> {
        let message = proto::CancelOperationRequest { operator_id: id.0 };
        let answer = self
            .call(Manner::write(false), &message, |mut coordinator, request| async move {
                coordinator.cancel_operation(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }
}

fn standing(standing: proto::ReplicaStanding) -> ReplicaStanding {
    let told = standing.report.map(|report| {
        let (applied, last) = (LogIndex(report.applied_index), LogIndex(report.last_index));
        (applied, last, Version(report.version))
    });
    ReplicaStanding {
        node: NodeId(standing.node_id),
        replica: ReplicaId(standing.replica_id),
        status: node_status_from(standing.node_status).unwrap_or(NodeStatus::Suspect),
        silent_ms: standing.silent_ms,
        told,
    }
}

fn status(operator: proto::Operation) -> OperatorStatus {
    OperatorStatus {
        id: OperatorId(operator.operator_id),
        parent: (operator.parent_id != 0).then_some(OperatorId(operator.parent_id)),
        kind: operator.kind,
        description: operator.description,
        reason: operator.reason,
        state: operator.state,
        failure: operator.failure,
        started_ms: operator.started_ms,
        ended_ms: operator.ended_ms,
        time_limit_ms: operator.time_limit_ms,
        progress_percent: operator.progress_percent,
        shard: (operator.shard_id != 0).then_some(ShardId(operator.shard_id)),
        node: (operator.node_id != 0).then_some(NodeId(operator.node_id)),
        steps: operator.steps.into_iter().map(|step| (step.at_ms, step.what)).collect(),
        left_bytes: operator.left_bytes,
        bytes_per_second: operator.bytes_per_second,
        left_ms: operator.left_ms,
    }
}
