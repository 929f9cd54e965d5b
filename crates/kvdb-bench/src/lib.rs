//! The benchmark: one loop that drives KvDB by its ways in, Redis, etcd and a bare echo alike, so
//! that figures can be held side by side.
//!
//! [`run`] connects one session for each client, fills the store if the workload wants it filled,
//! warms up, measures, and hands back a [`Report`]. [`compare`] makes a table, Markdown and plots of
//! the reports of several runs, with the targets that KvDB is held to.
//!
//! | module | is about |
//! |---|---|
//! | `options` | what can be asked for, and what of it is refused |
//! | `load` | which operation comes next: mixes, keys, values |
//! | `round` | when it is sent: the closed and the open loop |
//! | `run` | a run from start to end |
//! | `measure` | latencies, errors by kind |
//! | `target` | how an operation is put to KvDB, Redis or etcd |
//! | `echo` | a server that answers at once: the ceiling of a unary gRPC service |
//! | `usage` | processor time and memory of processes |
//! | `report` | what a run found, as text and JSON |
//! | `compare`, `goals`, `svg` | reports side by side |
//!
//! # What a latency is
//!
//! In the *closed loop* each client sends, waits for the answers, and sends again. A latency counts
//! from the moment of sending. A target that stands still for a second shows that second once for
//! each client, not once for each request that would have come meanwhile: the figures are those of a
//! service whose users wait.
//!
//! In the *open loop* (a rate is given) each request has a moment at which it is due, whatever became
//! of those before it, and its latency counts from there, also when no client was free to send it.
//! So a stall shows in every request that it held up (what is left out otherwise is called
//! coordinated omission). Requests are due at even distances; at most as many as there are clients
//! are on their way at a time.
//!
//! With pipelining a client has that many requests on its way at once, sends the next ones when the
//! last of them is answered, and each has its own latency.
//!
//! Failed requests count by kind and have no latency.

pub mod compare;
mod echo;
mod goals;
mod load;
mod measure;
mod options;
mod report;
mod round;
mod run;
mod svg;
mod target;
mod usage;

pub use echo::{EchoServer, serve_echo};
pub use options::{Extent, Mix, Options, OptionsError, Spread, TargetKind, Workload};
pub use report::Report;
pub use run::{Error, Progress, run};
pub use target::Failed;
