//! What the threads of a process do: log, apply, maintenance, and carrying out what the
//! replication host wants.

use crate::client::expires;
use crate::collections;
use crate::machine::SimMachine;
use crate::network::Place;
use crate::packet::{Ask, Found, Packet, Reply, Snapshot};
use crate::process::{Core, Taken, Ticket};
use crate::world::{Event, World};
use kvdb_control::{ControlResponse, decode_result};
use kvdb_engine::Engine;
use kvdb_model::log::INITIAL_POSITION;
use kvdb_model::planted::{Bug, has};
use kvdb_model::{
    EntryCommand, LogIndex, LogPosition, NodeId, Refusal, ReplicaId, ShardId, ShardTimes, VolumeId,
};
use kvdb_replication::{
    ApplyTask, CommittedEntry, ConfOutcome, Effect, GroupStatus, Input, PersistBatch, Rejection,
    ReplicaRole, SplitFrom,
};
use kvdb_store::{Born, ChunkReader, CommandOutcome, Shard, SnapshotWriter, View, left_behind};
use kvdb_wal::volumes_to_flush;

const TRANSFER_TIMEOUT_US: u64 = 500_000;
/// Of 1000 reads of keys that have expired, so many are followed by a hand-over.
const HAND_OVER_WHEN_GONE: u64 = 200;
const LEAST_SYNC_US: u64 = 150;

impl World {
    /// Carries out what a process's host wants done.
    pub(crate) fn settle(&mut self, place: Place) {
        let now = self.processes[place].now(self.now_us);
        let Some(core) = &mut self.processes[place].core else { return };
        for effect in core.host.drain(now) {
            self.carry_out(place, effect);
        }
        self.start_threads(place);
    }

    /// Log and apply thread take up what waits for them.
    fn start_threads(&mut self, place: Place) {
        let life = self.processes[place].life;
        let sync_us = self.processes[place].sync_us;
        let apply_us = self.processes[place].apply_us;
        let Some(core) = &mut self.processes[place].core else { return };
        if core.syncing.is_none() && !core.waiting.is_empty() {
            let records = std::mem::take(&mut core.waiting);
            let shared = volumes_to_flush(core.wal.live(), &records);
            for volume in shared {
                self.flush_volume(place, volume);
            }
            let Some(core) = &mut self.processes[place].core else { return };
            if core.wal.append(&records).is_err() {
                return self.disk_fails(place);
            }
            core.syncing = Some(core.waiting_number);
            let hangs_us = self.processes[place].hangs_us(self.now_us);
            let after_us = hangs_us + LEAST_SYNC_US + self.dice.below(sync_us);
            self.schedule(after_us, Event::Synced { place, life });
        }
        let Some(core) = &mut self.processes[place].core else { return };
        if !core.applying && !core.tasks.is_empty() {
            core.applying = true;
            let after_us = 20 + self.dice.below(apply_us);
            self.schedule(after_us, Event::Apply { place, life });
        }
    }

    pub(crate) fn synced(&mut self, place: Place) {
        let Some(core) = &mut self.processes[place].core else { return };
        let Some(number) = core.syncing.take() else { return };
        if core.wal.sync().is_err() {
            return self.disk_fails(place);
        }
        self.note_durable(place);
        self.feed(place, Input::Persisted(number));
    }

    /// A log that can't be written ends its process.
    fn disk_fails(&mut self, place: Place) {
        self.tell(|world| format!("{} stops: its disk has failed", world.processes[place].name));
        self.crash(place, true);
        self.schedule(200_000, Event::Restart { place });
    }

    pub(crate) fn note_durable(&mut self, place: Place) {
        let Some(core) = &self.processes[place].core else { return };
        for (replica, found) in &core.wal.live().replicas {
            let member = (found.shard, *replica);
            if found.volume.is_some() {
                self.checks.log_begins(member, found.start.index);
            }
            // One batch is at the disk at a time, so all that was appended is synced now.
            self.checks.is_durable(member, found.last_index(), found.hard_state);
        }
    }

