//! A cluster of real processes on free ports, for tests.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const KVDB: &str = env!("CARGO_BIN_EXE_kvdb");
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A part of a cluster.
pub struct Part {
    pub args: Vec<String>,
    pub log: std::path::PathBuf,
    pub child: Option<Child>,
}

impl Part {
    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(KVDB)
            .args(&self.args)
            .env(kvdb_runtime::clock::SHIFT_FILE, self.clock())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// A file that says by how many milliseconds its wall clock is wrong.
    pub fn clock(&self) -> std::path::PathBuf {
        self.log.with_extension("clock")
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// 3 coordinators, nodes and a gateway, as processes.
pub struct Cluster {
    pub coordinators: Vec<Part>,
    pub nodes: Vec<Part>,
    pub gateway: Part,
    pub endpoint: String,
    /// The coordinators', as `--coordinators` takes them.
    pub addresses: String,
    /// Where the gateway speaks the Redis protocol.
    pub redis: String,
    pub folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for part in self.parts() {
            part.kill();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
                if entry.path().extension().is_some_and(|kind| kind == "log") {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(15).collect();
                    eprintln!("--- {}", entry.path().display());
                    tail.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
    }
}

pub fn free_ports(count: usize) -> Vec<u16> {
    kvdb_torture::free_ports(count).unwrap()
}

impl Cluster {
    /// With three nodes.
    pub fn start() -> Self {
        Self::of(3)
    }

    pub fn of(nodes: usize) -> Self {
        Self::of_in(nodes, tempfile::tempdir().unwrap())
    }

    /// With three nodes, and all that they write in a folder.
    pub fn start_in(folder: tempfile::TempDir) -> Self {
        Self::of_in(3, folder)
    }

    pub fn of_in(nodes: usize, folder: tempfile::TempDir) -> Self {
        Self::start_with(nodes, folder, &[])
    }

    /// With more arguments for the coordinators.
    pub fn start_with(nodes: usize, folder: tempfile::TempDir, more: &[&str]) -> Self {
        let mut cluster = Self::prepare(nodes, folder, more);
        cluster.launch();
        cluster
    }

    /// Starts everything, and waits until a key can be written.
    pub fn launch(&mut self) {
        for part in self.parts() {
            part.start();
        }
        let nodes = self.nodes.len();
        self.until("shards are made", |cluster| {
            let status = cluster.json(&["admin", "status", "--json"]);
            status.is_some_and(|status| status["nodes"].to_string().contains(&nodes.to_string()))
                && cluster.kvdb(&["admin", "init-shards", "--shards", "4"]).status.success()
        });
        self.until("a key can be written", |cluster| {
            cluster.kvdb(&["put", "first", "1"]).status.success()
        });
    }

    /// Nothing of it runs yet.
    pub fn prepare(nodes: usize, folder: tempfile::TempDir, more: &[&str]) -> Self {
        let ports = free_ports(9 + 2 * nodes);
        let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
        let peers: Vec<_> = (0..3).map(|n| format!("{}={}", n + 1, address(n))).collect();
        let coordinators: Vec<_> = (0..3).map(address).collect();
        let part = |name: &str, args: Vec<String>, http: usize| {
            let mut args = args;
            args.extend(["--http".to_owned(), address(http)]);
            let log = folder.path().join(format!("{name}.log"));
            Part { args, log, child: None }
        };
        let data = |name: &str| folder.path().join(name).display().to_string();
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        Cluster {
            coordinators: (0..3)
                .map(|n| {
                    let (id, listen) = ((n + 1).to_string(), address(n));
                    let name = format!("c{id}");
                    let args = text(&[
                        "coordinator",
                        "--id",
                        &id,
                        "--listen",
                        &listen,
                        "--peers",
                        &peers.join(","),
                        "--data",
                        &data(&name),
                        // Nothing moves but what a test asks for.
                        "--rebalance",
                        "false",
                    ]);
                    let args = args.into_iter().chain(text(more)).collect();
                    part(&name, args, 3 + n)
                })
                .collect(),
            nodes: (0..nodes)
                .map(|n| {
                    let name = format!("n{}", n + 1);
                    let args = text(&[
                        "node",
                        "--listen",
                        &address(9 + n),
                        "--coordinators",
                        &coordinators.join(","),
                        "--data",
                        &data(&name),
                    ]);
                    part(&name, args, 9 + nodes + n)
                })
                .collect(),
            gateway: part(
                "gateway",
                text(&[
                    "gateway",
                    "--listen",
                    &address(6),
                    "--redis",
                    &address(8),
                    "--coordinators",
                    &coordinators.join(","),
                ]),
                7,
            ),
            endpoint: address(6),
            addresses: coordinators.join(","),
            redis: address(8),
            folder,
        }
    }

    /// Starts one more node, with an empty directory.
    pub fn add_node(&mut self, name: &str) {
        let ports = free_ports(2);
        let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
        let data = self.data_of(name).display().to_string();
        let words = ["node", "--listen", &address(0), "--http", &address(1)];
        let more = ["--coordinators", &self.addresses, "--data", &data];
        let args = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
        let log = self.folder.path().join(format!("{name}.log"));
        let mut node = Part { args, log, child: None };
        node.start();
        self.nodes.push(node);
    }

    /// Starts one more coordinator, with an empty directory; it waits until it is added. Returns
    /// where it listens.
    pub fn add_coordinator(&mut self, id: u64) -> String {
        let ports = free_ports(2);
        let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
        let name = format!("c{id}");
        let peers = |part: &Part| part.args[6].clone();
        let peers = format!("{},{id}={}", peers(&self.coordinators[0]), address(0));
        let data = self.data_of(&name).display().to_string();
        let words = ["coordinator", "--id", &id.to_string(), "--listen", &address(0)];
        let more =
            ["--peers", &peers, "--data", &data, "--rebalance", "false", "--http", &address(1)];
        let args = words.iter().chain(&more).map(|word| (*word).to_owned()).collect();
        let log = self.folder.path().join(format!("{name}.log"));
        let mut coordinator = Part { args, log, child: None };
        coordinator.start();
        self.coordinators.push(coordinator);
        address(0)
    }

    /// The data directory of a part.
    pub fn data_of(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn parts(&mut self) -> impl Iterator<Item = &mut Part> {
        self.coordinators.iter_mut().chain(&mut self.nodes).chain([&mut self.gateway])
    }

    pub fn kvdb(&self, args: &[&str]) -> Output {
        Command::new(KVDB).args(["--endpoint", &self.endpoint]).args(args).output().unwrap()
    }

    pub fn json(&self, args: &[&str]) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.kvdb(args).stdout).ok()
    }

    /// Asks again until it is so. The answer comes from other processes: there is no event to wait
    /// for but their answers.
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !is_so(self) {
            assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            std::thread::yield_now();
        }
    }

    pub fn get(&self, key: &str) -> String {
        let output = self.kvdb(&["get", key]);
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

/// What a process tells at `/metrics`.
pub fn metrics(part: &Part) -> String {
    use std::io::{Read, Write};
    let address = part.args.last().unwrap();
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
