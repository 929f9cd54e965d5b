//! Carrying commands out: on a run of entries that is being applied, on a view, and on nothing.

use crate::apply::ApplyError;
use crate::changes::{Change, Changes, Direction, Savepoint};
use crate::command::{self, Command, Effect, Fault};
use crate::history::{Pending, Store};
use crate::keys::Check;
use crate::layout::{Kind, data_key, element_key, element_range, garbage_key, record_key};
use crate::tx::Tx;
use bytes::Bytes;
use kvdb_engine::{Batch, Engine, EngineError, Item, SequenceNumber, Snapshot};
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    KeyRange, Operation, OperationOutcome, Refusal, ReplicaId, Version, VolumeId, WriteResult,
};

/// A run under way: what is changed, over the volume as it was before.
pub(crate) struct Overlay {
    before: Box<dyn Snapshot>,
    pub(crate) changes: Changes,
    /// Replica records.
    pub(crate) records: Batch,
    /// History records.
    pub(crate) history: Pending,
    /// How many events the history has been told.
    pub(crate) told: usize,
}

impl Overlay {
    pub(crate) fn start(
        engine: &dyn Engine,
        volume: VolumeId,
        incarnation: u64,
    ) -> Result<Self, EngineError> {
        let mut overlay = Self::over(engine.snapshot_of_lasting(volume)?);
        overlay.changes.incarnation = incarnation;
        Ok(overlay)
    }

    fn over(before: Box<dyn Snapshot>) -> Self {
        Overlay {
            before,
            changes: Changes::default(),
            records: Batch::default(),
            history: Pending::new(),
            told: 0,
        }
    }

    pub(crate) fn history_store(&mut self, replica: ReplicaId) -> Store<'_> {
        let (before, pending) = (&*self.before, &mut self.history);
        Store { replica, before, pending, batch: &mut self.records }
    }

    /// A write begins: what came before it is not taken back any more.
    pub(crate) fn begin(&mut self) {
        self.changes.begin();
    }

    pub(crate) fn savepoint(&self) -> Savepoint {
        self.changes.savepoint()
    }

    pub(crate) fn roll_back(&mut self, to: Savepoint) {
        self.changes.roll_back(to);
    }

    /// Removes a key if it has expired at a version, or elements of it that have, at most so many.
    /// Returns how many things were freed.
    pub(crate) fn reclaim(
        &mut self,
        routing_key: &Bytes,
        version: Version,
        most: u64,
    ) -> Result<u64, ApplyError> {
        let key = data_key(routing_key);
        let Some(stored) = self.changes.stored(&*self.before, &key)? else { return Ok(0) };
        if stored.is_expired(version) || has(Bug::FreedThoughWritten) {
            self.changes.change(&*self.before, key, version, Change::Remove)?;
            return Ok(1);
        }
        let operation = Operation::new(routing_key.clone(), Check.body());
        Tx::new(&*self.before, &mut self.changes, &operation, version).free_due(most)
    }

    /// Frees the elements of a life of a key that is over, those before a place or all that are left.
    pub(crate) fn free_elements(
        &mut self,
        routing_key: &[u8],
        incarnation: u64,
        end: Option<&[u8]>,
    ) -> Result<u64, ApplyError> {
        let garbage = garbage_key(routing_key, incarnation);
        let is_over = self.changes.stored_element(&*self.before, &garbage)?.is_some();
        if !is_over {
            return Ok(0);
        }
        let mut range = element_range(routing_key, incarnation);
        if has(Bug::LiveElementsFreed) {
            range.end = element_range(routing_key, u64::MAX).end;
        }
        if let Some(end) = end {
            range.end = element_key(routing_key, incarnation, end);
        }
        let mut dead = Vec::new();
        self.changes.scan_elements(&*self.before, &range, Direction::Ascending, |key, _| {
            dead.push(key);
            Ok(true)
        })?;
        let freed = dead.len() as u64;
        dead.into_iter().for_each(|key| self.changes.set_element(key, None));
        if end.is_none() {
            self.changes.set_element(garbage, None);
        }
        Ok(freed)
    }

    /// Bytes of elements that the present write has read.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.changes.read_bytes()
    }

    /// Carries an operation out at a version. What it has changed is taken back if it fails.
    ///
    /// # Errors
    /// What stops the replica.
    pub(crate) fn carry_out(
        &mut self,
        operation: &Operation,
        version: Version,
    ) -> Result<OperationOutcome, ApplyError> {
        carry_out(&*self.before, &mut self.changes, operation, version)
    }

    /// The answer of an operation that changes nothing.
    pub(crate) fn unapplied(
        &mut self,
        operation: &Operation,
        version: Version,
    ) -> Result<WriteResult, ApplyError> {
        Tx::new(&*self.before, &mut self.changes, operation, version).unapplied()
    }

    pub(crate) fn into_batch(self, replica: ReplicaId) -> Batch {
        let mut batch = self.records;
        let Changes { records, elements, .. } = self.changes;
        batch.changes.reserve(records.len() + elements.len() + self.history.len() + 2);
        for (suffix, stored) in self.history {
            batch.put(record_key(replica, Kind::History, &suffix), stored);
        }
        for (key, change) in records {
            let stored = match change {
                Change::Set(record) => Some(record.encode(&key[1..])),
                Change::Remove => None,
            };
            batch.changes.push((key, stored));
        }
        batch.changes.extend(elements);
        batch
    }
}

