//! Applying committed entries: data, applied index, request window and descriptor in one engine
//! batch.
//!
//! Entries of a run see what earlier ones did through an [`Overlay`]; the overlay and the
//! records beside it become one batch at the end of the run, or earlier where the batch would get
//! large, but only ever between entries. How entries are grouped into runs can't be seen in the
//! result: every decision depends on the entries and the state alone.

use crate::command::{Effect, effect_of};
use crate::deadlines::FREED_MOST;
use crate::keys;
use crate::layout::{Kind, record_key};
use crate::machine::Machine;
use crate::membership::MembershipChange;
use crate::overlay::Overlay;
use crate::recent::ChangeEvent;
use crate::record::RecordDamage;
use crate::seal::seal;
use crate::sessions::{Room, reused};
use crate::shard::{OpenError, Shard};
use crate::split::Born;
use bytes::Bytes;
use kvdb_engine::{Batch, EngineError, SequenceNumber};
use kvdb_model::codec::DecodeError;
use kvdb_model::limits::ANSWER_MAX_BYTES;
use kvdb_model::planted::{Bug, has};
use kvdb_model::wrong_value::TOO_MUCH_READ;
use kvdb_model::{
    CommandId, EntryCommand, EntryKind, EntryPayload, LogEntry, LogIndex, LogPosition, Operation,
    OperationOutcome, RangeEpoch, Refusal, RequestTag, ShardDescriptor, Version, Write,
    WriteResult,
};
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
    /// The header of a collection that a command needed can't be read.
    #[error("the header of a collection can't be read: {0}")]
    Collection(#[from] DecodeError),
    /// A command has read more than it may. It is refused; no replica stops.
    #[error("{TOO_MUCH_READ}")]
    TooMuchRead,
    /// A committed entry holds a command that this binary doesn't know. A node never proposes one.
    #[error("command {} in format {format} is not known to this version: it needs a newer one", id.0)]
    UnknownCommand {
        /// Its number.
        id: CommandId,
        /// The encoding of its arguments.
        format: u8,
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
    /// Elements were left that nobody reads any more: see [`crate::View::garbage`].
    pub made_garbage: bool,
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
        let mut made_garbage = false;
        let mut run: Option<Overlay> = None;
        for entry in entries {
            let current = match &mut run {
                Some(run) => run,
                none => {
                    none.insert(Overlay::start(&*self.engine, self.volume, self.state.incarnation)?)
                }
            };
            outcomes.push(self.apply_entry(current, entry)?);
            made_garbage |= current.changes.made_garbage;
            if current.changes.size_bytes >= BATCH_BYTES {
                sequence = self.finish(run.take(), &mut events)?;
            }
        }
        sequence = self.finish(run, &mut events)?.or(sequence);
        let position = self.state.applied;
        Ok(Applied { entries: outcomes, position, sequence, events, made_garbage })
    }

    fn finish(
        &mut self,
        run: Option<Overlay>,
        events: &mut Vec<ChangeEvent>,
    ) -> Result<Option<SequenceNumber>, ApplyError> {
        let Some(mut run) = run else { return Ok(None) };
        events.append(&mut run.changes.events);
        self.state.incarnation = run.changes.incarnation;
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

    fn apply_entry(
        &mut self,
        run: &mut Overlay,
        entry: &LogEntry,
    ) -> Result<EntryOutcome, ApplyError> {
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
        run.changes.size_bytes += entry.data.len();
        self.state.applied = LogPosition { index: entry.index, term: entry.term };
        Ok(outcome)
    }

    fn apply_payload(
        &mut self,
        run: &mut Overlay,
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
            let command = EntryCommand::decode(bytes)
                .map_err(|source| ApplyError::Unreadable { index, source })?;
            let next = version.plus(command.version_count());
            outcomes.push(match command {
                EntryCommand::Write(write) => {
                    CommandOutcome::Written(self.apply_write(run, &write, version)?)
                }
                EntryCommand::AdvanceTime => CommandOutcome::TimeAdvanced(version),
                EntryCommand::Control(command) => self.apply_control(run, &command, version),
                EntryCommand::Split(plan) => {
                    // The child gets what was done before.
                    self.remember_changes(run);
                    let born = self.apply_split(&plan, version, run)?;
                    CommandOutcome::Split(born.map(Box::new))
                }
                EntryCommand::Reclaim(keys) => {
                    CommandOutcome::Reclaimed(self.apply_reclaim(run, &keys, version)?)
                }
                EntryCommand::Free { key, incarnation, end } => {
                    let is_here = self.state.descriptor.range.contains(&key);
                    CommandOutcome::Reclaimed(match is_here {
                        true => run.free_elements(&key, incarnation, end.as_deref())?,
                        false => 0,
                    })
                }
                EntryCommand::History(policy) => {
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
    fn remember_changes(&mut self, run: &mut Overlay) {
        let events = &run.changes.events[run.told..];
        run.changes.size_bytes += self.history.add(events, &mut run.history);
        run.told = run.changes.events.len();
    }

    /// Whoever proposed it has seen these records expired; what has been written since stays.
    fn apply_reclaim(
        &self,
        run: &mut Overlay,
        keys: &[Bytes],
        version: Version,
    ) -> Result<u64, ApplyError> {
        let mut freed = 0;
        for routing_key in keys {
            if self.state.descriptor.range.contains(routing_key) {
                let left = FREED_MOST.saturating_sub(freed);
                freed += run.reclaim(routing_key, version, left)?;
            }
        }
        Ok(freed)
    }

    fn apply_control(
        &mut self,
        run: &mut Overlay,
        command: &Bytes,
        version: Version,
    ) -> CommandOutcome {
        let outcome = self.machine.apply(command, version);
        for (key, value) in outcome.changes {
            let stored = value.map(|value| seal(Kind::Control, &key, &value));
            run.changes.size_bytes += stored.as_ref().map_or(0, Bytes::len);
            run.records.changes.push((record_key(self.replica, Kind::Control, &key), stored));
        }
        CommandOutcome::Controlled(outcome.result)
    }

    fn apply_write(
        &mut self,
        run: &mut Overlay,
        write: &Write,
        version: Version,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        run.begin();
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

    /// Each operation for itself, each with a version of its own. From the first one on whose answer doesn't fit
    /// beside those before it, or that would read too much with them, none is carried out: it is to be sent again. What a command takes away is told to
    /// somebody, or is still there.
    fn apply_one_by_one(
        &self,
        run: &mut Overlay,
        write: &Write,
        version: Version,
        room: Room,
    ) -> Result<Vec<OperationOutcome>, ApplyError> {
        let mut outcomes = Vec::with_capacity(write.operations.len());
        let mut version = version;
        let (mut size, mut is_full) = (0, false);
        for operation in &write.operations {
            let (savepoint, read_before) = (run.savepoint(), run.read_bytes());
            let mut outcome = match self.answered(write.request.as_ref(), operation) {
                _ if is_full => Err(too_much_to_tell()),
                Some(earlier) => earlier,
                None => match self.may_change(write, operation, room) {
                    Ok(()) => run.carry_out(operation, version)?,
                    Err(refusal) => Err(refusal),
                },
            };
            if let Ok(result) = &outcome {
                let with_it = size + result.answer_bytes();
                if size > 0 && with_it > ANSWER_MAX_BYTES {
                    run.roll_back(savepoint);
                    (is_full, outcome) = (true, Err(too_much_to_tell()));
                } else {
                    size = with_it;
                }
            }
            // Alone it may have read as much.
            if outcome == Err(Refusal::WrongValue(TOO_MUCH_READ)) && read_before > 0 {
                (is_full, outcome) = (true, Err(too_much_to_tell()));
            }
            outcomes.push(outcome);
            version = version.plus(1);
        }
        Ok(outcomes)
    }

    /// All operations or none, all with one version. Later ones see what earlier ones did. Where the answers are too
    /// large together, those to reads and values that were overwritten are left out; if one of them tells what was
    /// taken away, nothing is done.
    fn apply_together(
        &self,
        run: &mut Overlay,
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
        let savepoint = run.savepoint();
        let mut outcomes = Vec::with_capacity(write.operations.len());
        let mut size = 0;
        for operation in &write.operations {
            let mut outcome = run.carry_out(operation, version)?;
            if let Ok(result) = outcome {
                let with_it = size + result.answer_bytes();
                outcome = Ok(match with_it > ANSWER_MAX_BYTES && size > 0 {
                    false => {
                        size = with_it;
                        result
                    }
                    true if takes_away(operation, &result) => {
                        run.roll_back(savepoint);
                        return Ok(refuse_all(write, &too_much_to_tell()));
                    }
                    true => result.without_bulk(),
                });
            }
            outcomes.push(outcome);
        }
        let failed = write.operations.iter().zip(&outcomes).any(failed);
        if failed {
            run.roll_back(savepoint);
            for (operation, outcome) in write.operations.iter().zip(&mut outcomes) {
                if let Ok(result) = outcome {
                    *result = run.unapplied(operation, version)?;
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
        for key in operation.keys() {
            check_range(&self.state.descriptor, write.epoch, key)?;
        }
        room.check()
    }
}

fn too_much_to_tell() -> Refusal {
    Refusal::ResponseTooLarge { limit_bytes: ANSWER_MAX_BYTES as u64 }
}

/// Whether the answer may tell what isn't stored any more.
fn takes_away(operation: &Operation, result: &WriteResult) -> bool {
    let is_change = effect_of(operation) > Effect::Read;
    is_change && (result.has_bulk_reply() || keys::Delete::is(&operation.body))
}

fn refuse_all(write: &Write, refusal: &Refusal) -> Vec<OperationOutcome> {
    write.operations.iter().map(|_| Err(refusal.clone())).collect()
}

/// Whether an operation calls its atomic write off. (Deleting what isn't there doesn't, unless there
/// was a condition.)
fn failed((operation, outcome): (&Operation, &OperationOutcome)) -> bool {
    operation.required
        && match outcome {
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
