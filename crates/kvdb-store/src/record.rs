//! Data records.
//!
//! ```text
//! crc32c (u32)   over the routing key and all that follows
//! format (u8)    1
//! type (u8)      0 = string; others are for the element records of collections
//! version (u64)  expires_at_ms (u64, 0 = never)  payload
//! ```
//!
//! Numbers are little endian. The checksum covers the key, so that a record which an engine hands
//! out under the wrong key is damage too.

use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::Version;
use thiserror::Error;

const FORMAT: u8 = 1;
const TYPE_STRING: u8 = 0;
const HEADER_BYTES: usize = 22;

/// A value with its version and expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The version of the write that made it.
    pub version: Version,
    /// Milliseconds since 1970 by shard time; 0 for never.
    pub expires_at_ms: u64,
    /// The value.
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
        "the record of {record} has format {format}, type {kind}; this binary reads format {FORMAT}, type {TYPE_STRING}"
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
    /// Whether it has expired at a shard time.
    pub fn is_expired(&self, shard_time: Version) -> bool {
        self.expires_at_ms != 0 && self.expires_at_ms <= shard_time.millis()
    }

    pub(crate) fn encode(&self, routing_key: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.value.len());
        out.put_u32_le(0);
        out.put_u8(FORMAT);
        out.put_u8(TYPE_STRING);
        out.put_u64_le(self.version.0);
        out.put_u64_le(self.expires_at_ms);
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
        let number = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(raw)
        };
        if checksum(routing_key, &bytes[4..]).to_le_bytes() != bytes[..4] {
            return Err(damaged());
        }
        if (bytes[4], bytes[5]) != (FORMAT, TYPE_STRING) {
            return Err(RecordDamage::Unknown { record: name(), format: bytes[4], kind: bytes[5] });
        }
        Ok(Record {
            version: Version(number(6)),
            expires_at_ms: number(14),
            value: bytes.slice(HEADER_BYTES..),
        })
    }
}

fn checksum(routing_key: &[u8], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(routing_key), content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_record_is_found() {
        let record =
            Record { version: Version(77), expires_at_ms: 5, value: Bytes::from_static(b"value") };
        let bytes = record.encode(b"key");
        assert_eq!(Record::decode(b"key", &bytes).unwrap(), record);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(b"key", &Bytes::from(flipped)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_under_another_key_is_damage() {
        let record = Record { version: Version(1), expires_at_ms: 0, value: Bytes::new() };
        assert!(Record::decode(b"other", &record.encode(b"key")).is_err());
    }

    #[test]
    fn formats_and_types_of_later_versions_are_refused_by_name() {
        for (place, value) in [(4, FORMAT + 1), (5, TYPE_STRING + 1)] {
            let record = Record { version: Version(1), expires_at_ms: 0, value: Bytes::new() };
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
