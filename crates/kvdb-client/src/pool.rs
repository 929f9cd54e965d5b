//! Connections, used in turn.

use crate::options::Options;
use kvdb_wire::transport::{self, AddressError};
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::transport::Channel;

/// A fixed set of connections. Each is made when it is first used, and again when it broke.
pub(crate) struct Pool {
    /// Neighbours belong to different addresses, so that the next attempt goes elsewhere.
    connections: Vec<Connection>,
    next: AtomicUsize,
}

/// One connection. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) address: String,
    pub(crate) channel: Channel,
}

impl Connection {
    pub(crate) fn to(address: &str) -> Result<Self, AddressError> {
        let channel = transport::endpoint(address)?.connect_lazy();
        Ok(Connection { address: address.to_owned(), channel })
    }
}

impl Pool {
    pub(crate) fn new(options: &Options) -> Result<Self, AddressError> {
        let mut connections = Vec::new();
        for _ in 0..options.connections.max(1) {
            for address in &options.addresses {
                connections.push(Connection::to(address)?);
            }
        }
        match connections.is_empty() {
            true => Err(AddressError { address: String::new() }),
            false => Ok(Pool { connections, next: AtomicUsize::new(0) }),
        }
    }

    pub(crate) fn next(&self) -> &Connection {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        &self.connections[turn % self.connections.len()]
    }
}
