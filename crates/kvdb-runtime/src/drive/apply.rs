//! The apply thread: state machines, one engine batch a run of entries.

use super::Shared;
use super::fatal::fatal;
use super::mailbox::{Receiver, Sender};
use super::replicate::Event;
use super::ticket::{Outcome, Ticket};
use kvdb_engine::Engine;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::{LogEntry, LogIndex, LogPosition, ReplicaId, ShardId, VolumeId};
use kvdb_replication::{ApplyTask, CommittedEntry, ConfOutcome, Input, SplitFrom};
use kvdb_store::{Born, CommandOutcome, EntryOutcome, Machine, Shard, SnapshotWriter, left_behind};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Something for the apply thread.
pub(crate) enum ApplyWork {
    Task(ApplyTask<Ticket>),
    TakeSnapshot {
        shard: ShardId,
        to: ReplicaId,
    },
    DropVolume(VolumeId),
    /// Answer with a snapshot of a replica, if it is open.
    Export {
        shard: ShardId,
        replica: ReplicaId,
        reply: tokio::sync::oneshot::Sender<SnapshotWriter>,
    },
}

pub(crate) struct Applier<M> {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) shards: HashMap<ShardId, Shard<M>>,
    pub(crate) work: Receiver<ApplyWork>,
    pub(crate) events: Sender<Event>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) machine: Box<dyn Fn() -> M + Send>,
}

impl<M: Machine> Applier<M> {
    pub(crate) fn run(mut self) {
        while let Ok(work) = self.work.receive(None) {
            match work {
                ApplyWork::Task(task) => self.carry_out(task),
                ApplyWork::TakeSnapshot { shard, to } => self.take_snapshot(shard, to),
                ApplyWork::DropVolume(volume) => self.drop_volume(volume),
                ApplyWork::Export { shard, replica, reply } => self.export(shard, replica, reply),
            }
        }
    }

    fn export(
        &self,
        id: ShardId,
        replica: ReplicaId,
        reply: tokio::sync::oneshot::Sender<SnapshotWriter>,
    ) {
        let Some(shard) = self.shards.get(&id).filter(|shard| shard.replica() == replica) else {
            return;
        };
        let read = shard.engine_snapshot().map_err(|error| error.to_string());
        let writer = read.and_then(|snapshot| {
            SnapshotWriter::new(snapshot, replica).map_err(|error| error.to_string())
        });
        match writer {
            Ok(writer) => drop(reply.send(writer)),
            // Whoever asked sees the channel close.
            Err(error) => tracing::error!(shard = id.0, error, "the shard can't be read"),
        }
    }

    fn carry_out(&mut self, task: ApplyTask<Ticket>) {
        match task {
            ApplyTask::Open { shard, replica, volume, birth, start } => {
                self.open(shard, replica, volume, &birth, start);
            }
            ApplyTask::Entries { shard, replica, entries } => self.apply(shard, replica, entries),
            ApplyTask::Switch { shard, replica, volume, position, old } => {
                let left = self.shards.remove(&shard);
                self.open(shard, replica, volume, &bytes::Bytes::new(), position);
                self.report(shard, replica, position, Vec::new());
                self.leave(replica, left, old);
            }
            ApplyTask::Close { shard, replica, volume } => {
                let is_open = self.shards.get(&shard).is_some_and(|open| open.replica() == replica);
                let left = if is_open { self.shards.remove(&shard) } else { None };
                self.shared.views.remove(shard, replica);
                self.shared.changes.end(shard, replica);
                self.leave(replica, left, volume);
            }
        }
    }

    fn open(
        &mut self,
        shard: ShardId,
        replica: ReplicaId,
        volume: VolumeId,
        birth: &bytes::Bytes,
        start: LogPosition,
    ) {
        let is_open = |open: &&Shard<M>| open.replica() == replica && open.volume() == volume;
        if let Some(open) = self.shards.get(&shard).filter(is_open) {
            // A split has opened it.
            return self.publish(open);
        }
        let machine = (self.machine)();
        match Shard::open(self.engine.clone(), replica, volume, birth, start, machine) {
            Ok(opened) => {
                self.shared.changes.begin(replica, opened.descriptor(), opened.last_version());
                self.publish(&opened);
                self.shards.insert(shard, opened);
            }
            Err(error) => fatal(&format!("shard {shard} can't be opened: {error}")),
        }
    }

    pub(crate) fn publish(&self, shard: &Shard<M>) {
        self.shared.views.update(shard.shard_id(), shard.replica(), |view| {
            view.volume = Some(shard.volume());
            view.descriptor = Some(Arc::new(shard.descriptor().clone()));
            view.history = shard.history_policy();
        });
    }

