//! Which start of a node counts: older disks that are put back, second processes, exchanged addresses.
//!
//! As a node does, one that starts holds its replicas back until it is heard ([`kvdb_replication::entry`]).
//! Here is what ships as the shell of a node and of a coordinator: questions become packets, and answers
//! come back. What follows from them is decided in the code that ships.

use crate::disk::SharedDisk;
use crate::network::Place;
use crate::node::address_of;
use crate::packet::{Call, Packet, Reply};
use crate::process::{Process, Ticket, WAL};
use crate::world::{COORDINATORS, Event, PROCESSES, World};
use kvdb_control::{
    ControlCommand, ControlError, Heard as Lately, NodeStart, NotAccepted, NotCounted,
    OperatorKind, OperatorRequest,
};
use kvdb_engine::MemoryEngine;
use kvdb_model::{NodeId, NodeStatus, ShardId, ShardMap};
use kvdb_recovery::Unborn;
use kvdb_replication::entry::{Answer, Entry, Question, Word};
use kvdb_replication::start::{self, Start, Succession};
use kvdb_replication::starts::{NotVouched, Others, Said, Starts, Then};
use kvdb_replication::{Input, RecoveredGroup};
use kvdb_wal::Wal;
use std::collections::BTreeSet;

/// Between two looks of a node that isn't heard yet.
pub(crate) const LOOK_US: u64 = 25_000;
/// A coordinator is given so long before the next one is asked.
const COORDINATOR_US: u64 = 150_000;
/// What is known of others is written down as often.
const KEEP_US: u64 = 1_000_000;
/// Looks of a coordinator between two notes of how far the logs of nodes are synced.
const NOTE_EVERY: u64 = 4;
/// Later than that no node is lost for good: it must be dead, and replaced, before the end.
const LOST_BEFORE_US: u64 = 9_000_000;
/// Within that a process is told that it doesn't count.
const TOLD_US: u64 = 10_000_000;
/// Number of a question that nobody waits for.
const BY_THE_WAY: u64 = 0;

/// All that a node has on its disk.
pub(crate) struct Directory {
    disk: SharedDisk,
    engine: MemoryEngine,
    node_id: Option<NodeId>,
    saved_map: ShardMap,
    start: Option<Start>,
    kept: Starts,
    place: start::Place,
}

/// A node that isn't heard yet, and what it waits for.
pub(crate) struct Held {
    groups: Vec<RecoveredGroup>,
    unborn: Vec<Unborn>,
    entry: Entry,
    coordinators: Option<ToCoordinators>,
    peers: Option<ToPeers>,
}

struct ToCoordinators {
    number: u64,
    only_asks: bool,
    tried: usize,
    until_us: u64,
}

struct ToPeers {
    number: u64,
    untold: BTreeSet<NodeId>,
    answers: Vec<(NodeId, Answer)>,
    until_us: u64,
}

impl Held {
    pub(crate) fn new(groups: Vec<RecoveredGroup>, start: &Start, boot_us: u64) -> Self {
        let entry = Entry::new(start, false, 0, boot_us);
        Held { groups, unborn: Vec::new(), entry, coordinators: None, peers: None }
    }

    pub(crate) fn waits_for(&mut self, unborn: Vec<Unborn>) {
        self.unborn = unborn;
    }
}

impl Process {
    fn directory(&self) -> Directory {
        Directory {
            disk: self.disk.copy(),
            engine: self.engine.crash(),
            node_id: self.node_id,
            saved_map: self.saved_map.clone(),
            start: self.start.clone(),
            kept: self.kept.clone(),
            place: self.place,
        }
    }

    fn put(&mut self, directory: Directory) {
        self.disk = directory.disk;
        self.engine = directory.engine;
        self.node_id = directory.node_id;
        self.saved_map = directory.saved_map;
        self.start = directory.start;
        self.kept = directory.kept;
        self.place = directory.place;
    }

    /// The next start of its directory begins.
    pub(crate) fn begin_start(&mut self, nonce: u64) {
        self.start = Some(Start::after(self.start.take(), u128::from(nonce) + 1, self.place));
    }

