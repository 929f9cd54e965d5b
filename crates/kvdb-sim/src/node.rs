//! What processes say to each other, and what nodes and coordinators do of their own accord.

use crate::membership::GREET_US;
use crate::network::Place;
use crate::packet::{Ask, Call, Packet, Reply};
use crate::process::Ticket;
use crate::world::{COORDINATORS, Event, NODES, PROCESSES, SHARDS, World};
use bytes::Bytes;
use kvdb_control::{
    ControlCommand, LedShard, Liveness, Observed, OperatorRequest, Planner, PlannerConfig,
};
use kvdb_engine::Engine;
use kvdb_model::task::is_removed;
use kvdb_model::{
    ClusterId, EntryCommand, HistoryLimits, HistoryPolicy, NodeId, ReplicaId, ShardDescriptor,
    ShardId, ShardMap, ShardRecord, ShardTask, Step, Work, next_step,
};
use kvdb_replication::Input;
use kvdb_store::{GarbagePage, MembershipChange, View};

/// Elements that are freed in one entry: fewer than a large hash has.
const GARBAGE_AT_ONCE: usize = 50;

const HEARTBEAT_US: u64 = 500_000;
const DUTY_US: u64 = 250_000;
/// No more shards than this are made by splits.
const MOST_SHARDS: usize = 10;

/// The address of a place, as the map holds it.
pub(crate) fn address_of(place: Place) -> String {
    format!("node-{place}:7200")
}

/// The place at an address.
pub(crate) fn place_at(address: &str) -> Option<Place> {
    let place: Place = address.strip_prefix("node-")?.strip_suffix(":7200")?.parse().ok()?;
    (place < PROCESSES).then_some(place)
}

impl World {
    /// A new node that runs, but must register before it can do anything.
    pub(crate) fn waits_for_id(&self, place: Place) -> bool {
        self.processes[place].node_id.is_none()
    }

    pub(crate) fn create_replica(
        &mut self,
        place: Place,
        descriptor: ShardDescriptor,
        campaign: bool,
    ) {
        let engine = self.processes[place].engine.clone();
        let Some(core) = &mut self.processes[place].core else { return };
        let volume = core.fresh_volume();
        if let Err(error) = engine.create_volume(volume) {
            self.checks.violations.push(error.to_string());
        }
        self.feed(place, Input::Create { descriptor, volume, campaign });
    }

    pub(crate) fn hear(&mut self, from: Place, place: Place, packet: Packet) {
        match packet {
            Packet::Raft { from, to, wall_ms, messages } if self.takes_part(place, to) => {
                self.hear_raft(from, place, wall_ms, messages);
            }
            Packet::Snapshot(snapshot) if self.takes_part(place, snapshot.to_node) => {
                let Some(core) = &mut self.processes[place].core else { return };
                let offer = core.next_offer;
                core.next_offer += 1;
                let (from_node, shard) = (snapshot.from_node, snapshot.shard);
                let message = snapshot.message.clone();
                let descriptor = snapshot.descriptor.clone();
                core.offers.insert(offer, (from, *snapshot));
                let input = Input::SnapshotOffered { from_node, shard, message, descriptor, offer };
                self.feed(place, input);
            }
            Packet::SnapshotAnswer { transfer, delivered } => {
                self.transferred(place, transfer, delivered);
            }
            Packet::Ask { attempt, shard, ask } => self.hear_ask(from, place, attempt, shard, ask),
            Packet::Call(call) => self.hear_call(from, place, call),
            Packet::Reply(reply) => self.hear_reply(place, reply),
            Packet::Raft { .. } | Packet::Snapshot(_) | Packet::Answer { .. } => {}
        }
    }

    /// Whether it is this process that is meant, and it may hear the others.
    fn takes_part(&self, place: Place, to: NodeId) -> bool {
        let process = &self.processes[place];
        let admitted = process.core.as_ref().is_some_and(|core| core.admitted);
        process.node_id == Some(to) && (admitted || !process.is_coordinator)
    }

    fn hear_raft(
        &mut self,
        from_node: NodeId,
        place: Place,
        wall_ms: u64,
        messages: Vec<kvdb_replication::PeerMessage>,
    ) {
        let now = self.processes[place].now(self.now_us);
        let Some(core) = &mut self.processes[place].core else { return };
        core.host.step(now, Input::PeerClock { from_node, wall_ms });
        for message in messages {
            core.host.step(now, Input::Message { from_node, message });
        }
        self.settle(place);
    }

