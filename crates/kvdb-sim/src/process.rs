//! One coordinator or node: what is on its disk, and what is in its memory while it runs.

use crate::dice::Dice;
use crate::disk::SharedDisk;
use crate::machine::{SharedControl, SimMachine};
use crate::packet::{Ask, Snapshot};
use crate::world::Event;
use bytes::Bytes;
use kvdb_control::{Coordinators, Greeted};
use kvdb_engine::{Engine, MemoryEngine, SequenceNumber};
use kvdb_model::{
    ClusterClock, LogIndex, LogPosition, MembershipEpoch, NodeId, OperatorId, ReplicaId,
    ShardDescriptor, ShardId, ShardMap, ShardTask, Term, TimeMark, VolumeId, WalRecord,
};
use kvdb_recovery::Unborn;
use kvdb_replication::{ApplyTask, Host, HostConfig, Now};
use kvdb_router::MapCache;
use kvdb_store::Shard;
use kvdb_wal::{Wal, WalConfig};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Small, so that segments roll, are rewritten and are freed within seconds.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Short enough for shards that clients ask for less often than others to hibernate in between.
const SLEEP_TICKS: [usize; 5] = [0, 5, 8, 15, 40];
pub(crate) const USUAL_SYNC_US: u64 = 1000;
pub(crate) const USUAL_APPLY_US: u64 = 300;
const WALL_START_MS: u64 = 1_700_000_000_000;

/// Who waits for the outcome of a proposal or a read.
pub(crate) enum Ticket {
    /// A client's attempt.
    Ask {
        client: usize,
        attempt: u64,
        ask: Ask,
    },
    /// A node that is told what is wanted of it, by who leads still.
    Heartbeat {
        caller: usize,
        node: NodeId,
        round: u64,
    },
    /// A node that registers.
    Register {
        caller: usize,
    },
    Nobody,
}

/// The clocks of one machine.
#[derive(Clone, Copy, Default)]
pub(crate) struct Clock {
    /// How far the wall clock is off.
    pub(crate) wall_offset_ms: i64,
    /// The wall clock says this, and stands still.
    pub(crate) stands_at_ms: Option<u64>,
    /// How long the machine was off beside the time of this world, in microseconds: a night.
    pub(crate) nights_us: u64,
    /// How much faster its clocks run, in parts per million.
    pub(crate) drift_ppm: i64,
}

impl Clock {
    pub(crate) fn at(self, world_us: u64) -> Now {
        let drift_us = world_us as i64 / 1000 * self.drift_ppm / 1000;
        // Machines were booted at some time before.
        let boot_us = (1_000_000_000 + world_us as i64 + drift_us) as u64 + self.nights_us;
        // Wall clocks are kept right where they are right at all: they don't drift.
        let passed_ms = (1_000_000_000 + world_us + self.nights_us) / 1000;
        let wall_ms = WALL_START_MS as i64 + passed_ms as i64 + self.wall_offset_ms;
        let wall_ms =
            self.stands_at_ms.unwrap_or_else(|| u64::try_from(wall_ms).unwrap_or_default());
        Now { boot_us, wall_ms }
    }
}

pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) is_coordinator: bool,
    pub(crate) clock: Clock,
    pub(crate) disk: SharedDisk,
    pub(crate) engine: MemoryEngine,
    /// The identity file; a node gets its id from the coordinators.
    pub(crate) node_id: Option<NodeId>,
    /// Made with a coordinator's directory.
    pub(crate) token: u128,
    /// With whom a coordinator has founded its group: a file.
    pub(crate) founders: Coordinators,
    /// It has lost its directory, and isn't replaced yet.
    pub(crate) lost: bool,
    /// It was told that it must not come back.
    pub(crate) stranded: bool,
    /// The file with the map.
    pub(crate) saved_map: ShardMap,
    /// Raised with each start: what was meant for an earlier life is dropped.
    pub(crate) life: u64,
    pub(crate) core: Option<Core>,
    pub(crate) paused: bool,
    /// What came while it was paused.
    pub(crate) inbox: Vec<Event>,
    /// Longest time of a sync, in microseconds.
    pub(crate) sync_us: u64,
    /// No sync is finished before.
    pub(crate) frozen_until_us: u64,
    /// Until then no sync is finished in every other second.
    pub(crate) stutters_until_us: u64,
    /// Longest time of an apply task, in microseconds.
    pub(crate) apply_us: u64,
}

