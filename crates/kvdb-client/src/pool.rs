//! Connections, used in turn, and what is known of who is at their other ends.
//!
//! With several addresses a silent one must not hold anybody up. Silence alone says little: a shard
//! without a leader makes a gateway that is well wait, too. So whoever doesn't answer is asked for
//! its health on the same connection; if that isn't answered either, all together within the
//! *patience*, the address is *suspected*: others are used until it answers again, which is tried
//! in the background.

use crate::options::Options;
use kvdb_wire::transport::{self, AddressError};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Longest silence of one of several gateways; less with short deadlines.
const LONGEST_PATIENCE: Duration = Duration::from_secs(1);
/// How often one that is suspected is asked whether it is well again.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Before any answer has come, calls give up after so long: it is more likely that nobody is there
/// than that somebody is about to come back.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_millis(700);

/// A fixed set of connections. Each is made when it is first used, and again when it broke.
pub(crate) struct Pool {
    /// Neighbours belong to different addresses, so that the next attempt goes elsewhere.
    connections: Vec<Connection>,
    next: AtomicUsize,
    /// `None` if there is nobody else to turn to.
    patience: Option<Duration>,
    /// Whether anybody has ever answered.
    was_answered: AtomicBool,
    began: Instant,
}

/// One connection. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) address: String,
    pub(crate) channel: Channel,
    /// When something was last heard on it, in milliseconds since the pool began.
    heard_ms: Arc<AtomicU64>,
    standing: Arc<Standing>,
}

/// What is known of an address.
#[derive(Default)]
struct Standing {
    is_suspected: AtomicBool,
}

/// It answers neither what it was asked nor whether it is there.
pub(crate) struct Hung;

impl Connection {
    pub(crate) fn to(address: &str) -> Result<Self, AddressError> {
        Self::of(address, Arc::default())
    }

    fn of(address: &str, standing: Arc<Standing>) -> Result<Self, AddressError> {
        let address = transport::without_scheme(address)?;
        let channel = transport::endpoint(address)?.connect_lazy();
        Ok(Connection { address: address.to_owned(), channel, heard_ms: Arc::default(), standing })
    }
}

impl Pool {
    pub(crate) fn new(options: &Options) -> Result<Self, AddressError> {
        let addresses: Vec<_> =
            options.addresses.iter().map(|address| (address, Arc::default())).collect();
        let mut connections = Vec::new();
        for _ in 0..options.connections.max(1) {
            for (address, standing) in &addresses {
                connections.push(Connection::of(address, Arc::clone(standing))?);
            }
        }
        if connections.is_empty() {
            return Err(AddressError { address: String::new() });
        }
        let patience = (options.deadline / 4).min(LONGEST_PATIENCE);
        Ok(Pool {
            connections,
            next: AtomicUsize::new(0),
            patience: (addresses.len() > 1).then_some(patience),
            was_answered: AtomicBool::new(false),
            began: Instant::now(),
        })
    }

    /// Whose turn it is, of those that aren't suspected; if all are, of all.
    pub(crate) fn next(&self) -> &Connection {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.connections.len();
        let in_turn = (0..count).map(|more| &self.connections[turn.wrapping_add(more) % count]);
        in_turn
            .into_iter()
            .find(|connection| !connection.standing.is_suspected.load(Ordering::Relaxed))
            .unwrap_or(&self.connections[turn % count])
    }

    /// As [`Pool::next`], for what can't be sent a second time: one that is known to be well.
    pub(crate) async fn next_proven(&self) -> &Connection {
        for _ in &self.connections {
            let connection = self.next();
            let Some(patience) = self.patience else { return connection };
            if self.was_heard_within(connection, patience) {
                return connection;
            }
            if timeout(patience, is_well(&connection.channel)).await == Ok(true) {
                self.heard(connection);
                return connection;
            }
            self.suspect(connection);
        }
        self.next()
    }

