//! Stories about hosts: small clusters that something happens to, told step by step.
//!
//! [`harness`] is the world that they happen in. Whatever a story is about, the rules of Raft are
//! checked at each of its steps (`harness/checks.rs`). [`chaos`] tells hundreds of random ones.

#![expect(clippy::unwrap_used, reason = "a story that can't go on has failed")]

mod chaos;
mod durability;
mod elections;
mod harness;
mod hibernation;
mod limits;
mod logs;
mod membership;
mod reads;
mod snapshots;
mod stall;
mod unsafe_recovery;
