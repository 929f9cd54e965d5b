//! Coordinators come, go, and lose their directories: greeting, beginning, replacing.
//!
//! An operator who never sleeps keeps between two and four of them: a number that has lost what it
//! promised is taken from the group, and whoever was taken from it comes back as another number
//! with an empty directory.

use crate::network::Place;
use crate::node::address_of;
use crate::packet::{Call, Packet, Reply};
use crate::process::Process;
use crate::world::{COORDINATORS, Event, FOUNDERS, World};
use kvdb_control::{
    Beginning, ControlCommand, CoordinatorRecord, Greeted, Knowledge, MustNotBegin, Standing,
    decide, first_descriptor,
};
use kvdb_model::{NodeId, Replica, Role, ShardId, Work};
use std::collections::BTreeMap;

/// Between two rounds of greetings.
pub(crate) const GREET_US: u64 = 50_000;
/// Of 1000 looks of a leader, how many times the operator wants another group.
const RESTLESS: u64 = 60;

impl World {
    /// The `--peers` of a coordinator.
    fn peers_of(place: Place, id: NodeId) -> BTreeMap<NodeId, String> {
        let founders = (0..FOUNDERS).map(|place| (NodeId(place as u64 + 1), address_of(place)));
        founders.chain([(id, address_of(place))]).collect()
    }

    /// One more look around: who am I, if that isn't clear; was I removed, if it may be so.
    pub(crate) fn greet(&mut self, place: Place) {
        let Some(own) = self.processes[place].node_id else { return };
        let Some(core) = &mut self.processes[place].core else { return };
        let answers = std::mem::take(&mut core.greeted);
        core.greeting += 1;
        if core.admitted {
            if answers.iter().any(|answer| answer.standing == Standing::Removed) {
                return self.start_anew(place);
            }
        } else {
            match decide(own, &Self::peers_of(place, own), &answers) {
                Ok(Some(beginning)) => return self.begin_as(place, beginning),
                Ok(None) => {}
                Err(MustNotBegin::Removed(_) | MustNotBegin::LeftBehind(_)) => {
                    return self.start_anew(place);
                }
                Err(MustNotBegin::OtherDirectory(_)) => return self.give_up_number(place),
                Err(MustNotBegin::OtherPeers { .. }) => {
                    // A newcomer that was started before the group.
                    self.crash(place, false);
                    return self.schedule(500_000, Event::Restart { place });
                }
            }
        }
        self.send_greetings(place);
    }

    fn send_greetings(&mut self, place: Place) {
        let process = &self.processes[place];
        let (Some(own), Some(core)) = (process.node_id, &process.core) else { return };
        let mut others = Self::peers_of(place, own);
        others.extend(core.introduced.clone());
        let known = core.control.with(|view| view.state.coordinators().clone());
        let present = known.into_iter().filter(|(_, record)| !record.is_removed);
        others.extend(present.map(|(id, record)| (id, record.address)));
        let round = core.greeting;
        let token = process.token;
        for (_, address) in others.into_iter().filter(|(id, _)| *id != own) {
            if let Some(to) = crate::node::place_at(&address) {
                self.send(place, to, Packet::Call(Call::Greet { round, id: own, token }));
            }
        }
    }

    pub(crate) fn hear_greeting(
        &mut self,
        from: Place,
        place: Place,
        round: u64,
        (id, token): (NodeId, u128),
    ) {
        if id.0 != 0 && self.place_of_coordinator(place, id).is_none() {
            // It was added while this one was cut off.
            if let Some(core) = &mut self.processes[place].core {
                core.introduced.insert(id, address_of(from));
            }
        }
        let process = &self.processes[place];
        let (Some(own), Some(core)) = (process.node_id, &process.core) else { return };
        let peers = Self::peers_of(place, own);
        let greeted = core.control.with(|view| {
            let knowledge = Knowledge {
                id: own,
                token: process.token,
                peers: &peers,
                founders: &process.founders,
                state: &view.state,
                group: core.shards.get(&ShardId::CONTROL).map(|open| open.descriptor()),
                is_settled: core.is_settled(ShardId::CONTROL),
                has_begun: core.host.status(ShardId::CONTROL).is_some(),
            };
            knowledge.answer_to(id, token)
        });
        self.send(place, from, Packet::Reply(Reply::Greeted { round, token, greeted }));
    }

    /// What comes late, or was meant for another directory at the same place, isn't heard.
    pub(crate) fn hear_greeted(
        &mut self,
        place: Place,
        (round, token): (u64, u128),
        greeted: Greeted,
    ) {
        let is_own = token == self.processes[place].token;
        let Some(core) = self.processes[place].core.as_mut().filter(|_| is_own) else { return };
        if round != core.greeting || core.greeted.iter().any(|one| one.id == greeted.id) {
            return;
        }
        if greeted.standing != Standing::NotBegun {
            core.introduced.extend(greeted.members.clone());
        }
        core.greeted.push(greeted);
    }

    fn begin_as(&mut self, place: Place, beginning: Beginning) {
        let process = &mut self.processes[place];
        let Some(own) = process.node_id else { return };
        let founders = match beginning {
            Beginning::Found(mut others) => {
                let address = address_of(place);
                let record = CoordinatorRecord { address, token: process.token, is_removed: false };
                others.insert(own, record);
                Some(others)
            }
            Beginning::Follow(founders) => Some(founders),
            Beginning::Join => None,
        };
        let joins = founders.is_none();
        let founds = founders.is_some();
        if let Some(founders) = founders {
            process.founders = founders;
        }
        // It had promised nothing.
        process.lost = false;
        if let Some(core) = &mut process.core {
            core.admitted = true;
        }
        let how = if joins { "joins the coordinators" } else { "founds the coordinators" };
        self.tell(|world| format!("{} {how}", world.processes[place].name));
        if founds {
            let founders = (1..=FOUNDERS as u64).map(NodeId);
            self.create_replica(place, first_descriptor(founders), place == 0);
        }
    }

