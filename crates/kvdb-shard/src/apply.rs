//! Applying committed entries: one engine batch a run.

use crate::layout::{CONTROL, data_key, record_key, state_key};
use crate::machine::Machine;
use crate::membership::MembershipChange;
use crate::record::{Record, RecordDamage};
use crate::shard::Shard;
use bytes::Bytes;
use kvdb_engine::{Batch, EngineError, SequenceNumber, Snapshot};
use kvdb_model::codec::DecodeError;
use kvdb_model::{
    Action, Command, Condition, EntryKind, EntryPayload, LogEntry, LogIndex, LogPosition,
    Operation, OperationOutcome, Previous, Refusal, RequestTag, ShardDescriptor, Version, Write,
    WriteResult,
};
use rustc_hash::FxHashMap;
use thiserror::Error;

/// Requests whose window has passed, dropped with each entry at most.
const EXPIRE_PER_ENTRY: usize = 64;

/// What stops a replica from applying: its process can't go on.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record that an operation needed is damaged.
    #[error(transparent)]
    Damage(#[from] RecordDamage),
    /// A committed entry can't be read: it was made by a newer version, or memory is failing.
    #[error("entry {index} can't be read: {source}")]
    Unreadable {
        /// The entry.
        index: LogIndex,
        /// Why.
        source: DecodeError,
    },
}

/// What one command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    /// A write: one outcome an operation.
    Written(Vec<OperationOutcome>),
    /// Shard time has reached this version.
    TimeAdvanced(Version),
    /// The result of a control command.
    Controlled(Bytes),
}

/// What one entry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryOutcome {
    /// The entry.
    pub index: LogIndex,
    /// One a command, in order; none for an empty or a membership entry.
    pub commands: Vec<CommandOutcome>,
    /// For a membership entry: the new descriptor, or `None` if it was refused.
    pub membership: Option<Option<ShardDescriptor>>,
}

/// What a run of entries came to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// One an entry that wasn't applied before, in order.
    pub entries: Vec<EntryOutcome>,
    /// The last entry applied now.
    pub position: LogPosition,
    /// The batch that holds all of it; `None` if there was nothing new.
    pub sequence: Option<SequenceNumber>,
}

/// A run under way: what is changed but not written yet.
struct Run {
    before: Box<dyn Snapshot>,
    changed: FxHashMap<Bytes, Option<Record>>,
    batch: Batch,
}

impl Run {
    fn current(&self, key: &Bytes, now: Version) -> Result<Option<Record>, ApplyError> {
        let record = match self.changed.get(key) {
            Some(changed) => changed.clone(),
            None => match self.before.get(&data_key(key))? {
                Some(bytes) => Some(Record::decode(key, &bytes)?),
                None => None,
            },
        };
        Ok(record.filter(|record| !record.is_expired(now)))
    }
}

impl<M: Machine> Shard<M> {
    /// Applies committed entries, which must follow each other; those that are in the applied
    /// state already are skipped. One batch is written, however many entries there are.
    ///
    /// # Errors
    /// [`ApplyError`]: nothing of the run may be acknowledged, and the process should stop.
    ///
    /// # Panics
    /// If entries are missing between the applied state and the first of them.
    pub fn apply(&mut self, entries: &[LogEntry]) -> Result<Applied, ApplyError> {
        let skip = entries.partition_point(|entry| entry.index <= self.state.applied.index);
        let entries = &entries[skip..];
        let Some(first) = entries.first() else {
            return Ok(Applied { entries: vec![], position: self.state.applied, sequence: None });
        };
        assert_eq!(
            first.index,
            self.state.applied.index.next(),
            "replica {} of shard {}: entries are missing before {}",
            self.replica,
            self.shard_id(),
            first.index
        );
        let mut run = Run {
            before: self.engine.snapshot(self.volume)?,
            changed: FxHashMap::default(),
            batch: Batch::default(),
        };
        let mut outcomes = Vec::with_capacity(entries.len());
        for entry in entries {
            outcomes.push(self.apply_entry(&mut run, entry)?);
        }
        let Run { changed, mut batch, .. } = run;
        for (key, record) in changed {
            let value = record.map(|record| record.encode(&key));
            batch.changes.push((data_key(&key), value));
        }
        batch.put(state_key(self.replica), self.state.encode());
        let sequence = self.engine.write(self.volume, batch)?;
        Ok(Applied { entries: outcomes, position: self.state.applied, sequence: Some(sequence) })
    }

    fn apply_entry(&mut self, run: &mut Run, entry: &LogEntry) -> Result<EntryOutcome, ApplyError> {
        let unreadable = |source| ApplyError::Unreadable { index: entry.index, source };
        let mut outcome = EntryOutcome { index: entry.index, commands: vec![], membership: None };
        match entry.kind {
            EntryKind::ConfChange => {
                let change = MembershipChange::decode(&entry.context).map_err(unreadable)?;
                let descriptor = change.apply_to(&self.state.descriptor);
                if let Some(descriptor) = &descriptor {
                    self.state.descriptor = descriptor.clone();
                }
                outcome.membership = Some(descriptor);
            }
            EntryKind::Normal if entry.data.is_empty() => {}
            EntryKind::Normal => {
                let payload = EntryPayload::decode(entry.data.clone()).map_err(unreadable)?;
                outcome.commands = self.apply_payload(run, payload, entry.index)?;
            }
        }
        self.state.applied = LogPosition { index: entry.index, term: entry.term };
        Ok(outcome)
    }

