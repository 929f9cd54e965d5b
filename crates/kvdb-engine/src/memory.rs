//! The engine of tests and of the simulator: in memory, with the durability of the real one. A
//! [`MemoryEngine::crash`] keeps what was flushed or ingested and forgets the rest;
//! [`MemoryEngine::crash_through`] also keeps, of each volume, some batches that a background
//! flush might have reached.
//!
//! A key holds all its values that a snapshot, or a crash at any batch since the last flush, can
//! still show. So memory grows with the writes since the last flush, and shrinks with a flush.

use crate::{Batch, Engine, EngineError, Item, SequenceNumber, Snapshot, VolumeStats, check_key};
use bytes::Bytes;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{KeyRange, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Values of one key, in ascending order of their sequence numbers; `None` is a removal.
type Versions = Vec<(u64, Option<Bytes>)>;

/// The most items that a scan looks up at once.
const SCAN_AHEAD: usize = 32;

#[derive(Default)]
struct Volume {
    keys: BTreeMap<Bytes, Versions>,
    published: u64,
    flushed: u64,
    /// Keys with values that a flush makes superfluous.
    unflushed: BTreeSet<Bytes>,
    unflushed_bytes: u64,
    /// Open snapshots by sequence number.
    open: BTreeMap<u64, usize>,
}

impl Volume {
    fn at(versions: &Versions, sequence: u64) -> Option<&Bytes> {
        let seen = versions.iter().rev().find(|(at, _)| *at <= sequence);
        seen.and_then(|(_, value)| value.as_ref())
    }

    fn watermark(&self) -> u64 {
        let oldest_open = self.open.keys().next().copied().unwrap_or(self.published);
        oldest_open.min(self.flushed)
    }

    fn write(&mut self, batch: Batch) -> SequenceNumber {
        self.published += 1;
        let watermark = self.watermark();
        let short_lived = batch.short_lived.into_iter().map(|change| {
            let is_there = |versions| Self::at(versions, self.published - 1).is_some();
            assert!(
                !change.is_new
                    || !self.keys.get(&change.key).is_some_and(is_there)
                    || has(Bug::WindowLostAtRestart),
                "{:?} is said to be new, and is there",
                change.key
            );
            (change.key, change.value)
        });
        let short_lived: Vec<_> = short_lived.collect();
        for (key, value) in batch.changes.into_iter().chain(short_lived) {
            self.unflushed_bytes += (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64;
            let versions = self.keys.entry(key.clone()).or_default();
            // The last change of a key in a batch is the one that counts.
            if versions.last().is_some_and(|(at, _)| *at == self.published) {
                versions.pop();
            }
            versions.push((self.published, value));
            Self::prune(versions, watermark);
            self.unflushed.insert(key);
        }
        SequenceNumber(self.published)
    }

    /// Of the versions at or below the watermark only the last can still be read.
    fn prune(versions: &mut Versions, watermark: u64) {
        if let Some(last) = versions.iter().rposition(|(at, _)| *at <= watermark) {
            versions.drain(..last);
        }
    }

    fn flush(&mut self, through: u64) {
        self.flushed = self.flushed.max(through.min(self.published));
        if self.flushed < self.published {
            return;
        }
        self.unflushed_bytes = 0;
        let watermark = self.watermark();
        for key in std::mem::take(&mut self.unflushed) {
            let Some(versions) = self.keys.get_mut(&key) else { continue };
            Self::prune(versions, watermark);
            if matches!(versions.as_slice(), [(at, None)] if *at <= watermark) {
                self.keys.remove(&key);
            } else if versions.len() > 1 {
                // A snapshot holds on to them: the next flush looks again.
                self.unflushed.insert(key);
            }
        }
    }

    fn crashed(&self, through: u64) -> Volume {
        let kept = through.clamp(self.flushed, self.published);
        let keys = self
            .keys
            .iter()
            .filter_map(|(key, versions)| {
                let value = Volume::at(versions, kept)?;
                Some((key.clone(), vec![(kept, Some(value.clone()))]))
            })
            .collect();
        Volume { keys, published: kept, flushed: kept, ..Volume::default() }
    }

    fn stats(&self) -> VolumeStats {
        VolumeStats {
            memtable_bytes: self.unflushed_bytes,
            disk_bytes: 0,
            published: SequenceNumber(self.published),
            flushed: SequenceNumber(self.flushed),
            level0_runs: 0,
        }
    }
}

type Shared = Arc<Mutex<Volume>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held has failed the test already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine in memory. Clones share their content.
#[derive(Clone, Default)]
pub struct MemoryEngine {
    volumes: Arc<Mutex<BTreeMap<VolumeId, Shared>>>,
}

impl MemoryEngine {
    /// An engine without volumes.
    pub fn new() -> Self {
        Self::default()
    }

    fn volume(&self, volume: VolumeId) -> Result<Shared, EngineError> {
        lock(&self.volumes).get(&volume).cloned().ok_or(EngineError::VolumeMissing(volume))
    }

    /// What is left after a crash: of each volume what was flushed or ingested. This engine and
    /// its snapshots stay as they are.
    #[must_use]
    pub fn crash(&self) -> MemoryEngine {
        self.crash_through(|_, stats| stats.flushed)
    }

    /// What is left after a crash that a background flush came just before: `kept` says, volume
    /// by volume in ascending order, through which batch. What it says is brought between the
    /// flushed and the published batch. With `kept` drawn from a seed the outcome is that seed's.
    #[must_use]
    pub fn crash_through(
        &self,
        mut kept: impl FnMut(VolumeId, VolumeStats) -> SequenceNumber,
    ) -> MemoryEngine {
        let volumes = lock(&self.volumes)
            .iter()
            .map(|(id, volume)| {
                let volume = lock(volume);
                let through = kept(*id, volume.stats());
                (*id, Arc::new(Mutex::new(volume.crashed(through.0))))
            })
            .collect();
        MemoryEngine { volumes: Arc::new(Mutex::new(volumes)) }
    }

    /// Flushes a volume up to a batch, not further: what a crash in the middle leaves.
    ///
    /// # Errors
    /// [`EngineError::VolumeMissing`].
    pub fn flush_through(
        &self,
        volume: VolumeId,
        through: SequenceNumber,
    ) -> Result<(), EngineError> {
        lock(&*self.volume(volume)?).flush(through.0);
        Ok(())
    }

    /// Loses a volume as a damaged disk would.
    pub fn lose_volume(&self, volume: VolumeId) {
        lock(&self.volumes).remove(&volume);
    }
}

struct MemorySnapshot {
    volume: Shared,
    sequence: u64,
}

impl Drop for MemorySnapshot {
    fn drop(&mut self) {
        let mut volume = lock(&self.volume);
        if let Some(count) = volume.open.get_mut(&self.sequence) {
            *count -= 1;
            if *count == 0 {
                volume.open.remove(&self.sequence);
            }
        }
    }
}

impl Snapshot for MemorySnapshot {
    fn sequence(&self) -> SequenceNumber {
        SequenceNumber(self.sequence)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let volume = lock(&self.volume);
        Ok(volume.keys.get(key).and_then(|versions| Volume::at(versions, self.sequence)).cloned())
    }

    fn scan(&self, range: &KeyRange, reverse: bool) -> Box<dyn Iterator<Item = Item> + Send + '_> {
        let mut left = (!range.is_empty()).then(|| {
            let end = if range.end.is_empty() {
                Bound::Unbounded
            } else {
                Bound::Excluded(range.end.clone())
            };
            (Bound::Included(range.start.clone()), end)
        });
        let mut ahead = VecDeque::new();
        let mut look_up = 1;
        Box::new(std::iter::from_fn(move || {
            if ahead.is_empty() {
                left = self.look_ahead(left.take()?, reverse, look_up, &mut ahead);
                look_up = SCAN_AHEAD.min(look_up * 2);
            }
            ahead.pop_front().map(Ok)
        }))
    }
}

/// What a scan has not looked up yet.
type Left = (Bound<Bytes>, Bound<Bytes>);

impl MemorySnapshot {
    /// Looks up the next items of a scan, `most` at most, and says what is left after them.
    fn look_ahead(
        &self,
        (start, end): Left,
        reverse: bool,
        most: usize,
        ahead: &mut VecDeque<(Bytes, Bytes)>,
    ) -> Option<Left> {
        let volume = lock(&self.volume);
        // A BTreeMap panics when it is asked for a range that starts behind its end.
        if let (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to)) = (&start, &end)
            && from >= to
        {
            return None;
        }
        let mut keys = volume.keys.range::<Bytes, _>((start.as_ref(), end.as_ref()));
        let mut next = || if reverse { keys.next_back() } else { keys.next() };
        while let Some((key, versions)) = next() {
            let Some(value) = Volume::at(versions, self.sequence) else { continue };
            ahead.push_back((key.clone(), value.clone()));
            if ahead.len() == most {
                let passed = Bound::Excluded(key.clone());
                return Some(if reverse { (start, passed) } else { (passed, end) });
            }
        }
        None
    }
}

