//! Strong reads: each shows at least what was known when it was asked (the harness checks that).

use crate::harness::{Outcome, SHARD, World, assert_golden};
use kvdb_model::NodeId;
use kvdb_replication::Rejection;
use kvdb_replication::message::MessageType;

fn read_words(world: &World, ticket: usize) -> Option<Vec<String>> {
    match world.outcome(ticket) {
        Some(Outcome::Read(words)) => Some(words.clone()),
        _ => None,
    }
}

/// n1 leads, and has a lease from the quorum that took its write.
fn written_once() -> World {
    let mut world = World::with_leader(3);
    world.run_ms(50);
    world.write(1, "a");
    world.run_ms(10);
    world
}

#[test]
fn a_read_asks_a_majority_once_and_then_the_lease_answers() {
    let mut world = World::with_leader(3);
    world.run_ms(400);
    world.tell_messages = true;
    world.say("the first read needs a round");
    world.read(1);
    world.run_ms(3);
    world.say("the second is covered by the lease");
    world.read(1);
    world.run_ms(3);
    assert_golden("reads", &world.trace());
}

#[test]
fn without_a_lease_every_read_asks_a_majority() {
    let mut world = World::configured(3, 1, |config| config.lease = false);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(50);
    world.write(1, "a");
    world.run_ms(10);
    for _ in 0..10 {
        assert_eq!(world.read_beside(1), None, "nobody reads beside the host");
        let ticket = world.read(1);
        assert_eq!(world.outcome(ticket), None, "somebody has to be asked");
        world.run_ms(2);
        assert_eq!(read_words(&world, ticket).unwrap(), ["a"]);
    }
    world.isolate(1);
    let ticket = world.read(1);
    world.run_ms(150);
    assert_eq!(world.outcome(ticket), None, "nobody has answered");
}

#[test]
fn a_committed_write_renews_the_lease() {
    let mut world = World::with_leader(3);
    world.run_ms(400);
    world.write(1, "a");
    world.run_ms(10);
    let ticket = world.read(1);
    assert_eq!(read_words(&world, ticket).unwrap(), ["a"]);
}

#[test]
fn reads_that_come_during_a_round_get_the_next_one_at_once() {
    let mut world = World::with_leader(3);
    world.run_ms(400);
    // Too slow for the lease to be of use to those that came later.
    world.network.delay_us = 95_000;
    let first = world.read(1);
    world.run_ms(1);
    let second = world.read(1);
    world.run_ms(195);
    assert!(read_words(&world, first).is_some());
    assert!(read_words(&world, second).is_none());
    world.run_ms(195);
    assert!(read_words(&world, second).is_some(), "it had to wait for a heartbeat");
}

#[test]
fn a_round_that_gets_lost_is_repeated_with_the_next_heartbeat() {
    let mut world = World::with_leader(3);
    world.run_ms(400);
    world.drop_messages(MessageType::MsgHeartbeat);
    let ticket = world.read(1);
    world.run_ms(5);
    world.heal();
    assert_eq!(world.outcome(ticket), None);
    world.run_ms(60);
    assert_eq!(read_words(&world, ticket), Some(vec![]));
}

#[test]
fn a_read_in_a_leaders_first_term_waits_for_an_entry_of_its_own() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(60);
    world.drop_messages(MessageType::MsgAppendResponse);
    world.transfer(1, 2);
    world.run_until("a leader", 500, |world| world.leader(SHARD) == Some(2));
    let ticket = world.read(2);
    world.run_ms(150);
    assert_eq!(world.outcome(ticket), None, "nothing of its own term is committed");
    world.heal();
    world.run_ms(100);
    assert_eq!(read_words(&world, ticket).unwrap(), ["a"]);
}

#[test]
fn a_read_waits_until_what_was_committed_is_applied() {
    let mut world = World::with_leader(3);
    world.run_ms(50);
    world.hold_apply(1);
    let write = world.write(1, "a");
    world.run_ms(10);
    let read = world.read(1);
    world.run_ms(10);
    assert_eq!(world.outcome(write), None);
    assert_eq!(world.outcome(read), None);
    world.release_apply(1);
    world.run_ms(1);
    assert_eq!(read_words(&world, read).unwrap(), ["a"]);
}

