//! The roles that a process can play: coordinator, node, gateway, or (`dev`) all of them.
//!
//! A setting is taken from the command line, else from the environment (`KVDB_*`), else from the
//! file that `--config` names, else it is the default.

mod dev;
#[cfg(test)]
mod settings_page;

use crate::cli::plain_address;
use crate::confirm::Confirmation;
use crate::exit::Failure;
use crate::{threads, units};
use clap::{Args, Subcommand};
use figment::Figment;
use figment::providers::{Format, Toml};
use kvdb_control::PlannerConfig;
use kvdb_coordinator::{CoordinatorConfig, CoordinatorError};
use kvdb_gateway::{GRACE, GatewayConfig, GatewayError, MOST_REQUESTS};
use kvdb_node::{NodeConfig, NodeError};
use kvdb_runtime::files;
use kvdb_runtime::listen::OFF;
use kvdb_runtime::logging::{self, LogFormat};
use kvdb_runtime::pace::SNAPSHOT_BYTES_PER_SECOND;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_wire::transport;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

const COORDINATORS: &str = "--coordinators";
/// In `dev` nobody waits for minutes.
const DEV_REPAIR_AFTER_MS: u64 = 30_000;

/// Long-running roles.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Run a whole cluster in this process
    #[command(
        after_help = "Examples:\n  kvdb dev --temporary\n  kvdb dev --nodes 5 --coordinators 3 --data /tmp/kvdb-data"
    )]
    Dev(DevArgs),
    /// Run a coordinator: a member of the control plane
    #[command(
        after_help = "Examples:\n  kvdb coordinator --id 1 --peers 1=127.0.0.1:7101 --data data/c1\n  \
                      kvdb coordinator --id 1 --peers 1=127.0.0.1:7101 --data data/c1 --recover-alone"
    )]
    Coordinator(CoordinatorArgs),
    /// Run a storage node
    #[command(after_help = "Example:\n  kvdb node --coordinators 127.0.0.1:7101 --data data/n1")]
    Node(NodeArgs),
    /// Run a gateway, which clients connect to
    #[command(after_help = "Example:\n  kvdb gateway --coordinators 127.0.0.1:7101")]
    Gateway(GatewayArgs),
}

/// What all roles take.
#[derive(Args)]
pub(crate) struct CommonArgs {
    /// TOML file with settings; flags and environment variables override it
    #[arg(long, env = "KVDB_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Format of log lines: text or json [default: text]
    #[arg(long, env = "KVDB_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Log filter, such as info or info,kvdb_node=debug [default: info, or warn for dev]
    #[arg(long, env = "KVDB_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Number of network threads, besides a node's threads for log, replication and storage
    /// [default: number of cores]
    #[arg(long, env = "KVDB_NETWORK_THREADS", value_parser = clap::value_parser!(u16).range(1..=256), value_name = "COUNT")]
    network_threads: Option<u16>,
}

