//! In touch with the coordinators: registration, heartbeats, and what the map asks of this node.

use crate::mute;
use crate::recoveries::Recoveries;
use crate::reports::Reports;
use crate::run::{NodeConfig, NodeError};
use crate::sizes::Sizes;
use crate::tasks::{self, Impossible};
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use kvdb_model::{ClusterId, Generation, NodeId, ReplicaId, ShardDescriptor, ShardId};
use kvdb_replication::Input;
use kvdb_router::Routes;
use kvdb_runtime::clock;
use kvdb_runtime::cluster_time::ClusterTime;
use kvdb_runtime::contacts::Contacts;
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::dial;
use kvdb_runtime::drive::{Drive, Level};
use kvdb_runtime::generations::Generations;
use kvdb_runtime::http::Readiness;
use kvdb_runtime::identity::{DataDirectory, Identity, Role};
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::{Copy, Start};
use kvdb_wire::{
    HIGHEST_SYNCED, cluster_id_from, cluster_id_to, descriptor_to, generation_from, generation_to,
    proto, refusal_from_status, shard_map_from, shard_map_to, shard_task_from, transport,
};
use parking_lot::Mutex;
use prost::Message as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Status};

const HEARTBEAT: Duration = Duration::from_millis(500);
/// While a shard that is led here is being changed.
const HEARTBEAT_AT_WORK: Duration = Duration::from_millis(50);
const REGISTER_AGAIN: Duration = Duration::from_millis(200);
/// Before that nobody is warned that no coordinator can be reached.
const PATIENCE: Duration = Duration::from_secs(3);
/// Until what was refused under overload is submitted once more.
const TAKE_AGAIN: Duration = Duration::from_millis(100);
/// Threads that create replicas of new shards.
const CREATORS: usize = 4;
/// So many new shards are made one after the other, before the next ones are begun.
const SHARDS_AT_A_TIME: u64 = 16;
/// Where the coordinators are, as they have told.
const COORDINATORS_FILE: &str = "coordinators.txt";
const MOST_COORDINATORS: usize = 64;
/// Between two looks at what they have told.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Nodes that are dialled because the coordinators can't reach them.
const MOST_DIALLED: usize = 64;
/// The map as last seen, so that a node finds its peers while no coordinator can be reached.
const MAP_FILE: &str = "shard-map.bin";

/// What a node is for the coordinators.
pub(crate) struct Registered {
    pub(crate) cluster_id: ClusterId,
    pub(crate) node_id: NodeId,
    /// The last older copy of its directory that was accepted.
    pub(crate) copy: Copy,
}

/// Registers until it works or is refused for good.
pub(crate) async fn register(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    readiness: &Readiness,
    map: &ClusterMap,
    start: &proto::NodeStart,
) -> Result<Registered, Status> {
    let mut said = (false, String::new());
    let begun = Instant::now();
    loop {
        match try_register(config, known, coordinators, map, start).await {
            Ok(registered) => return Ok(registered),
            Err(status) if status.code() == Code::InvalidArgument => return Err(status),
            Err(status) => {
                let error = status.message();
                // A refusal that passes comes from one that is there: it takes a moment, no more. So
                // may the first call, where everything starts at once.
                let kept_out = status.code() == Code::FailedPrecondition;
                let begins = begun.elapsed() < PATIENCE;
                let waits = begins || refusal_from_status(&status).is_some() && !kept_out;
                if said != (waits, error.to_owned()) {
                    readiness.wait_for("registration", error);
                    if waits {
                        tracing::info!(error, "waiting for the coordinators");
                    } else if kept_out {
                        tracing::warn!(error, "the coordinators don't accept this node yet");
                    } else {
                        tracing::warn!(error, "no coordinator can be reached");
                    }
                    said = (waits, error.to_owned());
                }
                tokio::time::sleep(REGISTER_AGAIN).await;
            }
        }
    }
}

/// Whether the coordinators would accept a start; returns whether as one on an older copy.
pub(crate) async fn ask_whether(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    map: &ClusterMap,
    start: &proto::NodeStart,
) -> Result<bool, Status> {
    let answer = send_registration(config, known, coordinators, map, start, true).await?;
    Ok(answer.as_copy)
}