fn carry_out(
    before: &dyn Snapshot,
    changes: &mut Changes,
    operation: &Operation,
    version: Version,
) -> Result<OperationOutcome, ApplyError> {
    let savepoint = changes.savepoint();
    changes.bound_reads(true);
    let carried_out = Tx::new(before, changes, operation, version).carry_out();
    changes.bound_reads(false);
    match carried_out {
        Ok(result) => Ok(Ok(result)),
        Err(Fault::Refused(refusal)) => {
            changes.roll_back(savepoint);
            Ok(Err(refusal))
        }
        Err(Fault::Stop(error)) => Err(error),
    }
}

/// Reads as of one version, with commands that change nothing.
pub(crate) struct Reading<'a> {
    before: &'a dyn Snapshot,
    changes: Changes,
    version: Version,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(before: &'a dyn Snapshot, version: Version, clock_ms: u64) -> Self {
        let changes = Changes::of_reads(clock_ms);
        Reading { before, changes, version }
    }

    pub(crate) fn carry_out(
        &mut self,
        operation: &Operation,
    ) -> Result<OperationOutcome, ApplyError> {
        if command::effect_of(operation) != Effect::Read {
            let problem = "may change what is stored; a read doesn't";
            return Ok(Err(Refusal::invalid("command", problem)));
        }
        self.changes.begin();
        carry_out(self.before, &mut self.changes, operation, self.version)
    }

    /// Whether a key that was read has expired by the clock, not yet by what is applied.
    pub(crate) fn expires_by_clock(&self) -> bool {
        self.changes.expires_by_clock
    }
}

/// A volume without anything.
pub(crate) struct Nothing;

impl Snapshot for Nothing {
    fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(None)
    }

    fn scan(
        &self,
        _range: &KeyRange,
        _reverse: bool,
    ) -> Box<dyn Iterator<Item = Item> + Send + '_> {
        Box::new(std::iter::empty())
    }

    fn sequence(&self) -> SequenceNumber {
        SequenceNumber(0)
    }
}

/// What an operation comes to where there are no keys at all.
///
/// # Errors
/// [`Refusal`], as any shard would answer.
pub fn on_nothing(operation: &Operation) -> OperationOutcome {
    let outcome = Overlay::over(Box::new(Nothing)).carry_out(operation, Version::ZERO.plus(1));
    outcome.unwrap_or_else(|error| Err(Refusal::invalid("command", error.to_string())))
}

