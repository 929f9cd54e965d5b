//! Where things are inside a volume.
//!
//! ```text
//! 'd' routing key                                      a data record (`record`)
//! 'r' replica id (u64 BE)  0                           the replica's state (`shard`)
//! 'r' replica id (u64 BE)  1 client id, sequence       a request of the window (`answers`)
//! 'r' replica id (u64 BE)  2 key                       a record of the coordinators' machine
//! 'r' replica id (u64 BE)  3 version, part             changes that are kept for watchers (`history`)
//! ```
//!
//! Data comes first, so that a snapshot is the data in the range followed by the replica's
//! records, ascending. In a snapshot, in digests and under checksums the replica id is left out
//! (the *neutral* key); the receiver of a snapshot puts in its own, which keeps the order.

use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::{KeyRange, ReplicaId, key::prefix_end};

const DATA: u8 = b'd';
const REPLICA: u8 = b'r';
/// Bytes in front of the kind of a replica record: tag and replica id.
const REPLICA_PREFIX_BYTES: usize = 9;

/// What a replica record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    State = 0,
    Request = 1,
    Control = 2,
    History = 3,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::State => "the replica's state",
            Kind::Request => "the request window",
            Kind::Control => "the control state",
            Kind::History => "the change history",
        }
    }
}

pub(crate) fn data_key(routing_key: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + routing_key.len());
    key.put_u8(DATA);
    key.put_slice(routing_key);
    key.freeze()
}

/// The routing key inside a data key.
pub(crate) fn routing_key_of(data_key: &Bytes) -> Bytes {
    data_key.slice(1..)
}

/// The data of a range of routing keys.
pub(crate) fn data_range(range: &KeyRange) -> KeyRange {
    let end =
        if range.end.is_empty() { Bytes::from_static(&[DATA + 1]) } else { data_key(&range.end) };
    KeyRange { start: data_key(&range.start), end }
}

fn replica_prefix(replica: ReplicaId, room: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(REPLICA_PREFIX_BYTES + room);
    key.put_u8(REPLICA);
    key.put_u64(replica.0);
    key
}

/// The key of a replica record.
pub(crate) fn record_key(replica: ReplicaId, kind: Kind, suffix: &[u8]) -> Bytes {
    let mut key = replica_prefix(replica, 1 + suffix.len());
    key.put_u8(kind as u8);
    key.put_slice(suffix);
    key.freeze()
}

/// All records of a replica.
pub(crate) fn replica_range(replica: ReplicaId) -> KeyRange {
    KeyRange::with_prefix(&replica_prefix(replica, 0))
}

/// The records of all replicas.
pub(crate) fn all_replicas() -> KeyRange {
    KeyRange::with_prefix(&[REPLICA])
}

/// Whose record this is.
pub(crate) fn replica_of(key: &[u8]) -> Option<ReplicaId> {
    let id = key.strip_prefix(&[REPLICA])?.first_chunk()?;
    Some(ReplicaId(u64::from_be_bytes(*id)))
}

/// All records of one kind.
pub(crate) fn kind_range(replica: ReplicaId, kind: Kind) -> KeyRange {
    let start = record_key(replica, kind, &[]);
    let end = prefix_end(&start);
    KeyRange { start, end }
}

/// What follows replica id and kind in a key that [`record_key`] made.
pub(crate) fn suffix_of(key: &Bytes) -> Bytes {
    key.slice(REPLICA_PREFIX_BYTES + 1..)
}

/// A key of a volume as a snapshot has it: without the replica id.
pub(crate) fn to_neutral(key: &Bytes) -> Bytes {
    if key.first() != Some(&REPLICA) {
        return key.clone();
    }
    let mut neutral = BytesMut::with_capacity(key.len());
    neutral.put_u8(REPLICA);
    neutral.put_slice(key.get(REPLICA_PREFIX_BYTES..).unwrap_or_default());
    neutral.freeze()
}

/// A key of a snapshot, for its new owner; `None` for a key that no snapshot holds.
pub(crate) fn from_neutral(neutral: &Bytes, replica: ReplicaId) -> Option<Bytes> {
    match *neutral.first()? {
        DATA => Some(neutral.clone()),
        REPLICA if neutral.len() > 1 => {
            let mut key = replica_prefix(replica, neutral.len() - 1);
            key.put_slice(&neutral[1..]);
            Some(key.freeze())
        }
        _ => None,
    }
}

/// Whether a key of a snapshot is that of the replica's state.
pub(crate) fn is_neutral_state(neutral: &[u8]) -> bool {
    *neutral == [REPLICA, Kind::State as u8]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_change_their_owner_and_keep_their_order(
            mut suffixes in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 0..6), 1..8),
            from in any::<u64>(),
            to in any::<u64>(),
        ) {
            suffixes.insert(vec![]);
            let mut before: Vec<Bytes> = suffixes.iter().map(|key| data_key(key)).collect();
            before.push(record_key(ReplicaId(from), Kind::State, &[]));
            for kind in [Kind::Request, Kind::Control, Kind::History] {
                before.extend(suffixes.iter().map(|key| record_key(ReplicaId(from), kind, key)));
            }
            prop_assert!(before.is_sorted());
            let after: Vec<Bytes> = before
                .iter()
                .map(|key| from_neutral(&to_neutral(key), ReplicaId(to)).unwrap())
                .collect();
            prop_assert!(after.is_sorted());
            for key in &after {
                let is_data = key[0] == DATA;
                prop_assert_eq!(replica_range(ReplicaId(to)).contains(key), !is_data);
                prop_assert_eq!(data_range(&KeyRange::ALL).contains(key), is_data);
            }
        }

        #[test]
        fn data_ranges_hold_the_same_keys(
            start in prop::collection::vec(0u8..3, 0..3),
            end in prop::collection::vec(0u8..3, 0..3),
            key in prop::collection::vec(0u8..3, 0..4),
        ) {
            let range = KeyRange::new(start, end);
            prop_assert_eq!(data_range(&range).contains(&data_key(&key)), range.contains(&key));
        }
    }
}
