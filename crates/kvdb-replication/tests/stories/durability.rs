//! Nothing is claimed before it is durable.

use crate::harness::{Outcome, SHARD, World, assert_golden, member, replica_on, voter};
use kvdb_model::{Role, Term};

#[test]
fn a_vote_leaves_when_it_is_durable() {
    let mut world = World::new(3);
    world.create(SHARD, &[1, 2, 3], 1);
    world.hold_disk(2);
    world.hold_disk(3);
    world.tell_messages = true;
    world.run_ms(100);
    assert_eq!(world.leader(SHARD), None);
    world.say("the disk of n2 goes on");
    world.release_disk(2);
    world.run_ms(5);
    assert_eq!(world.leader(SHARD), Some(1));
    assert_golden("durable_vote", &world.trace());
}

#[test]
fn entries_are_acknowledged_when_they_are_durable() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    world.hold_disk(2);
    world.hold_disk(3);
    world.tell_messages = true;
    let ticket = world.write(1, "a");
    world.run_ms(10);
    assert_eq!(world.outcome(ticket), None);
    world.say("the disk of n3 goes on");
    world.release_disk(3);
    world.run_ms(4);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Written(7)));
    assert_golden("durable_acknowledgement", &world.trace());
}

#[test]
fn a_leader_of_the_past_is_not_told_of_entries_that_are_overwritten_meanwhile() {
    let mut world = World::with_leader(5);
    world.run_ms(30);
    let term = world.status(1).unwrap().term;
    for other in 2..=4 {
        world.network.cut(1, other);
    }
    world.hold_disk(5);
    world.write(1, "a");
    world.run_ms(10);
    world.network.cut(1, 5);
    let follows_another = |world: &World| world.status(5).is_some_and(|own| own.term > term);
    world.run_until("n5 follows another leader", 3000, follows_another);
    world.run_ms(50);
    world.network.heal();
    world.tell_messages = true;
    world.say("the disk of n5 goes on");
    world.release_disk(5);
    world.run_ms(5);
    let trace = world.trace();
    let (_, since) = trace.split_once("the disk of n5 goes on").unwrap();
    assert!(since.contains("appended"), "{since}");
    assert!(!since.contains(&format!("yes, term {term}")), "{since}");
}

#[test]
fn a_majority_of_followers_commits_before_the_leaders_own_disk() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    world.hold_disk(1);
    let ticket = world.write(1, "a");
    world.run_ms(10);
    assert_eq!(world.status(1).unwrap().committed.0, 7);
    assert_eq!(world.outcome(ticket), None, "it applies only what it holds itself");
    world.release_disk(1);
    world.run_ms(4);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Written(7)));
}

#[test]
fn answers_are_not_kept_back_by_a_disk_that_has_nothing_to_do() {
    // With two voters the leader needs every answer of the other one.
    let mut world = World::with_leader(2);
    let term = world.status(1).unwrap().term;
    world.hold_disk(2);
    world.write(1, "a");
    world.run_ms(120);
    // Heartbeats came while the entry was on its way to the disk.
    world.release_disk(2);
    world.run_ms(1000);
    assert_eq!(world.leader(SHARD), Some(1));
    assert_eq!(world.status(1).unwrap().term, term);
}

#[test]
fn a_crash_takes_back_what_nobody_was_told() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    for node in 1..=3 {
        world.hold_disk(node);
    }
    let ticket = world.write(1, "a");
    world.run_ms(10);
    for node in 1..=3 {
        world.crash(node);
    }
    assert_eq!(world.outcome(ticket), Some(&Outcome::Lost));
    for node in 1..=3 {
        world.restart(node);
    }
    world.run_until("a leader", 1000, |world| world.leader(SHARD).is_some());
    world.run_ms(50);
    assert_eq!(world.words(1), Vec::<String>::new());
}

#[test]
fn what_was_acknowledged_survives_a_crash_of_all() {
    let mut world = World::with_leader(3);
    for word in ["a", "b", "c"] {
        world.write(1, word);
        world.run_ms(10);
    }
    for node in 1..=3 {
        world.crash(node);
    }
    for node in 1..=3 {
        world.restart(node);
    }
    world.run_until("a leader", 1000, |world| world.leader(SHARD).is_some());
    world.run_ms(50);
    for node in 1..=3 {
        assert_eq!(world.words(node), ["a", "b", "c"]);
    }
}

#[test]
fn a_replica_that_has_lost_what_it_acknowledged_is_stopped_by_name() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(10);
    world.crash(3);
    let older = world.nodes[&3].disk.durable.clone();
    world.restart(3);
    world.run_ms(50);
    assert_eq!(world.words(3), ["a"]);
    world.write(1, "b");
    world.run_ms(10);
    world.crash(3);
    let disk = &mut world.nodes.get_mut(&3).unwrap().disk;
    (disk.durable, disk.written) = (older.clone(), older);
    world.restart(3);
    world.run_until("it is told", 1000, |world| !world.lost_promises.is_empty());
    let lost = world.lost_promises[0];
    assert_eq!((lost.shard, lost.replica), (SHARD, replica_on(SHARD, 3)));
    assert!(lost.ends_at < lost.acknowledged, "{lost}");
    // Nobody else notices anything.
    world.write(1, "c");
    world.run_ms(50);
    assert_eq!(world.words(2), ["a", "b", "c"]);
}

#[test]
fn a_replica_that_has_lost_its_engine_keeps_its_log_and_its_promises() {
    let mut world = World::with_leader(3);
    for word in ["a", "b"] {
        world.write(1, word);
        world.run_ms(10);
    }
    world.crash(3);
    world.lose_engine(3);
    world.restart(3);
    world.write(1, "c");
    world.run_until("it has all again", 2000, |world| world.words(3) == ["a", "b", "c"]);
    assert!(world.lost_promises.is_empty());
}

#[test]
fn a_leader_that_needed_no_votes_speaks_when_its_own_is_durable() {
    let mut world = World::with_leader(2);
    world.change(1, &[voter(1), member(2, Role::Learner)]);
    world.run_ms(50);
    world.flush(1, SHARD);
    world.crash(1);
    world.restart(1);
    world.hold_disk(1);
    // That no message of the new term leaves meanwhile is held by the harness.
    world.run_ms(1000);
    assert_eq!(world.leader(SHARD), Some(1));
    let term = world.status(1).unwrap().term;
    assert!(world.status(2).unwrap().term < term);
    world.release_disk(1);
    world.run_ms(100);
    assert_eq!(world.status(2).unwrap().term, term);
}

#[test]
fn a_replica_says_nothing_before_its_birth_is_durable() {
    let mut world = World::new(3);
    world.hold_disk(2);
    world.hold_disk(3);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(100);
    // Not even that they would vote, which promises nothing.
    assert!(world.status(1).unwrap().term < Term(6), "{:?}", world.status(1));
    world.release_disk(2);
    world.run_until("a leader", 1000, |world| world.leader(SHARD).is_some());
}
