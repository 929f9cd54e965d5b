//! The hot pieces, each as one step that is done again and again: for times (`benches/hot.rs`) and
//! for instruction counts (`examples/hot.rs`).
//!
//! Sizes are those of the other figures: keys of 16 bytes, values of 128, 16 operations an entry.

use bytes::{Bytes, BytesMut};
use kvdb_engine::Engine;
use kvdb_engine_lsm::{LsmConfig, LsmEngine};
use kvdb_model::key::slot_start;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, KeyRange, Keyspace, KeyspaceId, LogEntry, LogIndex,
    LogPosition, MapChange, MembershipEpoch, NodeId, NodeRecord, NodeStatus, Partitioning,
    RangeEpoch, Replica, ReplicaId, Role, SLOT_COUNT, ShardDescriptor, ShardId, ShardMap,
    ShardRecord, Term, Version, VolumeId, WalRecord, Write,
};
use kvdb_redis::Parser;
use kvdb_router::{MapCache, Routes};
use kvdb_store::keys::Expiry;
use kvdb_store::string::Set;
use kvdb_store::{Command as _, NoControl, Shard};
use kvdb_wal::{Disk, Wal, WalConfig};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

const KEYSPACE: KeyspaceId = KeyspaceId(1);
const KEYS: u64 = 10_000;
const SHARDS: u16 = 1000;
const OPERATIONS: usize = 16;
const VALUE_BYTES: usize = 128;
const REPLICA: ReplicaId = ReplicaId(1);
const VOLUME: VolumeId = VolumeId(1);
const TERM: Term = Term(6);
/// Entries after which the log is told that those before aren't needed, and the engine flushes.
const ENTRIES_KEPT: u64 = 4096;

fn user_key(number: u64) -> Bytes {
    format!("bench:{:010}", number.wrapping_mul(2_654_435_761) % KEYS).into()
}

fn routing_key(number: u64) -> Bytes {
    Partitioning::Hash.routing_key(KEYSPACE, &user_key(number))
}

fn descriptor(shard: u16, shards: u16) -> ShardDescriptor {
    let start = |shard: u16| {
        slot_start(KEYSPACE, (u32::from(shard) * u32::from(SLOT_COUNT) / u32::from(shards)) as u16)
    };
    let whole = KeyRange::of_keyspace(KEYSPACE);
    let end = if shard + 1 == shards { whole.end } else { start(shard + 1) };
    let replica = |node| Replica {
        node_id: NodeId(node),
        replica_id: ReplicaId(u64::from(shard) * 3 + node),
        role: Role::Voter,
    };
    ShardDescriptor {
        shard_id: ShardId(u64::from(shard) + 1),
        keyspace_id: KEYSPACE,
        range: KeyRange::new(start(shard), end),
        range_epoch: RangeEpoch(1),
        membership_epoch: MembershipEpoch(1),
        replicas: (1..=3).map(replica).collect(),
    }
}

/// From a user key to the shard, node and address, with 1,000 shards.
pub struct Routing {
    routes: Routes,
    keys: Vec<Bytes>,
    at: usize,
}

impl Routing {
    pub fn new() -> Self {
        let mut map = ShardMap::default();
        map.change(MapChange::Keyspace(Keyspace::new(KEYSPACE, "default", Partitioning::Hash)));
        for node in 1..=3 {
            map.change(MapChange::Node(NodeRecord {
                node_id: NodeId(node),
                least_replica: Default::default(),
                address: format!("127.0.0.1:720{node}"),
                zone: String::new(),
                status: NodeStatus::Alive,
            }));
        }
        for shard in 0..SHARDS {
            map.change(MapChange::Shard(ShardRecord {
                descriptor: descriptor(shard, SHARDS),
                leader: Some(NodeId(u64::from(shard) % 3 + 1)),
                leader_term: TERM,
                creating: false,
            }));
        }
        let mut cache = MapCache::default();
        cache.snapshot(map);
        let keys = (0..KEYS).map(user_key).collect();
        Routing { routes: cache.routes(), keys, at: 0 }
    }

    pub fn step(&mut self) {
        self.at = (self.at + 1) % self.keys.len();
        let keyspace = self.routes.keyspace("").expect("it is in the map");
        let key = keyspace.partitioning.routing_key(keyspace.keyspace_id, &self.keys[self.at]);
        let route = self.routes.route(&key, None).expect("shards cover all keys");
        black_box(self.routes.address(route.node));
        black_box(route);
    }
}

fn put(number: u64) -> EntryCommand {
    let set = Set { value: vec![number as u8; VALUE_BYTES].into(), expiry: Expiry::Never };
    EntryCommand::Write(Write {
        epoch: RangeEpoch(1),
        atomic: false,
        request: None,
        operations: vec![set.on(routing_key(number))],
    })
}

fn payload(commands: &[EntryCommand], version: u64) -> Bytes {
    let payload = EntryPayload {
        version: Version::from_millis(version),
        version_count: commands.iter().map(EntryCommand::version_count).sum(),
        jump_ms: 0,
        commands: commands.iter().map(EntryCommand::to_bytes).collect(),
    };
    payload.to_bytes()
}

