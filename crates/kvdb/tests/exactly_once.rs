//! Counting through a network that loses answers, while leaders are killed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use bytes::Bytes;
use kvdb_client::{Client, Options, Reply};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::{Cluster, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const CLIENTS: usize = 32;
const COUNTERS: usize = 6;
const LEADERS_KILLED: usize = 4;
/// Of 100 answers, so many are lost with their connection.
const LOST_PERCENT: u64 = 5;

/// Between clients and the gateway: each client has a connection of its own and one question on its
/// way, so that what comes back in one piece is one answer.
struct LossyProxy {
    address: String,
    lost: Arc<AtomicU64>,
}

impl LossyProxy {
    async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (target, lost) = (target.to_owned(), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&lost);
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                number += 1;
                tokio::spawn(carry(client, target.clone(), number, Arc::clone(&counted)));
            }
        });
        LossyProxy { address, lost }
    }
}

/// A number that looks random and follows from the one before.
fn next(random: &mut u64) -> u64 {
    *random =
        random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

async fn carry(client: TcpStream, target: String, number: u64, lost: Arc<AtomicU64>) {
    let Ok(gateway) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_gateway, mut to_gateway) = gateway.into_split();
    let questions = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_gateway).await;
    });
    let mut random = number;
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from_gateway.read(&mut bytes).await {
        if next(&mut random) % 100 < LOST_PERCENT {
            lost.fetch_add(1, Ordering::Relaxed);
            break;
        }
        if to_client.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    // Both directions end, with whatever was on its way.
    questions.abort();
}

fn key(number: usize) -> String {
    format!("counter-{}", number % COUNTERS)
}

/// Counts until it is told to stop. Returns how often it was told that it has.
async fn count(
    address: String,
    number: usize,
    stop: Arc<AtomicBool>,
    all: Arc<watch::Sender<u64>>,
) -> u64 {
    let options = Options { connections: 1, deadline: PATIENCE, ..Options::to(&address) };
    let client = Client::new(options).unwrap();
    let mut acknowledged = 0;
    while !stop.load(Ordering::Relaxed) {
        // The client asks again under the same id until it knows.
        client.increment(key(number + acknowledged as usize), 1).await.unwrap();
        acknowledged += 1;
        all.send_modify(|all| *all += 1);
    }
    acknowledged
}

/// The node that leads the shard of a counter.
fn leader_of(cluster: &Cluster, number: usize) -> Option<usize> {
    let shards = cluster.json(&["admin", "shards", "--json"])?;
    let led = shards["shards"].as_array()?;
    let node = led.get(number % led.len())?["leader_node_id"].as_u64()?;
    let nodes = cluster.json(&["admin", "nodes", "--json"])?;
    let known = nodes["nodes"].as_array()?.iter().find(|known| known["node_id"] == node)?;
    let address = known["address"].as_str()?;
    cluster.nodes.iter().position(|part| part.args.iter().any(|arg| arg == address))
}

