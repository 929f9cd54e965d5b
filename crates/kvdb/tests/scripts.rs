//! What the scripts beside the binary do without it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::path::Path;
use std::process::Command;

#[test]
fn a_binary_of_another_name_is_refused_rather_than_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("kvdb-renamed");
    std::fs::copy("/bin/true", &binary).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/cluster.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg("start").env("KVDB_BIN", &binary);
    command.env("KVDB_CLUSTER_DATA", folder.path().join("data"));
    let output = command.env("KVDB_CLUSTER_LOGS", folder.path().join("logs")).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && words.contains("must be named kvdb"), "{words}");
}

#[test]
fn a_binary_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/size_check.sh");
    for (mib, is_fine) in [(30, true), (31, false)] {
        let binary = folder.path().join("kvdb");
        std::fs::File::create(&binary).unwrap().set_len(mib << 20).unwrap();
        let output = Command::new("bash").arg(&script).env("KVDB_BIN", &binary).output().unwrap();
        assert_eq!(output.status.success(), is_fine, "{output:?}");
    }
}

#[test]
fn package_sources_are_those_that_the_machine_has_packages_from() {
    let folder = tempfile::tempdir().unwrap();
    let parts = folder.path().join("sources.list.d");
    std::fs::create_dir(&parts).unwrap();
    std::fs::write(
        folder.path().join("sources.list"),
        "# deb http://a/ old main\ndeb http://mirror.example/debian bookworm main\n",
    )
    .unwrap();
    std::fs::write(parts.join("more.list"), "deb [arch=amd64] http://b.example x y\n").unwrap();
    let stanza = "Types: deb\nURIs: http://c.example/debian\nSuites: s\nComponents: main\n";
    std::fs::write(parts.join("new.sources"), stanza).unwrap();
    std::fs::write(parts.join("off.list.disabled"), "deb http://d.example x y\n").unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/redis_suite.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg("list-sources").env("APT_ETC", folder.path());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let expected = "deb-src http://mirror.example/debian bookworm main\n\
                    deb-src [arch=amd64] http://b.example x y\n\
                    Types: deb-src\nURIs: http://c.example/debian\nSuites: s\nComponents: main\n";
    assert_eq!(text, expected);
}

/// A cluster that `scripts/cluster.sh` runs.
struct Processes {
    folder: tempfile::TempDir,
    offset: u16,
}

impl Processes {
    fn run(&self, script: &str, words: &[&str]) -> (bool, String) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
        let mut command = Command::new("bash");
        command.arg(root.join(script)).args(words).env("KVDB_BIN", env!("CARGO_BIN_EXE_kvdb"));
        command.env("KVDB_CLUSTER_DATA", self.folder.path().join("data"));
        command.env("KVDB_CLUSTER_LOGS", self.folder.path().join("logs"));
        let output = command.env("PORT_OFFSET", self.offset.to_string()).output().unwrap();
        let words = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(words).unwrap())
    }

    fn nodes(&self) -> serde_json::Value {
        let endpoint = format!("127.0.0.1:{}", 7400 + self.offset);
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvdb"));
        command.args(["--endpoint", &endpoint, "admin", "nodes", "--json"]);
        serde_json::from_slice(&command.output().unwrap().stdout).unwrap()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.run("cluster.sh", &["stop"]);
    }
}

#[test]
fn a_cluster_of_processes_says_how_to_use_it_comes_back_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Processes { folder, offset: kvdb_torture::free_offset().unwrap() };
    let (is_fine, words) = cluster.run("cluster.sh", &["start"]);
    assert!(is_fine, "{words}");
    for port in [7400, 7379, 7480, 7101, 7103, 7183, 7201, 7203, 7283] {
        assert!(words.contains(&(port + cluster.offset).to_string()), "{port}: {words}");
    }
    for part in ["set greeting hello", "redis-cli -p", " status", "make stop-cluster"] {
        assert!(words.contains(part), "{part}: {words}");
    }
    // The node of a folder has its number, and the port of that number.
    let nodes = cluster.nodes();
    let nodes = nodes["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 3);
    for node in nodes {
        let id = node["node_id"].as_u64().unwrap();
        let address = format!("127.0.0.1:{}", 7200 + u64::from(cluster.offset) + id);
        assert_eq!(node["address"], address);
    }
    let smoke = cluster.run("smoke.sh", &[]);
    assert!(smoke.0, "{}", smoke.1);
    let pid = std::fs::read_to_string(cluster.folder.path().join("data/run/node-1.pid")).unwrap();
    assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    assert!(cluster.run("cluster.sh", &["start"]).0, "it comes back");
    let (is_fine, words) = cluster.run("cluster.sh", &["start"]);
    assert!(is_fine && words.starts_with("The cluster is up."), "{words}");
    let (is_fine, words) = cluster.run("cluster.sh", &["wipe"]);
    assert!(is_fine && words.contains("stopped"), "{words}");
    assert!(!cluster.folder.path().join("data").exists());
}
