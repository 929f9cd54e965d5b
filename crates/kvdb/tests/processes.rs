//! Real processes on free ports: killed, restarted, and asked what they remember.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Cluster, KVDB, PATIENCE, Part, free_ports};

fn write_rows(path: &Path, tag: &str, count: usize) -> Vec<String> {
    let rows: Vec<String> =
        (0..count).map(|n| format!("{tag}-{n:06}\tvalue {n} of {tag}")).collect();
    std::fs::write(path, rows.join("\n") + "\n").unwrap();
    rows
}

#[test]
fn what_was_acknowledged_survives_the_death_of_every_process() {
    let mut cluster = Cluster::start();
    let first = cluster.folder.path().join("first.tsv");
    let mut rows = write_rows(&first, "first", 20_000);
    let imported = cluster.kvdb(&["import", first.to_str().unwrap()]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));

    // In the middle of a second import everything dies at once.
    let second = cluster.folder.path().join("second.tsv");
    write_rows(&second, "second", 200_000);
    let import = Command::new(KVDB)
        .args(["--endpoint", &cluster.endpoint, "import", second.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut import = import.unwrap();
    cluster.until("the second import is under way", |cluster| {
        !cluster.get("second-000100").is_empty()
    });
    for part in cluster.parts() {
        part.kill();
    }
    import.kill().unwrap();
    import.wait().unwrap();

    for part in cluster.parts() {
        part.start();
    }
    cluster
        .until("it serves again", |cluster| cluster.kvdb(&["put", "again", "1"]).status.success());
    assert_eq!(cluster.get("second-000100"), "value 100 of second");
    let copy = cluster.folder.path().join("copy.tsv");
    let exported = cluster.kvdb(&["export", "--prefix", "first-", copy.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let text = std::fs::read_to_string(&copy).unwrap();
    let mut found: Vec<String> = text.lines().map(str::to_owned).collect();
    found.sort();
    rows.sort();
    assert_eq!(found.len(), rows.len());
    assert!(found == rows, "the export differs from what was imported");
}

#[test]
fn one_node_and_one_coordinator_may_die_and_catch_up_when_they_return() {
    let mut cluster = Cluster::start();
    cluster.nodes[0].kill();
    cluster.coordinators[0].kill();
    cluster.until("writes go on", |cluster| {
        (0..40).all(|n| cluster.kvdb(&["put", &format!("k{n}"), &format!("v{n}")]).status.success())
    });
    assert!((0..40).all(|n| cluster.get(&format!("k{n}")) == format!("v{n}")));

    cluster.nodes[0].start();
    cluster.coordinators[0].start();
    cluster.until("all replicas hold the same", digests_agree);
}

/// Whether every shard's replicas answer with the same digest at the same applied index.
fn digests_agree(cluster: &Cluster) -> bool {
    use kvdb_wire::proto;
    use kvdb_wire::proto::coordinator_client::CoordinatorClient;
    use kvdb_wire::proto::node_client::NodeClient;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connect =
            |address: &str| kvdb_wire::transport::endpoint(address).unwrap().connect_lazy();
        let mut client = CoordinatorClient::new(connect(&cluster.endpoint));
        let Ok(answer) = client.get_shard_map(proto::GetShardMapRequest::default()).await else {
            return false;
        };
        let map = answer.into_inner().map.unwrap();
        for shard in &map.shards {
            let descriptor = shard.descriptor.as_ref().unwrap();
            let mut digests = Vec::new();
            for replica in &descriptor.replicas {
                let node = map.nodes.iter().find(|node| node.node_id == replica.node_id).unwrap();
                let mut client = NodeClient::new(connect(&node.address));
                let request = proto::NodeDigestRequest { shard_id: descriptor.shard_id };
                let Ok(answer) = client.digest(request).await else { return false };
                let answer = answer.into_inner();
                digests.push((answer.applied_index, answer.digest));
            }
            if digests.windows(2).any(|pair| pair[0] != pair[1]) {
                return false;
            }
        }
        !map.shards.is_empty()
    })
}

#[test]
fn a_process_that_cannot_start_says_why_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let run = |args: &[&str]| {
        let output = Command::new(KVDB).args(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
    let held = TcpListener::bind(address(0)).unwrap();
    let taken = run(&["gateway", "--listen", &address(0), "--coordinators", "127.0.0.1:1"]);
    assert!(taken.contains("the port is in use") && taken.contains(&address(0)), "{taken}");
    drop(held);

    let missing = run(&["node", "--data", folder.path().to_str().unwrap()]);
    assert!(missing.contains("--coordinators is missing"), "{missing}");

    let deaf = ["gateway", "--listen", "off", "--redis", "off", "--coordinators", "127.0.0.1:1"];
    let deaf = run(&deaf);
    assert!(deaf.contains("--listen and --redis are both off"), "{deaf}");

    std::fs::write(folder.path().join("precious.txt"), "mine").unwrap();
    let foreign = run(&[
        "coordinator",
        "--id",
        "1",
        "--listen",
        &address(0),
        "--http",
        &address(1),
        "--peers",
        &format!("1={}", address(0)),
        "--data",
        folder.path().to_str().unwrap(),
    ]);
    assert!(foreign.contains("holds no KvDB data"), "{foreign}");
    assert_eq!(std::fs::read_to_string(folder.path().join("precious.txt")).unwrap(), "mine");
}

#[test]
fn a_gateway_that_has_heard_from_nobody_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let ports = free_ports(3);
    let address = |place: usize| format!("127.0.0.1:{}", ports[place]);
    let args =
        ["gateway", "--listen", &address(0), "--coordinators", &address(1), "--http", &address(2)];
    let args = args.map(str::to_owned).to_vec();
    let mut gateway = Part { args, log: folder.path().join("gateway.log"), child: None };
    gateway.start();
    let get = || {
        let output = Command::new(KVDB)
            .args(["--endpoint", &address(0), "get", "k", "--timeout-ms", "2000"])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let start = Instant::now();
    let mut told = get();
    while !told.1.contains("has no shard map from the coordinators") {
        assert_eq!(told.0, Some(4), "{}", told.1);
        assert!(start.elapsed() < PATIENCE, "{}", told.1);
        told = get();
    }
    assert_eq!(told.0, Some(4), "{}", told.1);
    // Its own log names whom it can't reach.
    while !std::fs::read_to_string(&gateway.log).unwrap().contains(&address(1)) {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    gateway.kill();
}

#[test]
fn a_gateway_leaves_out_listeners_that_are_off_and_says_that_nothing_is_protected() {
    let folder = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let start = |name: &str, listeners: &[&str]| {
        let args = ["gateway", "--coordinators", &format!("127.0.0.1:{}", ports[1])];
        let args = args.iter().chain(listeners).map(|word| (*word).to_owned()).collect();
        let log = folder.path().join(format!("{name}.log"));
        let mut gateway = Part { args, log, child: None };
        gateway.start();
        gateway
    };
    let told = |mut gateway: Part| {
        let start = Instant::now();
        let read = || std::fs::read_to_string(&gateway.log).unwrap();
        while !read().contains("gateway runs") {
            assert!(start.elapsed() < PATIENCE, "{}", read());
            std::thread::yield_now();
        }
        let told = read();
        gateway.kill();
        told
    };
    // The usual ports of Redis and HTTP may well be taken: nobody asks for them.
    let private = format!("127.0.0.1:{}", ports[0]);
    let told_of_private =
        told(start("private", &["--listen", &private, "--redis", "off", "--http", "off"]));
    assert!(
        told_of_private.contains("no authentication and no encryption yet"),
        "{told_of_private}"
    );
    assert!(told_of_private.contains("redis=\"off\" http=\"off\""), "{told_of_private}");
    assert!(!told_of_private.contains("WARN kvdb_runtime::listen"), "{told_of_private}");

    let public = format!("0.0.0.0:{}", ports[0]);
    let told_of_public =
        told(start("public", &["--listen", "off", "--redis", &public, "--http", "off"]));
    let warning = format!("the Redis listener on {public} can be reached from other machines");
    assert!(told_of_public.contains(&warning), "{told_of_public}");
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The first segment of the log in a data directory.
fn first_segment(data: &Path) -> std::path::PathBuf {
    let mut segments: Vec<_> = std::fs::read_dir(data.join("wal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "wal"))
        .collect();
    segments.sort();
    segments.remove(0)
}

impl Part {
    /// Runs it until it ends by itself, and returns its exit code and what it said.
    fn run_to_its_end(&self) -> (Option<i32>, String) {
        let output = Command::new(KVDB).args(&self.args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    }
}

#[test]
fn a_node_that_has_lost_a_part_of_its_promises_never_comes_back() {
    let mut cluster = Cluster::start();
    cluster.until("keys are written", |cluster| {
        (0..20).all(|n| cluster.kvdb(&["put", &format!("k{n}"), "v"]).status.success())
    });
    cluster.nodes[0].kill();
    let data = cluster.folder.path().join("n1");
    let whole = cluster.folder.path().join("n1.whole");
    copy(&data, &whole);
    let fresh = || {
        std::fs::remove_dir_all(&data).unwrap();
        copy(&whole, &data);
    };
    type Harm<'a> = &'a dyn Fn();
    let harms: [(&str, Harm<'_>, &str); 5] = [
        ("its log is gone", &|| std::fs::remove_dir_all(data.join("wal")).unwrap(), "log is gone"),
        (
            "its log is cut off",
            &|| {
                let file = std::fs::File::options().write(true).open(first_segment(&data)).unwrap();
                file.set_len(400).unwrap();
            },
            "is damaged at offset 400",
        ),
        (
            "its log is empty",
            &|| std::fs::write(first_segment(&data), "").unwrap(),
            "is damaged at offset 0",
        ),
        (
            "its log is damaged in the middle",
            &|| {
                let segment = first_segment(&data);
                let mut content = std::fs::read(&segment).unwrap();
                content[600] ^= 1;
                std::fs::write(&segment, content).unwrap();
            },
            "was synced and is unreadable",
        ),
        (
            "its directory is of another cluster",
            &|| {
                let identity = data.join("IDENTITY");
                let mut content = std::fs::read(&identity).unwrap();
                content[20] ^= 1;
                let crc = crc32c::crc32c(&content[16..]);
                content[12..16].copy_from_slice(&crc.to_le_bytes());
                std::fs::write(&identity, content).unwrap();
            },
            "this is cluster",
        ),
    ];
    for (name, harm, expected) in harms {
        fresh();
        harm();
        let (code, said) = cluster.nodes[0].run_to_its_end();
        assert_eq!(code, Some(4), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
    // The others have served all along, and the node is well with what it had.
    assert_eq!(cluster.get("k7"), "v");
    fresh();
    cluster.nodes[0].start();
    cluster.until("all replicas hold the same", digests_agree);
}

#[test]
fn a_node_with_an_emptied_directory_is_a_new_one_and_the_old_one_never_comes_back() {
    let mut cluster = Cluster::start();
    let nodes = |cluster: &Cluster| -> Vec<(u64, String, String)> {
        let shown = cluster.json(&["admin", "nodes", "--json"]).unwrap_or_default();
        let text = |node: &serde_json::Value, name: &str| node[name].as_str().unwrap().to_owned();
        let shown = shown["nodes"].as_array().cloned().unwrap_or_default();
        let of = |node: &serde_json::Value| {
            (node["node_id"].as_u64().unwrap(), text(node, "address"), text(node, "status"))
        };
        shown.iter().map(of).collect()
    };
    let address = cluster.nodes[0].args[2].clone();
    let before = nodes(&cluster);
    let (old, ..) = before.iter().find(|(_, at, _)| *at == address).unwrap().clone();
    cluster.nodes[0].kill();
    let data = cluster.folder.path().join("n1");
    std::fs::remove_dir_all(&data).unwrap();
    cluster.nodes[0].start();
    // It has promised nothing, and gets an id of its own.
    cluster.until("a new node is there", |cluster| {
        nodes(cluster).iter().any(|(id, at, status)| {
            *at == address && before.iter().all(|(known, ..)| known != id) && status == "ALIVE"
        })
    });
    cluster.until("the old one is given up", |cluster| {
        nodes(cluster).iter().any(|(id, at, status)| {
            *id == old && *at != address && (status == "DEAD" || status == "UNREACHABLE")
        })
    });
    assert_eq!(cluster.get("first"), "1");
}

#[test]
fn shards_whose_majority_is_damaged_serve_nothing_and_say_what_can_be_done() {
    let mut cluster = Cluster::start();
    cluster.until("keys are written", |cluster| {
        (0..20).all(|n| cluster.kvdb(&["put", &format!("k{n}"), "v"]).status.success())
    });
    for place in [0, 1] {
        cluster.nodes[place].kill();
        let segment = first_segment(&cluster.folder.path().join(format!("n{}", place + 1)));
        let mut content = std::fs::read(&segment).unwrap();
        content[600] ^= 1;
        std::fs::write(&segment, content).unwrap();
        let (code, said) = cluster.nodes[place].run_to_its_end();
        assert_eq!(code, Some(4), "{said}");
        assert!(said.contains("must not vote again") && said.contains("replace"), "{said}");
    }
    cluster.until("both are given up", |cluster| {
        let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap_or_default();
        nodes.to_string().matches("DEAD").count() == 2
    });
    // The third alone can't know what the others had acknowledged.
    for command in [vec!["get", "k1"], vec!["put", "k1", "w"]] {
        let refused = cluster.kvdb(&command);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(matches!(refused.status.code(), Some(4 | 5)), "{command:?}: {words}");
        assert!(refused.stdout.is_empty(), "{command:?}: {refused:?}");
    }
    let told = cluster.kvdb(&["admin", "status"]);
    let words = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(words.contains("Without a majority") && words.contains("force-recover"), "{words}");
}

#[test]
fn a_node_whose_data_is_damaged_heals_from_the_others() {
    let mut cluster = Cluster::start();
    let rows = cluster.folder.path().join("rows.tsv");
    write_rows(&rows, "row", 5_000);
    assert!(cluster.kvdb(&["import", rows.to_str().unwrap()]).status.success());
    let engine = cluster.folder.path().join("n1/engine/volumes");
    // A graceful end flushes nothing: what matters is that some table is there, and one always is.
    cluster.nodes[0].kill();
    let mut harmed = 0;
    for volume in std::fs::read_dir(&engine).unwrap().flatten() {
        for table in std::fs::read_dir(volume.path().join("tables")).unwrap().flatten() {
            let mut content = std::fs::read(table.path()).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 0xff;
            std::fs::write(table.path(), content).unwrap();
            harmed += 1;
        }
        if harmed == 0 {
            std::fs::remove_file(volume.path().join("current")).unwrap();
            harmed += 1;
        }
    }
    assert!(harmed > 0);
    // Where the damage shows only while it runs it stops by name; the next start leaves the volume
    // aside.
    let log = cluster.nodes[0].log.clone();
    cluster.nodes[0].start();
    let start = Instant::now();
    while !digests_agree(&cluster) {
        assert!(start.elapsed() < PATIENCE, "it doesn't heal");
        let child = cluster.nodes[0].child.as_mut().unwrap();
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(70));
            let said = std::fs::read_to_string(&log).unwrap();
            assert!(said.contains("is damaged"), "{said}");
            cluster.nodes[0].start();
        }
    }
    assert_eq!(cluster.get("row-000123"), "value 123 of row");
}

#[test]
fn a_gateway_that_is_full_refuses_and_whoever_comes_again_is_served() {
    let mut cluster = Cluster::start();
    cluster.gateway.kill();
    let most = ["--max-requests".to_owned(), "32".to_owned()];
    cluster.gateway.args.splice(1..1, most);
    cluster.gateway.start();
    cluster.until("the gateway is back", |cluster| !cluster.get("first").is_empty());

    let bench = ["bench", "--mode", "put", "--clients", "64", "--requests", "2000", "--json"];
    let report = cluster.json(&bench).unwrap();
    assert_eq!(report["errors"], 0, "{report}");
    let metrics = support::metrics(&cluster.gateway);
    let refused = "kvdb_requests_total{method=\"put\",result=\"OVERLOADED\"} ";
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused));
    let refused: u64 = refused.expect("64 requests don't fit into 32").parse().unwrap();
    assert!(refused > 0);
}

/// A file system of its own in memory, as long as it is mounted.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "kvdb-test"]).arg(folder);
        let mounted = mount.stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(folder.to_owned()))
    }

    /// Leaves no room at all.
    fn fill(&self) {
        use rustix::fs::{FallocateFlags, fallocate};
        let filler = std::fs::File::create(self.0.join("filler")).unwrap();
        let (mut offset, mut length) = (0, 16u64 << 20);
        while length >= 4096 {
            match fallocate(&filler, FallocateFlags::empty(), offset, length) {
                Ok(()) => offset += length,
                Err(rustix::io::Errno::NOSPC) => length /= 2,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Nobody may die of it: all seven processes share the full disk.
#[test]
fn on_a_full_disk_reads_and_deletes_go_on_and_writes_resume_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(folder.path(), "1200m") else {
        eprintln!("skipped: mounting a small file system takes root");
        return;
    };
    let mut cluster = Cluster::start_in(tempfile::tempdir_in(&disk.0).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(async {
        kvdb_client::Client::new(kvdb_client::Options::to(&cluster.endpoint)).unwrap()
    });
    let put = |key: String, value: &str| {
        let value = bytes::Bytes::from(value.to_owned());
        runtime.block_on(client.put(bytes::Bytes::from(key), value))
    };
    let get = |key: String| runtime.block_on(client.get(bytes::Bytes::from(key))).unwrap();
    for number in 0..200 {
        put(format!("key{number}"), "before").unwrap();
    }
    disk.fill();
    let is_full = |error: &kvdb_client::Error| {
        matches!(error.refusal(), Some(kvdb_model::Refusal::DiskFull { .. }))
    };
    cluster.until("writes are refused", |_| match put("late".to_owned(), "x") {
        Ok(_) => false,
        Err(error) => is_full(&error) || panic!("{error}"),
    });
    // Every shard refuses, at once.
    let mut longest = Duration::ZERO;
    for number in 0..200 {
        let begun = Instant::now();
        let refused = put(format!("key{number}"), "after").unwrap_err();
        longest = longest.max(begun.elapsed());
        assert!(is_full(&refused), "{refused}");
    }
    println!("the slowest refusal took {longest:?}");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let told = cluster.kvdb(&["put", "key1", "after"]);
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.code() == Some(4) && words.contains("no room"), "{words}");
    for number in 0..200 {
        assert_eq!(get(format!("key{number}")).unwrap().value, "before");
    }
    for number in 0..100 {
        let key = bytes::Bytes::from(format!("key{number}"));
        runtime.block_on(client.delete(key)).unwrap();
        assert!(get(format!("key{number}")).is_none());
    }
    disk.make_room();
    cluster.until("writes go on by themselves", |_| put("key1".to_owned(), "again").is_ok());
    for number in 2..200 {
        let expected = if number < 100 { None } else { Some("before") };
        let found = get(format!("key{number}"));
        assert_eq!(found.as_ref().map(|entry| &entry.value[..]), expected.map(str::as_bytes));
    }
    cluster.until("every shard takes writes", |_| {
        (0..20).all(|number| put(format!("new{number}"), "value").is_ok())
    });
    cluster.until("all replicas hold the same", digests_agree);
    for part in cluster.parts() {
        let ended = part.child.as_mut().unwrap().try_wait().unwrap();
        assert!(ended.is_none(), "{:?} has ended: {ended:?}", part.args);
    }
}

#[test]
fn one_full_disk_of_three_refuses_nobody_anything() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("n1");
    std::fs::create_dir(&own).unwrap();
    let Some(disk) = SmallDisk::mount(&own, "500m") else {
        eprintln!("skipped: mounting a small file system takes root");
        return;
    };
    let mut cluster = Cluster::start_in(folder);
    let lead = |cluster: &Cluster| {
        let text = support::metrics(&cluster.nodes[0]);
        let line = text.lines().find(|line| line.starts_with("kvdb_leaders ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u32>().unwrap()
    };
    let own_address = cluster.nodes[0].args[2].clone();
    let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap();
    let mut nodes = nodes["nodes"].as_array().unwrap().iter();
    let node = nodes.find(|node| node["address"] == own_address.as_str()).unwrap();
    let node = node["node_id"].to_string();
    // Elections alone may give it none.
    cluster.until("it leads shards", |cluster| {
        cluster.kvdb(&["admin", "set-leader", "1", &node]).status.success() && lead(cluster) > 0
    });
    disk.fill();
    cluster.until("its shards are led elsewhere", |cluster| lead(cluster) == 0);
    for number in 0..40 {
        let key = format!("key{number}");
        let put = cluster.kvdb(&["put", &key, "value"]);
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
        assert_eq!(cluster.get(&key), "value");
    }
    assert_eq!(lead(&cluster), 0);
    disk.make_room();
    cluster.until("all replicas hold the same", digests_agree);
    assert!(cluster.nodes[0].child.as_mut().unwrap().try_wait().unwrap().is_none());
}

#[test]
fn every_role_tells_what_it_does() {
    let cluster = Cluster::start();
    cluster.until("a key is written and read", |cluster| {
        cluster.kvdb(&["put", "k", "v"]).status.success() && cluster.get("k") == "v"
    });
    let gateway = support::metrics(&cluster.gateway);
    assert!(gateway.contains("application/openmetrics-text"), "{gateway}");
    for name in [
        "kvdb_requests_total{method=\"put\",result=\"OK\"}",
        "kvdb_request_seconds_bucket",
        "kvdb_retries",
        "kvdb_map_version",
    ] {
        assert!(gateway.contains(name), "{name} in {gateway}");
    }
    let nodes: Vec<_> = cluster.nodes.iter().map(support::metrics).collect();
    // Whichever node leads the key's shard has counted it.
    for name in [
        "kvdb_requests_total{method=\"execute\",result=\"OK\"}",
        "kvdb_requests_total{method=\"get\",result=\"OK\"}",
        "kvdb_request_seconds_bucket{le=\"0.00005\",class=\"write\"}",
    ] {
        assert!(nodes.iter().any(|node| node.contains(name)), "{name} in {}", nodes[0]);
    }
    let of_all = [
        "kvdb_raft_proposals_total",
        "kvdb_raft_reads_total",
        "kvdb_raft_elections_won_total",
        "kvdb_raft_rejections",
        "kvdb_log_sync_seconds_bucket",
        "kvdb_log_bytes_total",
        "kvdb_peer_messages_sent_total",
        "kvdb_peer_messages_received_total",
        "kvdb_queue_depth{queue=\"replication\"}",
        "kvdb_queue_depth{queue=\"apply\"}",
        "kvdb_leaders",
        "kvdb_map_version",
        "kvdb_engine_flushes_total",
        "kvdb_memory_bytes{use=\"memtables\"}",
    ];
    let coordinators: Vec<_> = cluster.coordinators.iter().map(support::metrics).collect();
    for text in nodes.iter().chain(&coordinators) {
        for name in of_all {
            assert!(text.contains(name), "{name} in {text}");
        }
    }
    let heartbeats = "kvdb_requests_total{method=\"Heartbeat\",result=\"OK\"}";
    assert!(coordinators.iter().any(|text| text.contains(heartbeats)), "{}", coordinators[0]);
}
