//! What goes wrong, and for how long.

use crate::network::Place;
use crate::process::{USUAL_APPLY_US, USUAL_SYNC_US};
use crate::world::{CLIENTS, COORDINATORS, Event, NODES, PROCESSES, World};
use kvdb_engine::Engine;
use kvdb_replication::Input;

/// After a night it may take so long until nodes and coordinators have heard of each other, with other
/// faults in between.
const DAWN_US: u64 = 10_000_000;

const EVERYWHERE: usize = PROCESSES + CLIENTS;

/// A fault that ends.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Network,
    SlowDisk(Place),
    SlowApply(Place),
}

impl World {
    /// One more disturbance, and when the next one comes.
    pub(crate) fn disturb(&mut self) {
        if !self.stormy {
            return;
        }
        let due = self.fault_schedule.draw();
        self.schedule(due.next_us, Event::Disturb);
        if !due.chosen {
            return;
        }
        // All that is chance in a fault comes from its own dice.
        let of_the_world = std::mem::replace(&mut self.dice, due.dice);
        self.strike(due.number);
        self.dice = of_the_world;
    }

    fn strike(&mut self, number: u64) {
        let place = self.dice.below(PROCESSES as u64) as usize;
        let lasts_us = self.dice.between(50_000, 3_000_000);
        let kind = match self.dice.below(14) {
            0 | 1 => self.kill(place, lasts_us),
            2 | 3 => self.cut_power(place, lasts_us),
            4 if self.dice.chance(300) => self.spend_a_night(lasts_us),
            4 => self.cut_all_power(lasts_us),
            5 => self.pause(place, lasts_us),
            6 => self.isolate(place, lasts_us),
            7 => self.partition(lasts_us),
            8 => self.lose_packets(lasts_us),
            9 => self.jump_clock(place),
            10 => self.slow_disk(place, lasts_us),
            11 => self.slow_apply(place, lasts_us),
            12 => self.hand_over_deaf(),
            _ => self.break_disk(place),
        };
        *self.faults.entry(kind).or_default() += 1;
        self.tell(|world| format!("fault {number}: {kind} ({})", world.processes[place].name));
    }

    /// Before a split, now and then: clients of the leader lose their answers, so that they try
    /// again after it. Whether that is so now; the split then waits until it is asked for again.
    pub(crate) fn answers_lost_first(&mut self, place: Place) -> bool {
        if !self.stormy || !self.dice.chance(400) {
            return false;
        }
        for client in PROCESSES..EVERYWHERE {
            self.network.cut(place, client);
        }
        let lasts_us = self.dice.between(400_000, 1_500_000);
        self.schedule(lasts_us, Event::Undo(Fault::Network));
        *self.faults.entry("answers lost before a split").or_default() += 1;
        true
    }

    /// A crash soon after a split: no flush has covered it yet.
    pub(crate) fn disturb_split(&mut self, place: Place) {
        if !self.stormy || !self.dice.chance(150) {
            return;
        }
        let after_us = self.dice.between(10_000, 300_000);
        self.schedule(after_us, Event::Crash { place });
        *self.faults.entry("crash after a split").or_default() += 1;
    }

