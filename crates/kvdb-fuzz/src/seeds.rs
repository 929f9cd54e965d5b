//! Where fuzzing begins: real data of each kind.

use crate::records::{REPLICA, VOLUME, a_volume, a_write, descriptor, everything};
use bytes::Bytes;
use kvdb_control::ControlCommand;
use kvdb_engine::Engine;
use kvdb_model::{
    ClusterId, EntryPayload, MapVersion, NodeId, NodeRecord, NodeStatus, Refusal, ShardId,
    ShardMap, ShardRecord, Term, Version,
};
use kvdb_store::hyperloglog::Sketch;
use kvdb_store::{MembershipChange, SnapshotWriter};
use kvdb_wire::proto;
use prost::Message;

fn chosen(choice: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    [&[choice], content.as_ref()].concat()
}

pub(crate) fn wal_frames() -> Vec<Vec<u8>> {
    // Replica 3 of shard 2: created, an entry, a hard state, compacted, switched, destroyed.
    let created = [1, 3, 2, 1, 1, 5, 5, 1, b'x'];
    let append = [2, 3, 1, 6, 5, 0, 1, b'e', 0];
    let hard_state = [3, 3, 7, 3, 6];
    let compacted = [4, 3, 6, 5];
    let switched = [5, 3, 9, 20, 7];
    let destroyed = [6, 3, 2];
    let frame = |kind: u8, content: &[u8]| [&[content.len() as u8, 0, kind], content].concat();
    let records = [&created[..], &append, &hard_state].concat();
    let story = [
        frame(0, &records),
        frame(1, &[]),
        frame(0, &compacted),
        frame(2, &created),
        frame(3, &hard_state),
        frame(0, &switched),
        frame(0, &destroyed),
    ];
    let header = crate::wal::segment_header(1, 1);
    vec![chosen(2, story.concat()), chosen(2, frame(0, &records)), chosen(0, header), chosen(1, [])]
}

pub(crate) fn engine_records() -> Vec<Vec<u8>> {
    let stored = everything(&a_volume());
    let each = stored.iter().enumerate();
    each.flat_map(|(place, (_, value))| {
        [0, 1].map(|choice| [&[place as u8, choice], &value[..]].concat())
    })
    .collect()
}

pub(crate) fn snapshots() -> Vec<Vec<u8>> {
    let engine = a_volume();
    let snapshot = engine.snapshot(VOLUME).expect("the volume is there");
    let writer = SnapshotWriter::new(snapshot, REPLICA).expect("the replica is in it");
    let mut chunks = Vec::new();
    let written = writer.write(|chunk| {
        chunks.extend_from_slice(&(chunk.len() as u16).to_le_bytes());
        chunks.extend_from_slice(&chunk);
        true
    });
    written.expect("it can be read");
    // The first chunk's items, to be packed again: after checksum, format, sequence, tag, count.
    let items = items_of(&chunks);
    vec![chosen(0, chunks), chosen(1, items)]
}

fn items_of(chunks: &[u8]) -> Vec<u8> {
    use kvdb_model::codec::Reader;
    let length = usize::from(u16::from_le_bytes([chunks[0], chunks[1]]));
    let mut input = Reader::new(Bytes::copy_from_slice(&chunks[2..2 + length]));
    let mut read = || {
        let _ = (input.u32()?, input.u8()?, input.varint()?, input.u8()?);
        let mut out = Vec::new();
        for _ in 0..2 * input.varint()? {
            let field = input.bytes()?;
            out.push(field.len() as u8);
            out.extend_from_slice(&field);
        }
        Ok::<_, kvdb_model::codec::DecodeError>(out)
    };
    read().expect("it was just written")
}

pub(crate) fn commands() -> Vec<Vec<u8>> {
    let write = a_write();
    let payload = EntryPayload {
        version: Version::from_millis(1_900_000),
        version_count: 1,
        jump_ms: 0,
        commands: vec![write.to_bytes()],
    };
    let register = ControlCommand::RegisterNode {
        token: 9,
        address: "127.0.0.1:7201".to_owned(),
        zone: "a".to_owned(),
    };
    let init = ControlCommand::InitShards { shards: 8, replication_factor: 3 };
    let done = kvdb_control::encode_result(&Ok(kvdb_control::ControlResponse::Done(MapVersion(3))));
    let descriptor = descriptor();
    let change = MembershipChange {
        expected: descriptor.membership_epoch,
        replicas: descriptor.replicas.clone(),
    };
    vec![
        chosen(0, payload.to_bytes()),
        chosen(1, write.to_bytes()),
        chosen(2, register.to_bytes()),
        chosen(2, init.to_bytes()),
        chosen(3, done),
        chosen(4, descriptor.to_bytes()),
        chosen(5, change.to_bytes(&descriptor)),
    ]
}

