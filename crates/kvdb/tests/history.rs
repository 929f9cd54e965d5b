//! A watch that begins in the past, against real processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use bytes::Bytes;
use kvdb_client::{AdminClient, Client, Options, Watch, WatchEvent, WatchOptions, WatchUpdate};
use kvdb_model::{HistoryLimits, NewKeyspace, NodeId, Partitioning, ShardId, Version};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, PATIENCE};

const KEYS: usize = 24;

/// What was acknowledged, by key, in order; `None` is a delete.
type Written = BTreeMap<String, Vec<(Option<Bytes>, Version)>>;

fn options(cluster: &Cluster) -> Options {
    Options { deadline: PATIENCE, ..Options::to(&cluster.endpoint) }
}

/// Changes keys in turn until it is told to stop.
async fn write(client: Client, stop: Arc<AtomicBool>) -> Written {
    let mut written = Written::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("k-{}", number % KEYS);
        let done = written.entry(key.clone()).or_default();
        if number % 9 == 8 {
            let deleted = client.delete(key).await.unwrap();
            if deleted.applied {
                done.push((None, deleted.version));
            }
        } else {
            let value = Bytes::from(number.to_string());
            done.push((Some(value.clone()), client.put(key, value).await.unwrap().version));
        }
        number += 1;
    }
    written
}

async fn update(watch: &mut Watch) -> WatchUpdate {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("a watch says something").unwrap()
}

/// Hears everything that was written, in the order of each key, and nothing else.
async fn hear(watch: &mut Watch, written: &Written) {
    let expected: usize = written.values().map(Vec::len).sum();
    let last = written.values().flatten().map(|(_, version)| *version).max().unwrap();
    let mut heard = Written::new();
    let mut count = 0;
    while count < expected {
        match update(watch).await {
            WatchUpdate::Events(events) => {
                count += events.len();
                for WatchEvent { key, value, version, .. } in events {
                    let key = String::from_utf8(key.to_vec()).unwrap();
                    heard.entry(key).or_default().push((value, version));
                }
            }
            // It has told all that there was up to then.
            WatchUpdate::Progress(version) if version >= last => {
                let missing: Vec<_> = written
                    .iter()
                    .map(|(key, all)| (key, all.len(), heard.get(key).map_or(0, Vec::len)))
                    .filter(|(_, all, heard)| all != heard)
                    .collect();
                panic!("{count} of {expected} told up to {version}; missing are of {missing:?}");
            }
            WatchUpdate::Progress(_) => {}
            WatchUpdate::Gap(version) => panic!("a gap up to {version}"),
        }
    }
    assert!(heard == *written, "what was told differs from what was written");
}

/// The shards of the keyspace, and who leads them.
async fn shards(admin: &AdminClient) -> BTreeMap<ShardId, (NodeId, Vec<NodeId>)> {
    loop {
        let map = admin.shard_map().await.unwrap();
        let id = map.keyspace_named("past").unwrap().keyspace_id;
        let own = map.shards.values().filter(|shard| shard.descriptor.keyspace_id == id);
        let led = own.map(|shard| {
            let nodes = shard.descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            Some((shard.descriptor.shard_id, (shard.leader?, nodes)))
        });
        if let Some(led) = led.collect() {
            return led;
        }
        tokio::task::yield_now().await;
    }
}

/// Hands every shard to another node, and waits until it leads.
async fn change_leaders(admin: &AdminClient) {
    for (shard, (leader, nodes)) in shards(admin).await {
        let place = nodes.iter().position(|node| *node == leader).unwrap_or(0);
        let next = nodes[(place + 1) % nodes.len()];
        // Asked again now and then: what a leader was asked goes with it when it is replaced.
        let mut asked: Option<Instant> = None;
        let begun = Instant::now();
        while shards(admin).await[&shard].0 != next {
            assert!(
                begun.elapsed() < PATIENCE,
                "shard {shard} stays where it is, not on node {next}"
            );
            if asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(1)) {
                admin.set_shard_leader(shard, next).await.unwrap();
                asked = Some(Instant::now());
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_an_old_cursor_misses_and_repeats_nothing_whatever_has_happened_since() {
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::of(4)).await.unwrap();
    let admin = AdminClient::new(options(&cluster)).unwrap();
    let limits = HistoryLimits { max_age_ms: 3_600_000, max_bytes: 16 << 20 };
    let layout = Partitioning::Hash;
    let new = NewKeyspace {
        partitioning: layout,
        shards: 2,
        replicas: 3,
        history: Some(limits),
        ..NewKeyspace::named("past")
    };
    admin.create_keyspace_as(&new).await.unwrap();
    let client = Client::new(options(&cluster)).unwrap().keyspace("past");
    let of_all = WatchOptions { prefix: "k-".into(), ..WatchOptions::default() };
    let mut live = client.watch(of_all.clone());
    // A leader's first act is to begin the history: before that there is no version to go back to.
    let begun = loop {
        match update(&mut live).await {
            WatchUpdate::Progress(version) if version > Version(0) => break version,
            WatchUpdate::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let cursor = live.cursor().clone();

    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(client.clone(), stop.clone()));
    for _ in 0..10 {
        change_leaders(&admin).await;
    }
    let first: Vec<_> = shards(&admin).await.into_iter().collect();
    for (shard, _) in &first {
        let shard = shard.to_string();
        let split = cluster.kvdb(&["admin", "split", &shard, "--wait"]);
        assert!(split.status.success(), "{split:?}");
    }
    let (shard, (_, nodes)) = &first[0];
    let spare = (1..=4).map(NodeId).find(|node| !nodes.contains(node)).unwrap();
    let (shard, from, to) = (shard.to_string(), nodes[0].to_string(), spare.to_string());
    let moved = cluster.kvdb(&["admin", "move", &shard, &from, &to, "--wait"]);
    assert!(moved.status.success(), "{moved:?}");
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    // Every shard serves again, and some more is written.
    let rest = client.scan(kvdb_client::ScanOptions::default()).next_chunk().await.unwrap();
    assert!(rest.is_some());
    change_leaders(&admin).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.unwrap();
    assert_eq!(shards(&admin).await.len(), 4);

    let from_cursor = WatchOptions { cursor, ..of_all.clone() };
    hear(&mut client.watch(from_cursor.clone()), &written).await;
    let from_version = WatchOptions { from_version: Some(begun), ..of_all };
    hear(&mut client.watch(from_version), &written).await;
    hear(&mut live, &written).await;

    // Bounded more tightly, it forgets: a gap is told, and what comes after it.
    let less = cluster.kvdb(&["admin", "set-history", "past", "--for", "1h", "--bytes", "1MiB"]);
    assert!(less.status.success(), "{less:?}");
    let large = Bytes::from(vec![7; 256 * 1024]);
    for _ in 0..4 {
        for key in 0..KEYS {
            client.put(format!("k-{key}"), large.clone()).await.unwrap();
        }
    }
    let last = client.put("k-0", "last").await.unwrap().version;
    let mut late = client.watch(from_cursor);
    let mut gaps = 0;
    loop {
        match update(&mut late).await {
            WatchUpdate::Gap(_) => gaps += 1,
            WatchUpdate::Events(events) if events.iter().any(|event| event.version == last) => {
                break;
            }
            _ => {}
        }
    }
    assert!(gaps > 0, "what is forgotten is told as a gap");
}