#[derive(Args)]
pub(crate) struct CoordinatorArgs {
    /// Number of this coordinator, from 1
    #[arg(long, env = "KVDB_ID", value_name = "ID")]
    id: Option<u64>,
    /// gRPC address [default: 127.0.0.1:7100 + id]
    #[arg(long, env = "KVDB_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// HTTP address for metrics and health, or `off` [default: 127.0.0.1:7180 + id]
    #[arg(long, env = "KVDB_HTTP", value_name = "HOST:PORT")]
    http: Option<String>,
    /// Addresses of all coordinators, this one included: 1=host:port,2=host:port,...
    #[arg(long, env = "KVDB_PEERS", value_name = "ID=HOST:PORT,...")]
    peers: Option<String>,
    /// Data directory
    #[arg(long, env = "KVDB_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Time after which the replicas of a dead node are rebuilt elsewhere, such as 90s or 5m
    /// [default: 5m]
    #[arg(long, env = "KVDB_REPAIR_AFTER", value_name = "TIME", value_parser = units::parse_seconds)]
    repair_after: Option<u64>,
    /// Rebalance replicas and leaders automatically: true or false [default: true]
    #[arg(long, env = "KVDB_REBALANCE", value_name = "BOOL")]
    rebalance: Option<bool>,
    /// Size beyond which a shard is split automatically; 0 = never [default: 256MiB]
    #[arg(long, env = "KVDB_SPLIT_SIZE_BYTES", value_name = "SIZE", value_parser = units::parse_size)]
    split_size_bytes: Option<u64>,
    /// Maximum number of new replicas that a node gets at a time [default: 2]
    #[arg(long, env = "KVDB_MOVES_PER_NODE", value_parser = clap::value_parser!(u64).range(1..=1000), value_name = "COUNT")]
    moves_per_node: Option<u64>,
    /// Go on alone after the majority of the coordinators is lost for good: says what may be lost, and asks
    #[arg(long)]
    recover_alone: bool,
    #[command(flatten)]
    confirmation: Confirmation,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
pub(crate) struct NodeArgs {
    /// gRPC address [default: 127.0.0.1:7201]
    #[arg(long, env = "KVDB_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address by which the others reach this node [default: that of --listen]
    #[arg(long, env = "KVDB_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// HTTP address for metrics and health, or `off` [default: 127.0.0.1:7281]
    #[arg(long, env = "KVDB_HTTP", value_name = "HOST:PORT")]
    http: Option<String>,
    /// Addresses of the coordinators: host:port,host:port,...
    #[arg(long, env = "KVDB_COORDINATORS", value_name = "HOST:PORT,...")]
    coordinators: Option<String>,
    /// Data directory
    #[arg(long, env = "KVDB_DATA", value_name = "DIR")]
    data: Option<PathBuf>,
    /// Failure domain, such as a rack: the replicas of a shard are spread over zones
    #[arg(long, env = "KVDB_ZONE", value_name = "NAME")]
    zone: Option<String>,
    /// Maximum rate of snapshots to other nodes, in bytes a second; 0 = no limit [default: 64MiB]
    #[arg(long, env = "KVDB_SNAPSHOT_BYTES_PER_SECOND", value_name = "SIZE", value_parser = units::parse_size)]
    snapshot_bytes_per_second: Option<u64>,
    /// Memory for what isn't flushed yet, the block cache and the latest changes, at least 64MiB
    /// [default: a quarter of what the machine or its control group has]
    #[arg(long, env = "KVDB_MEMORY", value_name = "SIZE", value_parser = parse_memory)]
    memory: Option<u64>,
    /// Serve strong reads under a lease: on or off. With off, each read asks a quorum, and nothing relies on
    /// the speed of the machines' boot clocks; use the same value on all nodes [default: on]
    #[arg(long, env = "KVDB_LEASE", value_name = "on|off", value_parser = units::parse_switch)]
    lease: Option<bool>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
pub(crate) struct GatewayArgs {
    /// gRPC address, or `off` [default: 127.0.0.1:7400]
    #[arg(long, env = "KVDB_LISTEN", value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Address for the Redis protocol, or `off` [default: 127.0.0.1:7379]
    #[arg(long, env = "KVDB_REDIS", value_name = "HOST:PORT")]
    redis: Option<String>,
    /// HTTP address for metrics and health, or `off` [default: 127.0.0.1:7480]
    #[arg(long, env = "KVDB_HTTP", value_name = "HOST:PORT")]
    http: Option<String>,
    /// Addresses of the coordinators: host:port,host:port,...
    #[arg(long, env = "KVDB_COORDINATORS", value_name = "HOST:PORT,...")]
    coordinators: Option<String>,
    /// Maximum number of gRPC requests at a time; more are refused as OVERLOADED
    /// [default: 8192]
    #[arg(long, env = "KVDB_MAX_REQUESTS", value_parser = clap::value_parser!(u32).range(1..), value_name = "COUNT")]
    max_requests: Option<u32>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Args)]
pub(crate) struct DevArgs {
    /// Number of storage nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50), value_name = "COUNT")]
    nodes: u16,
    /// Number of coordinators
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=7), value_name = "COUNT")]
    coordinators: u16,
    /// Number of shards of the keyspace `default`, created at the first start
    #[arg(long, default_value_t = 8, value_name = "COUNT")]
    shards: u32,
    /// Data directory
    #[arg(long, default_value = "kvdb-data", conflicts_with = "temporary", value_name = "DIR")]
    data: PathBuf,
    /// Keep the data in a temporary directory, which is removed at the end
    #[arg(long)]
    temporary: bool,
    /// Number added to every default port
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    port_offset: u16,
    #[command(flatten)]
    common: CommonArgs,
}