    /// A coordinator that must not come back: its number is to be taken from the group.
    fn give_up_number(&mut self, place: Place) {
        self.crash(place, false);
        self.processes[place].stranded = true;
        self.tell(|world| format!("{} has forgotten who it was", world.processes[place].name));
    }

    /// With an empty directory, under a number that nobody had.
    pub(crate) fn start_anew(&mut self, place: Place) {
        self.crash(place, false);
        self.next_coordinator += 1;
        let id = NodeId(self.next_coordinator);
        let life = self.processes[place].life;
        let token = u128::from(self.dice.any());
        let clock = self.processes[place].clock;
        self.processes[place] =
            Process { life, clock, token, ..Process::new(format!("c{id}"), true, Some(id)) };
        *self.faults.entry("coordinator replaced").or_default() += 1;
        self.schedule(100_000, Event::Restart { place });
    }

    /// The directory of a coordinator is gone; its number isn't. `false`: not now, since what
    /// another one lost isn't made up for yet, or too few vote to go on without it.
    pub(crate) fn lose_directory(&mut self, place: Place) -> bool {
        let group = self.checks.newest(ShardId::CONTROL);
        let is_whole = group.is_none_or(|group| {
            let votes = |replica: &Replica| replica.role == Role::Voter;
            group.replicas.iter().all(votes) && group.replicas.len() >= FOUNDERS
        });
        let is_one = place < COORDINATORS && !self.processes[place].stranded;
        if !is_one || !is_whole || self.directory_lost {
            return false;
        }
        self.directory_lost = true;
        let token = u128::from(self.dice.any());
        let process = &mut self.processes[place];
        let (name, id, life) = (process.name.clone(), process.node_id, process.life);
        let clock = process.clock;
        *process = Process { life, clock, token, lost: true, ..Process::new(name, true, id) };
        true
    }

    /// Whether there is reason to ask: nobody leads it, or it has no vote to keep.
    pub(crate) fn may_be_removed(&self, place: Place) -> bool {
        let process = &self.processes[place];
        let (Some(own), Some(core)) = (process.node_id, &process.core) else { return false };
        let votes = core.shards.get(&ShardId::CONTROL).is_some_and(|open| {
            open.descriptor().replica_on(own).is_some_and(|replica| replica.role == Role::Voter)
        });
        let led = core.host.status(ShardId::CONTROL).is_some_and(|group| group.leader.is_some());
        !votes || !led
    }

    /// What the operator does about the group, seen from its leader.
    pub(crate) fn look_after_members(&mut self, place: Place) -> Option<ControlCommand> {
        let process = &self.processes[place];
        let core = process.core.as_ref()?;
        let known = core.control.with(|view| view.state.coordinators().clone());
        if known.is_empty() {
            return Some(ControlCommand::FoundCoordinators { founders: process.founders.clone() });
        }
        let group = core.shards.get(&ShardId::CONTROL)?.descriptor().clone();
        let work = Work::Replicas(core.control.with(|view| view.state.wanted_coordinators()));
        // Changes of replicas may wait, but are never impossible.
        let _ = self.do_step(place, ShardId::CONTROL, &work);

        let wanted: Vec<NodeId> =
            known.iter().filter(|(_, record)| !record.is_removed).map(|(id, _)| *id).collect();
        let is_plain = group.replicas.iter().all(|replica| replica.role == Role::Voter);
        if let Some(other) = (0..COORDINATORS).find(|other| self.processes[*other].stranded) {
            let id = self.processes[other].node_id?;
            if known.get(&id).is_none_or(|record| record.is_removed) {
                if group.replica_on(id).is_none() {
                    self.start_anew(other);
                }
            } else {
                return Some(ControlCommand::RemoveCoordinator { id });
            }
            return None;
        }
        if is_plain && wanted.len() >= FOUNDERS && group.replicas.len() >= FOUNDERS {
            self.directory_lost = self.processes.iter().any(|process| process.lost);
        }
        if !self.stormy || !self.dice.chance(RESTLESS) {
            return None;
        }
        if wanted.len() > FOUNDERS {
            let id = wanted[self.dice.below(wanted.len() as u64) as usize];
            return Some(ControlCommand::RemoveCoordinator { id });
        }
        let is_new = |process: &&Process| {
            let begins = process.core.as_ref().is_some_and(|core| !core.admitted);
            begins && process.node_id.is_some_and(|id| !known.contains_key(&id))
        };
        let newcomer =
            self.processes[..COORDINATORS].iter().position(|process| is_new(&process))?;
        let (id, token) = (self.processes[newcomer].node_id?, self.processes[newcomer].token);
        Some(ControlCommand::AddCoordinator { id, address: address_of(newcomer), token })
    }

    /// Where a coordinator finds another one.
    pub(crate) fn place_of_coordinator(&self, place: Place, id: NodeId) -> Option<Place> {
        let process = &self.processes[place];
        let core = process.core.as_ref()?;
        let known = core
            .control
            .with(|view| view.state.coordinators().get(&id).map(|record| record.address.clone()));
        let peers = || Self::peers_of(place, process.node_id.unwrap_or_default()).get(&id).cloned();
        let address = known.or_else(|| core.introduced.get(&id).cloned()).or_else(peers)?;
        crate::node::place_at(&address)
    }
}
