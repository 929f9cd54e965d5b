//! Shards that have lost their majority: when one may go on alone, and what comes of it.
#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use kvdb_control::{
    ControlCommand, ControlError, ControlResponse, ControlState, LedShard, Load, NodeStart,
    Observed, OperatorKind, OperatorRequest, OperatorState, Planner, PlannerConfig, ReplicaReport,
    Standings, preview_recovery,
};
use kvdb_model::{
    LogIndex, LogPosition, NodeId, NodeStatus, OperatorId, ShardDescriptor, ShardId, ShardTask,
    Term, Version, Work,
};
use std::collections::BTreeMap;

const SHARD: ShardId = ShardId(1);

/// Shards on nodes 1 to 3 of `nodes`, led from node 1.
fn cluster(nodes: u64) -> ControlState {
    let mut state = ControlState::default();
    let add = |state: &mut ControlState, node: u64| {
        let address = format!("127.0.0.1:{}", 7000 + node);
        let token = u128::from(node);
        let zone = String::new();
        state.apply(&ControlCommand::RegisterNode { token, address, zone }).result.unwrap();
    };
    (1..=3).for_each(|node| add(&mut state, node));
    let init = ControlCommand::InitShards { shards: 1, replication_factor: 3 };
    state.apply(&init).result.unwrap();
    (4..=nodes).for_each(|node| add(&mut state, node));
    let descriptor = state.map().shards[&SHARD].descriptor.clone();
    report(&mut state, 1, descriptor, 7);
    state
}

fn report(state: &mut ControlState, node: u64, descriptor: ShardDescriptor, term: u64) {
    let led = vec![LedShard { descriptor, term: Term(term) }];
    state.apply(&ControlCommand::ReportShards { node: NodeId(node), led }).result.unwrap();
}

fn die(state: &mut ControlState, nodes: &[u64]) {
    for node in nodes {
        let (node, status) = (NodeId(*node), NodeStatus::Dead);
        state.apply(&ControlCommand::SetNodeStatus { node, status }).result.unwrap();
    }
}

fn force(state: &mut ControlState, from: u64, gone: &[u64]) -> Result<OperatorId, ControlError> {
    let gone = gone.iter().map(|node| NodeId(*node)).collect();
    let command = ControlCommand::StartOperator {
        request: OperatorRequest::ForceRecover { shard: SHARD, from: NodeId(from), gone },
        reason: "a test".to_owned(),
        parent: None,
        now_ms: 1000,
        time_limit_ms: 1_000_000,
    };
    let command = ControlCommand::decode(&command.to_bytes()).unwrap();
    match state.apply(&command).result? {
        ControlResponse::OperatorStarted(id, _) => Ok(id),
        other => panic!("{other:?}"),
    }
}

fn heard(state: &ControlState, node: u64, last: u64) -> ReplicaReport {
    let descriptor = &state.map().shards[&SHARD].descriptor;
    ReplicaReport {
        replica: descriptor.replica_on(NodeId(node)).unwrap().replica_id,
        applied: LogIndex(last),
        last: LogPosition { index: LogIndex(last), term: Term(7) },
        version: Version(last),
        range_epoch: descriptor.range_epoch,
        awaits_snapshot: false,
        reads_known: false,
        load: Default::default(),
    }
}

fn standings(state: &ControlState, of: &[(u64, u64)]) -> Standings {
    let mut standings = Standings::default();
    for (node, last) in of {
        standings.heard(state.map(), SHARD, NodeId(*node), heard(state, *node, *last));
    }
    standings
}

fn silent(of: &[(u64, u64)]) -> BTreeMap<NodeId, u64> {
    of.iter().map(|(node, ms)| (NodeId(*node), *ms)).collect()
}

