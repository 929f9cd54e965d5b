//! Watches: one stream of changes out of many shards.
//!
//! What is watched is a range of routing keys, cut into pieces of a shard each. A task a piece
//! (`piece`) asks whoever leads its shard for the changes after the last version that it was told,
//! again and again; this one puts them together. The state of a watch is only that: for each piece
//! the version up to which everything has been told. It travels to the client with every message,
//! as the cursor, so a watch goes on at any gateway. A split cuts a piece in two that start at the
//! same version.
//!
//! Bounded: a task doesn't ask for more before what it got was taken, and what all tasks of a watch
//! may hold together is [`WATCH_BYTES`] (but one version of each piece is never cut). Nodes hold
//! nothing for a watcher; one that is so slow that a node forgets changes gets a gap.

mod cursor;
mod piece;

use crate::route::{Gateway, Place};
use bytes::Bytes;
use cursor::Selector;
use futures_util::StreamExt as _;
use futures_util::stream;
use kvdb_model::key::prefix_end;
use kvdb_model::{KeyRange, Keyspace, Partitioning, Refusal, Version};
use kvdb_wire::{proto, requests, status_of, transport};
use parking_lot::Mutex;
use piece::{News, Piece};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

/// Changes that all pieces of a watch may hold.
const WATCH_BYTES: usize = 1024 * 1024;
/// Changes that a piece may hold, however many or few there are.
const PIECE_BYTES: std::ops::RangeInclusive<usize> = 4 * 1024..=256 * 1024;
/// Messages between the pieces and the client.
const QUEUE: usize = 2;
/// Pieces of all watches of a gateway: each has a request under way.
const MOST_PIECES: usize = 16 * 1024;
/// Connections to each node, so that its limit of requests on one isn't met.
const CONNECTIONS: usize = 4;
/// Pieces that are begun at the same time.
const BEGUN_AT_ONCE: usize = 64;
/// Without changes for so long, a watch says so.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How long a client should wait for room.
const RETRY_AFTER_MS: u64 = 1000;

type Messages = ReceiverStream<Result<proto::WatchResponse, Status>>;

/// What all watches of a gateway share.
#[derive(Clone, Default)]
pub(crate) struct Watches {
    channels: Arc<Mutex<HashMap<Arc<str>, Vec<Channel>>>>,
    pieces: Arc<AtomicUsize>,
}

impl Watches {
    /// A connection to a node, apart from that for reads and writes.
    fn channel(&self, address: &Arc<str>, turn: usize) -> Option<Channel> {
        let mut channels = self.channels.lock();
        if let Some(known) = channels.get(address) {
            return known.get(turn % CONNECTIONS).cloned();
        }
        let endpoint = transport::endpoint(address).ok()?;
        let new: Vec<_> = (0..CONNECTIONS).map(|_| endpoint.connect_lazy()).collect();
        let channel = new.get(turn % CONNECTIONS).cloned();
        channels.insert(address.clone(), new);
        channel
    }
}

/// A piece's place among those of all watches.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is watched.
struct Watched {
    gateway: Gateway,
    keyspace: Keyspace,
    /// Of user keys, in hash keyspaces.
    user_prefix: Bytes,
    selector: Selector,
}

