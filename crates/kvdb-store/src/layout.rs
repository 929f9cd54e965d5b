//! Where things are inside a volume.
//!
//! ```text
//! 'd' routing key                                      a data record (`record`)
//! 'e' routing key, incarnation (u64 BE), place         an element of a collection (`collection`)
//! 'g' routing key, incarnation (u64 BE)                that the elements of this life are to be freed
//! 'r' replica id (u64 BE)  0                           the replica's state (`shard`)
//! 'r' replica id (u64 BE)  1 client id, sequence       a request of the window (`answers`)
//! 'r' replica id (u64 BE)  2 key                       a record of the coordinators' machine
//! 'r' replica id (u64 BE)  3 version, part             changes that are kept for watchers (`history`)
//! ```
//!
//! Routing keys of elements and garbage are escaped and terminated, so that none begins with another
//! and a range of routing keys is a range of them too; those of data aren't, so that a scan of keys
//! meets no elements. What is kept under keys comes first: a snapshot is that of the range followed
//! by the replica's records, ascending. In a snapshot, in digests and under checksums the replica id is left out
//! (the *neutral* key); the receiver of a snapshot puts in its own, which keeps the order.

use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::{KeyRange, ReplicaId, key::prefix_end};

const DATA: u8 = b'd';
const ELEMENT: u8 = b'e';
const GARBAGE: u8 = b'g';
const REPLICA: u8 = b'r';
/// Ends an escaped routing key: below every byte that can follow inside one.
const TERMINATOR: [u8; 2] = [0, 1];
/// What a zero byte inside an escaped routing key is followed by.
const ESCAPED: u8 = 0xff;
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

/// Appends a routing key so that no other begins with it, in the same order.
fn put_escaped(key: &mut BytesMut, routing_key: &[u8]) {
    for byte in routing_key {
        key.put_u8(*byte);
        if *byte == 0 {
            key.put_u8(ESCAPED);
        }
    }
}

fn incarnation_prefix(tag: u8, routing_key: &[u8], incarnation: u64, room: usize) -> BytesMut {
    let mut key = BytesMut::with_capacity(routing_key.len() + 16 + room);
    key.put_u8(tag);
    put_escaped(&mut key, routing_key);
    key.put_slice(&TERMINATOR);
    key.put_u64(incarnation);
    key
}

/// The key of an element: of which key, in which of its lives, and which one.
pub(crate) fn element_key(routing_key: &[u8], incarnation: u64, place: &[u8]) -> Bytes {
    let mut key = incarnation_prefix(ELEMENT, routing_key, incarnation, place.len());
    key.put_slice(place);
    key.freeze()
}

/// All elements of a key in one of its lives.
pub(crate) fn element_range(routing_key: &[u8], incarnation: u64) -> KeyRange {
    KeyRange::with_prefix(&incarnation_prefix(ELEMENT, routing_key, incarnation, 0))
}

/// Where an element key's place begins, among elements of the same key and life.
pub(crate) fn element_prefix_len(routing_key: &[u8], incarnation: u64) -> usize {
    incarnation_prefix(ELEMENT, routing_key, incarnation, 0).len()
}

/// The key of what says that a life of a key is over, and its elements are to be freed.
pub(crate) fn garbage_key(routing_key: &[u8], incarnation: u64) -> Bytes {
    incarnation_prefix(GARBAGE, routing_key, incarnation, 0).freeze()
}

/// Routing key and incarnation of a garbage key.
pub(crate) fn parse_garbage(key: &[u8]) -> Option<(Bytes, u64)> {
    let rest = key.strip_prefix(&[GARBAGE])?;
    let mut routing_key = BytesMut::with_capacity(rest.len());
    let mut bytes = rest.iter();
    loop {
        match *bytes.next()? {
            0 => match *bytes.next()? {
                ESCAPED => routing_key.put_u8(0),
                1 => break,
                _ => return None,
            },
            byte => routing_key.put_u8(byte),
        }
    }
    let incarnation = u64::from_be_bytes(bytes.as_slice().try_into().ok()?);
    Some((routing_key.freeze(), incarnation))
}

fn escaped_range(tag: u8, range: &KeyRange) -> KeyRange {
    let bound = |routing_key: &[u8]| {
        let mut key = BytesMut::with_capacity(routing_key.len() + 9);
        key.put_u8(tag);
        put_escaped(&mut key, routing_key);
        key.freeze()
    };
    let end = match range.end.is_empty() {
        true => Bytes::copy_from_slice(&[tag + 1]),
        false => bound(&range.end),
    };
    KeyRange { start: bound(&range.start), end }
}

/// The garbage of a range of routing keys.
pub(crate) fn garbage_range(range: &KeyRange) -> KeyRange {
    escaped_range(GARBAGE, range)
}

/// All that is kept under a range of routing keys, ascending: data, elements, garbage.
pub(crate) fn kept_under(range: &KeyRange) -> [KeyRange; 3] {
    [data_range(range), escaped_range(ELEMENT, range), garbage_range(range)]
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
        DATA | ELEMENT | GARBAGE => Some(neutral.clone()),
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
        fn all_that_is_kept_under_a_key_is_in_the_ranges_that_hold_it(
            start in prop::collection::vec(0u8..3, 0..3),
            end in prop::collection::vec(0u8..3, 0..3),
            key in prop::collection::vec(0u8..3, 0..4),
            place in prop::collection::vec(any::<u8>(), 0..4),
            incarnation in any::<u64>(),
        ) {
            let range = KeyRange::new(start, end);
            let element = element_key(&key, incarnation, &place);
            let garbage = garbage_key(&key, incarnation);
            let [data, elements, garbages] = kept_under(&range);
            let inside = range.contains(&key);
            prop_assert_eq!(elements.contains(&element), inside);
            prop_assert_eq!(garbages.contains(&garbage), inside);
            prop_assert!(!data.contains(&element) && !elements.contains(&garbage));
            prop_assert_eq!(&element[element_prefix_len(&key, incarnation)..], &place[..]);
            prop_assert_eq!(parse_garbage(&garbage), Some((key.clone().into(), incarnation)));
        }

        #[test]
        fn elements_of_two_keys_never_mix(
            keys in prop::collection::vec(prop::collection::vec(prop::sample::select(vec![0u8, 1, 255]), 0..4), 2),
            place in prop::collection::vec(any::<u8>(), 0..4),
        ) {
            let element = element_key(&keys[0], 7, &place);
            prop_assert_eq!(element_range(&keys[1], 7).contains(&element), keys[0] == keys[1]);
            prop_assert!(!element_range(&keys[0], 8).contains(&element));
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