    fn hear_ask(&mut self, from: Place, place: Place, attempt: u64, shard: ShardId, ask: Ask) {
        let ticket = Ticket::Ask { client: from, attempt, ask: ask.clone() };
        let input = match ask {
            // Every other one asks the host even so.
            Ask::Get { .. } if attempt.is_multiple_of(2) && self.may_read_now(place, shard) => {
                return self.serve_read(place, shard, ticket);
            }
            Ask::Get { .. } => Input::Read { shard, ticket },
            Ask::Write(write) => {
                let times = self.shard_times(place, shard);
                let leads =
                    self.processes[place].core.as_ref().is_some_and(|core| core.leads(shard));
                // As a node does, before anything is proposed.
                if let Some(tag) = write.request.as_ref().filter(|_| leads && times.time_ms > 0)
                    && let Err(refusal) = kvdb_store::check_request(tag, times)
                {
                    return self.answer_client(place, from, attempt, shard, Err(refusal));
                }
                let command = EntryCommand::Write(write);
                let version_count = command.version_count();
                Input::Propose { shard, command: command.to_bytes(), version_count, ticket }
            }
        };
        self.feed(place, input);
    }

    /// As the threads of a node's network find out.
    fn may_read_now(&self, place: Place, shard: ShardId) -> bool {
        let process = &self.processes[place];
        let now_us = process.now(self.now_us).boot_us;
        process.core.as_ref().is_some_and(|core| {
            let open = core.shards.get(&shard);
            let permit = open.and_then(|open| core.host.permit(shard, open.replica()));
            permit.is_some_and(|permit| permit.covers(now_us))
        })
    }

    // ---- coordinators -------------------------------------------------------------------

    fn hear_call(&mut self, from: Place, place: Place, call: Call) {
        if let Call::Greet { round, id, token } = call {
            return self.hear_greeting(from, place, round, (id, token));
        }
        let boot_us = self.processes[place].now(self.now_us).boot_us;
        let Some(core) = &mut self.processes[place].core else { return };
        if !core.leads(ShardId::CONTROL) {
            return self.send(place, from, Packet::Reply(Reply::NotLeader));
        }
        match call {
            Call::Greet { .. } => {}
            Call::Register { token, address } => {
                let command = ControlCommand::RegisterNode { token, address, zone: String::new() };
                self.propose_control(place, &command, Ticket::Register { caller: from });
            }
            Call::Heartbeat { round, node, led, impossible, wall_ms } => {
                core.impossible.extend(impossible);
                core.clock.heard(node, wall_ms, boot_us);
                self.hear_heartbeat(from, place, (node, round), led);
            }
            Call::Map { since } => {
                let news = core.control.with(|view| view.since(since));
                self.send(place, from, Packet::Reply(Reply::Map(news)));
            }
        }
    }

    fn hear_heartbeat(
        &mut self,
        caller: Place,
        place: Place,
        (node, round): (NodeId, u64),
        led: Vec<LedShard>,
    ) {
        let now_ms = self.processes[place].now(self.now_us).boot_us / 1000;
        self.liveness[place].heard(node, now_ms);
        let Some(core) = &self.processes[place].core else { return };
        let report = ControlCommand::ReportShards { node, led };
        let tells = core.control.with(|view| view.state.clone().apply(&report).delta.is_some());
        if tells {
            self.propose_control(place, &report, Ticket::Nobody);
        }
        let ticket = Ticket::Heartbeat { caller, node, round };
        self.feed(place, Input::Read { shard: ShardId::CONTROL, ticket });
    }

    /// What is wanted of a node, by a coordinator that was the leader since it was asked.
    pub(crate) fn answer_heartbeat(
        &mut self,
        place: Place,
        caller: Place,
        node: NodeId,
        round: u64,
    ) {
        let Some(core) = &self.processes[place].core else { return };
        let boot_us = self.processes[place].now(self.now_us).boot_us;
        let cluster_ms = core.clock.now_ms(boot_us).unwrap_or_default();
        let (wanted, tasks) = core.control.with(|view| {
            let state = &view.state;
            let is_led_there = |shard: &ShardId| {
                state.map().shards.get(shard).is_some_and(|record| record.leader == Some(node))
            };
            let wanted = state.wanted_leaders().iter().filter(|(shard, _)| is_led_there(shard));
            let wanted: Vec<_> = wanted.map(|(shard, to)| (*shard, *to)).collect();
            (wanted, state.tasks_of(node))
        });
        self.send(place, caller, Packet::Reply(Reply::Heard { round, wanted, tasks, cluster_ms }));
    }

