//! The Rust client of KvDB: [`Client`] for data, [`AdminClient`] for the cluster.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use kvdb_client::{Client, Options};
//!
//! let client = Client::new(Options::to("127.0.0.1:7400"))?;
//! client.put("greeting", "hello").await?;
//! let record = client.get("greeting").await?.expect("it was just written");
//! assert_eq!(&record.value[..], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! More in `examples/`: `tour` shows the whole data API, `history` a copy of a keyspace that is brought up to date
//! after an absence. Both run as tests against a cluster.
//!
//! # What it adds to a bare gRPC client
//!
//! - **A deadline on every call**, sent along so that the servers keep it too. A call ends by it:
//!   done, refused, or with [`Error::OutcomeUnknown`].
//! - **Retries that can't do harm.** What was certainly not carried out is tried again, here or at
//!   the next gateway. A write that *may* have been carried out is tried again only under a
//!   request id, by which the cluster knows it and applies it once ([`Options::exactly_once`]).
//!   When such a write stays unsettled the error says so, and never claims that it failed.
//! - **Request ids by the shard's clock.** An id says until when it is valid. A shard that goes by another
//!   time than this machine's clock refuses it before anything is done; it is stamped anew by the
//!   shard's time and sent again.
//! - **Connections**: several to each gateway, made when first used and again when they break. Of
//!   several gateways one that hangs is noticed within a second (or a quarter of the deadline, if that is
//!   less) and left out until it answers again.
//! - **Scans and watches that go on** where they were, when the gateway that they ran through goes away.
//!
//! # Files
//!
//! A request comes by `client.rs`, which builds the message, gets a request id from `lanes.rs` if
//! it is a write (`stamps.rs` says until when it is valid), and goes through `call.rs`: one attempt after the other over connections of
//! `pool.rs`, until `retry.rs` says that it is enough. `error.rs` says what went wrong, and `whois.rs`
//! what was there instead of a gateway.

mod admin;
mod call;
mod client;
mod error;
mod figures;
mod lanes;
mod operators;
mod options;
mod outgoing;
mod pool;
mod reply;
mod retry;
mod scan;
mod stamps;
mod types;
mod watch;
mod whois;

pub use admin::{
    AdminClient, ClusterStatus, CreatedKeyspace, Initialised, LessPreferredLeader, Member,
    Registered, ShortShard, WrongClock,
};
pub use client::Client;
pub use error::Error;
pub use figures::{Figures, NodeFigures, ShardFigures};
pub use kvdb_wire::transport::AddressError;
pub use operators::{OperatorStatus, Plan, Recovery, ReplicaStanding, Started};
pub use options::Options;
pub use reply::Reply;
pub use scan::Scan;
pub use types::{
    BatchAction, BatchOperation, Consistency, Counter, Executed, Item, ReadOptions, Record,
    ScanOptions, WriteOptions, Written,
};
pub use watch::{Watch, WatchEvent, WatchOptions, WatchUpdate};
