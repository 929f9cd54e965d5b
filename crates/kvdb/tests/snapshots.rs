//! The disks of all nodes are put back to snapshots of different moments: all are refused, and an operator recovers
//! what the copies hold.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use support::{Cluster, KVDB, Part};

const KEYS: u64 = 40;

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn log(part: &Part) -> String {
    std::fs::read_to_string(&part.log).unwrap_or_default()
}

fn words(output: &Output) -> String {
    format!(
        "{:?}: {}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn shards(cluster: &Cluster) -> Vec<Value> {
    let map = cluster.json(&["admin", "shards", "--json"]).unwrap_or_default();
    map["shards"].as_array().cloned().unwrap_or_default()
}

fn nodes_with(cluster: &Cluster, status: &str) -> usize {
    let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap_or_default();
    let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter(|node| node["status"] == status).count()
}

/// Numbers that were acknowledged last, by key, and the highest version that anybody was told.
#[derive(Clone, Default)]
struct Told {
    values: BTreeMap<u64, u64>,
    version: u64,
}

/// Writes rising numbers under all keys in turn, until it is over.
fn write(endpoint: &str, told: &Mutex<Told>, over: &AtomicBool) {
    for number in 1.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let (key, value) = (number % KEYS, number.to_string());
        let args = ["--endpoint", endpoint, "put", &format!("key{key}"), &value, "--json"];
        let put = Command::new(KVDB).args(args).output().unwrap();
        assert!(put.status.success(), "{}", words(&put));
        let answer: Value = serde_json::from_slice(&put.stdout).unwrap();
        let mut told = told.lock().unwrap();
        told.values.insert(key, number);
        told.version = told.version.max(answer["version"].as_u64().unwrap());
    }
}

/// Waits until so many more writes were acknowledged.
fn more_writes(cluster: &Cluster, told: &Mutex<Told>) -> Told {
    let sum = |told: &Told| told.values.values().sum::<u64>();
    let before = sum(&told.lock().unwrap());
    cluster.until("more is written", |_| sum(&told.lock().unwrap()) > before + 20 * KEYS);
    told.lock().unwrap().clone()
}

fn signal(part: &Part, which: &str) {
    let id = part.child.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args([which, &id]).status().unwrap().success());
}

#[test]
fn shards_live_again_after_the_disks_of_all_nodes_were_put_back_to_different_moments() {
    let mut cluster = Cluster::start();
    let (told, over) = (Mutex::new(Told::default()), AtomicBool::new(false));
    let endpoint = cluster.endpoint.clone();
    let (first, last) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&endpoint, &told, &over));
        let first = more_writes(&cluster, &told);
        for (place, is_killed) in [(0, false), (1, true), (2, false)] {
            let (data, old) = (format!("n{}", place + 1), format!("n{}-old", place + 1));
            // All that it writes is on the disk in order, also if it is only stopped.
            let part = &mut cluster.nodes[place];
            if is_killed {
                part.kill()
            } else {
                signal(part, "-STOP")
            }
            copy(&cluster.data_of(&data), &cluster.data_of(&old));
            let part = &mut cluster.nodes[place];
            if is_killed {
                part.start()
            } else {
                signal(part, "-CONT")
            }
            more_writes(&cluster, &told);
            cluster.until("it is back", |cluster| nodes_with(cluster, "ALIVE") == 3);
        }
        let last = more_writes(&cluster, &told);
        over.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        (first, last)
    });
    put_back(&mut cluster);
    recover(&mut cluster, &first, &last);
}

/// Keeps the lock file, by which a directory knows its place.
fn put_back_in_place(data: &Path, old: &Path) {
    for entry in std::fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false if path.ends_with("LOCK") => {}
            false => std::fs::remove_file(path).unwrap(),
        }
    }
    std::fs::remove_file(old.join("LOCK")).unwrap();
    let from = format!("{}/.", old.display());
    assert!(Command::new("cp").args(["-r", &from]).arg(data).status().unwrap().success());
}

/// All disks are put back, and all nodes are refused.
fn put_back(cluster: &mut Cluster) {
    cluster.nodes.iter_mut().for_each(Part::kill);
    for place in 0..3 {
        let data = cluster.data_of(&format!("n{}", place + 1));
        let old = cluster.data_of(&format!("n{}-old", place + 1));
        match place {
            // As a disk that is put back: the process before it is known to be gone.
            1 => put_back_in_place(&data, &old),
            _ => {
                std::fs::rename(&data, data.with_extension("newest")).unwrap();
                std::fs::rename(&old, &data).unwrap();
            }
        }
        let part = &mut cluster.nodes[place];
        part.start();
        let status = part.child.as_mut().unwrap().wait().unwrap();
        let said = log(part);
        assert_eq!(status.code(), Some(4), "{said}");
        let last = said.lines().last().unwrap();
        assert!(last.contains("has run on since this copy of its data directory"), "{said}");
        assert!(last.contains("kvdb admin accept-copy --help"), "{said}");
    }
    // Not before it is sure that they don't run.
    cluster.until("all are given up", |cluster| nodes_with(cluster, "DEAD") == 3);
}