    pub(crate) fn propose_control(
        &mut self,
        place: Place,
        command: &ControlCommand,
        ticket: Ticket,
    ) {
        let command = EntryCommand::Control(command.to_bytes());
        let version_count = command.version_count();
        let input = Input::Propose {
            shard: ShardId::CONTROL,
            command: command.to_bytes(),
            version_count,
            ticket,
        };
        self.feed(place, input);
    }

    /// What a process does from time to time.
    pub(crate) fn duty(&mut self, place: Place) {
        let life = self.processes[place].life;
        if self.processes[place].is_coordinator {
            let admitted = self.processes[place].core.as_ref().is_some_and(|core| core.admitted);
            let after_us = if admitted { DUTY_US } else { GREET_US };
            self.schedule(after_us, Event::Duty { place, life });
            if !admitted || self.may_be_removed(place) {
                self.greet(place);
            }
            self.coordinate(place);
        } else {
            let after_us = if self.waits_for_id(place) { 100_000 } else { HEARTBEAT_US / 2 };
            self.schedule(after_us, Event::Duty { place, life });
            self.report(place);
            self.free_expired(place);
        }
    }

    /// Has leaders free what has expired.
    fn free_expired(&mut self, place: Place) {
        let Some(core) = &self.processes[place].core else { return };
        let mut expired = Vec::new();
        let mut garbage = Vec::new();
        for (shard, open) in core.shards.iter().filter(|(shard, _)| core.leads(**shard)) {
            let Ok(snapshot) = open.engine_snapshot() else { continue };
            let now_ms = self.shard_times(place, *shard).time_ms;
            let view = View::new(&*snapshot, open.replica());
            match view.as_ref().map(|view| view.garbage(GARBAGE_AT_ONCE)) {
                Ok(Ok(page)) => garbage.extend(page.map(|page| (*shard, page))),
                Ok(Err(error)) => self.checks.violations.push(error.to_string()),
                // The same is told below.
                Err(_) => {}
            }
            let page = view.and_then(|view| view.sweep(&Bytes::new(), now_ms, 1000));
            match page {
                Ok(page) => {
                    let keys = [page.expired, page.due].concat();
                    if !keys.is_empty() {
                        expired.push((*shard, keys));
                    }
                }
                Err(error) => self.checks.violations.push(error.to_string()),
            }
        }
        for (shard, GarbagePage { key, incarnation, end }) in garbage {
            *self.faults.entry("elements freed").or_default() += 1;
            let command = EntryCommand::Free { key, incarnation, end }.to_bytes();
            let ticket = Ticket::Nobody;
            self.feed(place, Input::Propose { shard, command, version_count: 1, ticket });
        }
        for (shard, keys) in expired {
            *self.faults.entry("expired keys freed").or_default() += 1;
            let (command, ticket) = (EntryCommand::Reclaim(keys).to_bytes(), Ticket::Nobody);
            self.feed(place, Input::Propose { shard, command, version_count: 1, ticket });
        }
    }

    fn coordinate(&mut self, place: Place) {
        let Some(core) = &mut self.processes[place].core else { return };
        let told = std::mem::take(&mut core.impossible);
        let Some(core) = &self.processes[place].core else { return };
        if !core.leads(ShardId::CONTROL) {
            self.liveness[place] = Liveness::default();
            return;
        }
        let map = core.control.with(|view| view.state.map().clone());
        let known_ms = self.look_at_clocks(place, &map);
        let Some(core) = &self.processes[place].core else { return };
        let now_ms = self.processes[place].now(self.now_us).boot_us / 1000;
        let mut commands = Vec::new();
        if !map.cluster_id.is_known() {
            let cluster_id = ClusterId(u128::from(self.dice.any()) + 1);
            commands.push(ControlCommand::Bootstrap { cluster_id });
        } else if map.nodes.len() >= PROCESSES - COORDINATORS && map.shards.is_empty() {
            commands.push(ControlCommand::InitShards { shards: SHARDS, replication_factor: 3 });
        }
        let judged = self.liveness[place].judge(&map, now_ms);
        let judged = judged.into_iter();
        commands
            .extend(judged.map(|(node, status)| ControlCommand::SetNodeStatus { node, status }));
        // What is under way isn't judged by a wall clock.
        let Some(cluster_ms) = known_ms else {
            for command in commands {
                self.propose_control(place, &command, Ticket::Nobody);
            }
            return;
        };
        let observed = Observed {
            now_ms: cluster_ms,
            silent_ms: self.liveness[place].silent_ms(now_ms),
            impossible: told.into_iter().map(|(id, why)| (id, why.to_owned())).collect(),
            ..Observed::default()
        };
        let rebalance = self.stormy;
        let config = PlannerConfig { repair_after_ms: 15_000, rebalance, ..Default::default() };
        let planner = Planner { config };
        commands.extend(core.control.with(|view| planner.plan(&view.state, &observed)));
        if self.stormy && !map.shards.is_empty() && self.dice.chance(400) {
            commands.extend(self.meddle(place, &map, observed.now_ms));
        }
        commands.extend(self.look_after_members(place));
        for command in commands {
            self.propose_control(place, &command, Ticket::Nobody);
        }
    }