/// What the process knows of a replica beside its threads.
#[derive(Clone, Copy, Default)]
pub(crate) struct Standing {
    pub(crate) is_leader: bool,
    pub(crate) term: Term,
    /// In which term which members were settled last.
    pub(crate) settled: Option<(Term, MembershipEpoch)>,
}

/// A batch of a replica, and where it lies in its volume.
struct Note {
    shard: ShardId,
    replica: ReplicaId,
    sequence: SequenceNumber,
    applied: LogIndex,
}

/// A running process.
pub(crate) struct Core {
    pub(crate) host: Host<Ticket>,
    pub(crate) wal: Wal<SharedDisk>,
    pub(crate) shards: BTreeMap<ShardId, Shard<SimMachine>>,
    pub(crate) standings: BTreeMap<ShardId, Standing>,
    pub(crate) waiting: Vec<WalRecord>,
    pub(crate) waiting_number: u64,
    /// The batch that is being synced.
    pub(crate) syncing: Option<u64>,
    pub(crate) tasks: VecDeque<ApplyTask<Ticket>>,
    pub(crate) applying: bool,
    pub(crate) control: SharedControl,
    pub(crate) cache: MapCache,
    /// Snapshots that were taken, by shard and receiver.
    pub(crate) taken: BTreeMap<(ShardId, ReplicaId), Taken>,
    /// Snapshots on their way, by transfer.
    pub(crate) streaming: BTreeMap<u64, (ShardId, ReplicaId)>,
    /// Offers that the host considers.
    pub(crate) offers: BTreeMap<u64, (usize, Snapshot)>,
    pub(crate) next_offer: u64,
    /// The coordinator that it asks.
    pub(crate) favourite: usize,
    pub(crate) unanswered: bool,
    next_volume: VolumeId,
    notes: BTreeMap<VolumeId, VecDeque<Note>>,
    /// Cluster time, as it makes it out while it leads the coordinators.
    pub(crate) clock: ClusterClock,
    /// When the last heartbeat was sent, by the boot clock.
    pub(crate) heartbeat_us: u64,
    /// Heartbeats sent: an answer counts only if it is that to the last one.
    pub(crate) heartbeats: u64,
    /// What the coordinators want done with shards that are led here.
    pub(crate) asked: Vec<ShardTask>,
    /// What can't be done of it, and why: for the next heartbeat; of a coordinator, what it was told
    /// since it planned last.
    pub(crate) impossible: Vec<(OperatorId, &'static str)>,
    /// A coordinator that knows what it is for the others.
    pub(crate) admitted: bool,
    /// Rounds of greetings, and what was answered in this one.
    pub(crate) greeting: u64,
    pub(crate) greeted: Vec<Greeted>,
    /// Where coordinators are, as others have told.
    pub(crate) introduced: BTreeMap<NodeId, String>,
}

pub(crate) struct Taken {
    pub(crate) descriptor: ShardDescriptor,
    pub(crate) time: TimeMark,
    pub(crate) chunks: Vec<Bytes>,
}

impl Process {
    /// For how long the disk finishes nothing from now on.
    pub(crate) fn hangs_us(&self, now_us: u64) -> u64 {
        const SECOND_US: u64 = 1_000_000;
        let stutters = now_us < self.stutters_until_us && (now_us / SECOND_US).is_multiple_of(2);
        let to_the_next = if stutters { SECOND_US - now_us % SECOND_US } else { 0 };
        self.frozen_until_us.saturating_sub(now_us).max(to_the_next)
    }