#[test]
fn the_only_voter_reads_without_asking_anybody() {
    let mut world = World::with_leader(1);
    world.run_ms(500);
    let ticket = world.read(1);
    assert_eq!(read_words(&world, ticket), Some(vec![]));
}

#[test]
fn a_leader_may_be_read_beside_its_host_while_its_lease_holds() {
    let mut world = World::with_leader(3);
    assert_eq!(world.read_beside(1), None, "it has no lease yet");
    world.run_ms(50);
    world.write(1, "a");
    world.run_ms(10);
    let ticket = world.read_beside(1).expect("a quorum has answered");
    assert_eq!(read_words(&world, ticket).unwrap(), ["a"]);
    assert_eq!(world.read_beside(2), None, "it follows");
    world.hold_apply(1);
    world.write(1, "b");
    world.run_ms(10);
    assert_eq!(world.read_beside(1), None, "what is committed isn't applied");
    world.release_apply(1);
    world.run_ms(1);
    let ticket = world.read_beside(1).expect("it is applied");
    assert_eq!(read_words(&world, ticket).unwrap(), ["a", "b"]);
    world.transfer(1, 2);
    assert_eq!(world.read_beside(1), None, "n2 may lead already");
}

#[test]
fn a_leader_that_is_cut_off_may_not_be_read_beside_its_host_once_another_can_lead() {
    let mut world = written_once();
    world.isolate(1);
    world.run_until("another leads", 1000, |world| world.leader(SHARD).is_some_and(|id| id != 1));
    assert_eq!(world.read_beside(1), None);
}

#[test]
fn a_started_transfer_ends_the_lease_for_good() {
    let mut world = written_once();
    let covered = world.read(1);
    assert!(read_words(&world, covered).is_some());
    world.drop_messages(MessageType::MsgTimeoutNow);
    world.transfer(1, 2);
    let asked = world.read(1);
    assert_eq!(world.outcome(asked), None, "n2 may lead already");
    world.run_ms(10);
    assert!(read_words(&world, asked).is_some());
    // The transfer came to nothing, but the message may still be under way.
    world.run_ms(400);
    let write = world.write(1, "b");
    world.run_ms(10);
    assert!(matches!(world.outcome(write), Some(Outcome::Written(_))));
    let asked = world.read(1);
    assert_eq!(world.outcome(asked), None);
    world.run_ms(10);
    assert_eq!(read_words(&world, asked).unwrap(), ["a", "b"]);
}

#[test]
fn a_leader_that_wakes_from_a_pause_serves_nothing_from_its_lease() {
    let mut world = written_once();
    world.isolate(1);
    world.pause(1);
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some());
    let leader = world.leader(SHARD).unwrap();
    let write = world.write(leader, "b");
    world.run_ms(10);
    assert!(matches!(world.outcome(write), Some(Outcome::Written(_))));
    world.resume(1);
    let stale = world.read(1);
    world.run_ms(5);
    assert_eq!(world.outcome(stale), None);
    world.heal();
    world.run_ms(100);
    let refused = Rejection::NotLeader(Some(NodeId(leader)));
    assert!(
        matches!(world.outcome(stale), Some(Outcome::Refused(Rejection::NotLeader(_)))),
        "{:?} instead of {refused:?}",
        world.outcome(stale)
    );
}

#[test]
fn a_lease_ends_before_the_earliest_next_leader() {
    // The lease is tried at every millisecond around its end while another leader takes over.
    let mut world = World::with_leader(3);
    world.run_ms(50);
    world.write(1, "a");
    world.run_ms(3);
    world.isolate(1);
    let mut served = 0;
    for step in 0..600 {
        if world.status(1).unwrap().role == kvdb_replication::ReplicaRole::Leader {
            let ticket = world.read(1);
            served += usize::from(world.outcome(ticket).is_some());
        }
        if let Some(leader) = world.leader(SHARD).filter(|id| *id != 1) {
            world.write(leader, &format!("w{step}"));
        }
        world.run_ms(1);
    }
    assert!((150..=180).contains(&served), "{served} reads were served from the lease");
}
