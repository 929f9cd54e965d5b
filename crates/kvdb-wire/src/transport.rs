//! Settings of every gRPC connection: bounded where the defaults are not, and fast.

use crate::too_large::NameTooLarge;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tower::layer::util::{Identity, Stack};

/// Largest message that is read: the largest request and its framing.
pub const MAX_MESSAGE_BYTES: usize = 20 * 1024 * 1024;

/// Flow-control window of a stream, in bytes. Many small frames count against it before they are
/// read, so it is far above what a batch needs.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Flow-control window of a connection, in bytes: the most that one peer can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests in flight that a server takes on one connection; more wait at the client.
const MAX_CONCURRENT_STREAMS: u32 = 4096;
/// Longest header list (headers or trailers) that is read, in bytes.
pub const MAX_HEADER_LIST_BYTES: u32 = 128 * 1024;

/// A server with the common settings.
pub fn server() -> Server<Stack<NameTooLarge, Identity>> {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(64))
        .layer(NameTooLarge)
}

/// The connections that come to a listener, for [`server`], without a bound. Small answers leave at once: without
/// that the second of two waits until the client's system acknowledges the first, up to 40 ms. (The
/// server's own setting for it isn't applied to connections that it is handed.)
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// An address that isn't `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("address {address:?} {}", problem_with(address))]
pub struct AddressError {
    /// What was given.
    pub address: String,
}

const HTTPS: &str = "https://";

fn problem_with(address: &str) -> &'static str {
    match scheme_of(address, HTTPS) {
        Some(_) => "asks for TLS, which KvDB doesn't have yet; leave https:// out",
        None => "is not of the form host:port, for example 127.0.0.1:7400",
    }
}

/// What follows a scheme, which may be written in capitals.
fn scheme_of<'a>(address: &'a str, scheme: &str) -> Option<&'a str> {
    let (found, rest) = address.split_at_checked(scheme.len())?;
    found.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// The `host:port` of an address that may be written as a URL, such as `http://host:port/`.
///
/// # Errors
/// If it asks for TLS.
pub fn without_scheme(address: &str) -> Result<&str, AddressError> {
    if scheme_of(address, HTTPS).is_some() {
        return Err(AddressError { address: address.to_owned() });
    }
    let rest = scheme_of(address, "http://");
    Ok(rest.map_or(address, |rest| rest.strip_suffix('/').unwrap_or(rest)))
}

/// A client endpoint for `host:port` with the common settings. It connects when it is first used.
///
/// # Errors
/// If the address is not of that form, with a port of 1 to 65535.
pub fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    let refused = || AddressError { address: address.to_owned() };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| refused())?;
    let uri = endpoint.uri();
    let whole = uri.authority().is_some_and(|authority| authority.as_str() == address);
    if !whole || address.contains('@') || matches!(uri.port_u16(), None | Some(0)) {
        return Err(refused());
    }
    Ok(endpoint
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::StreamExt as _;

    #[tokio::test]
    async fn small_answers_leave_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = tokio::net::TcpStream::connect(address);
        let mut connections = incoming(listener);
        let (accepted, client) = tokio::join!(connections.next(), client);
        assert!(accepted.unwrap().unwrap().nodelay().unwrap());
        drop(client);
    }

    #[test]
    fn an_endpoint_is_host_and_port() {
        for address in ["127.0.0.1:7400", "localhost:7400", "[::1]:7400"] {
            assert!(endpoint(address).is_ok(), "{address}");
        }
        let bad =
            ["", "host", "host:port", "host:0", "host:70000", "not a host:1", "a:1/x", "u@a:1"];
        for address in bad {
            assert!(endpoint(address).is_err(), "{address}");
        }
    }
}
