//! Settings of every gRPC connection: bounded where the defaults are not, and fast.

use std::time::Duration;
use tonic::transport::{Endpoint, Server};

/// Largest message that is read: the largest request and its framing.
pub const MAX_MESSAGE_BYTES: usize = 20 * 1024 * 1024;

/// Flow-control window of a stream, in bytes. Many small frames count against it before they are
/// read, so it is far above what a batch needs.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Flow-control window of a connection, in bytes: the most that one peer can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_CONCURRENT_STREAMS: u32 = 4096;
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;

/// A server with the common settings.
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(64))
        .tcp_nodelay(true)
}

/// A client endpoint for `host:port` with the common settings.
///
/// # Errors
/// If the address is not of that form.
pub fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true))
}
