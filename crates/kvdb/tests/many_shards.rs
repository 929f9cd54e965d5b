//! Many shards that come to be at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use kvdb_client::{AdminClient, Options};
use kvdb_model::{Partitioning, RetryClass};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use support::{Cluster, Part};

const KEYSPACES: usize = 40;
const SHARDS: usize = 8;
/// A node may pay 150 MiB for 1,000 shards.
const MOST_KIB: u64 = 150 * 1024 * (KEYSPACES * SHARDS) as u64 / 1000;

fn memory_kib(part: &Part) -> u64 {
    let process = part.child.as_ref().unwrap().id();
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn metric(part: &Part, name: &str) -> u64 {
    let place = part.args.iter().position(|word| word == "--http").unwrap();
    let mut stream = TcpStream::connect(&part.args[place + 1]).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_shards_are_born_empty_on_each_node_and_cost_it_little() {
    let cluster = Cluster::start();
    let before: Vec<_> = cluster.nodes.iter().map(memory_kib).collect();
    let admin = AdminClient::new(Options::to(&cluster.endpoint)).unwrap();
    for n in 0..KEYSPACES {
        let name = format!("k{n}");
        while let Err(error) =
            admin.create_keyspace(&name, Partitioning::Hash, SHARDS as u32, 3).await
        {
            // On a busy machine the coordinators may change leaders meanwhile.
            assert_eq!(error.class(), RetryClass::OutcomeUnknown, "{error}");
            let map = admin.shard_map().await.unwrap();
            if map.keyspaces.values().any(|keyspace| keyspace.name == name) {
                break;
            }
        }
    }
    loop {
        let map = admin.shard_map().await.unwrap();
        if map.shards.values().all(|shard| shard.leader.is_some()) {
            break;
        }
    }
    let mut snapshots = 0;
    for (node, before) in cluster.nodes.iter().zip(before) {
        let cost = memory_kib(node) - before;
        assert!(cost < MOST_KIB, "{cost} KiB of {MOST_KIB}");
        snapshots += metric(node, "kvdb_snapshots_sent_total");
    }
    // A leader may be elected before the third node has heard of the shard, and be patient in vain.
    let most = (KEYSPACES * SHARDS / 10) as u64;
    assert!(snapshots <= most, "{snapshots} snapshots of nothing were sent");
}
