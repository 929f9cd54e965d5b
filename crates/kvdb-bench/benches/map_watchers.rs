//! A coordinator with many shards and many watchers of its map: `cargo bench -p kvdb-bench --bench
//! map_watchers [-- SHARDS WATCHERS]`, 10,000 and 1,000 unless said otherwise.
//!
//! One coordinator as a process of its own, three nodes that only tell (each leads a third of the
//! shards and says so twice a second), and watchers over 16 connections. Told are: how long the
//! first map takes to all watchers, how long a change takes to all of them, what a change costs the
//! coordinator, and its memory with watchers that don't read.

use kvdb_control::PlannerConfig;
use kvdb_coordinator::CoordinatorConfig;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_wire::proto::{self, coordinator_client::CoordinatorClient, shard_map_update::Update};
use kvdb_wire::transport;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::transport::Channel;

const CONNECTIONS: usize = 16;
const CHANGES: u32 = 50;
const SLOW_WATCHERS: usize = 100;
const CHANGES_FOR_SLOW: u32 = 1_000;
const DATA: &str = "KVDB_MAP_WATCHERS_DATA";
const PORTS: &str = "KVDB_MAP_WATCHERS_PORTS";

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Ok(data) = std::env::var(DATA) {
        let ports = std::env::var(PORTS)?;
        return runtime.block_on(coordinate(data.into(), &ports));
    }
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let shards = numbers.first().copied().unwrap_or(10_000);
    let watchers = numbers.get(1).copied().unwrap_or(1_000);
    let folder = tempfile::tempdir()?;
    let held =
        [std::net::TcpListener::bind("127.0.0.1:0")?, std::net::TcpListener::bind("127.0.0.1:0")?];
    let ports: Vec<String> = held
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.to_string()))
        .collect::<Result<_, _>>()?;
    drop(held);
    let child = Command::new(std::env::current_exe()?)
        .env(DATA, folder.path())
        .env(PORTS, ports.join(","))
        .spawn()?;
    let coordinator = Running(child);
    runtime.block_on(measure(&coordinator, &ports[0], shards as u32, watchers))
}

/// Ends with the benchmark.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Processor time in milliseconds, and resident memory now in MiB.
    fn usage(&self) -> Result<(u64, u64), Failure> {
        let of = |name| std::fs::read_to_string(format!("/proc/{}/{name}", self.0.id()));
        let stat = of("stat")?;
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|tick| tick.parse::<u64>().ok())
            .sum();
        let pages: u64 = of("statm")?.split_whitespace().nth(1).unwrap_or("0").parse()?;
        Ok((ticks * 10, (pages * 4096) >> 20))
    }
}

async fn coordinate(data: std::path::PathBuf, ports: &str) -> Result<(), Failure> {
    let (listen, http) = ports.split_once(',').ok_or("two addresses")?;
    let config = CoordinatorConfig {
        id: 1,
        listen: listen.to_owned(),
        http: Some(http.to_owned()),
        peers: [(1, listen.to_owned())].into(),
        data,
        planner: PlannerConfig { rebalance: false, ..PlannerConfig::default() },
        hands_over: true,
    };
    Ok(kvdb_coordinator::run(config, Shutdown::default()).await?)
}

