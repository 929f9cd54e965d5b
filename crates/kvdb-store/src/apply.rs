//! Applying committed entries: data, applied index, request window and descriptor in one engine
//! batch.
//!
//! Entries of a run see what earlier ones did through an overlay ([`Run`]); the overlay and the
//! records beside it become one batch at the end of the run, or earlier where the batch would get
//! large, but only ever between entries. How entries are grouped into runs can't be seen in the
//! result: every decision depends on the entries and the state alone.

use crate::effect::{Change, Effect, effect_of, needs_current, unapplied};
use crate::history::{Pending, Store};
use crate::layout::{Kind, data_key, record_key, routing_key_of};
use crate::machine::Machine;
use crate::membership::MembershipChange;
use crate::recent::ChangeEvent;
use crate::record::{Record, RecordDamage};
use crate::seal::seal;
use crate::sessions::{Room, reused};
use crate::shard::{OpenError, Shard};
use crate::split::Born;
use bytes::Bytes;
use kvdb_engine::{Batch, Engine, EngineError, SequenceNumber, Snapshot};
use kvdb_model::codec::DecodeError;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    Action, Command, EntryKind, EntryPayload, LogEntry, LogIndex, LogPosition, Operation,
    OperationOutcome, RangeEpoch, Refusal, ReplicaId, RequestTag, ShardDescriptor, StringAction,
    Version, VolumeId, Write,
};
use rustc_hash::FxHashMap;
use thiserror::Error;

/// Requests whose window has passed, dropped with each entry at most. More than an entry adds on
/// average, so that the window shrinks again. A part of the state machine: fixed.
const EXPIRE_PER_ENTRY: usize = 64;

/// A batch is written when it has grown to this many bytes; it may be larger by one entry.
const BATCH_BYTES: usize = 4 << 20;