/// What a configuration file may hold; each role takes what it knows.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    id: Option<u64>,
    listen: Option<String>,
    advertise: Option<String>,
    redis: Option<String>,
    http: Option<String>,
    peers: Option<String>,
    coordinators: Option<String>,
    data: Option<PathBuf>,
    zone: Option<String>,
    #[serde(deserialize_with = "seconds")]
    repair_after: Option<u64>,
    rebalance: Option<bool>,
    #[serde(deserialize_with = "size")]
    split_size_bytes: Option<u64>,
    moves_per_node: Option<u64>,
    #[serde(deserialize_with = "size")]
    snapshot_bytes_per_second: Option<u64>,
    #[serde(deserialize_with = "memory")]
    memory: Option<u64>,
    #[serde(deserialize_with = "switch")]
    lease: Option<bool>,
    log: Option<String>,
    log_format: Option<String>,
    network_threads: Option<u16>,
    max_requests: Option<u32>,
}

/// A number, or text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Number(u64),
    Text(String),
}

impl Quantity {
    fn read<'a, D: serde::Deserializer<'a>>(
        from: D,
        parse: fn(&str) -> Result<u64, String>,
    ) -> Result<Option<u64>, D::Error> {
        let text = match Option::<Quantity>::deserialize(from)? {
            None => return Ok(None),
            Some(Quantity::Number(number)) => number.to_string(),
            Some(Quantity::Text(text)) => text,
        };
        parse(&text).map(Some).map_err(serde::de::Error::custom)
    }
}

fn seconds<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Option<u64>, D::Error> {
    Quantity::read(from, units::parse_seconds)
}

fn size<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Option<u64>, D::Error> {
    Quantity::read(from, units::parse_size)
}

fn memory<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Option<u64>, D::Error> {
    Quantity::read(from, parse_memory)
}

/// `true`, or text as on the command line.
#[derive(Deserialize)]
#[serde(untagged)]
enum Switch {
    Is(bool),
    Text(String),
}

fn switch<'a, D: serde::Deserializer<'a>>(from: D) -> Result<Option<bool>, D::Error> {
    match Option::<Switch>::deserialize(from)? {
        None => Ok(None),
        Some(Switch::Is(is)) => Ok(Some(is)),
        Some(Switch::Text(text)) => {
            units::parse_switch(&text).map(Some).map_err(serde::de::Error::custom)
        }
    }
}

/// A role with all its settings found.
enum Part {
    Dev(DevArgs),
    Coordinator(CoordinatorConfig, Option<Confirmation>),
    Node(NodeConfig),
    Gateway(GatewayConfig),
}

