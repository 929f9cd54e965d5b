//! Replicas that are wanted and missing, and nodes that are taken away, against real processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use serde_json::Value;
use support::Cluster;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status_of(cluster: &Cluster, node: u64) -> Option<String> {
    let nodes = cluster.json(&["admin", "nodes", "--json"])?;
    let found = nodes["nodes"].as_array()?.iter().find(|one| one["node_id"] == node)?;
    Some(found["status"].as_str()?.to_owned())
}

fn missing(cluster: &Cluster) -> Option<Value> {
    Some(cluster.json(&["admin", "status", "--json"])?["under_replicated_shards"].clone())
}

#[test]
fn a_keyspace_made_while_a_node_is_away_says_so_and_gets_its_replicas_when_it_is_back() {
    let mut cluster = Cluster::start();
    let away = (1..=3).find(|node| {
        let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap();
        let listen = cluster.nodes[0].args[2].clone();
        nodes["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|one| one["node_id"] == *node && one["address"] == listen.as_str())
    });
    let away = away.unwrap();
    cluster.nodes[0].kill();
    cluster.until("the node is missed", |cluster| {
        status_of(cluster, away).is_some_and(|status| status != "ALIVE")
    });
    let made = cluster.kvdb(&["admin", "create-keyspace", "orders", "--shards", "2"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("with 2 of 3 replicas"), "{}", text(&made.stdout));
    cluster.until("they are counted", |cluster| missing(cluster).is_some_and(|some| some != 0));
    cluster.nodes[0].start();
    cluster.until("nothing is missing", |cluster| missing(cluster).is_some_and(|none| none == 0));
    let shards = cluster.json(&["admin", "shards", "--json"]).unwrap();
    for shard in shards["shards"].as_array().unwrap() {
        assert_eq!(shard["replicas"].as_array().unwrap().len(), 3, "{shard}");
    }
}

#[test]
fn a_living_node_is_removed_by_force_alone_and_its_shards_go_on() {
    let mut cluster = Cluster::start();
    let refused = cluster.kvdb(&["admin", "set-node-status", "1", "removed", "--yes"]);
    assert_eq!(refused.status.code(), Some(3));
    let words = text(&refused.stderr);
    assert!(words.contains("node 1 is ALIVE and holds"), "{words}");
    assert!(words.contains("admin drain 1") && words.contains("admin replace 1"), "{words}");
    assert_eq!(status_of(&cluster, 1).as_deref(), Some("ALIVE"));

    cluster.add_node("n4");
    cluster.until("it is there", |cluster| status_of(cluster, 4).as_deref() == Some("ALIVE"));
    let removed = cluster.kvdb(&["admin", "set-node-status", "1", "removed", "--force", "--yes"]);
    assert!(removed.status.success(), "{}", text(&removed.stderr));
    let written = cluster.kvdb(&["put", "after", "1"]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    cluster.until("all is rebuilt elsewhere", |cluster| {
        let shards = cluster.json(&["admin", "shards", "--json"]);
        shards.is_some_and(|shards| {
            shards["shards"].as_array().unwrap().iter().all(|shard| {
                let replicas = shard["replicas"].as_array().unwrap();
                replicas.len() == 3 && replicas.iter().all(|replica| replica["node_id"] != 1)
            })
        })
    });
    cluster.until("nothing is missing", |cluster| missing(cluster).is_some_and(|none| none == 0));
    assert_eq!(cluster.get("after"), "1");
}
