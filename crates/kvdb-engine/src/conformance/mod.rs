//! What every engine must do, as tests that are run against each of them (feature `conformance`).
//!
//! A [`Subject`] is an engine together with a way to crash it: after [`Subject::crash`] it holds
//! what was durable and nothing else. Each test gets a fresh one and panics where the engine
//! doesn't do what it must.

mod durability;
mod model;
mod reading;
mod volumes;

use crate::{Batch, Engine, Item};
use bytes::Bytes;
use kvdb_model::{KeyRange, VolumeId};

/// An engine under test.
pub trait Subject {
    /// Its type.
    type Engine: Engine;
    /// The engine as it is now.
    fn engine(&self) -> &Self::Engine;
    /// Loses all that isn't durable and opens what is left.
    fn crash(&mut self);
}

/// Runs every test, each against a fresh subject.
///
/// # Panics
/// Where the engine doesn't do what it must.
pub fn run_all<S: Subject>(mut fresh: impl FnMut() -> S) {
    reading::run(&mut fresh);
    durability::run(&mut fresh);
    volumes::run(&mut fresh);
    model::run(&mut fresh);
}

const VOLUME: VolumeId = VolumeId(7);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Batch {
    let mut batch = Batch::default();
    batch.put(bytes(key), bytes(value));
    batch
}

fn contents_of<E: Engine>(engine: &E, volume: VolumeId) -> Vec<(Bytes, Bytes)> {
    let snapshot = engine.snapshot(volume).expect("the volume is there");
    snapshot.scan(&KeyRange::ALL, false).collect::<Result<_, _>>().expect("it can be read")
}

fn contents<E: Engine>(engine: &E) -> Vec<(Bytes, Bytes)> {
    contents_of(engine, VOLUME)
}

fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(Bytes, Bytes)> {
    pairs.iter().map(|(key, value)| (bytes(key), bytes(value))).collect()
}

/// Keys and values as an ingestion takes them.
fn ascending(count: usize) -> Vec<Item> {
    (0..count).map(|n| Ok((bytes(&format!("{n:08}")), bytes(&"v".repeat(n % 100))))).collect()
}
