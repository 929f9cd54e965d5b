//! Wall clocks that are wrong by any amount: nobody is refused, no key dies before its time, and the
//! process is named.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::Cluster;

const HOUR_MS: i64 = 3_600_000;
const YEARS_MS: i64 = 50 * 365 * 24 * HOUR_MS;
/// A hand-over of leaderships is the longest that anybody may wait.
const LONGEST_GAP: Duration = Duration::from_millis(2_000);

/// Writes to all shards, until it is told to stop: how many, and the longest time between two.
struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    longest_ms: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<u64>>,
}

impl Load {
    fn start(endpoint: &str, clients: usize) -> Self {
        let (stop, failed, longest_ms) = (
            Arc::<AtomicBool>::default(),
            Arc::<AtomicU64>::default(),
            Arc::<AtomicU64>::default(),
        );
        let threads = (0..clients).map(|client| {
            let (stop, failed, longest_ms) = (stop.clone(), failed.clone(), longest_ms.clone());
            let endpoint = endpoint.to_owned();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    let kvdb =
                        kvdb_client::Client::new(kvdb_client::Options::to(&endpoint)).unwrap();
                    let mut written = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        let key = format!("load-{client}-{}", written % 64);
                        if kvdb.put(key, "value").await.is_err() {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                        let took = began.elapsed().as_millis() as u64;
                        longest_ms.fetch_max(took, Ordering::Relaxed);
                        written += 1;
                    }
                    written
                })
            })
        });
        Load { threads: threads.collect(), stop, failed, longest_ms }
    }

    /// Nobody was refused, and nobody waited for longer than a hand-over.
    fn end(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let written: u64 = self.threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(written > 100, "{what}: only {written} writes");
        assert_eq!(self.failed.load(Ordering::Relaxed), 0, "{what}: writes were refused");
        let longest = Duration::from_millis(self.longest_ms.load(Ordering::Relaxed));
        assert!(longest < LONGEST_GAP, "{what}: a write took {longest:?}");
    }
}

/// Asks for many keys at once.
struct Reader {
    runtime: tokio::runtime::Runtime,
    kvdb: kvdb_client::Client,
}

impl Reader {
    fn new(endpoint: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = kvdb_client::Options::to(endpoint);
        let kvdb = runtime.block_on(async { kvdb_client::Client::new(options).unwrap() });
        Reader { runtime, kvdb }
    }

    fn put_all(&self, keys: &[String], ttl_ms: u64) {
        let options = || kvdb_client::WriteOptions { ttl_ms: Some(ttl_ms), ..Default::default() };
        self.runtime.block_on(async {
            for key in keys {
                self.kvdb.put_with(key.clone(), "v", options()).await.unwrap();
            }
        });
    }

    /// Those of these keys that are there.
    fn there(&self, keys: &[String]) -> Vec<String> {
        let wanted = keys.iter().map(|key| key.clone().into()).collect();
        let found = self.kvdb.batch_get(wanted, kvdb_client::ReadOptions::default());
        let found = self.runtime.block_on(found).unwrap();
        let there = keys.iter().zip(found).filter(|(_, found)| found.as_ref().unwrap().is_some());
        there.map(|(key, _)| key.clone()).collect()
    }
}

