//! A shard's way to another node.

use crate::model::{any_history, log_of};
use crate::support::*;
use bytes::Bytes;
use kvdb_engine::{Batch, Engine, EngineError, MemoryEngine};
use kvdb_model::{EntryCommand, ReplicaId, VolumeId};
use kvdb_store::{ChunkReader, SnapshotWriter, digest};
use proptest::prelude::*;

const RECEIVER: ReplicaId = ReplicaId(4_000_000_000);
const FRESH: VolumeId = VolumeId(8);

fn chunks_of(engine: &MemoryEngine, replica: ReplicaId, volume: VolumeId) -> Vec<Bytes> {
    let snapshot = engine.snapshot(volume).expect("the volume is there");
    let writer = SnapshotWriter::new(snapshot, replica).expect("the replica is there");
    let mut chunks = vec![];
    writer
        .write(|chunk| {
            chunks.push(chunk);
            true
        })
        .expect("it can be read");
    chunks
}

/// Takes a snapshot in; on an error there is no volume afterwards.
fn receive(chunks: Vec<Bytes>) -> Result<MemoryEngine, EngineError> {
    let engine = MemoryEngine::new();
    let mut items = ChunkReader::new(chunks.into_iter(), RECEIVER);
    let outcome = engine.ingest_volume(FRESH, &mut items);
    assert_eq!(engine.volumes().is_empty(), outcome.is_err());
    outcome.map(|()| engine)
}

/// A shard of some data, requests and a neighbour in its volume.
fn sender() -> Single {
    let mut single = Single::new();
    for place in 0..20 {
        single.write(tagged(place, write(vec![put(&format!("k{place:02}"), "value")])));
    }
    single
}