    fn carry_out(&mut self, place: Place, effect: Effect<Ticket>) {
        match effect {
            Effect::Persist(PersistBatch { number, records }) => {
                let Some(core) = &mut self.processes[place].core else { return };
                core.waiting_number = number;
                core.waiting.extend(records);
            }
            Effect::Send { to, messages } => {
                for one in &messages {
                    self.checks.says(one.shard, &one.message);
                }
                let from = self.processes[place].node_id;
                if let Some((target, from)) = self.place_of(place, to).zip(from) {
                    let wall_ms = self.processes[place].now(self.now_us).wall_ms;
                    self.send(place, target, Packet::Raft { from, to, wall_ms, messages });
                }
            }
            Effect::Apply(task) => {
                let Some(core) = &mut self.processes[place].core else { return };
                core.tasks.push_back(task);
            }
            Effect::ReadReady { shard, tickets } => {
                for ticket in tickets {
                    self.serve_read(place, shard, ticket);
                }
            }
            Effect::Refused { shard, ticket, why } => self.refuse(place, shard, ticket, why),
            Effect::RoleChanged(status) => self.role_changed(place, &status),
            Effect::Settled { shard, term, membership_epoch, .. } => {
                self.checks.settled(shard, membership_epoch);
                let Some(core) = &mut self.processes[place].core else { return };
                core.standings.entry(shard).or_default().settled = Some((term, membership_epoch));
            }
            Effect::TakeSnapshot { shard, to } => self.take_snapshot(place, shard, to),
            Effect::StreamSnapshot { shard, to_node, message } => {
                let to = ReplicaId(message.to);
                self.stream(place, shard, to_node, to, message);
            }
            Effect::SnapshotAnswer { offer, answer } => {
                let Some(core) = &mut self.processes[place].core else { return };
                let Some((sender, snapshot)) = core.offers.remove(&offer) else { return };
                let transfer = snapshot.transfer;
                let delivered = answer.is_ok() && self.ingest(place, snapshot);
                self.send(place, sender, Packet::SnapshotAnswer { transfer, delivered });
            }
            Effect::DropVolume(volume) => self.drop_volume(place, volume),
            Effect::PromiseLost(lost) => self.checks.violations.push(lost.to_string()),
        }
    }

    fn role_changed(&mut self, place: Place, status: &GroupStatus) {
        let is_leader = status.role == ReplicaRole::Leader;
        if is_leader {
            self.checks.leads(status.shard, status.term, status.replica);
        }
        self.tell(|world| {
            let name = &world.processes[place].name;
            let (shard, term) = (status.shard, status.term);
            match (is_leader, status.leader) {
                (true, _) => format!("{name} leads shard {shard} in term {term}"),
                (false, Some(leader)) => {
                    format!("{name} follows {leader} in shard {shard}, term {term}")
                }
                (false, None) => format!("{name} follows nobody in shard {shard}, term {term}"),
            }
        });
        let Some(core) = &mut self.processes[place].core else { return };
        let standing = core.standings.entry(status.shard).or_default();
        (standing.is_leader, standing.term) = (is_leader, status.term);
    }

    // ---- apply --------------------------------------------------------------------------

    pub(crate) fn apply_next(&mut self, place: Place) {
        let Some(core) = &mut self.processes[place].core else { return };
        core.applying = false;
        let Some(task) = core.tasks.pop_front() else { return };
        let done = match task {
            ApplyTask::Open { shard, replica, volume, birth, start } => {
                self.processes[place].open_shard(shard, replica, volume, &birth, start)
            }
            ApplyTask::Entries { shard, replica, entries } => {
                self.apply(place, shard, replica, entries)
            }
            ApplyTask::Switch { shard, replica, volume, position, old } => {
                let empty = bytes::Bytes::new();
                let left = core.shards.remove(&shard);
                let opened =
                    self.processes[place].open_shard(shard, replica, volume, &empty, position);
                self.leave(place, replica, left, old);
                self.feed(place, applied(shard, replica, position, Vec::new()));
                opened
            }
            ApplyTask::Close { shard, replica, volume } => {
                let mut left = None;
                if core.shards.get(&shard).is_some_and(|open| open.replica() == replica) {
                    left = core.shards.remove(&shard);
                    core.standings.remove(&shard);
                }
                self.leave(place, replica, left, volume);
                Ok(())
            }
        };
        if let Err(problem) = done {
            let name = &self.processes[place].name;
            self.checks.violations.push(format!("{name}: {problem}"));
        }
        self.start_threads(place);
    }