    pub(crate) fn nonce(&self) -> u128 {
        self.start.as_ref().map_or(0, |start| start.nonce)
    }

    pub(crate) fn synced(&self) -> u64 {
        self.core.as_ref().map_or(0, |core| core.wal.synced_through())
    }

    fn node_start(&self) -> Option<NodeStart> {
        let start = self.start.as_ref()?;
        Some(NodeStart {
            shown: start.shown.clone(),
            nonce: start.nonce,
            synced: self.synced(),
            place: start.place(),
        })
    }

    pub(crate) fn said(&self, place: Place) -> Option<Said> {
        let start = self.start.as_ref()?;
        Some(Said {
            number: start.number,
            nonce: start.nonce,
            synced: Some(self.synced()),
            address: address_of(place),
        })
    }

    pub(crate) fn is_held(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.held.is_some())
    }

    /// A node that takes part, and is the one that counts.
    pub(crate) fn is_well(&self) -> bool {
        !self.is_coordinator
            && self.node_id.is_some()
            && self.core.is_some()
            && !self.is_held()
            && !self.is_doubled
            && !self.on_older
    }
}

impl World {
    // ---- a node that starts -------------------------------------------------------------

    fn others_of(&self, place: Place) -> BTreeSet<Others> {
        let process = &self.processes[place];
        let (Some(core), Some(own)) = (&process.core, process.node_id) else {
            return BTreeSet::new();
        };
        core.shards.values().flat_map(|open| Others::of(open.descriptor(), own)).collect()
    }

    /// What a node that isn't heard yet has to ask, and whether it has come to an end.
    pub(crate) fn look_at_entry(&mut self, place: Place) {
        let others = self.others_of(place);
        let now_us = self.processes[place].now(self.now_us).boot_us;
        let Some(held) = self.processes[place].core.as_mut().and_then(|core| core.held.as_mut())
        else {
            return;
        };
        if held
            .peers
            .as_ref()
            .is_some_and(|asked| asked.untold.is_empty() || now_us >= asked.until_us)
            && let Some(asked) = held.peers.take()
        {
            let silent = asked.untold.into_iter().map(|node| (node, None));
            let answers = asked.answers.into_iter().chain(silent).collect();
            held.entry.peers_say(answers, &others, now_us);
        }
        if held.coordinators.as_ref().is_some_and(|asked| now_us >= asked.until_us) {
            return self.ask_next_coordinator(place);
        }
        let questions = held.entry.asks(&others, now_us);
        if let Some(end) = held.entry.end().cloned() {
            return match end {
                Ok(heard) if heard.held.is_empty() => self.is_heard(place, heard.by_coordinators),
                // Nobody moves directories here.
                Ok(_) => {}
                Err(why) => self.must_end(place, &format!("{why:?}")),
            };
        }
        for question in questions {
            match question {
                Question::Coordinators { only_asks } => {
                    let number = self.next_question();
                    let asked = ToCoordinators { number, only_asks, tried: 0, until_us: 0 };
                    self.ask_coordinator(place, asked);
                }
                Question::Peers { nodes, succeeds, only_asks, patience_us } => {
                    self.ask_peers(place, nodes, (succeeds, only_asks), now_us + patience_us);
                }
            }
        }
    }

    fn next_question(&mut self) -> u64 {
        self.last_question += 1;
        self.last_question
    }

    fn ask_coordinator(&mut self, place: Place, asked: ToCoordinators) {
        let favourite = self.favourite_of(place);
        self.enter(place, favourite, asked.number, asked.only_asks);
        let until_us = self.processes[place].now(self.now_us).boot_us + COORDINATOR_US;
        if let Some(held) = self.processes[place].core.as_mut().and_then(|core| core.held.as_mut())
        {
            held.coordinators = Some(ToCoordinators { until_us, ..asked });
        }
    }

