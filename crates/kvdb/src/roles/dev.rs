//! `kvdb dev`: all roles in one process, over real sockets and files.

use super::{DEV_REPAIR_AFTER_MS, DevArgs, of_coordinator, of_gateway, of_node};
use crate::exit::Failure;
use kvdb_control::PlannerConfig;
use kvdb_coordinator::CoordinatorConfig;
use kvdb_gateway::{GatewayConfig, MOST_REQUESTS};
use kvdb_node::NodeConfig;
use kvdb_runtime::listen::UNPROTECTED;
use kvdb_runtime::pace::SNAPSHOT_BYTES_PER_SECOND;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_wire::proto;
use kvdb_wire::proto::coordinator_client::CoordinatorClient;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How long streams may take to end when the process stops.
const GRACE: Duration = Duration::from_millis(200);

type Parts = JoinSet<Result<(), Failure>>;

/// Where everything listens, and where its files are.
struct Plan {
    coordinators: BTreeMap<u64, String>,
    nodes: Vec<String>,
    gateway: String,
    redis: String,
    http: String,
    data: PathBuf,
    port_offset: u16,
}

impl Plan {
    fn new(args: &DevArgs, data: &Path) -> Result<Self, Failure> {
        let port = |base: u16, number: u16| at(base, number, args.port_offset);
        let coordinators = (1..=args.coordinators).map(|id| Ok((id.into(), port(7100, id)?)));
        Ok(Plan {
            coordinators: coordinators.collect::<Result<_, Failure>>()?,
            nodes: (1..=args.nodes).map(|id| port(7200, id)).collect::<Result<_, Failure>>()?,
            gateway: port(7400, 0)?,
            redis: port(7379, 0)?,
            http: port(7480, 0)?,
            data: data.to_owned(),
            port_offset: args.port_offset,
        })
    }

    fn coordinator_addresses(&self) -> Vec<String> {
        self.coordinators.values().cloned().collect()
    }
}

fn at(base: u16, number: u16, offset: u16) -> Result<String, Failure> {
    let port = base.checked_add(number).and_then(|port| port.checked_add(offset));
    let port =
        port.ok_or_else(|| Failure::Usage("--port-offset leads beyond port 65535".to_owned()))?;
    Ok(format!("127.0.0.1:{port}"))
}

pub(super) async fn run(args: DevArgs, shutdown: Shutdown) -> Result<(), Failure> {
    let unusable = |folder: &Path, error: &std::io::Error| {
        Failure::Unavailable(format!("cannot make {}: {error}", folder.display()))
    };
    let temporary = match args.temporary {
        true => Some(
            tempfile::Builder::new()
                .prefix("kvdb-")
                .tempdir()
                .map_err(|error| unusable(&std::env::temp_dir(), &error))?,
        ),
        false => None,
    };
    let data = match &temporary {
        Some(folder) => {
            // A second Ctrl-C ends the process before `folder` could be dropped.
            shutdown.remove_when_forced(folder.path());
            folder.path()
        }
        None => {
            hide_from_git(&args.data).map_err(|error| unusable(&args.data, &error))?;
            &args.data
        }
    };
    let plan = Plan::new(&args, data)?;
    let mut parts = Parts::new();
    let result = tokio::select! {
        started = start(&args, &plan, &mut parts, &shutdown) => started,
        () = shutdown.wait() => Ok(()),
    };
    if result.is_ok() && !shutdown.is_triggered() {
        // Whoever reads it may be gone; that is no reason to end.
        let _ = std::io::stdout().write_all(ready(&args, &plan).as_bytes());
    }
    let first = match result {
        Ok(()) => tokio::select! {
            ended = parts.join_next() => ended.map_or(Ok(()), of_part),
            () = shutdown.wait() => Ok(()),
        },
        Err(failure) => Err(failure),
    };
    // One part that ends, ends all of them. The first failure is the one to tell.
    shutdown.trigger();
    let mut first = first;
    while let Some(ended) = parts.join_next().await {
        first = first.and(of_part(ended));
    }
    first
}