    fn apply_payload(
        &mut self,
        run: &mut Run,
        payload: EntryPayload,
        index: LogIndex,
    ) -> Result<Vec<CommandOutcome>, ApplyError> {
        let last_version = payload.last_version();
        let mut version = payload.version;
        let mut outcomes = Vec::with_capacity(payload.commands.len());
        for bytes in payload.commands {
            let command = Command::decode(bytes)
                .map_err(|source| ApplyError::Unreadable { index, source })?;
            let versions = command.version_count();
            outcomes.push(match command {
                Command::Write(write) => {
                    CommandOutcome::Written(self.apply_write(run, write, version)?)
                }
                Command::AdvanceTime => CommandOutcome::TimeAdvanced(version),
                Command::Control(command) => self.apply_control(run, &command, version),
            });
            version = version.plus(versions);
        }
        self.state.last_version = self.state.last_version.max(last_version);
        self.sessions.expire(
            self.replica,
            self.state.last_version,
            EXPIRE_PER_ENTRY,
            &mut run.batch,
        );
        Ok(outcomes)
    }

    fn apply_control(
        &mut self,
        run: &mut Run,
        command: &Bytes,
        version: Version,
    ) -> CommandOutcome {
        let outcome = self.machine.apply(command, version);
        for (key, value) in outcome.changes {
            run.batch.changes.push((record_key(self.replica, CONTROL, &key), value));
        }
        CommandOutcome::Controlled(outcome.result)
    }

    fn apply_write(
        &mut self,
        run: &mut Run,
        write: Write,
        version: Version,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        let refused =
            |refusal: Refusal| Ok(write.operations.iter().map(|_| Err(refusal.clone())).collect());
        if let Some(tag) = &write.request
            && let Err(refusal) = self.sessions.admit(tag, version)
        {
            return refused(refusal);
        }
        if write.atomic {
            return self.apply_atomic(run, &write, version);
        }
        let mut outcomes = Vec::with_capacity(write.operations.len());
        for (place, operation) in write.operations.iter().enumerate() {
            let version = version.plus(place as u64);
            outcomes.push(self.apply_once(run, &write, operation, version)?);
        }
        self.remember(run, write.request.as_ref(), &write.operations, &outcomes);
        Ok(outcomes)
    }

    /// An operation that isn't part of an atomic batch.
    fn apply_once(
        &self,
        run: &mut Run,
        write: &Write,
        operation: &Operation,
        version: Version,
    ) -> Result<OperationOutcome, ApplyError> {
        if let Some(earlier) =
            write.request.as_ref().and_then(|tag| self.sessions.find(tag, operation))
        {
            return Ok(earlier);
        }
        if let Err(refusal) = self.check_range(write, operation) {
            return Ok(Err(refusal));
        }
        let current = run.current(&operation.key, version)?;
        let effect = effect_of(operation, current, version);
        Ok(effect.map(|effect| {
            if let Some(change) = effect.change {
                run.changed.insert(operation.key.clone(), change);
            }
            effect.result
        }))
    }

    /// All operations of the batch, or none.
    fn apply_atomic(
        &mut self,
        run: &mut Run,
        write: &Write,
        version: Version,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        if let Some(earlier) = self.find_all(write) {
            return Ok(earlier);
        }
        let refused =
            |refusal: &Refusal| Ok(write.operations.iter().map(|_| Err(refusal.clone())).collect());
        for operation in &write.operations {
            if let Err(refusal) = self.check_range(write, operation) {
                return refused(&refusal);
            }
        }
        // Later operations see what earlier ones of the batch did; on a refusal all is undone.
        let undo: Vec<_> = write
            .operations
            .iter()
            .map(|operation| (operation.key.clone(), run.changed.get(&operation.key).cloned()))
            .collect();
        let mut outcomes = Vec::with_capacity(write.operations.len());
        for operation in &write.operations {
            let current = run.current(&operation.key, version)?;
            let effect = effect_of(operation, current, version);
            if let Ok(Effect { change: Some(change), .. }) = &effect {
                run.changed.insert(operation.key.clone(), change.clone());
            }
            outcomes.push(effect.map(|effect| effect.result));
        }
        let failed =
            write.operations.iter().zip(&outcomes).any(|(operation, outcome)| match outcome {
                // A delete of an absent key without a condition changes nothing and is no failure.
                Ok(result) => operation.condition.is_some() && !result.applied,
                Err(_) => true,
            });
        if failed {
            for (key, before) in undo.into_iter().rev() {
                match before {
                    Some(change) => run.changed.insert(key, change),
                    None => run.changed.remove(&key),
                };
            }
            for (operation, outcome) in write.operations.iter().zip(&mut outcomes) {
                if let Ok(result) = outcome {
                    let current = run.current(&operation.key, version)?;
                    *result = unapplied(current.as_ref());
                }
            }
        }
        self.remember(run, write.request.as_ref(), &write.operations, &outcomes);
        Ok(outcomes)
    }

