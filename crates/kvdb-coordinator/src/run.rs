//! A coordinator, from its configuration to its end.

use crate::founders::Founders;
use crate::machine::ControlMachine;
use crate::metrics::ClusterFigures;
use crate::service::{Member, PoorLeader};
use crate::view::View;
use crate::{copies, duties, members, reach};
use kvdb_control::{
    Beginning, ControlState, CoordinatorRecord, Coordinators, Liveness, LivenessConfig,
    MustNotBegin, Planner, PlannerConfig, first_descriptor, generation_of,
};
use kvdb_engine_lsm::LsmConfig;
use kvdb_model::{NodeId, ShardDescriptor, ShardId};
use kvdb_replication::{HostConfig, Input};
use kvdb_runtime::clock_memory;
use kvdb_runtime::cluster_time::{self, ClusterTime};
use kvdb_runtime::contacts::Contacts;
use kvdb_runtime::coordinators;
use kvdb_runtime::dial::{self, About, Introduction, LeftBehind};
use kvdb_runtime::drive::{Drive, DriveConfig, DriveError, RESERVE_BYTES};
use kvdb_runtime::files;
use kvdb_runtime::http::{self, Readiness};
use kvdb_runtime::identity::{self, DataDirectory, IdentityError};
use kvdb_runtime::listen::{self, ListenError};
use kvdb_runtime::meter::Meter;
use kvdb_runtime::pace::SNAPSHOT_BYTES_PER_SECOND;
use kvdb_runtime::peers::{self, Neighbourhood, PeerService};
use kvdb_runtime::shutdown::Shutdown;
use kvdb_runtime::start::{Met, Start, until_replaced};
use kvdb_wal::WalConfig;
use kvdb_wire::proto::coordinator_server::{self, CoordinatorServer};
use kvdb_wire::proto::{identity_server, peer_server};
use kvdb_wire::{discovery, transport};
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;

/// How long a stopping leader waits for its successor.
const HAND_OVER: Duration = Duration::from_secs(1);
/// How often a coordinator that hears of no leader, or isn't in the group any more, asks whether it was removed.
const WONDER_EVERY: Duration = Duration::from_secs(2);

/// What a coordinator needs to know.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Its number among the coordinators, from 1.
    pub id: u64,
    /// gRPC address.
    pub listen: String,
    /// HTTP address; none to serve no HTTP.
    pub http: Option<String>,
    /// All coordinators, itself included, by number.
    pub peers: BTreeMap<u64, String>,
    /// Data directory.
    pub data: PathBuf,
    /// How eagerly the cluster mends and spreads itself.
    pub planner: PlannerConfig,
    /// Hand over leadership before it stops. Of no use where everything stops at once.
    pub hands_over: bool,
}

