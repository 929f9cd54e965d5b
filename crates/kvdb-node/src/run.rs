//! A node, from its configuration to its end.

use crate::access::Access;
use crate::memory::Shares;
use crate::metrics::Metrics;
use crate::mute::{self, Mute};
use crate::sizes::{self, Sizes};
use crate::{heartbeats, history, link, registration, room, sweep};
use kvdb_engine_lsm::LsmConfig;
use kvdb_model::{NodeId, NodeStatus, ShardMap, ShardRecord};
use kvdb_replication::{HostConfig, Input};
use kvdb_runtime::clock_memory;
use kvdb_runtime::cluster_time::ClusterTime;
use kvdb_runtime::contacts::Contacts;
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::dial::{self, About, Introduction};
use kvdb_runtime::drive::{Drive, DriveConfig, DriveError, ShardView};
use kvdb_runtime::files;
use kvdb_runtime::generations::Generations;
use kvdb_runtime::http::{self, Readiness};
use kvdb_runtime::identity::{self, DataDirectory, IdentityError};
use kvdb_runtime::listen::{self, ListenError};
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::peers::{self, Neighbourhood, PeerService};
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::{Copy, Met, Start};
use kvdb_store::NoControl;
use kvdb_wal::WalConfig;
use kvdb_wire::proto::identity_server;
use kvdb_wire::proto::node_server::{self, NodeServer};
use kvdb_wire::proto::peer_server;
use kvdb_wire::{discovery, transport};
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

/// How long connections may last to what only answers who is there.
const ANSWERS_END: Duration = Duration::from_millis(500);
/// How long a stopping node waits for others to take over what it leads.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Nodes that have said where they are, at most.
const MOST_INTRODUCED: usize = 4096;

/// What a node needs to know.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// gRPC address.
    pub listen: String,
    /// The address by which others reach it, if not `listen`.
    pub advertise: Option<String>,
    /// HTTP address; none to serve no HTTP.
    pub http: Option<String>,
    /// The coordinators' gRPC addresses.
    pub coordinators: Vec<String>,
    /// Data directory.
    pub data: PathBuf,
    /// Failure domain; may be empty.
    pub zone: String,
    /// Bytes of snapshots that leave the node in a second, at most; 0 for no bound.
    pub snapshot_bytes_per_second: u64,
    /// Memory for what isn't flushed, the block cache and the latest changes, in bytes.
    pub memory_bytes: u64,
    /// Bytes of disk that are kept for what must be written when it is full.
    pub reserve_bytes: u64,
    /// Serve strong reads by a lease; otherwise each asks a quorum.
    pub lease: bool,
    /// Hand over leadership before it stops. Of no use where everything stops at once.
    pub hands_over: bool,
    /// Told when the node has its number.
    pub registered: Option<Arc<Notify>>,
    /// Whoever ran on its directory before is gone for good, also if that was copied or moved.
    pub moved: bool,
}

impl NodeConfig {
    pub(crate) fn advertised(&self) -> &str {
        self.advertise.as_deref().unwrap_or(&self.listen)
    }
}