    fn apply(
        &mut self,
        place: Place,
        shard: ShardId,
        replica: ReplicaId,
        entries: Vec<CommittedEntry<Ticket>>,
    ) -> Result<(), String> {
        for committed in &entries {
            self.checks.applies(shard, &committed.entry);
        }
        let life = self.processes[place].life;
        let Some(core) = &mut self.processes[place].core else { return Ok(()) };
        let Some(open) = core.shards.get_mut(&shard).filter(|open| open.replica() == replica)
        else {
            return Ok(());
        };
        let mut run = Vec::with_capacity(entries.len());
        let mut tickets = std::collections::BTreeMap::new();
        for committed in entries {
            tickets.insert(committed.entry.index, committed.tickets);
            run.push(committed.entry);
        }
        let mut configured = open.descriptor().clone();
        let done = open.apply(&run).map_err(|error| error.to_string())?;
        let descriptor = open.descriptor().clone();
        let volume = open.volume();
        if let Some(sequence) = done.sequence {
            core.note(volume, shard, replica, sequence, done.position.index);
        }
        if let Some(permit) = core.host.permit(shard, replica) {
            permit.applied(done.position.index);
        }
        let mut membership = Vec::new();
        let born: Vec<(LogIndex, Born)> = done
            .entries
            .iter()
            .filter_map(|entry| Some((entry.index, entry.born()?.clone())))
            .collect();
        for (index, born) in born {
            self.child_born(place, replica, volume, index, born)?;
        }
        for entry in done.entries {
            let waiting = tickets.remove(&entry.index).unwrap_or_default();
            if let Some(descriptor) = entry.membership {
                if let Some(descriptor) = &descriptor {
                    configured = descriptor.clone();
                    self.checks.has_descriptor(place, life, descriptor);
                    self.checks.members_changed(descriptor, entry.index);
                }
                membership.push(ConfOutcome { index: entry.index, descriptor });
            } else {
                if !waiting.is_empty() {
                    self.checks.acknowledged(&configured, entry.index);
                }
                for (ticket, outcome) in waiting.into_iter().zip(entry.commands) {
                    self.answer_command(place, shard, ticket, outcome);
                }
            }
        }
        self.checks.has_descriptor(place, life, &descriptor);
        self.feed(place, applied(shard, replica, done.position, membership));
        Ok(())
    }

    /// Opens the child at once: its volume is in use from now on.
    fn child_born(
        &mut self,
        place: Place,
        parent: ReplicaId,
        volume: VolumeId,
        index: LogIndex,
        born: Born,
    ) -> Result<(), String> {
        let Born { parent: after, child, replica, time } = born;
        self.checks.is_born(&child);
        self.tell(|world| {
            let name = &world.processes[place].name;
            format!("{name} splits shard {}: shard {}", after.shard_id, child.shard_id)
        });
        *self.faults.entry("split").or_default() += 1;
        let shard = child.shard_id;
        let process = &mut self.processes[place];
        if process.core.as_ref().is_some_and(|core| !core.shards.contains_key(&shard)) {
            let none = bytes::Bytes::new();
            process.open_shard(shard, replica, volume, &none, INITIAL_POSITION)?;
        }
        self.disturb_split(place);
        let from = Some(SplitFrom { parent: after, replica: parent, index });
        self.feed_later(place, Input::Split { from, child, volume, time });
        Ok(())
    }

    /// A replica has left its volume, which goes with the last one in it.
    fn leave(
        &mut self,
        place: Place,
        replica: ReplicaId,
        left: Option<Shard<SimMachine>>,
        volume: Option<VolumeId>,
    ) {
        let Some(volume) = volume else { return };
        let Some(core) = &self.processes[place].core else { return };
        if !core.shards.values().any(|shard| shard.volume() == volume) {
            return self.drop_volume(place, volume);
        }
        if let Some(left) = left.filter(|left| left.volume() == volume) {
            for range in left_behind(replica, &left.descriptor().range) {
                // A volume that is in use is there.
                let _ = self.processes[place].engine.drop_range(volume, &range);
            }
        }
    }

