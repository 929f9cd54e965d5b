//! Commands that change the cluster.

use super::history;
use super::operate;
use super::{
    CreateKeyspace, DropKeyspace, InitShards, RegisterNode, SetLeader, SetNodeStatus, Status,
    Waiting,
};
use crate::exit::Failure;
use crate::output::Output;
use kvdb_client::AdminClient;
use kvdb_model::{NewKeyspace, NodeId, NodeStatus, ShardId, ShardMap, ShardRecord};
use serde_json::{Value, json};

/// Says what was done, in the way that was asked for.
pub(super) fn say(json: bool, document: &Value, words: String) -> Result<(), Failure> {
    let mut output = Output::new();
    match json {
        true => output.document(document)?,
        false => output.line(words)?,
    }
    output.finish()
}

pub(super) async fn init_shards(
    admin: &AdminClient,
    command: InitShards,
    json: bool,
) -> Result<(), Failure> {
    let done = admin.init_shards(command.shards, command.replicas).await?;
    let document = json!({
        "map_version": done.map_version.0,
        "created": done.created,
        "replicas": done.replicas,
        "wanted_replicas": done.wanted_replicas,
    });
    let words = match done.created {
        true => format!("created {} shards", command.shards),
        false => "the shards exist already".to_owned(),
    };
    let fewer = fewer_than_wanted(done.replicas, done.wanted_replicas);
    say(json, &document, format!("{words}{fewer}"))
}

/// What to say of shards that have fewer replicas than they are to have.
fn fewer_than_wanted(replicas: u32, wanted: u32) -> String {
    match replicas < wanted {
        true => format!(
            "\nwith {replicas} of {wanted} replicas: too few nodes are alive. The rest are made when there are \
             enough;\n`kvdb admin status` shows which shards lack some"
        ),
        false => String::new(),
    }
}

pub(super) async fn create_keyspace(
    admin: &AdminClient,
    command: CreateKeyspace,
    json: bool,
) -> Result<(), Failure> {
    let new = NewKeyspace {
        name: command.name.clone(),
        partitioning: command.partitioning.into(),
        shards: command.shards,
        replicas: command.replicas,
        history: history::limits(command.history, command.history_bytes),
        colocated: command.colocated,
        redis_db: command.redis_db.unwrap_or(0),
    };
    let made = admin.create_keyspace_as(&new).await?;
    let id = made.keyspace_id;
    let document = json!({
        "keyspace_id": id.0,
        "name": command.name,
        "replicas": made.replicas,
        "wanted_replicas": made.wanted_replicas,
    });
    let fewer = fewer_than_wanted(made.replicas, made.wanted_replicas);
    say(json, &document, format!("created keyspace {} with id {id}{fewer}", command.name))
}

pub(super) async fn drop_keyspace(
    admin: &AdminClient,
    command: DropKeyspace,
    json: bool,
) -> Result<(), Failure> {
    if !command.confirmation.yes {
        let map = admin.shard_map().await?;
        command.confirmation.ask(&what_a_drop_does(&map, &command.name)?)?;
    }
    let version = admin.drop_keyspace(&command.name).await?;
    let document = json!({ "name": command.name, "map_version": version.0 });
    say(json, &document, format!("dropped keyspace {}", command.name))
}

/// What is lost with a keyspace.
fn what_a_drop_does(map: &ShardMap, name: &str) -> Result<String, Failure> {
    let found = map.keyspaces.values().find(|known| known.name == name && !known.is_dropped());
    let keyspace = found.ok_or_else(|| {
        Failure::Refused(format!(
            "keyspace `{name}` does not exist; `kvdb admin keyspaces` lists them"
        ))
    })?;
    let id = keyspace.keyspace_id;
    let shards = map.shards.values().filter(|shard| shard.descriptor.keyspace_id == id).count();
    Ok(format!(
        "Drop keyspace `{name}`: its {shards} shards with all their keys are deleted on every node. This can't be \
         taken back; `kvdb export FILE --keyspace {name}` makes a copy first."
    ))
}

