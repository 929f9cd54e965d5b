//! A disposable cluster of real processes on loopback: 3 coordinators, 3 nodes, 2 gateways.

use crate::Error;
use crate::disk::Disk;
use crate::network::{Network, Part};
use crate::ports::free_ports;
use crate::process::Process;
use kvdb_client::{AdminClient, Client, Options};
use kvdb_model::{NodeId, OperatorId, Role, ShardId, ShardMap};
use kvdb_wire::proto;
use kvdb_wire::proto::node_client::NodeClient;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Coordinators of the cluster; its parts from 0.
pub(crate) const COORDINATORS: usize = 3;
/// Nodes of the cluster; its parts after the coordinators.
pub(crate) const NODES: usize = 3;
/// Gateways of the cluster; its last parts.
pub(crate) const GATEWAYS: usize = 2;
/// All parts.
pub(crate) const PARTS: usize = COORDINATORS + NODES + GATEWAYS;

/// How long a cluster may take to come up, or to come back after a fault.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What the cluster should be like.
pub(crate) struct Layout {
    /// The `kvdb` binary.
    pub(crate) program: PathBuf,
    /// Where data and logs go.
    pub(crate) folder: PathBuf,
    pub(crate) shards: u32,
    /// Whether connections between the parts lead through a proxy.
    pub(crate) proxied: bool,
    /// Whether each node gets a file system of its own.
    pub(crate) disks: bool,
    /// Whether the coordinators spread replicas and leaders by themselves.
    pub(crate) rebalance: bool,
    /// After how long the replicas of a dead node are rebuilt, if not after the usual time.
    pub(crate) repair_after: Option<Duration>,
}

impl Layout {
    /// A cluster as users start one, with nothing between its parts.
    pub(crate) fn plain(program: PathBuf, folder: PathBuf, shards: u32) -> Self {
        let (proxied, disks, rebalance, repair_after) = (false, false, true, None);
        Layout { program, folder, shards, proxied, disks, rebalance, repair_after }
    }
}

/// Names of parts, by address; more come.
type Names = Arc<RwLock<BTreeMap<String, String>>>;

/// The running cluster. Dropping it kills every process and unmounts every disk.
pub(crate) struct Cluster {
    // Before the disks: nobody may have their files open when those are unmounted.
    pub(crate) parts: Vec<Process>,
    pub(crate) disks: Vec<Disk>,
    pub(crate) network: Network,
    folder: PathBuf,
    program: PathBuf,
    /// What coordinators are started with beside what they need.
    settings: Vec<String>,
    names: Names,
    /// Addresses as the others know them, by part.
    addresses: Vec<String>,
    /// Of `/metrics`, by part.
    https: Vec<String>,
    admin: AdminClient,
    proxies: Vec<tokio::task::JoinHandle<()>>,
}

/// The part that is the `n`th node.
pub(crate) fn node(n: usize) -> Part {
    COORDINATORS + n % NODES
}

/// The part that is the `n`th gateway.
pub(crate) fn gateway(n: usize) -> Part {
    COORDINATORS + NODES + n % GATEWAYS
}

fn name_of(part: Part) -> String {
    if part < COORDINATORS {
        format!("coordinator-{}", part + 1)
    } else if part < COORDINATORS + NODES {
        format!("node-{}", part - COORDINATORS + 1)
    } else {
        format!("gateway-{}", part - COORDINATORS - NODES + 1)
    }
}

fn free_addresses(count: usize) -> std::io::Result<Vec<String>> {
    let ports = free_ports(count)?;
    Ok(ports.into_iter().map(|port| format!("127.0.0.1:{port}")).collect())
}

fn free_pair() -> std::io::Result<[String; 2]> {
    let free = free_addresses(2)?;
    Ok([free[0].clone(), free[1].clone()])
}

