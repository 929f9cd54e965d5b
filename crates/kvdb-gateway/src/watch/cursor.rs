//! The cursor of a watch: ranges, and the version up to which each has been told.
//!
//! ```text
//! format (u8)  1
//! checksum (u32)  CRC32C of what is watched and of all that follows
//! count (varint)
//! each: start (bytes)  version (u64)
//! ```
//!
//! Starts are routing keys, ascending; each range ends where the next starts, the last where what
//! is watched ends. No shard is named: they may have been split and moved when the cursor comes
//! back.

use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{KeyRange, Keyspace, Refusal, Version};

const FORMAT: u8 = 1;

/// What a watch is of: a cursor is good for the same only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector(Bytes);

impl Selector {
    pub(super) fn new(keyspace: &Keyspace, key: &[u8], prefix: &[u8]) -> Self {
        let mut out = Writer::new();
        out.u32(keyspace.keyspace_id.0);
        out.bytes(key);
        out.bytes(prefix);
        Selector(out.finish())
    }

    fn checksum(&self, content: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.0), content)
    }
}

pub(super) fn encode<'a>(
    positions: impl ExactSizeIterator<Item = (&'a Bytes, Version)>,
    selector: &Selector,
) -> Bytes {
    let mut content = Writer::with_capacity(16 + positions.len() * 20);
    content.varint(positions.len() as u64);
    for (start, version) in positions {
        content.bytes(start);
        content.u64(version.0);
    }
    let mut out = Writer::with_capacity(content.len() + 5);
    out.u8(FORMAT);
    out.u32(selector.checksum(content.as_slice()));
    out.raw(content.as_slice());
    out.finish()
}

/// Reads a cursor of a watch of the same keys.
pub(super) fn decode(
    cursor: &Bytes,
    selector: &Selector,
    range: &KeyRange,
) -> Result<Vec<(Bytes, Version)>, Refusal> {
    let bad = |problem: &str| Refusal::invalid("cursor", problem);
    let mut input = Reader::new(cursor.clone());
    input.version("cursor", FORMAT).map_err(|error| bad(&format!("is unreadable: {error}")))?;
    let checksum = input.u32().map_err(|_| bad("is cut off"))?;
    let content = input.raw(input.remaining()).map_err(|_| bad("is cut off"))?;
    if checksum != selector.checksum(&content) {
        return Err(bad("is damaged, or belongs to a watch of other keys"));
    }
    let positions = read(content).map_err(|error| bad(&format!("is unreadable: {error}")))?;
    let starts_right = positions.first().is_some_and(|(start, _)| *start == range.start);
    let ascends = positions.windows(2).all(|pair| pair[0].0 < pair[1].0);
    let ends_right = positions.last().is_some_and(|(start, _)| range.contains(start));
    match starts_right && ascends && ends_right {
        true => Ok(positions),
        false => Err(bad("belongs to a watch of other keys")),
    }
}

fn read(content: Bytes) -> Result<Vec<(Bytes, Version)>, DecodeError> {
    let mut input = Reader::new(content);
    let count = input.count(9)?;
    let mut positions = Vec::with_capacity(count);
    for _ in 0..count {
        positions.push((input.bytes()?, Version(input.u64()?)));
    }
    input.end()?;
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{KeyspaceId, Partitioning};

    fn selector(prefix: &str) -> Selector {
        let keyspace = Keyspace::new(KeyspaceId(1), "k", Partitioning::Range);
        Selector::new(&keyspace, b"", prefix.as_bytes())
    }

    fn cursor() -> (Bytes, Vec<(Bytes, Version)>, KeyRange) {
        let positions = vec![(Bytes::from("a"), Version(3)), (Bytes::from("m"), Version(9))];
        let encoded = encode(positions.iter().map(|(start, told)| (start, *told)), &selector("x"));
        (encoded, positions, KeyRange::new("a", "z"))
    }

    #[test]
    fn a_cursor_gives_back_its_positions() {
        let (encoded, positions, range) = cursor();
        assert_eq!(decode(&encoded, &selector("x"), &range).unwrap(), positions);
    }

    #[test]
    fn one_of_other_keys_or_with_a_flipped_bit_is_refused() {
        let (encoded, _, range) = cursor();
        assert!(decode(&encoded, &selector("y"), &range).is_err());
        assert!(decode(&encoded, &selector("x"), &KeyRange::new("b", "z")).is_err());
        assert!(decode(&encoded, &selector("x"), &KeyRange::new("a", "c")).is_err());
        for bit in 0..encoded.len() * 8 {
            let mut flipped = encoded.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped.into(), &selector("x"), &range).is_err(), "bit {bit}");
        }
        for length in 0..encoded.len() {
            assert!(decode(&encoded.slice(..length), &selector("x"), &range).is_err());
        }
    }
}
