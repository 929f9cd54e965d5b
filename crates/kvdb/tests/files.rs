//! Limits of open files: what a process does with them, and whom it refuses.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{Cluster, KVDB, PATIENCE, free_ports};

/// Starts `kvdb` under limits of open files.
fn limited(soft: u32, hard: u32, args: &[&str]) -> Child {
    let script = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$@\"");
    Command::new("bash")
        .args(["-c", &script, "bash", KVDB])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A gateway that is killed when it is dropped.
struct Gateway {
    child: Child,
    grpc: String,
    redis: String,
    http: String,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Gateway {
    fn start(cluster: &Cluster, soft: u32, hard: u32) -> Self {
        let ports = free_ports(3);
        let [grpc, redis, http] = [0, 1, 2].map(|place| format!("127.0.0.1:{}", ports[place]));
        let args = ["gateway", "--listen", &grpc, "--redis", &redis, "--http", &http];
        let args = [&args[..], &["--coordinators", &cluster.addresses]].concat();
        let gateway = Gateway { child: limited(soft, hard, &args), grpc, redis, http };
        cluster.until("the gateway serves", |_| gateway.get().0);
        gateway
    }

    fn get(&self) -> (bool, String) {
        let args = ["--endpoint", &self.grpc, "--timeout-ms", "2000", "get", "first"];
        let output = Command::new(KVDB).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn redis(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.redis).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

fn ping(stream: &mut TcpStream) -> String {
    let _ = stream.write_all(b"PING\r\n");
    let mut answer = [0; 64];
    let count = stream.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[test]
fn beyond_its_files_a_gateway_refuses_with_an_answer_and_serves_on() {
    let cluster = Cluster::of(1);
    let gateway = Gateway::start(&cluster, 100, 700);
    let limits = format!("/proc/{}/limits", gateway.child.id());
    let limits = std::fs::read_to_string(limits).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
    assert_eq!(files, ["700", "700"], "the soft limit is raised to the hard one");

    // 256 are kept for what the gateway itself needs.
    let mut clients = Vec::new();
    let refused = loop {
        let mut client = gateway.redis();
        let answer = ping(&mut client);
        if answer != "+PONG\r\n" {
            break answer;
        }
        clients.push(client);
        assert!(clients.len() <= 444, "more are taken than there is room for");
    };
    assert_eq!(refused, "-ERR max number of clients reached\r\n");
    assert!(clients.len() > 400, "only {} were taken", clients.len());
    let (is_served, said) = gateway.get();
    assert!(!is_served && said.contains("too many connections"), "{said}");
    let mut health = TcpStream::connect(&gateway.http).unwrap();
    health.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    health.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("200 OK"), "metrics and health have files of their own: {answer}");

    // Those that were taken go on, through connections to nodes.
    let last = clients.last_mut().unwrap();
    last.write_all(b"SET k v\r\n").unwrap();
    // The answer to the ping may come with it.
    assert!(ping(last).starts_with("+OK\r\n"));
    clients.truncate(10);
    cluster.until("there is room again", |_| gateway.get().0);
}

#[test]
fn too_low_a_limit_is_refused_at_the_start_with_the_number_that_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let gateway = ["gateway", "--coordinators", "127.0.0.1:1"];
    let node = ["node", "--coordinators", "127.0.0.1:1", "--data", &data];
    for (args, needed) in [(&gateway[..], "512"), (&node, "1024")] {
        let mut child = limited(100, 300, args);
        let began = std::time::Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "it starts");
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert!(said.contains("300") && said.contains(needed), "{said}");
    }
}
