//! `kvdb admin`: changes that take their time, and how far they are.

use super::change::{say, what_a_replacement_does};
use super::{Move, Operations, Replace, SetReplicas, Split, Waiting};
use crate::exit::Failure;
use crate::output::{is_watched, table};
use crate::units::{about_size, about_time};
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use kvdb_client::{AdminClient, OperatorStatus};
use kvdb_model::{NodeId, OperatorId, ShardId};
use serde_json::{Value, json};
use std::os::unix::ffi::OsStringExt as _;
use std::time::{Duration, Instant, SystemTime};

/// Between two looks at an operation that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest wait for the first step of an operation that nobody waits for to its end.
const FIRST_STEP: Duration = Duration::from_secs(2);
/// An operation that can't go on for so long isn't waited for any more.
const STUCK: Duration = Duration::from_secs(3);

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

pub(super) async fn drain(
    admin: &AdminClient,
    node: NodeId,
    waiting: Waiting,
    json: bool,
) -> Result<(), Failure> {
    let begun = admin.drain_node(node).await?;
    warn(begun.warning.as_deref(), json);
    started(admin, begun.operator, waiting, json).await
}

pub(super) async fn replace(
    admin: &AdminClient,
    command: Replace,
    json: bool,
) -> Result<(), Failure> {
    let node = NodeId(command.node_id);
    if !command.confirmation.yes {
        let map = admin.shard_map().await?;
        command.confirmation.ask(&what_a_replacement_does(&map, node)?)?;
    }
    let begun = admin.replace_node(node).await?;
    warn(begun.warning.as_deref(), json);
    started(admin, begun.operator, command.waiting, json).await
}