    fn find_all(&self, write: &Write) -> Option<Vec<OperationOutcome>> {
        let tag = write.request.as_ref()?;
        write.operations.iter().map(|operation| self.sessions.find(tag, operation)).collect()
    }

    fn remember(
        &mut self,
        run: &mut Run,
        tag: Option<&RequestTag>,
        operations: &[Operation],
        outcomes: &[OperationOutcome],
    ) {
        let Some(tag) = tag else { return };
        let answers: Vec<_> = operations
            .iter()
            .zip(outcomes)
            .filter_map(|(operation, outcome)| match outcome {
                Ok(result) if !result.deduplicated => Some((operation, result)),
                _ => None,
            })
            .collect();
        self.sessions.remember(self.replica, tag, &answers, &mut run.batch);
    }

    fn check_range(&self, write: &Write, operation: &Operation) -> Result<(), Refusal> {
        check_range(&self.state.descriptor, write.epoch, &operation.key)
    }
}

/// Whether a request that was routed under `epoch` may touch `key` of this shard.
pub(crate) fn check_range(
    descriptor: &ShardDescriptor,
    epoch: kvdb_model::RangeEpoch,
    key: &[u8],
) -> Result<(), Refusal> {
    if epoch == descriptor.range_epoch && descriptor.range.contains(key) {
        return Ok(());
    }
    let shard_id = descriptor.shard_id;
    let descriptors = vec![descriptor.clone()];
    if epoch == descriptor.range_epoch {
        return Err(Refusal::ShardMoved { shard_id, new_node_hint: None, descriptors });
    }
    Err(Refusal::StaleEpoch { shard_id, current: descriptor.range_epoch, descriptors })
}

/// What an operation does to its key.
struct Effect {
    result: WriteResult,
    /// The new record, or its removal; `None` if nothing changes.
    change: Option<Option<Record>>,
}

fn effect_of(
    operation: &Operation,
    current: Option<Record>,
    version: Version,
) -> Result<Effect, Refusal> {
    let previous = operation.return_previous.then(|| current.as_ref().map(previous_of)).flatten();
    if !holds(operation.condition.as_ref(), current.as_ref()) {
        let result = WriteResult { previous, ..unapplied(current.as_ref()) };
        return Ok(Effect { result, change: None });
    }
    let mut result = WriteResult { applied: true, version, previous, ..Default::default() };
    let change = match &operation.action {
        Action::Put { value, ttl_ms } => {
            let expires_at_ms = ttl_ms.map_or(0, |ttl| version.millis().saturating_add(ttl));
            Some(Some(Record { version, expires_at_ms, value: value.clone() }))
        }
        Action::Delete if current.is_none() => {
            result = WriteResult::default();
            None
        }
        Action::Delete => Some(None),
        Action::Increment { delta } => {
            let (counter, record) = increment(current, *delta, version)?;
            result.counter = Some(counter);
            Some(Some(record))
        }
    };
    Ok(Effect { result, change })
}

fn unapplied(current: Option<&Record>) -> WriteResult {
    WriteResult {
        version: current.map_or(Version::ZERO, |record| record.version),
        ..Default::default()
    }
}

fn previous_of(record: &Record) -> Previous {
    Previous {
        value: record.value.clone(),
        version: record.version,
        expires_at_ms: record.expires_at_ms,
    }
}

fn holds(condition: Option<&Condition>, current: Option<&Record>) -> bool {
    match condition {
        None => true,
        Some(Condition::IfAbsent) => current.is_none(),
        Some(Condition::IfPresent) => current.is_some(),
        Some(Condition::IfVersion(version)) => {
            current.is_some_and(|record| record.version == *version)
        }
        Some(Condition::IfValue(value)) => current.is_some_and(|record| record.value == *value),
    }
}

/// A counter is decimal text, as Redis keeps it; its expiry stays.
fn increment(
    current: Option<Record>,
    delta: i64,
    version: Version,
) -> Result<(i64, Record), Refusal> {
    let (before, expires_at_ms) = match &current {
        None => (0, 0),
        Some(record) => {
            let text = std::str::from_utf8(&record.value).ok();
            let number = text.and_then(|text| text.parse::<i64>().ok());
            let number = number
                .ok_or(Refusal::WrongValue("the value is not an integer of 64 bits as text"))?;
            (number, record.expires_at_ms)
        }
    };
    let after = before
        .checked_add(delta)
        .ok_or(Refusal::WrongValue("the increment would overflow 64 bits"))?;
    let value = Bytes::from(after.to_string());
    Ok((after, Record { version, expires_at_ms, value }))
}
