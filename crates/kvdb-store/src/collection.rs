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
//! element: crc32c (u32) over its key from the place on, and the payload | format (u8) 1 | payload
//! ```
//!
//! An element's place is what tells it from the others of its collection, in their order. When a
//! collection is promoted is a part of the state machine: fixed.

use crate::record::RecordDamage;
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use std::collections::BTreeMap;

/// Most elements that lie in the key's record.
pub(crate) const INLINE_MOST: usize = 128;
/// Most bytes of elements that lie in the key's record: they are written again with each change.
pub(crate) const INLINE_BYTES: usize = 4096;

const ELEMENT_FORMAT: u8 = 1;

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

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(64);
        out.varint(self.count());
        match self {
            Elements::Inline(elements) => {
                out.varint(0);
                for (place, payload) in elements {
                    out.bytes(place);
                    out.bytes(payload);
                }
            }
            Elements::Promoted { incarnation, .. } => out.varint(*incarnation),
        }
        out.finish()
    }

    pub(crate) fn decode(header: &Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(header.clone());
        let count = input.varint()?;
        let elements = match input.varint()? {
            0 => {
                let element = |_| Ok((input.bytes()?, input.bytes()?));
                Elements::Inline((0..count).map(element).collect::<Result<_, DecodeError>>()?)
            }
            incarnation => Elements::Promoted { incarnation, count },
        };
        input.end()?;
        Ok(elements)
    }

    /// The incarnation in a collection's header; `None` if it is inline.
    pub(crate) fn incarnation_of(header: &Bytes) -> Result<Option<u64>, DecodeError> {
        let mut input = Reader::new(header.clone());
        input.varint()?;
        Ok(Some(input.varint()?).filter(|incarnation| *incarnation != 0))
    }
}

fn checksum(place: &[u8], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(place), rest)
}

/// The stored form of an element.
pub(crate) fn encode_element(place: &[u8], payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + payload.len());
    out.put_u32_le(0);
    out.put_u8(ELEMENT_FORMAT);
    out.put_slice(payload);
    let crc = checksum(place, &out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// The payload of a stored element of this place.
pub(crate) fn decode_element(place: &[u8], stored: &Bytes) -> Result<Bytes, RecordDamage> {
    let name = || format!("element {}", place.escape_ascii());
    if stored.len() < 5 || checksum(place, &stored[4..]).to_le_bytes() != stored[..4] {
        return Err(RecordDamage::Checksum { record: name() });
    }
    match stored[4] {
        ELEMENT_FORMAT => Ok(stored.slice(5..)),
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
            let inline = Elements::Inline(elements);
            prop_assert_eq!(Elements::incarnation_of(&inline.encode()), Ok(None));
            prop_assert_eq!(Elements::decode(&inline.encode()), Ok(inline));
            let promoted = Elements::Promoted { incarnation, count };
            prop_assert_eq!(Elements::incarnation_of(&promoted.encode()), Ok(Some(incarnation)));
            prop_assert_eq!(Elements::decode(&promoted.encode()), Ok(promoted));
        }

        #[test]
        fn junk_never_panics(junk in any_bytes()) {
            let _ = Elements::decode(&junk);
            let _ = Elements::incarnation_of(&junk);
            let _ = decode_element(b"place", &junk);
        }
    }

    #[test]
    fn every_flipped_bit_of_an_element_is_found() {
        let stored = encode_element(b"place", b"payload");
        assert_eq!(decode_element(b"place", &stored).unwrap(), "payload");
        assert!(decode_element(b"other", &stored).is_err());
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_element(b"place", &Bytes::from(flipped)).is_err(), "bit {bit}");
        }
    }
}
