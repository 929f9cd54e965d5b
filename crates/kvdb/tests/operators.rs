//! Shards are split and moved, and a node is emptied, while clients go on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use kvdb_client::{Client, Options};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const KVDB: &str = env!("CARGO_BIN_EXE_kvdb");
const CLIENTS: usize = 6;

/// `kvdb dev`, killed at the end.
struct Dev {
    child: Child,
    endpoint: String,
    /// Its temporary directory is in here: killed, it removes nothing itself.
    _folder: tempfile::TempDir,
}

impl Dev {
    fn start() -> Self {
        Self::with_nodes(4)
    }

    fn with_nodes(nodes: u32) -> Self {
        let offset = kvdb_torture::free_offset().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(KVDB)
            .env("TMPDIR", folder.path())
            .args(["dev", "--temporary", "--nodes", &nodes.to_string(), "--shards", "4"])
            .args(["--port-offset", &offset.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut ready).unwrap();
        assert!(ready.contains("KvDB is ready"), "{ready}");
        Dev { child, endpoint: format!("127.0.0.1:{}", 7400 + offset), _folder: folder }
    }

    fn admin(&self, args: &[&str]) -> Output {
        let endpoint = ["--endpoint", &self.endpoint];
        Command::new(KVDB).arg("admin").args(args).args(endpoint).output().unwrap()
    }

    fn done(&self, args: &[&str]) {
        let output = self.admin(args);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {words}");
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = self.admin(args);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        serde_json::from_slice(&self.admin(&args).stdout).unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts in keys of its own until it is told to stop. Every call must succeed, and count once.
async fn count(client: Arc<Client>, id: usize, stop: Arc<AtomicBool>) -> i64 {
    let mut counted = 0;
    while !stop.load(Ordering::Relaxed) {
        let counter = format!("counter-{id}-{}", counted % 16);
        let answer = client.increment(counter.clone(), 1).await;
        let value = answer.unwrap_or_else(|error| panic!("{counter}: {error}")).value;
        assert_eq!(value, counted / 16 + 1, "{counter} was counted twice, or not at all");
        counted += 1;
    }
    counted
}

/// A key whose slot is strictly inside a shard's range.
fn key_inside(dev: &Dev, shard: u64) -> String {
    let map = dev.json(&["shards"]);
    let shards = map["shards"].as_array().unwrap();
    let found = shards.iter().find(|found| found["shard_id"] == shard).unwrap();
    let slot = |name: &str| found[name].as_u64().unwrap();
    (0..)
        .map(|number| format!("at-{number}"))
        .find(|key| {
            let here = u64::from(kvdb_model::slot_of(key.as_bytes()));
            here > slot("first_slot") && here <= slot("last_slot")
        })
        .unwrap()
}

#[test]
fn shards_are_split_and_moved_and_a_node_is_drained_while_clients_go_on() {
    let dev = Dev::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let client =
        runtime.block_on(async { Arc::new(Client::new(Options::to(&dev.endpoint)).unwrap()) });
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..CLIENTS).map(|id| runtime.spawn(count(client.clone(), id, stop.clone()))).collect();

    dev.done(&["split", "1", "--wait"]);
    // At the slot of a key.
    let at = key_inside(&dev, 2);
    dev.done(&["split", "2", "--at", &at, "--wait"]);
    let spare = |dev: &Dev| {
        let map = dev.json(&["shards"]);
        let shard = map["shards"].as_array().unwrap().iter().find(|s| s["shard_id"] == 3).unwrap();
        let on: Vec<u64> = shard["replicas"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["node_id"].as_u64().unwrap())
            .collect();
        let free = (1..=4).find(|node| !on.contains(node)).unwrap();
        (on[0].to_string(), free.to_string())
    };
    let (from, to) = spare(&dev);
    dev.done(&["move", "3", &from, &to, "--wait"]);
    dev.done(&["drain", "1", "--wait"]);

    stop.store(true, Ordering::Relaxed);
    let counted: Vec<i64> =
        clients.into_iter().map(|task| runtime.block_on(task).unwrap()).collect();
    assert!(counted.iter().all(|counted| *counted > 20), "too few to prove anything: {counted:?}");

    let shards = dev.json(&["shards"]);
    let shards = shards["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 6);
    let on_drained = |shard: &serde_json::Value| {
        shard["replicas"].as_array().unwrap().iter().any(|replica| replica["node_id"] == 1)
    };
    assert!(!shards.iter().any(on_drained), "node 1 still has replicas: {shards:?}");
    let nodes = dev.json(&["nodes"]);
    assert_eq!(nodes["nodes"][0]["status"], "DRAINING");
    // What was done is remembered, with reasons.
    let operations = dev.json(&["operations"]);
    let drain =
        operations["operations"].as_array().unwrap().iter().find(|one| one["kind"] == "drain");
    assert_eq!(drain.unwrap()["state"], "done");
}

#[test]
fn a_drain_that_cannot_end_says_so_and_can_be_taken_back() {
    // Shards of three replicas, and two nodes left for them.
    let dev = Dev::with_nodes(3);
    let started = dev.json(&["drain", "1"]);
    let stuck = started["stuck"].as_str().unwrap();
    assert!(stuck.contains("no node that is alive could take a replica"), "{started}");
    let id = started["operator_id"].as_u64().unwrap();
    let status = dev.json(&["status"]);
    assert_eq!((&status["nodes_alive"], &status["nodes_draining"]), (&3.into(), &1.into()));
    dev.done(&["cancel", &id.to_string()]);
    // Whoever waits for it doesn't wait for ever, and is told its steps without a terminal.
    let waited = dev.refused(&["drain", "1", "--wait"]);
    assert!(waited.contains("replicas left; no node that is alive"), "{waited}");
    assert!(
        waited.contains("can't end as things are") && waited.contains("admin cancel"),
        "{waited}"
    );
}

#[test]
fn the_status_draining_is_a_drain() {
    let dev = Dev::start();
    let started = dev.json(&["set-node-status", "4", "draining"]);
    let operations = dev.json(&["operations"]);
    let drain =
        operations["operations"].as_array().unwrap().iter().find(|one| one["kind"] == "drain");
    assert_eq!(drain.unwrap()["operator_id"], started["operator_id"]);
}

#[test]
fn changes_that_make_no_sense_are_refused_and_say_why() {
    let dev = Dev::start();
    let refused = dev.refused(&["set-replicas", "1", "1", "1", "2"]);
    assert!(refused.contains("twice"), "{refused}");
    assert!(dev.refused(&["set-replicas", "1", "1", "2", "77"]).contains("node 77 does not exist"));
    assert!(dev.refused(&["move", "99", "1", "2"]).contains("shard 99 does not exist"));
    assert!(dev.refused(&["split", "99"]).contains("shard 99 does not exist"));
    assert!(dev.refused(&["drain", "9"]).contains("node 9 does not exist"));
    assert!(dev.refused(&["cancel", "1234"]).contains("operation 1234"));
    let plan = dev.json(&["plan"]);
    assert!(plan["why_no_more"].as_str().unwrap().contains("nothing"), "{plan}");
}
