//! How time passes: events in, effects out.

use super::checks::assert_durable;
use super::machine::{State, words_in};
use super::network::describe;
use super::{Event, Offer, Outcome, Question, World};
use kvdb_model::task::is_removed;
use kvdb_model::{MembershipEpoch, Replica, ReplicaId, ShardId, WalRecord};
use kvdb_replication::{
    ApplyTask, CommittedEntry, Effect, GroupStatus, Input, PeerMessage, PersistBatch, Rejection,
    ReplicaRole,
};

/// How long a sender takes to notice that a snapshot didn't arrive.
const SNAPSHOT_TIMEOUT_US: u64 = 20_000;

impl World {
    pub fn run_ms(&mut self, ms: u64) {
        let end_us = self.now_us + ms * 1000;
        while let Some(((at_us, _), event)) = self.next_event_before(end_us) {
            self.now_us = at_us;
            self.happen(event);
        }
        self.now_us = end_us;
    }

    /// Lets time pass until something is so.
    pub fn run_until(&mut self, what: &str, limit_ms: u64, so: impl Fn(&World) -> bool) {
        for _ in 0..limit_ms {
            if so(self) {
                return;
            }
            self.run_ms(1);
        }
        let hosts = self.nodes.values().filter_map(|node| node.host.as_ref());
        let statuses: Vec<GroupStatus> = hosts.flat_map(|host| host.statuses()).collect();
        panic!("not within {limit_ms} ms: {what}\n{}{statuses:#?}", self.trace());
    }

    fn next_event_before(&mut self, end_us: u64) -> Option<((u64, u64), Event)> {
        let first = self.events.first_entry()?;
        (first.key().0 <= end_us).then(|| first.remove_entry())
    }

