//! What is wrong with a request, as a gRPC status.

use kvdb_control::ControlError;
use kvdb_model::Refusal;
use kvdb_wire::status_of;
use tonic::Status;

pub(crate) fn invalid(error: &ControlError) -> Status {
    let field = match error {
        ControlError::UnknownNode(_)
        | ControlError::NodeRuns { .. }
        | ControlError::NotAReplica { .. }
        | ControlError::SurvivorIsGone { .. }
        | ControlError::NodeInUse { .. }
        | ControlError::NeededForMajority { .. }
        | ControlError::NotHeard { .. }
        | ControlError::WithoutState { .. }
        | ControlError::BeforeSplit { .. } => "node_id",
        ControlError::UnknownShard(_) | ControlError::HasMajority { .. } => "shard_id",
        ControlError::BadAddress(_) | ControlError::AddressTaken(..) => "address",
        ControlError::BadName(_)
        | ControlError::KeyspaceExists(_)
        | ControlError::NameOfDatabase { .. }
        | ControlError::UnknownKeyspace(_)
        | ControlError::DefaultStays => "name",
        ControlError::DatabaseTaken { .. } => "redis_db",
        ControlError::OlderDirectory(_) => "start",
        ControlError::AlreadyInitialised(_) => "shards",
        ControlError::TooFewForReplicas { .. } => "replication_factor",
        ControlError::CoordinatorExists(_)
        | ControlError::UnknownCoordinator(_)
        | ControlError::CoordinatorRemoved(_)
        | ControlError::LastCoordinator(_) => "id",
        _ => "request",
    };
    // What is wrong is told in whole sentences.
    status_of(&Refusal::invalid(field, format!("is refused: {error}")))
}

pub(crate) fn bad_field(error: kvdb_wire::FieldError) -> Status {
    status_of(&error.into())
}