    fn apply(&mut self, id: ShardId, replica: ReplicaId, entries: Vec<CommittedEntry<Ticket>>) {
        let Some(shard) = self.shards.get_mut(&id).filter(|shard| shard.replica() == replica)
        else {
            // Closed meanwhile: its tickets' holders see their channels close.
            return;
        };
        let mut tickets: HashMap<u64, Vec<Ticket>> = HashMap::new();
        let mut run: Vec<LogEntry> = Vec::with_capacity(entries.len());
        for committed in entries {
            if !committed.tickets.is_empty() {
                tickets.insert(committed.entry.index.0, committed.tickets);
            }
            run.push(committed.entry);
        }
        let applied = match shard.apply(&run) {
            Ok(applied) => applied,
            Err(error) => fatal(&format!("shard {id} can't apply: {error}")),
        };
        if let Some(sequence) = applied.sequence {
            self.shared.flushes.note(shard.volume(), id, replica, sequence, applied.position.index);
        }
        self.shared.views.applied(id, replica, applied.position.index);
        let (events, last) = (applied.events, shard.last_version());
        self.shared.changes.applied(id, events, last, applied.made_garbage);
        let volume = shard.volume();
        let mut membership = Vec::new();
        let mut children = Vec::new();
        let mut commands = 0;
        let mut decided = false;
        for entry in applied.entries {
            commands += entry.commands.len() as u64;
            decided |= entry.commands.contains(&CommandOutcome::HistoryDecided);
            let waiting = tickets.remove(&entry.index.0).unwrap_or_default();
            if let Some(descriptor) = &entry.membership {
                membership.push(ConfOutcome { index: entry.index, descriptor: descriptor.clone() });
            }
            if let Some(born) = entry.born() {
                children.push((entry.index, born.clone()));
            }
            answer(entry, waiting, applied.position);
        }
        let changed = !membership.is_empty() || !children.is_empty() || decided;
        self.shared.metrics.applied_entries.inc_by(run.len() as u64);
        self.shared.metrics.applied_commands.inc_by(commands);
        for (index, born) in children {
            self.child_born(replica, volume, index, born);
        }
        if changed && let Some(shard) = self.shards.get(&id) {
            self.publish(shard);
        }
        self.report(id, replica, applied.position, membership);
    }

    /// Opens the child at once: its volume is in use from now on.
    fn child_born(&mut self, parent: ReplicaId, volume: VolumeId, index: LogIndex, born: Born) {
        let Born { parent: after, child, replica, time } = born;
        let shard = child.shard_id;
        let epoch = after.range_epoch;
        self.shared.changes.split(after.shard_id, epoch, &child, replica, time.version);
        if !self.shards.contains_key(&shard) {
            let machine = (self.machine)();
            let none = bytes::Bytes::new();
            match Shard::open(
                self.engine.clone(),
                replica,
                volume,
                &none,
                INITIAL_POSITION,
                machine,
            ) {
                Ok(opened) => {
                    self.shards.insert(shard, opened);
                }
                Err(error) => fatal(&format!("shard {shard} can't be opened: {error}")),
            }
        }
        tracing::info!(shard = after.shard_id.0, child = shard.0, "shard split");
        let from = Some(SplitFrom { parent: after, replica: parent, index });
        self.events.send(Event::Internal(Input::Split { from, child, volume, time }));
    }

    /// A replica has left its volume, which goes with the last one in it. Until then only what
    /// nobody else reads is freed.
    fn leave(&self, replica: ReplicaId, left: Option<Shard<M>>, volume: Option<VolumeId>) {
        let Some(volume) = volume else { return };
        if !self.shards.values().any(|shard| shard.volume() == volume) {
            return self.drop_volume(volume);
        }
        if let Some(left) = left.filter(|left| left.volume() == volume) {
            for range in left_behind(replica, &left.descriptor().range) {
                if let Err(error) = self.engine.drop_range(volume, &range) {
                    fatal(&format!("volume {volume} can't be cleaned: {error}"));
                }
            }
        }
    }

    fn report(
        &self,
        shard: ShardId,
        replica: ReplicaId,
        position: LogPosition,
        membership: Vec<ConfOutcome>,
    ) {
        let urgent = !membership.is_empty();
        let input = Input::Applied { shard, replica, position, membership };
        self.events.leave(Event::Internal(input));
        // After it was left: either the replication thread finds it before it sleeps, or it has
        // said before that that it wants to be woken.
        if urgent || self.shared.apply_wanted.load(Ordering::SeqCst) {
            self.events.wake();
        }
    }

    fn take_snapshot(&self, id: ShardId, to: ReplicaId) {
        let Some(shard) = self.shards.get(&id) else { return };
        let snapshot = match shard.engine_snapshot() {
            Ok(snapshot) => snapshot,
            Err(error) => fatal(&format!("shard {id} can't be read: {error}")),
        };
        let writer = match SnapshotWriter::new(snapshot, shard.replica()) {
            Ok(writer) => writer,
            Err(error) => fatal(&format!("shard {id} can't be read: {error}")),
        };
        let input = Input::SnapshotTaken {
            shard: id,
            to,
            position: writer.position(),
            descriptor: writer.descriptor().clone(),
        };
        self.shared.snapshots.lock().insert((id, to), writer);
        self.events.send(Event::Internal(input));
    }

    fn drop_volume(&self, volume: VolumeId) {
        self.shared.flushes.forget(volume);
        if let Err(error) = self.engine.delete_volume(volume) {
            fatal(&format!("volume {volume} can't be deleted: {error}"));
        }
    }
}

fn answer(entry: EntryOutcome, tickets: Vec<Ticket>, position: LogPosition) {
    if let Some(descriptor) = &entry.membership {
        for ticket in tickets {
            ticket.reply(Outcome::MembershipChanged(descriptor.is_some()));
        }
        return;
    }
    for (ticket, command) in tickets.into_iter().zip(entry.commands) {
        ticket.reply(match command {
            CommandOutcome::Written(outcomes) => Outcome::Written(outcomes),
            CommandOutcome::Controlled(result) => Outcome::Controlled(result),
            CommandOutcome::TimeAdvanced(_) => Outcome::TimeAdvanced(position),
            CommandOutcome::Split(born) => Outcome::Split(born.is_some()),
            CommandOutcome::Reclaimed(freed) => Outcome::Reclaimed(freed),
            CommandOutcome::HistoryDecided => Outcome::HistoryDecided,
        });
    }
}