fn client(channel: &Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

async fn measure(
    coordinator: &Running,
    address: &str,
    shards: u32,
    watchers: usize,
) -> Result<(), Failure> {
    let channel = transport::endpoint(address)?.connect_lazy();
    let map = prepare(&channel, shards).await?;
    for node in &map.nodes {
        tokio::spawn(tell(channel.clone(), map.clone(), node.node_id));
    }
    until_all_lead(&channel, shards).await?;
    let before = coordinator.usage()?;
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = coordinator.usage()?.0 - before.0;
    let idle = idle as f64 / start.elapsed().as_millis() as f64;
    println!("{shards} shards on 3 nodes that report: {idle:.3} of a core, {} MiB", before.1);

    // All watchers get the map.
    let (heard, mut versions) = mpsc::unbounded_channel();
    let start = Instant::now();
    let connect = || transport::endpoint(address).map(|endpoint| endpoint.connect_lazy());
    let connections = (0..CONNECTIONS).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
    for number in 0..watchers {
        let channel = connections[number % CONNECTIONS].clone();
        tokio::spawn(watch(channel, heard.clone()));
    }
    drop(heard);
    let mut least = 0;
    await_all(&mut versions, watchers, least + 1).await?;
    let (cpu, memory) = coordinator.usage()?;
    println!("the map to {watchers} watchers: {} ms, {memory} MiB", start.elapsed().as_millis());

    let mut took = Vec::new();
    for number in 0..CHANGES {
        let start = Instant::now();
        least = change(&channel, &map, number).await?;
        await_all(&mut versions, watchers, least).await?;
        took.push(start.elapsed());
    }
    took.sort();
    let spent = coordinator.usage()?.0 - cpu;
    println!(
        "a change, asked for and with all {watchers}: median {:.1} ms, worst {:.1} ms of {CHANGES}; {:.1} ms of processor time each",
        took[took.len() / 2].as_secs_f64() * 1e3,
        took[took.len() - 1].as_secs_f64() * 1e3,
        spent as f64 / f64::from(CHANGES),
    );

    // Some don't read.
    let mut slow = Vec::new();
    for _ in 0..SLOW_WATCHERS {
        // Of its own: a client gives a connection up on which too much isn't read.
        let own = connect()?;
        let request = proto::WatchShardMapRequest { from_version: least };
        slow.push(client(&own).watch_shard_map(request).await?.into_inner());
    }
    let before = coordinator.usage()?.1;
    for number in 0..CHANGES_FOR_SLOW {
        least = change(&channel, &map, number).await?;
        while versions.try_recv().is_ok() {}
    }
    let after = coordinator.usage()?.1;
    for stream in &mut slow {
        let mut version = 0;
        while version < least {
            let update = stream.message().await?.ok_or("a slow watcher's stream has ended")?;
            version = version_of(&update);
        }
    }
    println!(
        "{SLOW_WATCHERS} watchers that read nothing of {CHANGES_FOR_SLOW} changes: from {before} to {after} MiB; then each got all of it"
    );
    Ok(())
}

async fn prepare(channel: &Channel, shards: u32) -> Result<proto::ShardMap, Failure> {
    let start = Instant::now();
    for token in 1..=3u128 {
        let request = proto::RegisterNodeRequest {
            token: token.to_be_bytes().to_vec().into(),
            address: format!("127.0.0.1:{token}"),
            ..Default::default()
        };
        // The first one waits for the coordinator to come up and to lead.
        while let Err(status) = client(channel).register_node(request.clone()).await {
            if start.elapsed() > Duration::from_secs(30) {
                return Err(status.into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let request = proto::InitShardsRequest { shards, replication_factor: 3 };
    client(channel).init_shards(request).await?;
    let map = client(channel).get_shard_map(proto::GetShardMapRequest::default()).await?;
    Ok(map.into_inner().map.ok_or("no map")?)
}

/// A node that leads every shard of which it has the first replica.
async fn tell(channel: Channel, map: proto::ShardMap, node_id: u64) {
    let leads = |shard: &&proto::ShardRecord| {
        let replicas = shard.descriptor.as_ref().map(|descriptor| &descriptor.replicas);
        replicas.and_then(|replicas| replicas.first()).is_some_and(|first| first.node_id == node_id)
    };
    let led = map
        .shards
        .iter()
        .filter(leads)
        .map(|shard| proto::ShardReport { descriptor: shard.descriptor.clone(), term: 6 });
    let request = proto::HeartbeatRequest {
        node_id,
        cluster_id: map.cluster_id.clone(),
        led: led.collect(),
        ..Default::default()
    };
    let mut interval = tokio::time::interval(Duration::from_millis(500));
    loop {
        interval.tick().await;
        if let Err(status) = client(&channel).heartbeat(request.clone()).await {
            eprintln!("a heartbeat was refused: {}", status.message());
        }
    }
}

async fn until_all_lead(channel: &Channel, shards: u32) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let map = client(channel).get_shard_map(proto::GetShardMapRequest::default()).await?;
        let map = map.into_inner().map.ok_or("no map")?;
        if map.shards.iter().all(|shard| shard.leader_node_id != 0) {
            println!(
                "{shards} new shards have their leaders in the map: {} ms",
                start.elapsed().as_millis()
            );
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn version_of(update: &proto::ShardMapUpdate) -> u64 {
    match &update.update {
        Some(Update::Snapshot(map)) => map.map_version,
        Some(Update::Delta(delta)) => delta.map_version,
        None => 0,
    }
}

async fn watch(channel: Channel, heard: mpsc::UnboundedSender<u64>) {
    let request = proto::WatchShardMapRequest::default();
    let Ok(stream) = client(&channel).watch_shard_map(request).await else { return };
    let mut stream = stream.into_inner();
    while let Ok(Some(update)) = stream.message().await {
        if heard.send(version_of(&update)).is_err() {
            return;
        }
    }
}

/// Waits until every watcher has heard of a version. Each tells each version once, in order.
async fn await_all(
    versions: &mut mpsc::UnboundedReceiver<u64>,
    watchers: usize,
    version: u64,
) -> Result<(), Failure> {
    let mut left = watchers;
    while left > 0 {
        let heard = versions.recv().await.ok_or("a watcher has ended")?;
        left -= usize::from(heard >= version);
    }
    Ok(())
}

/// Makes one change of the map and returns its version.
async fn change(channel: &Channel, map: &proto::ShardMap, number: u32) -> Result<u64, Failure> {
    let status = match number % 2 {
        0 => proto::NodeStatus::Draining,
        _ => proto::NodeStatus::Alive,
    };
    let node_id = map.nodes[0].node_id;
    let request = proto::SetNodeStatusRequest { node_id, status: status.into(), force: false };
    Ok(client(channel).set_node_status(request).await?.into_inner().map_version)
}
