//! Collections: what a key holds that has elements.
//!
//! A small one lies in its key's record, with all its elements. A larger one is *promoted*: its
//! elements become records of their own, under a number that no other life of the key has ever had
//! (its incarnation), and the key's record keeps only how many there are. Removing or overwriting a
//! promoted collection writes one garbage record; the leader frees the elements in bounded steps.
//! Whoever reads elements reads those of the incarnation in the record, so the dead are never seen.
//!
//! ```text
//! header (the payload of the key's record):
//!   count (varint)  incarnation (varint, 0 = inline)
//!   inline: for each element, ascending: place (bytes)  payload (bytes)
//!     how many have a deadline (varint), for each: which element (varint)  deadline (varint)
//!   promoted: incarnation of the order of deadlines (varint, 0 = none)  how many have one (varint)
//! element: crc32c (u32) over its key from the place on, and what follows | format (u8) | payload
//!   format 1: it has no deadline    format 2: its deadline (u64) comes before the payload
//! ```
//!
//! What deadlines are for stands in `deadlines`.
//!
//! An element's place is what tells it from the others of its collection, in their order. When a
//! collection is promoted is a part of the state machine: fixed.

use crate::record::RecordDamage;
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use std::collections::BTreeMap;

/// Most elements that lie in the key's record.
pub(crate) const INLINE_MOST: usize = if cfg!(feature = "small-collections") { 12 } else { 128 };
/// Most bytes of elements that lie in the key's record: they are written again with each change.
pub(crate) const INLINE_BYTES: usize = 4096;

const ELEMENT_FORMAT: u8 = 1;
const ELEMENT_FORMAT_UNTIL: u8 = 2;

/// Where the elements of a collection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Elements {
    /// In the key's record, by place.
    Inline(BTreeMap<Bytes, Bytes>),
    /// In records of their own.
    Promoted {
        /// Which life of the key.
        incarnation: u64,
        /// How many.
        count: u64,
    },
}

impl Elements {
    pub(crate) fn count(&self) -> u64 {
        match self {
            Elements::Inline(elements) => elements.len() as u64,
            Elements::Promoted { count, .. } => *count,
        }
    }

    /// Whether they have become too many, or too large, for the key's record.
    pub(crate) fn are_too_many(&self) -> bool {
        let Elements::Inline(elements) = self else { return false };
        let size: usize = elements.iter().map(|(place, payload)| place.len() + payload.len()).sum();
        elements.len() > INLINE_MOST || size > INLINE_BYTES
    }
}

/// When the elements of a collection expire, as its header keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deadlines {
    /// Of elements in the key's record, by place: milliseconds since 1970.
    pub(crate) inline: BTreeMap<Bytes, u64>,
    /// The incarnation under which those of the others stand in their order; 0 = there never were any.
    pub(crate) order: u64,
    /// How many of the others have one.
    pub(crate) count: u64,
}

/// What the key's record keeps of a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) elements: Elements,
    pub(crate) deadlines: Deadlines,
}

impl Header {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(64);
        let Header { elements, deadlines } = self;
        out.varint(elements.count());
        match elements {
            Elements::Inline(elements) => {
                out.varint(0);
                for (place, payload) in elements {
                    out.bytes(place);
                    out.bytes(payload);
                }
                out.varint(deadlines.inline.len() as u64);
                for (number, place) in elements.keys().enumerate() {
                    if let Some(deadline_ms) = deadlines.inline.get(place) {
                        out.varint(number as u64);
                        out.varint(*deadline_ms);
                    }
                }
            }
            Elements::Promoted { incarnation, .. } => {
                out.varint(*incarnation);
                out.varint(deadlines.order);
                out.varint(deadlines.count);
            }
        }
        out.finish()
    }

    pub(crate) fn decode(stored: &Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(stored.clone());
        let count = input.varint()?;
        let incarnation = input.varint()?;
        let mut deadlines = Deadlines::default();
        let elements = if incarnation == 0 {
            let element = |_| Ok((input.bytes()?, input.bytes()?));
            let listed: Vec<(Bytes, Bytes)> =
                (0..count).map(element).collect::<Result<_, DecodeError>>()?;
            for _ in 0..input.count(2)? {
                let number = usize::try_from(input.varint()?).unwrap_or(usize::MAX);
                let (place, _) = listed.get(number).ok_or(DecodeError::NumberOutOfRange)?;
                deadlines.inline.insert(place.clone(), input.varint()?);
            }
            Elements::Inline(listed.into_iter().collect())
        } else {
            deadlines.order = input.varint()?;
            deadlines.count = input.varint()?;
            Elements::Promoted { incarnation, count }
        };
        input.end()?;
        Ok(Header { elements, deadlines })
    }

    /// The incarnations in a collection's header, that of its elements first; 0 for those that it
    /// doesn't have.
    pub(crate) fn incarnations_of(stored: &Bytes) -> Result<[u64; 2], DecodeError> {
        let mut input = Reader::new(stored.clone());
        input.varint()?;
        Ok(match input.varint()? {
            0 => [0, 0],
            incarnation => [incarnation, input.varint()?],
        })
    }
}

