//! The shell around the pure crates: threads, files, clocks, sockets, metrics and logs.
//!
//! `drive` runs a replication host with a real log, engine and network; the rest is what every
//! role of the binary needs. The shell is dull on purpose: a decision found here belongs in a
//! core.

pub mod clock;
pub mod clock_memory;
pub mod cluster_time;
pub mod contacts;
pub mod coordinators;
pub mod dial;
pub mod drive;
pub mod files;
pub mod generations;
pub mod http;
pub mod identity;
pub mod listen;
pub mod logging;
pub mod map;
mod means;
pub mod meter;
pub mod pace;
pub mod peers;
pub mod process;
pub mod shutdown;
pub mod start;