/// On the error output, so that whoever reads the answer gets nothing else.
fn warn(warning: Option<&str>, json: bool) {
    match warning {
        Some(warning) if json => eprintln!("{}", json!({ "warning": warning })),
        Some(warning) => eprintln!("warning: {warning}"),
        None => {}
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

pub(super) async fn operations(
    admin: &AdminClient,
    command: Operations,
    json: bool,
) -> Result<(), Failure> {
    let operations = admin.operators(command.running).await?;
    let objects: Vec<Value> = operations.iter().map(object).collect();
    let document = json!({ "operations": objects });
    let now_ms = now_ms();
    let rows: Vec<Vec<String>> = operations.iter().map(|one| row(one, now_ms)).collect();
    let head =
        ["OPERATION", "STATE", "DONE", "STARTED", "TOOK", "DESCRIPTION", "REASON", "LAST STEP"];
    let words = match rows.is_empty() {
        true => "no operations".to_owned(),
        false => table(&head, &rows),
    };
    say(json, &document, words)
}

pub(super) async fn cancel(admin: &AdminClient, id: u64, json: bool) -> Result<(), Failure> {
    let version = admin.cancel_operator(OperatorId(id)).await?;
    let document = json!({ "operator_id": id, "map_version": version.0 });
    say(json, &document, format!("cancelled operation {id}"))
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

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn row(operator: &OperatorStatus, now_ms: u64) -> Vec<String> {
    let last = operator.steps.last().map(|(_, what)| what.clone()).unwrap_or_default();
    let last = if operator.failure.is_empty() { last } else { operator.failure.clone() };
    let last = match left(operator) {
        Some(left) => format!("{last}; {left}"),
        None => last,
    };
    let ended_ms = if operator.is_running() { now_ms } else { operator.ended_ms };
    vec![
        operator.id.to_string(),
        operator.state.clone(),
        format!("{} %", operator.progress_percent),
        format!("{} ago", about_time(now_ms.saturating_sub(operator.started_ms))),
        about_time(ended_ms.saturating_sub(operator.started_ms)),
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
    let words = format!("about {} to send", about_size(left));
    Some(match rate {
        0 => words,
        _ => {
            let (rate, takes) = (about_size(rate), about_time(operator.left_ms));
            format!("{words} at {rate} a second: {takes}")
        }
    })
}

/// Says that an operation runs, and follows it to its end if that is asked for.
pub(super) async fn started(
    admin: &AdminClient,
    id: OperatorId,
    waiting: Waiting,
    json: bool,
) -> Result<(), Failure> {
    if !waiting.wait {
        let stuck = first_obstacle(admin, id).await?;
        let mut words =
            format!("operation {id} has started; `kvdb admin operations` shows its progress");
        if let Some(stuck) = &stuck {
            words.push_str(&format!(
                "\nIt can't end as things are: {stuck}. `kvdb admin cancel {id}` takes it back."
            ));
        }
        return say(json, &json!({ "operator_id": id.0, "stuck": stuck }), words);
    }
    let ended = follow(admin, id, json).await?;
    if !ended.is_done() {
        return Err(Failure::Refused(format!(
            "operation {id} has {}: {}",
            ended.state, ended.failure
        )));
    }
    say(json, &object(&ended), format!("operation {id} is done: {}", ended.description))
}

/// What keeps an operation that empties a node from going on, as the coordinators say.
fn obstacle(operation: &OperatorStatus) -> Option<&str> {
    let empties = matches!(operation.kind.as_str(), "drain" | "replace");
    let (_, step) = operation.steps.last().filter(|_| empties && operation.is_running())?;
    step.split_once("left; ").map(|(_, obstacle)| obstacle)
}

/// Looks whether an operation that has just started can go on: the coordinators find out within a
/// round of planning.
async fn first_obstacle(admin: &AdminClient, id: OperatorId) -> Result<Option<String>, Failure> {
    let begun = Instant::now();
    loop {
        let all = admin.operators(false).await?;
        let Some(operation) = all.into_iter().find(|operation| operation.id == id) else {
            return Ok(None);
        };
        let empties = matches!(operation.kind.as_str(), "drain" | "replace");
        let is_known = !operation.steps.is_empty() || !operation.is_running();
        if !empties || is_known || begun.elapsed() > FIRST_STEP {
            return Ok(obstacle(&operation).map(str::to_owned));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Shows how far an operation is: a bar on a terminal, elsewhere a line for each step.
struct Progress {
    bar: ProgressBar,
    told: String,
    to_people: bool,
}

impl Progress {
    fn new(json: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos} %  {wide_msg}");
        let bar = ProgressBar::new(100)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar, told: String::new(), to_people: !json }
    }

    fn show(&mut self, operation: &OperatorStatus) {
        self.bar.set_position(operation.progress_percent.into());
        let Some((_, step)) = operation.steps.last() else { return };
        let left = left(operation).map_or_else(String::new, |left| format!("; {left}"));
        self.bar.set_message(format!("{step}{left}"));
        if self.to_people && !is_watched() && self.told != *step {
            eprintln!("operation {}: {step}", operation.id);
            self.told.clone_from(step);
        }
    }
}

async fn follow(
    admin: &AdminClient,
    id: OperatorId,
    json: bool,
) -> Result<OperatorStatus, Failure> {
    let mut progress = Progress::new(json);
    let mut interval = tokio::time::interval(LOOK_EVERY);
    let mut stuck: Option<(String, Instant)> = None;
    loop {
        interval.tick().await;
        let all = admin.operators(false).await?;
        let child_runs = all.iter().any(|one| one.parent == Some(id) && one.is_running());
        let Some(operation) = all.into_iter().find(|operation| operation.id == id) else {
            let words = format!("operation {id} ended long ago, and is no longer listed");
            return Err(Failure::NotFound(words));
        };
        progress.show(&operation);
        if !operation.is_running() {
            progress.bar.finish_and_clear();
            return Ok(operation);
        }
        // It waits for somebody to do something: whoever waits for it is told that instead.
        stuck = match obstacle(&operation).filter(|_| !child_runs) {
            Some(words) => match stuck {
                Some(known) if known.0 == words => Some(known),
                _ => Some((words.to_owned(), Instant::now())),
            },
            None => None,
        };
        if let Some((words, _)) = stuck.as_ref().filter(|(_, since)| since.elapsed() > STUCK) {
            progress.bar.finish_and_clear();
            return Err(Failure::Refused(format!(
                "operation {id} can't end as things are: {words}. It stays, and goes on when it can; \
                 `kvdb admin cancel {id}` takes it back"
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(kind: &str, step: &str) -> OperatorStatus {
        OperatorStatus {
            id: OperatorId(7),
            parent: None,
            kind: kind.into(),
            description: "empty node 2".into(),
            reason: "asked for".into(),
            state: "running".into(),
            failure: String::new(),
            started_ms: 1000,
            ended_ms: 0,
            time_limit_ms: 3_600_000,
            progress_percent: 0,
            shard: None,
            node: Some(NodeId(2)),
            steps: vec![(1250, step.into())],
            left_bytes: 0,
            bytes_per_second: 0,
            left_ms: 0,
        }
    }

    #[test]
    fn what_keeps_a_drain_from_ending_is_found_in_its_last_step() {
        let words = "8 replicas left; no node that is alive could take a replica of shard 3";
        let stuck = operation("drain", words);
        let expected = "no node that is alive could take a replica of shard 3";
        assert_eq!(obstacle(&stuck), Some(expected));
        assert_eq!(obstacle(&operation("drain", "8 replicas left")), None);
        assert_eq!(obstacle(&operation("split", words)), None);
        assert_eq!(obstacle(&OperatorStatus { state: "done".into(), ..stuck }), None);
    }

    #[test]
    fn an_operation_is_shown_with_its_times() {
        let cells = row(&operation("drain", "8 replicas left"), 61_000);
        assert_eq!(cells[3..5], ["60 s ago", "60 s"]);
    }
}