fn of_part(ended: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    ended.unwrap_or_else(|error| Err(Failure::Unavailable(format!("a part has ended: {error}"))))
}

/// Makes the data directory, with word for git that nothing in it is to be kept.
fn hide_from_git(data: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(data)?;
    let file = data.join(".gitignore");
    if file.exists() { Ok(()) } else { std::fs::write(file, "*\n") }
}

/// Starts all parts, and returns when they serve.
async fn start(
    args: &DevArgs,
    plan: &Plan,
    parts: &mut Parts,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    for (id, listen) in &plan.coordinators {
        let config = CoordinatorConfig {
            id: *id,
            listen: listen.clone(),
            http: Some(at(7180, *id as u16, plan.port_offset)?),
            peers: plan.coordinators.clone(),
            data: plan.data.join(format!("coordinator-{id}")),
            planner: PlannerConfig { repair_after_ms: DEV_REPAIR_AFTER_MS, ..Default::default() },
            hands_over: false,
        };
        let shutdown = shutdown.clone();
        parts.spawn(async move {
            kvdb_coordinator::run(config, shutdown).await.map_err(of_coordinator)
        });
    }
    let config = GatewayConfig {
        listen: Some(plan.gateway.clone()),
        redis: Some(plan.redis.clone()),
        http: Some(plan.http.clone()),
        coordinators: plan.coordinator_addresses(),
        most_requests: MOST_REQUESTS,
        grace: GRACE,
    };
    let stop = shutdown.clone();
    parts.spawn(async move { kvdb_gateway::run(config, stop).await.map_err(of_gateway) });
    start_nodes(plan, parts, shutdown).await?;
    tokio::select! {
        made = make_shards(&plan.gateway, args.nodes, args.shards) => made,
        ended = parts.join_next() => ended.map_or(Ok(()), of_part),
    }
}