/// What stops a replica from applying: its process can't go on.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A record that an operation needed is damaged.
    #[error(transparent)]
    Damage(#[from] RecordDamage),
    /// A record of the change history can't be read.
    #[error(transparent)]
    History(#[from] OpenError),
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
    /// The shard was cut in two, or the split was refused ([`kvdb_model::SplitPlan::apply_to`]).
    Split(Option<Box<Born>>),
    /// So many expired records were freed.
    Reclaimed(u64),
    /// A decision about the change history was heard of.
    HistoryDecided,
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

impl EntryOutcome {
    /// The shard that the entry has split off, if it has.
    pub fn born(&self) -> Option<&Born> {
        self.commands.iter().find_map(|command| match command {
            CommandOutcome::Split(born) => born.as_deref(),
            _ => None,
        })
    }
}

/// What a run of entries came to.
#[derive(Clone, Debug)]
pub struct Applied {
    /// One an entry that wasn't applied before, in order.
    pub entries: Vec<EntryOutcome>,
    /// The last entry applied now.
    pub position: LogPosition,
    /// The batch that completes all of it: once it is flushed, so is everything up to `position`.
    /// `None` if there was nothing new.
    pub sequence: Option<SequenceNumber>,
    /// What was changed, in order.
    pub events: Vec<ChangeEvent>,
}

impl<M: Machine> Shard<M> {
    /// Applies committed entries, which must follow each other; those that are in the applied
    /// state already are skipped. When this returns, reads see all of it.
    ///
    /// # Errors
    /// [`ApplyError`]: nothing of the run may be acknowledged, and the process should stop.
    ///
    /// # Panics
    /// If entries are missing between the applied state and the first of them, or among them.
    pub fn apply(&mut self, entries: &[LogEntry]) -> Result<Applied, ApplyError> {
        let skip = entries.partition_point(|entry| entry.index <= self.state.applied.index);
        let entries = &entries[skip..];
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut sequence = None;
        let mut events = Vec::new();
        let mut run = None;
        for entry in entries {
            let current = match &mut run {
                Some(run) => run,
                none => none.insert(Run::start(&*self.engine, self.volume)?),
            };
            outcomes.push(self.apply_entry(current, entry)?);
            if current.size_bytes >= BATCH_BYTES {
                sequence = self.finish(run.take(), &mut events)?;
            }
        }
        sequence = self.finish(run, &mut events)?.or(sequence);
        Ok(Applied { entries: outcomes, position: self.state.applied, sequence, events })
    }

    fn finish(
        &mut self,
        run: Option<Run>,
        events: &mut Vec<ChangeEvent>,
    ) -> Result<Option<SequenceNumber>, ApplyError> {
        let Some(mut run) = run else { return Ok(None) };
        events.append(&mut run.events);
        if has(Bug::AppliedAheadOfData) {
            let mut ahead = Batch::default();
            self.state.write(self.replica, &mut ahead);
            self.engine.write(self.volume, ahead)?;
        }
        let mut batch = run.into_batch(self.replica);
        self.history.write(self.replica, &mut batch);
        self.state.write(self.replica, &mut batch);
        Ok(Some(self.engine.write(self.volume, batch)?))
    }

    fn apply_entry(&mut self, run: &mut Run, entry: &LogEntry) -> Result<EntryOutcome, ApplyError> {
        assert_eq!(
            entry.index,
            self.state.applied.index.next(),
            "replica {} of shard {}: entries are missing before {}",
            self.replica,
            self.shard_id(),
            entry.index
        );
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
        run.size_bytes += entry.data.len();
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
        let from_birth = self.state.time.version == Version::ZERO;
        let time = self.state.time.after(version, last_version, payload.jump_ms);
        // From here on ages are what they are after the jump; what has been reached is told at the end.
        self.state.time.jumped_ms = time.jumped_ms;
        let mut outcomes = Vec::with_capacity(payload.commands.len());
        for bytes in payload.commands {
            let command = Command::decode(bytes)
                .map_err(|source| ApplyError::Unreadable { index, source })?;
            let next = version.plus(command.version_count());
            outcomes.push(match command {
                Command::Write(write) => {
                    CommandOutcome::Written(self.apply_write(run, &write, version)?)
                }
                Command::AdvanceTime => CommandOutcome::TimeAdvanced(version),
                Command::Control(command) => self.apply_control(run, &command, version),
                Command::Split(plan) => {
                    // The child gets what was done before.
                    self.remember_changes(run);
                    let born = self.apply_split(&plan, version, run)?;
                    CommandOutcome::Split(born.map(Box::new))
                }
                Command::Reclaim(keys) => {
                    CommandOutcome::Reclaimed(self.apply_reclaim(run, &keys, version)?)
                }
                Command::History(policy) => {
                    self.remember_changes(run);
                    let from_birth = from_birth && run.told == 0;
                    self.history.decide(policy, version, from_birth);
                    CommandOutcome::HistoryDecided
                }
            });
            version = next;
        }
        let now = time.version;
        self.state.time = time;
        let age = self.state.age_at(now);
        self.sessions.expire(self.replica, age, EXPIRE_PER_ENTRY, &mut run.records);
        self.remember_changes(run);
        self.history.keep_bounds(now, &mut run.history_store(self.replica))?;
        Ok(outcomes)
    }

    /// Adds to the history what was done since the last time.
    fn remember_changes(&mut self, run: &mut Run) {
        let events = &run.events[run.told..];
        run.size_bytes += self.history.add(events, &mut run.history);
        run.told = run.events.len();
    }

    /// Whoever proposed it has seen these records expired; what has been written since stays.
    fn apply_reclaim(
        &self,
        run: &mut Run,
        keys: &[Bytes],
        version: Version,
    ) -> Result<u64, ApplyError> {
        let mut freed = 0;
        for routing_key in keys {
            let key = data_key(routing_key);
            if self.state.descriptor.range.contains(routing_key)
                && run.stored(&key)?.is_some_and(|record| {
                    record.is_expired(version) || has(Bug::FreedThoughWritten)
                })
            {
                run.change(key, version, Change::Remove);
                freed += 1;
            }
        }
        Ok(freed)
    }

    fn apply_control(
        &mut self,
        run: &mut Run,
        command: &Bytes,
        version: Version,
    ) -> CommandOutcome {
        let outcome = self.machine.apply(command, version);
        for (key, value) in outcome.changes {
            let stored = value.map(|value| seal(Kind::Control, &key, &value));
            run.size_bytes += stored.as_ref().map_or(0, Bytes::len);
            run.records.changes.push((record_key(self.replica, Kind::Control, &key), stored));
        }
        CommandOutcome::Controlled(outcome.result)
    }

    fn apply_write(
        &mut self,
        run: &mut Run,
        write: &Write,
        version: Version,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        let age = self.state.age_at(version);
        let room = match &write.request {
            Some(tag) => match self.sessions.admit(tag, version, age) {
                Ok(room) => room,
                Err(refusal) => return Ok(refuse_all(write, &refusal)),
            },
            None => Room::Free,
        };
        let outcomes = if write.atomic {
            self.apply_together(run, write, version, room)?
        } else {
            self.apply_one_by_one(run, write, version, room)?
        };
        if let Some(tag) = &write.request {
            let answered = write.operations.iter().zip(&outcomes);
            self.sessions.remember(self.replica, tag, age, answered, &mut run.records);
        }
        Ok(outcomes)
    }

    /// Each operation for itself, each with a version of its own.
    fn apply_one_by_one(
        &self,
        run: &mut Run,
        write: &Write,
        version: Version,
        room: Room,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        let mut outcomes = Vec::with_capacity(write.operations.len());
        let mut version = version;
        for operation in &write.operations {
            outcomes.push(match self.answered(write.request.as_ref(), operation) {
                Some(earlier) => earlier,
                None => match self.may_change(write, operation, room) {
                    Ok(()) => run.carry_out(operation, version)?,
                    Err(refusal) => Err(refusal),
                },
            });
            version = version.plus(1);
        }
        Ok(outcomes)
    }

    /// All operations or none, all with one version. Later ones see what earlier ones did.
    fn apply_together(
        &self,
        run: &mut Run,
        write: &Write,
        version: Version,
        room: Room,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        if let Some(earlier) = self.answered_together(write) {
            return Ok(earlier);
        }
        for operation in &write.operations {
            if let Err(refusal) = self.may_change(write, operation, room) {
                return Ok(refuse_all(write, &refusal));
            }
        }
        let undo = run.remember_changes(write);
        let mut outcomes = Vec::with_capacity(write.operations.len());
        for operation in &write.operations {
            outcomes.push(run.carry_out(operation, version)?);
        }
        let failed = write.operations.iter().zip(&outcomes).any(failed);
        if failed {
            run.undo(undo);
            for (operation, outcome) in write.operations.iter().zip(&mut outcomes) {
                if let Ok(result) = outcome {
                    let current = run.current(&data_key(&operation.key), version)?;
                    *result = unapplied(operation, current.as_ref());
                }
            }
        }
        Ok(outcomes)
    }

    fn answered(
        &self,
        tag: Option<&RequestTag>,
        operation: &Operation,
    ) -> Option<OperationOutcome> {
        tag.and_then(|tag| self.sessions.find(tag, operation))
    }

    /// The answers of an atomic batch that came before. One that is known in part, or with
    /// another content, isn't the batch that came before.
    fn answered_together(&self, write: &Write) -> Option<Vec<OperationOutcome>> {
        let tag = write.request.as_ref()?;
        let earlier: Vec<_> =
            write.operations.iter().map(|operation| self.sessions.find(tag, operation)).collect();
        if earlier.iter().all(Option::is_none) {
            return None;
        }
        let is_same = |answer: &Option<OperationOutcome>| {
            !matches!(answer, None | Some(Err(Refusal::RequestIdReused { .. })))
        };
        if earlier.iter().all(is_same) {
            return Some(earlier.into_iter().flatten().collect());
        }
        Some(refuse_all(write, &reused(tag)))
    }

    fn may_change(&self, write: &Write, operation: &Operation, room: Room) -> Result<(), Refusal> {
        check_range(&self.state.descriptor, write.epoch, &operation.key)?;
        for key in other_keys(operation) {
            check_range(&self.state.descriptor, write.epoch, key)?;
        }
        room.check()
    }
}

fn refuse_all(write: &Write, refusal: &Refusal) -> Vec<OperationOutcome> {
    write.operations.iter().map(|_| Err(refusal.clone())).collect()
}

fn other_keys(operation: &Operation) -> &[Bytes] {
    match &operation.action {
        Action::String(action) => action.other_keys(),
        _ => &[],
    }
}

/// Whether an operation makes its batch fail. (Deleting what isn't there doesn't, unless there
/// was a condition; and of the string actions only a check does.)
fn failed((operation, outcome): (&Operation, &OperationOutcome)) -> bool {
    if matches!(&operation.action, Action::String(action) if *action != StringAction::Check) {
        return false;
    }
    match outcome {
        Ok(result) => operation.condition.is_some() && !result.applied,
        Err(_) => true,
    }
}

/// Whether a request that was routed under `epoch` may touch `key` of this shard.
pub(crate) fn check_range(
    descriptor: &ShardDescriptor,
    epoch: RangeEpoch,
    key: &[u8],
) -> Result<(), Refusal> {
    if has(Bug::RangeIgnored) {
        return Ok(());
    }
    let shard_id = descriptor.shard_id;
    let current = descriptor.range_epoch;
    if epoch != current {
        let descriptors = vec![descriptor.clone()];
        return Err(Refusal::StaleEpoch { shard_id, current, descriptors });
    }
    if !descriptor.range.contains(key) {
        let descriptors = vec![descriptor.clone()];
        return Err(Refusal::ShardMoved { shard_id, new_node_hint: None, descriptors });
    }
    Ok(())
}

/// A run under way: what is changed but not written yet.
pub(crate) struct Run {
    before: Box<dyn Snapshot>,
    /// By data key; the last change of each.
    changed: FxHashMap<Bytes, Change>,
    /// Replica records.
    pub(crate) records: Batch,
    /// History records.
    history: Pending,
    /// All changes, in order.
    events: Vec<ChangeEvent>,
    /// How many of them the history has been told.
    told: usize,
    size_bytes: usize,
}

/// How a run was before a batch.
struct Undo {
    /// The changes of the batch's keys, last key first.
    changed: Vec<(Bytes, Option<Change>)>,
    events: usize,
}

impl Run {
    fn start(engine: &dyn Engine, volume: VolumeId) -> Result<Self, EngineError> {
        Ok(Run {
            before: engine.snapshot_of_lasting(volume)?,
            changed: FxHashMap::default(),
            records: Batch::default(),
            history: Pending::new(),
            events: Vec::new(),
            told: 0,
            size_bytes: 0,
        })
    }

    pub(crate) fn history_store(&mut self, replica: ReplicaId) -> Store<'_> {
        let (before, pending) = (&*self.before, &mut self.history);
        Store { replica, before, pending, batch: &mut self.records }
    }

    /// The record that is there, expired or not.
    fn stored(&self, data_key: &Bytes) -> Result<Option<Record>, ApplyError> {
        Ok(match self.changed.get(data_key) {
            Some(Change::Set(record)) => Some(record.clone()),
            Some(Change::Remove) => None,
            None => match self.before.get(data_key)? {
                Some(stored) => Some(Record::decode(&data_key[1..], &stored)?),
                None => None,
            },
        })
    }

    /// The record that is there at shard time `now`.
    fn current(&self, data_key: &Bytes, now: Version) -> Result<Option<Record>, ApplyError> {
        Ok(self.stored(data_key)?.filter(|record| !record.is_expired(now)))
    }

    fn change(&mut self, data_key: Bytes, version: Version, change: Change) {
        let record = match &change {
            Change::Set(record) => Some(record.clone()),
            Change::Remove => None,
        };
        let routing_key = routing_key_of(&data_key);
        self.events.push(ChangeEvent { version, routing_key, record });
        self.changed.insert(data_key, change);
    }

    fn carry_out(
        &mut self,
        operation: &Operation,
        version: Version,
    ) -> Result<OperationOutcome, ApplyError> {
        let key = data_key(&operation.key);
        let current = if needs_current(operation) { self.current(&key, version)? } else { None };
        let mut others = Vec::new();
        for other in other_keys(operation) {
            others.push(self.current(&data_key(other), version)?);
        }
        Ok(match effect_of(operation, current.as_ref(), &others, version) {
            Ok(Effect { result, change, also }) => {
                if let Some(change) = change {
                    self.change(key, version, change);
                }
                if let Some((other, change)) = also {
                    self.change(data_key(&other), version, change);
                }
                Ok(result)
            }
            Err(refusal) => Err(refusal),
        })
    }

    fn remember_changes(&self, write: &Write) -> Undo {
        let before = |key: &Bytes| {
            let key = data_key(key);
            let change = self.changed.get(&key).cloned();
            (key, change)
        };
        let keys = |operation| other_keys(operation).iter().rev().chain([&operation.key]);
        let changed = write.operations.iter().rev().flat_map(keys).map(before).collect();
        Undo { changed, events: self.events.len() }
    }

    fn undo(&mut self, undo: Undo) {
        self.events.truncate(undo.events);
        for (key, before) in undo.changed {
            match before {
                Some(change) => self.changed.insert(key, change),
                None => self.changed.remove(&key),
            };
        }
    }

    fn into_batch(self, replica: ReplicaId) -> Batch {
        let mut batch = self.records;
        batch.changes.reserve(self.changed.len() + self.history.len() + 2);
        for (suffix, stored) in self.history {
            batch.put(record_key(replica, Kind::History, &suffix), stored);
        }
        for (key, change) in self.changed {
            let stored = match change {
                Change::Set(record) => Some(record.encode(&key[1..])),
                Change::Remove => None,
            };
            batch.changes.push((key, stored));
        }
        batch
    }
}
