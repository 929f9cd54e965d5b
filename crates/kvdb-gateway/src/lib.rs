//! The gateway: the front door of a cluster, without state of its own.
//!
//! `service` takes requests in; `admission` says how many at a time; `route` takes one through its
//! retries; `link` keeps a stream to each node and packs what waits for it; `lanes` gives writes the ids under which they may be
//! retried; `ages` says how long these are valid; `batch` groups many operations by shard; `scan` walks the shards; `watch` puts the changes
//! of many shards together; `figures` counts by keyspace; `control` passes calls on to the coordinators; `redis` speaks the Redis
//! protocol.

mod admission;
mod ages;
mod batch;
mod control;
mod execute;
mod figures;
mod lanes;
mod link;
mod metrics;
mod redis;
mod route;
mod run;
mod scan;
mod service;
mod watch;

pub use admission::MOST_REQUESTS;
pub use run::{GRACE, GatewayConfig, GatewayError, run};
