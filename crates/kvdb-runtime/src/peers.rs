//! Between processes: streams of Raft messages, and snapshots.
//!
//! Each process keeps one outgoing stream to each peer that it has something to say to; all
//! shards' messages share it. What can't be delivered is dropped and reported: Raft retries.

use crate::clock;
use crate::contacts::Contacts;
use crate::dial::LeftBehind;
use crate::drive::{Drive, Event, Level, MAX_PEER_FRAMES, Outgoing};
use crate::start::{Met, Open};
use bytes::Bytes;
use kvdb_model::{ClusterId, NodeId, ReplicaId, ShardId, TimeMark, Version};
use kvdb_replication::message::{self, Message};
use kvdb_replication::starts::{Said, is_meant};
use kvdb_replication::{Input, PeerMessage};
use kvdb_store::{ChunkReader, SnapshotWriter};
use kvdb_wire::proto::peer_client::PeerClient;
use kvdb_wire::proto::peer_server::{Peer, PeerServer};
use kvdb_wire::proto::{self, peer_frame, snapshot_frame};
use kvdb_wire::{
    cluster_id_from, cluster_id_to, descriptor_from, descriptor_to, token_from, transport,
};
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

const FORMAT: u32 = 1;
/// Batches of messages that wait for one peer; more are dropped.
const QUEUE: usize = 1024;
/// Batches that share a frame, at most; each is what one round of the replication thread gave.
const BATCHES_PER_FRAME: usize = 32;
/// A frame is cut here. A follower that catches up is sent many full messages at once; together
/// they would outgrow what a peer accepts as one gRPC message.
const FRAME_BYTES: usize = 2 * 1024 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Reasons why a peer can't be reached that are told until it is.
const MOST_SAID: usize = 16;
/// Longest that a peer may take to say hello back.
const HELLO: Duration = Duration::from_secs(2);
/// As often as that in a row a peer must say that this process isn't the one that counts.
const REFUSED_FOR_GOOD: u32 = 3;
/// A peer that isn't reached for so long is warned of.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at how long messages to a peer and back take.
const PING_EVERY: Duration = Duration::from_millis(500);
/// Chunks of a snapshot between disk and network.
const SNAPSHOT_QUEUE: usize = 8;

/// Where peers are, and who this process is among them.
#[derive(Clone)]
pub struct Neighbourhood {
    /// Finds where a peer may be, the likeliest first. Who is there is checked on each connection.
    pub addresses_of: Arc<dyn Fn(NodeId) -> Vec<String> + Send + Sync>,
    /// Where this process is reached itself.
    pub address: String,
    /// Made with its data directory.
    pub token: u128,
    /// Finds what was made with a peer's data directory.
    pub token_of: Arc<dyn Fn(NodeId) -> Option<u128> + Send + Sync>,
    /// A peer has said where it is.
    pub introduced: Arc<dyn Fn(NodeId, String) + Send + Sync>,
    /// Whom it has reached.
    pub contacts: Contacts,
    /// Which start of its directory this process is: number and nonce; 0 if it doesn't say.
    pub start: (u64, u128),
    /// Which starts of others count.
    pub met: Met,
    /// A peer has said that this process isn't the one that counts, or has lost what it has told.
    pub refused: Arc<dyn Fn(String) + Send + Sync>,
    /// The cluster, once it is known.
    pub cluster_id: Arc<RwLock<ClusterId>>,
    /// Coordinators and nodes number themselves apart.
    pub coordinator: bool,
    /// Changes with each start of the process.
    pub incarnation: u64,
    /// Whether this process may take part. One that doesn't know yet whether it has made promises
    /// before, and lost them, must hear nobody.
    pub admitted: Arc<AtomicBool>,
    /// Of a coordinator: why another one must not take part any more, if that is known.
    pub left_behind: LeftBehind,
}

impl Neighbourhood {
    fn hello(&self, drive: &Drive, to: NodeId) -> proto::PeerHello {
        proto::PeerHello {
            cluster_id: cluster_id_to(*self.cluster_id.read()),
            from_node: drive.node_id().0,
            to_node: to.0,
            incarnation: self.incarnation,
            format_version: FORMAT,
            coordinator: self.coordinator,
            address: self.address.clone(),
            token: self.token.to_be_bytes().to_vec().into(),
            start_number: self.start.0,
            nonce: self.start.1.to_be_bytes().to_vec().into(),
            synced: drive.synced(),
        }
    }