impl Engine for MemoryEngine {
    fn volumes(&self) -> Vec<VolumeId> {
        lock(&self.volumes).keys().copied().collect()
    }

    fn create_volume(&self, volume: VolumeId) -> Result<(), EngineError> {
        let mut volumes = lock(&self.volumes);
        if volumes.contains_key(&volume) {
            return Err(EngineError::VolumeExists(volume));
        }
        volumes.insert(volume, Shared::default());
        Ok(())
    }

    fn ingest_volume(
        &self,
        volume: VolumeId,
        items: &mut dyn Iterator<Item = Item>,
    ) -> Result<(), EngineError> {
        if lock(&self.volumes).contains_key(&volume) {
            return Err(EngineError::VolumeExists(volume));
        }
        let mut keys: BTreeMap<Bytes, Versions> = BTreeMap::new();
        for item in items {
            let (key, value) = item?;
            check_key(&key)?;
            if keys.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(EngineError::NotAscending(key.escape_ascii().to_string()));
            }
            keys.insert(key, vec![(1, Some(value))]);
        }
        let ingested = Volume { keys, published: 1, flushed: 1, ..Volume::default() };
        lock(&self.volumes).insert(volume, Arc::new(Mutex::new(ingested)));
        Ok(())
    }

    fn delete_volume(&self, volume: VolumeId) -> Result<(), EngineError> {
        lock(&self.volumes).remove(&volume);
        Ok(())
    }

    fn write(&self, volume: VolumeId, batch: Batch) -> Result<SequenceNumber, EngineError> {
        batch.check()?;
        Ok(lock(&*self.volume(volume)?).write(batch))
    }

    fn snapshot(&self, volume: VolumeId) -> Result<Box<dyn Snapshot>, EngineError> {
        let shared = self.volume(volume)?;
        let sequence = {
            let mut volume = lock(&shared);
            let sequence = volume.published;
            *volume.open.entry(sequence).or_default() += 1;
            sequence
        };
        Ok(Box::new(MemorySnapshot { volume: shared, sequence }))
    }

    fn flush(&self, volume: VolumeId) -> Result<SequenceNumber, EngineError> {
        let shared = self.volume(volume)?;
        let mut volume = lock(&shared);
        volume.flush(u64::MAX);
        Ok(SequenceNumber(volume.flushed))
    }

    fn drop_range(&self, volume: VolumeId, range: &KeyRange) -> Result<(), EngineError> {
        let shared = self.volume(volume)?;
        lock(&shared).keys.retain(|key, _| !range.contains(key));
        Ok(())
    }

    fn maintain(&self) -> Result<bool, EngineError> {
        Ok(false)
    }

    fn wait_for_work(&self, _timeout: std::time::Duration) {}

    fn stats(&self, volume: VolumeId) -> Result<VolumeStats, EngineError> {
        Ok(lock(&*self.volume(volume)?).stats())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Subject, run_all};

    const VOLUME: VolumeId = VolumeId(1);

    struct InMemory(MemoryEngine);

    impl Subject for InMemory {
        type Engine = MemoryEngine;

        fn engine(&self) -> &MemoryEngine {
            &self.0
        }

        fn crash(&mut self) {
            self.0 = self.0.crash();
        }
    }

    #[test]
    fn the_memory_engine_conforms() {
        run_all(|| InMemory(MemoryEngine::new()));
    }

    fn write(engine: &MemoryEngine, key: &str, value: Option<&str>) -> SequenceNumber {
        let change = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        let changes = vec![(Bytes::copy_from_slice(key.as_bytes()), change)];
        engine.write(VOLUME, Batch { changes, ..Batch::default() }).unwrap()
    }

    fn keys(engine: &MemoryEngine) -> Vec<Bytes> {
        let snapshot = engine.snapshot(VOLUME).unwrap();
        snapshot.scan(&KeyRange::ALL, false).map(|item| item.unwrap().0).collect()
    }

    #[test]
    fn a_crash_can_keep_a_part_of_what_was_not_flushed() {
        let engine = MemoryEngine::new();
        engine.create_volume(VOLUME).unwrap();
        write(&engine, "a", Some("1"));
        let flushed = engine.flush(VOLUME).unwrap();
        let kept = write(&engine, "b", Some("2"));
        let lost = write(&engine, "c", Some("3"));
        assert_eq!(keys(&engine.crash()), ["a"]);
        assert_eq!(keys(&engine.crash_through(|_, _| kept)), ["a", "b"]);
        // Never less than what was flushed, never more than what was written.
        assert_eq!(keys(&engine.crash_through(|_, _| SequenceNumber(0))), ["a"]);
        let all = engine.crash_through(|_, _| SequenceNumber(u64::MAX));
        assert_eq!(keys(&all), ["a", "b", "c"]);
        assert_eq!(all.stats(VOLUME).unwrap().flushed, lost);
        assert!(flushed < kept);
    }

    #[test]
    fn a_flush_frees_what_no_snapshot_can_see() {
        let engine = MemoryEngine::new();
        engine.create_volume(VOLUME).unwrap();
        write(&engine, "gone", Some("1"));
        let before = engine.snapshot(VOLUME).unwrap();
        write(&engine, "gone", None);
        write(&engine, "kept", Some("2"));
        let held = |engine: &MemoryEngine| lock(&engine.volume(VOLUME).unwrap()).keys.len();
        engine.flush(VOLUME).unwrap();
        assert_eq!(before.get(b"gone").unwrap(), Some(Bytes::from_static(b"1")));
        assert_eq!(held(&engine), 2);
        drop(before);
        engine.flush(VOLUME).unwrap();
        assert_eq!(held(&engine), 1);
        assert_eq!(keys(&engine), ["kept"]);
    }
}
