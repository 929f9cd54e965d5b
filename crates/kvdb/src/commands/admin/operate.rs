//! `kvdb admin`: changes that take their time, and how far they are.

use super::change::say;
use super::{Drain, Move, Operators, Replace, SetReplicas, Split, Waiting};
use crate::exit::Failure;
use crate::output::table;
use bytes::Bytes;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use kvdb_client::{AdminClient, OperatorStatus};
use kvdb_model::{NodeId, OperatorId, ShardId};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

/// Between two looks at an operator that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) async fn set_replicas(
    admin: &AdminClient,
    command: SetReplicas,
    json: bool,
) -> Result<(), Failure> {
    let nodes: Vec<NodeId> = command.node_ids.into_iter().map(NodeId).collect();
    let id = admin.set_shard_replicas(ShardId(command.shard_id), &nodes).await?;
    started(admin, id, command.waiting, json).await
}

pub(super) async fn move_replica(
    admin: &AdminClient,
    command: Move,
    json: bool,
) -> Result<(), Failure> {
    let (from, to) = (NodeId(command.from_node_id), NodeId(command.to_node_id));
    let id = admin.move_replica(ShardId(command.shard_id), from, to).await?;
    started(admin, id, command.waiting, json).await
}

pub(super) async fn split(admin: &AdminClient, command: Split, json: bool) -> Result<(), Failure> {
    let at = command.at.map(|key| Bytes::from(key.into_vec()));
    let id = admin.split_shard(ShardId(command.shard_id), at).await?;
    started(admin, id, command.waiting, json).await
}

pub(super) async fn drain(admin: &AdminClient, command: Drain, json: bool) -> Result<(), Failure> {
    let begun = admin.drain_node(NodeId(command.node_id)).await?;
    warn(begun.warning.as_deref());
    started(admin, begun.operator, command.waiting, json).await
}

pub(super) async fn replace(
    admin: &AdminClient,
    command: Replace,
    json: bool,
) -> Result<(), Failure> {
    let begun = admin.replace_node(NodeId(command.node_id)).await?;
    warn(begun.warning.as_deref());
    started(admin, begun.operator, command.waiting, json).await
}

/// On the error output, so that whoever reads the answer gets nothing else.
fn warn(warning: Option<&str>) {
    if let Some(warning) = warning {
        eprintln!("warning: {warning}");
    }
}

pub(super) async fn rebalance(
    admin: &AdminClient,
    waiting: Waiting,
    json: bool,
) -> Result<(), Failure> {
    let plan = admin.plan_rebalance(true).await?;
    match plan.operator {
        Some(id) => started(admin, id, waiting, json).await,
        None => {
            say(json, &json!({ "operator_id": null, "why": plan.why_no_more }), plan.why_no_more)
        }
    }
}

pub(super) async fn plan(admin: &AdminClient, json: bool) -> Result<(), Failure> {
    let plan = admin.plan_rebalance(false).await?;
    let moves: Vec<Value> = plan
        .moves
        .iter()
        .map(|(what, reason)| json!({ "description": what, "reason": reason }))
        .collect();
    let document = json!({ "moves": moves, "why_no_more": plan.why_no_more });
    let rows: Vec<Vec<String>> =
        plan.moves.iter().map(|(what, reason)| vec![what.clone(), reason.clone()]).collect();
    let words = match rows.is_empty() {
        true => plan.why_no_more,
        false => format!("{}\n{}", table(&["WOULD DO", "BECAUSE"], &rows), plan.why_no_more),
    };
    say(json, &document, words)
}

pub(super) async fn operators(
    admin: &AdminClient,
    command: Operators,
    json: bool,
) -> Result<(), Failure> {
    let operators = admin.operators(command.running).await?;
    let objects: Vec<Value> = operators.iter().map(object).collect();
    let document = json!({ "operators": objects });
    let rows: Vec<Vec<String>> = operators.iter().map(row).collect();
    let head = ["OPERATOR", "STATE", "DONE", "WHAT", "BECAUSE", "LAST STEP"];
    let words = match rows.is_empty() {
        true => "no operators".to_owned(),
        false => table(&head, &rows),
    };
    say(json, &document, words)
}

