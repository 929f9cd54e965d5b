//! Who leads, and how that changes.

use crate::harness::{Outcome, SHARD, World, assert_golden, member, replica_on, voter};
use kvdb_model::Role;
use kvdb_replication::Input;
use kvdb_replication::message::MessageType;

#[test]
fn the_first_of_a_new_shard_leads_as_soon_as_the_others_are_there() {
    let mut world = World::new(3);
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    world.create_on(1, descriptor.clone(), true);
    world.run_ms(60);
    assert_eq!(world.leader(SHARD), None, "nobody else is there");
    world.create_on(2, descriptor, false);
    world.run_until("n1 leads with n2", 20, |world| world.leader(SHARD) == Some(1));
}

/// A new shard of three that n3 hasn't heard of, and whose first leader is gone.
fn one_unborn_and_one_gone() -> World {
    let mut world = World::new(3);
    world.isolate(3);
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    world.create_on(1, descriptor.clone(), true);
    world.create_on(2, descriptor, false);
    world.run_until("a leader", 100, |world| world.leader(SHARD) == Some(1));
    let ticket = world.write(1, "a");
    world.run_ms(30);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    world.crash(1);
    world.heal();
    world
}

#[test]
fn a_voter_that_was_never_born_comes_to_life_when_its_vote_is_asked_for_again_and_again() {
    let mut world = one_unborn_and_one_gone();
    world.run_until("another leader", 3000, |world| world.leader(SHARD) == Some(2));
    world.run_until("its state", 1000, |world| world.words(3) == ["a"]);
}

#[test]
fn a_voter_whose_birth_is_a_moment_away_is_not_brought_to_life_by_a_candidate() {
    let mut world = one_unborn_and_one_gone();
    world.run_ms(400);
    assert!(world.status(3).is_none(), "asked once");
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    world.create_on(3, descriptor, false);
    world.run_until("another leader", 1000, |world| world.leader(SHARD) == Some(2));
    world.run_until("its log", 1000, |world| world.words(3) == ["a"]);
    assert_eq!(world.snapshots_sent, 0);
}

#[test]
fn a_first_replica_that_is_created_late_needs_no_snapshot() {
    let mut world = World::new(3);
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    for id in [1, 2] {
        world.create_on(id, descriptor.clone(), id == 1);
    }
    // The third has heard of the shard, and has others to make before.
    world.feed(3, Input::Expect { shards: vec![SHARD] });
    world.run_until("a leader", 1000, |world| world.leader(SHARD) == Some(1));
    world.write(1, "a");
    world.run_ms(5000);
    assert!(world.status(3).is_none(), "its leader's messages make no replica");
    world.create_on(3, descriptor, false);
    world.run_until("its log", 1000, |world| world.words(3) == ["a"]);
    assert_eq!(world.snapshots_sent, 0);
}

#[test]
fn a_first_replica_that_its_leader_has_spoken_to_before_it_was_born_needs_no_snapshot() {
    let mut world = World::new(3);
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    for id in [1, 2] {
        world.create_on(id, descriptor.clone(), id == 1);
    }
    // The third has not heard of the shard yet.
    world.run_until("a leader", 1000, |world| world.leader(SHARD) == Some(1));
    world.write(1, "a");
    world.run_ms(500);
    assert!(world.status(3).is_some_and(|status| status.awaits_snapshot));
    world.create_on(3, descriptor, false);
    world.run_until("its log", 1000, |world| world.words(3) == ["a"]);
    assert_eq!(world.snapshots_sent, 0);
}

#[test]
fn a_first_replica_that_never_comes_gets_its_state_from_its_leader() {
    let mut world = World::new(3);
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    for id in [1, 2] {
        world.create_on(id, descriptor.clone(), id == 1);
    }
    world.feed(3, Input::Expect { shards: vec![SHARD] });
    world.run_until("a leader", 1000, |world| world.leader(SHARD) == Some(1));
    world.write(1, "a");
    world.run_until("its state", 60_000, |world| world.words(3) == ["a"]);
    assert_eq!(world.snapshots_sent, 1);
}

