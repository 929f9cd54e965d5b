//! A gateway under a crowd of Redis clients that want its memory: it stays within 512 MiB.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use support::{Cluster, PATIENCE};

/// With what the test itself needs, just within a gateway's limit of 10,000.
const IDLE: usize = 5000;
const HALF_OPEN: usize = 4800;
const SLOW_READERS: usize = 80;
const DECLARERS: usize = 100;
const PIPELINES: usize = 20;
const MEMORY_KIB: u64 = 512 << 10;

struct Crowd {
    address: String,
    process: u32,
}

impl Crowd {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn memory_kib(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process)).unwrap();
        let value = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
        value.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }
}

fn ask(stream: &mut TcpStream, request: &[u8], expected: &[u8]) {
    stream.write_all(request).unwrap();
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), String::from_utf8_lossy(expected));
}

fn set(stream: &mut TcpStream, key: &str, value: &[u8]) {
    let head = format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), value.len());
    ask(stream, &[head.as_bytes(), value, b"\r\n"].concat(), b"+OK\r\n");
}

#[test]
fn ten_thousand_idle_and_bad_redis_clients_leave_a_gateway_within_512_mib() {
    let needed = 12_000;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < needed) {
        eprintln!("skipped: 10,000 connections take {needed} open files; this user may have fewer");
        return;
    }
    let current = limit.current.map(|current| current.max(needed));
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    // The gateway inherits the limit.
    let mut cluster = Cluster::start();
    let process = cluster.gateway.child.as_ref().unwrap().id();
    let crowd = Crowd { address: cluster.redis.clone(), process };
    let mut good = crowd.connect();
    set(&mut good, "k", b"v");
    set(&mut good, "large", &vec![b'v'; 1 << 20]);
    set(&mut good, "medium", &vec![b'v'; 100 << 10]);

    let before = crowd.memory_kib("VmRSS");
    let idle: Vec<_> = (0..IDLE).map(|_| crowd.connect()).collect();
    ask(&mut good, b"get k\r\n", b"$1\r\nv\r\n");
    let with_idle = crowd.memory_kib("VmRSS");
    let mut half_open = Vec::new();
    for _ in 0..HALF_OPEN {
        let mut stream = crowd.connect();
        // The rest never comes.
        stream.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000\r\nhalf of it").unwrap();
        half_open.push(stream);
    }
    ask(&mut good, b"get k\r\n", b"$1\r\nv\r\n");
    let with_half_open = crowd.memory_kib("VmRSS");

    // 512 MiB declared, as one value and as many arguments, with a little of it sent.
    let mut declarers = Vec::new();
    for turn in 0..DECLARERS {
        let mut stream = crowd.connect();
        let declared: &[u8] = match turn % 3 {
            0 => b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\nvvvv",
            1 => b"*1048576\r\n$3\r\nDEL\r\n$1\r\nk\r\n",
            _ => b"*2\r\n$536870912\r\nvvvv",
        };
        // It may be closed already.
        let _ = stream.write_all(declared);
        declarers.push(stream);
    }
    ask(&mut good, b"get k\r\n", b"$1\r\nv\r\n");
    let with_declarers = crowd.memory_kib("VmRSS");

    // Answers of 200 MiB each are asked for and not read.
    let slow: Vec<_> = (0..SLOW_READERS)
        .map(|_| {
            let mut stream = crowd.connect();
            stream.write_all("get medium\r\n".repeat(2000).as_bytes()).unwrap();
            stream
        })
        .collect();
    for _ in 0..50 {
        ask(&mut good, b"get k\r\n", b"$1\r\nv\r\n");
    }
    let with_slow = crowd.memory_kib("VmRSS");
    let each_slow = with_slow.saturating_sub(with_declarers) / SLOW_READERS as u64;

    // Deep pipelines, of which some are read and some are not.
    let mut pipelines: Vec<_> = (0..PIPELINES).map(|_| crowd.connect()).collect();
    for stream in &mut pipelines {
        stream.write_all("set p 1\r\nincr n\r\nget k\r\n".repeat(2000).as_bytes()).unwrap();
    }
    let mut greedy = crowd.connect();
    greedy.write_all("get large\r\n".repeat(2000).as_bytes()).unwrap();
    for stream in &mut pipelines[..PIPELINES / 2] {
        let mut answers = Vec::new();
        let mut some = [0; 16 << 10];
        while answers.windows(3).filter(|part| part == b"\nv\r").count() < 2000 {
            let count = stream.read(&mut some).unwrap();
            assert!(count > 0, "it was closed");
            answers.extend_from_slice(&some[..count]);
        }
    }
    ask(&mut good, b"get k\r\n", b"$1\r\nv\r\n");
    let peak = crowd.memory_kib("VmHWM");
    println!(
        "resident KiB: {before} before; idle connections {:.1} each, half-open {:.1} each; declarers {} \
         together; slow readers {each_slow} each; peak {peak}",
        with_idle.saturating_sub(before) as f64 / IDLE as f64,
        with_half_open.saturating_sub(with_idle) as f64 / HALF_OPEN as f64,
        with_declarers.saturating_sub(with_half_open),
    );
    // The commands of a wave, and what is held of their answers.
    assert!(each_slow <= 1024, "a slow reader takes {each_slow} KiB");
    assert!(peak < MEMORY_KIB, "the gateway took {peak} KiB");
    drop((declarers, slow));
    ask(&mut good, b"get k\r\n", b"$1\r\nv\r\n");
    // The gateway ends first: whoever closes first keeps the port for a minute, and here that would be
    // thousands of those that others look for free ones among.
    cluster.gateway.kill();
    drop((idle, half_open));
}
