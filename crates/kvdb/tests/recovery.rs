//! Most of a cluster is lost for good, and what is left lives again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use serde_json::Value;
use support::Cluster;

const KEYS: usize = 60;

fn shards(cluster: &Cluster) -> Vec<Value> {
    let map = cluster.json(&["admin", "shards", "--json"]).unwrap();
    map["shards"].as_array().unwrap().clone()
}

fn status_of(cluster: &Cluster, node: u64) -> String {
    let nodes = cluster.json(&["admin", "nodes", "--json"]);
    let nodes = nodes.and_then(|document| document["nodes"].as_array().cloned());
    let found = nodes.unwrap_or_default().into_iter().find(|found| found["node_id"] == node);
    found.map_or_else(String::new, |found| found["status"].as_str().unwrap().to_owned())
}

/// The number of the node at a place, which follows from its address.
fn number_of(cluster: &Cluster, place: usize) -> u64 {
    let args = &cluster.nodes[place].args;
    let listen = args.iter().position(|word| word == "--listen").unwrap();
    let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap();
    let nodes = nodes["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|node| node["address"] == args[listen + 1].as_str());
    found.unwrap()["node_id"].as_u64().unwrap()
}

fn refused(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.kvdb(args);
    assert_eq!(output.status.code(), Some(3), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn shards_live_again_from_the_one_node_that_is_left_and_are_repaired_onto_fresh_ones() {
    let mut cluster = Cluster::start();
    for key in 0..KEYS {
        let (key, value) = (format!("k{key}"), format!("v{key}"));
        assert!(cluster.kvdb(&["put", &key, &value]).status.success());
    }
    let left = number_of(&cluster, 0);
    let survivor = left.to_string();
    let words = refused(&cluster, &["admin", "force-recover", "1", "--from", &survivor, "--yes"]);
    assert!(words.contains("has a majority"), "{words}");

    // Two of three are gone with their disks.
    let lost = [number_of(&cluster, 1), number_of(&cluster, 2)];
    for place in [1, 2] {
        cluster.nodes[place].kill();
        std::fs::remove_dir_all(cluster.data_of(&format!("n{}", place + 1))).unwrap();
    }
    cluster.until("both are given up", |cluster| {
        lost.iter().all(|node| status_of(cluster, *node) == "DEAD")
    });
    assert!(shards(&cluster).iter().all(|shard| shard["has_majority"] == false));
    let told = cluster.kvdb(&["admin", "shards"]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("force-recover"));

    // It must be confirmed, and from a node that is there.
    let words = refused(&cluster, &["admin", "force-recover", "1", "--from", &survivor]);
    assert!(words.contains("--yes") && words.contains("never vote again"), "{words}");
    let dead = lost[0].to_string();
    let words = refused(&cluster, &["admin", "force-recover", "1", "--from", &dead, "--yes"]);
    assert!(words.contains("lost itself"), "{words}");
    for shard in shards(&cluster) {
        let shard = shard["shard_id"].to_string();
        let args = ["admin", "force-recover", &shard, "--from", &survivor, "--yes", "--wait"];
        let output = cluster.kvdb(&args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for shard in shards(&cluster) {
        assert_eq!(shard["replicas"].as_array().unwrap().len(), 1, "{shard}");
        assert_eq!(shard["leader_node_id"], left, "{shard}");
    }
    cluster.until("it takes writes", |cluster| cluster.kvdb(&["put", "new", "1"]).status.success());
    for key in 0..KEYS {
        assert_eq!(cluster.get(&format!("k{key}")), format!("v{key}"));
    }

    // Fresh nodes come, and each shard is as it was before.
    cluster.add_node("n4");
    cluster.add_node("n5");
    cluster.until("every shard has three replicas again", |cluster| {
        shards(cluster).iter().all(|shard| {
            let replicas = shard["replicas"].as_array().unwrap();
            replicas.len() == 3
                && replicas.iter().all(|replica| {
                    replica["role"] == "VOTER"
                        && !lost.contains(&replica["node_id"].as_u64().unwrap())
                })
        })
    });
    cluster.nodes[0].kill();
    cluster.until("the new ones go on without it", |cluster| {
        (0..KEYS).all(|key| cluster.get(&format!("k{key}")) == format!("v{key}"))
    });
}
