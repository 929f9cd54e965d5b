//! Replicas that come and go.

use crate::harness::{Outcome, SHARD, World, assert_golden, member, replica_on, voter};
use kvdb_model::{NodeId, Replica, ReplicaId, Role, ShardId, TimeMark, VolumeId};
use kvdb_replication::{Input, Rejection, SplitFrom};

/// A shard on nodes 1 to 3 of four.
fn three_of_four() -> World {
    let mut world = World::new(4);
    world.create(SHARD, &[1, 2, 3], 1);
    world.run_ms(30);
    world.write(1, "a");
    world.run_ms(30);
    world
}

fn change(world: &mut World, node: u64, replicas: &[Replica]) {
    let ticket = world.change(node, replicas);
    world.run_ms(100);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Changed(true)), "{}", world.trace());
}

#[test]
fn a_replica_moves_by_way_of_a_learner_and_a_joint_configuration() {
    let mut world = three_of_four();
    world.say("n4 learns");
    change(&mut world, 1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    assert_eq!(world.words(4), ["a"]);
    world.say("n4 comes, n3 goes");
    let joint = [voter(1), voter(2), member(3, Role::Outgoing), member(4, Role::Incoming)];
    change(&mut world, 1, &joint);
    world.say("the joint configuration is left");
    change(&mut world, 1, &[voter(1), voter(2), voter(4)]);
    assert!(world.status(3).is_none(), "the removed replica is gone");
    assert_eq!(world.nodes[&3].disk.durable.tombstones[&SHARD], replica_on(SHARD, 3));
    world.say("n1 and n4 are a majority now");
    world.crash(2);
    world.write(1, "b");
    world.run_ms(100);
    assert_eq!(world.words(4), ["a", "b"]);
    assert_golden("move", &world.trace());
}

#[test]
fn a_joint_configuration_needs_both_majorities() {
    let mut world = three_of_four();
    change(&mut world, 1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    let joint =
        [voter(1), member(2, Role::Outgoing), member(3, Role::Outgoing), member(4, Role::Incoming)];
    change(&mut world, 1, &joint);
    world.network.cut(1, 2);
    world.network.cut(1, 3);
    let ticket = world.write(1, "b");
    world.run_ms(100);
    assert_eq!(world.outcome(ticket), None, "n1 and n4 are no majority of the old voters");
    world.heal();
    world.run_ms(200);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
}

#[test]
fn any_leader_can_leave_a_joint_configuration() {
    let mut world = three_of_four();
    change(&mut world, 1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    let joint = [voter(1), voter(2), member(3, Role::Outgoing), member(4, Role::Incoming)];
    change(&mut world, 1, &joint);
    world.crash(1);
    world.run_until("a new leader", 2000, |world| world.leader(SHARD).is_some());
    world.run_ms(100);
    let leader = world.leader(SHARD).unwrap();
    if leader == 3 {
        world.transfer(3, 2);
        world.run_until("n2 leads", 500, |world| world.leader(SHARD) == Some(2));
        world.run_ms(50);
    }
    let leader = world.leader(SHARD).unwrap();
    change(&mut world, leader, &[voter(1), voter(2), voter(4)]);
}

#[test]
fn a_leader_hands_over_before_it_is_removed() {
    let mut world = three_of_four();
    change(&mut world, 1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    let joint = [member(1, Role::Outgoing), voter(2), voter(3), member(4, Role::Incoming)];
    change(&mut world, 1, &joint);
    let last = [voter(2), voter(3), voter(4)];
    let ticket = world.change(1, &last);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Refused(Rejection::Unavailable)));
    world.run_until("another leader", 500, |world| world.leader(SHARD) != Some(1));
    world.run_ms(100);
    let leader = world.leader(SHARD).unwrap();
    change(&mut world, leader, &last);
    assert!(world.status(1).is_none());
}

#[test]
fn changes_that_raft_could_not_apply_are_refused_before_they_are_proposed() {
    let mut world = three_of_four();
    let two_at_once = [voter(1)];
    let nothing = [voter(1), voter(2), voter(3)];
    let demoted_while_joint =
        [voter(1), member(2, Role::Learner), member(3, Role::Outgoing), member(4, Role::Incoming)];
    let nobody = [];
    for replicas in [&two_at_once[..], &nothing, &demoted_while_joint, &nobody] {
        let ticket = world.change(1, replicas);
        assert_eq!(
            world.outcome(ticket),
            Some(&Outcome::Refused(Rejection::InvalidMembership)),
            "{replicas:?}"
        );
    }
    let write = world.write(1, "b");
    world.run_ms(20);
    assert_eq!(world.outcome(write), Some(&Outcome::Written(8)), "nothing came before it");
}

#[test]
fn one_change_at_a_time() {
    let mut world = three_of_four();
    let learner = [voter(1), voter(2), voter(3), member(4, Role::Learner)];
    let first = world.change(1, &learner);
    let second = world.change(1, &learner);
    assert_eq!(world.outcome(second), Some(&Outcome::Refused(Rejection::Unavailable)));
    world.run_ms(100);
    assert_eq!(world.outcome(first), Some(&Outcome::Changed(true)));
}

#[test]
fn a_change_that_the_shard_refuses_leaves_raft_as_it_was() {
    let mut world = three_of_four();
    let learner = [voter(1), voter(2), voter(3), member(4, Role::Learner)];
    let mut stale = world.descriptor(SHARD, &[1, 2, 3]);
    stale.replicas = learner.to_vec();
    let ticket = world.change_with(1, &learner, stale.to_bytes());
    world.run_ms(100);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Changed(false)));
    assert!(world.status(4).is_none());
    change(&mut world, 1, &learner);
}

