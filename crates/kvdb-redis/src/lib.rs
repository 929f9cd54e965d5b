//! The Redis protocol: reading requests, writing answers, and what each command asks of the
//! cluster. No sockets and no clock: a gateway brings them.
//!
//! A request's way: [`resp`] cuts it out of the stream; [`session`] finds its command in [`table`]
//! and, through `strings`, `bits`, `keys` and `server`, turns it into a [`plan`] on keys, a job or
//! an answer; [`reply`] writes the answer.
//!
//! What is left out: streams, scripts, publish and subscribe, blocking commands.

pub mod args;
mod bits;
pub mod compatibility;
mod describe;
pub mod dump;
mod field_expiry;
mod geo;
pub mod glob;
mod hashes;
mod hyperloglogs;
mod keys;
mod lcs;
mod lists;
pub mod number;
pub mod plan;
pub mod reply;
pub mod resp;
pub mod server;
pub mod session;
mod sets;
mod sort;
mod strings;
mod subcommands;
pub mod table;
mod zsets;

pub use plan::Plan;
pub use reply::Reply;
pub use resp::{Parser, ProtocolError, Request};
pub use session::{Job, Part, Session, Step, Transaction, Watched};