/// Why a coordinator can't start or go on.
#[derive(Debug, Error)]
pub enum CoordinatorError {
    /// The configuration.
    #[error("{0}")]
    Config(String),
    /// The others say that it must not take part.
    #[error(transparent)]
    MustNotBegin(#[from] MustNotBegin),
    /// The data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Log or engine.
    #[error(transparent)]
    Drive(#[from] DriveError),
    /// A new group's volume.
    #[error(transparent)]
    Engine(#[from] kvdb_runtime::drive::VolumeError),
    /// It isn't the one that counts, or has lost what it has promised.
    #[error("this coordinator must not go on: {0}")]
    MustNotGoOn(String),
    /// It can't be recovered from.
    #[error("{0}")]
    NotRecovered(String),
    /// A listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A server.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// The group that a directory belongs to is written in it: `--peers` says only where its members
/// were when it was founded.
///
/// A group that was recovered from one has but this one, and its state may not know yet whom it has left behind: until it
/// does, any name may be one of these.
fn check_peers(
    peers: &BTreeMap<u64, String>,
    group: &ShardDescriptor,
    state: &ControlState,
) -> Result<(), String> {
    let known = |id: u64| state.coordinators().contains_key(&NodeId(id));
    let generations = group.replicas.iter().map(|replica| generation_of(replica.replica_id));
    let is_behind = generations.max().unwrap_or_default() > state.generation().number;
    let missing: Vec<String> = group
        .replicas
        .iter()
        .map(|replica| replica.node_id.0)
        .filter(|id| !peers.contains_key(id) && !known(*id))
        .map(|id| id.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "--peers must name all coordinators of the group: {} is missing",
            missing.join(", ")
        ));
    }
    let strangers: Vec<String> = peers
        .keys()
        .filter(|id| group.replica_on(NodeId(**id)).is_none() && !known(**id))
        .map(u64::to_string)
        .collect();
    if !strangers.is_empty() && !is_behind {
        return Err(format!(
            "--peers names {}, which this group of coordinators doesn't have; \
             `kvdb admin coordinators add` adds one",
            strangers.join(", ")
        ));
    }
    Ok(())
}

pub(crate) fn drive_config(data: &Path, node_id: NodeId, token: u128) -> DriveConfig {
    DriveConfig {
        data: data.to_owned(),
        // Nodes tell the leader how they are without asking for anything: it must notice by itself
        // that it leads no more.
        host: HostConfig { hibernate_ticks: 0, ..HostConfig::new(node_id, token as u64) },
        wal: WalConfig {
            first_segment_bytes: 1024 * 1024,
            segment_bytes: 16 * 1024 * 1024,
            max_segments: 4,
        },
        changes_bytes: 1024 * 1024,
        engine: LsmConfig {
            memtable_budget_bytes: 8 * 1024 * 1024,
            cache_bytes: 16 * 1024 * 1024,
            flush_age: Duration::from_secs(20),
            ..LsmConfig::default()
        },
        snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
        reserve_bytes: RESERVE_BYTES / 4,
        held: false,
    }
}

/// Runs a coordinator until it is told to stop.
///
/// # Errors
/// [`CoordinatorError`].
pub async fn run(config: CoordinatorConfig, shutdown: Shutdown) -> Result<(), CoordinatorError> {
    if config.id == 0 || !config.peers.contains_key(&config.id) {
        return Err(CoordinatorError::Config(format!(
            "--peers must name this coordinator: there is no {} in it; the form is 1=host:port,2=host:port",
            config.id
        )));
    }
    let node_id = NodeId(config.id);
    let own = &config.peers[&config.id];
    dial::check_own("--peers", own).await.map_err(CoordinatorError::Config)?;
    let grpc_listener = listen::bind("gRPC", &config.listen).await?;
    let http_listener = listen::bind_unless_off("HTTP", config.http.as_deref()).await?;
    let mut directory = DataDirectory::open(&config.data, identity::Role::Coordinator, node_id)?;
    let known = directory.identity();
    let (start, succession) = Start::begin(&directory)?;
    let own_start = (start.number, start.nonce);
    let start = Arc::new(Mutex::new(start));
    let met = Met::open(&config.data);

    let mut registry = Registry::default();
    let map_version = Gauge::<i64>::default();
    registry.register("kvdb_map_version", "Version of the shard map", map_version.clone());
    let poor_leaders = Family::<PoorLeader, Gauge>::default();
    registry.register(
        "kvdb_less_preferred_leader",
        "1 for each reason for which a node leads only where nobody else can",
        poor_leaders.clone(),
    );
    let meter = Meter::new(&mut registry);
    let time = ClusterTime::new(&mut registry);
    let view = Arc::new(View::default());
    registry.register_collector(Box::new(ClusterFigures { view: view.clone() }));
    let machine_view = view.clone();
    let drive_config = drive_config(&config.data, node_id, known.token);
    let make_machine = move || ControlMachine::new(machine_view.clone());
    let (drive, threads, mut outgoing) = Drive::start(drive_config, make_machine, &mut registry)?;
    directory.log_has_begun()?;
    if let Some(now_ms) = clock_memory::begin(&time, &config.data) {
        drive.cluster_time_is(now_ms);
    }

    let group = || drive.views().get(ShardId::CONTROL).and_then(|view| view.descriptor.clone());
    if let Some(group) = group() {
        let state = view.state();
        check_peers(&config.peers, &group, &state).map_err(CoordinatorError::Config)?;
        let is_gone = state.coordinators().get(&node_id).is_some_and(|known| known.is_removed);
        if is_gone && group.replica_on(node_id).is_none() {
            return Err(MustNotBegin::Removed(node_id).into());
        }
    }
    let has_replica = !drive.statuses().await.is_empty();
    // It has been a member, and its replica was closed when the group went on without it.
    if !has_replica && known.cluster_id.is_known() {
        return Err(MustNotBegin::Removed(node_id).into());
    }

    let readiness = Readiness::default();
    readiness.wait_for("cluster", "no leader of the coordinators is known yet");
    let (refuse, mut refusals) = mpsc::channel(4);
    let member = Member {
        refuse: refuse.clone(),
        drive: drive.clone(),
        view: view.clone(),
        founders: Arc::new(Founders::open(&config.data).map_err(CoordinatorError::Config)?),
        introduced: Arc::default(),
        hearsay: Arc::default(),
        contacts: Contacts::default(),
        token: known.token,
        peers: Arc::new(
            config.peers.iter().map(|(id, address)| (NodeId(*id), address.clone())).collect(),
        ),
        liveness: Arc::new(Mutex::new(Liveness::new(LivenessConfig::default()))),
        standings: Arc::default(),
        told: Arc::default(),
        synced: Arc::default(),
        planner: Planner { config: config.planner },
        poor_leaders,
        time: time.clone(),
        clocks: Arc::default(),
        impossible: Arc::default(),
    };
    let deciding = member.clone();
    let left_behind: LeftBehind = Arc::new(move |id| deciding.left_behind(id));
    let (finding, knowing, hearing) = (member.clone(), member.clone(), member.clone());
    let admitted = Arc::new(AtomicBool::new(false));
    let refused = refuse.clone();
    let neighbourhood = Neighbourhood {
        addresses_of: Arc::new(move |id| finding.addresses_of(id)),
        address: own.clone(),
        token: known.token,
        token_of: Arc::new(move |id| knowing.token_of(id)),
        introduced: Arc::new(move |id, address| hearing.hear_address(id, address)),
        contacts: member.contacts.clone(),
        start: own_start,
        met: met.clone(),
        refused: Arc::new(move |why| _ = refused.try_send(why)),
        cluster_id: Arc::new(RwLock::new(known.cluster_id)),
        coordinator: true,
        incarnation: kvdb_runtime::clock::now().boot_us,
        admitted: admitted.clone(),
        left_behind: left_behind.clone(),
    };
    tokio::spawn(duties::run(member.clone(), shutdown.clone()));
    tokio::spawn(members::keep_addresses(member.clone(), shutdown.clone()));
    tokio::spawn(reach::dial_all(member.clone(), shutdown.clone()));
    let (naming, following) = (member.clone(), member.clone());
    let introduction = Introduction {
        role: Some(identity::Role::Coordinator),
        token: known.token,
        known: Arc::new(RwLock::new((known.cluster_id, node_id))),
        told: Arc::new(|_| {}),
        coordinators: Arc::new(move || naming.all_addresses()),
        met: met.clone(),
        about: Arc::new(move || About {
            generation: following.view.state().generation(),
            ..About::default()
        }),
        left_behind,
    };
    tokio::spawn(clock_memory::keep(time.clone(), config.data.clone(), shutdown.clone()));
    tokio::spawn(follow_time(member.clone(), time, shutdown.clone()));

    let services = [
        coordinator_server::SERVICE_NAME,
        peer_server::SERVICE_NAME,
        identity_server::SERVICE_NAME,
    ];
    let (health, reflection, reflection_alpha) =
        discovery::describing(&services).await.map_err(CoordinatorError::Config)?;
    let stop = Shutdown::default();
    let stopping = stop.clone();
    let server = transport::server()
        .layer(meter)
        .add_service(CoordinatorServer::new(member.clone()))
        .add_service(PeerService::server(drive.clone(), neighbourhood.clone()))
        .add_service(introduction.clone().server())
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(files::incoming(grpc_listener), async move {
            stopping.wait().await;
        });
    let server = tokio::spawn(server);
    let http = http_listener.map(|listener| {
        tokio::spawn(http::serve(listener, readiness.clone(), registry, stop.clone()))
    });
    tracing::info!("{}", listen::UNPROTECTED);
    tracing::info!(
        id = config.id,
        listen = config.listen,
        http = config.http.as_deref().unwrap_or(listen::OFF),
        "coordinator runs"
    );

    let starting = copies::Starting {
        member: member.clone(),
        cluster_id: known.cluster_id,
        address: own.clone(),
        start: start.clone(),
    };
    readiness.wait_for("cluster", "the other coordinators haven't been heard yet");
    let heard = tokio::select! {
        heard = starting.until_heard(succession, &config.data) => Some(heard),
        why = was_removed(&member) => return Err(why.into()),
        Some(why) = refusals.recv() => Some(Err(why)),
        () = shutdown.wait() => None,
    };
    match heard {
        Some(Ok(())) => start.lock().takes_part(&config.data, true)?,
        Some(Err(why)) => return Err(CoordinatorError::MustNotGoOn(why)),
        None => return Ok(()),
    }
    admitted.store(has_replica, Ordering::Release);
    if has_replica {
        tracing::info!(id = config.id, "takes part in the group of coordinators");
    }
    // What it would have said is stale by now.
    while outgoing.try_recv().is_ok() {}
    tokio::spawn(peers::run(drive.clone(), neighbourhood.clone(), outgoing));
    tokio::spawn(starting.introduce(refuse.clone(), stop.clone()));
    tokio::spawn(met.keep(stop.clone()));
    let (watched, data) = (start.clone(), config.data.clone());
    tokio::spawn(async move { refuse.send(until_replaced(watched, data).await).await });
    if !has_replica {
        readiness.wait_for("cluster", "the other coordinators have not been reached yet");
        let beginning = tokio::select! {
            beginning = member.begin() => beginning?,
            () = shutdown.wait() => return Ok(()),
        };
        begin(&config, &member, beginning, &admitted)?;
    }

    let mut changes = view.changes();
    let mut roles = drive.role_changes();
    // Not from one change to the next: a member that was removed may be busy with elections that it
    // can't win.
    let mut refused = None;
    let mut wondering = tokio::time::interval(WONDER_EVERY);
    wondering.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let state = view.state();
        map_version.set(state.map().version.0 as i64);
        let cluster_id = state.map().cluster_id;
        let has_leader =
            drive.views().get(ShardId::CONTROL).is_some_and(|control| control.leader.is_some());
        if cluster_id.is_known() {
            directory.adopt(cluster_id, node_id)?;
            *neighbourhood.cluster_id.write() = cluster_id;
            introduction.known.write().0 = cluster_id;
        }
        if cluster_id.is_known() && has_leader {
            readiness.ready("cluster");
        } else {
            readiness.wait_for("cluster", "no leader of the coordinators is known");
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = roles.changed() => {}
            _ = wondering.tick() => {
                if member.may_be_removed() && let Some(why) = member.is_removed().await {
                    return Err(why.into());
                }
            }
            Some(why) = refusals.recv() => {
                refused = Some(why);
                break;
            }
            () = shutdown.wait() => break,
        }
    }

    // Leadership is handed over first, so that nobody has to wait for a timeout.
    let has_others = group().is_some_and(|group| group.replicas.len() > 1);
    // One that doesn't count any more has nothing to say.
    if config.hands_over && has_others && refused.is_none() {
        let _ = drive.submit(Input::TransferAll);
        let mut roles = drive.role_changes();
        let handed_over = async { while member.leads() && roles.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(HAND_OVER, handed_over).await;
    }
    stop.trigger();
    // Streams of watchers and peers don't end by themselves.
    server.abort();
    if let Some(http) = http {
        http.abort();
    }
    let _ = tokio::task::spawn_blocking(move || threads.stop()).await;
    tracing::info!("coordinator has stopped");
    if let Some(why) = refused {
        return Err(CoordinatorError::MustNotGoOn(why));
    }
    // Only now nothing more is written.
    start.lock().ends(&config.data)?;
    Ok(())
}

/// A member that doesn't lead hears the time from the one that does.
async fn follow_time(member: Member, time: ClusterTime, shutdown: Shutdown) {
    let coordinators = coordinators::Coordinators::new(member.peers.values().cloned().collect());
    let coordinators_of_log = coordinators.clone();
    let (asking, informed) = (member.clone(), member.drive.clone());
    let process = move || {
        let addresses = member.view.state().coordinator_addresses();
        if !addresses.is_empty() {
            coordinators_of_log.learn(addresses);
        }
        kvdb_wire::proto::SyncClockRequest {
            process: "coordinator".to_owned(),
            address: member.address_of(member.drive.node_id()).unwrap_or_default(),
            ..Default::default()
        }
    };
    let has_leader = move || {
        let view = asking.drive.views().get(ShardId::CONTROL);
        view.is_some_and(|view| view.leader.is_some() && !view.is_leader)
    };
    let heard = move |now_ms| informed.cluster_time_is(now_ms);
    cluster_time::follow(coordinators, process, time, has_leader, heard, shutdown).await;
}

/// Waits until the others say that it isn't in their group any more.
async fn was_removed(member: &Member) -> MustNotBegin {
    let mut wondering = tokio::time::interval(WONDER_EVERY);
    wondering.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        wondering.tick().await;
        if member.may_be_removed()
            && let Some(why) = member.is_removed().await
        {
            return why;
        }
    }
}

/// Takes part from now on.
fn begin(
    config: &CoordinatorConfig,
    member: &Member,
    beginning: Beginning,
    admitted: &AtomicBool,
) -> Result<(), CoordinatorError> {
    let founders: Option<Coordinators> = match beginning {
        Beginning::Found(mut founders) => {
            let address = config.peers[&config.id].clone();
            let own = CoordinatorRecord { address, token: member.token, is_removed: false };
            founders.insert(NodeId(config.id), own);
            Some(founders)
        }
        Beginning::Follow(founders) => Some(founders),
        Beginning::Join => None,
    };
    let founds = founders.is_some();
    if let Some(founders) = founders {
        // Whichever of them leads first writes this into the group's log.
        member.founders.remember(founders).map_err(CoordinatorError::Config)?;
    }
    admitted.store(true, Ordering::Release);
    if founds {
        let lowest = config.peers.keys().next() == Some(&config.id);
        let founders = config.peers.keys().map(|id| NodeId(*id));
        member.drive.create_replica(first_descriptor(founders), lowest)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_control::plan_alone;
    use kvdb_model::{Generation, Term};

    #[test]
    fn peers_other_than_the_group_has_are_refused_by_number() {
        let peers = |ids: &[u64]| ids.iter().map(|id| (*id, format!("host:{id}"))).collect();
        let group = first_descriptor([1, 2, 3].map(NodeId).into_iter());
        let state = ControlState::default();
        let check = |ids: &[u64]| check_peers(&peers(ids), &group, &state);
        assert_eq!(check(&[1, 2, 3]), Ok(()));
        let missing = check(&[1, 3]).unwrap_err();
        assert!(missing.contains("2 is missing"), "{missing}");
        let stranger = check(&[1, 2, 3, 4]).unwrap_err();
        assert!(stranger.contains("names 4"), "{stranger}");
    }

    #[test]
    fn a_group_that_goes_on_alone_takes_the_peers_it_had_before_its_state_knows_of_that() {
        let peers = [1, 2, 3].map(|id| (id, format!("host:{id}"))).into();
        let group = first_descriptor([1, 2, 3].map(NodeId).into_iter());
        let generation = Generation { number: 1, nonce: 0 };
        let plan = plan_alone(&group, NodeId(1), &generation, Term(7)).unwrap();
        let alone = ShardDescriptor { replicas: vec![plan.replica], ..group };
        assert_eq!(check_peers(&peers, &alone, &ControlState::default()), Ok(()));
    }
}