    /// One that doesn't lead, or doesn't answer: the next is asked, until all were.
    pub(crate) fn ask_next_coordinator(&mut self, place: Place) {
        let Some(core) = self.processes[place].core.as_mut() else { return };
        core.unanswered = true;
        let Some(asked) = core.held.as_mut().and_then(|held| held.coordinators.take()) else {
            return;
        };
        let number = self.next_question();
        let asked = ToCoordinators { number, tried: asked.tried + 1, ..asked };
        if asked.tried < COORDINATORS {
            return self.ask_coordinator(place, asked);
        }
        self.take_word(place, Word::Nobody);
    }

    /// Tells a coordinator of its start.
    pub(crate) fn enter(&mut self, place: Place, to: Place, number: u64, only_asks: bool) {
        let process = &self.processes[place];
        let token = process.token;
        let Some(start) = process.node_start() else { return };
        let call = Call::Enter { number, token, address: address_of(place), start, only_asks };
        self.send(place, to, Packet::Call(call));
    }

    fn take_word(&mut self, place: Place, word: Word) {
        let others = self.others_of(place);
        let now_us = self.processes[place].now(self.now_us).boot_us;
        let Some(held) = self.processes[place].core.as_mut().and_then(|core| core.held.as_mut())
        else {
            return;
        };
        held.coordinators = None;
        held.entry.coordinators_say(word, &others, now_us);
        self.look_at_entry(place);
    }

    /// What the coordinators say of a start.
    pub(crate) fn hear_word(
        &mut self,
        place: Place,
        (number, nonce): (u64, u128),
        node: Option<NodeId>,
        word: Word,
    ) {
        let process = &mut self.processes[place];
        if process.nonce() != nonce {
            return;
        }
        if let (None, Some(node)) = (process.node_id, node) {
            process.node_id = Some(node);
            return self.boot_registered(place);
        }
        let Some(core) = &mut process.core else { return };
        core.unanswered = false;
        if let Some(held) = &core.held {
            if held.coordinators.as_ref().is_some_and(|asked| asked.number == number) {
                self.take_word(place, word);
            }
            return;
        }
        match word {
            Word::Accepted { .. } => {
                core.accepted = true;
                if let Some(start) = &mut process.start {
                    start.takes_part(true);
                }
            }
            Word::Refused => self.must_end(place, "the coordinators refuse its start"),
            Word::Would { .. } | Word::KeptOut | Word::Nobody => {}
        }
    }

    fn ask_peers(
        &mut self,
        place: Place,
        nodes: BTreeSet<NodeId>,
        (succeeds, only_asks): (bool, bool),
        until_us: u64,
    ) {
        let number = self.next_question();
        if let Some(start) = self.processes[place].start.as_mut().filter(|_| !only_asks) {
            start.spends_number();
        }
        let process = &mut self.processes[place];
        let (said, own) = (process.said(place), process.node_id);
        let shown = process.start.as_ref().map_or_else(Vec::new, |start| start.shown.clone());
        if let Some(held) = process.core.as_mut().and_then(|core| core.held.as_mut()) {
            let untold = nodes.clone();
            held.peers = Some(ToPeers { number, untold, answers: Vec::new(), until_us });
        }
        let (Some(said), Some(node)) = (said, own) else { return };
        for to in nodes {
            let Some(target) = self.places_of(place, to).first().copied() else { continue };
            let (said, shown) = (said.clone(), shown.clone());
            let is_heard = false;
            self.send(
                place,
                target,
                Packet::Vouch { number, node, said, shown, succeeds, only_asks, is_heard },
            );
        }
        self.look_at_entry(place);
    }

