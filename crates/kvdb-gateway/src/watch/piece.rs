//! One piece of a watch: asks the leader of its shard, and goes after it when it changes.

use super::{Watched, cut_by_shards, inside};
use crate::route::Place;
use bytes::Bytes;
use kvdb_model::{NodeId, Refusal, RetryClass, Version};
use kvdb_router::{Failure, Route};
use kvdb_wire::proto::node_client::NodeClient;
use kvdb_wire::{proto, refusal_from_status, transport};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::Request;

/// How long a node waits for a change before it says that there is none.
const WAIT: Duration = Duration::from_secs(2);
/// How much longer its answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How long a watch may take to stand.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A range of routing keys, and what has been told of it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) start: Bytes,
    pub(super) end: Bytes,
    /// Changes after this version; `None` for those from now on.
    pub(super) after: Option<Version>,
}

impl Piece {
    /// Both sides of a place inside.
    pub(super) fn cut(self, at: Bytes) -> (Piece, Piece) {
        let first = Piece { end: at.clone(), ..self.clone() };
        (first, Piece { start: at, ..self })
    }
}

/// What a piece has to say.
pub(super) enum News {
    /// Changes, or that there are none up to a version. Those up to `gap` can't be told.
    Told { events: Vec<proto::WatchEvent>, version: Version, gap: Option<Version> },
    /// It lies on two shards: this piece has ended, and two begin.
    Cut { at: Bytes },
    /// The watch can't go on.
    Over(Refusal),
}

/// One try after the other, with pauses that grow while nothing works.
struct Tries {
    pause: Duration,
    avoid: Option<NodeId>,
}

impl Tries {
    fn new() -> Self {
        Tries { pause: FIRST_PAUSE, avoid: None }
    }