/// Checks a watch and starts it.
pub(crate) async fn start(
    gateway: &Gateway,
    request: proto::WatchRequest,
) -> Result<Messages, Refusal> {
    requests::check_watch(&request, &gateway.limits)?;
    let keyspace = gateway.current_keyspace(&request.keyspace).await?;
    let range = range_of(&keyspace, &request);
    let is_hash = keyspace.partitioning == Partitioning::Hash;
    let user_prefix = if is_hash { request.prefix.clone() } else { Bytes::new() };
    let selector = Selector::new(&keyspace, &request.key, &request.prefix);
    let pieces = if !request.cursor.is_empty() {
        let positions = cursor::decode(&request.cursor, &selector, &range)?;
        let ends = positions.iter().skip(1).map(|(start, _)| start.clone());
        let ends: Vec<_> = ends.chain([range.end.clone()]).collect();
        let piece = |((start, after), end)| Piece { start, end, after: Some(after) };
        positions.into_iter().zip(ends).map(piece).collect()
    } else {
        let after = (request.from_version != 0).then_some(Version(request.from_version));
        vec![Piece { start: range.start.clone(), end: range.end.clone(), after }]
    };
    let (messages, receiver) = mpsc::channel(QUEUE);
    let watched = Watched { gateway: gateway.clone(), keyspace, user_prefix, selector };
    tokio::spawn(async move {
        if let Err(refusal) = run(Arc::new(watched), pieces, &messages).await {
            let _ = messages.send(Err(status_of(&refusal))).await;
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// The routing keys that are watched. In a hash keyspace a prefix may be anywhere: the nodes look
/// at the user keys.
fn range_of(keyspace: &Keyspace, request: &proto::WatchRequest) -> KeyRange {
    let whole = KeyRange::of_keyspace(keyspace.keyspace_id);
    let key = |user: &[u8]| keyspace.partitioning.routing_key(keyspace.keyspace_id, user);
    if !request.key.is_empty() {
        let start = key(&request.key);
        let end = Bytes::from([&start[..], &[0]].concat());
        return KeyRange { start, end };
    }
    if request.prefix.is_empty() || keyspace.partitioning == Partitioning::Hash {
        return whole;
    }
    let start = key(&request.prefix);
    KeyRange { end: prefix_end(&start), start }.intersection(&whole)
}

/// What is known of a piece: where it ends, and what has been told of it.
struct Position {
    end: Bytes,
    told: Version,
}

/// One watch under way.
struct Merge<'a> {
    watched: Arc<Watched>,
    /// By start.
    positions: BTreeMap<Bytes, Position>,
    news: mpsc::Sender<(Bytes, News)>,
    messages: &'a mpsc::Sender<Result<proto::WatchResponse, Status>>,
    is_quiet: bool,
}

/// The client is gone.
struct Gone;

async fn run(
    watched: Arc<Watched>,
    pieces: Vec<Piece>,
    messages: &mpsc::Sender<Result<proto::WatchResponse, Status>>,
) -> Result<(), Refusal> {
    let begun = tokio::select! {
        begun = begin(&watched, pieces) => begun?,
        () = messages.closed() => return Ok(()),
    };
    let (news, mut inbox) = mpsc::channel(1);
    let mut merge = Merge { watched, positions: BTreeMap::new(), news, messages, is_quiet: false };
    let count = begun.len();
    for (start, end, told) in begun {
        merge.follow(start, end, told, count)?;
    }
    if merge.say(merge.progress()).await.is_err() {
        return Ok(());
    }
    let mut progress = tokio::time::interval(PROGRESS_EVERY);
    progress.reset();
    loop {
        let heard = tokio::select! {
            heard = inbox.recv() => heard,
            _ = progress.tick() => {
                let quiet = std::mem::replace(&mut merge.is_quiet, true);
                if quiet && merge.say(merge.progress()).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            () = messages.closed() => return Ok(()),
        };
        let Some((start, news)) = heard else { return Ok(()) };
        if merge.hear(start, news).await?.is_err() {
            return Ok(());
        }
    }
}

/// Finds out from which version on each piece is told; those that don't say begin now.
async fn begin(
    watched: &Arc<Watched>,
    pieces: Vec<Piece>,
) -> Result<Vec<(Bytes, Bytes, Version)>, Refusal> {
    let mut cut = Vec::new();
    for piece in pieces {
        cut.extend(cut_by_shards(watched, piece));
    }
    let begun = stream::iter(cut)
        .map(|piece| piece::begin(watched.clone(), piece))
        .buffer_unordered(BEGUN_AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut all = Vec::with_capacity(begun.len());
    for pieces in begun {
        all.extend(pieces?);
    }
    Ok(all)
}

/// Pieces of one shard each, as far as the map tells.
fn cut_by_shards(watched: &Watched, piece: Piece) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = piece;
    while let Some(route) = watched.gateway.find(Place::At(&rest.start), None) {
        let Some(at) = inside(&rest, &route.range.end) else { break };
        let (first, second) = rest.cut(at);
        pieces.push(first);
        rest = second;
    }
    pieces.push(rest);
    pieces
}

/// A place where a piece is to be cut, if it is inside.
fn inside(piece: &Piece, at: &Bytes) -> Option<Bytes> {
    let is_inside =
        !at.is_empty() && *at > piece.start && (piece.end.is_empty() || *at < piece.end);
    is_inside.then(|| at.clone())
}

impl Merge<'_> {
    fn follow(
        &mut self,
        start: Bytes,
        end: Bytes,
        told: Version,
        count: usize,
    ) -> Result<(), Refusal> {
        let pieces = &self.watched.gateway.watches.pieces;
        let slot = Slot(pieces.clone());
        if pieces.fetch_add(1, Ordering::Relaxed) >= MOST_PIECES {
            let what = "the gateway's room for watches";
            return Err(Refusal::Overloaded { what, retry_after_ms: RETRY_AFTER_MS });
        }
        let max_bytes =
            (WATCH_BYTES / count.max(1)).clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end());
        let piece = Piece { start: start.clone(), end: end.clone(), after: Some(told) };
        self.positions.insert(start, Position { end, told });
        let (watched, news) = (self.watched.clone(), self.news.clone());
        tokio::spawn(async move {
            let _slot = slot;
            piece::follow(watched, piece, told, max_bytes, news).await;
        });
        Ok(())
    }

    async fn hear(&mut self, start: Bytes, news: News) -> Result<Result<(), Gone>, Refusal> {
        match news {
            News::Told { events, version, gap } => {
                if let Some(up_to) = gap {
                    self.reached(&start, up_to);
                    let gap = Some(proto::WatchGap { up_to_version: up_to.0 });
                    let message = proto::WatchResponse { gap, ..Default::default() };
                    if self.say(message).await.is_err() {
                        return Ok(Err(Gone));
                    }
                }
                self.reached(&start, version);
                if events.is_empty() {
                    return Ok(Ok(()));
                }
                let message = proto::WatchResponse { events, ..Default::default() };
                Ok(self.say(message).await)
            }
            News::Cut { at } => {
                if let Some(Position { end, told }) = self.positions.remove(&start) {
                    let count = self.positions.len() + 2;
                    self.follow(start, at.clone(), told, count)?;
                    self.follow(at, end, told, count)?;
                }
                Ok(Ok(()))
            }
            News::Over(refusal) => Err(refusal),
        }
    }

    fn reached(&mut self, start: &Bytes, version: Version) {
        if let Some(position) = self.positions.get_mut(start) {
            position.told = position.told.max(version);
        }
    }

    fn progress(&self) -> proto::WatchResponse {
        let told = self.positions.values().map(|position| position.told).min();
        let version = told.unwrap_or_default().0;
        let progress = Some(proto::WatchProgress { version });
        proto::WatchResponse { progress, ..Default::default() }
    }

    /// Sends a message with the cursor after it.
    async fn say(&mut self, mut message: proto::WatchResponse) -> Result<(), Gone> {
        let positions = self.positions.iter().map(|(start, position)| (start, position.told));
        message.cursor = cursor::encode(positions, &self.watched.selector);
        self.is_quiet = false;
        self.messages.send(Ok(message)).await.map_err(|_| Gone)
    }
}