#[test]
fn a_destroyed_voter_stays_so_however_often_it_is_asked() {
    let mut world = World::with_leader(3);
    world.feed(3, Input::Destroy { shard: SHARD, replica: replica_on(SHARD, 3) });
    world.run_ms(20);
    world.crash(1);
    world.run_ms(3000);
    assert!(world.status(3).is_none());
    assert_eq!(world.leader(SHARD), None);
}

#[test]
fn a_new_shard_is_led_by_the_replica_that_was_told_to_stand() {
    let mut world = World::new(3);
    world.tell_messages = true;
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(9);
    assert_eq!(world.leader(SHARD), Some(1));
    assert_golden("first_election", &world.trace());
}

#[test]
fn when_the_leader_crashes_another_replica_takes_over() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(60);
    world.crash(1);
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some_and(|id| id != 1));
    let leader = world.leader(SHARD).unwrap();
    world.write(leader, "b");
    world.run_ms(20);
    world.restart(1);
    world.run_ms(300);
    assert_eq!(world.words(1), ["a", "b"]);
    assert_golden("failover", &world.trace());
}

#[test]
fn no_leader_emerges_while_votes_are_lost_and_one_does_when_they_arrive() {
    let mut world = World::new(3);
    world.drop_messages(MessageType::MsgRequestVoteResponse);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(3000);
    assert_eq!(world.leader(SHARD), None);
    world.heal();
    world.run_until("a leader", 2000, |world| world.leader(SHARD).is_some());
}

#[test]
fn a_replica_that_was_cut_off_comes_back_without_disturbing_the_leader() {
    let mut world = World::with_leader(3);
    world.run_ms(50);
    let term = world.status(1).unwrap().term;
    world.isolate(3);
    world.run_ms(3000);
    world.heal();
    world.run_ms(1000);
    assert_eq!(world.leader(SHARD), Some(1));
    assert_eq!(world.status(3).unwrap().term, term);
}

#[test]
fn a_leader_that_hears_from_nobody_steps_down() {
    let mut world = World::with_leader(3);
    world.isolate(1);
    world.run_until("a new leader", 1000, |world| world.leader(SHARD).is_some_and(|id| id != 1));
    world.run_ms(500);
    assert_ne!(world.status(1).unwrap().role, kvdb_replication::ReplicaRole::Leader);
}

#[test]
fn leadership_is_handed_over_on_request() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(60);
    world.tell_messages = true;
    world.transfer(1, 2);
    world.run_ms(8);
    assert_eq!(world.leader(SHARD), Some(2));
    assert_golden("transfer", &world.trace());
}

#[test]
fn leadership_is_handed_over_right_after_the_quorum_was_checked() {
    // Raft forgets then who was heard from, which must not leave a stopping node without heirs.
    for after_ms in 0..220 {
        let mut world = World::with_leader(3);
        world.run_ms(after_ms);
        world.feed(1, kvdb_replication::Input::TransferAll);
        world.run_ms(50);
        assert_ne!(world.leader(SHARD), Some(1), "told to hand over after {after_ms} ms");
    }
}

#[test]
fn a_handover_to_a_learner_or_a_stranger_is_ignored() {
    let mut world = World::with_leader(2);
    world.change(1, &[voter(1), member(2, Role::Learner)]);
    world.run_ms(50);
    world.transfer(1, 2);
    world.transfer(1, 7);
    world.run_ms(300);
    assert_eq!(world.leader(SHARD), Some(1));
    let ticket = world.write(1, "a");
    world.run_ms(20);
    assert!(matches!(world.outcome(ticket), Some(crate::harness::Outcome::Written(_))));
}

#[test]
fn a_handover_to_one_that_is_gone_holds_no_write_up() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.crash(2);
    // Twice an election timeout: who was heard from before is forgotten.
    world.run_ms(400);
    for _ in 0..20 {
        world.transfer(1, 2);
        let ticket = world.write(1, "a");
        world.run_ms(20);
        assert!(matches!(world.outcome(ticket), Some(crate::harness::Outcome::Written(_))));
    }
    world.restart(2);
    for _ in 0..20 {
        world.transfer(1, 2);
        world.run_ms(20);
    }
    assert_eq!(world.leader(SHARD), Some(2));
}

