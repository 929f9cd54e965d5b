//! The majority is lost for good, and one replica goes on alone, as another.

use crate::harness::{Outcome, SHARD, World, member, replica_on, voter};
use kvdb_model::{
    LogPosition, MembershipEpoch, NodeId, RangeEpoch, Replica, ReplicaId, Role, Term,
};
use kvdb_replication::{CantGoOn, Input, UnsafeRecovery};

const NEW: ReplicaId = ReplicaId(900);

/// A copy of what the replica on node 2 has, with all of its log, as a new replica's.
fn copied(world: &mut World, new: ReplicaId) -> Result<UnsafeRecovery, CantGoOn> {
    let node = world.nodes.get_mut(&2).unwrap();
    let old = replica_on(SHARD, 2);
    let position = node.state(SHARD).map(|state| state.applied).unwrap_or_default();
    let tail = node.host.as_ref().unwrap().log_after(SHARD, old, position)?;
    let mut state = node.state(SHARD).unwrap().clone();
    let replica = Replica { node_id: NodeId(2), replica_id: new, role: Role::Voter };
    state.descriptor.replicas = vec![replica];
    state.descriptor.membership_epoch = MembershipEpoch(1000);
    for entry in &tail.entries {
        state.apply(entry);
    }
    state.descriptor.range_epoch = RangeEpoch(1000);
    let (descriptor, time) = (state.descriptor.clone(), state.time());
    let volume = node.volumes.ingest(state);
    let term = Term(1000);
    Ok(UnsafeRecovery { survivor: old, log_end: tail.end, descriptor, volume, time, term })
}

/// Three replicas with "a"; the log of the one on n2 also has "b", which it doesn't know to be
/// committed; then n1 and n3 are gone.
fn without_majority() -> World {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(50);
    world.hold_apply(2);
    let ticket = world.write(1, "b");
    world.run_until("b is acknowledged", 50, |world| world.outcome(ticket).is_some());
    world.crash(1);
    world.crash(3);
    world.run_until("n2 hears nobody", 3000, |world| world.status(2).unwrap().leader.is_none());
    assert_eq!(world.words(2), ["a"], "it has applied what it isn't sure of");
    world.release_apply(2);
    world
}

#[test]
fn a_survivor_goes_on_alone_with_all_of_its_log() {
    let mut world = without_majority();
    let unsafe_recovery = copied(&mut world, NEW).unwrap();
    world.feed(2, Input::RecoverUnsafely(unsafe_recovery));
    world.run_ms(100);
    let status = world.status(2).unwrap();
    assert_eq!((status.replica, world.leader(SHARD)), (NEW, Some(2)));
    assert!(status.term > Term(1000));
    assert_eq!(world.words(2), ["a", "b"]);
    let ticket = world.write(2, "c");
    world.run_ms(50);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    assert_eq!(world.nodes[&2].disk.durable.tombstones[&SHARD], replica_on(SHARD, 2));
    // It remembers who it is.
    world.crash(2);
    world.restart(2);
    world.run_until("it leads again", 3000, |world| world.leader(SHARD) == Some(2));
    world.run_ms(100);
    assert_eq!(world.words(2), ["a", "b", "c"]);
    assert_eq!(world.status(2).unwrap().replica, NEW);
}

#[test]
fn who_comes_back_of_the_lost_can_not_count_on_the_survivor() {
    let mut world = without_majority();
    world.control_plane_tells = false;
    let unsafe_recovery = copied(&mut world, NEW).unwrap();
    world.feed(2, Input::RecoverUnsafely(unsafe_recovery));
    world.run_ms(100);
    world.restart(1);
    let lost = world.write(1, "x");
    world.run_ms(5000);
    assert_eq!(world.leader(SHARD), Some(2));
    let status = world.status(1).unwrap();
    assert_eq!(status.leader, None, "one of three old replicas has found a majority");
    assert!(!matches!(world.outcome(lost), Some(Outcome::Written(_))));
    assert_eq!(world.status(2).unwrap().replica, NEW, "an old replica's words have changed it");
    // New replicas come as ever.
    let own = Replica { node_id: NodeId(2), replica_id: NEW, role: Role::Voter };
    let newcomer = Replica { node_id: NodeId(3), replica_id: ReplicaId(901), role: Role::Learner };
    world.restart(3);
    world.feed(3, Input::Destroy { shard: SHARD, replica: replica_on(SHARD, 3) });
    let ticket = world.change(2, &[own, newcomer]);
    world.run_ms(1000);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Changed(true)), "{}", world.trace());
    assert_eq!(world.words(3), ["a", "b"]);
}

/// The host on a node begins again on an older copy of its directory that was accepted.
fn silence(world: &mut World, node: u64) {
    world.nodes.get_mut(&node).unwrap().host.as_mut().unwrap().silence_below(NEW);
}