/// Runs a role to its end.
///
/// # Errors
/// A bad flag, file or setting is bad usage; a process that can't start or go on is unavailable.
pub(crate) fn run(role: Role) -> Result<(), Failure> {
    let mut file = settings(role.common(), role.usual_log())?;
    let threads = file.network_threads.take().map_or_else(threads::of_a_server, usize::from);
    if threads == 0 {
        return Err(Failure::Usage("network_threads is 0; it is at least 1".to_owned()));
    }
    files::raise(role.reserved_files()).map_err(Failure::Unavailable)?;
    let part = match role {
        Role::Dev(args) => Part::Dev(args),
        Role::Coordinator(args) => {
            let recovers = args.recover_alone.then_some(args.confirmation);
            if recovers.is_none() && args.confirmation.yes {
                let words = "--yes is for --recover-alone: nothing else is asked";
                return Err(Failure::Usage(words.to_owned()));
            }
            Part::Coordinator(coordinator(args, file)?, recovers)
        }
        Role::Node(args) => Part::Node(node(args, file)?),
        Role::Gateway(args) => Part::Gateway(gateway(args, file)?),
    };
    threads::run_in_batches();
    let runtime = threads::runtime(threads)
        .map_err(|error| Failure::Unavailable(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(async {
        tokio::spawn(threads::use_huge_pages_when_large());
        let shutdown = Shutdown::on_signals()
            .map_err(|error| Failure::Unavailable(format!("cannot listen for signals: {error}")))?;
        match part {
            Part::Dev(args) => dev::run(args, shutdown).await,
            Part::Coordinator(config, recovers) => {
                if let Some(confirmation) = recovers {
                    recover_alone(&config, confirmation).await?;
                }
                kvdb_coordinator::run(config, shutdown).await.map_err(of_coordinator)
            }
            Part::Node(config) => kvdb_node::run(config, shutdown).await.map_err(of_node),
            Part::Gateway(config) => kvdb_gateway::run(config, shutdown).await.map_err(of_gateway),
        }
    });
    runtime.shutdown_background();
    result
}

async fn recover_alone(
    config: &CoordinatorConfig,
    confirmation: Confirmation,
) -> Result<(), Failure> {
    let confirm = |preview: &str| {
        eprintln!("{preview}");
        let what = format!("Recover the coordinators from coordinator {} alone.", config.id);
        confirmation.ask(&what).map_err(|failure| failure.to_string())
    };
    kvdb_coordinator::recover_alone(config, confirm).await.map_err(of_coordinator)
}

fn of_coordinator(error: CoordinatorError) -> Failure {
    match error {
        CoordinatorError::Config(words) => Failure::Usage(words),
        CoordinatorError::NotRecovered(words) => Failure::Refused(words),
        error => Failure::Unavailable(error.to_string()),
    }
}

fn of_node(error: NodeError) -> Failure {
    match error {
        NodeError::Config(words) => Failure::Usage(words),
        error => Failure::Unavailable(error.to_string()),
    }
}

fn of_gateway(error: GatewayError) -> Failure {
    match error {
        GatewayError::Config(words) => Failure::Usage(words),
        error => Failure::Unavailable(error.to_string()),
    }
}

impl Role {
    fn common(&self) -> &CommonArgs {
        match self {
            Role::Dev(args) => &args.common,
            Role::Coordinator(args) => &args.common,
            Role::Node(args) => &args.common,
            Role::Gateway(args) => &args.common,
        }
    }

    /// Open files that it needs beside those for its clients.
    fn reserved_files(&self) -> usize {
        match self {
            Role::Dev(args) => {
                let stores = usize::from(args.nodes) + usize::from(args.coordinators);
                files::RESERVE_OF_GATEWAY + stores * files::RESERVE_OF_STORE
            }
            Role::Coordinator(_) | Role::Node(_) => files::RESERVE_OF_STORE,
            Role::Gateway(_) => files::RESERVE_OF_GATEWAY,
        }
    }

    /// What is logged unless something else is asked for. `dev` shares the terminal with its user.
    fn usual_log(&self) -> &'static str {
        if matches!(self, Role::Dev(_)) { "warn" } else { "info" }
    }
}

/// The settings of the file, with those of the command line that all roles take.
fn settings(common: &CommonArgs, usual_log: &str) -> Result<File, Failure> {
    let mut file = match &common.config {
        None => File::default(),
        Some(path) => {
            let place = path.display().to_string();
            let found = std::fs::metadata(path)
                .map_err(|error| Failure::reading(&format!("--config {place}"), &error))?;
            if found.is_dir() {
                let words = format!("--config {place} is a directory; it is a TOML file");
                return Err(Failure::Usage(words));
            }
            Figment::from(Toml::file(path))
                .extract::<File>()
                .map_err(|error| Failure::Usage(format!("--config {place}: {error}")))?
        }
    };
    let from_file = file.log_format.as_deref().map(str::parse).transpose();
    let from_file = from_file.map_err(Failure::Usage)?;
    let format = common.log_format.or(from_file).unwrap_or_default();
    let filter = common.log.clone().or_else(|| file.log.clone());
    logging::init(format, filter.as_deref().unwrap_or(usual_log)).map_err(Failure::Usage)?;
    file.network_threads = common.network_threads.or(file.network_threads);
    Ok(file)
}

fn needed<T>(value: Option<T>, flag: &str) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::Usage(format!("{flag} is missing; `--help` shows an example")))
}

/// Where to listen, unless that is turned off.
fn listener(
    flag: Option<String>,
    file: Option<String>,
    by_default: impl FnOnce() -> String,
) -> Option<String> {
    Some(flag.or(file).unwrap_or_else(by_default)).filter(|address| address != OFF)
}

