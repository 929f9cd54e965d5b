//! Driving a replication host with a real log, engine and network.
//!
//! ```text
//!  submit ─▶ replication thread ─▶ log thread ──▶ (Persisted) ─┐
//!               ▲   │  │  └──────▶ peers (tokio)               │
//!               │   │  └─────────▶ apply thread ─▶ (Applied) ──┤
//!               │   └─ tickets ──▶ waiting requests            │
//!               └──────────────────────────────────────────────┘
//!  maintenance thread: flushes ─▶ (Flushed) ─▶ replication thread
//! ```
//!
//! Bounds: what clients submit is counted ([`MAX_SUBMITTED`]) and refused beyond; what peers send
//! is held back by their streams' windows and [`MAX_PEER_FRAMES`], and dropped beyond, which Raft
//! takes as loss; the log thread has one batch at a time; the apply thread has no more than the
//! host lets be unapplied.

mod apply;
mod changes;
mod fatal;
mod flushes;
mod log;
mod log_health;
mod mailbox;
mod maintain;
mod metrics;
mod replicate;
mod room;
pub mod steps;
mod ticket;
mod unsafe_recovery;
mod views;

pub use changes::{Changes, ShardChanges};
pub use fatal::fatal;
pub use kvdb_engine::EngineError as VolumeError;
pub use log_health::LogHealth;
pub(crate) use replicate::Event;
pub use replicate::Outgoing;
pub use room::{Level, RESERVE_BYTES, Room};
pub use ticket::{Outcome, ReplySink, Ticket};
pub use unsafe_recovery::GoOnError;
pub use views::{ShardView, ViewTable, Views};

use crate::pace::Pace;
use apply::Applier;
use flushes::Flushes;
use kvdb_engine::{Engine, EngineError};
use kvdb_engine_lsm::{Asks, LsmConfig, LsmEngine, LsmError};
use kvdb_model::{NodeId, ReplicaId, ShardId, VolumeId};
use kvdb_replication::{GroupStatus, Host, HostConfig, Input};
use kvdb_store::{Machine, SnapshotWriter};
use kvdb_wal::{FileDisk, Wal, WalConfig};
use log::LogWriter;
use mailbox::{Sender, mailbox};
use maintain::Maintainer;
use metrics::{Gathered, Metrics};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use replicate::{LogBatch, Replicator};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests at the replication thread; more are refused as overloaded.
pub const MAX_SUBMITTED: usize = 64 * 1024;
/// Frames from peers at the replication thread; more are dropped.
pub const MAX_PEER_FRAMES: usize = 16 * 1024;

/// What the threads of a drive share.
pub struct Shared {
    /// The replicas, as of a moment ago.
    pub views: Views,
    /// What they did lately.
    pub changes: Changes,
    /// Whether there is room for more.
    pub room: Arc<Room>,
    /// How the syncs of the log go.
    pub log_health: LogHealth,
    pub(crate) flushes: Flushes,
    pub(crate) submitted: AtomicUsize,
    pub(crate) peer_frames: AtomicUsize,
    /// Whether the replication thread must be woken for what was applied.
    pub(crate) apply_wanted: AtomicBool,
    pub(crate) role_version: watch::Sender<u64>,
    next_volume: AtomicU64,
    /// The last frame of the log that is synced.
    pub(crate) synced: AtomicU64,
    pub(crate) snapshots: Mutex<HashMap<(ShardId, ReplicaId), SnapshotWriter>>,
    /// Of the snapshots that leave the process.
    pub(crate) snapshot_pace: Pace,
    pub(crate) metrics: Metrics,
}

