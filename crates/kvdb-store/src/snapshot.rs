//! A shard's whole content, as a stream of chunks; and its digest.
//!
//! ```text
//! chunk:  crc32c (u32) over the rest | format (u8) | sequence (varint) | items or end
//! items:  0 (u8), count (varint), then key and value (length-prefixed) of each, ascending
//! end:    1 (u8), number of items (varint), digest (u64, XXH3) of all keys and values
//! ```
//!
//! Chunks are of 256 KiB, or larger by one item. Keys are those of the volume, with the sender's
//! replica id left out and the receiver's put in. A stream that is damaged, out of order, of an
//! unknown format, without the replica's state or without its end is refused; since an ingestion
//! that ends in an error leaves nothing, so does such a stream.

use crate::layout::{Kind, from_neutral, is_neutral_state, kept_under, replica_range, to_neutral};
use crate::shard::{OpenError, State};
use bytes::Bytes;
use kvdb_engine::{EngineError, Item, Snapshot};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::planted::{Bug, has};
use kvdb_model::{LogPosition, ReplicaId, ShardDescriptor, TimeMark};
use std::collections::VecDeque;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

const FORMAT: u8 = 1;
const ITEMS: u8 = 0;
const END: u8 = 1;
const CHUNK_BYTES: usize = 256 * 1024;
const UNKNOWN_KEY: &str = "has a key of an unknown kind";

/// Why a snapshot can't be read or taken in.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A chunk is damaged, or isn't the next one.
    #[error("chunk {sequence} of the snapshot {problem}")]
    Chunk {
        /// Which chunk was due.
        sequence: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A chunk can't be decoded, or is of an unknown format.
    #[error("the snapshot can't be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The replica's state.
    #[error(transparent)]
    State(#[from] OpenError),
    /// There is no such replica in the volume.
    #[error("the replica has no state to take a snapshot of")]
    NoState,
}

fn items_of<'a>(
    snapshot: &'a dyn Snapshot,
    replica: ReplicaId,
    state: &State,
) -> Box<dyn Iterator<Item = Item> + Send + 'a> {
    let kept = kept_under(&state.descriptor.range);
    let ranges = kept.into_iter().chain([replica_range(replica)]);
    Box::new(ranges.flat_map(move |range| snapshot.scan(&range, false)))
}

/// Turns an engine snapshot into chunks.
pub struct SnapshotWriter {
    snapshot: Box<dyn Snapshot>,
    replica: ReplicaId,
    state: State,
}

impl SnapshotWriter {
    /// A snapshot of `replica` as it stands in an engine snapshot.
    ///
    /// # Errors
    /// If the replica isn't in it.
    pub fn new(snapshot: Box<dyn Snapshot>, replica: ReplicaId) -> Result<Self, SnapshotError> {
        let state = State::read(&*snapshot, replica)?.ok_or(SnapshotError::NoState)?;
        Ok(SnapshotWriter { snapshot, replica, state })
    }

    /// Up to where entries are applied in it.
    pub fn position(&self) -> LogPosition {
        self.state.applied
    }

    /// The descriptor in it.
    pub fn descriptor(&self) -> &ShardDescriptor {
        &self.state.descriptor
    }

    /// How far time has come in it.
    pub fn time(&self) -> TimeMark {
        self.state.time
    }

    /// Everything in it, ascending, as another replica would hold it: for a copy that doesn't
    /// travel.
    pub fn items_for(&self, receiver: ReplicaId) -> impl Iterator<Item = Item> + '_ {
        items_of(&*self.snapshot, self.replica, &self.state).map(move |item| {
            let (key, value) = item?;
            match from_neutral(&to_neutral(&key), receiver) {
                Some(own) => Ok((own, value)),
                None => {
                    let problem = SnapshotError::Chunk { sequence: 0, problem: UNKNOWN_KEY };
                    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, problem);
                    Err(EngineError::Io { place: "the replica".to_owned(), source })
                }
            }
        })
    }

    /// Hands every chunk to `send`, in order; ends early once `send` returns false.
    ///
    /// # Errors
    /// If the engine can't be read.
    pub fn write(&self, mut send: impl FnMut(Bytes) -> bool) -> Result<(), SnapshotError> {
        let mut digest = Xxh3::new();
        let mut chunk = Chunk::default();
        let mut sequence = 0;
        let mut total = 0u64;
        for item in items_of(&*self.snapshot, self.replica, &self.state) {
            let (key, value) = item?;
            let key = to_neutral(&key);
            if has(Bug::WindowLostInSnapshot) && key.starts_with(&[b'r', Kind::Request as u8]) {
                continue;
            }
            update(&mut digest, &key, &value);
            total += 1;
            chunk.push(&key, &value);
            if chunk.body.len() >= CHUNK_BYTES {
                if !send(std::mem::take(&mut chunk).finish(sequence)) {
                    return Ok(());
                }
                sequence += 1;
            }
        }
        if chunk.count > 0 {
            if !send(chunk.finish(sequence)) {
                return Ok(());
            }
            sequence += 1;
        }
        send(end_chunk(sequence, total, digest.digest()));
        Ok(())
    }
}

fn update(digest: &mut Xxh3, key: &[u8], value: &[u8]) {
    digest.update(&(key.len() as u64).to_le_bytes());
    digest.update(key);
    digest.update(&(value.len() as u64).to_le_bytes());
    digest.update(value);
}

