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
//! What takes more than one command is an [`Operator`]: a goal with a reason, kept as a record. The
//! leader of the coordinators plans ([`Planner`]), the leaders of shards carry out
//! ([`ControlState::tasks_of`]), and what they report closes the circle.
//!
//! Left out: who leads (replication), and time: missed heartbeats are judged by [`Liveness`] on
//! the leader, which proposes what follows as a command.

mod alone;
mod balance;
mod command;
mod counts;
mod decide;
mod history;
mod join;
mod keyspaces;
mod liveness;
mod members;
mod operator;
mod placement;
mod planner;
mod preference;
mod reach;
mod records;
mod recovery;
mod removal;
mod report;
mod standings;
mod starts;
mod state;

pub use alone::{generation_of, plan_alone};
pub use balance::Proposal;
pub use command::{
    ControlCommand, ControlError, ControlResponse, LedShard, decode_result, encode_result,
};
pub use counts::Shortage;
pub use history::{History, Since};
pub use join::{Beginning, Greeted, Knowledge, MustNotBegin, Standing, decide, first_descriptor};
pub use liveness::{Heard, Liveness, LivenessConfig};
pub use members::{CoordinatorRecord, Coordinators, MOST_COORDINATORS};
pub use operator::{Operator, OperatorKind, OperatorRequest, OperatorState, OperatorStep};
pub use placement::place_replicas;
pub use planner::{Observed, Planner, PlannerConfig};
pub use preference::{Judgement, Preferences, Reason, Vitals};
pub use reach::Reach;
pub use recovery::{RecoveryPreview, ReplicaStanding, preview as preview_recovery};
pub use standings::{Load, Loads, ReplicaReport, Standings};
pub use starts::{Copies, MOST_SHOWN, NodeStart, NotAccepted, NotCounted, StartRecord, Synced};
pub use state::{Applied, ControlState};