    fn lives(&self, node: u64, life: u64) -> bool {
        self.nodes[&node].life == life && self.nodes[&node].host.is_some()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { node, life } if self.lives(node, life) => {
                let tick_us = self.config.tick_ms * 1000;
                self.schedule(tick_us, Event::Tick { node, life });
                if !self.nodes[&node].paused {
                    self.bury_removed(node);
                    self.feed(node, Input::Tick);
                }
            }
            Event::Deliver { from, to, message } if self.nodes[&to].host.is_some() => {
                let from_node = kvdb_model::NodeId(from);
                self.feed(to, Input::Message { from_node, message });
            }
            Event::Synced { node, life } if self.lives(node, life) => {
                let batch = self.nodes.get_mut(&node).unwrap().disk.finish_sync();
                self.feed(node, Input::Persisted(batch));
            }
            Event::ApplyNext { node, life } if self.lives(node, life) => {
                if self.nodes[&node].paused {
                    self.schedule(1000, Event::ApplyNext { node, life });
                    return;
                }
                self.nodes.get_mut(&node).unwrap().applying = false;
                let task = self.nodes.get_mut(&node).unwrap().tasks.pop_front();
                if let Some(task) = task {
                    self.carry_out(node, task);
                }
                self.settle(node);
            }
            Event::Local { node, life, input } if self.lives(node, life) => self.feed(node, input),
            Event::Offer(offer) => self.arrive(*offer),
            // It concerns a node that has stopped since.
            _ => {}
        }
    }

    /// Gives a node an input, and carries out what follows.
    pub fn feed(&mut self, id: u64, input: Input<u64>) {
        self.feed_all(id, vec![input]);
    }

    /// Inputs that come in together.
    pub fn feed_all(&mut self, id: u64, inputs: Vec<Input<u64>>) {
        let node = self.nodes.get_mut(&id).unwrap();
        let now = node.now(self.now_us);
        let Some(host) = &mut node.host else {
            for input in inputs {
                if let Input::Propose { ticket, .. }
                | Input::Read { ticket, .. }
                | Input::ChangeMembership { ticket, .. } = input
                {
                    self.asked[ticket as usize].outcome = Some(Outcome::Lost);
                }
            }
            return;
        };
        if node.paused {
            node.inbox.extend(inputs);
            return;
        }
        for input in inputs {
            host.step(now, input);
        }
        self.settle(id);
    }

    /// Carries out what a node wants done.
    pub fn settle(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        let now = node.now(self.now_us);
        let Some(host) = node.host.as_mut().filter(|_| !node.paused) else { return };
        for effect in host.drain(now) {
            if let Effect::PromiseLost(lost) = effect {
                self.lost_promises.push(lost);
                return self.crash(id);
            }
            self.carry_out_effect(id, effect);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life;
        let syncs = node.disk.start_sync();
        let applies = !node.applying && !node.apply_held && !node.tasks.is_empty();
        node.applying |= applies;
        if syncs {
            self.schedule(self.disk_us, Event::Synced { node: id, life });
        }
        if applies {
            self.schedule(self.apply_us, Event::ApplyNext { node: id, life });
        }
    }

    fn carry_out_effect(&mut self, id: u64, effect: Effect<u64>) {
        match effect {
            Effect::Persist(batch) => self.persist(id, batch),
            Effect::Send { to, messages } => {
                for message in messages {
                    self.send(id, to.0, message);
                }
            }
            Effect::Apply(task) => self.nodes.get_mut(&id).unwrap().tasks.push_back(task),
            Effect::ReadReady { shard, tickets } => {
                for ticket in tickets {
                    self.serve(id, shard, ticket);
                }
            }
            Effect::Refused { shard: _, ticket, why } => self.refuse(id, ticket, why),
            Effect::RoleChanged(status) => self.role_changed(id, &status),
            Effect::Settled { shard, membership_epoch, .. } => {
                self.members_settled(id, shard, membership_epoch);
            }
            Effect::TakeSnapshot { shard, to } => self.take_snapshot(id, shard, to),
            Effect::StreamSnapshot { shard, to_node, message } => {
                self.stream(id, shard, to_node.0, message);
            }
            Effect::SnapshotAnswer { offer, answer } => {
                let offered = self.offers.remove(&offer).expect("an offer is answered once");
                match answer {
                    Ok(()) => self.ingest(offered),
                    Err(why) => {
                        self.tell(format!("n{id} refuses a snapshot: {why:?}"));
                        self.snapshot_refusals.push(why);
                        self.report_snapshot(&offered, false, 0);
                    }
                }
            }
            Effect::DropVolume(volume) => {
                self.nodes.get_mut(&id).unwrap().volumes.drop(volume);
            }
            Effect::PromiseLost(_) => unreachable!("the node has stopped"),
        }
    }

    fn role_changed(&mut self, id: u64, status: &GroupStatus) {
        let (shard, term) = (status.shard, status.term);
        if status.role == ReplicaRole::Leader {
            self.checks.leads(shard, term, status.replica);
        }
        let role = match (status.role, status.leader) {
            (ReplicaRole::Leader, _) => "leads".to_owned(),
            (ReplicaRole::Follower, Some(leader)) => format!("follows n{leader}"),
            (ReplicaRole::Follower, None) => "follows nobody".to_owned(),
        };
        self.tell(format!("n{id} {role} in term {term}"));
    }

    // ---- members ------------------------------------------------------------------------

    fn members_settled(&mut self, id: u64, shard: ShardId, epoch: MembershipEpoch) {
        let descriptor = self.nodes[&id].host.as_ref().unwrap().status(shard).unwrap().descriptor;
        let descriptor = descriptor.expect("a leader knows its members");
        assert_eq!(descriptor.membership_epoch, epoch);
        let durable = |replica: &Replica| {
            self.nodes[&replica.node_id.0].disk.durable.replicas.get(&replica.replica_id)
        };
        self.checks.settled(&descriptor, durable);
        self.settled.insert(shard, descriptor);
    }

    /// A replica goes when its node hears that it isn't a member.
    fn bury_removed(&mut self, id: u64) {
        let Some(host) = self.nodes[&id].host.as_ref().filter(|_| self.control_plane_tells) else {
            return;
        };
        let removed: Vec<(ShardId, ReplicaId)> = host
            .statuses()
            .filter(|status| {
                let known = self.settled.get(&status.shard);
                known
                    .zip(status.descriptor.as_ref())
                    .is_some_and(|(settled, knows)| is_removed(status.replica, knows, settled))
            })
            .map(|status| (status.shard, status.replica))
            .collect();
        for (shard, replica) in removed {
            self.feed(id, Input::Destroy { shard, replica });
        }
    }

    // ---- disk and network ---------------------------------------------------------------

    fn persist(&mut self, id: u64, batch: PersistBatch) {
        let disk = &mut self.nodes.get_mut(&id).unwrap().disk;
        for record in &batch.records {
            disk.written.take_in(record);
            if let WalRecord::Append { replica, entries } = record {
                self.checks.written(&disk.written, *replica, entries);
            }
        }
        disk.queue(batch);
    }

    fn send(&mut self, from: u64, to: u64, message: PeerMessage) {
        let disk = &self.nodes[&from].disk;
        assert_durable(&disk.durable, &disk.written, &message.message);
        let delays = self.network.delays_of(&mut self.rng, from, to, &message);
        if self.tell_messages {
            let fate = if delays.is_empty() { "  (lost)" } else { "" };
            self.tell(format!("n{from} > n{to}: {}{fate}", describe(&message.message)));
        }
        for delay_us in delays {
            let message = message.clone();
            self.schedule(delay_us, Event::Deliver { from, to, message });
        }
    }

    // ---- snapshots ----------------------------------------------------------------------

    fn take_snapshot(&mut self, id: u64, shard: ShardId, to: ReplicaId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let life = node.life;
        let state = node.state(shard).expect("a leader has state").clone();
        let (position, descriptor) = (state.applied, state.descriptor.clone());
        node.taken.insert((shard, to), state);
        let input = Input::SnapshotTaken { shard, to, position, descriptor };
        self.tell(format!("n{id} takes a snapshot at {} for r{to}", position.index));
        self.schedule(300, Event::Local { node: id, life, input });
    }

    fn stream(
        &mut self,
        from: u64,
        shard: ShardId,
        to: u64,
        message: kvdb_replication::message::Message,
    ) {
        let node = &self.nodes[&from];
        let state = node.taken[&(shard, ReplicaId(message.to))].clone();
        assert_eq!(state.applied.index.0, message.get_snapshot().get_metadata().index);
        let offer = Offer { from, life: node.life, to, shard, message, state };
        self.snapshots_sent += 1;
        self.last_offer = Some(offer.clone());
        self.schedule(1000, Event::Offer(Box::new(offer)));
    }

    fn arrive(&mut self, offer: Offer) {
        let there = &self.nodes[&offer.to];
        if there.host.is_none() || there.paused || !self.network.connects(offer.from, offer.to) {
            self.report_snapshot(&offer, false, SNAPSHOT_TIMEOUT_US);
            return;
        }
        self.next_event += 1;
        let name = self.next_event;
        self.offers.insert(name, offer.clone());
        let input = Input::SnapshotOffered {
            from_node: kvdb_model::NodeId(offer.from),
            shard: offer.shard,
            message: offer.message,
            descriptor: offer.state.descriptor,
            offer: name,
        };
        self.feed(offer.to, input);
    }

    fn ingest(&mut self, offer: Offer) {
        self.tell(format!("n{} ingests a snapshot at {}", offer.to, offer.state.applied.index));
        let node = self.nodes.get_mut(&offer.to).unwrap();
        let volume = node.volumes.ingest(offer.state.clone());
        let life = node.life;
        let input = Input::SnapshotIngested {
            from_node: kvdb_model::NodeId(offer.from),
            shard: offer.shard,
            message: offer.message.clone(),
            descriptor: offer.state.descriptor.clone(),
            time: offer.state.time(),
            volume,
        };
        self.schedule(500, Event::Local { node: offer.to, life, input });
        self.report_snapshot(&offer, true, 5000);
    }

    fn report_snapshot(&mut self, offer: &Offer, delivered: bool, after_us: u64) {
        let to = ReplicaId(offer.message.to);
        let input = Input::SnapshotSent { shard: offer.shard, to, delivered };
        self.schedule(after_us, Event::Local { node: offer.from, life: offer.life, input });
    }

    // ---- applying -----------------------------------------------------------------------

    fn carry_out(&mut self, id: u64, task: ApplyTask<u64>) {
        let node = self.nodes.get_mut(&id).unwrap();
        match task {
            ApplyTask::Open { shard, replica, volume, birth, start } => {
                // One that goes on from a copy has its state already.
                let born = || State::born(&birth, start);
                node.volumes.memory.entry(volume).or_insert_with(born);
                node.homes.insert(shard, (replica, volume));
            }
            ApplyTask::Entries { shard, replica, entries } => {
                self.apply(id, shard, replica, entries);
            }
            ApplyTask::Switch { shard, replica, volume, position, old } => {
                old.into_iter().for_each(|old| node.volumes.drop(old));
                node.homes.insert(shard, (replica, volume));
                self.feed(id, Input::Applied { shard, replica, position, membership: Vec::new() });
            }
            ApplyTask::Close { shard, replica, volume } => {
                if node.homes.get(&shard).is_some_and(|(here, _)| *here == replica) {
                    node.homes.remove(&shard);
                }
                volume.into_iter().for_each(|volume| node.volumes.drop(volume));
                self.tell(format!("n{id} destroys r{replica}"));
            }
        }
    }

    fn apply(
        &mut self,
        id: u64,
        shard: ShardId,
        replica: ReplicaId,
        entries: Vec<CommittedEntry<u64>>,
    ) {
        let mut membership = Vec::new();
        let mut answers = Vec::new();
        let state = self.nodes.get_mut(&id).unwrap().state_mut(shard).expect("it is open");
        for CommittedEntry { entry, tickets } in entries {
            self.checks.applied(shard, &entry);
            let change = state.apply(&entry);
            let changed = change.as_ref().map(|outcome| outcome.descriptor.is_some());
            assert!(
                tickets.is_empty() || changed.is_some() || tickets.len() == words_in(&entry).len()
            );
            answers.extend(tickets.into_iter().map(|ticket| (ticket, entry.index.0, changed)));
            if let Some(after) = change.as_ref().and_then(|change| change.descriptor.as_ref()) {
                self.checks.members_changed(after, entry.index);
            }
            membership.extend(change);
        }
        let position = state.applied;
        let host = self.nodes[&id].host.as_ref();
        if let Some(permit) = host.and_then(|host| host.permit(shard, replica)) {
            permit.applied(position.index);
        }
        for (ticket, index, changed) in answers {
            match changed {
                Some(accepted) => self.answer(ticket, Outcome::Changed(accepted)),
                None => {
                    self.checks.learned(shard, index);
                    self.answer(ticket, Outcome::Written(index));
                }
            }
        }
        self.feed(id, Input::Applied { shard, replica, position, membership });
    }

    // ---- answers ------------------------------------------------------------------------

    pub(super) fn serve(&mut self, id: u64, shard: ShardId, ticket: u64) {
        let state = self.nodes[&id].state(shard).expect("a leader has state");
        let (words, last_write) = (state.words.clone(), state.last_write);
        let Question::Read(known) = self.asked[ticket as usize].question else {
            panic!("a read that nobody asked for")
        };
        assert!(
            last_write >= known,
            "a stale read on n{id}: it shows {last_write}, and {known} was known\n{}",
            self.trace()
        );
        self.checks.learned(shard, last_write);
        self.answer(ticket, Outcome::Read(words));
    }

    fn refuse(&mut self, id: u64, ticket: u64, why: Rejection) {
        let asked = &self.asked[ticket as usize];
        assert_eq!(asked.node, id);
        if let Question::Write(word) = &asked.question
            && why != Rejection::OutcomeUnknown
        {
            let word = word.clone();
            assert!(
                self.checks.deny(&word),
                "n{id} refuses {word} ({why:?}), and it was applied\n{}",
                self.trace()
            );
        }
        self.answer(ticket, Outcome::Refused(why));
    }

    fn answer(&mut self, ticket: u64, outcome: Outcome) {
        let asked = &self.asked[ticket as usize];
        let what = match &asked.question {
            Question::Write(word) => format!("write {word}"),
            Question::Read(_) => "read".to_owned(),
            Question::Change => "change of members".to_owned(),
        };
        assert_eq!(asked.outcome, None, "ticket {ticket} ({what}) is answered twice");
        let told = match &outcome {
            Outcome::Read(words) => format!("[{}]", words.join(" ")),
            Outcome::Written(index) => format!("applied at {index}"),
            Outcome::Changed(true) => "done".to_owned(),
            Outcome::Changed(false) => "refused by the shard".to_owned(),
            Outcome::Refused(why) => format!("{why:?}"),
            Outcome::Lost => unreachable!("only crashes lose tickets"),
        };
        self.tell(format!("n{}: {what}: {told}", self.asked[ticket as usize].node));
        self.asked[ticket as usize].outcome = Some(outcome);
    }
}
