//! The checksum of replica records: CRC32C over kind, rest of the key and content, in front of
//! the content. The replica id is left out, so that a snapshot can be taken over as it is.

use crate::layout::{Kind, suffix_of};
use crate::record::RecordDamage;
use bytes::{BufMut, Bytes, BytesMut};

const CHECKSUM_BYTES: usize = 4;

fn checksum(kind: Kind, suffix: &[u8], content: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&[kind as u8]);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, suffix), content)
}

/// The stored form of a replica record.
pub(crate) fn seal(kind: Kind, suffix: &[u8], content: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(CHECKSUM_BYTES + content.len());
    out.put_u32_le(checksum(kind, suffix, content));
    out.put_slice(content);
    out.freeze()
}

/// The content of a replica record that was stored under `key`.
pub(crate) fn unseal(kind: Kind, key: &Bytes, stored: &Bytes) -> Result<Bytes, RecordDamage> {
    let damaged = || RecordDamage::Checksum { record: kind.name().to_owned() };
    if stored.len() < CHECKSUM_BYTES {
        return Err(damaged());
    }
    let content = stored.slice(CHECKSUM_BYTES..);
    if checksum(kind, &suffix_of(key), &content).to_le_bytes() != stored[..CHECKSUM_BYTES] {
        return Err(damaged());
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::record_key;
    use kvdb_model::ReplicaId;

    #[test]
    fn every_flipped_bit_is_found() {
        let key = record_key(ReplicaId(7), Kind::Request, b"client");
        let sealed = seal(Kind::Request, b"client", b"content");
        assert_eq!(&unseal(Kind::Request, &key, &sealed).unwrap()[..], b"content");
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(Kind::Request, &key, &Bytes::from(flipped)).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(unseal(Kind::Request, &key, &sealed.slice(..length)).is_err());
        }
    }

    #[test]
    fn a_record_belongs_to_its_key_but_to_any_replica() {
        let sealed = seal(Kind::Request, b"client", b"content");
        let moved = record_key(ReplicaId(8), Kind::Request, b"client");
        assert!(unseal(Kind::Request, &moved, &sealed).is_ok());
        let other = record_key(ReplicaId(7), Kind::Request, b"another");
        assert!(unseal(Kind::Request, &other, &sealed).is_err());
        let control = record_key(ReplicaId(7), Kind::Control, b"client");
        assert!(unseal(Kind::Control, &control, &sealed).is_err());
    }
}