/// One after the other at the first start, so that `node-2` is node 2.
async fn start_nodes(plan: &Plan, parts: &mut Parts, shutdown: &Shutdown) -> Result<(), Failure> {
    for (place, listen) in plan.nodes.iter().enumerate() {
        let id = place as u16 + 1;
        let data = plan.data.join(format!("node-{id}"));
        let is_new = !data.exists();
        let registered = Arc::new(Notify::new());
        let config = NodeConfig {
            listen: listen.clone(),
            advertise: None,
            http: Some(at(7280, id, plan.port_offset)?),
            coordinators: plan.coordinator_addresses(),
            data,
            zone: String::new(),
            snapshot_bytes_per_second: SNAPSHOT_BYTES_PER_SECOND,
            // They share a machine and a disk.
            memory_bytes: kvdb_node::default_memory_bytes() / plan.nodes.len().max(1) as u64,
            reserve_bytes: kvdb_node::RESERVE_BYTES / 4,
            lease: true,
            hands_over: false,
            registered: Some(registered.clone()),
            // Its coordinators are in its own process.
            moved: true,
        };
        let stop = shutdown.clone();
        parts.spawn(async move { kvdb_node::run(config, stop).await.map_err(of_node) });
        if is_new {
            tokio::select! {
                () = registered.notified() => {}
                ended = parts.join_next() => {
                    if let Some(ended) = ended {
                        of_part(ended)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Makes the shards, once all nodes are there, and waits until they can be written.
async fn make_shards(gateway: &str, nodes: u16, shards: u32) -> Result<(), Failure> {
    let endpoint = kvdb_wire::transport::endpoint(gateway)
        .map_err(|error| Failure::Unavailable(error.to_string()))?;
    let mut client = CoordinatorClient::new(endpoint.connect_lazy());
    loop {
        if let Ok(answer) = client.get_shard_map(proto::GetShardMapRequest::default()).await {
            let map = answer.into_inner().map.unwrap_or_default();
            if map.nodes.len() < usize::from(nodes) {
                // Not all have registered yet.
            } else if map.keyspaces.is_empty() {
                let request = proto::InitShardsRequest {
                    shards,
                    // No more nodes will come: what there is is wanted.
                    replication_factor: u32::from(nodes).min(3),
                };
                if let Err(status) = client.init_shards(request).await
                    && status.code() == tonic::Code::InvalidArgument
                {
                    return Err(Failure::Usage(status.message().to_owned()));
                }
            } else if map.shards.iter().all(|shard| shard.leader_node_id != 0) {
                return Ok(());
            }
        }
        // The coordinators have no event for "somebody else has done something" but the map.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is said when everything serves: every address, what to try, how to stop.
fn ready(args: &DevArgs, plan: &Plan) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "kvdb".to_owned());
    let endpoint = match plan.port_offset {
        0 => String::new(),
        _ => format!(" --endpoint {}", plan.gateway),
    };
    let redis_port = plan.redis.rsplit(':').next().unwrap_or_default();
    let data = plan.data.display();
    let (coordinators, nodes) = (plan.coordinator_addresses().join(" "), plan.nodes.join(" "));
    let stop = match args.temporary {
        true => format!("Stop with Ctrl-C; {data} is removed then."),
        false => format!("Stop with Ctrl-C; the data stays in {data}."),
    };
    let count = |number: u16, what: &str| match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    };
    format!(
        "KvDB is ready: {}, {} and a gateway in this process.\n\
         \n  \
         gateway       gRPC {}  Redis {}  HTTP http://{}\n  \
         coordinators  {coordinators}\n  \
         nodes         {nodes}\n  \
         data          {data}\n\
         \n\
         Try, in another terminal:\n  \
         {program}{endpoint} set greeting hello\n  \
         redis-cli -p {redis_port} get greeting\n  \
         {program}{endpoint} status\n\
         \n\
         {stop}\n\
         Note: {UNPROTECTED}.\n",
        count(args.coordinators, "coordinator"),
        count(args.nodes, "node"),
        plan.gateway,
        plan.redis,
        plan.http,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: DevArgs,
    }

    fn told(words: &[&str]) -> String {
        let args = Line::parse_from([&["dev"], words].concat()).args;
        let plan = Plan::new(&args, &args.data).unwrap();
        ready(&args, &plan)
    }

    #[test]
    fn every_address_three_commands_and_how_to_stop_are_told() {
        let told_all = told(&["--nodes", "2", "--data", "d"]);
        for part in ["127.0.0.1:7400", "127.0.0.1:7379", "http://127.0.0.1:7480", "127.0.0.1:7101"]
        {
            assert!(told_all.contains(part), "{part} in {told_all}");
        }
        assert!(told_all.contains("127.0.0.1:7201 127.0.0.1:7202\n"), "{told_all}");
        assert!(told_all.contains("1 coordinator, 2 nodes"), "{told_all}");
        assert!(told_all.contains(" set greeting hello\n"), "{told_all}");
        assert!(told_all.contains("redis-cli -p 7379 get greeting\n"), "{told_all}");
        assert!(told_all.contains("Stop with Ctrl-C; the data stays in d."), "{told_all}");
        assert!(told_all.contains("no authentication"), "{told_all}");
        let moved = told(&["--port-offset", "100"]);
        assert!(moved.contains(" --endpoint 127.0.0.1:7500 status\n"), "{moved}");
        let args = Line::parse_from(["dev", "--port-offset", "60000"]).args;
        assert!(Plan::new(&args, &args.data).is_err());
    }

    #[test]
    fn a_data_directory_is_hidden_from_git() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("kvdb-data");
        hide_from_git(&data).unwrap();
        assert_eq!(std::fs::read_to_string(data.join(".gitignore")).unwrap(), "*\n");
        std::fs::write(data.join(".gitignore"), "mine").unwrap();
        hide_from_git(&data).unwrap();
        assert_eq!(std::fs::read_to_string(data.join(".gitignore")).unwrap(), "mine");
    }
}
