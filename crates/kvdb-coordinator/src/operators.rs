//! Operators over gRPC: asked for, listed, called off, previewed.

use crate::service::Member;
use kvdb_control::{
    ControlCommand, ControlResponse, ControlState, Operator, OperatorKind, OperatorRequest,
    OperatorState,
};
use kvdb_model::{MembershipEpoch, NodeId, OperatorId, Refusal, ShardId};
use kvdb_wire::{proto, status_of};
use tonic::{Response, Status};

/// Why an operator was started, if nothing was said.
const ASKED_FOR: &str = "asked for by an administrator";

pub(crate) fn set_replicas(request: proto::SetShardReplicasRequest) -> OperatorRequest {
    OperatorRequest::SetReplicas {
        shard: ShardId(request.shard_id),
        nodes: request.node_ids.into_iter().map(NodeId).collect(),
        membership_epoch: (request.membership_epoch != 0)
            .then_some(MembershipEpoch(request.membership_epoch)),
    }
}

pub(crate) fn move_replica(request: &proto::MoveReplicaRequest) -> OperatorRequest {
    OperatorRequest::Move {
        shard: ShardId(request.shard_id),
        from: NodeId(request.from_node_id),
        to: NodeId(request.to_node_id),
    }
}

pub(crate) fn split(request: proto::SplitShardRequest) -> OperatorRequest {
    let at = (!request.at.is_empty()).then_some(request.at);
    OperatorRequest::Split { shard: ShardId(request.shard_id), at }
}

impl Member {
    /// Puts an operator into the log; it goes on by itself from there.
    pub(crate) async fn start(
        &self,
        request: OperatorRequest,
    ) -> Result<Response<proto::StartOperationResponse>, Status> {
        let command = ControlCommand::StartOperator {
            request,
            reason: ASKED_FOR.to_owned(),
            parent: None,
            now_ms: self.now_ms()?,
            time_limit_ms: self.planner.config.time_limit_ms,
        };
        match self.propose(command).await? {
            ControlResponse::OperatorStarted(id, version) => {
                let operator = self.view.state().operator(id).cloned();
                let emptied = operator.and_then(|operator| operator.kind.empties());
                let warning = emptied.and_then(|node| {
                    let state = self.view.state();
                    let loads = self.standings.lock().loads(state.map());
                    self.planner.why_stuck(&state, &loads, node)
                });
                Ok(Response::new(proto::StartOperationResponse {
                    operator_id: id.0,
                    map_version: version.0,
                    warning: warning.unwrap_or_default(),
                }))
            }
            _ => Err(Status::internal("an unexpected kind of result")),
        }
    }

    /// Cluster time: operations are timed by no wall clock.
    fn now_ms(&self) -> Result<u64, Status> {
        let reason = "the coordinators are finding out what time it is; try again in a moment";
        let unknown = Refusal::ShardUnavailable { shard_id: ShardId::CONTROL, reason };
        self.time.now_ms().ok_or_else(|| status_of(&unknown))
    }

    pub(crate) async fn cancel(&self, id: OperatorId) -> Result<(), Status> {
        let command = ControlCommand::CancelOperator { id, now_ms: self.now_ms()? };
        self.propose(command).await.map(|_| ())
    }
}

/// All operators, or those under way.
pub(crate) fn list(member: &Member, running_only: bool) -> proto::ListOperationsResponse {
    let state = member.view.state();
    let standings = member.standings.lock();
    let wanted = |operator: &&Operator| !running_only || operator.is_running();
    let operators = state.operators().filter(wanted).map(|operator| {
        let left = standings.left_to_send(&state, operator);
        to_proto(&state, operator, left)
    });
    proto::ListOperationsResponse { operations: operators.collect() }
}

/// What rebalancing would do now, and whether that is more than what comes by itself.
pub(crate) fn preview(
    member: &Member,
    state: &ControlState,
) -> (proto::PlanRebalanceResponse, bool) {
    let loads = member.standings.lock().loads(state.map());
    let (proposals, why_no_more) = member.planner.preview(state, &loads);
    let rebalances = proposals
        .iter()
        .any(|proposal| !matches!(proposal.request, OperatorRequest::Restore { .. }));
    let moves = proposals.into_iter().map(|proposal| proto::PlannedMove {
        description: proposal.request.describe(),
        reason: proposal.reason,
    });
    let moves = moves.collect();
    (proto::PlanRebalanceResponse { moves, why_no_more, operator_id: 0 }, rebalances)
}

fn to_proto(
    state: &ControlState,
    operator: &Operator,
    left: Option<(u64, u64)>,
) -> proto::Operation {
    let (left_bytes, bytes_per_second) = left.unwrap_or_default();
    let left_ms = left_bytes.saturating_mul(1000).checked_div(bytes_per_second);
    let failure = match &operator.state {
        OperatorState::Failed(why) => why.clone(),
        _ => String::new(),
    };
    let node = match &operator.kind {
        OperatorKind::Lead { to, .. } => Some(to.node_id),
        other => other.empties(),
    };
    proto::Operation {
        operator_id: operator.id.0,
        parent_id: operator.parent.unwrap_or_default().0,
        kind: operator.kind.name().to_owned(),
        description: operator.kind.describe(),
        reason: operator.reason.clone(),
        state: operator.state.name().to_owned(),
        failure,
        started_ms: operator.started_ms,
        ended_ms: operator.ended_ms,
        time_limit_ms: operator.time_limit_ms,
        progress_percent: state.progress_percent(operator),
        shard_id: operator.kind.shard().unwrap_or_default().0,
        node_id: node.unwrap_or_default().0,
        steps: operator
            .steps
            .iter()
            .map(|step| proto::OperationStep { at_ms: step.at_ms, what: step.what.clone() })
            .collect(),
        left_bytes,
        bytes_per_second,
        left_ms: left_ms.unwrap_or_default(),
    }
}
