//! `kvdb admin force-recover`: shows what is known and what may be lost, asks, and starts it.

use super::operate::started;
use super::show::status_name;
use super::{AcceptCopy, ForceRecover};
use crate::exit::Failure;
use crate::output::{Output, table};
use crate::units;
use kvdb_client::{AdminClient, Recovery, ReplicaStanding};
use kvdb_model::{NodeId, ShardId};
use serde_json::{Value, json};

pub(super) async fn run(
    admin: &AdminClient,
    command: ForceRecover,
    json: bool,
) -> Result<(), Failure> {
    let (shard, from) = (ShardId(command.shard_id), NodeId(command.from));
    let preview = admin.force_recover(shard, from, false).await?;
    // Beside the answer, which may be read by a program.
    match json {
        true => eprintln!("{}", document(shard, from, &preview)),
        false => eprintln!("{}", words(shard, from, &preview)),
    }
    command.confirmation.ask(&format!(
        "Recover shard {shard} from the replica on node {from} alone: what the others had acknowledged and it never \
         got is lost."
    ))?;
    let done = admin.force_recover(shard, from, true).await?;
    match done.operator {
        Some(id) => started(admin, id, command.waiting, json).await,
        None => Err(Failure::Refused("the coordinators have started nothing".to_owned())),
    }
}

pub(super) async fn accept_copy(
    admin: &AdminClient,
    command: AcceptCopy,
    json: bool,
) -> Result<(), Failure> {
    let node = NodeId(command.node_id);
    command.confirmation.ask(&format!(
        "The next start of node {node} is accepted, however old its data directory is. Replicas in it take no part any \
         more: writes that they acknowledged after the copy was made are lost unless other nodes have them. Shards can \
         be recovered from them (`kvdb admin force-recover`)."
    ))?;
    let version = admin.accept_copy(node).await?;
    let mut output = Output::new();
    match json {
        true => output.json(&json!({ "node_id": node.0, "map_version": version.0 }))?,
        false => output.line(format!(
            "the next start of node {node} is accepted as an older copy: start it, then recover its shards"
        ))?,
    }
    output.finish()
}

fn document(shard: ShardId, from: NodeId, preview: &Recovery) -> Value {
    let replicas: Vec<Value> = preview
        .replicas
        .iter()
        .map(|standing| {
            json!({
                "node_id": standing.node.0,
                "replica_id": standing.replica.0,
                "node_status": status_name(standing.status),
                "silent_ms": standing.silent_ms,
                "applied_index": standing.told.map(|(applied, _, _)| applied.0),
                "last_index": standing.told.map(|(_, last, _)| last.0),
                "version": standing.told.map(|(_, _, version)| version.0),
            })
        })
        .collect();
    json!({
        "shard_id": shard.0,
        "from_node_id": from.0,
        "replicas": replicas,
        "warnings": preview.warnings,
    })
}

fn words(shard: ShardId, from: NodeId, preview: &Recovery) -> String {
    let rows: Vec<Vec<String>> = preview.replicas.iter().map(|one| row(one, from)).collect();
    let head = ["NODE", "STATUS", "LAST HEARD", "APPLIED", "LOG ENDS AT", "VERSION", ""];
    let warnings: Vec<String> =
        preview.warnings.iter().map(|warning| format!("- {warning}")).collect();
    format!(
        "Shard {shard} has lost its majority. Last reports of its replicas:\n\n{}\n\n{}\n",
        table(&head, &rows),
        warnings.join("\n")
    )
}

fn row(standing: &ReplicaStanding, from: NodeId) -> Vec<String> {
    let unknown = || "not known".to_owned();
    let told = |tell: &dyn Fn((_, _, _)) -> String| standing.told.map_or_else(unknown, tell);
    let heard = |silent: u64| format!("{} ago", units::about_time(silent));
    let role = if standing.node == from { "becomes the shard" } else { "is removed" };
    vec![
        standing.node.to_string(),
        status_name(standing.status).to_owned(),
        standing.silent_ms.map_or_else(unknown, heard),
        told(&|(applied, _, _)| applied.to_string()),
        told(&|(_, last, _)| last.to_string()),
        told(&|(_, _, version)| version.to_string()),
        role.to_owned(),
    ]
}
