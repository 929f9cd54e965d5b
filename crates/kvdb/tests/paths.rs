//! A node behind a network path that delays leads nothing where others can, is named with the figure,
//! and doesn't go back and forth.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, free_ports};

/// What the path adds each way. Elections wait for longer.
const DELAY_MS: u64 = 100;
const CHUNK_BYTES: usize = 64 * 1024;
const CHUNKS_UNDER_WAY: usize = 1024;

/// Everything that comes to a listener goes on to another one, as late as `delay_ms` says.
fn proxy(listener: TcpListener, target: String, delay_ms: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&target) else { continue };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                pass(from, to, delay_ms.clone());
            }
        }
    });
}

/// One way of a connection, to its end. Bytes keep their order and don't wait for each other.
fn pass(mut from: TcpStream, mut to: TcpStream, delay_ms: Arc<AtomicU64>) {
    let (sender, chunks) = std::sync::mpsc::sync_channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(count) = from.read(&mut chunk) {
            let due = Instant::now() + Duration::from_millis(delay_ms.load(Ordering::Relaxed));
            if count == 0 || sender.send((due, chunk[..count].to_vec())).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, chunk) in chunks {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&chunk).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

fn reasons(cluster: &Cluster) -> Vec<(u64, String, String)> {
    let status = cluster.json(&["admin", "status", "--json"]).unwrap_or_default();
    let poor = status["less_preferred_leaders"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    poor.iter()
        .map(|poor| {
            let node = poor["node_id"].as_u64().unwrap();
            (node, text(&poor["reason"]), text(&poor["description"]))
        })
        .collect()
}

/// How many shards each node leads, by number.
fn led_by(cluster: &Cluster, node: u64) -> usize {
    let shards = cluster.json(&["admin", "shards", "--json"]).unwrap_or_default();
    let shards = shards["shards"].as_array().cloned().unwrap_or_default();
    assert!(!shards.is_empty(), "they were made");
    shards.iter().filter(|shard| shard["leader_node_id"] == node).count()
}

#[test]
fn a_leader_behind_a_slow_path_is_named_and_hands_over_and_gets_nothing_back_while_it_comes_and_goes()
 {
    let mut cluster = Cluster::prepare(3, tempfile::tempdir().unwrap(), &[]);
    let delay_ms = Arc::<AtomicU64>::default();
    let listens = cluster.nodes[2].args[2].clone();
    let advertised = format!("127.0.0.1:{}", free_ports(1)[0]);
    proxy(TcpListener::bind(&advertised).unwrap(), listens, delay_ms.clone());
    cluster.nodes[2].args.splice(1..1, ["--advertise".to_owned(), advertised.clone()]);
    cluster.launch();
    let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap();
    let nodes = nodes["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["address"] == *advertised).unwrap();
    let slow = node["node_id"].as_u64().unwrap();
    for shard in [1_u64, 2] {
        cluster.until("it leads", |cluster| {
            cluster.kvdb(&["admin", "set-leader", &shard.to_string(), &slow.to_string()]);
            let shards = cluster.json(&["admin", "shards", "--json"]).unwrap();
            let shards = shards["shards"].as_array().unwrap().clone();
            shards.iter().any(|one| one["shard_id"] == shard && one["leader_node_id"] == slow)
        });
    }
    assert_eq!(reasons(&cluster), []);

    delay_ms.store(DELAY_MS, Ordering::Relaxed);
    let began = Instant::now();
    cluster.until("it is named", |cluster| !reasons(cluster).is_empty());
    let took = began.elapsed();
    let named = reasons(&cluster);
    let (node, reason, description) = &named[0];
    assert_eq!((named.len(), *node, reason.as_str()), (1, slow, "slow_path"), "{named:?}");
    assert!(description.contains("there and back, between those"), "{description}");
    assert!(took >= Duration::from_secs(10), "{took:?}: a moment is nothing");
    assert!(took < Duration::from_secs(30), "{took:?}");
    cluster.until("others lead", |cluster| led_by(cluster, slow) == 0);

    // Slow every other second: named all the time, and nothing comes back.
    let until = Instant::now() + Duration::from_secs(20);
    let mut turn = 0;
    while Instant::now() < until {
        turn += 1;
        delay_ms.store(if turn % 2 == 0 { DELAY_MS } else { 0 }, Ordering::Relaxed);
        let change = Instant::now() + Duration::from_secs(1);
        while Instant::now() < change {
            let named = reasons(&cluster);
            assert_eq!(named.first().map(|(node, ..)| *node), Some(slow), "{named:?}");
            assert_eq!(led_by(&cluster, slow), 0);
        }
    }
}