#[test]
fn a_removed_replica_votes_as_long_as_its_vote_may_be_needed() {
    let mut world = World::new(4);
    world.create(SHARD, &[1, 2, 3, 4], 1);
    world.run_ms(30);
    world.say("n3 is lost for good, and n4 is to go");
    world.crash(3);
    // Its leader knows first that the change is committed, and tells the others with a heartbeat.
    world.hold_apply(1);
    world.change(1, &[voter(1), voter(2), voter(3)]);
    let is_out = |world: &World| {
        let known = world.status(4).unwrap().descriptor.unwrap();
        known.replica(replica_on(SHARD, 4)).is_none()
    };
    world.run_until("n4 has applied that it is no member", 500, is_out);
    world.say("nobody has that on the disk");
    world.crash(1);
    world.crash(2);
    world.restart(1);
    world.restart(2);
    world.run_until("two of the four lead with the third", 3000, |world| {
        world.leader(SHARD).is_some()
    });
    world.run_until("n4 goes", 500, |world| world.status(4).is_none());
    let leader = world.leader(SHARD).unwrap();
    let members = world.status(leader).unwrap().descriptor.unwrap().replicas;
    assert_eq!(members, [voter(1), voter(2), voter(3)]);
}

#[test]
fn a_change_of_members_does_not_give_back_what_a_later_split_took() {
    let mut world = three_of_four();
    // n3 applies both in one run, and is told of the split while it does.
    world.hold_apply(3);
    change(&mut world, 1, &[voter(1), voter(2), voter(3), member(4, Role::Learner)]);
    let mut parent = world.status(1).unwrap().descriptor.unwrap();
    parent.range_epoch = parent.range_epoch.next();
    parent.range.end = [&parent.range.start[..], b"m"].concat().into();
    let child =
        kvdb_model::ShardDescriptor { shard_id: ShardId(9), ..world.descriptor(SHARD, &[]) };
    let index = world.status(1).unwrap().applied.next();
    let from = Some(SplitFrom { parent: parent.clone(), replica: replica_on(SHARD, 3), index });
    let (volume, time) = (VolumeId(99), TimeMark::default());
    world.feed(3, Input::Split { from, child, volume, time });
    world.release_apply(3);
    world.run_ms(50);
    assert_eq!(world.status(3).unwrap().descriptor, Some(parent));
}

#[test]
fn members_change_only_once_they_are_settled() {
    let mut world = three_of_four();
    let learner = [voter(1), voter(2), voter(3), member(4, Role::Learner)];
    world.change(1, &learner);
    world.run_until("n4 learns", 100, |world| {
        world.status(1).unwrap().descriptor.unwrap().replicas.len() == 4
    });
    let ticket = world.change(1, &[voter(1), voter(2), voter(3)]);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Refused(Rejection::Unavailable)));
    world.run_ms(50);
    change(&mut world, 1, &[voter(1), voter(2), voter(3)]);
}

#[test]
fn a_replica_that_was_removed_before_a_crash_is_destroyed_after_it() {
    let mut world = three_of_four();
    world.control_plane_tells = false;
    world.change(1, &[voter(1), voter(2)]);
    world.run_ms(100);
    assert!(world.status(3).is_some(), "nobody has told it");
    // Its tombstone doesn't reach the disk.
    world.hold_disk(3);
    world.control_plane_tells = true;
    world.run_until("n3 is told", 100, |world| world.status(3).is_none());
    world.crash(3);
    assert!(world.nodes[&3].disk.durable.tombstones.is_empty());
    world.restart(3);
    world.run_ms(50);
    assert!(world.status(3).is_none());
    assert_eq!(world.nodes[&3].disk.durable.tombstones[&SHARD], replica_on(SHARD, 3));
}

#[test]
fn a_destroyed_replica_is_never_created_again() {
    let mut world = three_of_four();
    world.feed(3, Input::Destroy { shard: SHARD, replica: replica_on(SHARD, 3) });
    world.run_ms(500);
    assert!(world.status(3).is_none(), "the leader's messages don't bring it back");
    world.crash(3);
    world.restart(3);
    world.run_ms(500);
    assert!(world.status(3).is_none(), "nor do they after a restart");
    let descriptor = world.descriptor(SHARD, &[1, 2, 3]);
    world.create_on(3, descriptor, true);
    world.run_ms(50);
    assert!(world.status(3).is_none(), "nor does creation");
}

#[test]
fn a_leaders_word_to_a_higher_replica_id_replaces_the_lower_one() {
    let mut world = three_of_four();
    // n3 is cut off while its replica is removed and another one is added on the same node.
    world.isolate(3);
    world.control_plane_tells = false;
    change(&mut world, 1, &[voter(1), voter(2)]);
    let heir = Replica { node_id: NodeId(3), replica_id: ReplicaId(177), role: Role::Learner };
    change(&mut world, 1, &[voter(1), voter(2), heir]);
    assert_eq!(world.status(3).unwrap().replica, replica_on(SHARD, 3));
    world.heal();
    world.run_ms(300);
    assert_eq!(world.status(3).unwrap().replica, ReplicaId(177));
    assert_eq!(world.words(3), ["a"]);
    assert_eq!(world.nodes[&3].disk.durable.tombstones[&SHARD], replica_on(SHARD, 3));
}