    /// Somebody asks to be vouched for, or says that it is heard. Answered by every process, also by one that isn't
    /// heard itself.
    pub(crate) fn hear_vouch(&mut self, from: Place, place: Place, packet: Packet) {
        let Packet::Vouch { number, node, said, shown, succeeds, only_asks, is_heard } = packet
        else {
            return;
        };
        let now_us = self.processes[place].now(self.now_us).boot_us;
        let process = &mut self.processes[place];
        let (Some(own), Some(core)) = (process.node_id, &mut process.core) else { return };
        let answer = if is_heard {
            let met = core.starts.meet(node, &Said { synced: None, ..said.clone() }, now_us);
            if met.is_ok() {
                core.starts.hears(node, said.number, said.synced.unwrap_or_default(), now_us);
            }
            met.map_err(NotVouched::Older)
        } else if only_asks {
            core.starts.may_vouch(node, &said, &shown, succeeds, now_us).map(|()| Then::Go)
        } else {
            core.starts.vouch(node, &said, &shown, succeeds, now_us)
        };
        let answer = answer.map(|then| self.keep_starts(place, then));
        let is_news = !is_heard || answer.is_err();
        if is_news {
            let (of, number, synced) = (node, said.number, said.synced.unwrap_or_default());
            self.tell(|world| {
                let name = &world.processes[place].name;
                let how = match &answer {
                    Ok(()) if only_asks => "would vouch".to_owned(),
                    Ok(()) => "vouches".to_owned(),
                    Err(why) => format!("doesn't vouch ({why})"),
                };
                format!("{name} {how} for start {number} of node {of}, synced to {synced}")
            });
        }
        self.send(place, from, Packet::Vouched { number, node: own, answer });
    }

    /// A file is replaced, at once.
    pub(crate) fn keep_starts(&mut self, place: Place, then: Then) {
        let process = &mut self.processes[place];
        if let (Then::Keep, Some(core)) = (then, &mut process.core) {
            process.kept = core.starts.clone();
            core.starts.are_kept(&process.kept);
        }
    }

    pub(crate) fn hear_vouched(
        &mut self,
        place: Place,
        number: u64,
        node: NodeId,
        answer: Result<(), NotVouched>,
    ) {
        let Some(core) = self.processes[place].core.as_mut() else { return };
        let Some(held) = &mut core.held else {
            if number == BY_THE_WAY && answer.is_ok() {
                core.told.insert(node);
            }
            return;
        };
        let asked = held.peers.as_mut().filter(|asked| asked.number == number);
        if let Some(asked) = asked.filter(|asked| asked.untold.contains(&node)) {
            asked.untold.remove(&node);
            asked.answers.push((node, Some(answer)));
            self.look_at_entry(place);
        }
    }

    /// A node takes part from now on.
    fn is_heard(&mut self, place: Place, by_coordinators: bool) {
        let now = self.processes[place].now(self.now_us);
        let process = &mut self.processes[place];
        let Some(core) = &mut process.core else { return };
        let Some(held) = core.held.take() else { return };
        core.accepted = by_coordinators;
        let Some(start) = &mut process.start else { return };
        let elsewhere = start.succession() == Succession::Elsewhere;
        start.takes_part(by_coordinators);
        let how = if by_coordinators { "by the coordinators" } else { "by its peers" };
        self.tell(|world| format!("{} is heard, {how}", world.processes[place].name));
        self.check_memory(place);
        if elsewhere && self.processes[place].is_doubled {
            *self.faults.entry("a copy took over").or_default() += 1;
        }
        self.note_durable(place);
        let Some(core) = &mut self.processes[place].core else { return };
        for group in held.groups {
            core.host.recover(now, group);
        }
        for Unborn { descriptor: child, volume, time } in held.unborn {
            self.feed(place, Input::Split { from: None, child, volume, time });
        }
        self.settle(place);
    }

    /// A process learns that it isn't the one that counts, and ends by name.
    pub(crate) fn must_end(&mut self, place: Place, why: &str) {
        let process = &self.processes[place];
        if process.core.is_none() {
            return;
        }
        self.tell(|world| format!("{} ends: {why}", world.processes[place].name));
        *self.faults.entry("ended by name").or_default() += 1;
        let process = &self.processes[place];
        if !process.is_doubled && !process.on_older {
            let name = &process.name;
            self.checks.violations.push(format!("{name} ends though nothing is wrong: {why}"));
        }
        self.crash(place, false);
        match self.processes[place].on_older {
            true => self.schedule(0, Event::PutNewestBack { place }),
            false => self.strand(place),
        }
    }