/// Coordinators that were left behind aren't listened to.
async fn send_registration(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    map: &ClusterMap,
    start: &proto::NodeStart,
    only_asks: bool,
) -> Result<proto::RegisterNodeResponse, Status> {
    coordinators
        .call(async |mut client| {
            let request = registration(config, known, map.generations.newest(), start, only_asks);
            let answer = client.register_node(Request::new(request)).await?.into_inner();
            hear_generation(map, answer.generation.clone()).await?;
            Ok(answer)
        })
        .await
}

async fn hear_generation(
    map: &ClusterMap,
    generation: Option<proto::Generation>,
) -> Result<(), Status> {
    let theirs =
        generation_from(generation).map_err(|error| Status::unavailable(error.to_string()))?;
    map.meet(theirs).await.map_err(Status::unavailable)?;
    map.generations.is_heard();
    Ok(())
}

fn registration(
    config: &NodeConfig,
    known: Identity,
    generation: Generation,
    start: &proto::NodeStart,
    only_asks: bool,
) -> proto::RegisterNodeRequest {
    proto::RegisterNodeRequest {
        token: bytes::Bytes::copy_from_slice(&known.token.to_be_bytes()),
        address: config.advertised().to_owned(),
        zone: config.zone.clone(),
        node_id: known.node_id.0,
        cluster_id: cluster_id_to(known.cluster_id),
        start: Some(start.clone()),
        only_asks,
        generation: generation_to(generation),
    }
}

pub(crate) async fn try_register(
    config: &NodeConfig,
    known: Identity,
    coordinators: &Coordinators,
    map: &ClusterMap,
    start: &proto::NodeStart,
) -> Result<Registered, Status> {
    let answer = send_registration(config, known, coordinators, map, start, false).await?;
    if !answer.unreachable.is_empty() {
        let (address, why) = (config.advertised(), answer.unreachable);
        tracing::warn!(address, why, "the coordinators can't reach this node: it gets no replicas");
    }
    let cluster_id =
        cluster_id_from(&answer.cluster_id).map_err(|error| Status::internal(error.to_string()))?;
    let least_replica = ReplicaId(answer.least_replica_id);
    let copy = Copy { count: answer.copies, least_replica };
    Ok(Registered { cluster_id, node_id: NodeId(answer.node_id), copy })
}

/// Of a start that takes part already.
#[derive(Clone)]
pub(crate) struct Registration {
    pub(crate) config: NodeConfig,
    pub(crate) identity: Identity,
    pub(crate) coordinators: Coordinators,
    pub(crate) readiness: Readiness,
    pub(crate) map: ClusterMap,
    pub(crate) start: Arc<Mutex<Start>>,
    /// Older copies of the directory that were accepted, as far as it knows.
    pub(crate) copies: u64,
    /// Whether the coordinators have accepted it.
    pub(crate) accepted: Arc<AtomicBool>,
}

impl Registration {
    /// Registers, until it works or is refused for good. A node that starts again may have another
    /// address. One that is refused (it was removed, or belongs to another cluster) has to end.
    pub(crate) async fn keep(self, synced: u64, refuse: mpsc::Sender<NodeError>) {
        let shown = mute::start_to(&self.start.lock(), synced);
        let registering = register(
            &self.config,
            self.identity,
            &self.coordinators,
            &self.readiness,
            &self.map,
            &shown,
        );
        match registering.await {
            // Its replicas take part already.
            Ok(registered) if registered.copy.count > self.copies => {
                let why = "the coordinators have taken this start for one on an older copy of the directory that was \
                           accepted: start the node again";
                let _ = refuse.send(NodeError::MustNotGoOn(why.to_owned())).await;
            }
            Ok(_) => {
                self.is_accepted();
                self.readiness.ready("registration");
            }
            Err(status) => {
                self.readiness.wait_for("registration", status.message());
                let data = self.config.data.display();
                let why = format!("{} (its directory: {data})", status.message());
                let _ = refuse.send(NodeError::Refused(why)).await;
            }
        }
    }

    fn is_accepted(&self) {
        self.accepted.store(true, Ordering::Relaxed);
        if let Err(error) = self.start.lock().takes_part(&self.config.data, true) {
            tracing::error!(%error, "can't record that this start was accepted");
        }
    }

