//! The world: one queue of events, one thread, one seed.

use crate::checks::Checks;
use crate::client::Client;
use crate::dice::Dice;
use crate::faults::Fault;
use crate::fleeting::Fleeting;
use crate::network::{Network, Place};
use crate::packet::Packet;
use crate::process::{Process, Ticket};
use crate::schedule::{Chosen, Schedule};
use kvdb_checker::{History, Recorder};
use kvdb_control::Liveness;
use kvdb_model::{LogIndex, NodeId, ReplicaId, ShardId};
use kvdb_recovery::Unborn;
use kvdb_replication::Input;
use rustc_hash::FxHasher;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// Coordinators that found their group; one more is there to be added.
pub(crate) const FOUNDERS: usize = 3;
pub(crate) const COORDINATORS: usize = FOUNDERS + 1;
pub(crate) const NODES: usize = 4;
pub(crate) const PROCESSES: usize = COORDINATORS + NODES;
pub(crate) const CLIENTS: usize = 5;
pub(crate) const SHARDS: u32 = 4;

const TICK_US: u64 = 10_000;
/// Lines of the trace that are kept for a failure.
const TRACE_LINES: usize = 400;

/// Something that happens at a moment.
pub(crate) enum Event {
    Tick {
        place: Place,
    },
    /// The log thread is done with its batch.
    Synced {
        place: Place,
        life: u64,
    },
    /// The apply thread takes its next task.
    Apply {
        place: Place,
        life: u64,
    },
    /// A flush is on disk.
    Flushed {
        place: Place,
        life: u64,
        shard: ShardId,
        replica: ReplicaId,
        applied: LogIndex,
    },
    /// A process is killed, and starts again at once.
    StartAgain {
        place: Place,
    },
    /// A leader hands a shard over, if it still leads.
    HandOver {
        place: Place,
        life: u64,
        shard: ShardId,
        to: NodeId,
    },
    /// The maintenance thread looks around.
    Maintain {
        place: Place,
        life: u64,
    },
    /// A node speaks to the coordinators, a coordinator looks after its duties.
    Duty {
        place: Place,
        life: u64,
    },
    Deliver {
        from: Place,
        to: Place,
        packet: Packet,
    },
    /// Nobody has said whether a snapshot arrived.
    TransferTimeout {
        place: Place,
        life: u64,
        transfer: u64,
    },
    Crash {
        place: Place,
    },
    Restart {
        place: Place,
    },
    Resume {
        place: Place,
    },
    /// A client begins, tries again, or gives an attempt up.
    Begin {
        client: usize,
    },
    Retry {
        client: usize,
        attempt: u64,
    },
    GiveUp {
        client: usize,
        attempt: u64,
    },
    Refresh {
        client: usize,
    },
    /// The next disturbance.
    Disturb,
    Undo(Fault),
}

impl Event {
    /// The process that it happens to.
    fn place(&self) -> Option<Place> {
        match self {
            Event::Synced { place, .. }
            | Event::Apply { place, .. }
            | Event::Flushed { place, .. }
            | Event::Maintain { place, .. }
            | Event::Duty { place, .. }
            | Event::TransferTimeout { place, .. } => Some(*place),
            Event::Deliver { to, .. } if *to < PROCESSES => Some(*to),
            _ => None,
        }
    }
}

