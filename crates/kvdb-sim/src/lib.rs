//! A whole cluster in one thread, from one seed: three coordinators, four nodes, clients with a
//! gateway's routing core. Hosts, logs, state machines, control and routing are the real ones;
//! disks, network, clocks and threads are simulated, and go wrong.
//!
//! ```text
//!  clients ──ask──▶ nodes ──raft──▶ nodes        one queue of events, one source of chance:
//!     │               │                          the same seed is the same story, to the byte
//!     └──map──▶ coordinators ◀──heartbeats
//! ```
//!
//! A story has two phases. In the first, faults come all the time (`faults`), and at every step
//! nothing may contradict the promises (`checks`). Then the faults stop, and the cluster must come
//! together: every client must get its answers again, and replicas must hold the same bytes. In
//! the end the history of all operations is checked for linearizability, key by key.
//!
//! All the while shards are split and their replicas moved, by operators that are called off now
//! and then. Left out so far: expiry, watches, changes of the coordinators themselves.

mod checks;
mod client;
mod collections;
mod dice;
mod disk;
mod faults;
mod fleeting;
mod machine;
mod membership;
mod network;
mod node;
mod packet;
mod process;
mod schedule;
mod shrink;
mod story;
mod threads;
mod world;

pub use schedule::Chosen;
pub use shrink::{Shrunk, shrink};
pub use story::{Failure, Report, Settings, run, run_with};
