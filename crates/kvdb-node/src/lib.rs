//! The storage node: replicas of many shards, and the service that gateways talk to.
//!
//! A request's way: `service` (one call) or `stream` (many at once) takes it in, `access` checks
//! it against the replicas that are here and refuses wrong ones with hints, `operation` turns it
//! into a proposal or a read and its outcome into an answer; `freshness` says which reads a replica
//! that doesn't lead may serve. `watch` tells of changes; `history` has shards keep the changes that
//! their keyspaces ask for; `sweep` frees what has expired. `link`
//! keeps the node in touch with the coordinators: registration, heartbeats, the shard map; `tasks`
//! does what they ask of shards, `recoveries` what they ask where the majority is lost; `reports`
//! tells of the replicas here, with their `sizes`. `room` is for full disks.

mod access;
mod freshness;
mod heartbeats;
mod history;
mod link;
mod memory;
mod metrics;
mod mute;
mod operation;
mod recoveries;
mod registration;
mod reports;
mod room;
mod run;
mod service;
mod sizes;
mod stream;
mod sweep;
mod tasks;
mod watch;

pub use kvdb_runtime::drive::RESERVE_BYTES;
pub use memory::{LEAST_MEMORY_BYTES, default_memory_bytes};
pub use run::{NodeConfig, NodeError, run};
