//! The replication thread: feeds the host and routes its effects. It never blocks on disk or
//! network; everything that does is a message away.
//!
//! Group commit happens here. At most one batch is at the log thread; what the host wants
//! persisted meanwhile piles up (bounded by what the host accepts) and goes as one batch when the
//! log thread comes back.

use super::Shared;
use super::apply::ApplyWork;
use super::fatal::stop_for_good;
use super::mailbox::{Nothing, Receiver, Sender};
use super::ticket::{Outcome, Ticket};
use crate::clock;
use kvdb_model::{LogPosition, NodeId, ReplicaId, ShardDescriptor, ShardId, WalRecord};
use kvdb_replication::{
    ApplyTask, CantGoOn, Effect, GroupStatus, Host, Input, LogTail, PeerMessage, PersistBatch,
    RecoveredGroup, ReplicaRole, SnapshotRefusal, message::Message,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Events handled between two looks at the effects. More makes larger batches, and longer waits
/// for the first of them.
const EVENTS_PER_ROUND: usize = 4096;

/// Something for the replication thread.
pub(crate) enum Event {
    /// From outside (clients): counted against the queue's bound.
    Submitted(Input<Ticket>),
    /// From the process's own threads.
    Internal(Input<Ticket>),
    /// Everything that one frame from a peer held.
    FromPeer { from_node: NodeId, wall_ms: u64, messages: Vec<PeerMessage> },
    /// A peer offers a snapshot; the answer goes to `reply`.
    SnapshotOffered {
        from_node: NodeId,
        shard: ShardId,
        message: Message,
        descriptor: ShardDescriptor,
        reply: tokio::sync::oneshot::Sender<Result<(), SnapshotRefusal>>,
    },
    /// Answer with the status of every group.
    Statuses(tokio::sync::oneshot::Sender<Vec<GroupStatus>>),
    /// Answer with the status of so many groups from a shard on.
    StatusesFrom {
        from: ShardId,
        most: usize,
        reply: tokio::sync::oneshot::Sender<Vec<GroupStatus>>,
    },
    /// Answer with what a replica's log holds after a position.
    LogAfter {
        shard: ShardId,
        replica: ReplicaId,
        position: LogPosition,
        reply: tokio::sync::oneshot::Sender<Result<LogTail, CantGoOn>>,
    },
    /// Groups that were held back take part, but for those of these shards, and replicas with ids below this one.
    Release(BTreeSet<ShardId>, ReplicaId),
    /// For the apply thread. By way of this one, so that it ends when this one does.
    ForApply(ApplyWork),
    /// End the thread.
    Stop,
}

/// Records on their way to the log thread.
pub(crate) struct LogBatch {
    pub(crate) number: u64,
    pub(crate) records: Vec<WalRecord>,
}

/// What leaves the process, for [`crate::peers::run`].
pub enum Outgoing {
    /// Messages for a peer.
    Messages {
        /// The peer.
        to: NodeId,
        /// In order.
        messages: Vec<PeerMessage>,
    },
    /// A snapshot for a peer.
    Snapshot {
        /// The shard.
        shard: ShardId,
        /// The peer.
        to_node: NodeId,
        /// The message that it goes with.
        message: Message,
    },
}

pub(crate) struct Replicator {
    pub(crate) host: Host<Ticket>,
    pub(crate) events: Receiver<Event>,
    pub(crate) to_log: Sender<LogBatch>,
    pub(crate) to_apply: Sender<ApplyWork>,
    pub(crate) to_network: tokio::sync::mpsc::UnboundedSender<Outgoing>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tick: Duration,
    pub(crate) waiting_batch: LogBatch,
    pub(crate) log_busy: bool,
    pub(crate) offers: HashMap<u64, tokio::sync::oneshot::Sender<Result<(), SnapshotRefusal>>>,
    pub(crate) next_offer: u64,
    /// Groups that don't take part yet.
    pub(crate) held: BTreeMap<ShardId, RecoveredGroup>,
    /// What waits for them.
    pub(crate) later: Vec<Input<Ticket>>,
}

impl Replicator {
    pub(crate) fn run(mut self) {
        let mut next_tick = Instant::now() + self.tick;
        loop {
            let first = match self.events.receive(Some(next_tick)) {
                Ok(event) => Some(event),
                Err(Nothing::Yet) => None,
                Err(Nothing::Ever) => return,
            };
            if self.take_events(first).is_break() {
                return;
            }
            // Messages first, then the tick: a thread that was starved hears its leader before it
            // counts the silence. Late ticks are dropped.
            let now = Instant::now();
            if now >= next_tick {
                self.host.step(clock::now(), Input::Tick);
                self.shared.metrics.replicas_hibernating.set(self.host.hibernating() as i64);
                next_tick = (next_tick + self.tick).max(now);
                self.tell_wary();
            }
            let effects = self.host.drain(clock::now());
            for effect in effects {
                self.route(effect);
            }
            self.feed_log();
            self.shared.apply_wanted.store(self.host.awaits_apply(), Ordering::SeqCst);
        }
    }

    fn tell_wary(&self) {
        let wary = self.host.is_wary();
        if !self.shared.log_health.set_wary(wary) {
            return;
        }
        self.shared.metrics.log_stalled.set(i64::from(wary));
        if wary {
            tracing::warn!("the log can't be synced: handing leadership to other nodes");
        } else {
            tracing::info!("the log can be synced again");
        }
    }

    fn take_events(&mut self, first: Option<Event>) -> std::ops::ControlFlow<()> {
        let mut next = first;
        let mut taken = 0;
        while let Some(event) = next {
            self.take(event)?;
            taken += 1;
            next = if taken < EVENTS_PER_ROUND { self.events.try_receive() } else { None };
        }
        std::ops::ControlFlow::Continue(())
    }

    fn take(&mut self, event: Event) -> std::ops::ControlFlow<()> {
        let now = clock::now();
        match event {
            Event::Submitted(input) => {
                self.shared.submitted.fetch_sub(1, Ordering::Relaxed);
                match input {
                    Input::Propose { .. } => self.shared.metrics.proposals.inc(),
                    Input::Read { .. } => self.shared.metrics.reads.inc(),
                    _ => 0,
                };
                self.host.step(now, input);
            }
            Event::Internal(input) => {
                match input {
                    // A child of a split that is made only now: its parent comes first.
                    Input::Split { .. } if !self.held.is_empty() => self.later.push(input),
                    Input::Persisted(_) => {
                        self.log_busy = false;
                        self.host.step(now, input);
                    }
                    _ => self.host.step(now, input),
                }
            }
            Event::FromPeer { from_node, wall_ms, messages } => {
                if wall_ms > 0 {
                    self.host.step(now, Input::PeerClock { from_node, wall_ms });
                }
                self.shared.peer_frames.fetch_sub(1, Ordering::Relaxed);
                self.shared.metrics.peer_messages_received.inc_by(messages.len() as u64);
                for message in messages {
                    if !self.held.contains_key(&message.shard) {
                        self.host.step(now, Input::Message { from_node, message });
                    }
                }
            }
            Event::SnapshotOffered { shard, reply, .. } if self.held.contains_key(&shard) => {
                let _ = reply.send(Err(SnapshotRefusal::Busy));
            }
            Event::SnapshotOffered { from_node, shard, message, descriptor, reply } => {
                let offer = self.next_offer;
                self.next_offer += 1;
                self.offers.insert(offer, reply);
                let input = Input::SnapshotOffered { from_node, shard, message, descriptor, offer };
                self.host.step(now, input);
            }
            Event::Statuses(reply) => {
                let _ = reply.send(self.host.statuses().collect());
            }
            Event::StatusesFrom { from, most, reply } => {
                let _ = reply.send(self.host.statuses_from(from, most).collect());
            }
            Event::LogAfter { shard, replica, position, reply } => {
                let _ = reply.send(self.host.log_after(shard, replica, position));
            }
            Event::Release(but, least) => {
                self.host.silence_below(least);
                self.release(&but);
            }
            Event::ForApply(work) => self.to_apply_thread(work),
            Event::Stop => return std::ops::ControlFlow::Break(()),
        }
        std::ops::ControlFlow::Continue(())
    }

    fn release(&mut self, but: &BTreeSet<ShardId>) {
        let now = clock::now();
        for (shard, group) in std::mem::take(&mut self.held) {
            match but.contains(&shard) {
                true => _ = self.held.insert(shard, group),
                false => self.host.recover(now, group),
            }
        }
        if self.held.is_empty() {
            for input in std::mem::take(&mut self.later) {
                self.host.step(now, input);
            }
        }
    }

    fn route(&mut self, effect: Effect<Ticket>) {
        match effect {
            Effect::Persist(PersistBatch { number, records }) => {
                self.waiting_batch.number = number;
                self.waiting_batch.records.extend(records);
            }
            Effect::Send { to, messages } => {
                self.shared.metrics.peer_messages_sent.inc_by(messages.len() as u64);
                self.send(Outgoing::Messages { to, messages });
            }
            Effect::StreamSnapshot { shard, to_node, message } => {
                self.send(Outgoing::Snapshot { shard, to_node, message });
            }
            Effect::Apply(task) => self.apply(task),
            Effect::ReadReady { shard, tickets } => {
                self.shared.changes.count_reads(shard, tickets.len());
                for ticket in tickets {
                    ticket.reply(Outcome::ReadReady);
                }
            }
            Effect::Refused { shard: _, ticket, why } => {
                self.shared.metrics.rejected(why);
                ticket.reply(Outcome::Rejected(why));
            }
            Effect::RoleChanged(status) => self.role_changed(&status),
            Effect::Settled { shard, replica, term, membership_epoch } => {
                let settled = Some((term, membership_epoch));
                self.shared.views.update(shard, replica, |view| view.settled = settled);
                self.shared.role_version.send_modify(|version| *version += 1);
            }
            Effect::TakeSnapshot { shard, to } => {
                self.to_apply_thread(ApplyWork::TakeSnapshot { shard, to });
            }
            Effect::SnapshotAnswer { offer, answer } => {
                if let Some(reply) = self.offers.remove(&offer) {
                    let _ = reply.send(answer);
                }
            }
            Effect::DropVolume(volume) => self.to_apply_thread(ApplyWork::DropVolume(volume)),
            Effect::PromiseLost(lost) => stop_for_good(&lost.to_string()),
        }
    }

    fn send(&self, outgoing: Outgoing) {
        // Fails only while the process stops.
        let _ = self.to_network.send(outgoing);
    }

    fn apply(&self, task: ApplyTask<Ticket>) {
        self.to_apply_thread(ApplyWork::Task(task));
    }

    fn to_apply_thread(&self, work: ApplyWork) {
        self.to_apply.send(work);
    }

    fn role_changed(&self, status: &GroupStatus) {
        let is_leader = status.role == ReplicaRole::Leader;
        let led = self.shared.views.get(status.shard).is_some_and(|view| view.is_leader);
        self.shared.metrics.role_changes.inc();
        if is_leader && !led {
            self.shared.metrics.elections_won.inc();
        }
        let (shard, term) = (status.shard.0, status.term.0);
        match (led, is_leader) {
            (false, true) => tracing::info!(shard, term, "became leader"),
            (true, false) => tracing::info!(shard, term, "no longer leader"),
            _ => tracing::debug!(
                shard,
                term,
                replica = status.replica.0,
                leader = status.leader.map(|node| node.0),
                "role changed"
            ),
        }
        self.shared.views.update(status.shard, status.replica, |view| {
            view.is_leader = is_leader;
            view.term = status.term;
            view.leader = status.leader;
            if let Some(permit) = self.host.permit(status.shard, status.replica) {
                view.permit = Arc::clone(permit);
            }
            if let Some(time) = self.host.shard_time(status.shard, status.replica) {
                view.time = Arc::clone(time);
            }
        });
        self.shared.role_version.send_modify(|version| *version += 1);
    }

    fn feed_log(&mut self) {
        if self.log_busy || self.waiting_batch.records.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.waiting_batch.records);
        let batch = LogBatch { number: self.waiting_batch.number, records };
        self.log_busy = true;
        self.to_log.send(batch);
    }
}