#[test]
fn a_shard_that_may_have_its_majority_is_left_alone() {
    let mut state = cluster(3);
    die(&mut state, &[3]);
    let before = state.clone();
    let there = vec![NodeId(1), NodeId(2)];
    let refused = force(&mut state, 1, &[3]);
    assert_eq!(refused, Err(ControlError::HasMajority { shard: SHARD, there }));
    let refused = force(&mut state, 1, &[2, 3]);
    assert_eq!(refused, Err(ControlError::NodeIsThere { shard: SHARD, node: NodeId(2) }));
    die(&mut state, &[2]);
    let refused = force(&mut state, 2, &[2, 3]);
    assert_eq!(refused, Err(ControlError::SurvivorIsGone { shard: SHARD, node: NodeId(2) }));
    assert!(matches!(force(&mut state, 9, &[2, 3]), Err(ControlError::NotAReplica { .. })));
    assert_eq!(state.operators().count(), before.operators().count());
    let id = force(&mut state, 1, &[2, 3]).unwrap();
    let busy = force(&mut state, 1, &[2, 3]);
    assert_eq!(busy, Err(ControlError::ShardBusy { shard: SHARD, operator: id }));
}

#[test]
fn a_shard_goes_on_from_an_accepted_copy_or_from_the_one_replica_that_is_none() {
    for whole in [None, Some(3)] {
        let mut state = cluster(3);
        let copies = (1..=3).filter(|node| Some(*node) != whole);
        for node in copies.clone() {
            die(&mut state, &[node]);
            let token = u128::from(node);
            state.apply(&ControlCommand::AcceptCopy { node: NodeId(node) }).result.unwrap();
            let start = NodeStart { shown: vec![], nonce: token, synced: 1, place: 0 };
            let (address, zone) = (format!("127.0.0.1:{}", 7000 + node), String::new());
            let start = Some(start);
            let enter = ControlCommand::EnterNode { token, address, zone, is_reached: true, start };
            state.apply(&enter).result.unwrap();
        }
        assert!(state.map().nodes.values().all(|node| node.status == NodeStatus::Alive));
        assert!(!state.map().has_majority(&state.map().shards[&SHARD].descriptor));
        let standings = standings(&state, &[(1, 40), (2, 50), (3, 45)]);
        let silent = silent(&[(1, 100), (2, 100), (3, 100)]);
        let preview = |from| preview_recovery(&state, &standings, &silent, SHARD, NodeId(from));
        let shorter = preview(1).unwrap();
        let gone: Vec<NodeId> = copies.filter(|node| *node != 1).map(NodeId).collect();
        assert_eq!(shorter.gone, gone);
        assert!(shorter.warnings[0].contains("node 2 has more"), "{:?}", shorter.warnings);
        assert!(shorter.warnings.iter().any(|one| one.contains("from an older copy")));
        let best = preview(whole.unwrap_or(2)).unwrap();
        let is_copy = best.warnings.iter().any(|one| one.contains("from an older copy"));
        assert_eq!(is_copy, whole.is_none(), "{:?}", best.warnings);
        let gone: Vec<u64> = best.gone.iter().map(|node| node.0).collect();
        force(&mut state, whole.unwrap_or(2), &gone).unwrap();
    }
}

#[test]
fn the_survivors_node_is_told_though_nobody_leads_and_old_epochs_are_left_far_behind() {
    let mut state = cluster(3);
    die(&mut state, &[1, 3]);
    let before = state.map().shards[&SHARD].clone();
    let id = force(&mut state, 2, &[1, 3]).unwrap();
    assert!(state.tasks_of(NodeId(1)).is_empty(), "the last leader is gone");
    let tasks = state.tasks_of(NodeId(2));
    let [ShardTask { operator, shard: SHARD, work: Work::ForceRecover(plan), .. }] = &tasks[..]
    else {
        panic!("{tasks:?}");
    };
    assert_eq!(*operator, id);
    let old = &before.descriptor;
    assert_eq!(plan.survivor, old.replica_on(NodeId(2)).unwrap().replica_id);
    assert!(old.replicas.iter().all(|replica| replica.replica_id < plan.replica.replica_id));
    assert!(plan.membership_epoch.0 > old.membership_epoch.0 + 1_000_000);
    assert!(plan.range_epoch.0 > old.range_epoch.0 + 1_000_000);
    assert!(plan.term.0 > before.leader_term.0 + 1_000_000);
    assert_eq!(plan.least_range_epoch, old.range_epoch);
}

