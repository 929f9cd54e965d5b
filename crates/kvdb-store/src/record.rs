//! Data records.
//!
//! ```text
//! crc32c (u32)    over the routing key and all that follows
//! format (u8)     2
//! type (u8)       see [`Type`]; 128 is added if it expires, 64 if elements of it do
//! version (u64)   [expires_at_ms (u64)]  [first_ms (u64)  last_ms (u64)]  payload
//! ```
//!
//! The payload of a string is its value; that of a collection stands in `collection`.
//!
//! Numbers are little endian. The checksum covers the key, so that a record which an engine hands
//! out under the wrong key is damage too.

use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::Version;
use kvdb_model::planted::{Bug, has};
use thiserror::Error;

const FORMAT: u8 = 2;
const EXPIRES: u8 = 128;
const ELEMENTS_EXPIRE: u8 = 64;
const HEADER_BYTES: usize = 14;

/// What a key holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Type {
    /// Bytes.
    #[default]
    String = 0,
    /// Fields with a value each.
    Hash = 1,
    /// Values in the order in which they were put.
    List = 2,
    /// Members, each once.
    Set = 3,
    /// Members, each once, by their score.
    SortedSet = 4,
}

impl Type {
    /// All of them.
    pub const ALL: [Type; 5] = [Type::String, Type::Hash, Type::List, Type::Set, Type::SortedSet];

    /// As Redis calls it.
    pub fn name(self) -> &'static str {
        match self {
            Type::String => "string",
            Type::Hash => "hash",
            Type::List => "list",
            Type::Set => "set",
            Type::SortedSet => "zset",
        }
    }

    /// The one with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == code)
    }
}

/// When elements of a collection expire, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ElementTimes {
    /// The first of them does, or has done so and wasn't freed yet; 0 if none ever does.
    pub first_ms: u64,
    /// The last of all elements does; 0 if some never do.
    pub last_ms: u64,
}

/// What a key holds, with its version and expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The version of the write that made it.
    pub version: Version,
    /// Milliseconds since 1970 by shard time; 0 for never.
    pub expires_at_ms: u64,
    /// The same of its elements, where they expire by themselves.
    pub elements: ElementTimes,
    /// What it is.
    pub kind: Type,
    /// The value of a string; of a collection what its header keeps.
    pub value: Bytes,
}

/// A record that isn't what was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordDamage {
    /// Its checksum doesn't match, or it is too short to have one.
    #[error("the record of {record} is damaged: its checksum does not match")]
    Checksum {
        /// Which one: its routing key, escaped, or what it is for.
        record: String,
    },
    /// It was written by a version that this binary doesn't know.
    #[error(
        "the record of {record} has format {format}, type {kind}; this binary reads format {FORMAT}, types 0 to 4"
    )]
    Unknown {
        /// Which one.
        record: String,
        /// The format.
        format: u8,
        /// The type.
        kind: u8,
    },
}

impl Record {
    /// Whether it has expired at a shard time, or its last element has.
    pub fn is_expired(&self, shard_time: Version) -> bool {
        self.is_over_at(shard_time.millis())
    }

    /// The same at a time in milliseconds since 1970.
    pub fn is_over_at(&self, now_ms: u64) -> bool {
        let last_ms = if has(Bug::LastElementOutlived) { 0 } else { self.elements.last_ms };
        [self.expires_at_ms, last_ms].into_iter().any(|at| at != 0 && at <= now_ms)
    }

    /// When it, or an element of it, is to be freed: milliseconds since 1970; `None` for never.
    pub fn due_ms(&self) -> Option<u64> {
        [self.expires_at_ms, self.elements.first_ms].into_iter().filter(|at| *at != 0).min()
    }

    /// The value, if it is a string.
    pub fn string(&self) -> Option<&Bytes> {
        (self.kind == Type::String).then_some(&self.value)
    }

