//! Clients and the addresses that they are given: hung ones, those of other ports, URLs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use kvdb_client::{Client, Options, WatchOptions, WatchUpdate};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Output;
use std::time::{Duration, Instant};
use support::{Cluster, Part, free_ports};

/// "Within a second", and what a process takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// One more gateway, which ends with the cluster. Returns where it listens.
fn add_gateway(cluster: &mut Cluster) -> String {
    let ports = free_ports(3);
    let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
    let words = ["gateway", "--listen", &address(0), "--redis", &address(1), "--http", &address(2)];
    let more = ["--coordinators", &cluster.addresses];
    let args = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
    let log = cluster.folder.path().join("gateway2.log");
    let mut gateway = Part { args, log, child: None };
    gateway.start();
    cluster.nodes.push(gateway);
    address(0)
}

fn signal(part: &Part, signal: Signal) {
    kill_process(Pid::from_child(part.child.as_ref().unwrap()), signal).unwrap();
}

fn at(endpoint: &str, args: &[&str]) -> (Output, Duration) {
    let began = Instant::now();
    let output = std::process::Command::new(support::KVDB)
        .args(["--endpoint", endpoint])
        .args(args)
        .output()
        .unwrap();
    (output, began.elapsed())
}

fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_hung_gateway_everything_goes_on_at_another() {
    let mut cluster = Cluster::start();
    let address = add_gateway(&mut cluster);
    cluster
        .until("the second gateway serves", |_| at(&address, &["get", "first"]).0.status.success());
    let both = format!("http://{},{address}", cluster.endpoint);
    let client = Client::new(Options { connections: 1, ..Options::to(&both) }).unwrap();
    // One of the two runs through the gateway that will hang.
    let mut watches = Vec::new();
    for _ in 0..2 {
        let mut watch = client.watch(WatchOptions::default());
        assert!(matches!(watch.next().await.unwrap(), WatchUpdate::Progress(_)));
        watches.push(watch);
    }
    let rows = cluster.folder.path().join("rows.tsv");
    let lines = (0..2000).map(|row| format!("row{row}\tvalue\n"));
    std::fs::write(&rows, lines.collect::<String>()).unwrap();

    signal(&cluster.gateway, Signal::STOP);
    for args in [&["get", "first"][..], &["put", "k", "v"], &["scan", "--limit", "1"]] {
        let (output, took) = at(&both, args);
        assert!(output.status.success(), "{args:?}: {}", words(&output));
        assert!(took < PATIENCE, "{args:?} took {took:?}");
    }
    let (output, took) = at(&both, &["import", rows.to_str().unwrap(), "--batch", "50"]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(took < 2 * PATIENCE, "the import took {took:?}");
    let began = Instant::now();
    for watch in &mut watches {
        let mut seen = 0;
        while seen < 2001 {
            if let WatchUpdate::Events(events) = watch.next().await.unwrap() {
                seen += events.len();
            }
        }
        assert_eq!(seen, 2001, "each change is told once");
    }
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}

#[test]
fn a_wrong_port_is_told_which_role_answers_there() {
    let cluster = Cluster::of(1);
    let argument = |part: &Part, flag: &str| {
        let place = part.args.iter().position(|word| word == flag).unwrap();
        part.args[place + 1].clone()
    };
    let node = argument(&cluster.nodes[0], "--listen");
    let coordinator = argument(&cluster.coordinators[0], "--listen");
    let http = argument(&cluster.gateway, "--http");
    for (endpoint, args, found) in [
        (&node, &["get", "k"][..], "is a node of KvDB"),
        (&node, &["scan"], "is a node of KvDB"),
        (&node, &["watch"], "is a node of KvDB"),
        (&node, &["admin", "status"], "is a node of KvDB"),
        (&coordinator, &["put", "k", "v"], "is a coordinator of KvDB"),
        (&http, &["get", "k"], "is an HTTP port"),
        (&cluster.redis, &["get", "k"], "is a port for the Redis protocol"),
    ] {
        let (output, took) = at(endpoint, args);
        let words = words(&output);
        assert!(!output.status.success());
        assert!(words.contains(found) && words.contains(endpoint), "{args:?}: {words}");
        assert!(words.contains("gateway"), "{args:?} is told where to go: {words}");
        assert!(took < PATIENCE, "{args:?} took {took:?}");
    }
    // Coordinators answer what is theirs.
    assert!(at(&coordinator, &["admin", "status"]).0.status.success());
}
