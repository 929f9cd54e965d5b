//! One request, through routing and retries, to its answer or its end.

use crate::admission::Admission;
use crate::ages::{Ages, Stamp, Stamping};
use crate::figures::KeyspaceFigures;
use crate::lanes::Lanes;
use crate::link::{Heard, Links};
use crate::metrics::Metrics;
use crate::watch::Watches;
use kvdb_model::{Keyspace, KeyspaceId, Limits, MapVersion, Refusal, ShardId};
use kvdb_router::{Failure, Next, RequestMachine, Route, Routes};
use kvdb_runtime::cluster_time::ClusterTime;
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::map::ClusterMap;
use kvdb_wire::proto;
use kvdb_wire::proto::node_answer::Answer;
use kvdb_wire::proto::node_operation::Operation as Asked;
use kvdb_wire::refusal_from_proto;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What all requests share.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) map: ClusterMap,
    pub(crate) links: Links,
    pub(crate) lanes: Lanes,
    pub(crate) ages: Ages,
    pub(crate) time: ClusterTime,
    pub(crate) limits: Limits,
    pub(crate) admission: Admission,
    pub(crate) metrics: Metrics,
    pub(crate) figures: KeyspaceFigures,
    pub(crate) coordinators: Coordinators,
    pub(crate) seeds: Arc<AtomicU64>,
    pub(crate) watches: Watches,
}

/// An answer that takes longer makes a request look out for another leader.
const USUAL_ANSWER: Duration = Duration::from_millis(20);
/// How long a node that has lost its leadership may take to say so, before it counts as silent.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// The code of [`Refusal::RequestIdExpired`].
const EXPIRED: &str = "REQUEST_ID_EXPIRED";

/// How long a request waits for word of a keyspace that isn't known here.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How a request is treated when its outcome is unknown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Read,
    /// A read that any replica may serve.
    ReplicaRead,
    /// A write that carries a request id.
    TaggedWrite,
}

/// What a request came to.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    /// Who gave it.
    pub(crate) route: Route,
    /// Shard time as it was answered, in milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// An earlier try of a write may have been carried out: a part of the answer that is a refusal
    /// doesn't settle that.
    pub(crate) is_unsure: bool,
}