    /// There is nobody at a place any more. If that was the last process of its node, the node is replaced.
    fn strand(&mut self, place: Place) {
        let process = &mut self.processes[place];
        let own = process.node_id.take();
        (process.stranded, process.is_doubled) = (true, false);
        let twin = (COORDINATORS..PROCESSES).find(|other| self.processes[*other].node_id == own);
        if let Some(twin) = twin {
            // It may be told that it doesn't count either.
            self.schedule(TOLD_US, Event::IsAlone { place: twin, node: own });
            return;
        }
        *self.faults.entry("neither of two counts").or_default() += 1;
        if self.volume_lost || self.node_lost.is_some() {
            // Shards that have lost two of three replicas are for administrators.
            self.given_up = true;
        } else {
            self.node_lost = own;
            self.put_new_node(place);
        }
    }

    /// Long enough after its twin a process is the only one of its node.
    pub(crate) fn is_alone(&mut self, place: Place, node: Option<NodeId>) {
        let process = &mut self.processes[place];
        if process.node_id == node {
            process.is_doubled = false;
        }
    }

    fn put_new_node(&mut self, place: Place) {
        let token = u128::from(self.dice.any());
        let process = &mut self.processes[place];
        let (name, life, clock) = (format!("{}'", process.name), process.life, process.clock);
        let mut at = process.place;
        at.file += 1;
        *process = Process { life, clock, token, place: at, ..Process::new(name, false, None) };
        self.schedule(100_000, Event::Restart { place });
    }

    /// What a node that takes part tells of its start, and writes down of others.
    pub(crate) fn look_after_starts(&mut self, place: Place) {
        let unaccepted = self.processes[place].core.as_ref().filter(|core| !core.accepted);
        if let Some(favourite) = unaccepted.map(|core| core.favourite) {
            self.enter(place, favourite, BY_THE_WAY, false);
        }
        let now_us = self.now_us;
        let process = &mut self.processes[place];
        let (own, said) = (process.node_id, process.said(place));
        let (Some(node), Some(said), Some(core)) = (own, said, &mut process.core) else { return };
        if now_us < core.kept_us + KEEP_US {
            return;
        }
        core.kept_us = now_us;
        let untold: Vec<NodeId> = core
            .cache
            .map()
            .nodes
            .keys()
            .filter(|to| **to != node && !core.told.contains(to))
            .copied()
            .collect();
        self.keep_starts(place, Then::Keep);
        for to in untold {
            let Some(target) = self.places_of(place, to).first().copied() else { continue };
            let (said, number) = (said.clone(), BY_THE_WAY);
            let (shown, succeeds, only_asks, is_heard) = (Vec::new(), true, false, true);
            let packet = Packet::Vouch { number, node, said, shown, succeeds, only_asks, is_heard };
            self.send(place, target, packet);
        }
    }

    /// To a heartbeat: another start counts, or the log has gone back.
    pub(crate) fn is_not_counted(&mut self, place: Place, nonce: u128, why: NotCounted) {
        let process = &self.processes[place];
        let Some(core) = process.core.as_ref().filter(|_| process.nonce() == nonce) else { return };
        let (accepted, favourite) = (core.accepted, core.favourite);
        match why {
            // A heartbeat that was on its way for long tells less than the ones that overtook it.
            NotCounted::GoneBack { highest } if process.synced() >= highest => {}
            NotCounted::GoneBack { .. } => self.must_end(place, "its log has gone back"),
            // They may have been put back to where they didn't know it yet.
            NotCounted::StartedSince if accepted => {
                self.enter(place, favourite, BY_THE_WAY, false);
            }
            NotCounted::StartedSince => {}
        }
    }

    // ---- the coordinators' side -----------------------------------------------------------

