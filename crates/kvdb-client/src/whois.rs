//! What answers at an address that doesn't answer as a gateway would: for the words of an error.

use crate::error::Error;
use crate::pool::Connection;
use kvdb_wire::proto::{coordinator_server, kv_server, node_server};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Asking must not make a short wait a long one.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// What nobody knows as a command but Redis, and what makes an HTTP server complain.
const QUESTION: &[u8] = b"PING\r\n";

/// A better word for an error: that it came from a port of another kind, or that nobody is there.
pub(crate) async fn explain(connection: &Connection, error: Error) -> Error {
    let address = connection.address.clone();
    let found = match &error {
        Error::Unexpected { code: Code::Unimplemented, .. } => {
            match role_at(&connection.channel).await {
                // HTTP may be HTTP/2, too.
                None => kind_of_port(&address).await.unwrap_or_default(),
                role => role,
            }
        }
        Error::Unavailable { .. } => match kind_of_port(&address).await {
            Ok(found) => found,
            Err(problem) => {
                let reason = format!(
                    "nothing listens there ({problem}). `kvdb dev` starts a cluster to try; a gateway that \
                     runs elsewhere is named by --endpoint HOST:PORT or KVDB_ENDPOINT"
                );
                return Error::Unavailable { address, reason };
            }
        },
        _ => None,
    };
    match found {
        Some(found) => Error::WrongPort { address, found },
        None => error,
    }
}

/// Which role of KvDB serves gRPC there.
async fn role_at(channel: &Channel) -> Option<&'static str> {
    let roles = [
        (kv_server::SERVICE_NAME, "a gateway"),
        (node_server::SERVICE_NAME, "a node"),
        (coordinator_server::SERVICE_NAME, "a coordinator"),
    ];
    for (service, role) in roles {
        let message = HealthCheckRequest { service: service.to_owned() };
        let mut client = HealthClient::new(channel.clone());
        let answer: Result<_, Status> = timeout(ANSWER_WITHIN, client.check(message)).await.ok()?;
        if answer.is_ok() {
            return Some(role);
        }
    }
    None
}

/// What speaks there, if it isn't gRPC. The error is that of the connection.
async fn kind_of_port(address: &str) -> Result<Option<&'static str>, String> {
    let connected = timeout(ANSWER_WITHIN, TcpStream::connect(address)).await;
    let mut stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err(format!("no connection within {} ms", ANSWER_WITHIN.as_millis())),
    };
    let mut said = [0; 64];
    let asked = async {
        stream.write_all(QUESTION).await?;
        stream.read(&mut said).await
    };
    let count = match timeout(ANSWER_WITHIN, asked).await {
        Ok(Ok(count)) => count,
        _ => return Ok(None),
    };
    let said = &said[..count];
    Ok(if said.starts_with(b"HTTP/") {
        Some("an HTTP port, for metrics and health")
    } else if said.starts_with(b"+PONG") || said.starts_with(b"-") {
        Some("a port for the Redis protocol")
    } else {
        None
    })
}
