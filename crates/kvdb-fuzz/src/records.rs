//! What the engine holds of a shard: data, the replica's state, its request window.

use bytes::Bytes;
use kvdb_engine::{Batch, Engine, MemoryEngine};
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, KeyRange, KeyspaceId, LogEntry, MembershipEpoch, NodeId,
    Operation, RangeEpoch, Replica, ReplicaId, RequestTag, Role, ShardDescriptor, ShardId, Term,
    Version, VolumeId, Write,
};
use kvdb_store::keys::Expiry;
use kvdb_store::string::Set;
use kvdb_store::{Command as _, NoControl, OpenError, Shard, View, digest};
use std::sync::Arc;

pub(crate) const REPLICA: ReplicaId = ReplicaId(10);
pub(crate) const VOLUME: VolumeId = VolumeId(1);
const EPOCH: RangeEpoch = RangeEpoch(1);

/// The first two bytes choose a stored record and whether its checksum is made right; the rest
/// takes the place of its value.
pub fn engine_records(data: &[u8]) {
    let [place, choice, rest @ ..] = data else { return };
    let engine = a_volume();
    let stored = everything(&engine);
    let (key, _) = &stored[usize::from(*place) % stored.len()];
    let mut value = rest.to_vec();
    if choice % 2 == 1 && value.len() >= 4 {
        // Data records: over the routing key and what follows. Others have seals of their own.
        let crc = crc32c::crc32c_append(crc32c::crc32c(&key[1..]), &value[4..]);
        value[..4].copy_from_slice(&crc.to_le_bytes());
    }
    let mut batch = Batch::default();
    batch.put(key.clone(), value);
    engine.write(VOLUME, batch).expect("the volume is there");
    let snapshot = engine.snapshot(VOLUME).expect("the volume is there");
    if let Ok(view) = View::new(&*snapshot, REPLICA) {
        let _ = view.get(EPOCH, b"key", 0);
    }
    let _ = digest(&*snapshot, REPLICA);
    let _ = open(&engine);
}

pub(crate) fn descriptor() -> ShardDescriptor {
    ShardDescriptor {
        shard_id: ShardId(4),
        keyspace_id: KeyspaceId(1),
        range: KeyRange::ALL,
        range_epoch: EPOCH,
        membership_epoch: MembershipEpoch(1),
        replicas: vec![Replica { node_id: NodeId(1), replica_id: REPLICA, role: Role::Voter }],
    }
}

pub(crate) fn open(engine: &MemoryEngine) -> Result<Shard<NoControl>, OpenError> {
    let engine: Arc<dyn Engine> = Arc::new(engine.clone());
    let birth = descriptor().to_bytes();
    Shard::open(engine, REPLICA, VOLUME, &birth, INITIAL_POSITION, NoControl)
}

/// A write with a request id.
pub(crate) fn a_write() -> EntryCommand {
    let put = |key: &'static [u8], value: &'static [u8], ttl_ms| {
        let set = Set { value: Bytes::from_static(value), expiry: Expiry::after(ttl_ms) };
        Operation { return_previous: true, ..set.on(Bytes::from_static(key)) }
    };
    let request = RequestTag {
        client_id: Bytes::from_static(b"client"),
        sequence: 7,
        acked_below: 3,
        valid_until: kvdb_model::ValidUntil::Time(2_000_000),
    };
    let operations = vec![put(b"key", b"value", Some(60_000)), put(b"other", b"", None)];
    EntryCommand::Write(Write { epoch: EPOCH, atomic: true, request: Some(request), operations })
}

/// A shard in which something was written.
pub(crate) fn a_volume() -> MemoryEngine {
    let engine = MemoryEngine::new();
    engine.create_volume(VOLUME).expect("the engine is empty");
    let mut shard = open(&engine).expect("a new volume opens");
    let command = a_write();
    let payload = EntryPayload {
        version: Version::from_millis(1_900_000),
        version_count: command.version_count(),
        jump_ms: 0,
        commands: vec![command.to_bytes()],
    };
    let entry = LogEntry {
        index: INITIAL_POSITION.index.next(),
        term: Term(6),
        kind: EntryKind::Normal,
        data: payload.to_bytes(),
        context: Bytes::new(),
    };
    shard.apply(&[entry]).expect("a good entry applies");
    engine
}

pub(crate) fn everything(engine: &MemoryEngine) -> Vec<(Bytes, Bytes)> {
    let snapshot = engine.snapshot(VOLUME).expect("the volume is there");
    let items = snapshot.scan(&KeyRange::ALL, false);
    items.collect::<Result<_, _>>().expect("it can be read")
}