pub(crate) fn protobuf() -> Vec<Vec<u8>> {
    let descriptor = descriptor();
    let node = NodeRecord {
        node_id: NodeId(1),
        address: "127.0.0.1:7201".to_owned(),
        zone: String::new(),
        status: NodeStatus::Alive,
        least_replica: Default::default(),
    };
    let shard = ShardRecord {
        descriptor: descriptor.clone(),
        leader: Some(NodeId(1)),
        leader_term: Term(6),
        creating: false,
    };
    let map = ShardMap {
        cluster_id: ClusterId(7),
        version: MapVersion(3),
        nodes: [(NodeId(1), node)].into(),
        shards: [(ShardId(4), shard)].into(),
        ..ShardMap::default()
    };
    let refusal = Refusal::NotLeader { shard_id: ShardId(4), leader_hint: Some("a:1".to_owned()) };
    let put = proto::PutRequest {
        key: Bytes::from_static(b"key"),
        value: Bytes::from_static(b"value"),
        ttl_ms: 5,
        ..Default::default()
    };
    let scan = proto::ScanRequest { prefix: Bytes::from_static(b"k"), ..Default::default() };
    vec![
        chosen(0, kvdb_wire::descriptor_to(&descriptor).encode_to_vec()),
        chosen(1, kvdb_wire::shard_map_to(&map).encode_to_vec()),
        chosen(3, kvdb_wire::refusal_to_proto(&refusal).encode_to_vec()),
        chosen(5, put.encode_to_vec()),
        chosen(7, scan.encode_to_vec()),
        chosen(11, raft_message()),
    ]
}

fn raft_message() -> Vec<u8> {
    let mut message = kvdb_replication::message::Message::default();
    message.set_msg_type(kvdb_replication::message::MessageType::MsgAppend);
    message.to = 2;
    message.from = 1;
    message.term = 6;
    message.set_context(b"context".to_vec().into());
    kvdb_replication::message::encode(&message)
}

pub(crate) fn import_files() -> Vec<Vec<u8>> {
    let json = concat!(
        r#"{"key":"a","value":"b","ttl_ms":5}"#,
        "\n",
        r#"{"key_b64":"/w==","value_b64":""}"#,
        "\n"
    );
    vec![
        chosen(0, "key\tvalue\tmore\nnext\t\n"),
        chosen(1, json),
        chosen(2, json),
        chosen(2, "naïve\t\"quoted\"\r\n"),
    ]
}

pub(crate) fn redis_requests() -> Vec<Vec<u8>> {
    vec![
        chosen(0, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*2\r\n$3\r\nget\r\n$1\r\nk\r\n"),
        chosen(2, "set k \"a \\x41\" 'b' \r\nmulti\r\nbitfield k set u8 #1 255\r\nexec\r\n"),
        chosen(6, "*1\r\n$-10\r\n*3000000000\r\n"),
        chosen(
            9,
            "hello 3\r\nclient reply skip\r\nscan 0 match a* count 5\r\nexpire k 5 nx gt\r\n",
        ),
    ]
}

pub(crate) fn hyperloglogs() -> Vec<Vec<u8>> {
    let of = |elements: u32| {
        let mut sketch = Sketch::default();
        for element in 0..elements {
            let _ = sketch.add(&element.to_le_bytes());
        }
        sketch.changed()
    };
    let [few, many] = [of(10), of(3_000)];
    vec![chosen(0, &few), chosen(0, &many), chosen(1, &few[16..]), chosen(2, &many[16..])]
}

/// Of each form one, without its checksum, and one with it.
pub(crate) fn redis_dumps() -> Vec<Vec<u8>> {
    let forms: [&[u8]; 14] = [
        b"\x00\xc3\x09@d\x01aa\xe0W\x00\x01aa",
        b"\x01\x03\x01a\x01b\xc0\x05",
        b"\x02\x03\xc0\xf9\x01a\x01b",
        b"\x03\x03\x01a\x031.5\x01b\xff\x01c\xfe",
        b"\x04\x01\x01f\x01v",
        b"\x05\x01\x01b\x00\x00\x00\x00\x00\x00\x00\xc0",
        b"\x0a\x1c\x1c\x00\x00\x00\x18\x00\x00\x00\x05\x00\x00\xf1\x02\xfe\xff\x03\xc0,\x01\x04\xf0\x90\xee\xfe\x05\x01a\xff",
        b"\x0b\x0e\x02\x00\x00\x00\x03\x00\x00\x00\xfe\xff\x01\x00,\x01",
        b"\x0c\x19\x19\x00\x00\x00\x16\x00\x00\x00\x04\x00\x00\x01a\x03\x04-1.5\x06\x01b\x03\xf4\xff",
        b"\x0d\x17\x17\x00\x00\x00\x13\x00\x00\x00\x04\x00\x00\x01f\x03\x01v\x03\x01n\x03\xfe*\xff",
        b"\x10\x16\x16\x00\x00\x00\x06\x00\x81f\x02\x81v\x02\x81n\x02*\x01\x80\x01\x80\x01\xff",
        b"\x11\xc3<@I\x18I\x00\x00\x00\x0c\x00\x83low\x04\x84-inf\x05\x81d\x02\x930.10\xe0\x05\x00\x0b1\x14\x81a\x02\x831.5\x04\x81b\xa0\x07\x09c\x02\x03\x01\x83top\x04\x83 6\x01\x04\xff",
        b"\x12\x02\x02\x0a\x0a\x00\x00\x00\x01\x00\x81a\x02\xff\x01\x03bcd",
        b"\x14\x0c\x0c\x00\x00\x00\x02\x00\x81a\x02\x07\x01\xff",
    ];
    let sealed = kvdb_redis::dump::sealed(forms[4].to_vec()).to_vec();
    forms.into_iter().map(<[u8]>::to_vec).chain([sealed]).collect()
}
