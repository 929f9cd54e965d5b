//! One node: a host with its disk, its engine and its apply thread.

use super::disk::{Disk, ReplicaLog};
use super::machine::{State, Volumes};
use kvdb_model::codec::Reader;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{LogPosition, ReplicaId, ShardDescriptor, ShardId, VolumeId};
use kvdb_replication::{ApplyTask, Host, HostConfig, Input, Now, RecoveredGroup};
use std::collections::{BTreeMap, VecDeque};

/// The wall clock at the start of each story, in milliseconds.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

pub struct Node {
    pub id: u64,
    pub host: Option<Host<u64>>,
    /// Events of an earlier life are recognised by it.
    pub life: u64,
    pub paused: bool,
    /// What waits for a paused node.
    pub inbox: VecDeque<Input<u64>>,
    pub disk: Disk,
    pub volumes: Volumes,
    pub homes: BTreeMap<ShardId, (ReplicaId, VolumeId)>,
    pub tasks: VecDeque<ApplyTask<u64>>,
    pub apply_held: bool,
    pub applying: bool,
    pub taken: BTreeMap<(ShardId, ReplicaId), State>,
    pub wall_offset_ms: i64,
}

impl Node {
    pub fn new(config: HostConfig, now_us: u64) -> Self {
        let mut node = Node {
            id: config.node_id.0,
            host: None,
            life: 0,
            paused: false,
            inbox: VecDeque::new(),
            disk: Disk::default(),
            volumes: Volumes::default(),
            homes: BTreeMap::new(),
            tasks: VecDeque::new(),
            apply_held: false,
            applying: false,
            taken: BTreeMap::new(),
            wall_offset_ms: 0,
        };
        node.start(config, now_us);
        node.hear_time(now_us);
        node
    }

    pub fn now(&self, now_us: u64) -> Now {
        let wall_ms = (EPOCH_MS + now_us / 1000) as i64 + self.wall_offset_ms;
        Now { boot_us: now_us, wall_ms: wall_ms as u64 }
    }

    pub fn state(&self, shard: ShardId) -> Option<&State> {
        let (_, volume) = self.homes.get(&shard)?;
        self.volumes.memory.get(volume)
    }

    pub fn state_mut(&mut self, shard: ShardId) -> Option<&mut State> {
        let (_, volume) = self.homes.get(&shard)?;
        self.volumes.memory.get_mut(volume)
    }

    pub fn stop(&mut self, kept_records: usize) {
        self.host = None;
        self.life += 1;
        self.paused = false;
        self.inbox.clear();
        self.disk.crash(kept_records);
        self.volumes.memory.clear();
        self.homes.clear();
        self.tasks.clear();
        self.apply_held = false;
        self.applying = false;
        self.taken.clear();
    }

    /// Brings back what the disk holds.
    pub fn start(&mut self, config: HostConfig, now_us: u64) {
        let now = self.now(now_us);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut host = Host::new(config, self.disk.durable.tombstones.clone(), logger);
        for (replica, log) in self.disk.durable.replicas.clone() {
            let group = self.recover(replica, log);
            host.recover(now, group);
        }
        self.host = Some(host);
    }

    /// As a coordinator tells it: by no clock of this node.
    pub fn hear_time(&mut self, now_us: u64) {
        let now = self.now(now_us);
        if let Some(host) = &mut self.host {
            host.step(now, Input::ClusterTime(EPOCH_MS + now_us / 1000));
        }
    }

    fn recover(&mut self, replica: ReplicaId, log: ReplicaLog) -> RecoveredGroup {
        let state = log
            .volume
            .and_then(|volume| self.recover_state(volume, &log))
            .filter(|state| state.applied >= log.start);
        let engine_lost = log.volume.is_some() && state.is_none();
        if let (Some(state), Some(volume)) = (&state, log.volume) {
            self.volumes.memory.insert(volume, state.clone());
            self.homes.insert(log.shard, (replica, volume));
        }
        RecoveredGroup {
            replica,
            shard: log.shard,
            volume: log.volume,
            hard_state: log.hard_state,
            start: log.start,
            entries: log.entries,
            applied: state.as_ref().map_or(LogPosition::default(), |state| state.applied),
            // What is known of one whose engine is lost is how it was born.
            descriptor: match &state {
                Some(state) => Some(state.descriptor.clone()),
                None => ShardDescriptor::decode(&mut Reader::new(log.birth.clone())).ok(),
            },
            time: state.map(|state| state.time()).unwrap_or_default(),
            engine_lost,
        }
    }

    fn recover_state(&self, volume: VolumeId, log: &ReplicaLog) -> Option<State> {
        let born = || State::born(&log.birth, INITIAL_POSITION);
        let flushed = self.volumes.flushed.get(&volume).cloned();
        flushed.or_else(|| (!log.birth.is_empty()).then(born))
    }
}
