//! The shard map as this process knows it: watched, and polled while the watch is down.

use crate::coordinators::Coordinators;
use crate::dial;
use crate::generations::{self, Generations};
use crate::shutdown::Shutdown;
use arc_swap::ArcSwap;
use kvdb_model::{Generation, MapVersion, NodeId, ShardDescriptor, ShardId, ShardMap};
use kvdb_router::{MapCache, Routes};
use kvdb_wire::{map_delta_from, proto, refusal_from_status, shard_map_from};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::{Request, Status};

/// Pause after a watch has ended, before the map is polled and watched again.
const PAUSE: Duration = Duration::from_millis(100);

/// After so many tries in a row at which no coordinator was there, a node is asked for them.
const FAILURES_BEFORE_ASKING: u32 = 6;

/// Between two polls at least, however many ask.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// Before that nobody is warned that a coordinator can't be reached: where everything starts at
/// once the first call may come too early.
const PATIENCE: Duration = Duration::from_secs(3);

/// What keeps a process from following the map, said once, and once more as a warning if it lasts.
struct Complaint {
    since: Instant,
    said: std::collections::BTreeMap<String, (bool, String)>,
}

impl Complaint {
    fn new() -> Self {
        Complaint { since: Instant::now(), said: Default::default() }
    }

    fn about(&mut self, address: &str, why: &str) {
        if self.said.is_empty() {
            self.since = Instant::now();
        }
        let lasts = self.since.elapsed() >= PATIENCE;
        let now = (lasts, why.to_owned());
        if self.said.get(address) != Some(&now) {
            match lasts {
                true => {
                    tracing::warn!(coordinator = address, why, "a coordinator can't be reached")
                }
                false => {
                    tracing::info!(coordinator = address, why, "a coordinator is not reachable yet")
                }
            }
            self.said.insert(address.to_owned(), now);
        }
    }

    fn is_settled(&mut self) {
        if !self.said.is_empty() {
            tracing::info!("connected to the coordinators again");
            self.said.clear();
        }
    }
}

/// The map, shared.
#[derive(Clone)]
pub struct ClusterMap {
    /// As known, with what refusals have taught.
    pub cache: Arc<Mutex<MapCache>>,
    /// For requests: replaced with each change, read without a lock.
    pub routes: Arc<ArcSwap<Routes>>,
    /// Which coordinators are listened to.
    pub generations: Generations,
    changed: Arc<watch::Sender<u64>>,
    wanted: Arc<Notify>,
    polls: Arc<watch::Sender<Polls>>,
    /// How often nodes were asked where the coordinators are.
    asked: Arc<AtomicUsize>,
}

/// Polls that this process has sent, and those that were answered or have failed.
#[derive(Clone, Copy, Default)]
struct Polls {
    begun: u64,
    answered: u64,
}

impl Default for ClusterMap {
    fn default() -> Self {
        ClusterMap {
            cache: Arc::default(),
            routes: Arc::default(),
            generations: Generations::default(),
            changed: Arc::new(watch::Sender::new(0)),
            wanted: Arc::new(Notify::new()),
            polls: Arc::default(),
            asked: Arc::default(),
        }
    }
}

impl ClusterMap {
    /// Of a process that has met coordinators before.
    pub fn with(generations: Generations) -> Self {
        ClusterMap { generations, ..ClusterMap::default() }
    }

    /// Whether coordinators of a generation are listened to: a newer one is kept first.
    ///
    /// # Errors
    /// Why not.
    pub async fn meet(&self, theirs: Generation) -> Result<(), String> {
        self.generations.meet(theirs, || self.cache.lock().map().clone()).await
    }

