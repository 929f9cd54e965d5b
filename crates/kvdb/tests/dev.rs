//! How `kvdb dev` begins and ends, and what a first start says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Cluster, KVDB};

/// `kvdb dev --temporary`, told that it is ready, with its files in a folder.
struct Dev {
    child: Child,
    endpoint: String,
    said: String,
}

impl Dev {
    fn start(folder: &Path, more: &[&str]) -> Self {
        // Somebody else may take one of the ports meanwhile.
        for _ in 0..20 {
            let offset = kvdb_torture::free_offset().unwrap();
            let port = 7400 + offset;
            let mut child = Command::new(KVDB)
                .env("TMPDIR", folder)
                .args(["dev", "--log", "info", "--port-offset", &offset.to_string()])
                .args(more)
                .stdout(Stdio::piped())
                .stderr(std::fs::File::create(folder.join("log")).unwrap())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut said = String::new();
            while let Some(Ok(line)) = lines.next() {
                said.push_str(&format!("{line}\n"));
                if line.starts_with("Note:") {
                    return Dev { child, endpoint: format!("127.0.0.1:{port}"), said };
                }
            }
            child.wait().unwrap();
        }
        panic!("{}", std::fs::read_to_string(folder.join("log")).unwrap());
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is left of temporary directories.
fn left(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.filter(|entry| entry.file_name() != "log").count()
}

#[test]
fn it_stops_within_a_second_says_no_warning_and_leaves_nothing() {
    let mut fastest = Duration::MAX;
    // A machine that is busy with other things may take longer now and then.
    for _ in 0..4 {
        let folder = tempfile::tempdir().unwrap();
        let mut dev = Dev::start(folder.path(), &["--temporary"]);
        assert!(dev.said.contains("gateway       gRPC 127.0.0.1:"), "{}", dev.said);
        assert_eq!(left(folder.path()), 1);
        let put = ["--endpoint", &dev.endpoint, "put", "k", "v"];
        assert!(Command::new(KVDB).args(put).status().unwrap().success());
        // A client that stays must not hold it up.
        let mut watch = Command::new(KVDB)
            .args(["--endpoint", &dev.endpoint, "watch", "--key", "k", "--progress"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        watch.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let begun = Instant::now();
        dev.signal("-INT");
        assert!(dev.child.wait().unwrap().success());
        fastest = fastest.min(begun.elapsed());
        watch.kill().unwrap();
        watch.wait().unwrap();
        assert_eq!(left(folder.path()), 0);
        let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        if fastest < Duration::from_secs(1) {
            return;
        }
    }
    panic!("the fastest stop took {fastest:?}");
}

#[test]
fn a_second_signal_removes_the_temporary_directory_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(folder.path(), &["--temporary"]);
    // Two different ones: two of a kind may count as one.
    dev.signal("-INT");
    dev.signal("-TERM");
    let code = dev.child.wait().unwrap().code();
    // It may have been done with stopping before the second came.
    assert!(matches!(code, Some(130 | 0)), "{code:?}");
    assert_eq!(left(folder.path()), 0);
}

#[test]
fn folders_have_the_numbers_of_their_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let dev = Dev::start(folder.path(), &["--nodes", "4", "--data", data.to_str().unwrap()]);
    let nodes = Command::new(KVDB)
        .args(["--endpoint", &dev.endpoint, "admin", "nodes", "--json"])
        .output()
        .unwrap();
    let nodes: serde_json::Value = serde_json::from_slice(&nodes.stdout).unwrap();
    let offset = dev.endpoint.rsplit(':').next().unwrap().parse::<u64>().unwrap() - 7400;
    for node in nodes["nodes"].as_array().unwrap() {
        // Each directory's node listens on the port of its number.
        let id = node["node_id"].as_u64().unwrap();
        assert_eq!(node["address"], format!("127.0.0.1:{}", 7200 + offset + id));
        assert!(data.join(format!("node-{id}/IDENTITY")).exists());
    }
    assert_eq!(std::fs::read_to_string(data.join(".gitignore")).unwrap(), "*\n");
}

#[test]
fn a_first_start_is_told_in_few_lines_and_takes_little_room() {
    let mut cluster = Cluster::start();
    for name in ["c1", "c2", "c3", "n1", "n2", "n3", "gateway"] {
        let log =
            std::fs::read_to_string(cluster.folder.path().join(format!("{name}.log"))).unwrap();
        assert!(log.lines().count() < 20, "{name}: {log}");
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{name}: {log}");
    }
    let taken = Command::new("du").arg("-sk").arg(cluster.folder.path()).output().unwrap();
    let taken = String::from_utf8(taken.stdout).unwrap();
    let kib: u64 = taken.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 100 * 1024, "{kib} KiB");
    let memory_kib: u64 =
        cluster.parts().map(|part| own_memory_kib(part.child.as_ref().unwrap().id())).sum();
    assert!(memory_kib < 150 * 1024, "{memory_kib} KiB");
}

/// Of a process, without what it shares with others: its program.
fn own_memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
