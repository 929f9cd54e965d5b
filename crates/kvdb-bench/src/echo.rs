//! A server that answers at once and keeps nothing: what a unary gRPC service can reach at best
//! with the transport that KvDB uses.
//!
//! It takes the messages of etcd's interface. A read finds every key, with a value of the size that
//! it was told; a write is acknowledged and forgotten.

use crate::target::etcd_proto as proto;
use bytes::Bytes;
use kvdb_wire::transport;
use proto::kv_server::{Kv, KvServer};
use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

struct Echo {
    value: Bytes,
}

#[tonic::async_trait]
impl Kv for Echo {
    async fn range(
        &self,
        request: Request<proto::RangeRequest>,
    ) -> Result<Response<proto::RangeResponse>, Status> {
        let key = request.into_inner().key;
        let found = proto::KeyValue { key, mod_revision: 1, value: self.value.clone() };
        Ok(Response::new(proto::RangeResponse { kvs: vec![found] }))
    }

    async fn put(
        &self,
        _: Request<proto::PutRequest>,
    ) -> Result<Response<proto::PutResponse>, Status> {
        Ok(Response::new(proto::PutResponse {}))
    }

    async fn txn(
        &self,
        _: Request<proto::TxnRequest>,
    ) -> Result<Response<proto::TxnResponse>, Status> {
        Ok(Response::new(proto::TxnResponse { succeeded: true }))
    }
}

/// Serves until the process ends. `bound` is told the address, which matters when the port is 0.
///
/// # Errors
/// If it can't listen, or the listener fails.
pub async fn serve_echo(
    listen: SocketAddr,
    value_bytes: u32,
    bound: impl FnOnce(SocketAddr),
) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    bound(listener.local_addr()?);
    let echo = Echo { value: Bytes::from(vec![b'v'; value_bytes as usize]) };
    let connections = transport::incoming(listener);
    let served =
        transport::server().add_service(KvServer::new(echo)).serve_with_incoming(connections);
    served.await.map_err(io::Error::other)
}

/// An echo in a process of its own, so that its processor time is told apart. Ends when dropped.
pub struct EchoServer {
    child: Child,
    address: String,
}

impl EchoServer {
    /// Runs `program` with `words`, which must call [`serve_echo`], print its address as the
    /// first line, and end when its standard input is closed.
    ///
    /// # Errors
    /// If it can't be run, or ends without having said where it listens.
    pub fn start(program: &Path, words: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(program);
        let mut child = command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let server = EchoServer { child, address: line.trim().to_owned() };
        match server.address.is_empty() {
            true => Err(io::Error::other("the echo server has ended")),
            false => Ok(server),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