/// Where to listen for what a role is there for.
fn needed_listener(
    flag: Option<String>,
    file: Option<String>,
    by_default: impl FnOnce() -> String,
) -> Result<String, Failure> {
    listener(flag, file, by_default).ok_or_else(|| {
        let why = "--listen can't be off: the other processes reach this one by it";
        Failure::Usage(format!("{why}; the form is host:port"))
    })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Addresses of others, each of which can be one.
fn addresses(text: &str, flag: &str) -> Result<Vec<String>, Failure> {
    let addresses: Result<Vec<String>, String> =
        list(text).iter().map(|one| plain_address(one)).collect();
    let addresses = addresses.map_err(|problem| Failure::Usage(format!("{flag}: {problem}")))?;
    if addresses.is_empty() {
        let words = format!("{flag} names nobody; the form is host:port,host:port");
        return Err(Failure::Usage(words));
    }
    for address in &addresses {
        check_address(address, flag)?;
    }
    Ok(addresses)
}

fn check_address(address: &str, flag: &str) -> Result<(), Failure> {
    let checked = transport::endpoint(address).map(|_| ());
    checked.map_err(|error| Failure::Usage(format!("{flag}: {error}")))
}

fn parse_peers(text: &str) -> Result<BTreeMap<u64, String>, Failure> {
    let mut peers = BTreeMap::new();
    for part in list(text) {
        let bad =
            || Failure::Usage(format!("--peers has `{part}`; the form is 1=host:port,2=host:port"));
        let (id, address) = part.split_once('=').ok_or_else(bad)?;
        let id = id.trim().parse::<u64>().ok().filter(|id| *id > 0).ok_or_else(bad)?;
        let address = plain_address(address)
            .map_err(|problem| Failure::Usage(format!("--peers: {problem}")))?;
        check_address(&address, "--peers")?;
        let twice = |what: &dyn std::fmt::Display| {
            let words = format!("--peers names {what} twice; each coordinator has its own");
            Failure::Usage(words)
        };
        if peers.values().any(|other| *other == address) {
            return Err(twice(&address));
        }
        if peers.insert(id, address).is_some() {
            return Err(twice(&id));
        }
    }
    Ok(peers)
}

fn coordinator(args: CoordinatorArgs, file: File) -> Result<CoordinatorConfig, Failure> {
    let id = needed(args.id.or(file.id), "--id")?;
    let peers = parse_peers(&needed(args.peers.or(file.peers), "--peers")?)?;
    // A number beyond what ports allow needs addresses of its own: binding says so.
    let own = |base: u64| move || format!("127.0.0.1:{}", id.saturating_add(base));
    let listen = needed_listener(args.listen, file.listen, own(7100))?;
    let http = listener(args.http, file.http, own(7180));
    let data = needed(args.data.or(file.data), "--data")?;
    let usual = PlannerConfig::default();
    let repair_after = args.repair_after.or(file.repair_after);
    let planner = PlannerConfig {
        repair_after_ms: repair_after.map_or(usual.repair_after_ms, |s| s.saturating_mul(1000)),
        rebalance: args.rebalance.or(file.rebalance).unwrap_or(usual.rebalance),
        split_size_bytes: args
            .split_size_bytes
            .or(file.split_size_bytes)
            .unwrap_or(usual.split_size_bytes),
        moves_per_node: args
            .moves_per_node
            .or(file.moves_per_node)
            .map_or(usual.moves_per_node, |moves| moves.clamp(1, 1000) as usize),
        ..usual
    };
    Ok(CoordinatorConfig { id, listen, http, peers, data, planner, hands_over: true })
}

/// A size that a node can work with.
fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = units::parse_size(text)?;
    if bytes < kvdb_node::LEAST_MEMORY_BYTES {
        let least = kvdb_node::LEAST_MEMORY_BYTES >> 20;
        return Err(format!("is less than a node works with; give at least {least}MiB"));
    }
    Ok(bytes)
}

fn node(args: NodeArgs, file: File) -> Result<NodeConfig, Failure> {
    Ok(NodeConfig {
        listen: needed_listener(args.listen, file.listen, || "127.0.0.1:7201".to_owned())?,
        advertise: args.advertise.or(file.advertise),
        http: listener(args.http, file.http, || "127.0.0.1:7281".to_owned()),
        coordinators: addresses(
            &needed(args.coordinators.or(file.coordinators), COORDINATORS)?,
            COORDINATORS,
        )?,
        data: needed(args.data.or(file.data), "--data")?,
        zone: args.zone.or(file.zone).unwrap_or_default(),
        snapshot_bytes_per_second: args
            .snapshot_bytes_per_second
            .or(file.snapshot_bytes_per_second)
            .unwrap_or(SNAPSHOT_BYTES_PER_SECOND),
        memory_bytes: args.memory.or(file.memory).unwrap_or_else(kvdb_node::default_memory_bytes),
        reserve_bytes: kvdb_node::RESERVE_BYTES,
        lease: args.lease.or(file.lease).unwrap_or(true),
        hands_over: true,
        registered: None,
        moved: false,
    })
}

