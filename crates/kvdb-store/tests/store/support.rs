//! A shard on a memory engine, and a log to feed it from.

use bytes::Bytes;
use kvdb_engine::{Batch, Engine, MemoryEngine, Snapshot};
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    Condition, EntryCommand, EntryKind, EntryPayload, KeyRange, KeyspaceId, LogEntry, LogIndex,
    MembershipEpoch, NodeId, Operation, OperationOutcome, RangeEpoch, Replica, ReplicaId,
    RequestTag, Role, ShardDescriptor, ShardId, Term, Version, VolumeId, Write,
};
use kvdb_store::keys::{Delete, Expiry, ExpiryRule, SetExpiry};
use kvdb_store::string::{Increment, Set};
use kvdb_store::{Applied, CommandOutcome, MembershipChange, NoControl, Shard};
use std::sync::Arc;

pub const REPLICA: ReplicaId = ReplicaId(10);
pub const VOLUME: VolumeId = VolumeId(1);
pub const EPOCH: RangeEpoch = RangeEpoch(3);
/// Shard time of the first entry of a log.
pub const START_MS: u64 = 1_000_000;

/// A shard of the keys from `b` to `y`.
pub fn descriptor() -> ShardDescriptor {
    ShardDescriptor {
        shard_id: ShardId(4),
        keyspace_id: KeyspaceId(0),
        range: KeyRange::new("b", "y"),
        range_epoch: EPOCH,
        membership_epoch: MembershipEpoch(1),
        replicas: vec![Replica { node_id: NodeId(1), replica_id: REPLICA, role: Role::Voter }],
    }
}

pub fn engine() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.create_volume(VOLUME).expect("the engine is empty");
    engine
}

pub fn open(engine: &MemoryEngine, replica: ReplicaId, volume: VolumeId) -> Shard<NoControl> {
    let birth = descriptor().to_bytes();
    let engine: Arc<dyn Engine> = Arc::new(engine.clone());
    Shard::open(engine, replica, volume, &birth, INITIAL_POSITION, NoControl)
        .expect("the volume is sound")
}

/// A shard as it is born.
pub fn newborn() -> (MemoryEngine, Shard<NoControl>) {
    let engine = engine();
    let shard = open(&engine, REPLICA, VOLUME);
    (engine, shard)
}

pub fn snapshot(engine: &MemoryEngine) -> Box<dyn Snapshot> {
    engine.snapshot(VOLUME).expect("the volume is there")
}

/// All that a volume holds.
pub fn everything(engine: &MemoryEngine, volume: VolumeId) -> Vec<(Bytes, Bytes)> {
    let snapshot = engine.snapshot(volume).expect("the volume is there");
    snapshot.scan(&KeyRange::ALL, false).collect::<Result<_, _>>().expect("it can be read")
}

/// Flips a bit of what is stored under the first key that ends with `suffix`.
pub fn damage(engine: &MemoryEngine, suffix: &[u8]) {
    let (key, value) = everything(engine, VOLUME)
        .into_iter()
        .find(|(key, _)| key.ends_with(suffix))
        .expect("there is such a key");
    let mut flipped = value.to_vec();
    *flipped.last_mut().expect("records are not empty") ^= 1;
    let mut batch = Batch::default();
    batch.put(key, flipped);
    engine.write(VOLUME, batch).expect("the volume is there");
}

/// A committed log.
pub struct Log {
    pub entries: Vec<LogEntry>,
    pub now_ms: u64,
    last: Version,
}

impl Log {
    pub fn new() -> Self {
        Log { entries: vec![], now_ms: START_MS, last: Version::ZERO }
    }

    /// The index of the last entry.
    pub fn last_index(&self) -> LogIndex {
        LogIndex(INITIAL_POSITION.index.0 + self.entries.len() as u64)
    }

    pub fn push_raw(&mut self, kind: EntryKind, data: Bytes, context: Bytes) -> LogEntry {
        let index = self.last_index().next();
        let entry = LogEntry { index, term: Term(6), kind, data, context };
        self.entries.push(entry.clone());
        entry
    }

    /// An entry of these commands; its first version is above all others and at `now_ms`.
    pub fn push(&mut self, commands: &[EntryCommand]) -> (LogEntry, Version) {
        let version = self.last.plus(1).max(Version::from_millis(self.now_ms));
        let payload = EntryPayload {
            version,
            version_count: commands.iter().map(EntryCommand::version_count).sum(),
            jump_ms: 0,
            commands: commands.iter().map(EntryCommand::to_bytes).collect(),
        };
        self.last = payload.last_version();
        (self.push_raw(EntryKind::Normal, payload.to_bytes(), Bytes::new()), version)
    }

