//! Groups that nobody uses, and what wakes them.

use crate::harness::{Outcome, SHARD, World, replica_on};
use kvdb_model::ShardId;
use kvdb_replication::Input;
use kvdb_replication::message::MessageType;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Three replicas that hibernate, led by n1.
fn hibernating() -> World {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_until("all hibernate", 1500, |world| (1..=3).all(|id| is_hibernating(world, id)));
    world
}

fn is_hibernating(world: &World, node: u64) -> bool {
    world.status(node).is_some_and(|status| status.is_hibernating)
}

/// How many messages of each kind are sent from now on.
fn counted(world: &mut World) -> Rc<RefCell<BTreeMap<String, u64>>> {
    let counts = Rc::new(RefCell::new(BTreeMap::new()));
    let counting = counts.clone();
    world.network.drop_if = Some(Box::new(move |_, _, message| {
        let kind = format!("{:?}", message.message.get_msg_type());
        *counting.borrow_mut().entry(kind).or_default() += 1;
        false
    }));
    counts
}

#[test]
fn an_idle_group_hibernates_and_store_heartbeats_stand_for_it() {
    let mut world = hibernating();
    let counts = counted(&mut world);
    world.run_ms(10_000);
    assert!((1..=3).all(|id| is_hibernating(&world, id)));
    // A heartbeat each 50 ms from each to each.
    assert_eq!(counts.borrow().keys().collect::<Vec<_>>(), ["MsgBeat"]);
    assert!((1180..=1206).contains(&counts.borrow()["MsgBeat"]), "{counts:?}");
}

#[test]
fn a_hundred_hibernating_groups_need_no_more_heartbeats_than_one() {
    let mut world = hibernating();
    for shard in 2..=100 {
        world.create(ShardId(shard), &[1, 2, 3], 1);
    }
    world.run_ms(1500);
    let counts = counted(&mut world);
    world.run_ms(10_000);
    assert_eq!(counts.borrow().keys().collect::<Vec<_>>(), ["MsgBeat"]);
    assert!((1180..=1206).contains(&counts.borrow()["MsgBeat"]), "{counts:?}");
}

#[test]
fn a_group_of_which_one_is_missing_stays_awake() {
    let mut world = World::with_leader(3);
    world.crash(3);
    world.run_ms(3000);
    assert!(!is_hibernating(&world, 1) && !is_hibernating(&world, 2));
    world.restart(3);
    world.run_until("all hibernate", 2500, |world| (1..=3).all(|id| is_hibernating(world, id)));
}

#[test]
fn a_write_wakes_a_group_and_waits_no_longer_than_any() {
    let mut world = hibernating();
    let ticket = world.write(1, "b");
    world.run_ms(5);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    assert!((1..=3).all(|id| !is_hibernating(&world, id)));
    world.run_until("all hibernate again", 1500, |world| {
        (1..=3).all(|id| is_hibernating(world, id))
    });
    assert!((1..=3).all(|id| world.words(id) == ["a", "b"]));
}

#[test]
fn a_read_of_a_hibernating_group_asks_the_others() {
    let mut world = hibernating();
    let ticket = world.read(1);
    assert_eq!(world.outcome(ticket), None, "its lease is over");
    world.run_ms(5);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Read(_))));
}

#[test]
fn a_leader_that_is_gone_is_missed_as_soon_as_if_all_were_awake() {
    for down in [World::crash, World::isolate, World::pause] {
        let mut world = hibernating();
        world.run_ms(5000);
        down(&mut world, 1);
        world.run_until("another leader", 400, |world| {
            [2, 3].iter().any(|id| {
                let leader = world.status(*id).and_then(|status| status.leader);
                leader.is_some_and(|leader| leader.0 != 1)
            })
        });
    }
}

#[test]
fn a_hibernating_leader_steps_down_when_it_is_cut_off() {
    let mut world = hibernating();
    world.run_ms(5000);
    world.isolate(1);
    world.run_until("n1 knows", 800, |world| world.status(1).unwrap().leader.is_none());
}

#[test]
fn a_group_wakes_when_one_of_it_is_lost() {
    let mut world = hibernating();
    world.crash(3);
    world.run_until("n1 is awake", 300, |world| !is_hibernating(world, 1));
    world.run_ms(3000);
    assert!(!is_hibernating(&world, 1) && !is_hibernating(&world, 2));
    assert_eq!(world.leader(SHARD), Some(1));
}

#[test]
fn a_leader_that_restarts_before_it_is_missed_finds_its_group_again() {
    let mut world = hibernating();
    world.run_ms(5000);
    world.crash(1);
    world.run_ms(20);
    world.restart(1);
    world.run_until("a leader", 1000, |world| world.leader(SHARD).is_some());
    let leader = world.leader(SHARD).unwrap();
    let ticket = world.write(leader, "b");
    world.run_ms(10);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
}

#[test]
fn a_follower_that_restarts_does_not_disturb_a_hibernating_leader() {
    let mut world = hibernating();
    let term = world.status(1).unwrap().term;
    world.crash(3);
    world.restart(3);
    world.run_until("all hibernate again", 3000, |world| {
        (1..=3).all(|id| is_hibernating(world, id))
    });
    assert_eq!(world.status(3).unwrap().term, term);
    assert_eq!(world.leader(SHARD), Some(1));
}

#[test]
fn a_follower_that_missed_the_last_heartbeat_wakes_the_others_and_all_hibernate_in_the_end() {
    let mut world = World::with_leader(3);
    let term = world.status(1).unwrap().term;
    let mut missed = false;
    world.network.drop_if = Some(Box::new(move |_, to, message| {
        let is_last = message.message.get_msg_type() == MessageType::MsgHeartbeat
            && !message.message.context.is_empty();
        is_last && to == 3 && !std::mem::replace(&mut missed, true)
    }));
    world.run_until("n1 hibernates", 1500, |world| is_hibernating(world, 1));
    world.run_until("n3 wakes it", 1000, |world| !is_hibernating(world, 1));
    world.run_until("all hibernate", 2000, |world| (1..=3).all(|id| is_hibernating(world, id)));
    assert_eq!(world.status(1).unwrap().term, term);
}

#[test]
fn a_group_whose_leader_has_vanished_from_a_node_that_lives_on_wakes_by_itself() {
    let mut world = hibernating();
    // The node goes on beating for this one.
    world.create(ShardId(2), &[1, 2, 3], 1);
    world.run_ms(1500);
    world.feed(1, Input::Destroy { shard: SHARD, replica: replica_on(SHARD, 1) });
    world.run_ms(10_000);
    assert!(is_hibernating(&world, 2) && world.leader(SHARD).is_none(), "nobody has missed it");
    world.run_until("another leader", 125_000, |world| world.leader(SHARD).is_some());
}