    /// A coordinator that was the leader since it was asked looks at a start.
    pub(crate) fn answer_start(&mut self, place: Place, ticket: Ticket) {
        let Ticket::Enter { caller, number, token, address, start, only_asks } = ticket else {
            return;
        };
        let now_ms = self.processes[place].now(self.now_us).boot_us / 1000;
        let liveness = &self.liveness[place];
        let Some(core) = &self.processes[place].core else { return };
        let (admitted, is_known, as_copy) = core.control.with(|view| {
            let state = &view.state;
            let Some(node) = state.node_of(token) else {
                return (Ok(()), state.map().cluster_id.is_known(), false);
            };
            let heard: Lately = liveness.heard_lately(node, now_ms);
            let admitted = core.synced.admits(state, node, &start, heard);
            (admitted, true, state.copies_of(node).is_awaited)
        });
        let nonce = start.nonce;
        let word = match admitted {
            Err(NotAccepted::Older) => Word::Refused,
            Err(NotAccepted::Waits) => Word::KeptOut,
            Ok(()) if only_asks => Word::Would { as_copy },
            Ok(()) if !is_known => Word::Nobody,
            Ok(()) => {
                let (zone, start) = (String::new(), Some(start));
                let is_reached = true;
                let command = ControlCommand::EnterNode { token, address, zone, is_reached, start };
                let ticket = Ticket::Entered { caller, number, nonce };
                return self.propose_control(place, &command, ticket);
            }
        };
        self.send(place, caller, Packet::Reply(Reply::Word { number, nonce, node: None, word }));
    }

    /// A start was compared and swapped, or not.
    pub(crate) fn answer_entered(
        &mut self,
        place: Place,
        (caller, number, nonce): (Place, u64, u128),
        node: Result<NodeId, ControlError>,
    ) {
        let now_ms = self.processes[place].now(self.now_us).boot_us / 1000;
        let (node, word) = match node {
            Ok(node) => {
                self.liveness[place].heard(node, now_ms);
                (Some(node), Word::Accepted { copies: 0 })
            }
            Err(_) => (None, Word::Refused),
        };
        self.send(place, caller, Packet::Reply(Reply::Word { number, nonce, node, word }));
    }

    /// Whether a heartbeat comes from the start that counts. `is_sure`: this coordinator was the leader since it was
    /// asked.
    pub(crate) fn check_start(
        &mut self,
        place: Place,
        caller: Place,
        (node, nonce, synced): (NodeId, u128, u64),
        is_sure: bool,
    ) -> bool {
        let Some(core) = &mut self.processes[place].core else { return false };
        let control = core.control.clone();
        let checked = control.with(|view| core.synced.hears(&view.state, node, nonce, synced));
        match checked {
            Ok(()) => true,
            Err(why) if is_sure => {
                self.send(place, caller, Packet::Reply(Reply::NotCounted { nonce, why }));
                false
            }
            Err(_) => {
                let ticket = Ticket::CheckStart { caller, node, nonce, synced };
                let shard = ShardId::CONTROL;
                self.feed(place, Input::Read { shard, ticket });
                false
            }
        }
    }

    /// How far the logs of nodes are synced, now and then.
    pub(crate) fn note_synced(&mut self, place: Place) -> Option<ControlCommand> {
        let core = self.processes[place].core.as_mut()?;
        core.rounds += 1;
        if !core.rounds.is_multiple_of(NOTE_EVERY) {
            return None;
        }
        core.control.with(|view| core.synced.news(&view.state))
    }

    /// The operator replaces a node whose disk is lost, once it is dead.
    pub(crate) fn replace_lost_node(
        &mut self,
        map: &ShardMap,
        now_ms: u64,
    ) -> Option<ControlCommand> {
        let node = self.node_lost?;
        let record = map.nodes.get(&node)?;
        if self.is_replaced || record.status != NodeStatus::Dead {
            self.is_replaced |= record.status == NodeStatus::Removed;
            return None;
        }
        let is_it = |kind: &OperatorKind| *kind == OperatorKind::Replace { node };
        let cores = self.processes.iter().filter_map(|process| process.core.as_ref());
        let mut leaders = cores.filter(|core| core.leads(ShardId::CONTROL));
        if leaders
            .any(|core| core.control.with(|view| view.state.running().any(|one| is_it(&one.kind))))
        {
            return None;
        }
        Some(ControlCommand::StartOperator {
            request: OperatorRequest::Replace { node },
            reason: "its disk is lost".to_owned(),
            parent: None,
            now_ms,
            time_limit_ms: 3_600_000,
        })
    }

