//! Binding listeners, with messages that say what to do, and warnings about those that others reach.

use thiserror::Error;
use tokio::net::TcpListener;

/// What stands in place of an address where there is to be no listener.
pub const OFF: &str = "off";

/// What each process says at its start.
pub const UNPROTECTED: &str = "no authentication and no encryption yet: whoever reaches a port can read, change and \
                               delete everything; keep the ports on a private network";

/// Why a listener can't be had.
#[derive(Debug, Error)]
#[error("can't listen for {what} on {address}: {problem}")]
pub struct ListenError {
    what: &'static str,
    address: String,
    problem: String,
}

/// Binds `host:port` for `what`. Warns if other machines can reach it.
///
/// # Errors
/// [`ListenError`], naming the address and what is wrong with it.
pub async fn bind(what: &'static str, address: &str) -> Result<TcpListener, ListenError> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
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
    })?;
    if let Some(warning) = warning(what, address, &listener) {
        tracing::warn!("{warning}");
    }
    Ok(listener)
}

/// Binds `host:port` for `what`, unless it is turned off.
///
/// # Errors
/// [`ListenError`], as [`bind`].
pub async fn bind_unless_off(
    what: &'static str,
    address: Option<&str>,
) -> Result<Option<TcpListener>, ListenError> {
    match address {
        Some(address) => bind(what, address).await.map(Some),
        None => Ok(None),
    }
}

/// What to warn of where a listener can be reached from other machines.
fn warning(what: &str, address: &str, listener: &TcpListener) -> Option<String> {
    // An address that can't be told isn't taken for a private one.
    let is_private = listener.local_addr().is_ok_and(|bound| bound.ip().is_loopback());
    (!is_private).then(|| {
        format!(
            "the {what} listener on {address} can be reached from other machines, without authentication and \
             without encryption; only a private network or a firewall protects the data"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn warning_about(address: &str) -> Option<String> {
        let listener = TcpListener::bind(address).await.expect("the system has a free port");
        warning("gRPC", address, &listener)
    }

    #[tokio::test]
    async fn a_listener_beyond_loopback_is_warned_of() {
        for private in ["127.0.0.1:0", "localhost:0", "127.0.0.2:0"] {
            assert_eq!(warning_about(private).await, None, "{private}");
        }
        let warning = warning_about("0.0.0.0:0").await.expect("every address of this machine");
        assert!(warning.contains("gRPC listener on 0.0.0.0:0"), "{warning}");
        assert!(warning.contains("without authentication"), "{warning}");
    }

    #[tokio::test]
    async fn a_listener_that_is_off_binds_nothing() {
        assert!(bind_unless_off("HTTP", None).await.is_ok_and(|listener| listener.is_none()));
        let bound = bind_unless_off("HTTP", Some("127.0.0.1:0")).await;
        assert!(bound.is_ok_and(|listener| listener.is_some()));
    }
}
