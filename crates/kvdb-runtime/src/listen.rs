//! Binding listeners, with messages that say what to do.

use thiserror::Error;
use tokio::net::TcpListener;

/// Why a listener can't be had.
#[derive(Debug, Error)]
#[error("can't listen for {what} on {address}: {problem}")]
pub struct ListenError {
    what: &'static str,
    address: String,
    problem: String,
}

/// Binds `host:port` for `what`.
///
/// # Errors
/// [`ListenError`], naming the address and what is wrong with it.
pub async fn bind(what: &'static str, address: &str) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|error| {
        let problem = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "the port is in use; stop what uses it, or choose another".to_owned()
            }
            std::io::ErrorKind::InvalidInput => {
                "an address has the form host:port, such as 127.0.0.1:7201".to_owned()
            }
            _ => error.to_string(),
        };
        ListenError { what, address: address.to_owned(), problem }
    })
}