fn checksum(place: &[u8], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(place), rest)
}

/// The stored form of an element; its deadline is 0 for never.
pub(crate) fn encode_element(place: &[u8], payload: &[u8], deadline_ms: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(13 + payload.len());
    out.put_u32_le(0);
    if deadline_ms == 0 {
        out.put_u8(ELEMENT_FORMAT);
    } else {
        out.put_u8(ELEMENT_FORMAT_UNTIL);
        out.put_u64_le(deadline_ms);
    }
    out.put_slice(payload);
    let crc = checksum(place, &out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// The payload of a stored element of this place, and its deadline (0 for never).
pub(crate) fn decode_element(place: &[u8], stored: &Bytes) -> Result<(Bytes, u64), RecordDamage> {
    let name = || format!("element {}", place.escape_ascii());
    let damaged = || RecordDamage::Checksum { record: name() };
    if stored.len() < 5 || checksum(place, &stored[4..]).to_le_bytes() != stored[..4] {
        return Err(damaged());
    }
    match stored[4] {
        ELEMENT_FORMAT => Ok((stored.slice(5..), 0)),
        ELEMENT_FORMAT_UNTIL => {
            let deadline = stored[5..].first_chunk().ok_or_else(damaged)?;
            Ok((stored.slice(13..), u64::from_le_bytes(*deadline)))
        }
        format => Err(RecordDamage::Unknown { record: name(), format, kind: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn headers_survive_encoding(
            elements in prop::collection::btree_map(any_bytes(), any_bytes(), 0..6),
            incarnation in 1u64..,
            count in any::<u64>(),
        ) {
            let places = elements.keys().step_by(2).cloned();
            let deadlines =
                Deadlines { inline: places.zip(1u64..).collect(), ..Deadlines::default() };
            let inline = Header { elements: Elements::Inline(elements), deadlines };
            prop_assert_eq!(Header::incarnations_of(&inline.encode()), Ok([0, 0]));
            prop_assert_eq!(Header::decode(&inline.encode()), Ok(inline));
            let elements = Elements::Promoted { incarnation, count };
            let deadlines = Deadlines { order: count, count: 7, ..Deadlines::default() };
            let promoted = Header { elements, deadlines };
            prop_assert_eq!(Header::incarnations_of(&promoted.encode()), Ok([incarnation, count]));
            prop_assert_eq!(Header::decode(&promoted.encode()), Ok(promoted));
        }

        #[test]
        fn junk_never_panics(junk in any_bytes()) {
            let _ = Header::decode(&junk);
            let _ = Header::incarnations_of(&junk);
            let _ = decode_element(b"place", &junk);
        }
    }

    #[test]
    fn every_flipped_bit_of_an_element_is_found() {
        for deadline_ms in [0, 77] {
            let stored = encode_element(b"place", b"payload", deadline_ms);
            let read = decode_element(b"place", &stored).unwrap();
            assert_eq!(read, ("payload".into(), deadline_ms));
            assert!(decode_element(b"other", &stored).is_err());
            for bit in 0..stored.len() * 8 {
                let mut flipped = stored.to_vec();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_element(b"place", &Bytes::from(flipped)).is_err(), "bit {bit}");
            }
        }
    }
}