/// A command's trial run on keys in memory, for the tests of families.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::changes::incarnations_in;
    use crate::record::{ElementTimes, Record, Type};

    /// The time of a trial run, in milliseconds since 1970.
    pub(crate) const NOW_MS: u64 = 1_000;

    pub(crate) fn record(value: &[u8], expires_at_ms: u64) -> Record {
        let value = Bytes::copy_from_slice(value);
        let elements = ElementTimes::default();
        Record { version: Version(1), expires_at_ms, elements, kind: Type::String, value }
    }

    /// Keys, and what commands make of them.
    pub(crate) struct Trial {
        overlay: Overlay,
        now_ms: u64,
    }

    impl Trial {
        pub(crate) fn new(there: &[(&'static str, Record)]) -> Self {
            let mut overlay = Overlay::over(Box::new(Nothing));
            for (key, record) in there {
                let change = Change::Set(record.clone());
                overlay.changes.records.insert(data_key(key.as_bytes()), change);
            }
            Trial { overlay, now_ms: NOW_MS }
        }

        pub(crate) fn run(
            &mut self,
            command: &impl Command,
            keys: &[&'static str],
        ) -> OperationOutcome {
            let others = keys[1..].iter().map(|key| Bytes::from(*key)).collect();
            let operation = Operation { others, ..command.on(keys[0].into()) };
            self.carry_out(&operation)
        }

        pub(crate) fn carry_out(&mut self, operation: &Operation) -> OperationOutcome {
            self.overlay.begin();
            let version = Version::from_millis(self.now_ms);
            self.overlay.carry_out(operation, version).expect("nothing is damaged")
        }

        /// Lets time go by, in milliseconds.
        pub(crate) fn advance(&mut self, ms: u64) {
            self.now_ms += ms;
        }

        pub(crate) fn now_ms(&self) -> u64 {
            self.now_ms
        }

        /// Frees what has expired of a key, at most so many elements; returns how much that was.
        pub(crate) fn reclaim(&mut self, key: &'static str, most: u64) -> u64 {
            let version = Version::from_millis(self.now_ms);
            self.overlay.reclaim(&key.into(), version, most).expect("it is sound")
        }

        /// When elements of a key expire, as its record says.
        pub(crate) fn element_times(&mut self, key: &str) -> Option<ElementTimes> {
            self.record(key).map(|record| record.elements)
        }

        /// Frees what is garbage of a key, so many elements at a time; returns how many there were.
        pub(crate) fn free(&mut self, key: &str, incarnation: u64) -> u64 {
            self.overlay.free_elements(key.as_bytes(), incarnation, None).expect("it is sound")
        }

        /// Whether a key's elements have records of their own, and of which life.
        pub(crate) fn incarnation(&mut self, key: &str) -> Option<u64> {
            let [incarnation, _] = incarnations_in(self.record(key).as_ref()).expect("it is sound");
            Some(incarnation).filter(|incarnation| *incarnation != 0)
        }

        /// How many elements and garbage records are kept.
        pub(crate) fn elements(&self) -> usize {
            self.overlay.changes.elements.values().flatten().count()
        }

        /// How many places scans of elements have looked at so far.
        pub(crate) fn elements_looked_at(&self) -> u64 {
            self.overlay.changes.looked_at.get()
        }

        fn record(&mut self, key: &str) -> Option<Record> {
            let now = Version::from_millis(self.now_ms);
            let found = self.overlay.changes.current(&Nothing, &data_key(key.as_bytes()), now);
            found.expect("it is sound")
        }

        /// Value and expiry of a key.
        pub(crate) fn value(&mut self, key: &str) -> Option<(Vec<u8>, u64)> {
            self.record(key).map(|record| (record.value.to_vec(), record.expires_at_ms))
        }

        /// How many changes were made.
        pub(crate) fn changes(&self) -> usize {
            self.overlay.changes.events.len()
        }
    }
}