/// A wall clock that jumps every second, by minutes to years, and is right now and then.
struct Jumping {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Jumping {
    fn start(file: &std::path::Path) -> Self {
        let (stop, file) = (Arc::<AtomicBool>::default(), file.to_owned());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let shifts = [8 * HOUR_MS, -HOUR_MS, YEARS_MS, 0, -15 * 60_000, 2_000, -YEARS_MS];
            for shift in shifts.iter().cycle() {
                std::fs::write(&file, shift.to_string()).unwrap();
                let until = Instant::now() + Duration::from_secs(1);
                while Instant::now() < until {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
        });
        Jumping { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn wrong_clocks(cluster: &Cluster) -> Vec<serde_json::Value> {
    let status = cluster.json(&["admin", "status", "--json"]);
    status.and_then(|status| status["wrong_clocks"].as_array().cloned()).unwrap_or_default()
}

fn put_for(cluster: &Cluster, key: &str, ttl_ms: u64) {
    let output = cluster.kvdb(&["put", key, "v", "--ttl-ms", &ttl_ms.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One wall clock is wrong while clients write: the whole of what is promised.
fn one_wrong_clock(part: &str, wrong: &[&str]) {
    let cluster = Cluster::start();
    let file = match part {
        "node" => cluster.nodes[2].clock(),
        "coordinator" => cluster.coordinators[0].clock(),
        _ => cluster.gateway.clock(),
    };
    // Whatever it leads, it shall lead some of it.
    if part == "node" {
        let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap();
        let listens = &cluster.nodes[2].args[2];
        let nodes = nodes["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["address"] == **listens).unwrap();
        let id = node["node_id"].to_string();
        for shard in [1_u64, 2] {
            cluster.until("it leads", |cluster| {
                cluster.kvdb(&["admin", "set-leader", &shard.to_string(), &id]);
                let shards = cluster.json(&["admin", "shards", "--json"]).unwrap();
                let shards = shards["shards"].as_array().unwrap().clone();
                shards
                    .iter()
                    .any(|one| one["shard_id"] == shard && one["leader_node_id"] == node["node_id"])
            });
        }
    }
    let reader = Reader::new(&cluster.endpoint);
    for shift in wrong {
        let load = Load::start(&cluster.endpoint, 16);
        // On every shard, before and after the clock goes wrong.
        let keys = |when: &str, life: &str| -> Vec<String> {
            (0..16).map(|n| format!("{when}-{life}-{n}-{shift}")).collect()
        };
        keys("before", "long").iter().for_each(|key| put_for(&cluster, key, HOUR_MS as u64));
        let began = Instant::now();
        let jumping = (*shift == "jump").then(|| Jumping::start(&file));
        if jumping.is_none() {
            std::fs::write(&file, shift).unwrap();
        }
        // One that stands takes a while to be behind by as much as counts.
        cluster.until("it is named", |cluster| {
            let named = wrong_clocks(cluster);
            named.len() == 1 && named[0]["process"] == *part
        });
        let slack = if *shift == "stand" { 3 } else { 0 };
        assert!(began.elapsed() < Duration::from_secs(6 + slack), "{:?}", began.elapsed());
        let short = keys("after", "short");
        let put_at = Instant::now();
        reader.put_all(&short, 3_000);
        let all_put = Instant::now();
        keys("after", "long").iter().for_each(|key| put_for(&cluster, key, HOUR_MS as u64));
        // By a client of our own: starting a process a key takes too long.
        loop {
            let (asked, there) = (put_at.elapsed(), reader.there(&short));
            let took = put_at.elapsed() - asked;
            if there.is_empty() {
                break;
            }
            // Its life and one percent, and the skew; nobody measures more exactly than a read takes.
            let longest = Duration::from_millis(3_000 + 530) + took;
            assert!(all_put.elapsed() < longest, "{part} {shift}: {there:?} live too long");
        }
        let shortest = Duration::from_millis(3_000 - 530);
        assert!(put_at.elapsed() > shortest, "{part} {shift}: keys died too early");
        for key in keys("before", "long").iter().chain(&keys("after", "long")) {
            assert_eq!(cluster.get(key), "v", "{part} {shift}: {key} died too early");
        }
        if let Some(jumping) = jumping {
            jumping.end();
        }
        std::fs::write(&file, "").unwrap();
        let right = Instant::now();
        cluster.until("it is named no more", |cluster| wrong_clocks(cluster).is_empty());
        assert!(right.elapsed() < Duration::from_secs(6), "{:?}", right.elapsed());
        load.end(&format!("{part} {shift}"));
    }
}

#[test]
fn a_node_with_a_wrong_wall_clock_costs_nobody_anything() {
    let (hours, years) = ((8 * HOUR_MS).to_string(), YEARS_MS.to_string());
    one_wrong_clock("node", &[&hours, &years, "-3600000", "stand"]);
}

#[test]
fn a_gateway_with_a_wrong_wall_clock_costs_nobody_anything() {
    let hours = (8 * HOUR_MS).to_string();
    one_wrong_clock("gateway", &[&hours, "-900000"]);
}

#[test]
fn a_coordinator_with_a_wrong_wall_clock_costs_nobody_anything() {
    let hours = (8 * HOUR_MS).to_string();
    one_wrong_clock("coordinator", &[&hours, "-3600000"]);
}

#[test]
fn a_nodes_clock_that_jumps_every_second_costs_nobody_anything() {
    one_wrong_clock("node", &["jump"]);
}

#[test]
fn a_gateways_clock_that_jumps_every_second_costs_nobody_anything() {
    one_wrong_clock("gateway", &["jump"]);
}

#[test]
fn a_coordinators_clock_that_jumps_every_second_costs_nobody_anything() {
    one_wrong_clock("coordinator", &["jump"]);
}

#[test]
fn nodes_that_all_start_again_with_a_wrong_clock_among_them_go_on() {
    let mut cluster = Cluster::start();
    let file = cluster.nodes[0].clock();
    put_for(&cluster, "hour", HOUR_MS as u64);
    put_for(&cluster, "year", 365 * 24 * HOUR_MS as u64);
    std::fs::write(&file, YEARS_MS.to_string()).unwrap();
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.until("a key can be written", |cluster| {
        cluster.kvdb(&["put", "again", "1"]).status.success()
    });
    assert_eq!(cluster.get("hour"), "v");
    assert_eq!(cluster.get("year"), "v");
    put_for(&cluster, "short", 1_500);
    assert_eq!(cluster.get("short"), "v");
    cluster.until("it is gone", |cluster| cluster.get("short").is_empty());
}

/// They can't agree on the time, but the boot clock has gone on.
#[test]
fn two_nodes_that_disagree_after_a_restart_of_everything_go_on_at_once() {
    let mut cluster = Cluster::start();
    let survivors = ["n1", "n2", "c1", "c2", "c3"];
    let notes = survivors.map(|name| cluster.data_of(name).join("clock"));
    cluster.until("the time is written down", |_| notes.iter().all(|note| note.exists()));
    put_for(&cluster, "hour", HOUR_MS as u64);
    std::fs::write(cluster.nodes[0].clock(), (8 * HOUR_MS).to_string()).unwrap();
    cluster.parts().for_each(support::Part::kill);
    cluster.nodes.pop();
    cluster.parts().for_each(support::Part::start);
    cluster.until("a key can be written", |cluster| {
        cluster.kvdb(&["put", "again", "1"]).status.success()
    });
    assert_eq!(cluster.get("hour"), "v");
    // Who has to wait for the clocks to agree doesn't say so.
    for name in survivors {
        let log = cluster.folder.path().join(format!("{name}.log"));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("cluster time is known from before the restart"), "{name}: {log}");
    }
}

/// What a client that speaks Redis's protocol is answered.
fn redis(address: &str, words: &[&str]) -> String {
    use std::io::{BufRead, BufReader, Write};
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(support::PATIENCE)).unwrap();
    socket.write_all(format!("{}\r\n", words.join(" ")).as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

/// Earlier versions made versions of wall clocks, so that a shard could be led 50 years ahead. Here its
/// clock begins there, since all nodes say so; then their clocks are put right.
#[test]
fn a_shard_that_was_left_50_years_ahead_takes_writes_from_every_kind_of_client() {
    let mut cluster = Cluster::prepare(3, tempfile::tempdir().unwrap(), &[]);
    for node in &cluster.nodes {
        std::fs::write(node.clock(), YEARS_MS.to_string()).unwrap();
    }
    cluster.launch();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = kvdb_client::Options::to(&cluster.endpoint);
    assert!(options.exactly_once, "ids are made by the client");
    let far = runtime.block_on(async { kvdb_client::Client::new(options).unwrap() });
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let is_far = |version: kvdb_model::Version| {
        version.millis() as i64 - now.as_millis() as i64 > YEARS_MS - HOUR_MS
    };
    cluster.until("all shards are years ahead", |_| {
        let puts = (0..32).map(|n| far.put(format!("damaged-{n}"), "v"));
        let written = runtime.block_on(futures_util::future::join_all(puts));
        written.into_iter().all(|written| is_far(written.unwrap().version))
    });
    for node in &cluster.nodes {
        std::fs::write(node.clock(), "").unwrap();
    }
    // The coordinators and the gateway were named before, with all others against them.
    cluster.until("all agree again", |cluster| wrong_clocks(cluster).is_empty());
    // A node may go on from what it heard before for a moment.
    let mut names = (0..).map(|number| format!("fresh-{number}"));
    let mut name = String::new();
    cluster.until("a new keyspace is of today", |cluster| {
        name = names.next().unwrap();
        let made = cluster.kvdb(&["admin", "create-keyspace", &name]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let keyspace = far.keyspace(&name);
        let puts = (0..32).map(|n| keyspace.put(format!("key-{n}"), "v"));
        let written = runtime.block_on(futures_util::future::join_all(puts));
        written.into_iter().all(|written| !is_far(written.unwrap().version))
    });

    let fresh = far.keyspace(&name);
    runtime.block_on(async {
        for turn in 1..=20 {
            // One shard after the other, so that no guess is right twice.
            for (client, is_damaged) in [(&far, true), (&fresh, false)] {
                let written = client.put(format!("key-{turn}"), "v").await.unwrap();
                assert_eq!(is_far(written.version), is_damaged);
                assert_eq!(client.increment("counter", 1).await.unwrap().value, turn);
            }
        }
        let puts: Vec<_> =
            (0..50).map(|n| kvdb_client::BatchOperation::put(format!("batch-{n}"), "v")).collect();
        for atomic_key in ["batch-0", "batch-1"] {
            let one = [kvdb_client::BatchOperation::put(atomic_key, "v")];
            assert!(far.batch_write(&one, true).await.unwrap()[0].as_ref().unwrap().applied);
        }
        for result in far.batch_write(&puts, false).await.unwrap() {
            assert!(result.unwrap().applied);
        }
    });

    assert!(cluster.kvdb(&["put", "by-command", "v"]).status.success());
    assert_eq!(cluster.get("by-command"), "v");
    let rows = cluster.folder.path().join("rows.tsv");
    let text: String = (0..200).map(|n| format!("row-{n}\tv\n")).collect();
    std::fs::write(&rows, text).unwrap();
    let import = cluster.kvdb(&["import", rows.to_str().unwrap()]);
    assert!(import.status.success(), "{}", String::from_utf8_lossy(&import.stderr));
    assert_eq!(cluster.get("row-199"), "v");
    assert_eq!(redis(&cluster.redis, &["SET", "by-redis", "v"]), "+OK");
    assert_eq!(redis(&cluster.redis, &["INCR", "redis-counter"]), ":1");
    assert_eq!(redis(&cluster.redis, &["PSETEX", "short", "1500", "v"]), "+OK");
    let began = Instant::now();
    cluster.until("it is gone", |cluster| redis(&cluster.redis, &["EXISTS", "short"]) == ":0");
    let lived = began.elapsed();
    assert!((1_000..2_500).contains(&lived.as_millis()), "it lived for {lived:?}");

    // The same after the damage is led by somebody else.
    for node in &mut cluster.nodes {
        node.kill();
        node.start();
    }
    cluster.until("it is written again", |cluster| {
        cluster.kvdb(&["put", "again", "1"]).status.success()
    });
    assert_eq!(runtime.block_on(far.increment("counter", 1)).unwrap().value, 21);
}

/// How many strong reads were answered without asking anybody.
fn reads_by_lease(cluster: &Cluster) -> u64 {
    let counted = |text: String| -> u64 {
        let name = "kvdb_raft_reads_by_lease_total ";
        let counts = text.lines().filter_map(|line| line.strip_prefix(name));
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    };
    cluster.nodes.iter().map(|node| counted(support::metrics(node))).sum()
}

#[test]
fn nodes_that_were_told_so_answer_no_read_by_a_lease() {
    for (lease, answers) in [("off", false), ("on", true)] {
        let mut cluster = Cluster::prepare(3, tempfile::tempdir().unwrap(), &[]);
        for node in &mut cluster.nodes {
            node.args.splice(1..1, ["--lease".to_owned(), lease.to_owned()]);
        }
        cluster.launch();
        let reader = Reader::new(&cluster.endpoint);
        for _ in 0..200 {
            assert_eq!(reader.there(&["first".to_owned()]), ["first"]);
        }
        assert_eq!(reads_by_lease(&cluster) > 0, answers, "--lease {lease}");
    }
}