    fn kill(&mut self, place: Place, lasts_us: u64) -> &'static str {
        self.crash(place, false);
        self.schedule(lasts_us, Event::Restart { place });
        "kill"
    }

    fn cut_power(&mut self, place: Place, lasts_us: u64) -> &'static str {
        self.crash(place, true);
        if self.dice.chance(200) && self.lose_directory(place) {
            self.schedule(lasts_us, Event::Restart { place });
            return "directory lost";
        }
        if place >= COORDINATORS && !self.volume_lost && self.dice.chance(200) {
            self.volume_lost = true;
            let volumes = self.processes[place].engine.volumes();
            if let Some(volume) = volumes.get(self.dice.below(volumes.len() as u64) as usize) {
                self.processes[place].engine.lose_volume(*volume);
            }
            self.schedule(lasts_us, Event::Restart { place });
            return "volume lost";
        }
        self.schedule(lasts_us, Event::Restart { place });
        "power cut"
    }

    fn cut_all_power(&mut self, lasts_us: u64) -> &'static str {
        for place in 0..PROCESSES {
            self.crash(place, true);
            let after_us = self.dice.below(lasts_us) / 4;
            self.schedule(after_us, Event::Restart { place });
        }
        "power cut everywhere"
    }

    fn pause(&mut self, place: Place, lasts_us: u64) -> &'static str {
        if self.processes[place].core.is_some() && !self.processes[place].paused {
            self.processes[place].paused = true;
            self.schedule(lasts_us, Event::Resume { place });
        }
        "pause"
    }

    fn isolate(&mut self, place: Place, lasts_us: u64) -> &'static str {
        let way = self.dice.below(3);
        // Often clients still reach it: an old leader that doesn't know better meets stale routes.
        let from = if self.dice.chance(600) { PROCESSES } else { EVERYWHERE };
        for other in (0..from).filter(|other| *other != place) {
            if way != 1 {
                self.network.cut(place, other);
            }
            if way != 2 {
                self.network.cut(other, place);
            }
        }
        self.schedule(lasts_us, Event::Undo(Fault::Network));
        if way == 0 { "isolation" } else { "one-way isolation" }
    }

    /// Everybody is on one of two sides; some pairs may still see each other, or one way only.
    fn partition(&mut self, lasts_us: u64) -> &'static str {
        let who = if self.dice.chance(500) { PROCESSES } else { EVERYWHERE };
        let sides: Vec<bool> = (0..who).map(|_| self.dice.chance(500)).collect();
        let leaks = self.dice.below(300);
        for from in 0..who {
            for to in 0..who {
                if sides[from] != sides[to] && !self.dice.chance(leaks) {
                    self.network.cut(from, to);
                }
            }
        }
        self.schedule(lasts_us, Event::Undo(Fault::Network));
        "partition"
    }

    fn lose_packets(&mut self, lasts_us: u64) -> &'static str {
        self.network.loss = self.dice.below(200);
        self.network.doubled = self.dice.below(200);
        self.network.straggling = self.dice.below(50);
        self.network.jitter_us = self.dice.below(60_000);
        self.schedule(lasts_us, Event::Undo(Fault::Network));
        "lossy network"
    }

    /// The wall clock of one process is wrong: by a little, by hours or years, or it stands. That of at
    /// most one node at a time, so the one that was wrong before is set right.
    fn jump_clock(&mut self, place: Place) -> &'static str {
        if place >= COORDINATORS {
            for other in COORDINATORS..COORDINATORS + NODES {
                let clock = &mut self.processes[other].clock;
                (clock.wall_offset_ms, clock.stands_at_ms) = (0, None);
            }
        }
        let now_ms = self.processes[place].now(self.now_us).wall_ms;
        let (hour_ms, year_ms) = (3_600_000, 365 * 24 * 3_600_000);
        let behind = self.dice.chance(400);
        let (jump_ms, what) = match self.dice.below(8) {
            0 => {
                self.processes[place].clock.stands_at_ms = Some(now_ms);
                return "clock that stands";
            }
            1 | 2 => (self.dice.below(2_000), "clock jump"),
            3..=5 => (self.dice.between(1, 9 * hour_ms), "clock jump of hours"),
            6 => (self.dice.between(1, 50) * year_ms, "clock jump of years"),
            _ => (0, "clock set right"),
        };
        let jump_ms = jump_ms as i64;
        let clock = &mut self.processes[place].clock;
        clock.stands_at_ms = None;
        clock.wall_offset_ms = if behind { -jump_ms } else { jump_ms };
        what
    }

    /// Everything is switched off, and on again some hours later. Nobody has heard of a shard meanwhile.
    fn spend_a_night(&mut self, lasts_us: u64) -> &'static str {
        self.cut_all_power(lasts_us);
        self.lose_all_packets();
        let night_us = self.dice.between(1_000, 9 * 3_600_000) * 1000;
        self.nights_us += night_us;
        let began_us = self.true_us();
        self.nights.push(began_us..began_us + lasts_us + DAWN_US);
        for process in &mut self.processes {
            process.clock.nights_us += night_us;
        }
        "night"
    }

    fn slow_disk(&mut self, place: Place, lasts_us: u64) -> &'static str {
        let until_us = self.now_us + lasts_us;
        match self.dice.below(4) {
            0 => {
                self.processes[place].frozen_until_us = until_us;
                return "frozen disk";
            }
            1 => {
                self.processes[place].stutters_until_us = until_us + lasts_us;
                return "disk slow every other second";
            }
            _ => {}
        }
        self.processes[place].sync_us = self.dice.between(10_000, 300_000);
        self.schedule(lasts_us, Event::Undo(Fault::SlowDisk(place)));
        "slow disk"
    }

    fn slow_apply(&mut self, place: Place, lasts_us: u64) -> &'static str {
        self.processes[place].apply_us = self.dice.between(5_000, 200_000);
        self.schedule(lasts_us, Event::Undo(Fault::SlowApply(place)));
        "slow apply"
    }

    /// A leader hands over and doesn't hear what comes of it.
    fn hand_over_deaf(&mut self) -> &'static str {
        let leads = |place: &Place| {
            let core = self.processes[*place].core.as_ref();
            core.and_then(|core| core.shards.keys().copied().find(|shard| core.leads(*shard)))
        };
        let leaders: Vec<_> = (COORDINATORS..PROCESSES)
            .filter_map(|place| leads(&place).map(|shard| (place, shard)))
            .collect();
        let chosen = self.dice.below(leaders.len() as u64) as usize;
        if let Some((place, shard)) = leaders.get(chosen).copied() {
            for other in (0..PROCESSES).filter(|other| *other != place) {
                self.network.cut(other, place);
            }
            self.feed(place, Input::TransferLeader { shard, to: None });
            self.schedule(500_000, Event::Undo(Fault::Network));
        }
        "deaf hand-over"
    }

    fn break_disk(&mut self, place: Place) -> &'static str {
        if self.processes[place].core.is_some() {
            self.processes[place].disk.fail_after(self.dice.below(40));
        }
        "disk error"
    }

    pub(crate) fn undo(&mut self, fault: Fault) {
        match fault {
            Fault::Network => self.network.heal(),
            Fault::SlowDisk(place) => self.processes[place].sync_us = USUAL_SYNC_US,
            Fault::SlowApply(place) => self.processes[place].apply_us = USUAL_APPLY_US,
        }
    }

    /// The node that leads most.
    pub(crate) fn most_leading(&self) -> Place {
        let leads = |place: &Place| {
            let core = self.processes[*place].core.as_ref();
            core.map_or(0, |core| core.shards.keys().filter(|shard| core.leads(**shard)).count())
        };
        (COORDINATORS..PROCESSES).max_by_key(leads).unwrap_or(COORDINATORS)
    }

    /// The disk of a place hangs for so long, with nothing else amiss.
    pub(crate) fn freeze_disk(&mut self, place: Place, lasts_us: u64) {
        self.processes[place].frozen_until_us = self.now_us + lasts_us;
        self.tell(|world| format!("the disk of {} hangs", world.processes[place].name));
    }

    /// The storm is over: everything that can be mended is.
    pub(crate) fn calm(&mut self) {
        self.stormy = false;
        self.network.heal();
        for place in 0..COORDINATORS + NODES {
            self.processes[place].sync_us = USUAL_SYNC_US;
            self.processes[place].apply_us = USUAL_APPLY_US;
            self.processes[place].frozen_until_us = 0;
            self.processes[place].stutters_until_us = 0;
            self.schedule(0, Event::Resume { place });
            self.schedule(1, Event::Restart { place });
        }
        self.tell(|_| "the faults are over".to_owned());
    }
}