#[test]
fn a_replica_of_an_older_copy_takes_no_part_and_another_one_goes_on_from_it() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(200);
    for node in [1, 2, 3] {
        world.crash(node);
    }
    world.restart(2);
    silence(&mut world, 2);
    world.restart(1);
    // With its vote, or its acknowledgement, there would be a majority.
    let lost = world.write(1, "x");
    world.run_ms(5000);
    assert_eq!(world.leader(SHARD), None, "{}", world.trace());
    assert!(!matches!(world.outcome(lost), Some(Outcome::Written(_))));
    let term = world.status(2).unwrap().term;
    assert_eq!(world.status(2).unwrap().last_index, copied(&mut world, NEW).unwrap().log_end.index);
    world.crash(1);
    let unsafe_recovery = copied(&mut world, NEW).unwrap();
    assert!(term < unsafe_recovery.term);
    world.feed(2, Input::RecoverUnsafely(unsafe_recovery));
    world.run_ms(100);
    assert_eq!((world.status(2).unwrap().replica, world.leader(SHARD)), (NEW, Some(2)));
    let ticket = world.write(2, "b");
    world.run_ms(50);
    assert!(matches!(world.outcome(ticket), Some(Outcome::Written(_))));
    assert_eq!(world.words(2), ["a", "b"]);
}

#[test]
fn a_replica_that_an_older_copy_does_not_hold_is_not_made_again() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(200);
    world.feed(3, Input::Destroy { shard: SHARD, replica: replica_on(SHARD, 3) });
    world.run_ms(100);
    silence(&mut world, 3);
    // It may have promised something before, and must not be asked for it anew.
    let low = Replica { node_id: NodeId(3), replica_id: ReplicaId(NEW.0 - 1), role: Role::Learner };
    let high = Replica { replica_id: NEW, ..low };
    let others = [1, 2].map(voter);
    let with = |one: Replica| [others[0], others[1], one];
    let ticket = world.change(1, &others);
    world.run_ms(1000);
    assert_eq!(world.outcome(ticket), Some(&Outcome::Changed(true)), "{}", world.trace());
    world.change(1, &with(low));
    world.run_ms(1000);
    assert!(world.status(3).is_none(), "{:?}", world.status(3));
    world.change(1, &others);
    world.run_ms(1000);
    world.change(1, &with(high));
    world.run_until("a new one is made", 3000, |world| {
        world.status(3).is_some_and(|status| status.replica == NEW)
    });
}

#[test]
fn a_crash_leaves_the_old_replica_or_the_new_one() {
    for kept in [0, 3] {
        let mut world = without_majority();
        let unsafe_recovery = copied(&mut world, NEW).unwrap();
        world.hold_disk(2);
        world.feed(2, Input::RecoverUnsafely(unsafe_recovery));
        world.crash_keeping(2, kept);
        world.restart(2);
        world.run_ms(3000);
        let status = world.status(2).unwrap();
        let expected = if kept == 0 { replica_on(SHARD, 2) } else { NEW };
        assert_eq!(status.replica, expected);
        assert_eq!(world.leader(SHARD), (kept == 3).then_some(2));
        assert!(world.words(2).len() >= kept.min(2));
    }
}

#[test]
fn a_replica_that_hears_a_leader_or_has_no_state_does_not_go_on_alone() {
    let mut world = World::with_leader(3);
    world.write(1, "a");
    world.run_ms(50);
    assert_eq!(copied(&mut world, NEW), Err(CantGoOn::HasLeader));
    let mut world = without_majority();
    world.flush(2, SHARD);
    world.run_ms(10);
    world.crash(2);
    world.lose_engine(2);
    world.restart(2);
    world.run_ms(100);
    let host = world.nodes[&2].host.as_ref().unwrap();
    if host.status(SHARD).unwrap().awaits_snapshot {
        let tail = host.log_after(SHARD, replica_on(SHARD, 2), LogPosition::default());
        assert_eq!(tail, Err(CantGoOn::WithoutState));
    }
}

#[test]
fn a_copy_that_is_out_of_date_or_of_a_used_id_is_dropped() {
    let mut world = without_majority();
    let unsafe_recovery = copied(&mut world, NEW).unwrap();
    let wrong = [
        UnsafeRecovery { survivor: replica_on(SHARD, 3), ..unsafe_recovery.clone() },
        UnsafeRecovery { log_end: LogPosition::default(), ..unsafe_recovery.clone() },
        copied(&mut world, ReplicaId(1)).unwrap(),
        copied(&mut world, replica_on(SHARD, 2)).unwrap(),
    ];
    for wrong in wrong {
        let volume = wrong.volume;
        world.feed(2, Input::RecoverUnsafely(wrong));
        world.run_ms(100);
        assert_eq!(world.status(2).unwrap().replica, replica_on(SHARD, 2));
        assert!(!world.nodes[&2].volumes.flushed.contains_key(&volume), "its volume stays");
    }
    let mut two = copied(&mut world, NEW).unwrap();
    two.descriptor.replicas.extend([voter(1), member(3, Role::Learner)]);
    world.feed(2, Input::RecoverUnsafely(two));
    world.run_ms(100);
    assert_eq!(world.status(2).unwrap().replica, replica_on(SHARD, 2), "it isn't alone");
}