    /// Whether it is the newest start of a peer that speaks. How far its log is synced is compared
    /// where it is said `in_order`: in the streams that it opens, one after the other.
    async fn check_start(
        &self,
        peer: NodeId,
        hello: &proto::PeerHello,
        in_order: bool,
    ) -> Result<(), String> {
        if hello.start_number == 0 {
            return Ok(());
        }
        let usable = transport::endpoint(&hello.address).is_ok();
        let said = Said {
            number: hello.start_number,
            nonce: token_from("nonce", &hello.nonce).map_err(|error| error.to_string())?,
            synced: in_order.then_some(hello.synced),
            address: if usable { hello.address.clone() } else { String::new() },
        };
        let met = self.met.clone();
        let meeting = tokio::task::spawn_blocking(move || met.meet(peer, &said));
        meeting.await.map_err(|error| error.to_string())?
    }

    /// Whether a peer's number and data directory belong together, as far as is known.
    fn check_token(&self, peer: NodeId, token: &[u8]) -> Result<(), String> {
        if token.is_empty() {
            return Ok(());
        }
        let told = token_from("token", token).map_err(|error| error.to_string())?;
        match (self.token_of)(peer) {
            Some(known) if known != told => {
                Err(format!("number {peer} has another data directory than this one"))
            }
            _ => Ok(()),
        }
    }

    /// Who speaks, if they may.
    async fn check(
        &self,
        own: NodeId,
        hello: Option<proto::PeerHello>,
        in_order: bool,
    ) -> Result<NodeId, Box<Status>> {
        fn refuse<T>(why: String) -> Result<T, Box<Status>> {
            Err(Box::new(Status::failed_precondition(why)))
        }
        let Some(hello) = hello else { return refuse("the first frame must be a hello".into()) };
        if hello.format_version != FORMAT {
            return refuse(format!(
                "peer format {} is not known; this binary speaks {FORMAT}",
                hello.format_version
            ));
        }
        if hello.coordinator != self.coordinator || !is_meant(own, NodeId(hello.to_node)) {
            return refuse(format!("this is not the process that you look for, but number {own}"));
        }
        if !self.admitted.load(Ordering::Acquire) {
            return refuse(format!("number {own} is not a part of the group yet"));
        }
        let theirs = cluster_id_from(&hello.cluster_id)
            .map_err(|error| Box::new(Status::invalid_argument(error.to_string())))?;
        let ours = *self.cluster_id.read();
        if theirs.is_known() && ours.is_known() && theirs != ours {
            return refuse(format!("this process belongs to cluster {ours}, not to {theirs}"));
        }
        let from = NodeId(hello.from_node);
        self.check_token(from, &hello.token).or_else(refuse)?;
        if let Some(why) = (self.left_behind)(from) {
            return Err(Box::new(Status::aborted(why)));
        }
        if let Err(why) = self.check_start(from, &hello, in_order).await {
            // It is told so that it knows that it means itself.
            return Err(Box::new(Status::aborted(why)));
        }
        if transport::endpoint(&hello.address).is_ok() {
            (self.introduced)(from, hello.address);
        }
        Ok(from)
    }
}

/// Sends what leaves a drive, until the drive ends.
pub async fn run(
    drive: Drive,
    neighbourhood: Neighbourhood,
    mut outgoing: mpsc::UnboundedReceiver<Outgoing>,
) {
    let mut streams: HashMap<NodeId, mpsc::Sender<Vec<PeerMessage>>> = HashMap::new();
    while let Some(next) = outgoing.recv().await {
        match next {
            Outgoing::Messages { to, messages } => {
                let stream = streams.entry(to).or_insert_with(|| {
                    let (sender, receiver) = mpsc::channel(QUEUE);
                    tokio::spawn(feed_peer(drive.clone(), neighbourhood.clone(), to, receiver));
                    sender
                });
                let count = messages.len() as u64;
                // A full queue is a slow peer: Raft takes it as loss.
                if stream.try_send(messages).is_err() {
                    drive.shared().metrics.peer_messages_dropped.inc_by(count);
                }
            }
            Outgoing::Snapshot { shard, to_node, message } => {
                tokio::spawn(send_snapshot(
                    drive.clone(),
                    neighbourhood.clone(),
                    shard,
                    to_node,
                    message,
                ));
            }
        }
    }
}