/// As the node does it.
fn carry_out(state: &mut ControlState) -> ShardDescriptor {
    let plan = state
        .running()
        .find_map(|operator| match &operator.kind {
            OperatorKind::ForceRecover { plan, .. } => Some(plan.clone()),
            _ => None,
        })
        .unwrap();
    let descriptor = ShardDescriptor {
        membership_epoch: plan.membership_epoch,
        range_epoch: plan.range_epoch,
        replicas: vec![plan.replica],
        ..state.map().shards[&SHARD].descriptor.clone()
    };
    report(state, plan.replica.node_id.0, descriptor.clone(), plan.term.0 + 2);
    descriptor
}

fn plan(state: &mut ControlState, planner: &Planner) {
    let silent_ms = silent(&[(2, 999_000), (3, 999_000)]);
    let observed = Observed { now_ms: 2000, silent_ms, ..Observed::default() };
    for command in planner.plan(state, &observed) {
        state.apply(&command).result.unwrap();
    }
}

#[test]
fn it_is_done_when_the_map_has_it_and_then_the_lost_replicas_are_rebuilt() {
    let mut state = cluster(5);
    let planner = Planner { config: PlannerConfig { rebalance: false, ..Default::default() } };
    die(&mut state, &[2, 3]);
    let old = state.map().shards[&SHARD].descriptor.clone();
    plan(&mut state, &planner);
    assert_eq!(state.running().count(), 0, "a shard without a majority can't be repaired");
    let id = force(&mut state, 1, &[2, 3]).unwrap();
    plan(&mut state, &planner);
    assert!(state.operator(id).unwrap().is_running());
    carry_out(&mut state);
    plan(&mut state, &planner);
    assert_eq!(state.operator(id).unwrap().state, OperatorState::Done);
    let record = &state.map().shards[&SHARD];
    assert_eq!((record.leader, record.descriptor.replicas.len()), (Some(NodeId(1)), 1));
    // A leader of the old life changes nothing any more.
    report(&mut state, 2, old, u64::MAX);
    assert_eq!(state.map().shards[&SHARD].leader, Some(NodeId(1)));
    let repair = state.running().next().expect("replicas are missing");
    let OperatorKind::Replicas { goal, .. } = &repair.kind else { panic!("{repair:?}") };
    let nodes: Vec<u64> = goal.iter().map(|replica| replica.node_id.0).collect();
    assert_eq!(nodes.len(), 3);
    assert!([1, 4, 5].iter().all(|node| nodes.contains(node)), "{nodes:?}");
    assert!(repair.reason.contains("1 of 3"), "{}", repair.reason);
}

#[test]
fn a_preview_tells_what_is_lost_and_refuses_a_bad_survivor() {
    let mut state = cluster(3);
    die(&mut state, &[1, 3]);
    let quiet = silent(&[(1, 60_000), (2, 100), (3, 60_000)]);
    let ask = |state: &ControlState, standings: &Standings, silent: &BTreeMap<_, _>| {
        preview_recovery(state, standings, silent, SHARD, NodeId(2))
    };
    let known = standings(&state, &[(1, 50), (2, 40)]);
    let preview = ask(&state, &known, &quiet).unwrap();
    assert_eq!(preview.gone.len(), 2);
    assert_eq!(preview.replicas[0].replica.node_id, NodeId(2));
    assert!(
        preview.warnings.iter().any(|words| words.contains("At least 10 entries are lost")),
        "{preview:?}"
    );
    let unknown = standings(&state, &[(2, 40)]);
    let preview = ask(&state, &unknown, &quiet).unwrap();
    assert!(preview.warnings.iter().any(|words| words.contains("is not known")), "{preview:?}");
    // It must be heard, and have something.
    let not_heard = Err(ControlError::NotHeard { shard: SHARD, node: NodeId(2) });
    assert_eq!(ask(&state, &Standings::default(), &quiet), not_heard);
    assert_eq!(ask(&state, &known, &silent(&[(2, 60_000)])), not_heard);
    let mut empty = Standings::default();
    let lost = ReplicaReport { awaits_snapshot: true, ..heard(&state, 2, 40) };
    empty.heard(state.map(), SHARD, NodeId(2), lost);
    let without = Err(ControlError::WithoutState { shard: SHARD, node: NodeId(2) });
    assert_eq!(ask(&state, &empty, &quiet), without);
}