    /// The coordinators don't take this start for the one that counts any more. They may have been
    /// put back to where they didn't know it yet: then they know one of those before it. Returns
    /// whether they take it for good.
    async fn is_known_after_all(&self, synced: u64) -> bool {
        let shown = mute::start_to(&self.start.lock(), synced);
        let Registration { config, identity, coordinators, map, .. } = self;
        match try_register(config, *identity, coordinators, map, &shown).await {
            Ok(_) => {
                tracing::warn!("the coordinators had forgotten this start of the node");
                true
            }
            // Asked again with the next heartbeat.
            Err(status) => status.code() != Code::InvalidArgument,
        }
    }
}

/// What heartbeats tell of the process itself.
pub(crate) struct Own {
    pub(crate) cluster_id: ClusterId,
    pub(crate) incarnation: u64,
    /// Where it is reached.
    pub(crate) address: String,
    /// Whom it reaches.
    pub(crate) contacts: Contacts,
    /// Where the others are.
    pub(crate) routes: Arc<ArcSwap<Routes>>,
    pub(crate) registration: Registration,
    /// Told why this process has to end.
    pub(crate) refuse: mpsc::Sender<NodeError>,
}

impl Own {
    /// Dials nodes that the coordinators can't reach.
    async fn dial(&self, nodes: Vec<u64>) -> Vec<(NodeId, bool)> {
        let routes = self.routes.load();
        let dials = nodes.into_iter().take(MOST_DIALLED).map(NodeId).map(|node| {
            let address = routes.address(node).cloned();
            async move {
                let Some(address) = address else { return (node, false) };
                let found =
                    dial::identify(&address, self.cluster_id, &[], Generation::default()).await;
                let is_there = found.is_ok_and(|found| {
                    found.role == Some(Role::Node)
                        && (found.cluster_id, found.id) == (self.cluster_id, node)
                });
                (node, is_there)
            }
        });
        join_all(dials).await
    }
}

/// Sends heartbeats until it is time to stop.
pub(crate) async fn heartbeats(
    drive: Drive,
    own: Own,
    coordinators: Coordinators,
    sizes: Arc<Sizes>,
    time: ClusterTime,
    shutdown: Shutdown,
) {
    let own = Arc::new(own);
    // Answers come when they come: a heartbeat waits for nobody else.
    let dialled: Arc<Mutex<Vec<(NodeId, bool)>>> = Arc::default();
    let dialling = Arc::new(AtomicBool::new(false));
    let mut interval = tokio::time::interval(HEARTBEAT);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut roles = drive.role_changes();
    let mut impossible = Impossible::new();
    let recoveries = Recoveries::default();
    let mut reports = Reports::new(sizes.clone());
    let map = own.registration.map.clone();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            // A new leader is told at once, so that gateways needn't find it by themselves.
            _ = roles.changed() => {}
            () = shutdown.wait() => return,
        }
        let replicas = reports.next(&drive).await;
        let mut request = heartbeat(&drive, &own, replicas, &impossible);
        let found = std::mem::take(&mut *dialled.lock());
        for (node, is_reached) in own.contacts.all().into_iter().chain(found) {
            let told = if is_reached { &mut request.reached } else { &mut request.unreached };
            told.push(node.0);
        }
        let generation = map.generations.newest();
        request.generation = generation_to(generation);
        request.map_before = map.generations.map_before().as_ref().map(shard_map_to);
        let asked_us = AtomicU64::new(0);
        let answer = coordinators
            .call(async |mut client| {
                let now = clock::now();
                asked_us.store(now.boot_us, Ordering::Relaxed);
                let request = proto::HeartbeatRequest { wall_ms: now.wall_ms, ..request.clone() };
                let answer = client.heartbeat(Request::new(request)).await?.into_inner();
                hear_generation(&map, answer.generation.clone()).await?;
                Ok(answer)
            })
            .await;
        let answered_us = clock::boot_us();
        match answer {
            Ok(answer) => {
                if map.generations.newest() == generation {
                    map.generations.has_told();
                } else {
                    // Only the next one is taken for a report.
                    interval.reset_immediately();
                }
                let asked_us = asked_us.load(Ordering::Relaxed);
                if let Some(now_ms) = time.told(answer.cluster_time_ms, asked_us, answered_us) {
                    drive.cluster_time_is(now_ms);
                }
                transfer(&drive, &answer.transfers);
                if !answer.dial.is_empty() && !dialling.swap(true, Ordering::Relaxed) {
                    let (own, dialled) = (own.clone(), dialled.clone());
                    let dialling = dialling.clone();
                    tokio::spawn(async move {
                        let found = own.dial(answer.dial).await;
                        *dialled.lock() = found;
                        dialling.store(false, Ordering::Relaxed);
                    });
                }
                sizes.set_limit(answer.split_size_bytes);
                // What can't be read was made by a newer coordinator.
                let tasks: Vec<_> = answer
                    .tasks
                    .into_iter()
                    .filter_map(|task| shard_task_from(task).ok())
                    .collect();
                if !tasks.is_empty() {
                    interval.reset_after(HEARTBEAT_AT_WORK);
                }
                impossible = recoveries.carry_out(&drive, &tasks);
                impossible.extend(tasks::carry_out(&drive, tasks).await);
            }
            // What was said of the log is older than what was said of it beside this.
            Err(status)
                if status.code() == Code::Aborted
                    && highest_synced(&status).is_some_and(|highest| drive.synced() >= highest) =>
            {
                tracing::debug!(error = status.message(), "a heartbeat was overtaken");
                interval.reset_immediately();
            }
            // Its log has gone back under it.
            Err(status) if status.code() == Code::Aborted => {
                let why = status.message().to_owned();
                let _ = own.refuse.send(NodeError::MustNotGoOn(why)).await;
            }
            // They have accepted this start, and don't take it for the one that counts any more.
            Err(status)
                if status.code() == Code::FailedPrecondition
                    && refusal_from_status(&status).is_none()
                    && own.registration.accepted.load(Ordering::Relaxed) =>
            {
                if !own.registration.is_known_after_all(request.synced).await {
                    let why = status.message().to_owned();
                    let _ = own.refuse.send(NodeError::MustNotGoOn(why)).await;
                }
            }
            Err(status) => tracing::debug!(error = status.message(), "heartbeat not answered"),
        }
    }
}