/// Where a drive lives and how it runs.
pub struct DriveConfig {
    /// The data directory; `wal/` and `engine/` are made in it.
    pub data: PathBuf,
    /// Of the host.
    pub host: HostConfig,
    /// Of the log.
    pub wal: WalConfig,
    /// Of the engine.
    pub engine: LsmConfig,
    /// Bytes of snapshots that leave the process in a second; 0 for no bound. More brings replicas
    /// up sooner, and takes more of network and disks from whoever uses them.
    pub snapshot_bytes_per_second: u64,
    /// Bytes of disk that are kept for what must be written when it is full. Raising it makes
    /// writes stop earlier, and lets more be deleted before nothing more is taken.
    pub reserve_bytes: u64,
    /// Bytes of the latest changes of all replicas, for watchers. More lets them be away for longer, and
    /// costs as much memory.
    pub changes_bytes: usize,
    /// Nothing that was found takes part before [`Drive::release`].
    pub held: bool,
}

/// Why a drive can't start. Nothing is changed.
#[derive(Debug, Error)]
pub enum DriveError {
    /// The log.
    #[error(transparent)]
    Log(#[from] kvdb_wal::OpenError),
    /// The log's folder.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] LsmError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] EngineError),
    /// Log and engine together.
    #[error(transparent)]
    Recovery(#[from] kvdb_recovery::RecoveryError),
}

/// Too much waits already; nothing was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many requests wait for the replication thread")]
pub struct Overloaded;

/// A running host. Clones drive the same.
#[derive(Clone)]
pub struct Drive {
    events: Sender<Event>,
    shared: Arc<Shared>,
    engine: Arc<dyn Engine>,
    node_id: NodeId,
}

/// The threads behind a [`Drive`].
pub struct Threads {
    events: Sender<Event>,
    stop: Arc<AtomicBool>,
    room: Arc<Room>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Ends the threads in order: what was submitted is still written and applied.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.room.stop();
        self.events.send(Event::Stop);
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!("a thread had panicked");
            }
        }
    }
}