/// Why a node can't start or go on.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// The data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Log or engine.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The coordinators don't take it.
    #[error("the coordinators refuse this node: {0}")]
    Refused(String),
    /// It isn't the one that counts, or has lost what it has promised.
    #[error("this node must not go on: {0}")]
    MustNotGoOn(String),
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// [`NodeError`].
pub async fn run(config: NodeConfig, shutdown: Shutdown) -> Result<(), NodeError> {
    if config.coordinators.is_empty() {
        let problem = "--coordinators names none; the form is host:port,host:port";
        return Err(NodeError::Config(problem.to_owned()));
    }
    let flag = if config.advertise.is_some() { "--advertise" } else { "--listen" };
    dial::check_own(flag, config.advertised()).await.map_err(NodeError::Config)?;
    let grpc_listener = listen::bind("gRPC", &config.listen).await?;
    let http_listener = listen::bind_unless_off("HTTP", config.http.as_deref()).await?;
    let mut directory = DataDirectory::open(&config.data, identity::Role::Node, NodeId(0))?;
    let map = ClusterMap::with(Generations::open(&config.data)?);
    let coordinators = Coordinators::new(config.coordinators.clone());
    if let Some(told) = link::load_coordinators(&config.data) {
        coordinators.learn(told);
    }

    let readiness = Readiness::default();
    readiness.wait_for("registration", "the coordinators have not answered yet");
    let mut registry = Registry::default();
    let map_version = Gauge::<i64>::default();
    registry.register("kvdb_map_version", "Version of the shard map", map_version.clone());
    let metrics = Metrics::new(&mut registry);
    let time = ClusterTime::new(&mut registry);
    // A node that knows who it is serves without the coordinators; a new one has to ask.
    let known = directory.identity();
    let met = Met::open(&config.data);
    let (hearing, naming) = (coordinators.clone(), coordinators.clone());
    let introduction = Introduction {
        role: Some(identity::Role::Node),
        token: known.token,
        known: Arc::new(RwLock::new((known.cluster_id, known.node_id))),
        told: Arc::new(move |told| hearing.learn(told)),
        coordinators: Arc::new(move || naming.told()),
        met: met.clone(),
        about: about(&map),
        left_behind: Arc::new(|_| None),
    };
    let (start, _) = Start::begin(&directory)?;
    let mut copy = Copy::open(&config.data)?;
    let start = Arc::new(Mutex::new(start));
    if known.node_id.0 == 0 {
        // Who it is can be asked before it is anything: the coordinators look where it is.
        let is_met = Shutdown::default();
        let answering = answer_who(&grpc_listener, introduction.clone(), is_met.clone())?;
        let shown = mute::start_to(&start.lock(), 0);
        let registered = tokio::select! {
            registered =
                registration::register(&config, known, &coordinators, &readiness, &map, &shown) =>
                registered,
            () = shutdown.wait() => return Ok(()),
        };
        is_met.trigger();
        ends_soon(answering).await;
        let registered =
            registered.map_err(|status| NodeError::Refused(status.message().to_owned()))?;
        directory.adopt(registered.cluster_id, registered.node_id)?;
    }
    if let Some(registered) = &config.registered {
        registered.notify_one();
    }
    let identity = directory.identity();
    let (node_id, cluster_id) = (identity.node_id, identity.cluster_id);
    *introduction.known.write() = (cluster_id, node_id);
    let shares = Shares::of(config.memory_bytes);
    let drive_config = DriveConfig {
        data: config.data.clone(),
        host: HostConfig { lease: config.lease, ..HostConfig::new(node_id, identity.token as u64) },
        wal: WalConfig::default(),
        engine: LsmConfig {
            memtable_budget_bytes: shares.unflushed_bytes,
            cache_bytes: shares.cache_bytes,
            ..LsmConfig::default()
        },
        changes_bytes: usize::try_from(shares.changes_bytes).unwrap_or(usize::MAX),
        snapshot_bytes_per_second: config.snapshot_bytes_per_second,
        reserve_bytes: config.reserve_bytes,
        // Nobody else knows a node that is new.
        held: known.node_id.0 != 0,
    };
    let (drive, threads, outgoing) = Drive::start(drive_config, || NoControl, &mut registry)?;
    directory.log_has_begun()?;
    if let Some(now_ms) = clock_memory::begin(&time, &config.data) {
        drive.cluster_time_is(now_ms);
    }

    if let Some(remembered) = link::load_map(&directory, &map.generations) {
        map.snapshot(remembered);
    }
    let routes = map.routes.clone();
    let incarnation = kvdb_runtime::clock::now().boot_us;
    let introduced: Arc<Mutex<BTreeMap<NodeId, String>>> = Arc::default();
    let hears = introduced.clone();
    let contacts = Contacts::default();
    let (refuse, mut refusals) = mpsc::channel(4);
    let own_start = {
        let start = start.lock();
        (start.number, start.nonce)
    };
    let refused = refuse.clone();
    let mut neighbourhood = Neighbourhood {
        // What the map says, and what a peer has said itself meanwhile.
        addresses_of: Arc::new(move |id| {
            let mapped = routes.load().address(id).map(|known| known.to_string());
            let said =
                introduced.lock().get(&id).filter(|said| Some(*said) != mapped.as_ref()).cloned();
            mapped.into_iter().chain(said).collect()
        }),
        address: config.advertised().to_owned(),
        token: identity.token,
        token_of: Arc::new(|_| None),
        introduced: Arc::new(move |id, address| {
            let mut said = hears.lock();
            if said.len() < MOST_INTRODUCED || said.contains_key(&id) {
                said.insert(id, address);
            }
        }),
        contacts: contacts.clone(),
        start: own_start,
        met: met.clone(),
        refused: Arc::new(move |why| _ = refused.try_send(NodeError::MustNotGoOn(why))),
        cluster_id: Arc::new(RwLock::new(cluster_id)),
        coordinator: false,
        incarnation,
        admitted: Arc::new(AtomicBool::new(true)),
        left_behind: Arc::new(|_| None),
    };
    let (cache, routes) = (map.cache.clone(), map.routes.clone());
    let access = Access::new(drive.clone(), cache, routes, metrics, &mut registry);

    let services =
        [node_server::SERVICE_NAME, peer_server::SERVICE_NAME, identity_server::SERVICE_NAME];
    let (health, reflection, reflection_alpha) =
        discovery::describing(&services).await.map_err(NodeError::Config)?;
    let stop = Shutdown::default();
    let stopping = stop.clone();
    tokio::spawn(clock_memory::keep(time.clone(), config.data.clone(), stop.clone()));
    tokio::spawn(sweep::run(access.clone(), stop.clone()));
    tokio::spawn(history::run(drive.clone(), map.clone(), stop.clone()));
    tokio::spawn(room::hand_over_when_full(drive.clone(), stop.clone()));
    let node_server = NodeServer::new(access)
        .max_decoding_message_size(transport::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(transport::MAX_MESSAGE_BYTES);
    let http = http_listener.map(|listener| {
        tokio::spawn(http::serve(listener, readiness.clone(), registry, stop.clone()))
    });
    let accepted = Arc::new(AtomicBool::new(known.node_id.0 == 0));
    if accepted.load(Ordering::Relaxed) {
        start.lock().takes_part(&config.data, true)?;
    } else {
        let muted = Mute {
            drive: &drive,
            config: &config,
            identity,
            coordinators: &coordinators,
            readiness: &readiness,
            map: map.clone(),
            start: start.clone(),
            copy,
        };
        let is_heard = Shutdown::default();
        let answering = answer_who(&grpc_listener, introduction.clone(), is_heard.clone())?;
        let ended = tokio::select! {
            heard = muted.until_heard() => Some(heard),
            () = shutdown.wait() => None,
        };
        is_heard.trigger();
        ends_soon(answering).await;
        match ended {
            Some(Ok(heard)) => {
                if heard.copy.count > copy.count {
                    copy = heard.copy;
                    start.lock().is_on_copy(&config.data, &copy)?;
                    neighbourhood.start.0 = start.lock().number;
                    tracing::warn!(
                        least_replica = copy.least_replica.0,
                        "this directory is an older copy that was accepted: its replicas take no part, and shards can \
                         be recovered from them (`kvdb admin force-recover`)"
                    );
                }
                start.lock().takes_part(&config.data, heard.by_coordinators)?;
                accepted.store(heard.by_coordinators, Ordering::Relaxed);
                drive.release(heard.held, copy.least_replica);
            }
            other => {
                stop.trigger();
                http.iter().for_each(JoinHandle::abort);
                let _ = tokio::task::spawn_blocking(move || threads.stop()).await;
                return match other {
                    Some(Err(why)) => Err(why),
                    _ => Ok(()),
                };
            }
        }
    }
    let server = transport::server()
        .add_service(node_server)
        .add_service(PeerService::server(drive.clone(), neighbourhood.clone()))
        .add_service(introduction.server())
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(files::incoming(grpc_listener), async move {
            stopping.wait().await;
        });
    let server = tokio::spawn(server);
    tokio::spawn(peers::run(drive.clone(), neighbourhood, outgoing));
    let introducing = start.lock().clone();
    let address = config.advertised().to_owned();
    let introducing =
        mute::introduce(identity, introducing, address, map.routes.clone(), stop.clone());
    tokio::spawn(introducing);
    let watching =
        mute::watch_directory(start.clone(), config.data.clone(), refuse.clone(), stop.clone());
    tokio::spawn(watching);
    tokio::spawn(met.keep(stop.clone()));
    tokio::spawn(map.clone().follow(coordinators.clone(), stop.clone()));
    tokio::spawn(link::follow_map(drive.clone(), map.clone(), config.data.clone(), stop.clone()));
    tokio::spawn(link::keep_coordinators(coordinators.clone(), config.data.clone(), stop.clone()));
    let registration = registration::Registration {
        config: config.clone(),
        identity,
        coordinators: coordinators.clone(),
        readiness: readiness.clone(),
        map: map.clone(),
        start: start.clone(),
        copies: copy.count,
        accepted: accepted.clone(),
    };
    tokio::spawn(registration.clone().keep(drive.synced(), refuse.clone()));
    let known_sizes = Arc::new(Sizes::default());
    tokio::spawn(sizes::run(drive.clone(), map.clone(), known_sizes.clone(), stop.clone()));
    let own = heartbeats::Own {
        cluster_id,
        incarnation,
        address: config.advertised().to_owned(),
        contacts,
        routes: map.routes.clone(),
        registration,
        refuse,
    };
    tokio::spawn(heartbeats::heartbeats(
        drive.clone(),
        own,
        coordinators,
        known_sizes,
        time,
        stop.clone(),
    ));
    tracing::info!("{}", listen::UNPROTECTED);
    tracing::info!(
        node = node_id.0,
        listen = config.listen,
        http = config.http.as_deref().unwrap_or(listen::OFF),
        "node runs"
    );

    let mut changes = map.changes();
    let mut refused = None;
    let (mut knows_removal, mut knows_end) = (false, false);
    loop {
        map_version.set(map.cache.lock().version().0 as i64);
        match removal(map.cache.lock().map(), node_id) {
            Removal::None => {}
            Removal::Begun { replicas } => {
                if !std::mem::replace(&mut knows_removal, true) {
                    tracing::warn!(
                        replicas,
                        "this node was removed: its replicas are rebuilt on other nodes"
                    );
                }
                // Whoever it still leads gets another leader at once.
                let _ = drive.submit(Input::TransferAll);
            }
            Removal::Done => {
                if !std::mem::replace(&mut knows_end, true) {
                    let why = format!(
                        "node {node_id} was removed from the cluster and holds nothing any more; stop it, and \
                         start it with an empty data directory to join as a new node"
                    );
                    tracing::error!(directory = %config.data.display(), "{why}");
                    readiness.wait_for("removal", &why);
                }
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            Some(why) = refusals.recv() => {
                refused = Some(why);
                break;
            }
            () = shutdown.wait() => break,
        }
    }
    // One that doesn't count any more has nothing to say.
    let goes_on = !matches!(refused, Some(NodeError::MustNotGoOn(_)));
    if config.hands_over && goes_on {
        hand_over(&drive).await;
    }
    stop.trigger();
    // Streams of gateways and peers don't end by themselves.
    server.abort();
    if let Some(http) = http {
        http.abort();
    }
    let _ = tokio::task::spawn_blocking(move || threads.stop()).await;
    tracing::info!("node has stopped");
    // Only now nothing more is written. (The directory may be another one by now.)
    if goes_on {
        start.lock().ends(&config.data)?;
    }
    refused.map_or(Ok(()), Err)
}

/// What it knows of the coordinators, for whoever asks.
fn about(map: &ClusterMap) -> Arc<dyn Fn() -> About + Send + Sync> {
    let map = map.clone();
    Arc::new(move || About {
        generation: map.generations.newest(),
        map_version: map.cache.lock().version().0,
        leader_silent_ms: map.generations.silent_ms(),
    })
}

/// How far the removal of a node is, as the map tells.
#[derive(Debug, PartialEq, Eq)]
enum Removal {
    /// Nobody has removed it.
    None,
    /// It has replicas still.
    Begun { replicas: usize },
    /// It has no business here any more.
    Done,
}

fn removal(map: &ShardMap, node: NodeId) -> Removal {
    let status = map.nodes.get(&node).map(|record| record.status);
    if status != Some(NodeStatus::Removed) {
        return Removal::None;
    }
    let holds = |record: &&ShardRecord| record.descriptor.replica_on(node).is_some();
    match map.shards.values().filter(holds).count() {
        0 => Removal::Done,
        replicas => Removal::Begun { replicas },
    }
}

/// Answers who is there, and nothing else, on a listener that is used for more later.
fn answer_who(
    listener: &TcpListener,
    introduction: Introduction,
    until: Shutdown,
) -> Result<JoinHandle<()>, NodeError> {
    let another = listener
        .as_fd()
        .try_clone_to_owned()
        .and_then(|shared| TcpListener::from_std(shared.into()))
        .map_err(|error| NodeError::Config(format!("the listener can't be shared: {error}")))?;
    let server = transport::server().add_service(introduction.server());
    Ok(tokio::spawn(async move {
        let incoming = transport::incoming(another);
        let serving =
            server.serve_with_incoming_shutdown(incoming, async move { until.wait().await });
        let _ = serving.await;
    }))
}

/// Connections of processes that hang don't end by themselves.
async fn ends_soon(mut serving: JoinHandle<()>) {
    if tokio::time::timeout(ANSWERS_END, &mut serving).await.is_err() {
        serving.abort();
    }
}

/// Leadership is handed over first, so that nobody has to wait for a timeout.
async fn hand_over(drive: &Drive) {
    let mut roles = drive.role_changes();
    let _ = drive.submit(Input::TransferAll);
    let has_others = |view: &ShardView| {
        view.descriptor.as_ref().is_some_and(|descriptor| descriptor.replicas.len() > 1)
    };
    // A shard that is nowhere else has nobody to lead it.
    let leads = || drive.views().all().values().any(|view| view.is_leader && has_others(view));
    let handed_over = async { while leads() && roles.changed().await.is_ok() {} };
    if tokio::time::timeout(HAND_OVER, handed_over).await.is_err() {
        tracing::warn!("stopping although not every shard has another leader");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{MapChange, NodeRecord, Replica, ReplicaId, Role, ShardDescriptor, Term};

    #[test]
    fn a_node_learns_from_the_map_that_it_was_removed_and_when_it_holds_nothing_any_more() {
        let mut map = ShardMap::default();
        let node = |status| NodeRecord {
            node_id: NodeId(1),
            address: "a:1".into(),
            zone: String::new(),
            status,
            least_replica: Default::default(),
        };
        let shard = |node: u64| ShardRecord {
            descriptor: ShardDescriptor {
                replicas: vec![Replica {
                    node_id: NodeId(node),
                    replica_id: ReplicaId(node),
                    role: Role::Voter,
                }],
                ..descriptor()
            },
            leader: None,
            leader_term: Term(0),
            creating: false,
        };
        assert_eq!(removal(&map, NodeId(1)), Removal::None);
        map.change(MapChange::Node(node(NodeStatus::Alive)));
        map.change(MapChange::Shard(shard(1)));
        assert_eq!(removal(&map, NodeId(1)), Removal::None);
        map.change(MapChange::Node(node(NodeStatus::Removed)));
        assert_eq!(removal(&map, NodeId(1)), Removal::Begun { replicas: 1 });
        map.change(MapChange::Shard(shard(2)));
        assert_eq!(removal(&map, NodeId(1)), Removal::Done);
    }

    fn descriptor() -> ShardDescriptor {
        ShardDescriptor {
            shard_id: Default::default(),
            keyspace_id: Default::default(),
            range: kvdb_model::KeyRange::ALL,
            range_epoch: Default::default(),
            membership_epoch: Default::default(),
            replicas: Vec::new(),
        }
    }
}