impl Cluster {
    /// Starts one and waits until every shard can be written.
    pub(crate) async fn start(layout: Layout) -> Result<Self, Error> {
        let free = free_addresses(2 * PARTS)?;
        let (listens, https) = free.split_at(PARTS);
        let network = Network::new();
        let mut proxies = Vec::new();
        let mut addresses = listens.to_vec();
        if layout.proxied {
            for part in 0..COORDINATORS + NODES {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
                addresses[part] = listener.local_addr()?.to_string();
                let serving = network.clone().serve(part, listener, listens[part].clone());
                proxies.push(tokio::spawn(serving));
            }
        }
        let mut disks = Vec::new();
        if layout.disks {
            for n in 0..NODES {
                let name = name_of(node(n));
                let image = layout.folder.join(format!("{name}.img"));
                disks.push(Disk::create(image, layout.folder.join(name))?);
            }
        }
        let mut settings = Vec::new();
        if !layout.rebalance {
            settings.extend(["--rebalance", "false"].map(str::to_owned));
        }
        if let Some(after) = layout.repair_after {
            settings.extend(["--repair-after".to_owned(), after.as_secs().to_string()]);
        }
        let parts = (0..PARTS).map(|part| {
            let mut args =
                arguments(part, &layout.folder, &listens[part], &https[part], &addresses);
            if part < COORDINATORS {
                args.extend(settings.clone());
            }
            let log = layout.folder.join(format!("{}.log", name_of(part)));
            Process::new(name_of(part), layout.program.clone(), args, log)
        });
        let names = addresses.iter().enumerate();
        let names = names.map(|(part, address)| (address.clone(), name_of(part)));
        let mut cluster = Cluster {
            parts: parts.collect(),
            disks,
            network,
            admin: admin(&addresses)?,
            folder: layout.folder.clone(),
            program: layout.program,
            settings,
            names: Arc::new(RwLock::new(names.collect())),
            addresses,
            https: https.to_vec(),
            proxies,
        };
        for part in 0..PARTS {
            cluster.start_part(part)?;
        }
        cluster.initialise(layout.shards).await?;
        Ok(cluster)
    }