/// Keeps a stream to one peer.
async fn feed_peer(
    drive: Drive,
    neighbourhood: Neighbourhood,
    to: NodeId,
    mut queue: mpsc::Receiver<Vec<PeerMessage>>,
) {
    let mut pause = FIRST_PAUSE;
    let mut said = HashSet::new();
    let mut tried = 0;
    let mut aborted = 0;
    let mut since = Instant::now();
    loop {
        let addresses = (neighbourhood.addresses_of)(to);
        let address = addresses.get(tried % addresses.len().max(1));
        let result = match address {
            Some(address) => {
                let state = (&mut pause, &mut aborted);
                let streaming = stream_to(&drive, &neighbourhood, (to, address), &mut queue, state);
                streaming.await.map_err(|why| format!("at {address}: {why}"))
            }
            None => Err("its address is not known".to_owned()),
        };
        neighbourhood.contacts.missed(to);
        // One that can't be heard is no voter that could take entries, but says nothing of room.
        drive.room().peer_is(to, false);
        match result {
            Ok(()) => return,
            // Said once, and again when it has been heard from meanwhile.
            Err(error) => {
                if pause == FIRST_PAUSE {
                    said.clear();
                    since = Instant::now();
                }
                // Where everything starts at once the first call may come too early.
                let lasts = since.elapsed() >= PATIENCE;
                if said.len() >= MOST_SAID || !said.insert((lasts, error.clone())) {
                    tracing::debug!(peer = to.0, error, "a peer can't be reached");
                } else if lasts {
                    tracing::warn!(peer = to.0, error, "a peer can't be reached");
                } else {
                    tracing::info!(peer = to.0, error, "a peer is not reachable yet");
                }
            }
        }
        drive.inform(Event::Internal(Input::PeerUnreachable(to)));
        // It may be elsewhere; after all of the addresses there is a pause.
        tried += 1;
        if tried.is_multiple_of(addresses.len().max(1)) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        // What waited is stale by now.
        while queue.try_recv().is_ok() {}
    }
}

async fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = transport::endpoint(address).map_err(|error| error.to_string())?;
    endpoint.connect().await.map_err(|error| error.to_string())
}

async fn stream_to(
    drive: &Drive,
    neighbourhood: &Neighbourhood,
    (to, address): (NodeId, &str),
    queue: &mut mpsc::Receiver<Vec<PeerMessage>>,
    (pause, aborted): (&mut Duration, &mut u32),
) -> Result<(), String> {
    let channel = connect(address).await?;
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX);
    let (frames, receiver) = mpsc::channel(4);
    let hello = neighbourhood.hello(drive, to);
    let first = proto::PeerFrame { frame: Some(peer_frame::Frame::Hello(hello)) };
    frames.send(first).await.map_err(|_| "closed")?;
    let exchange = client.exchange(Request::new(ReceiverStream::new(receiver)));
    let answer = tokio::time::timeout(HELLO, exchange)
        .await
        .map_err(|_| "it doesn't say hello back")?
        .map_err(|status| {
            // It may have heard meanwhile, by another way, what this process was to tell it here.
            *aborted = if status.code() == Code::Aborted { *aborted + 1 } else { 0 };
            if *aborted >= REFUSED_FOR_GOOD {
                (neighbourhood.refused)(status.message().to_owned());
            }
            status.message().to_owned()
        })?;
    let mut answers = answer.into_inner();
    let mut batches = Vec::new();
    let mut pings = tokio::time::interval(PING_EVERY);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pings.tick() => {
                let now_us = clock::boot_us();
                if neighbourhood.contacts.asks(to, now_us) {
                    let ping = proto::PeerFrame { frame: Some(peer_frame::Frame::Ping(now_us)) };
                    frames.send(ping).await.map_err(|_| "the stream has closed")?;
                }
                // Each peer knows how far this log is synced, also one that is told nothing else: it may be
                // asked whether a directory is the newest.
                let synced = frame(Vec::new(), drive.synced());
                frames.send(synced).await.map_err(|_| "the stream has closed")?;
            }
            // What piled up while the stream was busy shares a frame.
            count = queue.recv_many(&mut batches, BATCHES_PER_FRAME) => {
                if count == 0 {
                    return Ok(());
                }
                // What these messages promise is synced by now.
                for frame in frames_of(batches.drain(..).flatten(), drive.synced()) {
                    frames.send(frame).await.map_err(|_| "the stream has closed")?;
                }
            }
            heard = answers.message() => match heard {
                Ok(Some(proto::PeerFrame { frame: Some(peer_frame::Frame::Room(room)) })) => {
                    drive.room().peer_is(to, room.short);
                    peer_wary(drive, to, room.wary);
                }
                Ok(Some(proto::PeerFrame { frame: Some(peer_frame::Frame::Pong(asked_us)) })) => {
                    neighbourhood.contacts.answered(to, asked_us, clock::boot_us());
                }
                Ok(Some(frame)) => {
                    if let Some(peer_frame::Frame::Hello(hello)) = frame.frame {
                        neighbourhood.check_token(to, &hello.token)?;
                        neighbourhood.check_start(to, &hello, false).await?;
                    }
                    neighbourhood.contacts.reached(to, address);
                    // What it has said before a break may have changed; it says it anew.
                    peer_wary(drive, to, false);
                    tracing::info!(peer = to.0, address, "connected to a peer");
                    *pause = FIRST_PAUSE;
                }
                Ok(None) => return Err("the peer has closed the stream".to_owned()),
                Err(status) => return Err(status.message().to_owned()),
            },
        }
    }
}

