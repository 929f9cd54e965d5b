//! The Redis protocol over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod collections;
mod commands;
mod connections;
mod databases;
mod dev;
