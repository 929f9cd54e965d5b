//! How logs grow, part ways and come together, and what those who wait on them are told.

use crate::harness::{Outcome, SHARD, World, assert_golden};
use kvdb_replication::Rejection;
use kvdb_replication::message::MessageType;

#[test]
fn a_write_is_answered_when_a_majority_holds_it() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    world.tell_messages = true;
    world.write(1, "a");
    world.run_ms(4);
    assert_golden("write", &world.trace());
}

#[test]
fn writes_that_come_in_together_share_an_entry() {
    let mut world = World::with_leader(3);
    let tickets = world.write_all(1, &["a", "b", "c"]);
    world.run_ms(10);
    let outcomes: Vec<_> = tickets.iter().map(|ticket| world.outcome(*ticket).cloned()).collect();
    assert_eq!(outcomes[0], Some(Outcome::Written(7)));
    assert_eq!(outcomes, [outcomes[0].clone(), outcomes[0].clone(), outcomes[0].clone()]);
    assert_eq!(world.words(1), ["a", "b", "c"]);
}

#[test]
fn lost_entries_are_sent_again() {
    let mut world = World::with_leader(3);
    world.drop_messages(MessageType::MsgAppend);
    let ticket = world.write(1, "a");
    world.run_ms(40);
    assert_eq!(world.outcome(ticket), None);
    world.heal();
    world.run_ms(200);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Written(7)));
    assert_eq!(world.words(3), ["a"]);
}

#[test]
fn lost_acknowledgements_are_made_good() {
    let mut world = World::with_leader(3);
    world.drop_messages(MessageType::MsgAppendResponse);
    let ticket = world.write(1, "a");
    world.run_ms(40);
    world.heal();
    world.run_ms(30);
    let next = world.write(1, "b");
    world.run_ms(200);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Written(7)));
    assert_eq!(world.outcome(next), Some(&Outcome::Written(8)));
}

#[test]
fn doubled_and_reordered_messages_apply_each_write_once() {
    let mut world = World::configured(3, 3, |_| {});
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(20);
    world.network.jitter_us = 20_000;
    world.network.doubled_permille = 500;
    let words: Vec<String> = (0..50).map(|number| format!("w{number}")).collect();
    for word in &words {
        world.write(1, word);
        world.run_ms(2);
    }
    world.run_ms(500);
    for node in 1..=3 {
        assert_eq!(world.words(node), words);
    }
}

#[test]
fn a_leader_without_a_majority_tells_its_waiters_that_it_does_not_know() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.isolate(1);
    let ticket = world.write(1, "a");
    world.run_ms(700);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Refused(Rejection::OutcomeUnknown)));
    let leader = world.leader(SHARD).unwrap();
    world.write(leader, "b");
    world.heal();
    world.run_ms(300);
    for node in 1..=3 {
        assert_eq!(world.words(node), ["b"]);
    }
    assert_golden("divergent_log", &world.trace());
}

#[test]
fn a_write_whose_place_was_taken_is_refused_for_certain() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.isolate(1);
    let ticket = world.write(1, "a");
    world.run_ms(1);
    world.pause(1);
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some());
    let leader = world.leader(SHARD).unwrap();
    world.write(leader, "b");
    world.run_ms(10);
    world.heal();
    // The new leader's messages have been waiting for it, before its own ticks.
    world.run_ms(200);
    world.resume(1);
    world.run_ms(200);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Refused(Rejection::Superseded)));
    assert_eq!(world.words(1), ["b"]);
    assert_golden("superseded", &world.trace());
}

#[test]
fn a_write_that_the_next_leader_finished_is_answered_by_the_last_one() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.drop_messages(MessageType::MsgAppendResponse);
    let ticket = world.write(1, "a");
    world.run_ms(5);
    world.pause(1);
    world.heal();
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some());
    world.run_ms(200);
    world.resume(1);
    world.run_ms(200);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Written(7)));
}

#[test]
fn a_waiter_of_a_deposed_leader_is_not_left_waiting() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.isolate(1);
    let ticket = world.write(1, "a");
    world.run_ms(1);
    world.pause(1);
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some());
    let leader = world.leader(SHARD).unwrap();
    // It hears of the new term, but of no entry.
    world.heal();
    world.drop_messages(MessageType::MsgAppend);
    world.run_ms(100);
    world.resume(1);
    world.run_ms(50);
    assert_eq!(world.outcome(ticket), None, "n{leader} may still tell");
    world.run_ms(250);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Refused(Rejection::OutcomeUnknown)));
}

#[test]
fn waiters_of_an_earlier_and_longer_log_do_not_disturb_those_of_the_present_one() {
    let mut world = World::with_leader(3);
    world.run_ms(100);
    world.isolate(1);
    let early: Vec<usize> =
        (0..10).flat_map(|number| world.write_all(1, &[&format!("w{number}")])).collect();
    world.run_ms(1);
    world.pause(1);
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some());
    let leader = world.leader(SHARD).unwrap();
    world.write(leader, "b");
    world.run_ms(10);
    world.heal();
    world.run_ms(200);
    world.resume(1);
    world.run_ms(5);
    // Its log is shorter now than what its clients still wait for.
    world.transfer(leader, 1);
    world.run_until("n1 leads again", 100, |world| world.leader(SHARD) == Some(1));
    let late: Vec<usize> =
        (0..5).flat_map(|number| world.write_all(1, &[&format!("x{number}")])).collect();
    world.run_ms(50);
    for ticket in early {
        assert!(matches!(
            world.outcome(ticket),
            Some(Outcome::Refused(Rejection::Superseded | Rejection::OutcomeUnknown))
        ));
    }
    for ticket in late {
        assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    }
}

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let mut world = World::with_leader(3);
    let write = world.write(2, "a");
    let read = world.read(3);
    let refused = Outcome::Refused(Rejection::NotLeader(Some(kvdb_model::NodeId(1))));
    assert_eq!(world.outcome(write), Some(&refused));
    assert_eq!(world.outcome(read), Some(&refused));
}

#[test]
fn versions_rise_over_leaders_whose_clocks_differ() {
    // Held by the state machine of the harness: each entry's version is above the last.
    let mut world = World::with_leader(3);
    world.run_ms(50);
    for round in 0..4 {
        let leader = world.leader(SHARD).unwrap();
        let ticket = world.write(leader, &format!("w{round}"));
        world.run_ms(20);
        assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
        let next = leader % 3 + 1;
        world.nodes.get_mut(&next).unwrap().wall_offset_ms -= 400;
        world.run_ms(20);
        world.transfer(leader, next);
        world.run_until("the next leader", 500, |world| world.leader(SHARD) == Some(next));
    }
}