/// Whether leadership is handed to a peer first or last.
fn peer_wary(drive: &Drive, node: NodeId, wary: bool) {
    drive.inform(Event::Internal(Input::PeerWary { node, wary }));
}

/// Frames for messages: as few as may be, none much larger than [`FRAME_BYTES`].
fn frames_of(messages: impl Iterator<Item = PeerMessage>, synced: u64) -> Vec<proto::PeerFrame> {
    let mut frames = Vec::with_capacity(1);
    let mut filling = Vec::new();
    let mut bytes = 0;
    for one in messages {
        let message = Bytes::from(message::encode(&one.message));
        if bytes > 0 && bytes + message.len() > FRAME_BYTES {
            frames.push(frame(std::mem::take(&mut filling), synced));
            bytes = 0;
        }
        bytes += message.len();
        filling.push(proto::PeerMessage { shard_id: one.shard.0, message });
    }
    frames.push(frame(filling, synced));
    frames
}

fn frame(messages: Vec<proto::PeerMessage>, synced: u64) -> proto::PeerFrame {
    proto::PeerFrame {
        frame: Some(peer_frame::Frame::Messages(proto::PeerMessages {
            messages,
            wall_ms: clock::wall_ms(),
            synced,
        })),
    }
}

async fn send_snapshot(
    drive: Drive,
    neighbourhood: Neighbourhood,
    shard: ShardId,
    to_node: NodeId,
    message: Message,
) {
    let to = ReplicaId(message.to);
    let writer = drive.shared().snapshots.lock().remove(&(shard, to));
    let result = match writer {
        Some(writer) => {
            stream_snapshot(&drive, &neighbourhood, shard, to_node, &message, writer).await
        }
        None => Err("it was not taken".to_owned()),
    };
    let delivered = result.is_ok();
    match result {
        Ok(()) => {
            drive.shared().metrics.snapshots_sent.inc();
            tracing::info!(shard = shard.0, to = to_node.0, "snapshot delivered");
        }
        Err(why) => tracing::warn!(shard = shard.0, to = to_node.0, why, "snapshot not delivered"),
    }
    drive.inform(Event::Internal(Input::SnapshotSent { shard, to, delivered }));
}

async fn stream_snapshot(
    drive: &Drive,
    neighbourhood: &Neighbourhood,
    shard: ShardId,
    to_node: NodeId,
    message: &Message,
    writer: SnapshotWriter,
) -> Result<(), String> {
    let likeliest = || (neighbourhood.addresses_of)(to_node).into_iter().next();
    let address = neighbourhood.contacts.address(to_node).or_else(likeliest);
    let channel = connect(&address.ok_or("its address is not known")?).await?;
    let mut client = PeerClient::new(channel);
    let (frames, receiver) = mpsc::channel(SNAPSHOT_QUEUE);
    let header = proto::SnapshotHeader {
        hello: Some(neighbourhood.hello(drive, to_node)),
        shard_id: shard.0,
        message: Bytes::from(message::encode(message)),
        descriptor: Some(descriptor_to(writer.descriptor())),
        last_version: writer.time().version.0,
        jumped_ms: writer.time().jumped_ms,
    };
    let first = proto::SnapshotFrame { frame: Some(snapshot_frame::Frame::Header(header)) };
    frames.send(first).await.map_err(|_| "closed")?;
    let shared = drive.shared().clone();
    let reading = tokio::task::spawn_blocking(move || {
        writer.write(|chunk| {
            // Here, where it is read, so that the disk is spared too.
            std::thread::sleep(shared.snapshot_pace.take(chunk.len(), Instant::now()));
            let frame = proto::SnapshotFrame { frame: Some(snapshot_frame::Frame::Chunk(chunk)) };
            frames.blocking_send(frame).is_ok()
        })
    });
    let reply = client
        .send_snapshot(Request::new(ReceiverStream::new(receiver)))
        .await
        .map_err(|status| status.message().to_owned())?
        .into_inner();
    reading.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    if reply.delivered { Ok(()) } else { Err(reply.reason) }
}