/// Packs 16 puts into an entry and takes them out of it again.
pub struct Codec {
    commands: Vec<EntryCommand>,
}

impl Codec {
    pub fn new() -> Self {
        Codec { commands: (0..OPERATIONS as u64).map(put).collect() }
    }

    pub fn step(&mut self) {
        let bytes = payload(black_box(&self.commands), 1);
        let read = EntryPayload::decode(bytes).expect("it was just packed");
        for command in read.commands {
            black_box(EntryCommand::decode(command).expect("it was just packed"));
        }
    }
}

fn entry(index: LogIndex, data: Bytes) -> LogEntry {
    LogEntry { index, term: TERM, kind: EntryKind::Normal, data, context: Bytes::new() }
}

/// Appends an entry of 16 puts to the log and syncs it.
pub struct Append<D> {
    wal: Wal<D>,
    data: Bytes,
    index: LogIndex,
}

impl<D: Disk> Append<D> {
    pub fn new(disk: D) -> Self {
        // Small segments: rolling to the next is a part of it.
        let config = WalConfig {
            first_segment_bytes: 8 * 1024 * 1024,
            segment_bytes: 8 * 1024 * 1024,
            ..WalConfig::default()
        };
        let (mut wal, _) = Wal::open(disk, config).expect("the disk is empty");
        let created = WalRecord::Created {
            replica: REPLICA,
            shard: ShardId(1),
            volume: Some(VOLUME),
            start: INITIAL_POSITION,
            birth: descriptor(0, 1).to_bytes(),
        };
        wal.append(&[created]).expect("the disk has room");
        let commands: Vec<EntryCommand> = (0..OPERATIONS as u64).map(put).collect();
        Append { wal, data: payload(&commands, 1), index: INITIAL_POSITION.index }
    }

    pub fn step(&mut self) {
        self.index = self.index.next();
        let entries = vec![entry(self.index, self.data.clone())];
        let mut records = vec![WalRecord::Append { replica: REPLICA, entries }];
        if self.index.0.is_multiple_of(ENTRIES_KEPT) {
            let through = LogPosition { index: self.index, term: TERM };
            records.push(WalRecord::Compacted { replica: REPLICA, through });
        }
        self.wal.append(&records).expect("the disk has room");
        self.wal.sync().expect("the disk is well");
    }
}

/// Applies an entry of 16 puts to a shard on the real engine.
pub struct Apply {
    engine: Arc<dyn Engine>,
    shard: Shard<NoControl>,
    index: LogIndex,
    commands: Vec<Vec<EntryCommand>>,
}

impl Apply {
    /// `folder` must be empty.
    pub fn new(folder: &Path) -> Self {
        let engine = LsmEngine::open(folder, LsmConfig::default()).expect("the folder is empty");
        let engine: Arc<dyn Engine> = Arc::new(engine);
        engine.create_volume(VOLUME).expect("the engine is empty");
        let birth = descriptor(0, 1).to_bytes();
        let opened =
            Shard::open(Arc::clone(&engine), REPLICA, VOLUME, &birth, INITIAL_POSITION, NoControl);
        let shard = opened.expect("the volume is new");
        let numbers: Vec<u64> = (0..KEYS).collect();
        let commands =
            numbers.chunks(OPERATIONS).map(|some| some.iter().map(|n| put(*n)).collect());
        Apply { engine, shard, index: INITIAL_POSITION.index, commands: commands.collect() }
    }

    pub fn step(&mut self) {
        self.index = self.index.next();
        let commands = &self.commands[self.index.0 as usize % self.commands.len()];
        let entry = entry(self.index, payload(commands, self.index.0));
        black_box(self.shard.apply(&[entry]).expect("the engine is well"));
        if self.index.0.is_multiple_of(ENTRIES_KEPT) {
            self.engine.flush(VOLUME).expect("the engine is well");
        }
    }
}

/// Parses 16 SETs that came in one piece.
pub struct Resp {
    parser: Parser,
    stream: Vec<u8>,
    input: BytesMut,
}

impl Resp {
    pub fn new() -> Self {
        let set = |number| {
            let mut bytes = b"*3\r\n$3\r\nSET\r\n$16\r\n".to_vec();
            bytes.extend_from_slice(&user_key(number));
            bytes.extend_from_slice(format!("\r\n${VALUE_BYTES}\r\n").as_bytes());
            bytes.extend_from_slice(&[b'v'; VALUE_BYTES]);
            bytes.extend_from_slice(b"\r\n");
            bytes
        };
        let stream = (0..OPERATIONS as u64).flat_map(set).collect();
        Resp { parser: Parser::default(), stream, input: BytesMut::new() }
    }

    pub fn step(&mut self) {
        self.input.extend_from_slice(&self.stream);
        let mut requests = 0;
        while let Some(request) = self.parser.next(&mut self.input).expect("they are well formed") {
            black_box(request);
            requests += 1;
        }
        assert_eq!(requests, OPERATIONS);
    }
}