    // ---- faults ---------------------------------------------------------------------------

    fn a_well_node(&mut self) -> Option<Place> {
        let well = |place: &Place| self.processes[*place].is_well();
        let nodes: Vec<Place> = (COORDINATORS..PROCESSES).filter(well).collect();
        let chosen = self.dice.below(nodes.len().max(1) as u64) as usize;
        nodes.get(chosen).copied()
    }

    /// A node's disk as it is now will take the place of its disk some time later.
    pub(crate) fn put_back_older(&mut self) -> &'static str {
        const KIND: &str = "snapshot of a disk";
        let Some(place) = self.a_well_node() else { return KIND };
        let mut older = Box::new(self.processes[place].directory());
        if self.dice.chance(500) {
            // Restored as files, not as a whole disk.
            older.place.file = self.dice.any() | 1;
        }
        let after_us = self.dice.between(1_000_000, 7_000_000);
        let is_lost = self.dice.chance(400);
        self.schedule(after_us, Event::PutBack { older, is_lost });
        KIND
    }

    /// Whether the coordinators know, in what they have applied, that a directory is older.
    fn is_known_as_older(&self, older: &Directory) -> bool {
        let (Some(node), Some(start)) = (older.node_id, &older.start) else { return false };
        let states = self.processes.iter().filter(|process| process.is_coordinator);
        let cores = states.filter_map(|process| process.core.as_ref());
        let known =
            cores.filter_map(|core| core.control.with(|view| view.state.start_of(node).cloned()));
        let newest = known.max_by_key(|known| (known.number, known.synced));
        let frames = frames_of(&older.disk);
        newest.is_some_and(|known| {
            let is_same = known.nonce == start.nonce;
            !(is_same || start.shown.contains(&known.nonce)) || frames < known.synced
        })
    }

    pub(crate) fn put_back(&mut self, older: Directory, is_lost: bool) {
        let own = older.node_id;
        let is_its = |place: &Place| self.processes[*place].node_id == own;
        let mut places = (COORDINATORS..PROCESSES).filter(is_its);
        let (Some(place), None) = (places.next(), places.next()) else { return };
        let process = &self.processes[place];
        let is_alone = !process.is_doubled && !process.on_older && !process.stranded;
        if !self.stormy || !is_alone || !self.is_known_as_older(&older) {
            return;
        }
        let is_lost = is_lost
            && self.now_us < LOST_BEFORE_US
            && !self.volume_lost
            && self.node_lost.is_none();
        self.crash(place, false);
        let process = &mut self.processes[place];
        process.on_older = true;
        if is_lost {
            self.node_lost = own;
        } else {
            process.aside = Some(Box::new(process.directory()));
        }
        process.put(older);
        let kind = if is_lost { "an older disk, the newest lost" } else { "an older disk" };
        *self.faults.entry(kind).or_default() += 1;
        self.tell(|world| format!("{}: {kind}", world.processes[place].name));
        let starts_us = self.dice.below(500_000);
        self.schedule(starts_us, Event::Restart { place });
        let lasts_us = self.dice.between(3_000_000, 6_000_000);
        self.schedule(lasts_us, Event::PutNewestBack { place });
    }

    /// A node's newest disk is put back; or a new node is put in its place.
    pub(crate) fn put_newest_back(&mut self, place: Place) {
        if !self.processes[place].on_older {
            return;
        }
        self.crash(place, false);
        let process = &mut self.processes[place];
        process.on_older = false;
        match process.aside.take() {
            Some(newest) => process.put(*newest),
            None => return self.put_new_node(place),
        }
        self.schedule(100_000, Event::Restart { place });
    }

    /// A copy of a running node is started beside it, which some can't reach meanwhile.
    pub(crate) fn second_process(&mut self) -> &'static str {
        const KIND: &str = "second process of a node";
        let free = |place: &Place| self.processes[*place].stranded;
        let Some(copy) = (COORDINATORS..PROCESSES).find(free) else { return KIND };
        let Some(original) = self.a_well_node() else { return KIND };
        let directory = self.processes[original].directory();
        let (token, name) = (self.processes[original].token, self.processes[original].name.clone());
        let file = self.dice.any() | 1;
        let process = &mut self.processes[copy];
        process.put(directory);
        process.life += 1;
        process.place.file = file;
        (process.stranded, process.token, process.name) = (false, token, format!("{name}*"));
        process.is_doubled = true;
        self.processes[original].is_doubled = true;
        *self.faults.entry("a second process").or_default() += 1;
        // The original is cut off from the coordinators, and each other node from one of the two.
        if self.dice.chance(800) {
            for coordinator in 0..COORDINATORS {
                self.network.wall(original, coordinator);
            }
            for other in COORDINATORS..PROCESSES {
                if other != original && other != copy {
                    let from = if self.dice.chance(500) { original } else { copy };
                    self.network.wall(from, other);
                }
            }
        }
        let starts_us = self.dice.below(500_000);
        self.schedule(starts_us, Event::Restart { place: copy });
        let lasts_us = self.dice.between(5_000_000, 9_000_000);
        self.schedule(lasts_us, Event::EndCopy { place: copy });
        KIND
    }

    /// The walls are gone, and so is a copy that never came to be heard.
    pub(crate) fn end_copy(&mut self, place: Place) {
        self.network.tear_down_walls();
        let process = &self.processes[place];
        let is_heard = process.start.as_ref().is_some_and(|start| start.heard == process.place);
        if !is_heard && !process.stranded && process.node_id.is_some() && !process.on_older {
            self.crash(place, false);
            self.strand(place);
        }
    }

    /// No copy that isn't heard is left.
    pub(crate) fn end_copies(&mut self) {
        for place in COORDINATORS..PROCESSES {
            let own = self.processes[place].node_id;
            let is_same = |process: &&Process| !process.is_coordinator && process.node_id == own;
            if self.processes.iter().filter(is_same).count() > 1 {
                self.end_copy(place);
            }
        }
        self.network.tear_down_walls();
    }

    /// Two nodes come back with each other's addresses, or all of them elsewhere.
    pub(crate) fn exchange_addresses(&mut self) -> &'static str {
        let all = self.dice.chance(300);
        let nodes = (COORDINATORS..PROCESSES).collect::<Vec<Place>>();
        let moved: Vec<Place> = if all {
            nodes
        } else {
            let first = self.dice.below(nodes.len() as u64) as usize;
            let other =
                (first + 1 + self.dice.below(nodes.len() as u64 - 1) as usize) % nodes.len();
            vec![nodes[first], nodes[other]]
        };
        // Who is being looked for at a place isn't moved away from it.
        let is_busy = |place: &Place| {
            let process = &self.processes[*place];
            process.on_older || process.is_doubled || process.node_id.is_none() && !process.stranded
        };
        if moved.iter().any(is_busy) {
            return "addresses stay";
        }
        for place in &moved {
            self.crash(*place, false);
        }
        let lives = self.processes.iter().map(|process| process.life).max().unwrap_or_default();
        for pair in moved.windows(2) {
            self.processes.swap(pair[0], pair[1]);
        }
        for place in moved {
            self.processes[place].life = lives + 1;
            self.lose_answers(place);
            let after_us = self.dice.below(300_000);
            self.schedule(after_us, Event::Restart { place });
        }
        if all { "all nodes restarted elsewhere" } else { "addresses exchanged" }
    }
}

/// The last frame that a start on a disk would find.
fn frames_of(disk: &SharedDisk) -> u64 {
    Wal::open(disk.copy(), WAL).map_or(0, |(wal, _)| wal.synced_through())
}
