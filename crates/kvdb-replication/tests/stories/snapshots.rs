//! Replicas that the log alone can't help.

use crate::harness::{Outcome, SHARD, World, assert_golden, member, replica_on, voter};
use kvdb_model::{ReplicaId, Role, ShardId};
use kvdb_replication::message::MessageType;
use kvdb_replication::{HostConfig, Input, SnapshotRefusal};

fn small_log(config: &mut HostConfig) {
    config.log_retain_bytes = 300;
}

/// A leader that keeps little log, and a follower that was away for too long.
fn one_left_behind() -> World {
    let mut world = World::configured(3, 1, small_log);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    world.isolate(3);
    write_many(&mut world, 20);
    world.flush(1, SHARD);
    world.flush(2, SHARD);
    world.run_ms(5);
    world
}

fn write_many(world: &mut World, count: usize) {
    for number in 0..count {
        let ticket = world.write(1, &format!("w{number}"));
        world.run_ms(5);
        assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    }
}

#[test]
fn a_follower_that_was_away_for_too_long_gets_a_snapshot() {
    let mut world = one_left_behind();
    world.heal();
    world.run_ms(400);
    assert_eq!(world.words(3), world.words(1));
    assert_eq!(world.snapshots_sent, 1);
    world.write(1, "after");
    world.run_ms(50);
    assert_eq!(world.words(3).last().unwrap(), "after");
    assert_golden("snapshot", &world.trace());
}

#[test]
fn what_a_snapshot_brought_survives_a_crash() {
    let mut world = one_left_behind();
    world.heal();
    world.run_ms(400);
    world.crash(3);
    world.restart(3);
    world.run_ms(100);
    assert_eq!(world.words(3), world.words(1));
    assert_eq!(world.snapshots_sent, 1);
}

#[test]
fn a_snapshot_that_breaks_is_taken_again() {
    let mut world = one_left_behind();
    world.network.heal();
    world.network.cut_one_way(1, 3);
    world.run_ms(100);
    world.network.heal();
    // It goes out, and the receiver is gone when it arrives.
    world.run_until("a snapshot is under way", 500, |world| world.snapshots_sent == 1);
    world.crash(3);
    world.run_ms(50);
    world.restart(3);
    world.run_ms(800);
    assert_eq!(world.words(3), world.words(1));
    assert!(world.snapshots_sent >= 2);
}

