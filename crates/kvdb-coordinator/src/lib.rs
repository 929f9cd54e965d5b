//! The coordinator: one member of the control plane's Raft group, and its gRPC service.
//!
//! `machine` plugs the cluster state machine into the shard; `view` is what of it the service
//! reads and watches; `service` answers; `duties` is what only the leader does; `members` is who
//! belongs to the group, `reach` where they and the nodes are, `starts`
//! which process of a node counts, `copies` which process of a coordinator does, and `founders` what each remembers of
//! its beginning; `alone` recovers the group from one coordinator; `run` puts them together.

mod alone;
mod clocks;
mod copies;
mod duties;
mod figures;
mod founders;
mod machine;
mod members;
mod metrics;
mod nodes;
mod operators;
mod reach;
mod recovery;
mod refusals;
mod run;
mod service;
mod starts;
mod status;
mod view;
mod watch;

pub use alone::recover_alone;
pub use run::{CoordinatorConfig, CoordinatorError, run};