/// Up to which frame the coordinators have once heard that the log is synced.
fn highest_synced(status: &Status) -> Option<u64> {
    status.metadata().get(HIGHEST_SYNCED)?.to_str().ok()?.parse().ok()
}

fn heartbeat(
    drive: &Drive,
    own: &Own,
    replicas: Vec<proto::ReplicaReport>,
    impossible: &Impossible,
) -> proto::HeartbeatRequest {
    let views = drive.views().all();
    let led = views
        .values()
        .filter(|view| view.is_settled())
        .filter_map(|view| {
            let descriptor = descriptor_to(view.descriptor.as_ref()?);
            Some(proto::ShardReport { descriptor: Some(descriptor), term: view.term.0 })
        })
        .collect();
    proto::HeartbeatRequest {
        node_id: drive.node_id().0,
        cluster_id: cluster_id_to(own.cluster_id),
        incarnation: own.incarnation,
        address: own.address.clone(),
        nonce: own.registration.start.lock().nonce.to_be_bytes().to_vec().into(),
        synced: drive.synced(),
        reached: Vec::new(),
        unreached: Vec::new(),
        led,
        replica_count: views.len() as u64,
        replicas,
        snapshot_bytes_per_second: drive.snapshot_bytes_per_second(),
        short_of_room: drive.room().level() != Level::Ample,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        disk_free_bytes: drive.room().free_bytes(),
        // The incarnation is when the process started.
        uptime_ms: kvdb_runtime::clock::now().boot_us.saturating_sub(own.incarnation) / 1000,
        log_sync_us: drive.log_health().sync_us(kvdb_runtime::clock::boot_us()),
        log_stalled: drive.log_health().is_wary(),
        paths: own
            .contacts
            .round_trips_us(kvdb_runtime::clock::boot_us())
            .into_iter()
            .map(|(node, round_trip_us)| proto::PeerPath { node_id: node.0, round_trip_us })
            .collect(),
        impossible: impossible
            .iter()
            .map(|(id, why)| proto::TaskProblem { operator_id: id.0, why: why.clone() })
            .collect(),
        // When it is sent.
        wall_ms: 0,
        generation: None,
        map_before: None,
    }
}

fn transfer(drive: &Drive, transfers: &[proto::LeaderTransfer]) {
    for wanted in transfers {
        let shard = ShardId(wanted.shard_id);
        let view = drive.views().get(shard);
        let to = view
            .and_then(|view| view.descriptor.clone())
            .and_then(|descriptor| descriptor.replica_on(NodeId(wanted.to_node_id)).copied());
        // One without room would hand it back.
        if let Some(to) = to.filter(|to| !drive.room().is_short(to.node_id)) {
            // Refused only under overload; the next heartbeat asks again.
            let _ = drive.submit(Input::TransferLeader { shard, to: Some(to.replica_id) });
        }
    }
}