#[test]
fn a_replica_that_a_leader_speaks_to_is_created_and_gets_a_snapshot() {
    let mut world = World::new(4);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    world.write(1, "a");
    world.run_ms(30);
    world.change(1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    world.run_ms(100);
    assert_eq!(world.words(4), ["a"]);
    assert!(world.nodes[&4].disk.durable.replicas.contains_key(&replica_on(SHARD, 4)));
    // Created, and crashed before anything came: it is still the same replica.
    world.crash(4);
    world.restart(4);
    world.run_ms(100);
    assert_eq!(world.words(4), ["a"]);
}

#[test]
fn a_first_replica_that_its_leader_spoke_to_before_it_was_born_needs_no_snapshot() {
    let mut world = World::new(3);
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    world.create_on(1, descriptor.clone(), true);
    world.create_on(2, descriptor.clone(), false);
    // What it would answer, that it has nothing, is not heard.
    world.network.cut_one_way(3, 1);
    world.run_until("its leader has spoken", 200, |world| world.status(3).is_some());
    assert!(world.status(3).unwrap().awaits_snapshot);
    let ticket = world.write(1, "a");
    world.run_ms(20);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    world.create_on(3, descriptor, false);
    world.run_ms(5);
    world.heal();
    world.run_until("its log", 300, |world| world.words(3) == ["a"]);
    assert_eq!(world.snapshots_sent, 0);
    world.crash(3);
    world.restart(3);
    world.run_ms(100);
    assert_eq!(world.words(3), ["a"]);
}

#[test]
fn a_snapshot_for_a_destroyed_replica_is_refused() {
    let mut world = one_left_behind();
    world.heal();
    world.run_until("a snapshot is under way", 500, |world| world.snapshots_sent == 1);
    world.feed(3, Input::Destroy { shard: SHARD, replica: replica_on(SHARD, 3) });
    world.run_ms(50);
    assert_eq!(world.snapshot_refusals.first(), Some(&SnapshotRefusal::WrongReplica));
    assert!(world.status(3).is_none());
}

#[test]
fn a_snapshot_that_overlaps_another_shards_replica_waits() {
    let mut world = World::new(4);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    let mut neighbour = world.descriptor(ShardId(2), &[4]);
    neighbour.range = world.descriptor(SHARD, &[]).range;
    world.create_on(4, neighbour, true);
    world.run_ms(30);
    world.change(1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    world.run_ms(200);
    assert_eq!(world.snapshot_refusals[0], SnapshotRefusal::Overlaps(ShardId(2)));
    assert_eq!(world.status(4).unwrap().descriptor, None);
    world.feed(4, Input::Destroy { shard: ShardId(2), replica: replica_on(ShardId(2), 4) });
    world.run_ms(300);
    assert!(world.status(4).unwrap().descriptor.is_some());
}

#[test]
fn a_replica_without_its_engine_holds_up_no_other_shards_snapshot() {
    let mut world = World::configured(4, 1, small_log);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    // It knows the range that it was born with only; a split may have narrowed it since.
    let mut neighbour = world.descriptor(ShardId(2), &[4]);
    neighbour.range = world.descriptor(SHARD, &[]).range;
    world.create_on(4, neighbour, true);
    world.run_ms(30);
    world.flush(4, ShardId(2));
    world.run_ms(5);
    world.crash(4);
    world.lose_engine(4);
    world.restart(4);
    world.change(1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    world.run_ms(300);
    assert_eq!(world.snapshot_refusals, []);
    assert!(world.status(4).unwrap().descriptor.is_some());
}

#[test]
fn a_snapshot_that_came_too_late_to_be_needed_is_dropped() {
    let mut world = one_left_behind();
    world.heal();
    world.run_ms(400);
    let volumes = world.nodes[&3].volumes.memory.len();
    let replayed = world.last_offer.clone().unwrap();
    world.offer(replayed);
    world.run_ms(50);
    assert_eq!(world.nodes[&3].volumes.memory.len(), volumes);
    assert_eq!(world.words(3), world.words(1));
}

#[test]
fn a_replica_whose_snapshot_is_not_applied_yet_does_not_stand_for_election() {
    let mut world = one_left_behind();
    world.heal();
    world.hold_apply(3);
    world.run_until("the snapshot is in its log", 500, |world| {
        world.nodes[&3].disk.durable.replicas[&replica_on(SHARD, 3)].start.index.0 > 20
    });
    world.isolate(3);
    world.run_ms(1000);
    world.heal();
    world.release_apply(3);
    world.run_ms(200);
    assert_eq!(world.words(3), world.words(1));
    // From then on it may.
    world.crash(1);
    world.crash(2);
    world.restart(2);
    world.run_until("a leader", 2000, |world| world.leader(SHARD).is_some());
}

/// n3 starts again with its log alone.
fn one_without_its_engine() -> World {
    let mut world = World::configured(3, 1, small_log);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    write_many(&mut world, 20);
    world.flush(3, SHARD);
    world.run_ms(5);
    world.crash(3);
    world.lose_engine(3);
    world.restart(3);
    world
}

#[test]
fn a_replica_without_its_engine_asks_for_a_snapshot_and_gets_one() {
    let mut world = one_without_its_engine();
    world.run_ms(300);
    assert_eq!(world.words(3), world.words(1));
    assert_eq!(world.snapshots_sent, 1, "one is enough");
    assert_golden("engine_lost", &world.trace());
}

#[test]
fn a_replica_asks_for_no_other_snapshot_while_one_becomes_durable() {
    let mut world = one_without_its_engine();
    world.run_until("it gets one", 300, |world| world.snapshots_sent == 1);
    world.hold_disk(3);
    world.run_ms(100);
    world.release_disk(3);
    world.run_ms(200);
    assert_eq!(world.words(3), world.words(1));
    assert_eq!(world.snapshots_sent, 1);
}

#[test]
fn a_snapshot_of_the_past_takes_nothing_from_a_log_whose_engine_is_lost() {
    let mut world = one_without_its_engine();
    world.run_ms(300);
    let earlier = world.last_offer.clone().unwrap();
    world.say("n3 acknowledges what only it and n1 have, and nobody knows");
    world.crash(2);
    world.drop_messages(kvdb_replication::message::MessageType::MsgAppendResponse);
    world.write(1, "more");
    world.run_ms(5);
    let end = |world: &World| world.nodes[&3].disk.durable.replicas[&replica_on(SHARD, 3)].last();
    let acknowledged = end(&world);
    assert_eq!(acknowledged, earlier.state.applied.index.next());
    world.crash(3);
    world.lose_engine(3);
    world.restart(3);
    world.run_until("it knows whom to ask", 300, |world| {
        world.status(3).is_some_and(|status| status.leader.is_some())
    });
    world.run_ms(10);
    world.offer(earlier);
    world.run_ms(30);
    assert_eq!(end(&world), acknowledged);
    world.heal();
    world.restart(2);
    world.run_until("n3 has all of it", 2000, |world| {
        world.words(3).last().is_some_and(|last| last == "more")
    });
}

#[test]
fn what_a_replica_without_its_engine_asks_with_counts_as_acknowledged() {
    let mut world = one_without_its_engine();
    world.run_ms(300);
    world.say("n2 is gone, and what n3 acknowledges gets lost");
    world.crash(2);
    world.drop_messages(kvdb_replication::message::MessageType::MsgAppendResponse);
    world.write(1, "more");
    world.run_ms(5);
    world.crash(3);
    world.lose_engine(3);
    world.restart(3);
    world.heal();
    world.run_until("n3 has all of it", 2000, |world| {
        world.words(3).last().is_some_and(|last| last == "more")
    });
    assert_eq!(world.leader(SHARD), Some(1), "it led all the time");
}

#[test]
fn a_replica_without_its_engine_asks_each_leader_for_what_that_one_has() {
    let mut world = World::configured(4, 1, small_log);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    world.change(1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    write_many(&mut world, 20);
    world.flush(4, SHARD);
    world.run_ms(5);
    world.say("n4 alone has what n1 writes");
    world.network.cut(1, 2);
    world.network.cut(1, 3);
    for word in ["x", "y", "z"] {
        world.write(1, word);
        world.run_ms(5);
    }
    world.crash(4);
    world.lose_engine(4);
    world.restart(4);
    world.run_until("another leader", 2000, |world| {
        world.leader(SHARD).is_some_and(|leader| leader != 1)
    });
    world.crash(1);
    world.run_until("n4 has what there is", 1000, |world| world.words(4) == world.words(2));
}

#[test]
fn a_replica_without_its_engine_votes_and_never_leads() {
    let mut world = World::configured(3, 1, small_log);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    write_many(&mut world, 20);
    world.flush(3, SHARD);
    world.run_ms(5);
    world.crash(3);
    world.lose_engine(3);
    // No snapshot can reach it before the leader is gone.
    world.network.cut_one_way(1, 3);
    world.restart(3);
    world.run_ms(300);
    world.crash(1);
    world.run_until("a leader", 2000, |world| world.leader(SHARD).is_some());
    assert_eq!(world.leader(SHARD), Some(2), "n3 votes for n2");
    world.run_ms(500);
    assert_eq!(world.words(3), world.words(2));
}

#[test]
fn a_lone_replica_without_its_engine_never_stands() {
    let mut world = World::configured(2, 1, small_log);
    world.create(SHARD, &[1, 2], 1);
    world.run_ms(30);
    write_many(&mut world, 20);
    world.flush(2, SHARD);
    world.run_ms(5);
    world.crash(2);
    world.lose_engine(2);
    world.crash(1);
    world.restart(2);
    let term = world.status(2).unwrap().term;
    world.run_ms(3000);
    assert_eq!(world.status(2).unwrap().term, term);
    assert_eq!(world.leader(SHARD), None);
}

#[test]
fn a_leader_keeps_what_a_follower_needs_within_its_limit() {
    let mut world = World::configured(3, 1, |config| config.log_retain_bytes = 2000);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    world.isolate(3);
    let start =
        |world: &World| world.nodes[&1].disk.durable.replicas[&replica_on(SHARD, 1)].start.index.0;
    write_many(&mut world, 10);
    world.flush(1, SHARD);
    world.run_ms(5);
    assert!(start(&world) <= 7, "n3 needs what comes after 6");
    write_many_more(&mut world, 100);
    world.flush(1, SHARD);
    world.run_ms(5);
    assert!(start(&world) > 50, "but not at any price");
    assert!(start(&world) < 110);
}

fn write_many_more(world: &mut World, count: usize) {
    for number in 0..count {
        world.write(1, &format!("more{number}"));
        world.run_ms(2);
    }
}

#[test]
fn a_leader_whose_followers_have_all_keeps_nothing_that_is_flushed() {
    let mut world = World::with_leader(3);
    write_many(&mut world, 10);
    world.run_ms(60);
    world.flush(1, SHARD);
    world.run_ms(5);
    let log = &world.nodes[&1].disk.durable.replicas[&replica_on(SHARD, 1)];
    assert_eq!(log.start.index.0, 16);
}

#[test]
fn a_snapshot_ends_the_wait_of_a_deposed_leaders_clients_with_unknown() {
    let mut world = World::configured(3, 1, small_log);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(100);
    world.drop_messages(MessageType::MsgAppendResponse);
    let ticket = world.write(1, "a");
    world.run_ms(5);
    world.pause(1);
    world.network.heal();
    world.run_until("a new leader", 700, |world| world.leader(SHARD).is_some());
    let leader = world.leader(SHARD).unwrap();
    for number in 0..20 {
        world.write(leader, &format!("w{number}"));
        world.run_ms(3);
    }
    world.flush(leader, SHARD);
    world.forget_inbox(1);
    world.resume(1);
    world.run_ms(600);
    assert!(world.words(1).contains(&"a".to_owned()));
    // Whether it was in the snapshot couldn't be told.
    assert_eq!(
        world.outcome(ticket),
        Some(&Outcome::Refused(kvdb_replication::Rejection::OutcomeUnknown))
    );
    assert_eq!(world.status(1).unwrap().replica, ReplicaId(101));
}