    fn answer_command(
        &mut self,
        place: Place,
        shard: ShardId,
        ticket: Ticket,
        outcome: CommandOutcome,
    ) {
        match (ticket, outcome) {
            // Shard time has got as far as the clock by which something had expired.
            (ticket, CommandOutcome::TimeAdvanced(_)) => self.serve_read(place, shard, ticket),
            (Ticket::Ask { client, attempt, .. }, CommandOutcome::Written(mut outcomes)) => {
                if let Some(outcome) = outcomes.pop() {
                    let result = outcome.map(Found::Written);
                    self.answer_client(place, client, attempt, shard, result);
                }
            }
            (Ticket::Register { caller }, CommandOutcome::Controlled(result)) => {
                if let Ok(ControlResponse::Registered(node, _)) = decode_result(&result) {
                    self.send(place, caller, Packet::Reply(Reply::Registered(node)));
                }
            }
            _ => {}
        }
    }

    /// A read may be served: from the engine as it is now.
    pub(crate) fn serve_read(&mut self, place: Place, shard: ShardId, ticket: Ticket) {
        let (client, attempt, epoch, key) = match &ticket {
            Ticket::Ask { client, attempt, ask: Ask::Get { epoch, key } } => {
                (*client, *attempt, *epoch, key.clone())
            }
            Ticket::Heartbeat { caller, node, round } => {
                return self.answer_heartbeat(place, *caller, *node, *round);
            }
            _ => return,
        };
        let now_ms = if has(Bug::HiddenByWallClock) {
            self.processes[place].now(self.now_us).wall_ms
        } else {
            self.shard_times(place, shard).time_ms
        };
        let process = &self.processes[place];
        let Some(open) = process.core.as_ref().and_then(|core| core.shards.get(&shard)) else {
            return;
        };
        let read = open.engine_snapshot().map_err(|error| error.to_string()).and_then(|snapshot| {
            let view = View::new(&*snapshot, open.replica()).map_err(|error| error.to_string())?;
            match view.get(epoch, &key, now_ms) {
                Ok(read) if read.expires_by_clock => Ok(None),
                Ok(read) => match read.record {
                    Some(record) if record.string().is_none() => {
                        collections::value_of(&view, epoch, &key, now_ms)
                            .map(|value| Some(Ok(Found::Record(Some((value, record.version))))))
                    }
                    record => Ok(Some(Ok(Found::Record(
                        record.map(|record| (record.value, record.version)),
                    )))),
                },
                Err(kvdb_store::ReadError::Refused(refusal)) => Ok(Some(Err(refusal))),
                Err(error) => Err(error.to_string()),
            }
        });
        match read {
            Ok(Some(result)) => {
                let is_gone = matches!(result, Ok(Found::Record(None))) && expires(&key);
                self.answer_client(place, client, attempt, shard, result);
                if is_gone && self.stormy && self.dice.chance(HAND_OVER_WHEN_GONE) {
                    // The next leader's clock may be behind; most of all that of one which has just
                    // started again, and has nothing but its log to tell the time from.
                    *self.faults.entry("hand-over after a key was gone").or_default() += 1;
                    if self.dice.chance(500) || !self.start_a_follower_again(place, shard) {
                        self.feed_later(place, Input::TransferLeader { shard, to: None });
                    }
                }
            }
            // Nobody is told that it is gone before a majority knows.
            Ok(None) => {
                let command = EntryCommand::AdvanceTime.to_bytes();
                let input = Input::Propose { shard, command, version_count: 1, ticket };
                self.feed_later(place, input);
            }
            Err(problem) => self.checks.violations.push(problem),
        }
    }

    /// A follower of the leader at `place` is killed, starts again, and is to lead a moment later.
    fn start_a_follower_again(&mut self, place: Place, shard: ShardId) -> bool {
        let process = &self.processes[place];
        let own = process.node_id;
        let open = process.core.as_ref().and_then(|core| core.shards.get(&shard));
        let Some(open) = open else { return false };
        let others: Vec<NodeId> = open
            .descriptor()
            .replicas
            .iter()
            .map(|replica| replica.node_id)
            .filter(|node| Some(*node) != own)
            .collect();
        let chosen = self.dice.below(others.len().max(1) as u64) as usize;
        let Some(to) = others.get(chosen).copied() else { return false };
        let Some(target) = self.place_of(place, to) else { return false };
        self.schedule(0, Event::StartAgain { place: target });
        let life = self.processes[place].life;
        let after_us = self.dice.between(10_000, 60_000);
        self.schedule(after_us, Event::HandOver { place, life, shard, to });
        true
    }