fn gateway(args: GatewayArgs, file: File) -> Result<GatewayConfig, Failure> {
    Ok(GatewayConfig {
        listen: listener(args.listen, file.listen, || "127.0.0.1:7400".to_owned()),
        redis: listener(args.redis, file.redis, || "127.0.0.1:7379".to_owned()),
        http: listener(args.http, file.http, || "127.0.0.1:7480".to_owned()),
        coordinators: addresses(
            &needed(args.coordinators.or(file.coordinators), COORDINATORS)?,
            COORDINATORS,
        )?,
        most_requests: args
            .max_requests
            .or(file.max_requests)
            .map_or(MOST_REQUESTS, |most| most as usize),
        grace: GRACE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_bad_ones_named() {
        let refused = addresses("127.0.0.1:7101,bad", "--coordinators").unwrap_err().to_string();
        assert!(refused.contains("--coordinators") && refused.contains("\"bad\""), "{refused}");
        assert!(addresses(" , ", "--coordinators").is_err());
        assert!(parse_peers("1=nowhere").unwrap_err().to_string().contains("nowhere"));
        let peers = parse_peers("1=a:1, 2=b:2").unwrap();
        assert_eq!(peers, BTreeMap::from([(1, "a:1".to_owned()), (2, "b:2".to_owned())]));
        for bad in ["a:1", "0=a:1", "x=a:1"] {
            let message = parse_peers(bad).unwrap_err().to_string();
            assert!(message.contains(bad) && message.contains("1=host:port"), "{message}");
        }
        for twice in ["1=a:1,1=b:2", "1=a:1,2=a:1"] {
            let message = parse_peers(twice).unwrap_err().to_string();
            assert!(message.contains("twice"), "{message}");
        }
    }

    #[test]
    fn a_listener_is_an_address_its_default_or_off() {
        let text = |text: &str| Some(text.to_owned());
        let usual = || "127.0.0.1:1".to_owned();
        assert_eq!(listener(None, None, usual), text("127.0.0.1:1"));
        assert_eq!(listener(text("a:1"), text("off"), usual), text("a:1"));
        assert_eq!(listener(None, text("off"), usual), None);
        assert_eq!(listener(text("off"), text("a:1"), usual), None);
        let refused = needed_listener(text("off"), None, usual).unwrap_err().to_string();
        assert!(refused.contains("--listen can't be off"), "{refused}");
    }

    #[test]
    fn unknown_settings_in_a_file_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kvdb.toml");
        std::fs::write(&path, "lissten = \"127.0.0.1:1\"\n").unwrap();
        let common =
            CommonArgs { config: Some(path), log_format: None, log: None, network_threads: None };
        let message = settings(&common, "info").err().unwrap().to_string();
        assert!(message.contains("lissten"), "{message}");
    }

    #[test]
    fn times_and_sizes_in_a_file_may_have_units() {
        let read =
            |text: &str| Figment::from(Toml::string(text)).extract::<File>().map_err(Box::new);
        let file = read("repair_after = \"5m\"\nsplit_size_bytes = \"64MiB\"\n").unwrap();
        assert_eq!((file.repair_after, file.split_size_bytes), (Some(300), Some(64 << 20)));
        assert_eq!(read("memory = \"1GiB\"\n").unwrap().memory, Some(1 << 30));
        let refused = read("memory = 4096\n").err().map(|error| error.to_string());
        assert!(refused.is_some_and(|why| why.contains("at least 64MiB")));
        let file = read("repair_after = 90\nsnapshot_bytes_per_second = 0\n").unwrap();
        assert_eq!((file.repair_after, file.snapshot_bytes_per_second), (Some(90), Some(0)));
        for (text, is_on) in [("lease = \"off\"\n", false), ("lease = true\n", true)] {
            assert_eq!(read(text).unwrap().lease, Some(is_on));
        }
        assert!(read("lease = \"perhaps\"\n").err().unwrap().to_string().contains("off"));
        let refused = read("repair_after = \"soon\"\n").err().unwrap().to_string();
        assert!(refused.contains("30s") && refused.contains("repair_after"), "{refused}");
    }
}