    pub(crate) fn new(name: String, is_coordinator: bool, node_id: Option<NodeId>) -> Self {
        Process {
            name,
            is_coordinator,
            clock: Clock::default(),
            disk: SharedDisk::default(),
            engine: MemoryEngine::new(),
            node_id,
            token: 0,
            founders: Coordinators::new(),
            lost: false,
            stranded: false,
            saved_map: ShardMap::default(),
            life: 0,
            core: None,
            paused: false,
            inbox: Vec::new(),
            sync_us: USUAL_SYNC_US,
            frozen_until_us: 0,
            stutters_until_us: 0,
            apply_us: USUAL_APPLY_US,
        }
    }

    /// Starts the process from what is on its disk. Its id must be known.
    ///
    /// # Errors
    /// Why it refuses to start.
    pub(crate) fn start(&mut self, seed: u64, world_us: u64) -> Result<Vec<Unborn>, String> {
        let now = self.now(world_us);
        let node_id = self.node_id.ok_or("it has no id yet")?;
        self.life += 1;
        let config = WalConfig {
            first_segment_bytes: SEGMENT_BYTES / 8,
            segment_bytes: SEGMENT_BYTES,
            max_segments: 4,
        };
        let (wal, live) =
            Wal::open(self.disk.clone(), config).map_err(|error| error.to_string())?;
        let mut host_config = HostConfig::new(node_id, seed);
        host_config.log_retain_bytes = 2000;
        host_config.hibernate_ticks =
            if self.is_coordinator { 0 } else { SLEEP_TICKS[seed as usize % SLEEP_TICKS.len()] };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut host = Host::new(host_config, live.tombstones(), logger);
        let control = SharedControl::default();
        let mut cache = MapCache::default();
        cache.snapshot(self.saved_map.clone());
        let engine: Arc<dyn Engine> = Arc::new(self.engine.clone());
        let is_coordinator = self.is_coordinator;
        let machine = || machine_of(is_coordinator, &control);
        let recovered = kvdb_recovery::recover(&engine, &live, &[], &machine)
            .map_err(|error| error.to_string())?;
        for group in recovered.groups {
            host.recover(now, group);
        }
        for volume in recovered.unused {
            self.engine.delete_volume(volume).map_err(|error| error.to_string())?;
        }
        let highest = self.engine.volumes().into_iter().max().unwrap_or_default();
        self.core = Some(Core {
            host,
            wal,
            shards: recovered.shards,
            standings: BTreeMap::new(),
            waiting: Vec::new(),
            waiting_number: 0,
            syncing: None,
            tasks: VecDeque::new(),
            applying: false,
            control,
            cache,
            taken: BTreeMap::new(),
            streaming: BTreeMap::new(),
            offers: BTreeMap::new(),
            next_offer: 1,
            favourite: 0,
            unanswered: false,
            next_volume: live.highest_volume().max(highest).next(),
            notes: BTreeMap::new(),
            clock: ClusterClock::default(),
            heartbeat_us: 0,
            heartbeats: 0,
            asked: Vec::new(),
            impossible: Vec::new(),
            admitted: !live.replicas.is_empty(),
            greeting: 0,
            greeted: Vec::new(),
            introduced: BTreeMap::new(),
        });
        if let Some(core) = &mut self.core {
            for note in recovered.replayed {
                core.note(note.volume, note.shard, note.replica, note.sequence, note.applied);
            }
        }
        Ok(recovered.unborn)
    }

    /// Ends the process at once; `power` loses what wasn't synced.
    pub(crate) fn crash(&mut self, power: Option<u64>) {
        self.core = None;
        self.paused = false;
        self.inbox.clear();
        self.life += 1;
        match power {
            Some(seed) => self.disk.lose_power(seed),
            None => self.disk.be_killed(),
        }
        if let Some(seed) = power {
            self.flush_some(&mut Dice::new(seed));
        }
        // Memtables are memory: gone either way.
        self.engine = self.engine.crash();
    }

