//! How many keys and bytes a shard holds, and at which key half of the bytes lie.
//!
//! Read page by page, each from a snapshot of its own, so that nothing is held up by it: what is
//! written meanwhile may be counted or not. Of the places where the shard could be cut some
//! thousands are remembered, further apart the more there are.

use crate::layout::{data_key, data_range, routing_key_of};
use crate::record::Record;
use bytes::Bytes;
use kvdb_engine::{EngineError, Snapshot};
use kvdb_model::KeyRange;

/// Places that are remembered.
const MOST_PLACES: usize = 4096;

/// A look through a shard.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Routing keys with the same first bytes, so many, stay together.
    together: Option<usize>,
    bytes: u64,
    /// Keys that haven't expired.
    keys: u64,
    /// Where the shard could be cut, with the bytes before.
    places: Vec<(Bytes, u64)>,
    /// Bytes from one remembered place to the next, at least.
    apart: u64,
}

impl Measure {
    /// Begins one. Routing keys that agree in their first `together` bytes are never parted.
    pub fn new(together: Option<usize>) -> Self {
        Measure { together, bytes: 0, keys: 0, places: Vec::new(), apart: 0 }
    }

    /// Bytes of keys and values so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Keys so far that hadn't expired. A collection is one key, whatever it holds.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Takes in the shard's data from a routing key on, up to `most_bytes`. `now_ms` is shard time in
    /// milliseconds since 1970. Returns where to go on; `None` at the end.
    ///
    /// # Errors
    /// If the engine can't be read.
    pub fn read(
        &mut self,
        snapshot: &dyn Snapshot,
        range: &KeyRange,
        from: &Bytes,
        now_ms: u64,
        most_bytes: u64,
    ) -> Result<Option<Bytes>, EngineError> {
        let mut rest = data_range(range);
        rest.start = rest.start.max(data_key(from));
        let until = self.bytes + most_bytes;
        for item in snapshot.scan(&rest, false) {
            let (key, value) = item?;
            let key = routing_key_of(&key);
            if self.bytes >= until {
                return Ok(Some(key));
            }
            self.see(&key);
            self.bytes += (key.len() + value.len()) as u64;
            // A damaged record counts as there: whoever reads it finds and names the damage.
            let has_expired = Record::decode(&key, &value).is_ok_and(|it| it.is_over_at(now_ms));
            self.keys += u64::from(!has_expired);
        }
        Ok(None)
    }

    fn see(&mut self, key: &Bytes) {
        let place = match self.together {
            Some(length) => key.slice(..length.min(key.len())),
            None => key.clone(),
        };
        let is_near =
            |(last, before): &(Bytes, u64)| *last == place || self.bytes < before + self.apart;
        if self.places.last().is_some_and(is_near) {
            return;
        }
        self.places.push((place, self.bytes));
        if self.places.len() > MOST_PLACES {
            let mut keep = false;
            self.places.retain(|_| {
                keep = !keep;
                keep
            });
            self.apart = (self.apart * 2).max(2 * self.bytes / MOST_PLACES as u64);
        }
    }

    /// The routing key at which about half of the bytes come before; `None` if the shard can't be
    /// cut.
    pub fn middle(&self) -> Option<Bytes> {
        let half = self.bytes / 2;
        let inside = self.places.iter().filter(|(_, before)| *before > 0);
        inside.min_by_key(|(_, before)| before.abs_diff(half)).map(|(place, _)| place.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ElementTimes, Type};
    use kvdb_engine::{Batch, Engine, MemoryEngine};
    use kvdb_model::{Version, VolumeId};

    fn engine(records: impl Iterator<Item = (Vec<u8>, usize)>) -> MemoryEngine {
        let engine = MemoryEngine::new();
        engine.create_volume(VolumeId(1)).expect("it is new");
        let mut batch = Batch::default();
        for (key, size) in records {
            batch.put(data_key(&key), vec![0; size]);
        }
        engine.write(VolumeId(1), batch).expect("it is there");
        engine
    }

    fn measure(engine: &MemoryEngine, together: Option<usize>, page: u64) -> Measure {
        let mut measure = Measure::new(together);
        let mut from = Bytes::new();
        loop {
            let snapshot = engine.snapshot(VolumeId(1)).expect("it is there");
            match measure.read(&*snapshot, &KeyRange::ALL, &from, 0, page).expect("it can be read")
            {
                Some(next) => from = next,
                None => return measure,
            }
        }
    }

    fn key(number: u32) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    #[test]
    fn every_byte_is_counted_once_however_long_a_page_is() {
        let engine = engine((0..1000).map(|n| (key(n), 96)));
        for page in [1, 100, 5_000, u64::MAX] {
            assert_eq!(measure(&engine, None, page).bytes(), 100_000, "{page}");
        }
    }

    #[test]
    fn keys_are_counted_unless_they_have_expired() {
        let engine = MemoryEngine::new();
        engine.create_volume(VolumeId(1)).expect("it is new");
        let mut batch = Batch::default();
        for number in 0..100 {
            // Ten never expire.
            let record = Record {
                version: Version(1),
                expires_at_ms: u64::from(number / 10),
                elements: ElementTimes::default(),
                kind: Type::String,
                value: Bytes::new(),
            };
            batch.put(data_key(&key(number)), record.encode(&key(number)));
        }
        engine.write(VolumeId(1), batch).expect("it is there");
        let count = |now_ms, page| {
            let mut measure = Measure::new(None);
            let mut from = Bytes::new();
            loop {
                let snapshot = engine.snapshot(VolumeId(1)).expect("it is there");
                let read = measure.read(&*snapshot, &KeyRange::ALL, &from, now_ms, page);
                match read.expect("it can be read") {
                    Some(next) => from = next,
                    None => return measure.keys(),
                }
            }
        };
        for page in [1, 100, u64::MAX] {
            assert_eq!([0, 1, 5, 9].map(|now_ms| count(now_ms, page)), [100, 90, 50, 10], "{page}");
        }
    }

    #[test]
    fn the_middle_is_where_half_of_the_bytes_come_before_not_half_of_the_keys() {
        let engine = engine((0..20_000).map(|n| (key(n), if n < 1000 { 1996 } else { 6 })));
        let measure = measure(&engine, None, 100_000);
        let middle = measure.middle().expect("there are many places");
        let number = u32::from_be_bytes(middle[..].try_into().expect("four bytes"));
        let before =
            u64::from(number.min(1000)) * 2000 + u64::from(number.saturating_sub(1000)) * 10;
        let share = before as f64 / measure.bytes() as f64;
        assert!((0.48..0.52).contains(&share), "{number}: {share}");
    }

    #[test]
    fn keys_that_stay_together_are_not_parted() {
        let engine = engine((0..500).map(|n| (key(n), 100)));
        // The upper three bytes are 0 or 1.
        let middle = measure(&engine, Some(3), 777).middle();
        assert_eq!(middle.as_deref(), Some(&[0, 0, 1][..]));
        assert_eq!(measure(&engine, Some(2), 777).middle(), None, "all of them stay together");
    }

    #[test]
    fn an_empty_shard_has_no_middle() {
        let engine = engine(std::iter::empty());
        let measure = measure(&engine, None, 10);
        assert_eq!((measure.bytes(), measure.middle()), (0, None));
    }
}