impl Drive {
    /// Opens log and engine and starts the threads. What leaves the process comes out of the
    /// receiver; hand it to [`crate::peers::run`].
    ///
    /// # Errors
    /// [`DriveError`].
    pub fn start<M: Machine>(
        config: DriveConfig,
        machine: impl Fn() -> M + Send + 'static,
        registry: &mut Registry,
    ) -> Result<(Self, Threads, mpsc::UnboundedReceiver<Outgoing>), DriveError> {
        let engine_path = config.data.join("engine");
        io(&engine_path, std::fs::create_dir_all(&engine_path))?;
        let room = Arc::new(io(&config.data, Room::new(&config.data, config.reserve_bytes))?);
        let engine_config = LsmConfig { room: Asks::of(room.clone()), ..config.engine };
        let engine = LsmEngine::open(&engine_path, engine_config)?;
        let lost: Vec<VolumeId> = engine.damaged().iter().map(|damaged| damaged.volume).collect();
        let engine: Arc<dyn Engine> = Arc::new(engine);
        let wal_path = config.data.join("wal");
        let disk = io(&wal_path, FileDisk::open(&wal_path))?;
        let (mut wal, live) = Wal::open(disk, config.wal)?;
        let waiting = room.clone();
        wal.disk_mut().wait_for_room(Box::new(move || waiting.log_waits()));

        let (events, event_queue) = mailbox();
        let (to_log, log_queue) = mailbox();
        let (to_apply, apply_queue) = mailbox();
        let (to_network, network_queue) = mpsc::unbounded_channel();
        let highest = engine.volumes().into_iter().chain(lost.iter().copied()).max();
        let next_volume = live.highest_volume().max(highest.unwrap_or_default()).next();
        let shared = Arc::new(Shared {
            views: Views::default(),
            changes: Changes::new(config.changes_bytes),
            room: room.clone(),
            log_health: LogHealth::default(),
            flushes: Flushes::default(),
            submitted: AtomicUsize::new(0),
            peer_frames: AtomicUsize::new(0),
            apply_wanted: AtomicBool::new(false),
            role_version: watch::Sender::new(0),
            next_volume: AtomicU64::new(next_volume.0),
            synced: AtomicU64::new(wal.synced_through()),
            snapshots: Mutex::default(),
            snapshot_pace: Pace::new(config.snapshot_bytes_per_second),
            metrics: Metrics::default(),
        });
        shared.metrics.register(registry);
        registry.register_collector(Box::new(Gathered {
            shared: shared.clone(),
            engine: engine.clone(),
            queues: vec![
                ("replication", events.depth()),
                ("log", to_log.depth()),
                ("apply", to_apply.depth()),
            ],
        }));

        let node_id = config.host.node_id;
        let tick = Duration::from_millis(config.host.tick_ms);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut host = Host::new(config.host, live.tombstones(), logger);
        let mut applier = Applier {
            engine: engine.clone(),
            shards: HashMap::new(),
            work: apply_queue,
            events: events.clone(),
            shared: shared.clone(),
            machine: Box::new(machine),
        };
        let recovered = kvdb_recovery::recover(&engine, &live, &lost, &*applier.machine)?;
        for damage in recovered.damage {
            tracing::error!(damage, "a volume is damaged");
        }
        for shard in recovered.lost {
            tracing::error!(
                shard = shard.0,
                "the volume of a shard is lost: requesting a snapshot"
            );
        }
        for note in recovered.replayed {
            shared.flushes.note(note.volume, note.shard, note.replica, note.sequence, note.applied);
        }
        let mut held = BTreeMap::new();
        for group in recovered.groups {
            match config.held {
                true => _ = held.insert(group.shard, group),
                false => host.recover(crate::clock::now(), group),
            }
        }
        for shard in recovered.shards.values() {
            shared.changes.begin(shard.replica(), shard.descriptor(), shard.last_version());
            applier.publish(shard);
        }
        applier.shards.extend(recovered.shards);
        for volume in recovered.unused {
            engine.delete_volume(volume)?;
        }

        let stop = Arc::new(AtomicBool::new(false));
        let replicator = Replicator {
            host,
            events: event_queue,
            to_log,
            to_apply,
            to_network,
            shared: shared.clone(),
            tick,
            waiting_batch: LogBatch { number: 0, records: Vec::new() },
            log_busy: false,
            offers: HashMap::new(),
            next_offer: 1,
            held,
            later: Vec::new(),
        };
        let log_writer = LogWriter {
            wal,
            engine: engine.clone(),
            batches: log_queue,
            events: events.clone(),
            shared: shared.clone(),
        };
        let maintainer = Maintainer {
            engine: engine.clone(),
            events: events.clone(),
            shared: shared.clone(),
            stop: stop.clone(),
        };
        let watched = room.clone();
        let handles = vec![
            spawn("replication", move || replicator.run()),
            spawn("log", move || log_writer.run()),
            spawn("apply", move || applier.run()),
            spawn("maintenance", move || maintainer.run()),
            spawn("room", move || watched.watch()),
        ];
        let drive = Drive { events: events.clone(), shared, engine, node_id };
        for child in recovered.unborn {
            drive.inform(Event::Internal(Input::Split {
                from: None,
                child: child.descriptor,
                volume: child.volume,
                time: child.time,
            }));
        }
        Ok((drive, Threads { events, stop, room, handles }, network_queue))
    }

    /// The node that the host runs on.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The replicas, as of a moment ago.
    pub fn views(&self) -> &Views {
        &self.shared.views
    }

    /// What the replicas did lately.
    pub fn changes(&self) -> &Changes {
        &self.shared.changes
    }

    /// Whether there is room for more on the disk.
    pub fn room(&self) -> &Room {
        &self.shared.room
    }

    /// How the syncs of the log go.
    pub fn log_health(&self) -> &LogHealth {
        &self.shared.log_health
    }

    /// The last frame of the log that is synced.
    pub fn synced(&self) -> u64 {
        self.shared.synced.load(Ordering::Relaxed)
    }

