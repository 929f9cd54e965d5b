//! Scans and batches while the shards under them are split and moved, against real processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use bytes::Bytes;
use kvdb_client::{BatchOperation, Client, Options, ReadOptions, Scan, ScanOptions};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Cluster, PATIENCE};

/// More than all buffers between the nodes and the client hold.
const SCANNED_KEYS: usize = 6000;
const VALUE_BYTES: usize = 4096;
const BATCH: usize = 64;

fn client(cluster: &Cluster) -> Client {
    Client::new(Options { deadline: PATIENCE, ..Options::to(&cluster.endpoint) }).unwrap()
}

async fn fill(client: &Client) {
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let numbers: Vec<usize> = (0..SCANNED_KEYS).collect();
    for some in numbers.chunks(200) {
        let puts: Vec<_> =
            some.iter().map(|n| BatchOperation::put(format!("s-{n}"), value.clone())).collect();
        for result in client.batch_write(&puts, false).await.unwrap() {
            result.unwrap();
        }
    }
}

/// Writes and reads the same keys again and again: each round is seen whole, nothing is refused.
async fn batches(client: Client, stop: Arc<AtomicBool>) -> usize {
    let keys: Vec<Bytes> = (0..BATCH).map(|n| Bytes::from(format!("b-{n}"))).collect();
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let value = Bytes::from(round.to_string());
        let puts: Vec<_> =
            keys.iter().map(|key| BatchOperation::put(key.clone(), value.clone())).collect();
        for result in client.batch_write(&puts, false).await.unwrap() {
            assert!(result.unwrap().applied);
        }
        let found = client.batch_get(keys.clone(), ReadOptions::default()).await.unwrap();
        for (key, found) in keys.iter().zip(found) {
            assert_eq!(found.unwrap().unwrap().value, value, "{key:?} in round {round}");
        }
        // All or none, on one shard whichever it is now.
        let together = ["{t}a", "{t}b"].map(|key| BatchOperation::put(key, value.clone()));
        let written = client.batch_write(&together, true).await.unwrap();
        let versions: BTreeSet<_> =
            written.into_iter().map(|result| result.unwrap().version).collect();
        assert_eq!(versions.len(), 1);
        round += 1;
    }
    round
}

async fn some_of(scan: &mut Scan, seen: &mut Vec<Bytes>) {
    let chunk = scan.next_chunk().await.unwrap().expect("there is much more");
    seen.extend(chunk.into_iter().map(|item| item.key));
}

fn done(cluster: &Cluster, args: &[&str]) {
    let output = cluster.kvdb(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
}

#[test]
fn scans_and_batches_under_way_lose_and_repeat_nothing_when_shards_split_and_move() {
    let cluster = Cluster::of(4);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async { client(&cluster) });
    runtime.block_on(fill(&client));
    let stop = Arc::new(AtomicBool::new(false));
    let batches = runtime.spawn(batches(client.clone(), stop.clone()));

    // Scans that have begun, but not got far.
    let options = ScanOptions { prefix: "s-".into(), ..ScanOptions::default() };
    let mut scans: Vec<(Scan, Vec<Bytes>)> = vec![
        (client.scan(options.clone()), vec![]),
        (client.scan(ScanOptions { reverse: true, ..options.clone() }), vec![]),
    ];
    let go_on = |scans: &mut Vec<(Scan, Vec<Bytes>)>| {
        for (scan, seen) in scans {
            runtime.block_on(some_of(scan, seen));
        }
    };
    go_on(&mut scans);
    for shard in ["1", "4"] {
        done(&cluster, &["admin", "split", shard, "--wait"]);
        go_on(&mut scans);
    }
    // Each shard's replica on one node moves to the spare one.
    for shard in [1, 3, 4] {
        let map = cluster.json(&["admin", "shards", "--json"]).unwrap();
        let shards = map["shards"].as_array().unwrap();
        let record = shards.iter().find(|found| found["shard_id"] == shard).unwrap();
        let replicas = record["replicas"].as_array().unwrap();
        let on: Vec<u64> =
            replicas.iter().map(|replica| replica["node_id"].as_u64().unwrap()).collect();
        let spare = (1..=4).find(|node| !on.contains(node)).unwrap();
        let [shard, from, to] = [shard, on[0], spare].map(|id| id.to_string());
        done(&cluster, &["admin", "move", &shard, &from, &to, "--wait"]);
        go_on(&mut scans);
    }
    for (mut scan, mut seen) in scans {
        while let Some(chunk) = runtime.block_on(scan.next_chunk()).unwrap() {
            seen.extend(chunk.into_iter().map(|item| item.key));
        }
        let keys: BTreeSet<_> = seen.iter().collect();
        assert_eq!(keys.len(), SCANNED_KEYS, "every key is seen");
        assert_eq!(seen.len(), SCANNED_KEYS, "and once");
    }
    stop.store(true, Ordering::Relaxed);
    let rounds = runtime.block_on(batches).unwrap();
    assert!(rounds > 20, "too few to prove anything: {rounds}");
}