    /// What the replica of a shard says of time.
    pub(crate) fn shard_times(&self, place: Place, shard: ShardId) -> ShardTimes {
        let process = &self.processes[place];
        let boot_us = process.now(self.now_us).boot_us;
        let times = process.core.as_ref().and_then(|core| {
            let open = core.shards.get(&shard)?;
            let time = core.host.shard_time(shard, open.replica())?;
            Some(time.times(boot_us))
        });
        times.unwrap_or_default()
    }

    pub(crate) fn answer_client(
        &mut self,
        place: Place,
        client: usize,
        attempt: u64,
        shard: ShardId,
        result: Result<Found, Refusal>,
    ) {
        let times = self.shard_times(place, shard);
        self.send(place, client, Packet::Answer { attempt, times, result });
    }

    fn refuse(&mut self, place: Place, shard_id: ShardId, ticket: Ticket, why: Rejection) {
        let Ticket::Ask { client, attempt, .. } = ticket else {
            if let Ticket::Register { caller } | Ticket::Heartbeat { caller, .. } = ticket {
                self.send(place, caller, Packet::Reply(Reply::NotLeader));
            }
            return;
        };
        let refusal = match why {
            Rejection::NotLeader(leader) => Refusal::NotLeader {
                shard_id,
                leader_hint: leader.and_then(|node| self.address_of(place, node)),
            },
            Rejection::NoSuchShard | Rejection::Superseded => {
                Refusal::NotLeader { shard_id, leader_hint: None }
            }
            Rejection::Unavailable => {
                Refusal::ShardUnavailable { shard_id, reason: "leadership is being handed over" }
            }
            Rejection::Overloaded => {
                Refusal::Overloaded { what: "the shard's log", retry_after_ms: 20 }
            }
            Rejection::InvalidMembership => return,
            Rejection::OutcomeUnknown => Refusal::OutcomeUnknown { reason: "leadership was lost" },
        };
        self.answer_client(place, client, attempt, shard_id, Err(refusal));
    }

    // ---- maintenance --------------------------------------------------------------------

    /// Flushes something, now and then only a part of what was written.
    pub(crate) fn maintain(&mut self, place: Place) {
        let life = self.processes[place].life;
        let after_us = self.dice.between(50_000, 600_000);
        self.schedule(after_us, Event::Maintain { place, life });
        let Some(core) = &mut self.processes[place].core else { return };
        let volumes = core.noted_volumes();
        let Some(volume) = volumes.get(self.dice.below(volumes.len() as u64) as usize) else {
            return;
        };
        let volume = *volume;
        self.flush_volume(place, volume);
    }

    fn flush_volume(&mut self, place: Place, volume: VolumeId) {
        let life = self.processes[place].life;
        let engine = self.processes[place].engine.clone();
        let Some(core) = &mut self.processes[place].core else { return };
        let Ok(through) = engine.flush(volume) else {
            core.forget_volume(volume);
            return;
        };
        // Writing it out takes time, in which more is applied.
        for (shard, replica, applied) in core.flushed(volume, through) {
            self.checks.is_flushed((shard, replica), applied);
            let flushed = Event::Flushed { place, life, shard, replica, applied };
            let after_us = self.dice.below(200_000);
            self.schedule(after_us, flushed);
        }
    }

    fn drop_volume(&mut self, place: Place, volume: VolumeId) {
        if let Some(core) = &mut self.processes[place].core {
            core.forget_volume(volume);
        }
        // A volume in memory is always gone when it is deleted.
        let _ = self.processes[place].engine.delete_volume(volume);
    }

    // ---- snapshots ----------------------------------------------------------------------

