//! A leader whose log can't be synced hands over; one that can be goes on.

use crate::harness::{Outcome, SHARD, World};
use kvdb_model::ShardId;
use kvdb_replication::Rejection;

fn others_lead(world: &World) -> bool {
    world.leader(SHARD).is_some_and(|leader| leader != 1)
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_and_its_successor_writes_without_it() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    world.hold_disk(1);
    let ticket = world.write(1, "a");
    world.run_ms(280);
    assert_eq!(world.leader(SHARD), Some(1));
    world.run_until("another leads", 100, others_lead);
    let leader = world.leader(SHARD).unwrap();
    // Who waits is told at once, and what was committed is there.
    world.run_ms(20);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Refused(Rejection::OutcomeUnknown)));
    let after = world.write(leader, "b");
    world.run_ms(20);
    assert!(matches!(world.outcome(after), Some(Outcome::Written(_))));
    assert_eq!(world.words(leader), ["a", "b"]);
    // When its disk goes on it follows.
    world.release_disk(1);
    world.run_ms(300);
    assert_eq!(world.words(1), ["a", "b"]);
    assert_eq!(world.leader(SHARD), Some(leader));
}

#[test]
fn a_shard_that_writes_nothing_is_handed_over_with_the_others() {
    let mut world = World::with_leader(3);
    world.create(ShardId(2), &[1, 2, 3], 1);
    world.run_until("both are led", 500, |world| world.leader(ShardId(2)) == Some(1));
    world.run_ms(100);
    world.hold_disk(1);
    world.write(1, "a");
    world.run_until("another leads", 400, others_lead);
    world.run_until("the idle one too", 100, |world| {
        world.leader(ShardId(2)).is_some_and(|leader| leader != 1)
    });
}

#[test]
fn nothing_is_handed_over_while_those_that_can_write_are_no_majority() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    world.hold_disk(1);
    world.hold_disk(2);
    world.write(1, "a");
    world.run_ms(1_000);
    assert_eq!(world.leader(SHARD), Some(1));
    world.release_disk(2);
    world.run_until("another leads", 500, others_lead);
}

#[test]
fn a_follower_that_cannot_write_either_is_not_handed_to() {
    for hangs in 2..=5 {
        let mut world = World::with_leader(5);
        world.run_ms(30);
        world.hold_disk(1);
        world.hold_disk(hangs);
        world.write(1, "a");
        world.run_until("another leads", 400, others_lead);
        assert_ne!(world.leader(SHARD), Some(hangs));
    }
}

#[test]
fn a_group_without_a_majority_beside_its_leader_keeps_it() {
    let mut world = World::with_leader(2);
    world.run_ms(30);
    world.hold_disk(1);
    let ticket = world.write(1, "a");
    world.run_ms(1_500);
    assert_eq!(world.leader(SHARD), Some(1));
    world.release_disk(1);
    world.run_ms(20);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
}

#[test]
fn a_disk_that_hangs_every_other_second_costs_one_hand_over() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    let mut leaders = vec![1];
    for second in 0..20 {
        if second % 2 == 0 {
            world.hold_disk(1);
        } else {
            world.release_disk(1);
        }
        for tenth in 0..10 {
            if let Some(leader) = world.leader(SHARD) {
                world.write(leader, &format!("{second}.{tenth}"));
            }
            world.run_ms(100);
            let leader = world.leader(SHARD);
            if leader.is_some() && leader != leaders.last().copied() {
                leaders.extend(leader);
            }
        }
    }
    assert_eq!(leaders.len(), 2, "{leaders:?}");
}

#[test]
fn one_whose_disk_has_hung_stands_after_the_others_and_is_not_chosen() {
    let mut world = World::with_leader(3);
    world.run_ms(30);
    world.hold_disk(1);
    world.write(1, "a");
    world.run_until("another leads", 400, others_lead);
    world.release_disk(1);
    world.run_ms(100);
    let (leader, third) = match world.leader(SHARD) {
        Some(2) => (2, 3),
        _ => (3, 2),
    };
    world.crash(leader);
    world.run_until("the third leads", 1_000, |world| world.leader(SHARD) == Some(third));
    // Where nobody else is left it stands all the same.
    world.restart(leader);
    world.run_ms(500);
    world.crash(third);
    world.run_until("somebody leads", 2_000, |world| {
        world.leader(SHARD).is_some_and(|now| now != third)
    });
}
