//! Where things are inside a volume.
//!
//! ```text
//! 'd' routing key                               a data record
//! 'r' replica id (u64 BE)  0                    the replica's state
//! 'r' replica id (u64 BE)  1 client, sequence   an entry of the request window
//! 'r' replica id (u64 BE)  2 key                a record of the coordinators' state machine
//! ```
//!
//! Data comes first, so that a snapshot is the data in the range followed by the replica's
//! records. In a snapshot the replica id is left out: the receiver puts in its own.

use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::{KeyRange, ReplicaId, key::prefix_end};

pub(crate) const DATA: u8 = b'd';
const REPLICA: u8 = b'r';
const STATE: u8 = 0;
pub(crate) const SESSION: u8 = 1;
pub(crate) const CONTROL: u8 = 2;

pub(crate) fn data_key(routing_key: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + routing_key.len());
    key.put_u8(DATA);
    key.put_slice(routing_key);
    key.freeze()
}

pub(crate) fn routing_key_of(data_key: &Bytes) -> Bytes {
    data_key.slice(1..)
}

/// The data of a range of routing keys.
pub(crate) fn data_range(range: &KeyRange) -> KeyRange {
    let end =
        if range.end.is_empty() { Bytes::from_static(&[DATA + 1]) } else { data_key(&range.end) };
    KeyRange { start: data_key(&range.start), end }
}

fn replica_prefix(replica: ReplicaId) -> BytesMut {
    let mut key = BytesMut::with_capacity(32);
    key.put_u8(REPLICA);
    key.put_u64(replica.0);
    key
}

pub(crate) fn state_key(replica: ReplicaId) -> Bytes {
    record_key(replica, STATE, &[])
}

pub(crate) fn record_key(replica: ReplicaId, kind: u8, suffix: &[u8]) -> Bytes {
    let mut key = replica_prefix(replica);
    key.put_u8(kind);
    key.put_slice(suffix);
    key.freeze()
}

/// All records of a replica.
pub(crate) fn replica_range(replica: ReplicaId) -> KeyRange {
    let start = replica_prefix(replica).freeze();
    let end = prefix_end(&start);
    KeyRange { start, end }
}

/// All records of one kind.
pub(crate) fn kind_range(replica: ReplicaId, kind: u8) -> KeyRange {
    let start = record_key(replica, kind, &[]);
    let end = prefix_end(&start);
    KeyRange { start, end }
}

/// What follows replica id and kind.
pub(crate) fn suffix_of(key: &Bytes) -> Bytes {
    key.slice(10..)
}

/// A key as a snapshot has it: without the replica id.
pub(crate) fn to_neutral(key: &Bytes) -> Bytes {
    if key.first() != Some(&REPLICA) {
        return key.clone();
    }
    let mut neutral = BytesMut::with_capacity(key.len());
    neutral.put_u8(REPLICA);
    neutral.put_slice(key.get(9..).unwrap_or_default());
    neutral.freeze()
}

/// A key of a snapshot, for its new owner; `None` for a key that no snapshot holds.
pub(crate) fn from_neutral(neutral: &Bytes, replica: ReplicaId) -> Option<Bytes> {
    match neutral.first() {
        Some(&DATA) => Some(neutral.clone()),
        Some(&REPLICA) => {
            let mut key = replica_prefix(replica);
            key.put_slice(&neutral[1..]);
            Some(key.freeze())
        }
        _ => None,
    }
}