    fn take_snapshot(&mut self, place: Place, shard: ShardId, to: ReplicaId) {
        let Some(core) = &mut self.processes[place].core else { return };
        let Some(open) = core.shards.get(&shard) else { return };
        let Ok(snapshot) = open.engine_snapshot() else { return };
        let Ok(writer) = SnapshotWriter::new(snapshot, open.replica()) else { return };
        let position = writer.position();
        let descriptor = writer.descriptor().clone();
        let time = writer.time();
        let mut chunks = Vec::new();
        let written = writer.write(|chunk| {
            chunks.push(chunk);
            true
        });
        if written.is_ok() {
            let taken = Taken { descriptor: descriptor.clone(), time, chunks };
            core.taken.insert((shard, to), taken);
            self.feed_later(place, Input::SnapshotTaken { shard, to, position, descriptor });
        }
    }

    fn stream(
        &mut self,
        place: Place,
        shard: ShardId,
        to_node: NodeId,
        to: ReplicaId,
        message: kvdb_replication::message::Message,
    ) {
        let transfer = self.next_transfer;
        self.next_transfer += 1;
        let life = self.processes[place].life;
        let Some(from_node) = self.processes[place].node_id else { return };
        let target = self.place_of(place, to_node);
        let Some(core) = &mut self.processes[place].core else { return };
        core.streaming.insert(transfer, (shard, to));
        let taken = core.taken.remove(&(shard, to));
        if let (Some(taken), Some(target)) = (taken, target) {
            let snapshot = Snapshot {
                transfer,
                shard,
                from_node,
                to_node,
                to,
                message,
                descriptor: taken.descriptor,
                time: taken.time,
                chunks: taken.chunks,
            };
            self.send(place, target, Packet::Snapshot(Box::new(snapshot)));
        }
        self.schedule(TRANSFER_TIMEOUT_US, Event::TransferTimeout { place, life, transfer });
    }

    pub(crate) fn transferred(&mut self, place: Place, transfer: u64, delivered: bool) {
        let Some(core) = &mut self.processes[place].core else { return };
        if let Some((shard, to)) = core.streaming.remove(&transfer) {
            self.feed(place, Input::SnapshotSent { shard, to, delivered });
        }
    }

    fn ingest(&mut self, place: Place, snapshot: Snapshot) -> bool {
        let engine = self.processes[place].engine.clone();
        let Some(core) = &mut self.processes[place].core else { return false };
        let volume = core.fresh_volume();
        let mut items = ChunkReader::new(snapshot.chunks.into_iter(), snapshot.to);
        if let Err(error) = engine.ingest_volume(volume, &mut items) {
            self.checks.violations.push(format!("a good snapshot is refused: {error}"));
            return false;
        }
        let position = snapshot.message.get_snapshot().get_metadata().index;
        self.checks.is_flushed((snapshot.shard, snapshot.to), LogIndex(position));
        self.tell(|world| {
            let name = &world.processes[place].name;
            format!("{name} takes in a snapshot of shard {}", snapshot.shard)
        });
        *self.faults.entry("snapshot").or_default() += 1;
        self.feed_later(
            place,
            Input::SnapshotIngested {
                from_node: snapshot.from_node,
                shard: snapshot.shard,
                message: snapshot.message,
                descriptor: snapshot.descriptor,
                time: snapshot.time,
                volume,
            },
        );
        true
    }

    /// For an input that follows from an effect: the host is given it before anything else
    /// happens, and its effects are carried out with the others'.
    fn feed_later(&mut self, place: Place, input: Input<Ticket>) {
        let now = self.processes[place].now(self.now_us);
        let Some(core) = &mut self.processes[place].core else { return };
        core.host.step(now, input);
        let effects = core.host.drain(now);
        for effect in effects {
            self.carry_out(place, effect);
        }
    }

    // ---- who is where -------------------------------------------------------------------

    /// Where a peer is, so far as a process knows.
    pub(crate) fn place_of(&self, place: Place, node: NodeId) -> Option<Place> {
        if self.processes[place].is_coordinator {
            return self.place_of_coordinator(place, node);
        }
        crate::node::place_at(&self.address_of(place, node)?)
    }

    fn address_of(&self, place: Place, node: NodeId) -> Option<String> {
        let core: &Core = self.processes[place].core.as_ref()?;
        core.cache.map().nodes.get(&node).map(|record| record.address.clone())
    }
}

fn applied(
    shard: ShardId,
    replica: ReplicaId,
    position: LogPosition,
    membership: Vec<ConfOutcome>,
) -> Input<Ticket> {
    Input::Applied { shard, replica, position, membership }
}
