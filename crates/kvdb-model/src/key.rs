//! Routing keys: the one ordered space that shards divide among them.
//!
//! ```text
//! routing key = keyspace id (u32 big endian) + partition prefix + user key
//! hash keyspace:  prefix = slot (u16 big endian)
//! range keyspace: no prefix
//! ```
//!
//! The slot of a key is CRC16-XMODEM of its hash tag (or of the whole key) modulo 16384, the rule
//! of the Redis Cluster specification, so that the tools and habits of Redis users carry over.
//! Hash keyspaces are only ever cut between slots, which keeps keys with one hash tag together.

use crate::id::KeyspaceId;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The number of hash slots, as in Redis Cluster.
pub const SLOT_COUNT: u16 = 16384;

const CRC16: crc::Crc<u16, crc::Table<16>> =
    crc::Crc::<u16, crc::Table<16>>::new(&crc::CRC_16_XMODEM);

/// The hash slot of a user key, `0..SLOT_COUNT`.
///
/// If the key contains `{` and later `}` with at least one byte between the first such pair, only
/// the bytes between them are hashed.
pub fn slot_of(user_key: &[u8]) -> u16 {
    CRC16.checksum(hash_tag(user_key)) % SLOT_COUNT
}

fn hash_tag(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|byte| *byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|byte| *byte == b'}') {
        Some(length) if length > 0 => &rest[..length],
        _ => key,
    }
}

/// How the keys of a keyspace are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Partitioning {
    /// By hash slot: even load, unordered scans.
    Hash,
    /// By the key itself: ordered scans.
    Range,
}

impl Partitioning {
    /// Bytes in front of the user key, the keyspace id included.
    pub const fn prefix_len(self) -> usize {
        match self {
            Partitioning::Hash => 6,
            Partitioning::Range => 4,
        }
    }

    /// The routing key of a user key.
    pub fn routing_key(self, keyspace: KeyspaceId, user_key: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(self.prefix_len() + user_key.len());
        out.put_u32(keyspace.0);
        if self == Partitioning::Hash {
            out.put_u16(slot_of(user_key));
        }
        out.put_slice(user_key);
        out.freeze()
    }

    /// The user key inside a routing key, or `None` if it is shorter than its prefix.
    pub fn user_key(self, routing_key: &Bytes) -> Option<Bytes> {
        (routing_key.len() >= self.prefix_len()).then(|| routing_key.slice(self.prefix_len()..))
    }
}

/// The keyspace that a routing key belongs to, or `None` if it is shorter than an id.
pub fn keyspace_of(routing_key: &[u8]) -> Option<KeyspaceId> {
    let bytes: [u8; 4] = routing_key.get(..4)?.try_into().ok()?;
    Some(KeyspaceId(u32::from_be_bytes(bytes)))
}

/// The first routing key of a slot of a hash keyspace. `slot == SLOT_COUNT` is the end of the
/// last slot, which is still inside the keyspace's own range.
pub fn slot_start(keyspace: KeyspaceId, slot: u16) -> Bytes {
    let mut out = BytesMut::with_capacity(6);
    out.put_u32(keyspace.0);
    out.put_u16(slot);
    out.freeze()
}

/// A half-open range `[start, end)` of routing keys. An empty `end` means "to the end of the
/// space"; an empty `start` is the beginning.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// First key inside.
    pub start: Bytes,
    /// First key after, or empty for no bound.
    pub end: Bytes,
}

impl KeyRange {
    /// Every key there is.
    pub const ALL: KeyRange = KeyRange { start: Bytes::new(), end: Bytes::new() };

    /// The range `[start, end)`.
    pub fn new(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        KeyRange { start: start.into(), end: end.into() }
    }

    /// The whole range of a keyspace.
    pub fn of_keyspace(keyspace: KeyspaceId) -> Self {
        let end = keyspace
            .0
            .checked_add(1)
            .map_or_else(Bytes::new, |next| Bytes::copy_from_slice(&next.to_be_bytes()));
        KeyRange { start: Bytes::copy_from_slice(&keyspace.0.to_be_bytes()), end }
    }

    /// Whether no key can be inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// Whether `key` is inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// Whether every key of `other` is inside.
    pub fn covers(&self, other: &KeyRange) -> bool {
        other.is_empty()
            || (self.start <= other.start
                && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end)))
    }

    /// Whether some key is inside both.
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The keys inside both.
    #[must_use]
    pub fn intersection(&self, other: &KeyRange) -> KeyRange {
        let start = self.start.clone().max(other.start.clone());
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        let range = KeyRange { start, end };
        if range.is_empty() {
            // One canonical empty range, so that it can't be mistaken for an unbounded one.
            KeyRange { end: range.start.clone(), start: range.start }.sealed()
        } else {
            range
        }
    }

    // An empty range needs a non-empty end; the range below the smallest key has none.
    fn sealed(self) -> KeyRange {
        if self.end.is_empty() {
            KeyRange { start: Bytes::from_static(&[0]), end: Bytes::from_static(&[0]) }
        } else {
            self
        }
    }

    /// Every key that starts with `prefix`.
    pub fn with_prefix(prefix: &[u8]) -> Self {
        KeyRange { start: Bytes::copy_from_slice(prefix), end: prefix_end(prefix) }
    }
}

/// The first key after all that start with `prefix`; empty if there is none.
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    Bytes::from(end)
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        if self.end.is_empty() {
            f.write_str("end)")
        } else {
            write!(f, "{})", self.end.escape_ascii())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        // The check value of CRC16-XMODEM and slots that redis-cli prints.
        assert_eq!(CRC16.checksum(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"bar"), 5061);
        assert_eq!(slot_of(b"hello"), 866);
    }

    #[test]
    fn hash_tag_is_the_first_nonempty_pair_of_braces() {
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(hash_tag(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hash_tag(b"foo{bar"), b"foo{bar");
    }

    fn any_range() -> impl Strategy<Value = KeyRange> {
        (prop::collection::vec(0u8..4, 0..3), prop::collection::vec(0u8..4, 0..3))
            .prop_map(|(start, end)| KeyRange::new(start, end))
    }

    proptest! {
        #[test]
        fn routing_keys_give_back_the_user_key(key in prop::collection::vec(any::<u8>(), 1..40), id in any::<u32>()) {
            for partitioning in [Partitioning::Hash, Partitioning::Range] {
                let routing = partitioning.routing_key(KeyspaceId(id), &key);
                prop_assert_eq!(&partitioning.user_key(&routing).unwrap()[..], &key[..]);
                prop_assert_eq!(keyspace_of(&routing), Some(KeyspaceId(id)));
                prop_assert!(KeyRange::of_keyspace(KeyspaceId(id)).contains(&routing));
            }
        }

        #[test]
        fn intersection_holds_exactly_the_common_keys(a in any_range(), b in any_range(), key in prop::collection::vec(0u8..4, 0..4)) {
            let both = a.intersection(&b);
            prop_assert_eq!(both.contains(&key), a.contains(&key) && b.contains(&key));
            prop_assert_eq!(a.overlaps(&b), !both.is_empty());
        }

        #[test]
        fn prefix_range_holds_exactly_the_keys_with_the_prefix(prefix in prop::collection::vec(250u8..=255, 0..3), key in prop::collection::vec(248u8..=255, 0..5)) {
            prop_assert_eq!(KeyRange::with_prefix(&prefix).contains(&key), key.starts_with(&prefix));
        }
    }
}