pub(crate) struct World {
    pub(crate) now_us: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(crate) dice: Dice,
    pub(crate) network: Network,
    pub(crate) processes: Vec<Process>,
    /// What each coordinator has heard of the nodes.
    pub(crate) liveness: Vec<Liveness>,
    pub(crate) clients: Vec<Client>,
    pub(crate) recorder: Recorder,
    pub(crate) fleeting: Fleeting,
    /// How long everything was off, beside the time of this world, in microseconds: nights.
    pub(crate) nights_us: u64,
    /// When nobody knew yet how long everything had been off, in true time.
    pub(crate) nights: Vec<std::ops::Range<u64>>,
    pub(crate) checks: Checks,
    /// Whether faults still happen.
    pub(crate) stormy: bool,
    /// Every fourth seed: shards keep change histories, which are bounded anew all the time.
    pub(crate) keeps_history: bool,
    pub(crate) fault_schedule: Schedule,
    pub(crate) next_transfer: u64,
    /// The highest number that a coordinator was given.
    pub(crate) next_coordinator: u64,
    /// Whether a coordinator has lost its directory, and the group isn't whole again.
    pub(crate) directory_lost: bool,
    /// Whether a node's volume was lost already: the shard would not survive a second.
    pub(crate) volume_lost: bool,
    /// How often each kind of fault happened.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    trace: Vec<String>,
    traces: bool,
    digest: FxHasher,
    steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64, traces: bool, chosen: Chosen) -> Self {
        let coordinator = |id: usize| Process {
            token: id as u128 + 1,
            ..Process::new(format!("c{}", id + 1), true, Some(NodeId(id as u64 + 1)))
        };
        let node = |id: usize| Process::new(format!("n{}", id + 1), false, None);
        let mut world = World {
            now_us: 0,
            events: BTreeMap::new(),
            next_event: 0,
            dice: Dice::new(seed),
            network: Network::default(),
            processes: (0..COORDINATORS).map(coordinator).chain((0..NODES).map(node)).collect(),
            liveness: (0..COORDINATORS).map(|_| Liveness::default()).collect(),
            clients: Vec::new(),
            recorder: Recorder::new(),
            fleeting: Fleeting::default(),
            nights_us: 0,
            nights: Vec::new(),
            checks: Checks::default(),
            stormy: true,
            keeps_history: seed % 4 == 3,
            fault_schedule: Schedule::new(seed, chosen),
            next_transfer: 1,
            next_coordinator: COORDINATORS as u64,
            directory_lost: false,
            volume_lost: false,
            faults: BTreeMap::new(),
            trace: Vec::new(),
            traces,
            digest: FxHasher::default(),
            steps: 0,
        };
        world.network.heal();
        for client in 0..CLIENTS {
            let seed = world.dice.any();
            world.clients.push(Client::new(client, seed));
            world.schedule(1000, Event::Begin { client });
            world.schedule(500, Event::Refresh { client });
        }
        for place in 0..PROCESSES {
            let offset = world.dice.below(TICK_US);
            world.schedule(offset, Event::Tick { place });
            world.processes[place].clock.drift_ppm = world.dice.between(0, 1000) as i64 - 500;
            world.boot(place);
        }
        world.schedule(2_000_000, Event::Disturb);
        world
    }

    pub(crate) fn schedule(&mut self, after_us: u64, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now_us + after_us, self.next_event), event);
    }

    /// Nothing is on its way to a process any more: no connection lasts through a night.
    pub(crate) fn lose_all_packets(&mut self) {
        self.events
            .retain(|_, event| !matches!(event, Event::Deliver { to, .. } if *to < PROCESSES));
    }

    /// Lets time pass up to a moment, or until something is wrong.
    pub(crate) fn run_until(&mut self, end_us: u64) {
        while self.checks.violations.is_empty()
            && let Some(first) = self.events.first_entry()
            && first.key().0 <= end_us
        {
            let ((at_us, _), event) = first.remove_entry();
            self.now_us = at_us;
            self.steps += 1;
            self.happen(event);
        }
        self.now_us = self.now_us.max(end_us);
    }

    fn happen(&mut self, event: Event) {
        if let Some(place) = event.place()
            && self.processes[place].paused
        {
            // A stopped process has its packets and timers when it goes on.
            self.processes[place].inbox.push(event);
            return;
        }
        match event {
            Event::Tick { place } => {
                self.schedule(TICK_US, Event::Tick { place });
                if !self.processes[place].paused {
                    self.feed(place, Input::Tick);
                }
            }
            Event::Synced { place, life } if self.lives(place, life) => self.synced(place),
            Event::Apply { place, life } if self.lives(place, life) => self.apply_next(place),
            Event::Maintain { place, life } if self.lives(place, life) => self.maintain(place),
            Event::Flushed { place, life, shard, replica, applied } if self.lives(place, life) => {
                self.feed(place, Input::Flushed { shard, replica, applied });
            }
            Event::StartAgain { place } => {
                self.crash(place, false);
                self.boot(place);
            }
            Event::HandOver { place, life, shard, to } if self.lives(place, life) => {
                self.transfer(place, shard, to);
            }
            Event::Duty { place, life } if self.lives(place, life) => self.duty(place),
            Event::Deliver { from, to, packet } => self.deliver(from, to, packet),
            Event::TransferTimeout { place, life, transfer } if self.lives(place, life) => {
                self.transferred(place, transfer, false);
            }
            Event::Crash { place } => {
                let power = self.dice.chance(500);
                self.crash(place, power);
                let after_us = self.dice.between(10_000, 1_000_000);
                self.schedule(after_us, Event::Restart { place });
            }
            Event::Restart { place } => self.boot(place),
            Event::Resume { place } => self.resume(place),
            Event::Begin { client } => self.begin(client),
            Event::Retry { client, attempt } => self.retry(client, attempt),
            Event::GiveUp { client, attempt } => self.give_up(client, attempt),
            Event::Refresh { client } => self.refresh(client),
            Event::Disturb => self.disturb(),
            Event::Undo(fault) => self.undo(fault),
            // Meant for an earlier life.
            _ => {}
        }
    }

    pub(crate) fn lives(&self, place: Place, life: u64) -> bool {
        self.processes[place].life == life
    }

    fn deliver(&mut self, from: Place, to: Place, packet: Packet) {
        if to >= PROCESSES {
            self.client_hears(to - PROCESSES, packet);
        } else if self.processes[to].core.is_some() || self.waits_for_id(to) {
            self.hear(from, to, packet);
        }
    }

    /// Sends a packet, which may be lost, late, doubled.
    pub(crate) fn send(&mut self, from: Place, to: Place, packet: Packet) {
        for delay_us in self.network.delays(&mut self.dice, from, to) {
            self.schedule(delay_us, Event::Deliver { from, to, packet: packet.clone() });
        }
    }

    /// Starts a process from its disk.
    pub(crate) fn boot(&mut self, place: Place) {
        if self.processes[place].core.is_some() || self.processes[place].stranded {
            return;
        }
        let seed = self.dice.any();
        let mut unborn = Vec::new();
        let process = &mut self.processes[place];
        if process.node_id.is_none() {
            // A new node: it has to register first.
            process.life += 1;
        } else {
            match process.start(seed, self.now_us) {
                Ok(children) => unborn = children,
                Err(problem) => {
                    let problem = format!("{} refuses to start: {problem}", process.name);
                    self.checks.violations.push(problem);
                    return;
                }
            }
        }
        let life = self.processes[place].life;
        self.tell(|world| format!("{} starts", world.processes[place].name));
        self.check_memory(place);
        self.note_durable(place);
        let after_us = self.dice.below(20_000);
        self.schedule(after_us, Event::Duty { place, life });
        self.schedule(100_000, Event::Maintain { place, life });
        for Unborn { descriptor: child, volume, time } in unborn {
            self.feed(place, Input::Split { from: None, child, volume, time });
        }
        self.settle(place);
    }

    fn check_memory(&mut self, place: Place) {
        let Some(core) = &self.processes[place].core else { return };
        for (replica, found) in &core.wal.live().replicas {
            self.checks.remembers((found.shard, *replica), found.hard_state);
        }
        // A flush that a crash has cut off may have come to its end.
        for (shard, open) in core.shards.iter().filter(|(shard, _)| !core.has_replayed(**shard)) {
            self.checks.is_flushed((*shard, open.replica()), open.applied().index);
        }
    }

    /// Ends a process; it comes back after a while.
    pub(crate) fn crash(&mut self, place: Place, power: bool) {
        if self.processes[place].core.is_none() {
            return;
        }
        let seed = self.dice.any();
        self.processes[place].crash(power.then_some(seed));
        let how = if power { "loses power" } else { "is killed" };
        self.tell(|world| format!("{} {how}", world.processes[place].name));
    }

    fn resume(&mut self, place: Place) {
        if !std::mem::take(&mut self.processes[place].paused) {
            return;
        }
        self.tell(|world| format!("{} goes on", world.processes[place].name));
        let deaf = self.dice.chance(500);
        for event in std::mem::take(&mut self.processes[place].inbox) {
            // Connections that were silent for long are closed by their other ends.
            if deaf && matches!(event, Event::Deliver { packet: Packet::Raft { .. }, .. }) {
                continue;
            }
            self.happen(event);
        }
    }

    /// Gives a process's host an input, and carries out what follows.
    pub(crate) fn feed(&mut self, place: Place, input: Input<Ticket>) {
        let now_us = self.now_us;
        let process = &mut self.processes[place];
        let now = process.now(now_us);
        let Some(core) = &mut process.core else { return };
        core.host.step(now, input);
        self.settle(place);
    }

    /// Adds a line to the trace and to its digest.
    pub(crate) fn tell(&mut self, line: impl FnOnce(&World) -> String) {
        (self.now_us, self.steps).hash(&mut self.digest);
        let line = line(self);
        line.hash(&mut self.digest);
        self.trace.push(format!("{:>12.3} {line}", self.now_us as f64 / 1000.0));
        if !self.traces && self.trace.len() > 2 * TRACE_LINES {
            let cut = self.trace.len() - TRACE_LINES;
            self.trace.drain(..cut);
        }
    }

    pub(crate) fn trace(&self) -> &[String] {
        &self.trace
    }

    /// Changes if anything in the world's history does.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = self.digest.clone();
        (self.now_us, self.steps).hash(&mut digest);
        digest.finish()
    }

    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn history(&self) -> &History {
        self.recorder.history()
    }
}
