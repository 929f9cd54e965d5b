//! What the leading coordinator does of its own accord: it judges heartbeats, and plans.

use crate::members;
use crate::service::{Member, PoorLeader};
use kvdb_control::{ControlCommand, ControlState, Observed};
use kvdb_model::{ClusterId, NodeId, NodeStatus};
use kvdb_runtime::clock;
use kvdb_runtime::shutdown::Shutdown;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two looks at the heartbeats.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks between two notes of how far the logs of nodes are synced: a second.
const NOTE_EVERY: u64 = 4;

/// Makes the cluster id, and judges heartbeats, whenever this member leads.
pub(crate) async fn run(member: Member, shutdown: Shutdown) {
    let mut interval = tokio::time::interval(LOOK_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut led = false;
    let mut poor = BTreeSet::new();
    let mut rounds = 0u64;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        let leads = member.leads();
        if leads && !led {
            // Whoever led before has heard what this member hasn't.
            member.liveness.lock().reset();
            member.standings.lock().reset();
            member.told.lock().clear();
            member.synced.lock().clear();
        }
        led = leads;
        show_poor_leaders(&member, leads, &mut poor);
        if leads {
            // Who doesn't know the time yet may not know its nodes yet, either.
            if member.time.now_ms().is_some() || member.catch_up().await.is_ok() {
                member.look_at_clocks(&member.view.state());
            }
            look(&member).await;
        }
        rounds += 1;
        if leads
            && rounds.is_multiple_of(NOTE_EVERY)
            && let Some(command) = member.news_of_synced()
        {
            let _ = member.propose(command).await;
        }
    }
}

/// Says once, and in the metrics, which nodes should rather not lead.
fn show_poor_leaders(member: &Member, leads: bool, shown: &mut BTreeSet<(NodeId, &'static str)>) {
    let reasons = match leads {
        true => member.standings.lock().preferences.reasons(),
        false => BTreeMap::new(),
    };
    let mut now = BTreeSet::new();
    for (node, reason) in
        reasons.iter().flat_map(|(node, all)| all.iter().map(move |reason| (*node, reason)))
    {
        now.insert((node, reason.name()));
        if !shown.contains(&(node, reason.name())) {
            let why = reason.describe();
            tracing::warn!(node = node.0, why, "node is a less preferred leader");
            let label = PoorLeader { node: node.0, reason: reason.name() };
            member.poor_leaders.get_or_create(&label).set(1);
        }
    }
    for (node, reason) in shown.difference(&now) {
        if leads {
            tracing::info!(node = node.0, reason, "node is no longer a less preferred leader");
        }
        member.poor_leaders.remove(&PoorLeader { node: node.0, reason });
    }
    *shown = now;
}

async fn look(member: &Member) {
    if member.is_being_recovered() {
        if let Err(status) = member.finish_recovery().await {
            tracing::warn!(error = status.message(), "the recovery isn't finished yet");
        }
        return;
    }
    let state = member.view.state();
    let commands = if state.map().cluster_id.is_known() {
        let now_ms = clock::now().boot_us / 1000;
        member.standings.lock().forget_gone(state.map());
        let judged = member.liveness.lock().judge(state.map(), now_ms);
        let judged = judged.into_iter();
        judged
            .map(|(node, status)| ControlCommand::SetNodeStatus { node, status })
            .chain(plan(member, &state))
            .chain(members::lead_on(member).await)
            .collect()
    } else {
        let mut id = [0; 16];
        match getrandom::fill(&mut id) {
            Ok(()) => {
                vec![ControlCommand::Bootstrap { cluster_id: ClusterId(u128::from_be_bytes(id)) }]
            }
            Err(_) => vec![],
        }
    };
    for command in commands {
        if let ControlCommand::SetNodeStatus { node, status } = &command {
            let known = state.map().nodes.get(node).map_or("", |record| record.address.as_str());
            match member.liveness.lock().reach.why(*node) {
                Some(why) if *status == NodeStatus::Unreachable => {
                    tracing::warn!(node = node.0, address = known, why, "node is UNREACHABLE");
                }
                _ => tracing::info!(node = node.0, address = known, ?status, "node status changes"),
            }
        }
        if let Err(status) = member.propose(command).await {
            tracing::debug!(error = status.message(), "a command of the planner was refused");
            return;
        }
    }
}

/// What operators need next, and which new ones are due.
fn plan(member: &Member, state: &ControlState) -> Vec<ControlCommand> {
    // How long operations take isn't judged by a wall clock, which may be wrong.
    let Some(cluster_ms) = member.time.now_ms() else { return vec![] };
    let now_ms = clock::now().boot_us / 1000;
    let mut silent_ms = member.liveness.lock().silent_ms(now_ms);
    // One that can't be reached is of as little use as one that is silent.
    silent_ms.extend(member.liveness.lock().reach.missed_ms(now_ms));
    let observed = Observed {
        now_ms: cluster_ms,
        silent_ms,
        impossible: std::mem::take(&mut *member.impossible.lock()),
        loads: member.standings.lock().loads(state.map()),
    };
    let commands = member.planner.plan(state, &observed);
    for command in &commands {
        if let ControlCommand::StartOperator { request, reason, .. } = command {
            tracing::info!(what = request.describe(), reason, "operation starts");
        }
        if let ControlCommand::FinishOperator { id, failure, .. } = command {
            tracing::info!(operation = id.0, failure, "operation ended");
        }
    }
    commands
}