fn recover(cluster: &mut Cluster, first: &Told, last: &Told) {
    let asked = cluster.kvdb(&["admin", "accept-copy", "1"]);
    assert_eq!(asked.status.code(), Some(3), "{}", words(&asked));
    assert!(words(&asked).contains("confirm it with --yes"), "{}", words(&asked));
    for node in ["1", "2", "3"] {
        let accepted = cluster.kvdb(&["admin", "accept-copy", node, "--yes"]);
        assert!(accepted.status.success(), "{}", words(&accepted));
    }
    cluster.nodes.iter_mut().for_each(Part::start);
    cluster.until("all are alive", |cluster| nodes_with(cluster, "ALIVE") == 3);
    let runs = cluster.kvdb(&["admin", "accept-copy", "1", "--yes"]);
    assert!(words(&runs).contains("node 1 is ALIVE"), "{}", words(&runs));
    // All three are there, and none of what they hold takes part.
    assert!(shards(cluster).iter().all(|shard| shard["has_majority"] == false));
    let put = cluster.kvdb(&["put", "--timeout", "1s", "key0", "0"]);
    assert!(!put.status.success(), "{}", words(&put));

    for shard in shards(cluster) {
        let shard = shard["shard_id"].to_string();
        // The one whose log ends last: the preview says so.
        let preview = |cluster: &Cluster, node: u64| {
            let from = node.to_string();
            let asked = cluster.kvdb(&["admin", "force-recover", &shard, "--from", &from]);
            words(&asked)
        };
        let mut best = 1;
        cluster.until("all copies have reported", |cluster| {
            let said: Vec<String> = (1..=3).map(|node| preview(cluster, node)).collect();
            let is_best = |said: &&String| {
                said.contains("confirm it with --yes") && !said.contains("has more")
            };
            let found = said.iter().position(|said| is_best(&said));
            best = found.unwrap_or_default() as u64 + 1;
            found.is_some() && said.iter().all(|said| !said.contains("   not known"))
        });
        let from = best.to_string();
        let args = ["admin", "force-recover", &shard, "--from", &from, "--yes", "--wait"];
        let done = cluster.kvdb(&args);
        assert!(done.status.success(), "{}", words(&done));
        assert!(words(&done).contains("from an older copy"), "{}", words(&done));
    }
    cluster.until("every key can be read", |cluster| {
        (0..KEYS).all(|key| !cluster.get(&format!("key{key}")).is_empty())
    });
    for key in 0..KEYS {
        let value: u64 = cluster.get(&format!("key{key}")).parse().unwrap();
        // What was acknowledged before the first copy was made is in all that follows.
        assert!((first.values[&key]..=last.values[&key] + KEYS).contains(&value), "{key}: {value}");
        let put = cluster.kvdb(&["put", &format!("key{key}"), "new", "--json"]);
        assert!(put.status.success(), "{}", words(&put));
        let answer: Value = serde_json::from_slice(&put.stdout).unwrap();
        let version = answer["version"].as_u64().unwrap();
        assert!(version > last.version, "version {version} was handed out before");
    }
    // Each shard gets its other replicas again, on the same nodes under other ids.
    cluster.until("every shard has three replicas", |cluster| {
        shards(cluster).iter().all(|shard| {
            let replicas = shard["replicas"].as_array().unwrap();
            shard["has_majority"] == true
                && replicas.len() == 3
                && replicas.iter().all(|replica| replica["role"] == "VOTER")
        })
    });
    // They are nodes like others from now on: they start again, and one may be away.
    for place in [0, 1, 2] {
        cluster.nodes[place].kill();
        let new = place.to_string();
        cluster.until("two go on", |cluster| cluster.kvdb(&["put", "key0", &new]).status.success());
        cluster.nodes[place].start();
        cluster.until("it is back", |cluster| {
            log(&cluster.nodes[place]).matches("node runs").count() >= 3
        });
    }
    // The directory that was newest isn't any more.
    cluster.nodes[0].kill();
    let data = cluster.data_of("n1");
    std::fs::rename(&data, data.with_extension("aside")).unwrap();
    std::fs::rename(data.with_extension("newest"), &data).unwrap();
    cluster.nodes[0].start();
    let status = cluster.nodes[0].child.as_mut().unwrap().wait().unwrap();
    let said = log(&cluster.nodes[0]);
    assert_eq!(status.code(), Some(4), "{said}");
    std::fs::rename(&data, data.with_extension("newest")).unwrap();
    std::fs::rename(data.with_extension("aside"), &data).unwrap();
    cluster.nodes[0].start();
    cluster.until("all are alive", |cluster| nodes_with(cluster, "ALIVE") == 3);
    assert_eq!(cluster.get("key0"), "2");
    assert_eq!(cluster.get("key1"), "new");
}