    pub fn push_empty(&mut self) -> LogEntry {
        self.push_raw(EntryKind::Normal, Bytes::new(), Bytes::new())
    }

    pub fn push_membership(&mut self, change: &MembershipChange) -> LogEntry {
        let context = change.to_bytes(&descriptor());
        self.push_raw(EntryKind::ConfChange, Bytes::from_static(b"raft's"), context)
    }
}

/// A shard with its log: each write is an entry of its own, applied at once.
pub struct Single {
    pub engine: MemoryEngine,
    pub shard: Shard<NoControl>,
    pub log: Log,
}

impl Single {
    pub fn new() -> Self {
        let (engine, shard) = newborn();
        Single { engine, shard, log: Log::new() }
    }

    pub fn write(&mut self, write: Write) -> (Vec<OperationOutcome>, Version) {
        let (entry, version) = self.log.push(&[EntryCommand::Write(write)]);
        let applied = self.apply(&[entry]);
        match applied.entries.into_iter().next().and_then(|entry| entry.commands.into_iter().next())
        {
            Some(CommandOutcome::Written(outcomes)) => (outcomes, version),
            other => panic!("a write came to {other:?}"),
        }
    }

    /// One operation.
    pub fn one(&mut self, operation: Operation) -> OperationOutcome {
        self.write(write(vec![operation])).0.remove(0)
    }

    pub fn advance_time(&mut self, millis: u64) {
        self.log.now_ms += millis;
        let (entry, _) = self.log.push(&[EntryCommand::AdvanceTime]);
        self.apply(&[entry]);
    }

    pub fn apply(&mut self, entries: &[LogEntry]) -> Applied {
        self.shard.apply(entries).expect("the volume is sound")
    }

    /// The value of a key, as a read without a clock sees it.
    pub fn value(&self, key: &str) -> Option<Bytes> {
        let snapshot = snapshot(&self.engine);
        let read = kvdb_store::get(&*snapshot, REPLICA, EPOCH, key.as_bytes(), 0);
        read.expect("the key is in range").record.map(|record| record.value)
    }
}

pub fn write(operations: Vec<Operation>) -> Write {
    Write { epoch: EPOCH, atomic: false, request: None, operations }
}

pub fn atomic(operations: Vec<Operation>) -> Write {
    Write { atomic: true, ..write(operations) }
}

pub fn tagged(sequence: u64, write: Write) -> Write {
    let request = RequestTag {
        client_id: "client".into(),
        sequence,
        acked_below: 0,
        valid_until: kvdb_model::ValidUntil::Time(START_MS + 500_000),
    };
    Write { request: Some(request), ..write }
}

/// A command on a key.
pub fn on(key: &str, command: impl kvdb_store::Command) -> Operation {
    command.on(Bytes::copy_from_slice(key.as_bytes()))
}

/// The same, as a Redis transaction has it: its failure leaves the others alone.
pub fn lenient(key: &str, command: impl kvdb_store::Command) -> Operation {
    Operation { required: false, ..on(key, command) }
}

fn set(key: &str, value: &str, ttl_ms: Option<u64>) -> Operation {
    let value = Bytes::copy_from_slice(value.as_bytes());
    on(key, Set { value, expiry: Expiry::after(ttl_ms) })
}

pub fn put(key: &str, value: &str) -> Operation {
    set(key, value, None)
}

pub fn put_for(key: &str, value: &str, ttl_ms: u64) -> Operation {
    set(key, value, Some(ttl_ms))
}

pub fn delete(key: &str) -> Operation {
    on(key, Delete)
}

pub fn increment(key: &str, delta: i64) -> Operation {
    on(key, Increment { delta })
}

pub fn expire(key: &str, ttl_ms: Option<u64>) -> Operation {
    on(key, SetExpiry { expiry: Expiry::after(ttl_ms), rule: ExpiryRule::ALWAYS })
}

pub trait With {
    /// Under a condition.
    fn when(self, condition: Condition) -> Self;
    /// With what was there before in the answer.
    fn previous(self) -> Self;
    /// As this item of its request.
    fn item(self, item: u32) -> Self;
    /// With this other key.
    fn and(self, other: &'static str) -> Self;
}

impl With for Operation {
    fn when(self, condition: Condition) -> Self {
        Operation { condition: Some(condition), ..self }
    }

    fn previous(self) -> Self {
        Operation { return_previous: true, ..self }
    }

    fn item(self, item: u32) -> Self {
        Operation { item, ..self }
    }

    fn and(mut self, other: &'static str) -> Self {
        self.others.push(other.into());
        self
    }
}