pub(super) async fn cancel(admin: &AdminClient, id: u64, json: bool) -> Result<(), Failure> {
    let version = admin.cancel_operator(OperatorId(id)).await?;
    let document = json!({ "operator_id": id, "map_version": version.0 });
    say(json, &document, format!("called off operator {id}"))
}

fn object(operator: &OperatorStatus) -> Value {
    let steps: Vec<Value> =
        operator.steps.iter().map(|(at, what)| json!({ "at_ms": at, "what": what })).collect();
    json!({
        "operator_id": operator.id.0,
        "parent_id": operator.parent.map(|id| id.0),
        "kind": operator.kind,
        "description": operator.description,
        "reason": operator.reason,
        "state": operator.state,
        "failure": operator.failure,
        "started_ms": operator.started_ms,
        "ended_ms": operator.ended_ms,
        "time_limit_ms": operator.time_limit_ms,
        "progress_percent": operator.progress_percent,
        "shard_id": operator.shard.map(|id| id.0),
        "node_id": operator.node.map(|id| id.0),
        "steps": steps,
        "left_bytes": operator.left_bytes,
        "bytes_per_second": operator.bytes_per_second,
        "left_ms": operator.left_ms,
    })
}

fn row(operator: &OperatorStatus) -> Vec<String> {
    let last = operator.steps.last().map(|(_, what)| what.clone()).unwrap_or_default();
    let last = if operator.failure.is_empty() { last } else { operator.failure.clone() };
    let last = match left(operator) {
        Some(left) => format!("{last}; {left}"),
        None => last,
    };
    vec![
        operator.id.to_string(),
        operator.state.clone(),
        format!("{} %", operator.progress_percent),
        operator.description.clone(),
        operator.reason.clone(),
        last,
    ]
}

/// What is still to be sent, and how long that takes.
fn left(operator: &OperatorStatus) -> Option<String> {
    let (left, rate) = (operator.left_bytes, operator.bytes_per_second);
    if !operator.is_running() || left == 0 {
        return None;
    }
    let words = format!("about {} to send", HumanBytes(left));
    Some(match rate {
        0 => words,
        _ => {
            let takes = HumanDuration(Duration::from_millis(operator.left_ms));
            format!("{words} at {} a second: {takes}", HumanBytes(rate))
        }
    })
}

/// Says that an operator runs, and follows it to its end if that is asked for.
pub(super) async fn started(
    admin: &AdminClient,
    id: OperatorId,
    waiting: Waiting,
    json: bool,
) -> Result<(), Failure> {
    if !waiting.wait {
        let words =
            format!("operator {id} has started; `kvdb admin operators` shows how far it is");
        return say(json, &json!({ "operator_id": id.0 }), words);
    }
    let ended = follow(admin, id).await?;
    if !ended.is_done() {
        return Err(Failure::Refused(format!(
            "operator {id} has {}: {}",
            ended.state, ended.failure
        )));
    }
    say(json, &object(&ended), format!("operator {id} is done: {}", ended.description))
}

async fn follow(admin: &AdminClient, id: OperatorId) -> Result<OperatorStatus, Failure> {
    let bar = ProgressBar::new(100).with_style(
        ProgressStyle::with_template("{bar:30} {pos} %  {wide_msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut interval = tokio::time::interval(LOOK_EVERY);
    loop {
        interval.tick().await;
        let all = admin.operators(false).await?;
        let Some(operator) = all.into_iter().find(|operator| operator.id == id) else {
            let words = format!("operator {id} is not remembered any more");
            return Err(Failure::NotFound(Some(words)));
        };
        bar.set_position(operator.progress_percent.into());
        if let Some((_, step)) = operator.steps.last() {
            let left = left(&operator).map_or_else(String::new, |left| format!("; {left}"));
            bar.set_message(format!("{step}{left}"));
        }
        if !operator.is_running() {
            bar.finish_and_clear();
            return Ok(operator);
        }
    }
}