#[test]
fn increments_whose_answers_are_lost_while_leaders_die_count_once() {
    let mut cluster = Cluster::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let proxy = runtime.block_on(LossyProxy::start(&cluster.endpoint));
    let stop = Arc::new(AtomicBool::new(false));
    let all = Arc::new(watch::Sender::new(0));
    let counting: Vec<_> = (0..CLIENTS)
        .map(|number| (proxy.address.clone(), number, Arc::clone(&stop), Arc::clone(&all)))
        .map(|(address, number, stop, all)| runtime.spawn(count(address, number, stop, all)))
        .collect();
    // So many more are acknowledged.
    let counts_on = |more: u64| {
        let mut all = all.subscribe();
        let wanted = *all.borrow() + more;
        let counted = async {
            tokio::time::timeout(PATIENCE, all.wait_for(|all| *all >= wanted)).await.is_ok()
        };
        assert!(runtime.block_on(counted), "{more} increments within {PATIENCE:?}");
    };
    for round in 0..LEADERS_KILLED {
        counts_on(1000);
        let mut leader = None;
        cluster.until("a leader is known", |cluster| {
            leader = leader_of(cluster, round);
            leader.is_some()
        });
        let node = &mut cluster.nodes[leader.unwrap()];
        node.kill();
        // The others go on without it.
        counts_on(300);
        node.start();
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = 0;
    for one in counting {
        acknowledged += runtime.block_on(one).unwrap();
    }
    let counted: u64 =
        (0..COUNTERS).map(|number| cluster.get(&key(number)).parse::<u64>().unwrap()).sum();
    let lost = proxy.lost.load(Ordering::Relaxed);
    println!("{acknowledged} acknowledged, {counted} counted, {lost} answers lost");
    assert_eq!(counted, acknowledged, "{lost} answers were lost");
    assert!(lost > 50 && acknowledged > 1000, "{lost} lost of {acknowledged}");
}

/// Takes elements off a list and a set until both are empty. Returns what it was given.
async fn take(address: String, given: Arc<watch::Sender<u64>>) -> Vec<Bytes> {
    let options = Options { connections: 1, deadline: PATIENCE, ..Options::to(&address) };
    let client = Client::new(options).unwrap();
    let mut taken = Vec::new();
    let mut open = vec![["LPOP", "queue"], ["SPOP", "bag"]];
    while !open.is_empty() {
        let mut left = Vec::new();
        for words in open {
            match client.execute(words).await.unwrap() {
                Reply::Bytes(element) => {
                    taken.push(element);
                    given.send_modify(|given| *given += 1);
                    left.push(words);
                }
                Reply::Nil => {}
                other => panic!("{words:?}: {other:?}"),
            }
        }
        open = left;
    }
    taken
}

/// Also where the gateway leaves to chance what is taken: another try under the same id is answered as the
/// first one was.
#[test]
fn what_is_taken_while_answers_are_lost_and_leaders_die_is_given_to_one_and_to_nobody_else() {
    const ELEMENTS: usize = 2_000;
    let mut cluster = Cluster::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async { Client::new(Options::to(&cluster.endpoint)).unwrap() });
    for [command, key] in [["RPUSH", "queue"], ["SADD", "bag"]] {
        let elements = (0..ELEMENTS).map(|number| format!("{key}-{number}"));
        let words = [command.to_owned(), key.to_owned()].into_iter().chain(elements);
        let added = runtime.block_on(client.execute(words)).unwrap();
        assert_eq!(added, Reply::Integer(ELEMENTS as i64));
    }
    let proxy = runtime.block_on(LossyProxy::start(&cluster.endpoint));
    let given = Arc::new(watch::Sender::new(0));
    let taking: Vec<_> =
        (0..8).map(|_| runtime.spawn(take(proxy.address.clone(), Arc::clone(&given)))).collect();
    for round in 0..2 {
        let mut told = given.subscribe();
        let wanted = (round + 1) * 800;
        let reached = async {
            tokio::time::timeout(PATIENCE, told.wait_for(|given| *given >= wanted)).await.is_ok()
        };
        assert!(runtime.block_on(reached), "{wanted} elements within {PATIENCE:?}");
        let node = &mut cluster.nodes[round as usize];
        node.kill();
        node.start();
    }
    let mut taken = Vec::new();
    for one in taking {
        taken.extend(runtime.block_on(one).unwrap());
    }
    let lost = proxy.lost.load(Ordering::Relaxed);
    let distinct: BTreeSet<_> = taken.iter().collect();
    println!("{} taken, {} of them different, {lost} answers lost", taken.len(), distinct.len());
    assert_eq!((taken.len(), distinct.len()), (2 * ELEMENTS, 2 * ELEMENTS), "{lost} answers lost");
    assert!(lost > 50, "{lost} answers were lost");
}