/// Creates the first replicas of new shards, and keeps the map for the next start.
pub(crate) async fn follow_map(
    drive: Drive,
    map: ClusterMap,
    data: std::path::PathBuf,
    shutdown: Shutdown,
) {
    let mut changes = map.changes();
    let mut room = drive.room().changes();
    let mut arrivals = drive.views().arrivals();
    let mut saved = None;
    let mut births = Births::default();
    loop {
        changes.mark_unchanged();
        arrivals.mark_unchanged();
        births.take_in(&drive, &map);
        let all_taken = tasks::destroy_gone(&drive, &map).await;
        let current = map.cache.lock().map().clone();
        let parts = (current.nodes.clone(), current.keyspaces.clone());
        if saved.as_ref() != Some(&parts) && current.cluster_id.is_known() {
            let path = data.join(MAP_FILE);
            let content = shard_map_to(&current).encode_to_vec();
            let written = tokio::task::spawn_blocking(move || save(&path, &content)).await;
            if matches!(written, Ok(Ok(()))) {
                saved = Some(parts);
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                births.try_again();
            }
            // One that a leader has sent here may be gone by now for whoever made it.
            Ok(()) = arrivals.changed() => {}
            () = births.done() => {}
            // What there was no room for can be made now.
            Ok(()) = room.changed() => births.try_again(),
            () = tokio::time::sleep(TAKE_AGAIN), if !all_taken => {}
            () = shutdown.wait() => return,
        }
    }
}

/// The first replicas of new shards that are to be created here.
///
/// A shard is new until its first leader is heard of, which may be sooner than a busy node gets to
/// it. So each is written down when the map says that it is new, and created in its turn, while the
/// map goes on being looked at.
#[derive(Default)]
struct Births {
    /// Whether this node's replica is the first of its shard, and the shard.
    due: Vec<(bool, ShardDescriptor)>,
    /// New shards that were written down.
    known: BTreeSet<ShardId>,
    /// Gives back what couldn't be created.
    creating: Option<JoinHandle<Vec<ShardId>>>,
    /// What there was no room for: worth another try when something has changed.
    failed: Vec<ShardId>,
}

impl Births {
    /// Writes down what is new, and begins if nobody is at work.
    fn take_in(&mut self, drive: &Drive, map: &ClusterMap) {
        let own = drive.node_id();
        // The first of its replicas stands at once; where it doesn't come up, another does later.
        let is_first = |descriptor: &ShardDescriptor| {
            descriptor.replicas.first().map(|replica| replica.node_id) == Some(own)
        };
        let mut new = Vec::new();
        {
            let cache = map.cache.lock();
            let views = drive.views().all();
            let is_new = |shard: &ShardId| {
                cache.map().shards.get(shard).is_some_and(|record| record.creating)
            };
            self.known.retain(is_new);
            for record in cache.map().shards.values().filter(|record| record.creating) {
                let descriptor = &record.descriptor;
                let shard = descriptor.shard_id;
                // One that a leader has spoken to is there, without a state.
                let has_state = views.get(&shard).is_some_and(|view| view.volume.is_some());
                if descriptor.replica_on(own).is_some() && !has_state && self.known.insert(shard) {
                    new.push((is_first(descriptor), descriptor.clone()));
                }
            }
        }
        if !new.is_empty() {
            let shards = new.iter().map(|(_, descriptor)| descriptor.shard_id).collect();
            drive.expect_replicas(shards);
            self.due.extend(new);
        }
        if self.creating.is_none() && !self.due.is_empty() {
            let due = std::mem::take(&mut self.due);
            let drive = drive.clone();
            self.creating = Some(tokio::task::spawn_blocking(move || create(&drive, due)));
        }
    }

    /// When those at work are done; never, if nobody is.
    async fn done(&mut self) {
        let Some(creating) = &mut self.creating else { return std::future::pending().await };
        let created = creating.await;
        self.creating = None;
        match created {
            Ok(failed) => self.failed.extend(failed),
            Err(error) => {
                tracing::error!(%error, "not all replicas of new shards were created");
                self.failed.extend(&self.known);
            }
        }
    }