#[derive(Default)]
struct Chunk {
    body: Writer,
    count: u64,
}

impl Chunk {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.body.bytes(key);
        self.body.bytes(value);
        self.count += 1;
    }

    fn finish(self, sequence: u64) -> Bytes {
        let mut header = chunk_header(sequence, ITEMS);
        header.varint(self.count);
        sealed(header.as_slice(), self.body.as_slice())
    }
}

fn chunk_header(sequence: u64, tag: u8) -> Writer {
    let mut header = Writer::with_capacity(32);
    header.u8(FORMAT);
    header.varint(sequence);
    header.u8(tag);
    header
}

fn end_chunk(sequence: u64, total: u64, digest: u64) -> Bytes {
    let mut header = chunk_header(sequence, END);
    header.varint(total);
    header.u64(digest);
    sealed(header.as_slice(), &[])
}

fn sealed(header: &[u8], body: &[u8]) -> Bytes {
    let mut out = Writer::with_capacity(4 + header.len() + body.len());
    out.u32(crc32c::crc32c_append(crc32c::crc32c(header), body));
    out.raw(header);
    out.raw(body);
    out.finish()
}

/// Turns chunks back into keys and values for [`kvdb_engine::Engine::ingest_volume`]: an iterator
/// that holds one chunk at a time and ends with an error unless the whole snapshot was good.
pub struct ChunkReader<I> {
    chunks: I,
    replica: ReplicaId,
    items: VecDeque<(Bytes, Bytes)>,
    sequence: u64,
    total: u64,
    digest: Xxh3,
    /// The last key that came.
    last: Option<Bytes>,
    has_state: bool,
    done: bool,
}

impl<I: Iterator<Item = Bytes>> ChunkReader<I> {
    /// Reads `chunks` for a receiver.
    pub fn new(chunks: I, replica: ReplicaId) -> Self {
        ChunkReader {
            chunks,
            replica,
            items: VecDeque::new(),
            sequence: 0,
            total: 0,
            digest: Xxh3::new(),
            last: None,
            has_state: false,
            done: false,
        }
    }

    fn problem(&self, problem: &'static str) -> SnapshotError {
        SnapshotError::Chunk { sequence: self.sequence, problem }
    }

    fn next_chunk(&mut self) -> Result<(), SnapshotError> {
        let Some(chunk) = self.chunks.next() else {
            return Err(self.problem("is missing: the stream ended early"));
        };
        let mut input = Reader::new(chunk);
        let crc = input.u32()?;
        let content = input.raw(input.remaining())?;
        if crc32c::crc32c(&content) != crc {
            return Err(self.problem("is damaged: its checksum does not match"));
        }
        let mut input = Reader::new(content);
        input.version("snapshot", FORMAT)?;
        if input.varint()? != self.sequence {
            return Err(self.problem("did not come in its turn"));
        }
        match input.u8()? {
            ITEMS => self.take_items(&mut input)?,
            END => self.take_end(&mut input)?,
            tag => return Err(DecodeError::unknown_tag("snapshot chunk", tag).into()),
        }
        self.sequence += 1;
        Ok(())
    }

    fn take_items(&mut self, input: &mut Reader) -> Result<(), SnapshotError> {
        for _ in 0..input.count(2)? {
            let key = input.bytes()?;
            let value = input.bytes()?;
            update(&mut self.digest, &key, &value);
            self.total += 1;
            if self.last.as_ref().is_some_and(|last| *last >= key) {
                return Err(self.problem("has a key that does not rise"));
            }
            self.has_state |= is_neutral_state(&key);
            let Some(own) = from_neutral(&key, self.replica) else {
                return Err(self.problem(UNKNOWN_KEY));
            };
            self.items.push_back((own, value));
            self.last = Some(key);
        }
        input.end()?;
        Ok(())
    }

    fn take_end(&mut self, input: &mut Reader) -> Result<(), SnapshotError> {
        if input.varint()? != self.total {
            return Err(self.problem("does not count the items that came"));
        }
        if input.u64()? != self.digest.digest() {
            return Err(self.problem("has another digest than what came"));
        }
        if !self.has_state {
            return Err(self.problem("ends a snapshot without the replica's state"));
        }
        input.end()?;
        self.done = true;
        Ok(())
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for ChunkReader<I> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.items.pop_front() {
                return Some(Ok(item));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.next_chunk() {
                self.done = true;
                self.items.clear();
                let source = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
                return Some(Err(EngineError::Io { place: "the snapshot".to_owned(), source }));
            }
        }
    }
}

/// The digest of a replica: equal on all replicas at the same applied index. Covers the data in
/// the range, the replica's state and its request window, not its id.
///
/// # Errors
/// If the replica isn't there or can't be read.
pub fn digest(
    snapshot: &dyn Snapshot,
    replica: ReplicaId,
) -> Result<(LogPosition, u64), SnapshotError> {
    let state = State::read(snapshot, replica)?.ok_or(SnapshotError::NoState)?;
    let mut digest = Xxh3::new();
    for item in items_of(snapshot, replica, &state) {
        let (key, value) = item?;
        update(&mut digest, &to_neutral(&key), &value);
    }
    Ok((state.applied, digest.digest()))
}