    /// Changes each time a role, term or leader does.
    pub fn role_changes(&self) -> watch::Receiver<u64> {
        self.shared.role_version.subscribe()
    }

    /// The engine, for reads.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Whether a strong read of a shard may be served from what is applied here, without asking the
    /// host. It counts as one if so.
    pub fn may_read_now(&self, shard: ShardId, view: &ShardView) -> bool {
        let covered = view.permit.covers(crate::clock::boot_us());
        if covered {
            self.shared.metrics.reads.inc();
            self.shared.metrics.reads_by_lease.inc();
            self.shared.changes.count_reads(shard, 1);
        }
        covered
    }

    /// Hands the host an input from outside.
    ///
    /// # Errors
    /// [`Overloaded`]: too much waits; the input was not taken.
    pub fn submit(&self, input: Input<Ticket>) -> Result<(), Overloaded> {
        if self.shared.submitted.fetch_add(1, Ordering::Relaxed) >= MAX_SUBMITTED {
            self.shared.submitted.fetch_sub(1, Ordering::Relaxed);
            return Err(Overloaded);
        }
        // Fails only while the process stops; the ticket's holder then sees its channel close.
        self.events.send(Event::Submitted(input));
        Ok(())
    }

    /// The coordinators say that cluster time is this now, in milliseconds since 1970.
    pub fn cluster_time_is(&self, cluster_ms: u64) {
        self.inform(Event::Internal(Input::ClusterTime(cluster_ms)));
    }

    pub(crate) fn inform(&self, event: Event) {
        self.events.send(event);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Makes a fresh, empty volume and has a new shard's first replica created in it.
    ///
    /// # Errors
    /// If the volume can't be made.
    pub fn create_replica(
        &self,
        descriptor: kvdb_model::ShardDescriptor,
        campaign: bool,
    ) -> Result<(), EngineError> {
        let volume = self.fresh_volume();
        self.engine.create_volume(volume)?;
        self.inform(Event::Internal(Input::Create { descriptor, volume, campaign }));
        Ok(())
    }

    /// Replicas of these shards will be created here, in their turn.
    pub fn expect_replicas(&self, shards: Vec<kvdb_model::ShardId>) {
        self.inform(Event::Internal(Input::Expect { shards }));
    }

    /// Bytes of snapshots that leave the process in a second, at most; 0 for no bound.
    pub fn snapshot_bytes_per_second(&self) -> u64 {
        self.shared.snapshot_pace.bytes_per_second()
    }

    pub(crate) fn fresh_volume(&self) -> VolumeId {
        VolumeId(self.shared.next_volume.fetch_add(1, Ordering::Relaxed))
    }

    /// What was held back at the start takes part from now on, but for some shards, and for replicas with ids
    /// below `least` ([`Host::silence_below`]).
    pub fn release(&self, but: BTreeSet<ShardId>, least: ReplicaId) {
        self.inform(Event::Release(but, least));
    }

    /// How every group is doing.
    pub async fn statuses(&self) -> Vec<GroupStatus> {
        let (sender, receiver) = oneshot::channel();
        self.inform(Event::Statuses(sender));
        receiver.await.unwrap_or_default()
    }

    /// How the next groups are doing, by shard: at most `most`, from `from` on.
    pub async fn statuses_from(&self, from: ShardId, most: usize) -> Vec<GroupStatus> {
        let (reply, receiver) = oneshot::channel();
        self.inform(Event::StatusesFrom { from, most, reply });
        receiver.await.unwrap_or_default()
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let name = name.to_owned();
    let thread = std::thread::Builder::new().name(format!("kvdb-{name}"));
    let guarded = move || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        if result.is_err() {
            // The panic's own message is on standard error already.
            fatal(&format!("the {name} thread has panicked"));
        }
    };
    thread.spawn(guarded).expect("the operating system gives a thread at the start")
}

fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, DriveError> {
    result.map_err(|source| DriveError::Io { path: path.to_owned(), source })
}
