//! A watch: changes as they happen, each told once, over as many connections as it takes.
//!
//! Each message that arrives brings the cursor after it, so a watch that broke off is opened again
//! from there, at whichever gateway is next.

use crate::call::{Manner, attempt, is_worth_explaining, random};
use crate::client::{Shared, kv};
use crate::error::{Effect, Error};
use crate::outgoing::Outgoing;
use crate::pool::{Connection, Hung, Pool};
use crate::retry::{Next, Retries};
use crate::types::{expiry_from, kind_from};
use crate::whois::explain;
use bytes::Bytes;
use kvdb_model::Version;
use kvdb_wire::proto;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::Streaming;

/// A gateway says something every few seconds, if only that nothing happened. One that is silent
/// for so long is taken for gone.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);

/// What to watch. Without key and prefix: the whole keyspace, from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// This key only.
    pub key: Bytes,
    /// Only keys that start with it; not together with `key`.
    pub prefix: Bytes,
    /// Changes after this version, of each shard; from now on if `None`. Versions carry the time: see
    /// [`Version::from_millis`]. How far back they can be told is for the keyspace's history to say;
    /// what is missing is told as a gap.
    pub from_version: Option<Version>,
    /// Where an earlier watch of the same keys was ([`Watch::cursor`]); empty = from now on.
    pub cursor: Bytes,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The key.
    pub key: Bytes,
    /// Its value now; `None` if it was deleted, or has expired and was cleaned up. Empty if it isn't a
    /// string.
    pub value: Option<Bytes>,
    /// Of the change.
    pub version: Version,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// What the key holds where it isn't a string, as `hash`.
    pub kind: Option<String>,
    /// Of a collection: how many elements it has now; those that are over and weren't freed yet are counted too.
    pub count: u64,
    /// Of a hash, set or sorted set: names of fields or members that were set or removed, at most 16, of 1 KiB together.
    pub elements: Vec<Bytes>,
    /// Others have changed as well, or it isn't known which.
    pub more_elements: bool,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchUpdate {
    /// Changes: in the order of their versions per shard, those of one version together.
    Events(Vec<WatchEvent>),
    /// Nothing new; of all that is watched, everything up to this version has been told. Comes
    /// first, when the watch stands, and then every few seconds while nothing happens.
    Progress(Version),
    /// Changes can't be told any more, up to this version of some shard: the cursor was too old, or
    /// the watcher too slow. Read the watched keys to learn what became of them; the watch goes on
    /// after the gap.
    Gap(Version),
}

/// A watch under way. Dropping it ends it.
pub struct Watch {
    shared: Arc<Shared>,
    /// With the cursor after the last message.
    request: proto::WatchRequest,
    open: Option<Open>,
    /// Who was asked last.
    asked: Option<Connection>,
}

struct Open {
    connection: Connection,
    messages: Streaming<proto::WatchResponse>,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, keyspace: String, options: WatchOptions) -> Self {
        let request = proto::WatchRequest {
            keyspace,
            key: options.key,
            prefix: options.prefix,
            // On the wire 0 is from now on; no change has a version as low as 1.
            from_version: options.from_version.map_or(0, |version| version.0.max(1)),
            cursor: options.cursor,
        };
        Watch { shared, request, open: None, asked: None }
    }

    /// Where the watch is: [`WatchOptions::cursor`] of another that shall go on from here. Empty
    /// before the first update.
    pub fn cursor(&self) -> &Bytes {
        &self.request.cursor
    }

    /// The next update.
    ///
    /// # Errors
    /// [`Error`] if a watch that broke off can't be opened again within the deadline, or is
    /// refused. It may be asked again, and goes on where it was.
    pub async fn next(&mut self) -> Result<WatchUpdate, Error> {
        let began = Instant::now();
        let mut retries: Option<(Retries, Instant)> = None;
        loop {
            let options = &self.shared.options;
            let deadline = retries
                .as_ref()
                .map_or_else(|| Instant::now() + options.deadline, |(_, deadline)| *deadline);
            let error = match self.receive(deadline).await {
                Ok(message) => {
                    self.request.cursor = message.cursor.clone();
                    return Ok(update_from(message));
                }
                Err(error) => error,
            };
            self.open = None;
            let options = &self.shared.options;
            let (retries, deadline) = retries.get_or_insert_with(|| {
                let retries = Retries::new(options, Manner::READ.repeatable);
                (retries, Instant::now() + options.deadline)
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(asked) = &self.asked
                && is_worth_explaining(&self.shared.pool, began, left, &error)
            {
                return Err(explain(asked, error).await);
            }
            match retries.after(error, left, random()) {
                Next::Again(pause) => sleep(pause).await,
                Next::GiveUp(error) => return Err(error),
            }
        }
    }

    async fn receive(&mut self, deadline: Instant) -> Result<proto::WatchResponse, Error> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let connection = self.shared.pool.next().clone();
                let pool = &self.shared.pool;
                self.asked = Some(connection.clone());
                let messages = open_stream(pool, &connection, &self.request, deadline).await?;
                self.open.insert(Open { connection, messages })
            }
        };
        let Open { connection, messages } = open;
        let unanswered = |what: &str| Effect::Read.unanswered(&connection.address, what);
        let coming = self.shared.pool.listen(connection, messages.message());
        match timeout(LONGEST_SILENCE, coming).await {
            Ok(Ok(Ok(Some(message)))) => {
                self.shared.pool.heard(connection);
                Ok(message)
            }
            Ok(Ok(Ok(None))) => Err(unanswered("the watch has ended")),
            Ok(Ok(Err(status))) => Err(Effect::Read.failed(&connection.address, &status)),
            Ok(Err(Hung)) => Err(unanswered("the gateway hangs")),
            Err(_) => Err(unanswered("the watch fell silent")),
        }
    }
}

/// Opens the stream. The deadline covers the opening only: a watch has none.
async fn open_stream(
    pool: &Pool,
    connection: &Connection,
    request: &proto::WatchRequest,
    deadline: Instant,
) -> Result<Streaming<proto::WatchResponse>, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    let send = |outgoing: Outgoing, mut request: tonic::Request<proto::WatchRequest>| async move {
        request.metadata_mut().remove("grpc-timeout");
        kv(outgoing).watch(request).await
    };
    attempt(pool, connection, left, Effect::Read, request, &send).await
}

fn update_from(message: proto::WatchResponse) -> WatchUpdate {
    if let Some(gap) = message.gap {
        return WatchUpdate::Gap(Version(gap.up_to_version));
    }
    if let Some(progress) = message.progress {
        return WatchUpdate::Progress(Version(progress.version));
    }
    WatchUpdate::Events(message.events.into_iter().map(event_from).collect())
}

fn event_from(event: proto::WatchEvent) -> WatchEvent {
    let is_put = event.kind() == proto::watch_event::Kind::Put;
    WatchEvent {
        key: event.key,
        value: is_put.then_some(event.value),
        version: Version(event.version),
        expires_at_ms: expiry_from(event.expires_at_ms),
        kind: kind_from(event.r#type),
        count: event.count,
        elements: event.elements,
        more_elements: event.more_elements,
    }
}
