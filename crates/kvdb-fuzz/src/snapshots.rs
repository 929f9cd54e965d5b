//! Snapshots as they come from a peer.

use crate::records::{REPLICA, VOLUME, open};
use bytes::Bytes;
use kvdb_engine::{Engine, MemoryEngine};
use kvdb_model::codec::Writer;
use kvdb_store::{ChunkReader, SnapshotWriter, digest};
use xxhash_rust::xxh3::Xxh3;

/// The first byte chooses: chunks as they come (each after 2 bytes of length), or keys and values
/// (each after a byte of length) that are packed into a stream with all checksums right.
pub fn snapshots(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let chunks = if choice % 2 == 0 { split_chunks(rest) } else { packed(rest) };
    let engine = MemoryEngine::new();
    let mut reader = ChunkReader::new(chunks.into_iter(), REPLICA);
    if engine.ingest_volume(VOLUME, &mut reader).is_err() {
        assert!(engine.volumes().is_empty(), "what is refused leaves something");
        return;
    }
    let snapshot = engine.snapshot(VOLUME).expect("it was taken in");
    let found = digest(&*snapshot, REPLICA);
    if open(&engine).is_err() {
        return;
    }
    // What is good is good again elsewhere.
    let (position, digested) = found.expect("a replica that opens has a digest");
    let mut sent = Vec::new();
    let writer = SnapshotWriter::new(snapshot, REPLICA).expect("a replica that opens can be sent");
    let written = writer.write(|chunk| {
        sent.push(chunk);
        true
    });
    written.expect("a replica that opens can be read");
    let other = MemoryEngine::new();
    let mut reader = ChunkReader::new(sent.into_iter(), REPLICA);
    other.ingest_volume(VOLUME, &mut reader).expect("what was written is read");
    let copy = other.snapshot(VOLUME).expect("it was taken in");
    let copied = digest(&*copy, REPLICA).expect("it has a digest");
    assert_eq!(copied, (position, digested));
}

fn split_chunks(mut rest: &[u8]) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    while let [low, high, after @ ..] = rest {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        chunks.push(Bytes::copy_from_slice(&after[..length]));
        rest = &after[length..];
    }
    chunks
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = rest.split_first()?;
    let (field, after) = after.split_at(usize::from(*length).min(after.len()));
    *rest = after;
    Some(field)
}

/// One chunk of items, and the end.
fn packed(mut rest: &[u8]) -> Vec<Bytes> {
    let mut digest = Xxh3::new();
    let mut items = Writer::new();
    let mut count = 0;
    while let Some(key) = field(&mut rest) {
        let value = field(&mut rest).unwrap_or_default();
        for part in [key, value] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
            items.bytes(part);
        }
        count += 1;
    }
    let mut chunk = header(0, 0);
    chunk.varint(count);
    chunk.raw(items.as_slice());
    let mut end = header(1, 1);
    end.varint(count);
    end.u64(digest.digest());
    vec![sealed(chunk), sealed(end)]
}

fn header(sequence: u64, tag: u8) -> Writer {
    let mut out = Writer::new();
    out.u8(1);
    out.varint(sequence);
    out.u8(tag);
    out
}

fn sealed(content: Writer) -> Bytes {
    let mut out = Writer::new();
    out.u32(crc32c::crc32c(content.as_slice()));
    out.raw(content.as_slice());
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_from_a_real_snapshot_opens() {
        let [chunks, items] = &crate::seeds::snapshots()[..] else { panic!("two seeds") };
        for chunks in [split_chunks(&chunks[1..]), packed(&items[1..])] {
            let engine = MemoryEngine::new();
            let mut reader = ChunkReader::new(chunks.into_iter(), REPLICA);
            engine.ingest_volume(VOLUME, &mut reader).unwrap();
            open(&engine).unwrap();
        }
    }
}
