//! How a client behaves.

use std::time::Duration;

/// Settings of a client. The defaults suit a service that keeps one client for its lifetime.
#[derive(Clone, Debug)]
pub struct Options {
    /// Gateways (for [`crate::AdminClient`] also coordinators), `host:port` or `http://host:port`
    /// each. All are used in turn; those that can't be reached or hang are left out until they
    /// answer again.
    pub addresses: Vec<String>,
    /// Connections to each address. One carries some 48,000 small requests a second; more use more
    /// cores on both sides.
    pub connections: usize,
    /// How long a call may take with all its retries; of a scan, each of its chunks.
    pub deadline: Duration,
    /// First pause before a retry; it doubles with each further one, and varies.
    pub first_pause: Duration,
    /// Longest pause before a retry.
    pub longest_pause: Duration,
    /// Whether each write gets a request id, so that it may be retried when nobody knows whether
    /// it took effect. The cluster remembers something for each client for some minutes: right for
    /// a client that stays, wasteful for one that is made for a single write.
    pub exactly_once: bool,
}

impl Options {
    /// The defaults, for one gateway or several separated by commas.
    pub fn to(addresses: &str) -> Self {
        let addresses = addresses.split(',').map(str::trim);
        let addresses = addresses.filter(|it| !it.is_empty()).map(str::to_owned).collect();
        Options { addresses, ..Options::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            addresses: vec!["127.0.0.1:7400".to_owned()],
            connections: 2,
            deadline: Duration::from_secs(10),
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_millis(500),
            exactly_once: true,
        }
    }
}