    /// Waits for what is to come on a connection.
    pub(crate) async fn listen<T>(
        &self,
        connection: &Connection,
        coming: impl Future<Output = T>,
    ) -> Result<T, Hung> {
        let mut coming = pin!(coming);
        let Some(patience) = self.patience else { return Ok(coming.await) };
        loop {
            if let Ok(came) = timeout(patience / 4, &mut coming).await {
                return Ok(came);
            }
            if self.was_heard_within(connection, patience / 4) {
                continue;
            }
            let probe = timeout(patience / 2, is_well(&connection.channel));
            tokio::select! {
                came = &mut coming => return Ok(came),
                well = probe => match well {
                    Ok(true) => self.heard(connection),
                    _ => {
                        self.suspect(connection);
                        return Err(Hung);
                    }
                },
            }
        }
    }

    /// Something came on a connection.
    pub(crate) fn heard(&self, connection: &Connection) {
        let now_ms = self.began.elapsed().as_millis() as u64;
        connection.heard_ms.store(now_ms.max(1), Ordering::Relaxed);
        self.was_answered.store(true, Ordering::Relaxed);
    }

    fn was_heard_within(&self, connection: &Connection, span: Duration) -> bool {
        let heard_ms = connection.heard_ms.load(Ordering::Relaxed);
        let heard = Duration::from_millis(heard_ms);
        heard_ms != 0 && self.began.elapsed().saturating_sub(heard) < span
    }

    /// Keeps away from an address until it answers again.
    pub(crate) fn suspect(&self, connection: &Connection) {
        if self.patience.is_none() || connection.standing.is_suspected.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let standing = Arc::downgrade(&connection.standing);
        tokio::spawn(until_well(connection.channel.clone(), standing));
    }

    /// Whether to end a call that began at `began`: nobody has ever answered, and nobody is left.
    pub(crate) fn is_hopeless(&self, began: Instant) -> bool {
        let suspected = |it: &Connection| it.standing.is_suspected.load(Ordering::Relaxed);
        !self.was_answered.load(Ordering::Relaxed)
            && began.elapsed() >= FIRST_ANSWER_WITHIN
            && (self.patience.is_none() || self.connections.iter().all(suspected))
    }
}

/// Whether there is an answer to the question, whatever the answer: one that says that it isn't
/// serving says so to requests as well.
async fn is_well(channel: &Channel) -> bool {
    let message = HealthCheckRequest { service: String::new() };
    match HealthClient::new(channel.clone()).check(message).await {
        Ok(_) => true,
        Err(status) => status.code() == tonic::Code::Unimplemented,
    }
}

/// Asks one that is suspected until it answers, or until nobody needs it any more.
async fn until_well(channel: Channel, standing: Weak<Standing>) {
    loop {
        sleep(PROBE_EVERY).await;
        let Some(standing) = standing.upgrade() else { return };
        if timeout(LONGEST_PATIENCE, is_well(&channel)).await == Ok(true) {
            return standing.is_suspected.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &str) -> Pool {
        Pool::new(&Options::to(addresses)).unwrap()
    }

    #[tokio::test]
    async fn addresses_may_be_written_as_urls() {
        let pool = pool(" http://a:1/, b:2,HTTP://c:3 ,");
        let addresses: Vec<_> = pool.connections[..3].iter().map(|it| &it.address[..]).collect();
        assert_eq!(addresses, ["a:1", "b:2", "c:3"]);
        assert_eq!(pool.connections.len(), 6);
        let refused = |text: &str| Pool::new(&Options::to(text)).err().unwrap().to_string();
        assert!(refused("https://a:1").contains("TLS"), "{}", refused("https://a:1"));
        assert!(refused("http://a:1/x").contains("host:port"));
        assert!(refused("ftp://a:1").contains("host:port"));
        assert!(refused(" , ").contains("host:port"));
    }

    #[tokio::test]
    async fn one_that_is_suspected_is_left_out_unless_all_are() {
        let pool = pool("a:1,b:2");
        let suspected = pool.connections[0].clone();
        pool.suspect(&suspected);
        for _ in 0..4 {
            assert_eq!(pool.next().address, "b:2");
        }
        pool.suspect(&pool.connections[1]);
        let all: std::collections::BTreeSet<_> =
            (0..4).map(|_| pool.next().address.clone()).collect();
        assert_eq!(all.len(), 2);
    }

    #[tokio::test]
    async fn the_only_address_is_never_suspected() {
        let pool = pool("a:1");
        pool.suspect(&pool.connections[0]);
        assert!(!pool.connections[0].standing.is_suspected.load(Ordering::Relaxed));
    }
}