#[test]
fn a_received_shard_goes_on_as_the_sender_does() {
    let mut single = sender();
    let received = receive(chunks_of(&single.engine, REPLICA, VOLUME)).unwrap();
    let mut shard = open(&received, RECEIVER, FRESH);
    assert_eq!(shard.applied(), single.shard.applied());
    assert_eq!(shard.last_version(), single.shard.last_version());
    assert_eq!(shard.descriptor(), single.shard.descriptor());
    // A retry of what the sender carried out, and something new.
    let retry = tagged(3, write(vec![put("k03", "value")]));
    let new = write(vec![increment("n", 1)]);
    let (entry, _) = single.log.push(&[EntryCommand::Write(retry), EntryCommand::Write(new)]);
    let theirs = single.shard.apply(std::slice::from_ref(&entry)).unwrap();
    let ours = shard.apply(&[entry]).unwrap();
    assert_eq!(ours.entries, theirs.entries);
    let digests = [(&single.engine, REPLICA, VOLUME), (&received, RECEIVER, FRESH)].map(
        |(engine, replica, volume)| digest(&*engine.snapshot(volume).unwrap(), replica).unwrap(),
    );
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn neighbours_in_the_volume_stay_behind() {
    let single = sender();
    let before = chunks_of(&single.engine, REPLICA, VOLUME);
    // Another replica's records, and data outside the range.
    open(&single.engine, ReplicaId(9), VOLUME);
    open(&single.engine, ReplicaId(11), VOLUME);
    let mut batch = Batch::default();
    for key in ["da", "dy", "dz"] {
        batch.put(Bytes::from_static(key.as_bytes()), Bytes::from_static(b"not ours"));
    }
    single.engine.write(VOLUME, batch).unwrap();
    assert_eq!(chunks_of(&single.engine, REPLICA, VOLUME), before);
}

#[test]
fn the_writer_tells_what_it_holds_and_stops_when_told() {
    let single = sender();
    let writer = SnapshotWriter::new(snapshot(&single.engine), REPLICA).unwrap();
    assert_eq!(writer.position(), single.shard.applied());
    assert_eq!(writer.time(), single.shard.time());
    assert_eq!(writer.descriptor(), single.shard.descriptor());
    let mut count = 0;
    writer
        .write(|_| {
            count += 1;
            false
        })
        .unwrap();
    assert_eq!(count, 1);
    assert!(SnapshotWriter::new(snapshot(&single.engine), ReplicaId(11)).is_err());
}

#[test]
fn a_flip_of_any_bit_is_found() {
    let chunks = chunks_of(&sender().engine, REPLICA, VOLUME);
    for place in 0..chunks.len() {
        for byte in 0..chunks[place].len() {
            let mut damaged = chunks.clone();
            let mut flipped = chunks[place].to_vec();
            flipped[byte] ^= 1 << (byte % 8);
            damaged[place] = flipped.into();
            assert!(receive(damaged).is_err(), "byte {byte} of chunk {place}");
        }
    }
}

#[test]
fn chunks_that_are_missing_doubled_swapped_or_cut_are_refused() {
    let mut single = Single::new();
    let large = "v".repeat(200 << 10);
    for place in 0..8 {
        single.one(put(&format!("k{place}"), &large)).unwrap();
    }
    let chunks = chunks_of(&single.engine, REPLICA, VOLUME);
    assert!(chunks.len() > 3, "{} chunks", chunks.len());
    assert!(chunks.iter().all(|chunk| chunk.len() < 600 << 10));
    assert!(receive(chunks.clone()).is_ok());
    for place in 0..chunks.len() {
        let mut missing = chunks.clone();
        missing.remove(place);
        assert!(receive(missing).is_err(), "without chunk {place}");
        let mut cut = chunks.clone();
        cut[place].truncate(chunks[place].len() - 1);
        assert!(receive(cut).is_err(), "chunk {place} cut");
        if place + 1 < chunks.len() {
            let mut doubled = chunks.clone();
            doubled.insert(place, chunks[place].clone());
            assert!(receive(doubled).is_err(), "chunk {place} twice");
            let mut swapped = chunks.clone();
            swapped.swap(place, place + 1);
            assert!(receive(swapped).is_err(), "chunks {place} and the next swapped");
        }
    }
    assert!(receive(vec![]).is_err());
}

#[test]
fn chunks_of_two_snapshots_do_not_mix() {
    let mut single = sender();
    let old = chunks_of(&single.engine, REPLICA, VOLUME);
    single.one(put("k03", "another")).unwrap();
    let new = chunks_of(&single.engine, REPLICA, VOLUME);
    assert_eq!((old.len(), new.len()), (2, 2));
    assert!(receive(vec![old[0].clone(), new[1].clone()]).is_err());
}

/// A chunk with a checksum that is right, whatever is in it.
fn sealed(content: &[u8]) -> Bytes {
    let mut chunk = crc32c::crc32c(content).to_le_bytes().to_vec();
    chunk.extend_from_slice(content);
    chunk.into()
}

#[test]
fn well_sealed_nonsense_is_refused_by_its_content() {
    let refused = |chunks: &[&[u8]]| {
        let chunks = chunks.iter().map(|content| sealed(content)).collect();
        receive(chunks).err().expect("nonsense is refused").to_string()
    };
    for (chunks, why) in [
        (&[&[2, 0, 0][..]][..], "format version 2; this binary reads version 1"),
        (&[&[1, 1, 0]], "did not come in its turn"),
        (&[&[1, 0, 7]], "unknown tag 7"),
        (&[&[1, 0, 0, 1, 1, b'x', 0]], "a key of an unknown kind"),
        (&[&[1, 0, 0, 1, 1, b'r', 0]], "a key of an unknown kind"),
        (&[&[1, 0, 0, 2, 1, b'd', 0, 1, b'd', 0]], "a key that does not rise"),
        (&[&[1, 0, 0, 1, 2, b'd', b'b', 0], &[1, 1, 0, 1, 1, b'd', 0]], "a key that does not rise"),
        (&[&[1, 0, 0, 255, 255, 255, 255, 15]], "ends"),
        (&[&[1, 0, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0]], "does not count the items"),
        (&[&[1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]], "another digest"),
    ] {
        let refusal = refused(chunks);
        assert!(refusal.contains(why), "{refusal:?} does not say {why:?}");
    }
    // A snapshot of nothing at all, with the digest of nothing (XXH3 of no bytes).
    let mut nothing = vec![1, 0, 1, 0];
    nothing.extend_from_slice(&0x2d06_8005_38d3_94c2_u64.to_le_bytes());
    assert!(refused(&[&nothing]).contains("without the replica's state"));
}

proptest! {
    #[test]
    fn any_history_survives_the_way(history in any_history()) {
        let (log, _) = log_of(&history);
        let (engine, mut shard) = newborn();
        shard.apply(&log.entries).unwrap();
        let chunks = chunks_of(&engine, REPLICA, VOLUME);
        let received = receive(chunks.clone()).unwrap();
        prop_assert_eq!(chunks_of(&received, RECEIVER, FRESH), chunks);
    }

    #[test]
    fn junk_never_panics(junk in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4), is_sealed in any::<bool>()) {
        let mut sequence = 0;
        let chunks = junk.into_iter().map(|content| {
            if !is_sealed {
                return content.into();
            }
            let mut framed = vec![1, sequence, sequence % 2];
            framed.extend_from_slice(&content);
            sequence += 1;
            sealed(&framed)
        });
        prop_assert!(receive(chunks.collect()).is_err());
    }
}