    /// What time it is, as the leading coordinator makes it out.
    fn look_at_clocks(&mut self, place: Place, map: &ShardMap) -> Option<u64> {
        let now = self.processes[place].now(self.now_us);
        let core = self.processes[place].core.as_mut()?;
        // As a coordinator does, who catches up first: it may not know its nodes yet.
        let status = core.host.status(ShardId::CONTROL);
        if status.is_none_or(|status| status.applied != status.last_index) {
            return core.clock.now_ms(now.boot_us);
        }
        let logged = core.shards.get(&ShardId::CONTROL).map(|open| open.last_version().millis());
        core.clock.keep_only(|node| map.nodes.contains_key(&node));
        let logged_ms = logged.unwrap_or_default();
        core.clock.look_as_leader(map.nodes.len(), now.wall_ms, logged_ms, now.boot_us);
        let cluster_ms = core.clock.now_ms(now.boot_us);
        if let Some(cluster_ms) = cluster_ms {
            self.feed(place, Input::ClusterTime(cluster_ms));
        }
        cluster_ms
    }

    /// An operator who is never content.
    fn meddle(&mut self, place: Place, map: &ShardMap, now_ms: u64) -> Option<ControlCommand> {
        let shards: Vec<ShardId> = map.shards.keys().copied().collect();
        let shard = shards[self.dice.below(shards.len() as u64) as usize];
        let node = |dice: &mut crate::dice::Dice| NodeId(dice.between(1, NODES as u64 + 1));
        let request = match self.dice.below(12) {
            0..=2 => {
                let node = node(&mut self.dice);
                *self.faults.entry("leader wanted elsewhere").or_default() += 1;
                return Some(ControlCommand::SetShardLeader { shard, node });
            }
            3..=4 => {
                let (from, to) = (node(&mut self.dice), node(&mut self.dice));
                OperatorRequest::Move { shard, from, to }
            }
            5 if shards.len() < MOST_SHARDS => OperatorRequest::Split { shard, at: None },
            6..=7 if shards.len() < MOST_SHARDS => self.split_at_counter(map)?,
            8 => {
                let but = self.dice.between(1, 2 * NODES as u64);
                let nodes = (1..=NODES as u64).filter(|node| *node != but).map(NodeId).collect();
                OperatorRequest::SetReplicas { shard, nodes, membership_epoch: None }
            }
            9 => OperatorRequest::Lead { shard, node: node(&mut self.dice) },
            10 => {
                let core = self.processes[place].core.as_ref()?;
                let id = core
                    .control
                    .with(|view| view.state.running().last().map(|operator| operator.id))?;
                *self.faults.entry("operator called off").or_default() += 1;
                return Some(ControlCommand::CancelOperator { id, now_ms });
            }
            _ => return None,
        };
        *self.faults.entry("operator").or_default() += 1;
        Some(ControlCommand::StartOperator {
            request,
            reason: "to see what happens".to_owned(),
            parent: None,
            now_ms,
            time_limit_ms: 10_000,
        })
    }

    /// A split that takes a counter to the child, with whatever is under way on it.
    fn split_at_counter(&mut self, map: &ShardMap) -> Option<OperatorRequest> {
        let key = crate::client::a_counter(&mut self.dice);
        let keyspace = map.keyspaces.values().next()?;
        let routing_key = keyspace.partitioning.routing_key(keyspace.keyspace_id, &key);
        let holds = |record: &&ShardRecord| record.descriptor.range.contains(&routing_key);
        let shard = map.shards.values().find(holds)?.descriptor.shard_id;
        Some(OperatorRequest::Split { shard, at: Some(key) })
    }