/// From which end a request looks at its place in the key space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// The shard that holds this routing key.
    At(&'a [u8]),
    /// The shard that holds the keys just below.
    Before(&'a [u8]),
}

impl Gateway {
    pub(crate) fn routes(&self) -> Arc<Routes> {
        self.map.routes.load_full()
    }

    /// The keyspace of this name, as far as this gateway has heard.
    pub(crate) fn keyspace(&self, name: &str) -> Result<Keyspace, Refusal> {
        let routes = self.routes();
        match routes.keyspace(name) {
            Some(keyspace) => Ok(keyspace.clone()),
            None if routes.version() == MapVersion(0) => {
                let reason = "the gateway has no shard map from the coordinators yet";
                Err(Refusal::ShardUnavailable { shard_id: ShardId::CONTROL, reason })
            }
            None if !routes.has_shards() => Err(Refusal::NotInitialised),
            None => Err(Refusal::UnknownKeyspace { name: name.to_owned() }),
        }
    }

    /// The keyspace of this name, also when it was made a moment ago: before one is said not to
    /// exist, the coordinators must have said so.
    pub(crate) async fn current_keyspace(&self, name: &str) -> Result<Keyspace, Refusal> {
        self.current(|| self.keyspace(name)).await
    }

    /// The keyspace that is a database of Redis's protocol, whatever its name is by now.
    pub(crate) fn database(&self, db: u8) -> Result<Keyspace, Refusal> {
        self.keyspace(&self.routes().database_name(db))
    }

    /// The same, also when it was made a moment ago: as [`Gateway::current_keyspace`].
    pub(crate) async fn current_database(&self, db: u8) -> Result<Keyspace, Refusal> {
        self.current(|| self.database(db)).await
    }

    async fn current(
        &self,
        find: impl Fn() -> Result<Keyspace, Refusal>,
    ) -> Result<Keyspace, Refusal> {
        match find() {
            Err(Refusal::UnknownKeyspace { .. } | Refusal::NotInitialised) => {
                let is_current = self.map.refreshed(ASK_AGAIN).await;
                match find() {
                    Err(Refusal::UnknownKeyspace { .. } | Refusal::NotInitialised)
                        if !is_current =>
                    {
                        let reason =
                            "its keyspace isn't known here, and the coordinators can't be asked";
                        Err(Refusal::ShardUnavailable { shard_id: ShardId::CONTROL, reason })
                    }
                    found => found,
                }
            }
            known => known,
        }
    }

    /// That the keyspace of a place was dropped, if it was: nothing that waits for one of its shards
    /// will ever get there.
    pub(crate) fn dropped(&self, place: Place<'_>) -> Option<Refusal> {
        let (key, below) = match place {
            Place::At(key) => (key, 0),
            // The end of a keyspace is the beginning of the next.
            Place::Before(key) => (key, u32::from(key.len() == size_of::<u32>())),
        };
        let id = u32::from_be_bytes(*key.first_chunk()?).checked_sub(below)?;
        let routes = self.routes();
        let name = routes.dropped(KeyspaceId(id))?;
        Some(Refusal::UnknownKeyspace { name: name.to_owned() })
    }

    /// Where a place is now.
    pub(crate) fn find(
        &self,
        place: Place<'_>,
        avoid: Option<kvdb_model::NodeId>,
    ) -> Option<Route> {
        let routes = self.routes();
        match place {
            Place::At(key) => routes.route(key, avoid),
            Place::Before(key) => routes.route_before(key, avoid),
        }
    }

    /// Carries a request out by `deadline`. `build` makes the operation for the shard that it is
    /// routed to, and has its id stamped.
    pub(crate) async fn ask(
        &self,
        place: Place<'_>,
        nature: Nature,
        deadline: Instant,
        build: impl Fn(&Route, Stamping<'_>) -> Asked,
    ) -> Result<Answered, Refusal> {
        let started = Instant::now();
        let seed = self.seeds.fetch_add(1, Ordering::Relaxed);
        let deadline_ms = deadline.saturating_duration_since(started).as_millis() as u64;
        let is_write = nature == Nature::TaggedWrite;
        // Both kinds may be repeated: a read by its nature, a write under its id.
        let mut machine = RequestMachine::new(deadline_ms, is_write, true, seed);
        let mut avoid = None;
        let mut at = None;
        // The first try of a read that any replica may serve; whoever refuses points to the leader.
        let mut any = (nature == Nature::ReplicaRead).then(|| spread(seed));
        let mut stamp = Stamp::default();
        loop {
            let by_turns = any.take().and_then(|turn| self.find_any(place, turn));
            let route = match by_turns.or_else(|| self.routed(place, at.take(), avoid)) {
                Some(route) => route,
                None => {
                    if let Some(refusal) = self.dropped(place) {
                        return Err(refusal);
                    }
                    self.map.refresh();
                    let next = machine.failed(Failure::NotSent, None, None, elapsed_ms(started));
                    avoid = self.follow(next, &mut at).await?;
                    continue;
                }
            };
            let age_ms = || self.age_of(route.shard_id);
            let asked = build(&route, Stamping { stamp: &mut stamp, age_ms: &age_ms });
            let asked = self.links.ask(&route.address, seed as usize, asked);
            let asked = self.until_another_leads(place, &route, asked);
            let result = match tokio::time::timeout_at(deadline.into(), asked).await {
                Ok(result) => result,
                Err(_) => return Err(machine.timed_out(true)),
            };
            let result = match result {
                Ok(heard) => {
                    let refusal = expired_as_a_whole(&heard.answer).filter(|_| stamp.is_on());
                    refusal.map_or(Ok(heard), |refusal| Err(Failure::Refused(refusal)))
                }
                Err(failure) => Err(failure),
            };
            let failure = match result {
                Ok(Heard { answer, times }) => {
                    self.metrics.seconds.observe(started.elapsed().as_secs_f64());
                    self.ages.hear(route.shard_id, times, Instant::now());
                    let now_ms = if times.time_ms > 0 { times.time_ms } else { self.now_ms() };
                    let is_unsure = machine.is_unknown();
                    return Ok(Answered { answer, route, now_ms, is_unsure });
                }
                Err(failure) => failure,
            };
            if let Some(refusal) = self.dropped(place) {
                return Err(refusal);
            }
            self.metrics.retry(cause_of(&failure));
            if let Failure::Refused(Refusal::RequestIdExpired { shard, .. }) = &failure
                && !machine.is_unknown()
                && stamp.was_wrong(*shard)
            {
                self.ages.hear(route.shard_id, *shard, Instant::now());
                // The next refusal of this kind is by what this one has told: it ends the request.
                if Instant::now() < deadline {
                    continue;
                }
            }
            let hint = self.learn(&failure, &route);
            let now_ms = elapsed_ms(started);
            let next = machine.failed(failure, Some(route.node), hint, now_ms);
            avoid = self.follow(next, &mut at).await?;
        }
    }

    /// Waits for the answer of the node that a request was sent to, until the map says that another
    /// one leads now. A node that is paused or cut off can't say so itself.
    async fn until_another_leads(
        &self,
        place: Place<'_>,
        route: &Route,
        asked: impl Future<Output = Result<Heard, Failure>>,
    ) -> Result<Heard, Failure> {
        // Not always the node that was asked: that may have been a hint, or the second choice.
        let led = self.find(place, None).map(|route| route.node);
        let mut asked = std::pin::pin!(asked);
        if let Ok(answer) = tokio::time::timeout(USUAL_ANSWER, &mut asked).await {
            return answer;
        }
        let mut changes = self.map.changes();
        loop {
            if self.dropped(place).is_some() {
                return Err(Failure::NoAnswer);
            }
            let now = self.find(place, None).map(|route| route.node);
            if now != led && now.is_some_and(|node| node != route.node) {
                let last_words = tokio::time::timeout(LAST_WORDS, &mut asked).await;
                return last_words.unwrap_or(Err(Failure::NoAnswer));
            }
            tokio::select! {
                answer = &mut asked => return answer,
                // The map, and with it the sender, lives as long as the gateway.
                _ = changes.changed() => {}
            }
        }
    }

    /// Cluster time in milliseconds since 1970, or this machine's own while that isn't known.
    pub(crate) fn now_ms(&self) -> u64 {
        self.time.now_or_wall_ms()
    }

    /// How old a shard is now, as far as it has said; cluster time is the guess otherwise.
    fn age_of(&self, shard: ShardId) -> u64 {
        let heard = self.ages.of(shard, Instant::now());
        heard.map_or_else(|| self.now_ms(), |times| times.age_ms)
    }

    fn find_any(&self, place: Place<'_>, turn: u64) -> Option<Route> {
        match place {
            Place::At(key) => self.routes().route_to_any(key, turn),
            Place::Before(_) => None,
        }
    }

    fn routed(
        &self,
        place: Place<'_>,
        at: Option<kvdb_model::NodeId>,
        avoid: Option<kvdb_model::NodeId>,
    ) -> Option<Route> {
        let route = self.find(place, avoid)?;
        match at {
            Some(node) => {
                let address = self.routes().address(node)?.clone();
                Some(Route { node, address, ..route })
            }
            None => Some(route),
        }
    }

    /// What a failure teaches: descriptors, and the registered node that it points to.
    pub(crate) fn learn(&self, failure: &Failure, route: &Route) -> Option<kvdb_model::NodeId> {
        let Failure::Refused(refusal) = failure else {
            self.map.refresh();
            return None;
        };
        match refusal {
            Refusal::NotLeader { leader_hint, .. } => {
                // Only an address that the cluster knows is followed.
                let hint = leader_hint.as_deref().and_then(|hint| self.routes().node_at(hint));
                match hint {
                    Some(node) => self.map.learn_leader(route.shard_id, node),
                    None => self.map.refresh(),
                }
                hint
            }
            Refusal::ShardMoved { .. } | Refusal::StaleEpoch { .. } => {
                self.learn_from(refusal);
                None
            }
            _ => None,
        }
    }

    /// What a refusal teaches of who owns which range.
    pub(crate) fn learn_from(&self, refusal: &Refusal) {
        if let Refusal::ShardMoved { descriptors, .. } | Refusal::StaleEpoch { descriptors, .. } =
            refusal
        {
            self.map.learn(descriptors);
            self.map.refresh();
        }
    }

    pub(crate) async fn follow(
        &self,
        next: Next,
        at: &mut Option<kvdb_model::NodeId>,
    ) -> Result<Option<kvdb_model::NodeId>, Refusal> {
        match next {
            Next::TryAt(node) => {
                *at = Some(node);
                Ok(None)
            }
            Next::TryAgain { after_ms, refresh, avoid } => {
                if refresh {
                    self.map.refresh();
                }
                // A change of the map is worth trying at once.
                let mut changes = self.map.changes();
                changes.mark_unchanged();
                let pause = Duration::from_millis(after_ms);
                let changed = tokio::time::timeout(pause, changes.changed()).await.is_ok();
                // Whom to avoid was learnt before: it may be the new leader by now.
                Ok(avoid.filter(|_| !changed))
            }
            Next::Fail(refusal) => Err(refusal),
        }
    }
}

/// Why a write was refused, if that is because of its id: then no part of it was carried out.
fn expired_as_a_whole(answer: &Answer) -> Option<Refusal> {
    let Answer::Execute(batch) = answer else { return None };
    let code = |result: &proto::OperationResult| {
        result.refusal.as_ref().is_some_and(|refusal| refusal.code == EXPIRED)
    };
    let first = batch.results.first()?.refusal.clone()?;
    batch.results.iter().all(code).then(|| refusal_from_proto(first))
}

/// Takes the regularity out of numbers that count requests (Fibonacci hashing, Knuth, volume 3,
/// section 6.4).
fn spread(count: u64) -> u64 {
    count.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

fn elapsed_ms(started: Instant) -> u64 {
    started.elapsed().as_millis() as u64
}

fn cause_of(failure: &Failure) -> &'static str {
    match failure {
        Failure::Refused(refusal) => refusal.code(),
        Failure::NotSent => "NOT_SENT",
        Failure::NoAnswer => "NO_ANSWER",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{RetryClass, ShardMap};
    use prometheus_client::registry::Registry;

    fn gateway() -> Gateway {
        Gateway {
            map: ClusterMap::default(),
            links: Links::default(),
            lanes: Lanes::new(1),
            ages: Ages::default(),
            time: ClusterTime::default(),
            watches: Watches::default(),
            limits: Limits::default(),
            admission: Admission::new(1, 1),
            metrics: Metrics::new(&mut Registry::default()),
            figures: KeyspaceFigures::new(&mut Registry::default()),
            coordinators: Coordinators::new(vec!["127.0.0.1:1".to_owned()]),
            seeds: Arc::default(),
        }
    }

    #[test]
    fn a_gateway_without_a_map_is_worth_another_try_and_a_cluster_without_shards_is_not() {
        let gateway = gateway();
        assert_eq!(gateway.keyspace("").unwrap_err().class(), RetryClass::RetryHere);
        gateway.map.snapshot(ShardMap { version: MapVersion(3), ..ShardMap::default() });
        assert_eq!(gateway.keyspace("").unwrap_err(), Refusal::NotInitialised);
    }

    #[test]
    fn a_batch_has_expired_only_if_all_of_it_has() {
        let result = |code: &str| proto::OperationResult {
            refusal: (!code.is_empty())
                .then(|| proto::Refusal { code: code.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let answer = |codes: &[&str]| {
            let results = codes.iter().map(|code| result(code)).collect();
            Answer::Execute(proto::NodeExecuteResponse { results, ..Default::default() })
        };
        let refusal = expired_as_a_whole(&answer(&[EXPIRED, EXPIRED]));
        assert_eq!(refusal.map(|refusal| refusal.code()), Some(EXPIRED));
        for others in [&["", EXPIRED][..], &[EXPIRED, "WRONG_VALUE"], &[""], &[]] {
            assert_eq!(expired_as_a_whole(&answer(others)), None, "{others:?}");
        }
    }

    #[tokio::test]
    async fn a_keyspace_of_which_nobody_could_be_asked_is_worth_another_try() {
        let gateway = gateway();
        gateway.map.snapshot(ShardMap { version: MapVersion(3), ..ShardMap::default() });
        // Nothing follows the coordinators here.
        let refused = gateway.current_keyspace("new").await.unwrap_err();
        assert_eq!(refused.class(), RetryClass::RetryHere, "{refused}");
    }

    #[tokio::test]
    async fn a_changed_map_ends_a_pause_and_clears_whom_to_avoid() {
        let gateway = gateway();
        let avoid = Some(kvdb_model::NodeId(1));
        let next = |after_ms| Next::TryAgain { after_ms, refresh: false, avoid };
        assert_eq!(gateway.follow(next(1), &mut None).await, Ok(avoid));
        let map = gateway.map.clone();
        let changing = async move {
            tokio::task::yield_now().await;
            map.snapshot(ShardMap { version: MapVersion(3), ..ShardMap::default() });
        };
        let mut at = None;
        let (avoided, ()) = tokio::join!(gateway.follow(next(60_000), &mut at), changing);
        assert_eq!(avoided, Ok(None));
    }
}