#[test]
fn a_restarted_replica_grants_no_vote_for_one_election_timeout() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.crash(1);
    world.crash(2);
    world.restart(2);
    // n3 stands as soon as it misses the leader; n2 has forgotten what it promised to n1.
    let silence_ends_ms = world.now_us / 1000 + 19 * 10;
    world.run_until("a new leader", 1500, |world| world.leader(SHARD).is_some());
    assert!(world.now_us / 1000 >= silence_ends_ms);
}

#[test]
fn a_wall_clock_that_is_wrong_by_any_amount_changes_nothing() {
    let year_ms = 365 * 24 * 3_600_000;
    for wrong_ms in [-400, 8 * 3_600_000, 50 * year_ms, -3_600_000, -30 * year_ms] {
        let mut world = World::with_leader(3);
        world.run_ms(100);
        let term = world.status(1).unwrap().term;
        world.nodes.get_mut(&1).unwrap().wall_offset_ms = wrong_ms;
        let ticket = world.write(1, "a");
        world.run_ms(500);
        assert!(matches!(world.outcome(ticket), Some(crate::harness::Outcome::Written(_))));
        assert_eq!(world.leader(SHARD), Some(1));
        assert_eq!(world.status(1).unwrap().term, term);
        let version = world.nodes[&1].state(SHARD).unwrap().last_version;
        let behind_ms = (crate::harness::EPOCH_MS + world.now_us / 1000) - version.millis();
        assert!((400..=600).contains(&behind_ms), "{wrong_ms}: {behind_ms} ms behind");
        // Also when everybody starts with it, and another one leads.
        world.crash(1);
        world.restart(1);
        world.transfer(world.leader(SHARD).unwrap_or(2), 1);
        world.run_until("a leader", 2000, |world| world.leader(SHARD).is_some());
        let leader = world.leader(SHARD).unwrap();
        let ticket = world.write(leader, "b");
        world.run_ms(100);
        assert!(matches!(world.outcome(ticket), Some(crate::harness::Outcome::Written(_))));
        let version = world.nodes[&leader].state(SHARD).unwrap().last_version;
        let now_ms = crate::harness::EPOCH_MS + world.now_us / 1000;
        assert!(version.millis().abs_diff(now_ms) <= 200, "{wrong_ms}");
    }
}

#[test]
fn without_word_from_the_coordinators_the_nodes_agree_on_the_time_among_themselves() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    let ticket = world.write(1, "a");
    world.run_ms(100);
    assert!(matches!(world.outcome(ticket), Some(crate::harness::Outcome::Written(_))));
    // All stop for an hour, and one comes back with a wrong wall clock.
    for node in 1..=3 {
        world.crash(node);
    }
    world.run_ms(3_600_000);
    world.nodes.get_mut(&2).unwrap().wall_offset_ms = 8 * 3_600_000;
    for node in 1..=3 {
        world.restart_untold(node);
    }
    world.run_until("a leader", 2000, |world| world.leader(SHARD).is_some());
    world.exchange_clocks();
    // A look is taken with the next tick.
    world.run_ms(200);
    let leader = world.leader(SHARD).unwrap();
    let ticket = world.write(leader, "b");
    world.run_ms(200);
    assert!(matches!(world.outcome(ticket), Some(crate::harness::Outcome::Written(_))));
    let state = world.nodes[&leader].state(SHARD).unwrap();
    let now_ms = crate::harness::EPOCH_MS + world.now_us / 1000;
    assert!(state.last_version.millis().abs_diff(now_ms) <= 700);
    assert!(state.jumped_ms.abs_diff(3_600_000) <= 3000, "{}", state.jumped_ms);
}

#[test]
fn the_same_inputs_give_the_same_effects() {
    let tell = || {
        let mut world = World::configured(3, 7, |_| {});
        world.tell_messages = true;
        world.network.jitter_us = 3000;
        world.network.lost_permille = 50;
        world.network.doubled_permille = 50;
        world.create(SHARD, &[1, 2, 3], 1);
        for round in 0..20 {
            world.run_ms(50);
            world.write(1 + round % 3, &format!("w{round}"));
            world.read(1 + (round + 1) % 3);
        }
        world.crash(1);
        world.run_ms(500);
        world.restart(1);
        world.run_ms(500);
        world.trace()
    };
    let (first, second) = (tell(), tell());
    assert!(first.lines().count() > 200);
    assert_eq!(first, second);
}