    /// Changes with each change of the routes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes the cache, and the routes with it if `change` says so.
    fn update(&self, change: impl FnOnce(&mut MapCache) -> bool) {
        let mut cache = self.cache.lock();
        if change(&mut cache) {
            self.routes.store(Arc::new(cache.routes()));
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// A whole map came.
    pub fn snapshot(&self, map: ShardMap) {
        self.update(|cache| {
            cache.snapshot(map);
            true
        });
    }

    /// Descriptors came with a refusal.
    pub fn learn(&self, descriptors: &[ShardDescriptor]) {
        self.update(|cache| cache.learn(descriptors));
    }

    /// A node has proved to lead a shard.
    pub fn learn_leader(&self, shard: ShardId, leader: NodeId) {
        self.update(|cache| cache.learn_leader(shard, Some(leader)));
    }

    /// Asks for a fresh map, throttled: requests in the same moment share one.
    pub fn refresh(&self) {
        self.wanted.notify_one();
    }

    /// Waits until the coordinators have answered, from now on, what is new; or for so long at most.
    /// Whether they have.
    pub async fn refreshed(&self, patience: Duration) -> bool {
        let mut polls = self.polls.subscribe();
        let begun = polls.borrow_and_update().begun;
        self.refresh();
        // The sender lives as long as this map.
        tokio::time::timeout(patience, polls.wait_for(|now| now.answered > begun)).await.is_ok()
    }

    fn version(&self) -> MapVersion {
        self.cache.lock().version()
    }

    /// Follows the map until it is time to stop.
    pub async fn follow(self, coordinators: Coordinators, shutdown: Shutdown) {
        let mut complaint = Complaint::new();
        let mut failures = 0;
        loop {
            let followed = tokio::select! {
                followed = self.follow_once(&coordinators, &mut complaint) => followed,
                () = shutdown.wait() => return,
            };
            failures = if followed { 0 } else { failures + 1 };
            // They may all be elsewhere. Nodes hear of it: the coordinators look for them.
            if failures >= FAILURES_BEFORE_ASKING {
                failures = 0;
                self.ask_a_node(&coordinators).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks one node of the map where the coordinators are; another one the next time.
    async fn ask_a_node(&self, coordinators: &Coordinators) {
        let (cluster_id, addresses) = {
            let cache = self.cache.lock();
            let nodes = cache.map().nodes.values().map(|node| node.address.clone());
            let known: Vec<String> = nodes.filter(|address| !address.is_empty()).collect();
            (cache.map().cluster_id, known)
        };
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        let Some(place) = turn.checked_rem(addresses.len()) else { return };
        if let Ok(found) =
            dial::identify(&addresses[place], cluster_id, &[], Default::default()).await
            && found.cluster_id == cluster_id
            && generations::check(self.generations.newest(), found.about.generation).is_ok()
            && !found.coordinators.is_empty()
        {
            coordinators.learn(found.coordinators);
        }
    }

    /// Whether a coordinator was there to follow.
    async fn follow_once(&self, coordinators: &Coordinators, complaint: &mut Complaint) -> bool {
        let Ok((address, mut client)) = coordinators.client() else { return false };
        let from_version = self.version().0;
        let request = Request::new(proto::WatchShardMapRequest { from_version });
        let mut updates = match client.watch_shard_map(request).await {
            Ok(updates) => updates.into_inner(),
            Err(status) => {
                // A hint at the leader is no reason to complain.
                let is_there = refusal_from_status(&status).is_some();
                if !is_there {
                    complaint.about(&address, status.message());
                }
                coordinators.failed(&address, &status);
                return is_there;
            }
        };
        complaint.is_settled();
        let mut not_before = Instant::now();
        loop {
            let wanted = async {
                tokio::time::sleep_until(not_before).await;
                self.wanted.notified().await;
            };
            tokio::select! {
                update = updates.message() => match update {
                    Ok(Some(mut update)) => {
                        let told = std::mem::take(&mut update.coordinators);
                        if let Err(why) = self.fold(update).await {
                            if let Some(why) = why {
                                complaint.about(&address, &why);
                                coordinators.failed(&address, &Status::unavailable(why));
                                return false;
                            }
                            return true;
                        }
                        if !told.is_empty() {
                            coordinators.learn(told);
                        }
                    }
                    Ok(None) => return true,
                    Err(status) => {
                        coordinators.failed(&address, &status);
                        return true;
                    }
                },
                () = wanted => {
                    if let Err(status) = self.poll(coordinators).await {
                        tracing::debug!(error = status.message(), "the map can't be refreshed");
                    }
                    not_before = Instant::now() + POLL_PAUSE;
                }
            }
        }
    }

    async fn poll(&self, coordinators: &Coordinators) -> Result<(), Status> {
        self.polls.send_modify(|polls| polls.begun += 1);
        let polled = self.try_poll(coordinators).await;
        if polled.is_ok() {
            self.polls.send_modify(|polls| polls.answered = polls.begun);
        } else if self.polls.receiver_count() > 0 {
            // Somebody waits for an answer.
            self.refresh();
        }
        polled
    }

    async fn try_poll(&self, coordinators: &Coordinators) -> Result<(), Status> {
        let if_newer_than = self.version().0;
        let answer = coordinators
            .call(async |mut client| {
                client
                    .get_shard_map(Request::new(proto::GetShardMapRequest { if_newer_than }))
                    .await
            })
            .await?
            .into_inner();
        if let Some(map) = answer.map.and_then(|map| shard_map_from(map).ok()) {
            self.take(map).await.map_err(Status::unavailable)?;
        }
        Ok(())
    }

    /// Takes a whole map, unless it is that of another cluster (an address may have found another
    /// holder) or of coordinators that were left behind.
    async fn take(&self, map: ShardMap) -> Result<(), String> {
        let (ours, theirs) = (self.cache.lock().map().cluster_id, map.cluster_id);
        if ours.is_known() && theirs.is_known() && ours != theirs {
            return Err(format!("it belongs to cluster {theirs}; this process to {ours}"));
        }
        self.meet(map.generation).await?;
        self.snapshot(map);
        Ok(())
    }

    /// Whether the watch can go on; why this coordinator isn't the one to ask, if it isn't.
    async fn fold(&self, update: proto::ShardMapUpdate) -> Result<(), Option<String>> {
        use proto::shard_map_update::Update;
        match update.update {
            Some(Update::Snapshot(map)) => {
                let map = shard_map_from(map).map_err(|_| None)?;
                self.take(map).await.map_err(Some)?;
            }
            Some(Update::Delta(delta)) => {
                let delta = map_delta_from(delta).map_err(|_| None)?;
                let mut followed = true;
                self.update(|cache| {
                    followed = cache.delta(&delta).is_ok();
                    followed
                });
                if !followed {
                    return Err(None);
                }
            }
            None => {}
        }
        Ok(())
    }
}
