//! The `Coordinator` service of a gateway: everything is passed on to whichever coordinator
//! leads, so that one endpoint is enough.

use crate::route::Gateway;
use kvdb_wire::proto;
use kvdb_wire::proto::coordinator_server::Coordinator;
use tonic::{Request, Response, Status, Streaming};

/// A gateway's view of the control plane.
#[derive(Clone)]
pub(crate) struct Control(pub(crate) Gateway);

macro_rules! pass_on {
    ($($method:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl Coordinator for Control {
            type WatchShardMapStream = Streaming<proto::ShardMapUpdate>;

            async fn watch_shard_map(
                &self,
                request: Request<proto::WatchShardMapRequest>,
            ) -> Result<Response<Self::WatchShardMapStream>, Status> {
                let request = request.into_inner();
                self.0
                    .coordinators
                    .call(async |mut client| {
                        client.watch_shard_map(Request::new(request.clone())).await
                    })
                    .await
            }

            $(async fn $method(
                &self,
                request: Request<proto::$request>,
            ) -> Result<Response<proto::$response>, Status> {
                let request = request.into_inner();
                self.0
                    .coordinators
                    .call(async |mut client| client.$method(Request::new(request.clone())).await)
                    .await
            })*
        }
    };
}

pass_on! {
    accept_copy(AcceptCopyRequest) -> AcceptCopyResponse;
    force_recover(ForceRecoverRequest) -> ForceRecoverResponse;
    get_shard_map(GetShardMapRequest) -> GetShardMapResponse;
    register_node(RegisterNodeRequest) -> RegisterNodeResponse;
    heartbeat(HeartbeatRequest) -> HeartbeatResponse;
    sync_clock(SyncClockRequest) -> SyncClockResponse;
    init_shards(InitShardsRequest) -> InitShardsResponse;
    create_keyspace(CreateKeyspaceRequest) -> CreateKeyspaceResponse;
    set_history(SetHistoryRequest) -> SetHistoryResponse;
    drop_keyspace(DropKeyspaceRequest) -> DropKeyspaceResponse;
    set_node_status(SetNodeStatusRequest) -> SetNodeStatusResponse;
    set_shard_leader(SetShardLeaderRequest) -> SetShardLeaderResponse;
    get_status(GetStatusRequest) -> GetStatusResponse;
    greet(GreetRequest) -> GreetResponse;
    add_coordinator(AddCoordinatorRequest) -> AddCoordinatorResponse;
    set_coordinator_address(SetCoordinatorAddressRequest) -> SetCoordinatorAddressResponse;
    remove_coordinator(RemoveCoordinatorRequest) -> RemoveCoordinatorResponse;
    set_shard_replicas(SetShardReplicasRequest) -> StartOperationResponse;
    move_replica(MoveReplicaRequest) -> StartOperationResponse;
    split_shard(SplitShardRequest) -> StartOperationResponse;
    drain_node(DrainNodeRequest) -> StartOperationResponse;
    replace_node(ReplaceNodeRequest) -> StartOperationResponse;
    list_operations(ListOperationsRequest) -> ListOperationsResponse;
    cancel_operation(CancelOperationRequest) -> CancelOperationResponse;
    list_operators(ListOperationsRequest) -> ListOperationsResponse;
    cancel_operator(CancelOperationRequest) -> CancelOperationResponse;
    plan_rebalance(PlanRebalanceRequest) -> PlanRebalanceResponse;
}