    /// Flushes that were under way: whole batches, up to any of them.
    fn flush_some(&self, dice: &mut Dice) {
        for volume in self.engine.volumes() {
            let Ok(stats) = self.engine.stats(volume) else { continue };
            let unflushed = stats.published.0.saturating_sub(stats.flushed.0);
            let through = SequenceNumber(stats.flushed.0 + dice.below(unflushed + 1));
            // It was listed just now.
            let _ = self.engine.flush_through(volume, through);
        }
    }

    pub(crate) fn now(&self, world_us: u64) -> Now {
        self.clock.at(world_us)
    }

    /// Opens a shard in a volume, for the apply thread.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn open_shard(
        &mut self,
        shard: ShardId,
        replica: ReplicaId,
        volume: VolumeId,
        birth: &Bytes,
        start: LogPosition,
    ) -> Result<(), String> {
        let engine: Arc<dyn Engine> = Arc::new(self.engine.clone());
        let Some(core) = &mut self.core else { return Ok(()) };
        let is_open =
            |open: &Shard<SimMachine>| open.replica() == replica && open.volume() == volume;
        if core.shards.get(&shard).is_some_and(is_open) {
            // A split has opened it.
            return Ok(());
        }
        let machine = machine_of(self.is_coordinator, &core.control);
        let opened = Shard::open(engine, replica, volume, birth, start, machine)
            .map_err(|error| format!("shard {shard} can't be opened: {error}"))?;
        core.shards.insert(shard, opened);
        Ok(())
    }
}

fn machine_of(is_coordinator: bool, control: &SharedControl) -> SimMachine {
    if is_coordinator { SimMachine::Control(control.clone()) } else { SimMachine::Data }
}

impl Core {
    pub(crate) fn fresh_volume(&mut self) -> VolumeId {
        let volume = self.next_volume;
        self.next_volume = volume.next();
        volume
    }

    pub(crate) fn note(
        &mut self,
        volume: VolumeId,
        shard: ShardId,
        replica: ReplicaId,
        sequence: SequenceNumber,
        applied: LogIndex,
    ) {
        let note = Note { shard, replica, sequence, applied };
        self.notes.entry(volume).or_default().push_back(note);
    }

    /// Whether entries of a shard were applied that no flush holds yet.
    pub(crate) fn has_replayed(&self, shard: ShardId) -> bool {
        self.notes.values().flatten().any(|note| note.shard == shard)
    }

    /// What a flush of a volume has made durable: shard, replica, applied index.
    pub(crate) fn flushed(
        &mut self,
        volume: VolumeId,
        through: SequenceNumber,
    ) -> Vec<(ShardId, ReplicaId, LogIndex)> {
        let Some(notes) = self.notes.get_mut(&volume) else { return Vec::new() };
        let mut last = BTreeMap::new();
        while notes.front().is_some_and(|note| note.sequence <= through) {
            if let Some(note) = notes.pop_front() {
                last.insert((note.shard, note.replica), note.applied);
            }
        }
        last.into_iter().map(|((shard, replica), applied)| (shard, replica, applied)).collect()
    }

    /// A volume with something to flush, by chance.
    pub(crate) fn noted_volumes(&self) -> Vec<VolumeId> {
        self.notes.iter().filter(|(_, notes)| !notes.is_empty()).map(|(id, _)| *id).collect()
    }

    pub(crate) fn forget_volume(&mut self, volume: VolumeId) {
        self.notes.remove(&volume);
    }

    pub(crate) fn leads(&self, shard: ShardId) -> bool {
        self.standings.get(&shard).is_some_and(|standing| standing.is_leader)
    }

    /// Whether it leads, and the members, as applied, may be told to others.
    pub(crate) fn is_settled(&self, shard: ShardId) -> bool {
        let standing = self.standings.get(&shard).filter(|standing| standing.is_leader);
        standing.zip(self.shards.get(&shard)).is_some_and(|(standing, open)| {
            standing.settled == Some((standing.term, open.descriptor().membership_epoch))
        })
    }
}