/// Who a node is, and how much it holds.
fn node_in_words(map: &ShardMap, node: NodeId) -> Result<String, Failure> {
    let record = map.nodes.get(&node).ok_or_else(|| {
        Failure::Refused(format!("node {node} is not registered; `kvdb admin nodes` lists them"))
    })?;
    let has = |shard: &&ShardRecord| shard.descriptor.replica_on(node).is_some();
    let replicas = map.shards.values().filter(has).count();
    let status = super::show::status_name(record.status);
    Ok(format!("node {node} ({}, {status}, {replicas} replicas)", record.address))
}

/// What becomes of a node that is replaced.
pub(super) fn what_a_replacement_does(map: &ShardMap, node: NodeId) -> Result<String, Failure> {
    let is_alive = map.nodes.get(&node).is_some_and(|record| record.status == NodeStatus::Alive);
    let hint = match is_alive {
        true => format!(" It is alive: `kvdb admin drain {node}` empties it, and keeps it."),
        false => String::new(),
    };
    Ok(format!(
        "Replace {}: what it held is rebuilt on other nodes from their copies. Then it is removed for good: its \
         process ends, and its data directory is never used again.{hint}",
        node_in_words(map, node)?
    ))
}

/// What becomes of a node that is removed at once.
fn what_a_removal_does(map: &ShardMap, node: NodeId, force: bool) -> Result<String, Failure> {
    let rebuilt = match force {
        true => " What it held is rebuilt on other nodes from their copies.",
        false => "",
    };
    Ok(format!(
        "Remove {} for good: its process ends, and its data directory is never used again.{rebuilt}",
        node_in_words(map, node)?
    ))
}

pub(super) async fn register_node(
    admin: &AdminClient,
    command: RegisterNode,
    json: bool,
) -> Result<(), Failure> {
    let token = match command.token {
        Some(token) => token,
        None => random_token()?,
    };
    let registered = admin.register_node(token, &command.address, &command.zone).await?;
    let (node, cluster) = (registered.node_id, registered.cluster_id);
    let document = json!({
        "node_id": node.0,
        "cluster_id": cluster.to_string(),
        "token": format!("{token:032x}"),
        "map_version": registered.map_version.0,
    });
    let words = format!("registered node {node} in cluster {cluster}, token {token:032x}");
    say(json, &document, words)
}

fn random_token() -> Result<u128, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Unavailable(format!("no random bytes: {error}")))?;
    Ok(u128::from_be_bytes(bytes))
}

pub(super) async fn set_node_status(
    admin: &AdminClient,
    command: SetNodeStatus,
    json: bool,
) -> Result<(), Failure> {
    let node = NodeId(command.node_id);
    let version = match (command.status, command.force) {
        (Status::Removed, force) => {
            if !command.confirmation.yes {
                let map = admin.shard_map().await?;
                command.confirmation.ask(&what_a_removal_does(&map, node, force)?)?;
            }
            match force {
                true => admin.remove_node_by_force(node).await?,
                false => admin.set_node_status(node, NodeStatus::Removed).await?,
            }
        }
        (_, true) => {
            let words = "--force is for the status `removed` alone";
            return Err(Failure::Usage(words.to_owned()));
        }
        // A status alone would move nothing.
        (Status::Draining, false) => {
            return operate::drain(admin, node, Waiting { wait: false }, json).await;
        }
        (status, false) => admin.set_node_status(node, status.into()).await?,
    };
    let document = json!({ "node_id": node.0, "map_version": version.0 });
    say(json, &document, format!("set the status of node {node} (map version {version})"))
}

pub(super) async fn set_leader(
    admin: &AdminClient,
    command: SetLeader,
    json: bool,
) -> Result<(), Failure> {
    let (shard, node) = (ShardId(command.shard_id), NodeId(command.node_id));
    let version = admin.set_shard_leader(shard, node).await?;
    let document = json!({ "shard_id": shard.0, "node_id": node.0, "map_version": version.0 });
    let words = format!("asked the leader of shard {shard} to hand over to node {node}");
    say(json, &document, words)
}
