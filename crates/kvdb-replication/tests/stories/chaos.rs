//! Hundreds of random stories. Each seed is one; everything that goes wrong in it follows from the
//! seed, so a failure is told by the seed alone (`KVDB_SEED=n` replays it, `KVDB_SEEDS=n` tells more).
//!
//! The rules are those of `harness/checks.rs`: one leader a term, matching logs, nothing committed
//! is lost, nothing is claimed before it is durable, no stale read, each ticket answered once. In
//! the end the faults stop; then all must come together and every question must have an answer.

use crate::harness::{Outcome, SHARD, World, chance, member, up_to};
use kvdb_model::{Replica, Role};
use kvdb_replication::HostConfig;

const SEEDS: u64 = 200;
const STEPS: u64 = 120;

#[test]
fn random_faults_break_no_promise() {
    if let Ok(seed) = std::env::var("KVDB_SEED") {
        println!("{}", Story::tell(seed.parse().unwrap()).world.trace());
        return;
    }
    let mut written = 0;
    let mut read = 0;
    let mut changed = 0;
    let mut snapshots = 0;
    let seeds = std::env::var("KVDB_SEEDS").map_or(SEEDS, |count| count.parse().unwrap());
    for seed in 1..=seeds {
        let told = std::panic::catch_unwind(|| {
            let story = Story::tell(seed);
            (story.count(), story.world.snapshots_sent)
        });
        let Ok((counts, sent)) = told else { panic!("seed {seed} failed; KVDB_SEED={seed}") };
        written += counts[0];
        read += counts[1];
        changed += counts[2];
        snapshots += sent;
    }
    // A story in which nothing happens proves nothing.
    println!("{written} writes, {read} reads, {changed} changes, {snapshots} snapshots");
    assert!(written > 20 * seeds as usize, "{written} writes");
    assert!(read > 10 * seeds as usize, "{read} reads");
    assert!(changed > seeds as usize / 2, "{changed} changes");
    assert!(snapshots > seeds as usize / 2, "{snapshots} snapshots");
}

struct Story {
    world: World,
    tickets: Vec<usize>,
    words: u64,
    /// The node whose engine may get lost.
    unlucky: u64,
}

fn rough(config: &mut HostConfig) {
    config.log_retain_bytes = 400;
    config.max_inflight_messages = 8;
    config.max_message_bytes = 300;
    config.hibernate_ticks = [0, 5, 7, 12, 40][config.seed as usize % 5];
}

impl Story {
    fn tell(seed: u64) -> Story {
        let mut world = World::configured(4, seed, rough);
        world.network.jitter_us = 2000;
        world.create(SHARD, &[1, 2, 3], 1);
        world.run_ms(30);
        let unlucky = 1 + seed % 4;
        let mut story = Story { world, tickets: Vec::new(), words: 0, unlucky };
        for _ in 0..STEPS {
            story.go_on();
        }
        story.end_well();
        story
    }

    fn pick(&mut self, limit: u64) -> u64 {
        up_to(&mut self.world.rng, limit)
    }

    fn pick_node(&mut self) -> u64 {
        1 + self.pick(4)
    }

    fn go_on(&mut self) {
        for _ in 0..self.pick(4) {
            self.ask();
        }
        if chance(&mut self.world.rng, 300) {
            self.disturb();
        }
        let ms = 1 + self.pick(25);
        self.world.run_ms(ms);
    }

    /// Asks the leader mostly, as a client would.
    fn ask(&mut self) {
        let anybody = self.pick_node();
        let leader = self.world.leader(SHARD);
        let node =
            if chance(&mut self.world.rng, 100) { anybody } else { leader.unwrap_or(anybody) };
        let ticket = if chance(&mut self.world.rng, 600) {
            self.words += 1;
            let word = format!("w{}", self.words);
            self.world.write(node, &word)
        } else {
            let beside = chance(&mut self.world.rng, 500);
            let read = if beside { self.world.read_beside(node) } else { None };
            read.unwrap_or_else(|| self.world.read(node))
        };
        self.tickets.push(ticket);
    }

    fn disturb(&mut self) {
        let node = self.pick_node();
        let other = self.pick_node();
        let runs = self.world.nodes[&node].host.is_some();
        match self.pick(16) {
            0 | 1 if runs => {
                let unsynced = self.world.nodes[&node].disk.unsynced_records() as u64;
                let kept = self.pick(unsynced + 1) as usize;
                self.world.crash_keeping(node, kept);
                // Only ever one: a majority without state can't be helped.
                if node == self.unlucky && chance(&mut self.world.rng, 500) {
                    self.world.lose_engine(node);
                }
            }
            0..=3 if !runs => self.world.restart(node),
            2 => self.world.network.cut_one_way(node, other),
            3 => self.world.isolate(node),
            4 | 5 => self.calm_network(),
            6 => {
                self.world.network.lost_permille = 100;
                self.world.network.doubled_permille = 100;
                self.world.network.jitter_us = 20_000;
            }
            7 if runs => self.world.pause(node),
            8 => self.resume_all(),
            9 if runs => self.world.flush(node, SHARD),
            10 if runs => {
                let ahead = self.pick(2000) as i64 - 1000;
                self.world.nodes.get_mut(&node).unwrap().wall_offset_ms += ahead;
            }
            11 => self.slow_disks_and_apply(node),
            12 => self.hand_over(other),
            13..=15 => self.change_members(),
            _ => self.world.flush(other, SHARD),
        }
    }