/// The receiving side.
pub struct PeerService {
    drive: Drive,
    neighbourhood: Neighbourhood,
}

impl PeerService {
    /// The service, to be added to a server.
    pub fn server(drive: Drive, neighbourhood: Neighbourhood) -> PeerServer<Self> {
        PeerServer::new(PeerService { drive, neighbourhood })
            .max_decoding_message_size(256 * 1024 * 1024)
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ExchangeStream = ReceiverStream<Result<proto::PeerFrame, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<proto::PeerFrame>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let mut frames = request.into_inner();
        let hello = match frames.message().await?.and_then(|first| first.frame) {
            Some(peer_frame::Frame::Hello(hello)) => Some(hello),
            _ => None,
        };
        let own = self.drive.node_id();
        let number = hello.as_ref().map_or(0, |hello| hello.start_number);
        let checking = self.neighbourhood.check(own, hello, true);
        let from_node = checking.await.map_err(|status| *status)?;
        let (answers, receiver) = mpsc::channel(1);
        let hello = self.neighbourhood.hello(&self.drive, from_node);
        let _ =
            answers.try_send(Ok(proto::PeerFrame { frame: Some(peer_frame::Frame::Hello(hello)) }));
        let open = self.neighbourhood.met.opens(from_node, number);
        tokio::spawn(hear(self.drive.clone(), from_node, open, frames, answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn send_snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotFrame>>,
    ) -> Result<Response<proto::SnapshotReply>, Status> {
        let mut frames = request.into_inner();
        let header = match frames.message().await?.and_then(|first| first.frame) {
            Some(snapshot_frame::Frame::Header(header)) => header,
            _ => return Err(Status::invalid_argument("the first frame must be a header")),
        };
        let own = self.drive.node_id();
        let hello = header.hello.clone();
        let checking = self.neighbourhood.check(own, hello, false);
        let from_node = checking.await.map_err(|status| *status)?;
        let reply = match receive_snapshot(&self.drive, from_node, header, frames).await {
            Ok(()) => proto::SnapshotReply { delivered: true, reason: String::new() },
            Err(reason) => proto::SnapshotReply { delivered: false, reason },
        };
        Ok(Response::new(reply))
    }
}

/// Reads a peer's stream to its end. Dropping `answers` tells the peer.
async fn hear(
    drive: Drive,
    from_node: NodeId,
    open: Open,
    mut frames: Streaming<proto::PeerFrame>,
    answers: mpsc::Sender<Result<proto::PeerFrame, Status>>,
) {
    let mut levels = drive.room().changes();
    let mut health = drive.log_health().changes();
    // Told at once what it is, unless it is what a peer takes for granted.
    if *levels.borrow() != Level::Ample || *health.borrow() {
        levels.mark_changed();
    }
    loop {
        let frame = tokio::select! {
            frame = frames.message() => frame,
            Ok(()) = async {
                tokio::select! {
                    changed = levels.changed() => changed,
                    changed = health.changed() => changed,
                }
            } => {
                let short = *levels.borrow_and_update() != Level::Ample;
                let wary = *health.borrow_and_update();
                let room = peer_frame::Frame::Room(proto::PeerRoom { short, wary });
                if answers.send(Ok(proto::PeerFrame { frame: Some(room) })).await.is_err() {
                    return;
                }
                continue;
            }
            () = answers.closed() => return,
        };
        let Ok(Some(proto::PeerFrame { frame: Some(frame) })) = frame else { return };
        let batch = match frame {
            peer_frame::Frame::Messages(batch) => batch,
            peer_frame::Frame::Ping(number) => {
                let pong = proto::PeerFrame { frame: Some(peer_frame::Frame::Pong(number)) };
                if answers.send(Ok(pong)).await.is_err() {
                    return;
                }
                continue;
            }
            _ => return,
        };
        let wall_ms = batch.wall_ms;
        // This process may have vouched for a newer start meanwhile.
        if !open.hears(batch.synced) {
            return;
        }
        if batch.messages.is_empty() {
            continue;
        }
        let Some(messages) = readable(batch) else {
            tracing::warn!(peer = from_node.0, "a peer sent a message that can't be decoded");
            return;
        };
        if drive.shared().peer_frames.fetch_add(1, Ordering::Relaxed) >= MAX_PEER_FRAMES {
            drive.shared().peer_frames.fetch_sub(1, Ordering::Relaxed);
            drive.shared().metrics.peer_messages_dropped.inc_by(messages.len() as u64);
            continue;
        }
        drive.inform(Event::FromPeer { from_node, wall_ms, messages });
    }
}

fn readable(batch: proto::PeerMessages) -> Option<Vec<PeerMessage>> {
    batch
        .messages
        .iter()
        .map(|one| {
            let message = message::decode(&one.message).ok()?;
            Some(PeerMessage { shard: ShardId(one.shard_id), message })
        })
        .collect()
}

async fn receive_snapshot(
    drive: &Drive,
    from_node: NodeId,
    header: proto::SnapshotHeader,
    frames: Streaming<proto::SnapshotFrame>,
) -> Result<(), String> {
    let shard = ShardId(header.shard_id);
    let message = message::decode(&header.message).map_err(|error| error.to_string())?;
    let descriptor = header.descriptor.ok_or("it names no descriptor")?;
    let descriptor = descriptor_from(descriptor).map_err(|error| error.to_string())?;
    let time = TimeMark { version: Version(header.last_version), jumped_ms: header.jumped_ms };
    let (reply, answer) = tokio::sync::oneshot::channel();
    drive.inform(Event::SnapshotOffered {
        from_node,
        shard,
        message: message.clone(),
        descriptor: descriptor.clone(),
        reply,
    });
    match answer.await {
        Ok(Ok(())) => {}
        Ok(Err(refusal)) => return Err(format!("the replica doesn't take it ({refusal:?})")),
        Err(_) => return Err("the receiver stops".to_owned()),
    }
    let volume = drive.fresh_volume();
    let receiver = ReplicaId(message.to);
    ingest(drive, volume, receiver, frames).await?;
    drive.shared().metrics.snapshots_received.inc();
    drive.inform(Event::Internal(Input::SnapshotIngested {
        from_node,
        shard,
        message,
        descriptor,
        time,
        volume,
    }));
    Ok(())
}

async fn ingest(
    drive: &Drive,
    volume: kvdb_model::VolumeId,
    receiver: ReplicaId,
    mut frames: Streaming<proto::SnapshotFrame>,
) -> Result<(), String> {
    let (chunks, mut queue) = mpsc::channel::<Bytes>(SNAPSHOT_QUEUE);
    let engine = drive.engine().clone();
    let writing = tokio::task::spawn_blocking(move || {
        let chunks = std::iter::from_fn(|| queue.blocking_recv());
        engine.ingest_volume(volume, &mut ChunkReader::new(chunks, receiver))
    });
    while let Some(Ok(frame)) = frames.next().await {
        let Some(snapshot_frame::Frame::Chunk(chunk)) = frame.frame else { break };
        if chunks.send(chunk).await.is_err() {
            break;
        }
    }
    // Without its end the reader refuses what came.
    drop(chunks);
    writing.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(bytes: usize) -> PeerMessage {
        let mut message = Message::default();
        message.set_context(vec![7; bytes].into());
        PeerMessage { shard: ShardId(3), message }
    }

    #[test]
    fn frames_stay_small_however_much_is_sent_at_once() {
        let sizes =
            [1, FRAME_BYTES - 100, 10, FRAME_BYTES / 2, FRAME_BYTES / 2, 5 * FRAME_BYTES, 3];
        let frames = frames_of(sizes.into_iter().map(sized), 0);
        let mut carried = 0;
        for frame in &frames {
            let Some(peer_frame::Frame::Messages(messages)) = &frame.frame else { panic!() };
            let bytes: usize = messages.messages.iter().map(|one| one.message.len()).sum();
            assert!(messages.messages.len() == 1 || bytes <= FRAME_BYTES, "{bytes}");
            carried += messages.messages.len();
        }
        assert_eq!(carried, sizes.len());
        assert_eq!(frames_of(std::iter::repeat_with(|| sized(10)).take(100), 0).len(), 1);
    }
}