    /// Starts one more node and waits until it is known. Returns its name.
    pub(crate) async fn add_node(&mut self) -> Result<String, Error> {
        let name = self.next_name("node");
        let data = self.folder.join(&name).join("data");
        let [listen, http] = free_pair()?;
        let args = node_arguments(&data, &listen, &http, &listen, &self.addresses);
        let part = self.start_another(name.clone(), args, listen, http)?;
        let started = Instant::now();
        loop {
            let map = self.map().await?;
            if self.node_of(&map, part).is_some() {
                return Ok(name);
            }
            self.fail_if_one_ended()?;
            if started.elapsed() > PATIENCE {
                return Err(self.not_ready(&format!("{name} has not registered")));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Starts one more coordinator, which waits to be added. Returns its number and where it is.
    pub(crate) fn start_coordinator(&mut self) -> Result<(NodeId, String), Error> {
        let name = self.next_name("coordinator");
        let id = self.count_of("coordinator") + 1;
        let [listen, http] = free_pair()?;
        let data = self.folder.join(&name).join("data");
        let peers = self.addresses[..COORDINATORS].iter().chain([&listen]);
        let numbers = (1..=COORDINATORS).chain([id]);
        let mut args = coordinator_arguments(id, numbers.zip(peers), &data, &listen, &http);
        args.extend(self.settings.clone());
        self.start_another(name, args, listen.clone(), http)?;
        Ok((NodeId(id as u64), listen))
    }

    fn count_of(&self, kind: &str) -> usize {
        self.parts.iter().filter(|part| part.name.starts_with(kind)).count()
    }

    fn next_name(&self, kind: &str) -> String {
        format!("{kind}-{}", self.count_of(kind) + 1)
    }

    /// Starts a process that isn't among those that every cluster has, as the last part.
    fn start_another(
        &mut self,
        name: String,
        args: Vec<String>,
        listen: String,
        http: String,
    ) -> Result<Part, Error> {
        let log = self.folder.join(format!("{name}.log"));
        let mut process = Process::new(name.clone(), self.program.clone(), args, log);
        process.start_under(&[])?;
        self.parts.push(process);
        self.addresses.push(listen.clone());
        self.https.push(http);
        self.names.write().insert(listen, name);
        Ok(self.parts.len() - 1)
    }

    pub(crate) fn not_ready(&self, problem: &str) -> Error {
        Error::NotReady { problem: problem.to_owned(), folder: self.folder.clone() }
    }

    /// Waits until an operator has reached its goal.
    pub(crate) async fn operator_done(
        &self,
        operator: OperatorId,
        patience: Duration,
    ) -> Result<(), Error> {
        let since = Instant::now();
        loop {
            let operators = self.admin.operators(false).await?;
            match operators.iter().find(|known| known.id == operator) {
                Some(known) if known.is_done() => return Ok(()),
                Some(known) if !known.is_running() => {
                    return Err(
                        self.not_ready(&format!("{}: {}", known.description, known.failure))
                    );
                }
                _ if since.elapsed() > patience => {
                    return Err(self.not_ready(&format!("operation {operator} doesn't end")));
                }
                _ => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    /// Waits until no operator is under way.
    pub(crate) async fn operators_end(&self, patience: Duration) -> Result<(), Error> {
        let since = Instant::now();
        while !self.admin.operators(true).await?.is_empty() {
            if since.elapsed() > patience {
                return Err(self.not_ready("operations don't come to an end"));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    /// Waits until a coordinator is what it should be: in this role, or no member.
    pub(crate) async fn coordinator_is(&self, id: NodeId, role: Option<Role>) -> Result<(), Error> {
        let since = Instant::now();
        loop {
            // Whoever is asked may be on its way out.
            if let Ok(status) = self.admin.status().await {
                let member = status.members.iter().find(|member| member.id == id);
                if member.map(|member| member.role) == role {
                    return Ok(());
                }
            }
            if since.elapsed() > PATIENCE {
                return Err(self.not_ready(&format!("coordinator {id} isn't {role:?}")));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The node that a part is, so far as the map tells. One that was replaced left its address to
    /// another.
    pub(crate) fn node_of(&self, map: &ShardMap, part: Part) -> Option<NodeId> {
        let address = &self.addresses[part];
        let at = map.nodes.values().filter(|node| node.address == *address);
        at.map(|node| node.node_id).next_back()
    }

    /// For what operators do.
    pub(crate) fn admin(&self) -> &AdminClient {
        &self.admin
    }

    /// How often a replica of a node that runs has become a leader since the node was started.
    pub(crate) async fn elections(&self) -> Result<u64, Error> {
        let mut elections = 0;
        for (part, process) in self.parts.iter().enumerate() {
            if process.name.starts_with("node") && process.id().is_some() {
                elections += won(&metrics(&self.https[part]).await?);
            }
        }
        Ok(elections)
    }

    pub(crate) fn start_part(&mut self, part: Part) -> Result<(), Error> {
        self.start_part_under(part, &[])
    }

    /// Starts a part by another program that becomes it.
    pub(crate) fn start_part_under(&mut self, part: Part, wrapper: &[String]) -> Result<(), Error> {
        self.parts[part].start_under(wrapper)?;
        if let Some(id) = self.parts[part].id() {
            self.network.runs_as(part, id);
        }
        Ok(())
    }

    /// Where a node keeps its data.
    pub(crate) fn data_of(&self, part: Part) -> PathBuf {
        data_of(&self.folder, part)
    }

    /// The gateways, for clients.
    pub(crate) fn endpoints(&self) -> String {
        self.addresses[COORDINATORS + NODES..PARTS].join(",")
    }

    async fn initialise(&mut self, shards: u32) -> Result<(), Error> {
        let started = Instant::now();
        let mut problem = "the nodes have not registered".to_owned();
        while started.elapsed() < PATIENCE {
            self.fail_if_one_ended()?;
            match self.admin.shard_map().await {
                Ok(map) if map.nodes.len() < NODES => {}
                Ok(map) if map.keyspaces.is_empty() => {
                    if let Err(error) = self.admin.init_shards(shards, 0).await {
                        problem = error.to_string();
                    }
                }
                Ok(map) if map.shards.values().all(|shard| shard.leader.is_some()) => {
                    return Ok(());
                }
                Ok(_) => problem = "not every shard has a leader".to_owned(),
                Err(error) => problem = error.to_string(),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Err(Error::NotReady { problem, folder: self.folder.clone() })
    }

    fn fail_if_one_ended(&mut self) -> Result<(), Error> {
        match self.take_ended().first() {
            Some((part, status)) => {
                let part = &self.parts[*part];
                let words = part.last_words(3).join("; ");
                let problem = format!("{} ended with {status}: {words}", part.name);
                Err(Error::NotReady { problem, folder: self.folder.clone() })
            }
            None => Ok(()),
        }
    }

    /// Parts that have stopped by themselves since this was last asked.
    pub(crate) fn take_ended(&mut self) -> Vec<(Part, std::process::ExitStatus)> {
        let ended = self.parts.iter_mut().enumerate();
        ended.filter_map(|(part, process)| Some((part, process.ended()?))).collect()
    }

    /// Parts that don't run.
    pub(crate) fn down(&self) -> Vec<Part> {
        (0..self.parts.len()).filter(|part| self.parts[*part].id().is_none()).collect()
    }

    /// The shard map, as a coordinator has it.
    pub(crate) async fn map(&self) -> Result<ShardMap, kvdb_client::Error> {
        self.admin.shard_map().await
    }

    /// The part that leads each shard, so far as the coordinators know.
    pub(crate) async fn leaders(&self) -> BTreeMap<ShardId, Option<Part>> {
        let Ok(map) = self.admin.shard_map().await else { return BTreeMap::new() };
        let leaders = map.shards.iter().map(|(id, shard)| {
            (*id, shard.leader.and_then(|leader| part_of(&map, leader, &self.addresses)))
        });
        leaders.collect()
    }

    /// A second look at the cluster, for a task of its own.
    pub(crate) fn watcher(&self) -> Result<Watcher, Error> {
        Ok(Watcher { admin: admin(&self.addresses)?, names: Arc::clone(&self.names) })
    }

    /// Waits until all replicas that run hold the same, and says which don't.
    pub(crate) async fn digests_agree(&self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            match self.compare_digests().await {
                Ok(()) => return Ok(()),
                Err(problem) if started.elapsed() > PATIENCE => return Err(problem),
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    async fn compare_digests(&self) -> Result<(), String> {
        for (shard, replicas) in self.digests().await? {
            let Some(first) = replicas.first() else { continue };
            let differs =
                |other: &&Held| (other.index, other.digest) != (first.index, first.digest);
            if let Some(other) = replicas.iter().find(differs) {
                return Err(format!(
                    "replicas of shard {shard} on nodes {} and {} differ at index {} and {}",
                    first.node, other.node, first.index, other.index
                ));
            }
        }
        Ok(())
    }

    /// What each replica holds, by shard, on all nodes that run.
    async fn digests(&self) -> Result<BTreeMap<ShardId, Vec<Held>>, String> {
        let map = self.map().await.map_err(|error| error.to_string())?;
        let down = self.down();
        let mut found = BTreeMap::<_, Vec<_>>::new();
        for (shard, record) in &map.shards {
            for replica in &record.descriptor.replicas {
                let node = replica.node_id;
                let part = part_of(&map, node, &self.addresses);
                let Some(part) = part.filter(|part| !down.contains(part)) else { continue };
                let (index, digest) = digest(&self.addresses[part], *shard).await?;
                found.entry(*shard).or_default().push(Held { node, index, digest });
            }
        }
        Ok(found)
    }

    /// Waits until all is as it was before a node went: it is back and has caught up, and leadership
    /// has gone to where it belongs.
    pub(crate) async fn settle(&self) -> Result<(), Error> {
        let caught_up = tokio::time::timeout(PATIENCE, self.replicas_catch_up()).await;
        caught_up.map_err(|_| self.not_ready("not every replica has caught up"))?;
        self.leaders_settle().await;
        Ok(())
    }

    /// Waits until every replica has what any of them had when all could be asked first.
    async fn replicas_catch_up(&self) {
        let mut wanted: Option<BTreeMap<ShardId, u64>> = None;
        loop {
            if let Ok(now) = self.digests().await {
                let has_all = wanted.as_ref().is_some_and(|wanted| {
                    let has =
                        |shard, held: &Held| wanted.get(shard).is_none_or(|it| held.index >= *it);
                    now.iter().all(|(shard, replicas)| replicas.iter().all(|held| has(shard, held)))
                });
                if has_all {
                    return;
                }
                wanted.get_or_insert_with(|| {
                    let highest =
                        |replicas: &Vec<Held>| replicas.iter().map(|held| held.index).max();
                    now.iter().filter_map(|(shard, all)| Some((*shard, highest(all)?))).collect()
                });
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Waits until leaders are known for all shards and haven't changed for a second, or a minute
    /// has passed.
    async fn leaders_settle(&self) {
        let started = Instant::now();
        let mut known = self.leaders().await;
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) && started.elapsed() < PATIENCE {
            tokio::time::sleep(ASK_AGAIN).await;
            let now = self.leaders().await;
            if now != known || now.values().any(Option::is_none) {
                known = now;
                since = Instant::now();
            }
        }
    }

    /// Ends all processes at once.
    pub(crate) fn kill_all(&mut self) {
        self.parts.iter_mut().for_each(Process::kill);
    }
}

/// What a replica holds.
struct Held {
    node: NodeId,
    /// How far it has applied its log.
    index: u64,
    digest: u64,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.proxies.iter().for_each(tokio::task::JoinHandle::abort);
        self.kill_all();
    }
}

/// Asks the coordinators who leads.
pub(crate) struct Watcher {
    admin: AdminClient,
    names: Names,
}

impl Watcher {
    /// The names of those who lead, by shard; empty if nobody answers.
    pub(crate) async fn leaders(&self) -> BTreeMap<ShardId, String> {
        let Ok(map) = self.admin.shard_map().await else { return BTreeMap::new() };
        let names = self.names.read();
        let leaders = map.shards.iter().filter_map(|(id, shard)| {
            let address = &map.nodes.get(&shard.leader?)?.address;
            Some((*id, names.get(address)?.clone()))
        });
        leaders.collect()
    }
}

fn part_of(map: &ShardMap, node: NodeId, addresses: &[String]) -> Option<Part> {
    let address = &map.nodes.get(&node)?.address;
    addresses.iter().position(|known| known == address)
}

fn admin(addresses: &[String]) -> Result<AdminClient, Error> {
    let options = Options {
        addresses: addresses[..COORDINATORS].to_vec(),
        connections: 1,
        deadline: Duration::from_secs(2),
        ..Options::default()
    };
    AdminClient::new(options).map_err(|error| Error::Address(error.to_string()))
}

/// A client of the gateways.
pub(crate) fn client(endpoints: &str, deadline: Duration) -> Result<Client, Error> {
    let options = Options { connections: 2, deadline, ..Options::to(endpoints) };
    Client::new(options).map_err(|error| Error::Address(error.to_string()))
}

/// What `/metrics` says.
async fn metrics(http: &str) -> Result<String, Error> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(http).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

fn won(metrics: &str) -> u64 {
    let name = "kvdb_raft_elections_won_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

async fn digest(address: &str, shard: ShardId) -> Result<(u64, u64), String> {
    let endpoint = kvdb_wire::transport::endpoint(address).map_err(|error| error.to_string())?;
    let mut client = NodeClient::new(endpoint.connect_lazy());
    let request = proto::NodeDigestRequest { shard_id: shard.0 };
    let asked = tokio::time::timeout(Duration::from_secs(10), client.digest(request)).await;
    let answer = asked.map_err(|_| format!("{address} gives no digest of shard {shard}"))?;
    let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
    Ok((answer.applied_index, answer.digest))
}

fn data_of(folder: &Path, part: Part) -> PathBuf {
    // Not the root of the file system: that has a `lost+found`.
    folder.join(name_of(part)).join("data")
}

fn arguments(
    part: Part,
    folder: &Path,
    listen: &str,
    http: &str,
    addresses: &[String],
) -> Vec<String> {
    let data = data_of(folder, part);
    if part < COORDINATORS {
        let peers = (1..).zip(&addresses[..COORDINATORS]);
        return coordinator_arguments(part + 1, peers, &data, listen, http);
    }
    if part < COORDINATORS + NODES {
        return node_arguments(&data, listen, http, &addresses[part], addresses);
    }
    let coordinators = addresses[..COORDINATORS].join(",");
    // Nobody speaks Redis to it: any port will do.
    let words = ["gateway", "--coordinators", &coordinators, "--redis", "127.0.0.1:0"];
    let rest = ["--listen", listen, "--http", http, "--network-threads", "2"];
    words.iter().chain(&rest).map(|word| (*word).to_owned()).collect()
}

fn coordinator_arguments<'a>(
    id: usize,
    peers: impl Iterator<Item = (usize, &'a String)>,
    data: &Path,
    listen: &str,
    http: &str,
) -> Vec<String> {
    let peers: Vec<_> = peers.map(|(id, address)| format!("{id}={address}")).collect();
    let (id, peers, data) = (id.to_string(), peers.join(","), data.display().to_string());
    let words = ["coordinator", "--id", &id, "--peers", &peers, "--data", &data];
    let rest = ["--listen", listen, "--http", http, "--network-threads", "2"];
    words.iter().chain(&rest).map(|word| (*word).to_owned()).collect()
}

fn node_arguments(
    data: &Path,
    listen: &str,
    http: &str,
    advertised: &str,
    addresses: &[String],
) -> Vec<String> {
    let (data, coordinators) = (data.display().to_string(), addresses[..COORDINATORS].join(","));
    let words = ["node", "--coordinators", &coordinators, "--data", &data];
    let rest = ["--advertise", advertised, "--listen", listen, "--http", http];
    let threads = ["--network-threads", "2"];
    words.iter().chain(&rest).chain(&threads).map(|word| (*word).to_owned()).collect()
}
