//! The state machine of the cluster: nodes, keyspaces, shards and their epochs, one map version.
//!
//! Commands come out of the coordinators' log and are applied the same way on each of them. Each
//! is validated before it is proposed and again when it is applied; an invalid one leaves the map
//! as it is, version included. A valid one that changes something raises the map version by one
//! and yields the delta that watchers get.
//!
//! State is kept as records ([`ControlState::changed_records`]), so that a command writes only
//! what it changed.
//!
//! Left out: who leads (replication), and time: missed heartbeats are judged by [`Liveness`] on
//! the leader, which proposes what follows as a command.

mod command;
mod history;
mod liveness;
mod placement;
mod state;

pub use command::{
    ControlCommand, ControlError, ControlResponse, LedShard, decode_result, encode_result,
};
pub use history::{History, Since};
pub use liveness::{Liveness, LivenessConfig};
pub use placement::place_replicas;
pub use state::{Applied, ControlState};