    fn calm_network(&mut self) {
        self.world.heal();
        self.world.network.lost_permille = 0;
        self.world.network.doubled_permille = 0;
        self.world.network.jitter_us = 2000;
    }

    fn resume_all(&mut self) {
        for node in 1..=4 {
            if self.world.nodes[&node].paused {
                self.world.resume(node);
            }
        }
    }

    fn slow_disks_and_apply(&mut self, node: u64) {
        self.world.disk_us = 100 + self.pick(10_000);
        self.world.apply_us = 10 + self.pick(5_000);
        if chance(&mut self.world.rng, 300) {
            self.world.hold_apply(node);
        }
    }

    fn hand_over(&mut self, to: u64) {
        if let Some(leader) = self.world.leader(SHARD) {
            self.world.transfer(leader, to);
        }
    }

    fn change_members(&mut self) {
        let Some(leader) = self.world.leader(SHARD) else { return };
        let Some(state) = self.world.nodes[&leader].state(SHARD) else { return };
        let present = state.descriptor.replicas.clone();
        let next = self.next_members(&present);
        let ticket = self.world.change(leader, &next);
        self.tickets.push(ticket);
    }

    /// The next step on the way of a replica from one node to another.
    fn next_members(&mut self, present: &[Replica]) -> Vec<Replica> {
        let joint =
            present.iter().any(|replica| matches!(replica.role, Role::Incoming | Role::Outgoing));
        if joint {
            let stay = present.iter().filter(|replica| replica.role != Role::Outgoing);
            return stay.map(|replica| Replica { role: Role::Voter, ..*replica }).collect();
        }
        if let Some(learner) = present.iter().find(|replica| replica.role == Role::Learner) {
            if !self.has_state(learner) {
                // A voter that has nothing yet would cost the group a vote for as long.
                let voters = present.iter().filter(|replica| replica.role == Role::Voter);
                return voters.copied().collect();
            }
            let leaving = present[self.pick(present.len() as u64) as usize].replica_id;
            let role_of = |replica: &Replica| match replica.role {
                Role::Learner => Role::Incoming,
                _ if replica.replica_id == leaving => Role::Outgoing,
                role => role,
            };
            return present
                .iter()
                .map(|replica| Replica { role: role_of(replica), ..*replica })
                .collect();
        }
        let absent = (1..=4).find(|node| present.iter().all(|there| there.node_id.0 != *node));
        let Some(node) = absent else { return present[1..].to_vec() };
        let mut next = present.to_vec();
        next.push(self.newcomer(node));
        next
    }

    fn has_state(&self, replica: &Replica) -> bool {
        let durable = &self.world.nodes[&replica.node_id.0].disk.durable;
        durable.replicas.get(&replica.replica_id).is_some_and(|log| log.volume.is_some())
    }

    fn newcomer(&mut self, node: u64) -> Replica {
        // Replica ids are never used twice.
        self.words += 1;
        let mut replica = member(node, Role::Learner);
        replica.replica_id.0 = 1000 + self.words;
        replica
    }

    fn end_well(&mut self) {
        self.calm_network();
        self.resume_all();
        self.world.disk_us = 200;
        self.world.apply_us = 20;
        for node in 1..=4 {
            if self.world.nodes[&node].host.is_none() {
                self.world.restart(node);
            }
            self.world.release_disk(node);
            self.world.release_apply(node);
        }
        self.world.run_until("a leader that serves", 5000, |world| world.leader(SHARD).is_some());
        self.world.run_ms(1500);
        let leader = self.world.leader(SHARD).expect("it stays");
        let last = self.world.write(leader, "last");
        let read = self.world.read(leader);
        self.world.run_ms(1000);
        assert!(
            matches!(self.world.outcome(last), Some(Outcome::Written(_))),
            "{}",
            self.world.trace()
        );
        assert!(matches!(self.world.outcome(read), Some(Outcome::Read(_))));
        assert_eq!(self.world.unanswered(), 0, "{}", self.world.trace());
        self.all_agree(leader);
    }

    fn all_agree(&self, leader: u64) {
        let state = self.world.nodes[&leader].state(SHARD).unwrap();
        for replica in &state.descriptor.replicas {
            let there = self.world.nodes[&replica.node_id.0].state(SHARD);
            let words = there.map(|state| &state.words);
            assert_eq!(words, Some(&state.words), "{replica:?}\n{}", self.world.trace());
        }
    }

    fn count(&self) -> [usize; 3] {
        let mut counts = [0; 3];
        for ticket in &self.tickets {
            match self.world.outcome(*ticket) {
                Some(Outcome::Written(_)) => counts[0] += 1,
                Some(Outcome::Read(_)) => counts[1] += 1,
                Some(Outcome::Changed(true)) => counts[2] += 1,
                _ => {}
            }
        }
        counts
    }
}