    /// Something has changed.
    fn try_again(&mut self) {
        for shard in self.failed.drain(..) {
            self.known.remove(&shard);
        }
    }
}

/// Creates replicas, several at a time: each syncs a few files. Returns the shards of those that
/// couldn't be.
fn create(drive: &Drive, mut due: Vec<(bool, ShardDescriptor)>) -> Vec<ShardId> {
    // Of a few shards each, those that stand come last: the others, everywhere, are mostly there by
    // then to hear them, and have not waited for so long that they stand themselves.
    due.sort_by_key(|(first, descriptor)| (descriptor.shard_id.0 / SHARDS_AT_A_TIME, *first));
    let (count, first_shard) = (due.len(), due.first().map_or(0, |(_, first)| first.shard_id.0));
    let due = Mutex::new(due.into_iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..CREATORS {
            scope.spawn(|| {
                let next = || due.lock().next();
                while let Some((first, descriptor)) = next() {
                    let shard = descriptor.shard_id;
                    match drive.create_replica(descriptor, first) {
                        Ok(()) => tracing::debug!(shard = shard.0, "replica created"),
                        Err(error) => {
                            tracing::error!(shard = shard.0, %error, "replica can't be created");
                            failed.lock().push(shard);
                        }
                    }
                }
            });
        }
    });
    // Those that can't be created have said so.
    tracing::info!(count, first_shard, "replicas created");
    failed.into_inner()
}

/// Keeps where the coordinators are for the next start: what it is told then may be older.
pub(crate) async fn keep_coordinators(
    coordinators: Coordinators,
    data: std::path::PathBuf,
    shutdown: Shutdown,
) {
    let mut saved = load_coordinators(&data).unwrap_or_default();
    let mut interval = tokio::time::interval(KEEP_EVERY);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        let told = coordinators.told();
        if told.is_empty() || told == saved {
            continue;
        }
        let (path, content) = (data.join(COORDINATORS_FILE), told.join("\n"));
        let written = tokio::task::spawn_blocking(move || save(&path, content.as_bytes())).await;
        if matches!(written, Ok(Ok(()))) {
            saved = told;
        }
    }
}

/// Where the coordinators were, as they have told at an earlier start. A hint.
pub(crate) fn load_coordinators(data: &Path) -> Option<Vec<String>> {
    let content = std::fs::read_to_string(data.join(COORDINATORS_FILE)).ok()?;
    let usable = content.lines().filter(|address| transport::endpoint(address).is_ok());
    Some(usable.take(MOST_COORDINATORS).map(str::to_owned).collect())
}

fn save(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

/// The map of an earlier start, if it is there and can be read. It is a hint, never the truth.
pub(crate) fn load_map(
    directory: &DataDirectory,
    generations: &Generations,
) -> Option<kvdb_model::ShardMap> {
    let content = std::fs::read(directory.path().join(MAP_FILE)).ok()?;
    let map = shard_map_from(proto::ShardMap::decode(&content[..]).ok()?).ok()?;
    (map.cluster_id == directory.identity().cluster_id).then(|| {
        generations.remember(map.clone());
        as_a_hint(map)
    })
}

/// An old map: its version must not keep a fresher one away, and which shards were new then says
/// nothing about now. First replicas are created only on the word of the coordinators.
fn as_a_hint(mut map: kvdb_model::ShardMap) -> kvdb_model::ShardMap {
    map.version = kvdb_model::MapVersion(0);
    for shard in map.shards.values_mut() {
        shard.creating = false;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{
        KeyRange, KeyspaceId, MapVersion, MembershipEpoch, RangeEpoch, ShardDescriptor, ShardMap,
        ShardRecord, Term,
    };

    #[test]
    fn an_old_map_never_says_that_a_shard_is_new() {
        let descriptor = ShardDescriptor {
            shard_id: ShardId(4),
            keyspace_id: KeyspaceId(1),
            range: KeyRange::ALL,
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(1),
            replicas: Vec::new(),
        };
        let shard = ShardRecord { descriptor, leader: None, leader_term: Term(0), creating: true };
        let map = ShardMap {
            version: MapVersion(9),
            shards: [(ShardId(4), shard)].into(),
            ..ShardMap::default()
        };
        let hint = as_a_hint(map);
        assert_eq!(hint.version, MapVersion(0));
        assert!(!hint.shards[&ShardId(4)].creating);
    }
}