    pub(crate) fn encode(&self, routing_key: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + 24 + self.value.len());
        let expires = self.expires_at_ms != 0;
        let elements_expire = self.elements.first_ms != 0 && !has(Bug::ElementTimesLost);
        out.put_u32_le(0);
        out.put_u8(FORMAT);
        let expiries =
            (u8::from(expires) * EXPIRES) | (u8::from(elements_expire) * ELEMENTS_EXPIRE);
        out.put_u8(self.kind as u8 | expiries);
        out.put_u64_le(self.version.0);
        if expires {
            out.put_u64_le(self.expires_at_ms);
        }
        if elements_expire {
            out.put_u64_le(self.elements.first_ms);
            out.put_u64_le(self.elements.last_ms);
        }
        out.put_slice(&self.value);
        let crc = checksum(routing_key, &out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out.freeze()
    }

    pub(crate) fn decode(routing_key: &[u8], bytes: &Bytes) -> Result<Self, RecordDamage> {
        let name = || format!("key {}", routing_key.escape_ascii());
        let damaged = || RecordDamage::Checksum { record: name() };
        if bytes.len() < HEADER_BYTES {
            return Err(damaged());
        }
        if checksum(routing_key, &bytes[4..]).to_le_bytes() != bytes[..4] {
            return Err(damaged());
        }
        let (format, code) = (bytes[4], bytes[5]);
        let kind = code & !(EXPIRES | ELEMENTS_EXPIRE);
        let unknown = || RecordDamage::Unknown { record: name(), format, kind };
        if format != FORMAT {
            return Err(unknown());
        }
        let kind = Type::from_code(kind).ok_or_else(unknown)?;
        let mut at = 6;
        let mut number = || {
            let raw = bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok());
            at += 8;
            raw.map(u64::from_le_bytes).ok_or_else(damaged)
        };
        let version = Version(number()?);
        let expires_at_ms = if code & EXPIRES != 0 { number()? } else { 0 };
        let elements = match code & ELEMENTS_EXPIRE != 0 {
            true => ElementTimes { first_ms: number()?, last_ms: number()? },
            false => ElementTimes::default(),
        };
        Ok(Record { version, expires_at_ms, elements, kind, value: bytes.slice(at..) })
    }
}

fn checksum(routing_key: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(routing_key), content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(value: Bytes) -> Record {
        let elements = ElementTimes::default();
        Record { version: Version(1), expires_at_ms: 0, elements, kind: Type::String, value }
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_found() {
        for (expires_at_ms, first_ms) in [(0, 0), (5, 0), (0, 6), (5, 6)] {
            let value = Bytes::from_static(b"value");
            let elements = ElementTimes { first_ms, last_ms: first_ms * 2 };
            let version = Version(77);
            let record = Record { version, expires_at_ms, elements, kind: Type::Hash, value };
            let bytes = record.encode(b"key");
            assert_eq!(Record::decode(b"key", &bytes).unwrap(), record);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(b"key", &Bytes::from(flipped)).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_under_another_key_is_damage() {
        let record = string(Bytes::new());
        assert!(Record::decode(b"other", &record.encode(b"key")).is_err());
    }

    #[test]
    fn formats_and_types_of_later_versions_are_refused_by_name() {
        for (place, value) in [(4, FORMAT + 1), (5, Type::ALL.len() as u8)] {
            let record = string(Bytes::new());
            let mut bytes = record.encode(b"key").to_vec();
            bytes[place] = value;
            let crc = checksum(b"key", &bytes[4..]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
            let refused = Record::decode(b"key", &Bytes::from(bytes)).unwrap_err();
            assert!(matches!(refused, RecordDamage::Unknown { .. }), "{refused}");
        }
    }

    #[test]
    fn short_records_are_damage() {
        for length in 0..HEADER_BYTES {
            assert!(Record::decode(b"k", &Bytes::from(vec![0; length])).is_err());
        }
    }
}