    /// Learns from a failure and waits; an error if there is no hope.
    async fn failed(
        &mut self,
        watched: &Watched,
        failure: Failure,
        route: Option<&Route>,
    ) -> Result<(), Refusal> {
        let gateway = &watched.gateway;
        self.avoid = None;
        let mut changes = gateway.map.changes();
        changes.mark_unchanged();
        match (&failure, route) {
            (Failure::Refused(refusal), _) if refusal.class() == RetryClass::Final => {
                return Err(refusal.clone());
            }
            (_, Some(route)) => {
                let hint = gateway.learn(&failure, route);
                let is_moved = matches!(
                    failure,
                    Failure::Refused(Refusal::StaleEpoch { .. } | Refusal::ShardMoved { .. })
                );
                if hint.is_none() && !is_moved {
                    self.avoid = Some(route.node);
                }
            }
            (_, None) => gateway.map.refresh(),
        }
        if gateway.routes().has_shards()
            && gateway.routes().keyspace(&watched.keyspace.name) != Some(&watched.keyspace)
        {
            return Err(Refusal::UnknownKeyspace { name: watched.keyspace.name.clone() });
        }
        // A change of the map is worth trying at once.
        let _ = tokio::time::timeout(self.pause, changes.changed()).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// Finds out from which version on a piece is told; it may turn out to be several.
pub(super) async fn begin(
    watched: Arc<Watched>,
    piece: Piece,
) -> Result<Vec<(Bytes, Bytes, Version)>, Refusal> {
    let deadline = Instant::now() + BEGIN_WITHIN;
    let mut begun = Vec::new();
    let mut open = vec![piece];
    let mut tries = Tries::new();
    while let Some(piece) = open.pop() {
        if let Some(after) = piece.after {
            begun.push((piece.start, piece.end, after));
            continue;
        }
        let mut cut = cut_by_shards(&watched, piece);
        let piece = cut.swap_remove(0);
        open.extend(cut);
        let route = watched.gateway.find(Place::At(&piece.start), tries.avoid);
        let failure = match &route {
            Some(route) => match ask(&watched, route, &piece, true, 1).await {
                Ok(answer) => {
                    begun.push((piece.start, piece.end, Version(answer.version)));
                    tries = Tries::new();
                    continue;
                }
                Err(failure) => failure,
            },
            None => Failure::NotSent,
        };
        if Instant::now() >= deadline {
            return Err(Refusal::DeadlineExceeded);
        }
        tries.failed(&watched, failure, route.as_ref()).await?;
        open.push(piece);
    }
    Ok(begun)
}

/// Tells the news of a piece until nobody listens, or it is cut.
pub(super) async fn follow(
    watched: Arc<Watched>,
    mut piece: Piece,
    told: Version,
    max_bytes: usize,
    news: mpsc::Sender<(Bytes, News)>,
) {
    let mut told = told;
    let mut tries = Tries::new();
    let start = piece.start.clone();
    loop {
        piece.after = Some(told);
        let route = watched.gateway.find(Place::At(&piece.start), tries.avoid);
        if let Some(at) = route.as_ref().and_then(|route| inside(&piece, &route.range.end)) {
            let _ = news.send((start, News::Cut { at })).await;
            return;
        }
        let asked = async {
            match &route {
                Some(route) => ask_while_it_leads(&watched, route, &piece, max_bytes).await,
                None => Err(Failure::NotSent),
            }
        };
        let result = tokio::select! {
            result = asked => result,
            () = news.closed() => return,
        };
        let said = match result {
            Ok(None) => continue,
            Ok(Some(answer)) => {
                tries = Tries::new();
                told = told.max(Version(answer.version));
                let gap = Some(Version(answer.gap_up_to_version)).filter(|gap| gap.0 != 0);
                let events = answer.events;
                let gap = gap.map(|gap| gap.min(told));
                news.send((start.clone(), News::Told { events, version: told, gap })).await
            }
            Err(failure) => match tries.failed(&watched, failure, route.as_ref()).await {
                Ok(()) => Ok(()),
                Err(refusal) => {
                    let _ = news.send((start, News::Over(refusal))).await;
                    return;
                }
            },
        };
        if said.is_err() {
            return;
        }
    }
}

/// Asks a node, and gives up when the map says that another one leads: the question can be asked
/// there just as well. `None` then.
async fn ask_while_it_leads(
    watched: &Watched,
    route: &Route,
    piece: &Piece,
    max_bytes: usize,
) -> Result<Option<proto::NodeWatchResponse>, Failure> {
    let mut changes = watched.gateway.map.changes();
    let asked = ask(watched, route, piece, false, max_bytes);
    tokio::pin!(asked);
    loop {
        tokio::select! {
            answer = &mut asked => return answer.map(Some),
            changed = changes.changed() => {
                let now = watched.gateway.find(Place::At(&piece.start), None);
                let is_same = now.as_ref().is_some_and(|now| {
                    now.node == route.node && now.shard_id == route.shard_id
                });
                if changed.is_ok() && !is_same && now.is_some() {
                    return Ok(None);
                }
            }
        }
    }
}

async fn ask(
    watched: &Watched,
    route: &Route,
    piece: &Piece,
    from_now: bool,
    max_bytes: usize,
) -> Result<proto::NodeWatchResponse, Failure> {
    let turn = BuildHasherDefault::<DefaultHasher>::default().hash_one(&piece.start) as usize;
    let channel = watched.gateway.watches.channel(&route.address, turn);
    let mut client = NodeClient::new(channel.ok_or(Failure::NotSent)?)
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES);
    let request = proto::NodeWatchRequest {
        shard_id: route.shard_id.0,
        epoch: route.epoch.0,
        start: piece.start.clone(),
        end: piece.end.clone(),
        user_prefix: watched.user_prefix.clone(),
        after_version: piece.after.unwrap_or_default().0,
        wait_ms: WAIT.as_millis() as u64,
        max_bytes: max_bytes as u64,
        from_now,
    };
    let answer = client.watch(Request::new(request));
    match tokio::time::timeout(WAIT + ANSWER_WITHIN, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => match refusal_from_status(&status) {
            Some(refusal) => Err(Failure::Refused(refusal)),
            None => Err(Failure::NoAnswer),
        },
        Err(_) => Err(Failure::NoAnswer),
    }
}