#[test]
fn a_preview_points_to_the_replica_that_has_more() {
    let mut state = cluster(5);
    let nodes = (1..=5).map(NodeId).collect();
    let request = OperatorRequest::SetReplicas { shard: SHARD, nodes, membership_epoch: None };
    let (reason, parent) = (String::new(), None);
    let start =
        ControlCommand::StartOperator { request, reason, parent, now_ms: 1, time_limit_ms: 9 };
    state.apply(&start).result.unwrap();
    let operator = state.running().next().unwrap().clone();
    let OperatorKind::Replicas { goal, .. } = operator.kind else { panic!() };
    let mut descriptor = state.map().shards[&SHARD].descriptor.clone();
    descriptor.membership_epoch = kvdb_model::MembershipEpoch(5);
    descriptor.replicas = goal;
    report(&mut state, 1, descriptor, 9);
    state
        .apply(&ControlCommand::FinishOperator { id: operator.id, failure: None, now_ms: 3 })
        .result
        .unwrap();
    die(&mut state, &[1, 3, 4]);
    let known = standings(&state, &[(2, 40), (5, 45)]);
    let heard = silent(&[(2, 100), (5, 100)]);
    let preview = preview_recovery(&state, &known, &heard, SHARD, NodeId(2)).unwrap();
    assert!(preview.warnings[0].contains("node 5 has more"), "{preview:?}");
    let preview = preview_recovery(&state, &known, &heard, SHARD, NodeId(5)).unwrap();
    assert!(!preview.warnings.iter().any(|words| words.contains("has more")), "{preview:?}");
}

#[test]
fn a_shard_that_was_handed_over_is_asked_as_much_as_before() {
    let mut state = cluster(3);
    let lead = |state: &mut ControlState, node, term| {
        let descriptor = state.map().shards[&SHARD].descriptor.clone();
        report(state, node, descriptor, term);
    };
    let mut standings = Standings::default();
    let reads = |standings: &Standings, state: &ControlState| {
        standings.loads(state.map()).shards[&SHARD].reads_per_second
    };
    let tell = |standings: &mut Standings, state: &ControlState, node, reads_per_second, known| {
        let load = Load { reads_per_second, ..Load::default() };
        let report = ReplicaReport { load, reads_known: known, ..heard(state, node, 40) };
        standings.heard(state.map(), SHARD, NodeId(node), report);
    };
    tell(&mut standings, &state, 1, 500, true);
    tell(&mut standings, &state, 2, 0, false);
    assert_eq!(reads(&standings, &state), 500);
    lead(&mut state, 2, 8);
    tell(&mut standings, &state, 2, 0, false);
    tell(&mut standings, &state, 1, 3, true);
    assert_eq!(reads(&standings, &state), 500);
    tell(&mut standings, &state, 2, 600, true);
    assert_eq!(reads(&standings, &state), 600);
}

#[test]
fn a_shard_that_was_handed_over_has_as_many_keys_as_before() {
    let mut state = cluster(3);
    let mut standings = Standings::default();
    let keys = |standings: &Standings, state: &ControlState| {
        standings.loads(state.map()).shards[&SHARD].keys
    };
    let tell = |standings: &mut Standings, state: &ControlState, node, keys| {
        let load = Load { keys, ..Load::default() };
        let report = ReplicaReport { load, ..heard(state, node, 40) };
        standings.heard(state.map(), SHARD, NodeId(node), report);
    };
    tell(&mut standings, &state, 1, None);
    assert_eq!(keys(&standings, &state), None);
    tell(&mut standings, &state, 1, Some(500));
    // The new leader hasn't counted yet; the one before leads no more.
    let descriptor = state.map().shards[&SHARD].descriptor.clone();
    report(&mut state, 2, descriptor, 8);
    tell(&mut standings, &state, 2, None);
    tell(&mut standings, &state, 1, Some(3));
    assert_eq!(keys(&standings, &state), Some(500));
    tell(&mut standings, &state, 2, Some(510));
    assert_eq!(keys(&standings, &state), Some(510));
}
