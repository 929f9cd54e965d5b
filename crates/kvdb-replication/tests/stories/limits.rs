//! Queues that are full, and what is said then.

use crate::harness::{Outcome, SHARD, World};
use kvdb_replication::{HostConfig, HostConfigError, Rejection};

fn overloaded() -> Option<Outcome> {
    Some(Outcome::Refused(Rejection::Overloaded))
}

fn led_by_one(change: impl Fn(&mut HostConfig)) -> World {
    let mut world = World::configured(3, 1, change);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(400);
    world
}

#[test]
fn commands_beyond_what_may_wait_are_refused() {
    let mut world = led_by_one(|config| config.max_waiting_commands = 3);
    let tickets = world.write_all(1, &["a", "b", "c", "d"]);
    assert_eq!(world.outcome(tickets[3]).cloned(), overloaded());
    world.run_ms(20);
    assert_eq!(world.words(1), ["a", "b", "c"]);
    let again = world.write(1, "e");
    world.run_ms(20);
    assert!(matches!(world.outcome(again), Some(Outcome::Written(_))));
}

#[test]
fn reads_beyond_what_may_wait_are_refused() {
    let mut world = led_by_one(|config| config.max_waiting_commands = 2);
    let tickets: Vec<usize> = (0..3).map(|_| world.read(1)).collect();
    assert_eq!(world.outcome(tickets[2]).cloned(), overloaded());
    world.run_ms(20);
    assert_eq!(world.outcome(tickets[1]), Some(&Outcome::Read(vec![])));
}

#[test]
fn bytes_beyond_what_may_be_unapplied_are_refused_until_apply_catches_up() {
    let mut world = led_by_one(|config| config.max_unapplied_bytes = 500);
    world.hold_apply(1);
    let long = "x".repeat(300);
    let first = world.write(1, &long);
    world.run_ms(10);
    let second = world.write(1, &format!("{long}y"));
    world.run_ms(10);
    let third = world.write(1, "z");
    assert_eq!(world.outcome(third).cloned(), overloaded());
    world.release_apply(1);
    world.run_ms(10);
    assert!(matches!(world.outcome(first), Some(Outcome::Written(_))));
    assert!(matches!(world.outcome(second), Some(Outcome::Written(_))));
    let fourth = world.write(1, "w");
    world.run_ms(10);
    assert!(matches!(world.outcome(fourth), Some(Outcome::Written(_))));
}

#[test]
fn what_was_applied_before_a_restart_is_no_backlog() {
    let mut world = World::configured(1, 1, |config| config.max_unapplied_bytes = 500);
    world.create(SHARD, &[1], 1);
    world.run_ms(30);
    for number in 0..20 {
        world.write(1, &format!("w{number}"));
        world.run_ms(5);
    }
    let volume = world.nodes[&1].homes[&SHARD].1;
    world.nodes.get_mut(&1).unwrap().volumes.flush(volume);
    world.crash(1);
    world.restart(1);
    world.hold_apply(1);
    world.run_until("a leader", 500, |world| world.leader(SHARD) == Some(1));
    let ticket = world.write(1, "a");
    assert_eq!(world.outcome(ticket), None, "it is taken in");
    world.release_apply(1);
    world.run_ms(10);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
}

#[test]
fn an_entry_is_packed_up_to_its_limit() {
    let mut world = led_by_one(|config| config.max_entry_bytes = 100);
    let long = "x".repeat(60);
    let tickets = world.write_all(1, &[&format!("{long}1"), &format!("{long}2"), "s"]);
    world.run_ms(20);
    let index = |ticket: usize| match world.outcome(ticket) {
        Some(Outcome::Written(index)) => *index,
        other => panic!("{other:?}"),
    };
    assert_eq!(index(tickets[1]), index(tickets[0]) + 1);
    assert_eq!(index(tickets[2]), index(tickets[1]));
}

#[test]
fn a_shard_that_is_not_here_is_refused_by_name() {
    let mut world = World::new(1);
    let write = world.write(1, "a");
    let read = world.read(1);
    let refused = Outcome::Refused(Rejection::NoSuchShard);
    assert_eq!(world.outcome(write), Some(&refused));
    assert_eq!(world.outcome(read), Some(&refused));
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused() {
    let good = HostConfig::new(kvdb_model::NodeId(1), 1);
    assert_eq!(good.validate(), Ok(()));
    let slow = HostConfig { heartbeat_ticks: 20, ..good.clone() };
    assert!(matches!(slow.validate(), Err(HostConfigError::SlowHeartbeat { .. })));
    for (name, bad) in [
        ("tick_ms", HostConfig { tick_ms: 0, ..good.clone() }),
        ("heartbeat_ticks", HostConfig { heartbeat_ticks: 0, ..good.clone() }),
        ("max_inflight_messages", HostConfig { max_inflight_messages: 0, ..good.clone() }),
    ] {
        assert_eq!(bad.validate(), Err(HostConfigError::Zero(name)));
    }
}