    // ---- nodes --------------------------------------------------------------------------

    /// The next step of each task, for shards that are led here.
    fn do_tasks(&mut self, place: Place) {
        let Some(core) = &self.processes[place].core else { return };
        let outdated = |task: &ShardTask| {
            core.shards.get(&task.shard).is_some_and(|open| task.is_outdated(open.descriptor()))
        };
        let asked: Vec<_> = core.asked.iter().filter(|task| !outdated(task)).cloned().collect();
        for task in asked {
            let impossible = self.do_step(place, task.shard, &task.work).err();
            if let Some(core) = &mut self.processes[place].core {
                core.impossible.extend(impossible.map(|why| (task.operator, why)));
            }
        }
    }

    /// The next step of some work on a shard, if it is led here.
    ///
    /// # Errors
    /// Why it can't be done any more.
    pub(crate) fn do_step(
        &mut self,
        place: Place,
        shard: ShardId,
        work: &Work,
    ) -> Result<(), &'static str> {
        let Some(core) = &self.processes[place].core else { return Ok(()) };
        let Some(open) = core.shards.get(&shard).filter(|_| core.leads(shard)) else {
            return Ok(());
        };
        let (descriptor, own) = (open.descriptor().clone(), open.replica());
        let status = core.host.status(shard);
        let caught_up =
            |replica| status.as_ref().is_some_and(|status| status.has_caught_up(replica));
        let ticket = Ticket::Nobody;
        let input = match next_step(work, &descriptor, own, &caught_up) {
            Step::Change(replicas) => {
                let expected = descriptor.membership_epoch;
                let change = MembershipChange { expected, replicas: replicas.clone() };
                let context = change.to_bytes(&descriptor);
                *self.faults.entry("membership step").or_default() += 1;
                Input::ChangeMembership { shard, replicas, context, ticket }
            }
            Step::HandOver(to) => Input::TransferLeader { shard, to: Some(to) },
            Step::Split(_) if self.answers_lost_first(place) => return Ok(()),
            Step::Split(plan) => {
                let command = EntryCommand::Split(plan);
                let version_count = command.version_count();
                Input::Propose { shard, command: command.to_bytes(), version_count, ticket }
            }
            Step::Done | Step::Wait(_) => return Ok(()),
            Step::Impossible(why) => return Err(why),
        };
        self.feed(place, input);
        Ok(())
    }

    /// Has shards that are led here keep histories of other bounds, or none, now and then.
    fn decide_histories(&mut self, place: Place) {
        let Some(core) = self.processes[place].core.as_ref().filter(|_| self.keeps_history) else {
            return;
        };
        let led = core.shards.iter().filter(|(shard, _)| core.leads(**shard));
        let led: Vec<_> =
            led.map(|(shard, open)| (*shard, open.history_policy().revision)).collect();
        for (shard, revision) in led {
            if revision > 0 && self.dice.below(16) > 0 {
                continue;
            }
            let limits = HistoryLimits {
                max_age_ms: self.dice.between(500, 20_000),
                max_bytes: self.dice.between(2_000, 100_000),
            };
            let is_on = revision == 0 || self.dice.below(4) > 0;
            let policy = HistoryPolicy { revision: revision + 1, limits: is_on.then_some(limits) };
            *self.faults.entry("history decided").or_default() += 1;
            let command = EntryCommand::History(policy).to_bytes();
            let ticket = Ticket::Nobody;
            self.feed(place, Input::Propose { shard, command, version_count: 1, ticket });
        }
    }

    /// Replicas that the map proves to be removed go.
    fn destroy_removed(&mut self, place: Place, map: &ShardMap) {
        let Some(core) = &self.processes[place].core else { return };
        // Also those whose engine is lost: nobody tells them that they are gone.
        let removed: Vec<(ShardId, ReplicaId)> = core
            .host
            .statuses()
            .filter(|group| {
                let record = map.shards.get(&group.shard);
                group.descriptor.as_ref().zip(record).is_some_and(|(knows, record)| {
                    is_removed(group.replica, knows, &record.descriptor)
                })
            })
            .map(|group| (group.shard, group.replica))
            .collect();
        for (shard, replica) in removed {
            self.feed(place, Input::Destroy { shard, replica });
        }
    }

    fn report(&mut self, place: Place) {
        let process = &mut self.processes[place];
        let (call, also) = match (process.node_id, &mut process.core) {
            (Some(node), Some(core)) => {
                let led = core.shards.iter().filter(|(shard, _)| core.is_settled(**shard)).map(
                    |(shard, open)| LedShard {
                        descriptor: open.descriptor().clone(),
                        term: core.standings.get(shard).copied().unwrap_or_default().term,
                    },
                );
                let led = led.collect();
                core.heartbeats += 1;
                let impossible = std::mem::take(&mut core.impossible);
                let now = process.clock.at(self.now_us);
                core.heartbeat_us = now.boot_us;
                let (round, wall_ms) = (core.heartbeats, now.wall_ms);
                let heartbeat = Call::Heartbeat { round, node, led, impossible, wall_ms };
                (heartbeat, Some(Call::Map { since: core.cache.version() }))
            }
            _ => (Call::Register { token: place as u128 + 1, address: address_of(place) }, None),
        };
        let favourite = self.favourite_of(place);
        self.send(place, favourite, Packet::Call(call));
        if let Some(also) = also {
            self.send(place, favourite, Packet::Call(also));
        }
    }

    /// The coordinator to ask: the one that answered, or the next.
    fn favourite_of(&mut self, place: Place) -> Place {
        let by_chance = self.dice.below(COORDINATORS as u64) as usize;
        let Some(core) = &mut self.processes[place].core else { return by_chance };
        if std::mem::replace(&mut core.unanswered, true) {
            core.favourite = (core.favourite + 1) % COORDINATORS;
        }
        core.favourite
    }

    fn hear_reply(&mut self, place: Place, reply: Reply) {
        if let Reply::Greeted { round, token, greeted } = reply {
            return self.hear_greeted(place, (round, token), greeted);
        }
        if let Reply::Registered(node) = reply {
            if self.processes[place].node_id.is_none() {
                self.processes[place].node_id = Some(node);
                self.boot_registered(place);
            }
            return;
        }
        let now = self.processes[place].now(self.now_us);
        let Some(core) = &mut self.processes[place].core else { return };
        match reply {
            Reply::Registered(_) | Reply::Greeted { .. } => {}
            Reply::NotLeader => core.unanswered = true,
            Reply::Heard { round, .. } if round != core.heartbeats => {}
            Reply::Heard { wanted, tasks, cluster_ms, .. } => {
                let took_us = now.boot_us.saturating_sub(core.heartbeat_us);
                if cluster_ms > 0 && took_us <= 200_000 {
                    let now_ms = cluster_ms + took_us / 2000;
                    core.host.step(now, Input::ClusterTime(now_ms));
                }
                core.unanswered = false;
                core.asked = tasks;
                self.do_tasks(place);
                self.decide_histories(place);
                for (shard, node) in wanted {
                    self.transfer(place, shard, node);
                }
            }
            Reply::Map(news) => {
                core.unanswered = false;
                let before = core.cache.version();
                crate::client::learn_news(&mut core.cache, news);
                let version = core.cache.version();
                let map = core.cache.map().clone();
                let process = &mut self.processes[place];
                // A file; its version must not keep a fresher map away after a restart.
                process.saved_map = ShardMap { version: Default::default(), ..map.clone() };
                let life = process.life;
                if version != before {
                    self.checks.sees_map(place, life, version);
                    self.create_new_replicas(place, &map);
                    self.destroy_removed(place, &map);
                }
            }
        }
    }

    fn boot_registered(&mut self, place: Place) {
        self.processes[place].core = None;
        self.boot(place);
    }

    pub(crate) fn transfer(&mut self, place: Place, shard: ShardId, node: NodeId) {
        let Some(core) = &self.processes[place].core else { return };
        let replica = core.shards.get(&shard).and_then(|open| open.descriptor().replica_on(node));
        if let Some(replica) = replica.map(|replica| replica.replica_id) {
            self.feed(place, Input::TransferLeader { shard, to: Some(replica) });
        }
    }

    fn create_new_replicas(&mut self, place: Place, map: &ShardMap) {
        let Some(own) = self.processes[place].node_id else { return };
        for record in map.shards.values() {
            let descriptor = &record.descriptor;
            let Some(core) = &self.processes[place].core else { return };
            if record.creating
                && descriptor.replica_on(own).is_some()
                && core.host.status(descriptor.shard_id).is_none()
            {
                let first = descriptor.replicas.first().map(|replica| replica.node_id) == Some(own);
                self.create_replica(place, descriptor.clone(), first);
            }
        }
    }
}
