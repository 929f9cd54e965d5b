//! The command line as users have it: the real binary against a gateway in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "../../kvdb-client/tests/fake/mod.rs"]
mod fake;

use fake::{Fake, Fault};
use kvdb_model::{Refusal, ShardId};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// A gateway, and the binary to call it with.
struct Cluster {
    fake: Fake,
    endpoint: String,
}

struct Ran {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ran {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap()
    }
}

async fn cluster() -> Cluster {
    let fake = Fake::default().with_map();
    let endpoint = fake.serve().await;
    Cluster { fake, endpoint }
}

impl Cluster {
    async fn run(&self, words: &[&str]) -> Ran {
        self.run_with(words, b"").await
    }

    async fn run_with(&self, words: &[&str], stdin: &[u8]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvdb"));
        command.args(words).env("KVDB_ENDPOINT", &self.endpoint);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let stdin = stdin.to_vec();
        let run = move || {
            let mut child = command.spawn().unwrap();
            // A command that doesn't read its input may be gone by now.
            let _ = child.stdin.take().unwrap().write_all(&stdin);
            child.wait_with_output().unwrap()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        Ran {
            code: output.status.code().unwrap(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn keys(&self) -> usize {
        self.fake.state.lock().unwrap().data.len()
    }
}

fn sorted_lines(path: &Path) -> BTreeSet<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_value_goes_in_and_comes_out() {
    let cluster = cluster().await;
    let put = cluster.run(&["put", "greeting", "hello"]).await;
    assert_eq!((put.code, put.text()), (0, "OK"));
    let get = cluster.run(&["get", "greeting"]).await;
    assert_eq!((get.code, get.text()), (0, "hello"));
    let del = cluster.run(&["del", "greeting"]).await;
    assert_eq!((del.code, del.text()), (0, "1"));
    let gone = cluster.run(&["get", "greeting"]).await;
    assert_eq!((gone.code, gone.text(), gone.stderr.trim()), (1, "", "kvdb: not found"));
    assert_eq!(cluster.run(&["del", "greeting"]).await.code, 1);
}

#[tokio::test]
async fn bytes_survive_files_and_pipes() {
    let cluster = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let (key, value) = (folder.path().join("key"), folder.path().join("value"));
    std::fs::write(&key, b"k\0\xff\n").unwrap();
    std::fs::write(&value, b"\xfe\n\n").unwrap();
    let (key, value) = (key.to_str().unwrap(), value.to_str().unwrap());
    assert_eq!(cluster.run(&["put", "--key-file", key, "--value-file", value]).await.code, 0);
    let raw = cluster.run(&["get", "--key-file", key, "--raw"]).await;
    assert_eq!(raw.stdout, b"\xfe\n\n");
    let json = cluster.run(&["get", "--key-file", key, "--json"]).await.json();
    assert_eq!(
        (json["key_b64"].as_str(), json["value_b64"].as_str()),
        (Some("awD/Cg=="), Some("/goK"))
    );

    assert_eq!(cluster.run_with(&["put", "piped", "-"], b"\x00in").await.code, 0);
    assert_eq!(cluster.run_with(&["get", "-", "--raw"], b"piped").await.stdout, b"\x00in");
}

#[tokio::test]
async fn exit_codes_tell_what_happened() {
    let cluster = cluster().await;
    assert_eq!(cluster.run(&["put", "only-a-key"]).await.code, 2);
    assert_eq!(cluster.run(&["no-such-command"]).await.code, 2);
    assert_eq!(cluster.run(&["get", "k", "--endpoint", "nowhere"]).await.code, 2);
    assert_eq!(cluster.run(&["import", "/no/such/file"]).await.code, 2);

    let empty = cluster.run(&["put", "", "v"]).await;
    assert_eq!(
        (empty.code, empty.stderr.trim()),
        (3, "kvdb: key is empty; a key has at least 1 byte")
    );
    assert_eq!(cluster.run(&["get", "k", "--keyspace", "nowhere"]).await.code, 3);
    assert_eq!(cluster.run(&["put", "k", "v", "--if-present"]).await.code, 3);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let away = cluster.run(&["get", "k", "--endpoint", &nobody, "--timeout-ms", "100"]).await;
    assert_eq!(away.code, 4, "{}", away.stderr);

    cluster.fake.fail_next(Fault::LoseAnswer);
    let unknown = cluster.run(&["put", "k", "v"]).await;
    assert_eq!(unknown.code, 5);
    assert!(unknown.stderr.contains("unknown"), "{}", unknown.stderr);
}

#[tokio::test]
async fn conditions_and_previous_values() {
    let cluster = cluster().await;
    cluster.run(&["put", "k", "one"]).await;
    let put = cluster.run(&["put", "k", "two", "--if-value", "one", "--previous"]).await;
    assert_eq!((put.code, put.text()), (0, "one"));
    let failed = cluster.run(&["put", "k", "three", "--if-absent", "--json"]).await;
    assert_eq!((failed.code, failed.json()["applied"].as_bool()), (3, Some(false)));
}

#[tokio::test]
async fn many_keys_at_once() {
    let cluster = cluster().await;
    for key in ["a", "b", "c"] {
        cluster.run(&["put", key, "1\t2"]).await;
    }
    let got = cluster.run(&["batch-get", "c", "x", "a"]).await;
    assert_eq!((got.code, got.text()), (1, "c\t1\\t2\na\t1\\t2"));
    assert!(got.stderr.contains("not found: x"), "{}", got.stderr);
    let scanned = cluster.run(&["scan", "--limit", "2", "--keys-only"]).await;
    assert_eq!((scanned.code, scanned.text()), (0, "a\nb"));
    let deleted = cluster.run(&["del", "a", "b", "x"]).await;
    assert_eq!((deleted.code, deleted.text()), (0, "2"));
}

#[tokio::test]
async fn counters_count_up_and_down() {
    let cluster = cluster().await;
    assert_eq!(cluster.run(&["incr", "n"]).await.text(), "1");
    assert_eq!(cluster.run(&["incr", "n", "--by", "-3"]).await.text(), "-2");
    cluster.run(&["put", "n", "text"]).await;
    assert_eq!(cluster.run(&["incr", "n"]).await.code, 3);
}

#[tokio::test]
async fn what_is_imported_is_exported_byte_for_byte() {
    let cluster = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let rows: String =
        (0..5000).map(|n| format!("key-{n}\tvalue {n}\twith a tab, naïve \\ \"\n")).collect();
    for (name, back) in [("in.tsv", "out.tsv"), ("out.jsonl", "out2.tsv")] {
        let (name, back) = (folder.path().join(name), folder.path().join(back));
        if name.extension().unwrap() == "tsv" {
            std::fs::write(&name, &rows).unwrap();
        } else {
            let export = cluster.run(&["export", name.to_str().unwrap()]).await;
            assert_eq!(export.code, 0, "{}", export.stderr);
            cluster.fake.state.lock().unwrap().data.clear();
        }
        let import = cluster.run(&["import", name.to_str().unwrap(), "--json"]).await;
        assert_eq!(import.code, 0, "{}", import.stderr);
        assert_eq!(import.json()["acknowledged"], 5000);
        assert_eq!(import.json()["complete"], true);
        let export = cluster.run(&["export", back.to_str().unwrap()]).await;
        assert_eq!(export.code, 0, "{}", export.stderr);
        assert_eq!(sorted_lines(&back), rows.lines().map(str::to_owned).collect());
    }
}

#[tokio::test]
async fn the_last_of_lines_with_one_key_wins() {
    let cluster = cluster().await;
    let rows: String = (0..2000).map(|n| format!("{}\t{n}\n", n % 7)).collect();
    let import = cluster.run_with(&["import", "-", "--batch", "3"], rows.as_bytes()).await;
    assert_eq!(import.code, 0, "{}", import.stderr);
    for key in 0..7 {
        let last = (0..2000).rfind(|n| n % 7 == key).unwrap();
        assert_eq!(cluster.run(&["get", &key.to_string()]).await.text(), last.to_string());
    }
}

#[tokio::test]
async fn a_bad_line_ends_the_import_and_is_named() {
    let cluster = cluster().await;
    let rows = b"a\t1\nb\t2\nno tab here\nc\t3\n";
    let import = cluster.run_with(&["import", "-", "--json"], rows).await;
    assert_eq!(import.code, 3);
    let told: serde_json::Value = serde_json::from_str(&import.stderr).unwrap();
    assert_eq!(told["message"], "line 3: there is no tab between key and value");
    let report = import.json();
    // The rows before it are in.
    assert_eq!((&report["go_on_from_line"], &report["acknowledged"]), (&3.into(), &2.into()));
    assert_eq!(cluster.keys(), 2);

    let import = cluster.run_with(&["import", "-", "--skip-bad-lines"], rows).await;
    assert_eq!((import.code, cluster.keys()), (0, 3));
    assert!(import.text().contains("skipped 1 bad lines"), "{}", import.text());
}

#[tokio::test]
async fn an_import_that_fails_midway_says_what_is_in() {
    let cluster = cluster().await;
    let rows: String = (0..100).map(|n| format!("key-{n}\t{n}\n")).collect();
    let disk = Refusal::WrongValue("no");
    cluster.fake.fail_next(Fault::RefuseItem(usize::MAX, disk.clone()));
    cluster.fake.fail_next(Fault::Refuse(disk));
    let words = ["import", "-", "--batch", "10", "--concurrency", "1", "--json"];
    let import = cluster.run_with(&words, rows.as_bytes()).await;
    assert_eq!(import.code, 3, "{}", import.stderr);
    assert!(import.stderr.contains("line 11: no"), "{}", import.stderr);
    let report = import.json();
    assert_eq!((&report["acknowledged"], cluster.keys()), (&10.into(), 10));
    assert_eq!(report["go_on_from_line"], 11);

    let rest = ["import", "-", "--from-line", "11"];
    assert_eq!(cluster.run_with(&rest, rows.as_bytes()).await.code, 0);
    assert_eq!(cluster.keys(), 100);
}

#[tokio::test]
async fn an_import_survives_a_lost_answer_and_a_busy_shard() {
    let cluster = cluster().await;
    let busy = Refusal::ShardUnavailable { shard_id: ShardId(1), reason: "no leader" };
    cluster.fake.fail_next(Fault::LoseAnswer);
    cluster.fake.fail_next(Fault::RefuseItem(0, busy));
    let rows: String = (0..100).map(|n| format!("key-{n}\t{n}\n")).collect();
    let import = cluster.run_with(&["import", "-", "--json"], rows.as_bytes()).await;
    assert_eq!((import.code, &import.json()["acknowledged"]), (0, &100.into()));
    assert_eq!(cluster.fake.state.lock().unwrap().puts, 100);
}

#[tokio::test]
async fn tsv_refuses_what_it_cannot_hold_and_leaves_the_old_file() {
    let cluster = cluster().await;
    cluster.run_with(&["put", "two-lines", "-"], b"a\nb").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("all.tsv");
    std::fs::write(&file, "old").unwrap();
    let export = cluster.run(&["export", file.to_str().unwrap()]).await;
    assert_eq!(export.code, 3);
    assert!(export.stderr.contains("two-lines: the value contains a newline"), "{}", export.stderr);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no partial file is left");

    let jsonl = cluster.run(&["export", "-", "--format", "jsonl"]).await;
    assert_eq!(jsonl.text(), r#"{"key":"two-lines","value":"a\nb"}"#);
}

#[tokio::test]
async fn a_device_is_written_and_not_replaced() {
    let cluster = cluster().await;
    cluster.run(&["put", "k", "v"]).await;
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    assert_eq!(cluster.run(&["export", link.to_str().unwrap()]).await.code, 0);
    assert!(link.symlink_metadata().unwrap().is_symlink());
}

#[tokio::test]
async fn a_ping_is_answered() {
    let cluster = cluster().await;
    let ping = cluster.run(&["ping"]).await;
    assert_eq!(ping.code, 0);
    assert!(ping.text().contains("is serving"), "{}", ping.text());
    assert_eq!(cluster.run(&["ping", "--json"]).await.json()["serving"], true);
}

#[tokio::test]
async fn the_cluster_is_shown_as_tables_and_as_json() {
    let cluster = cluster().await;
    let nodes = cluster.run(&["admin", "nodes"]).await;
    let table = "NODE  ADDRESS         ZONE  STATUS  REPLICAS  LEADERS  OPS/S  KEYS  SIZE  DISK FREE  VERSION  UP  HEARD\n\
                 1     127.0.0.1:7201  a     ALIVE   0         0        0      0     0 B   -          -        -   -";
    assert_eq!((nodes.code, nodes.text()), (0, table));
    let nodes = cluster.run(&["admin", "nodes", "--json"]).await.json();
    assert_eq!(nodes["nodes"][0]["node_id"], 1);
    let status = cluster.run(&["admin", "status", "--json"]).await.json();
    assert_eq!((&status["leader_id"], &status["nodes_alive"]), (&1.into(), &1.into()));
    assert!(cluster.run(&["admin", "status"]).await.text().contains("1 of 1 alive"));
    assert!(cluster.run(&["admin", "keyspaces"]).await.text().contains("default"));
    let coordinators = cluster.run(&["admin", "coordinators"]).await;
    let table = "COORDINATOR  ADDRESS         ROLE\n1            127.0.0.1:7101  leader";
    assert_eq!((coordinators.code, coordinators.text()), (0, table));
    let listed = cluster.run(&["admin", "coordinators", "list", "--json"]).await.json();
    assert_eq!(listed["members"][0]["role"], "VOTER");
    assert_eq!(
        cluster.run(&["admin", "shards", "--json"]).await.json()["shards"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn the_cluster_is_changed_and_refusals_name_the_field() {
    let cluster = cluster().await;
    let made = cluster.run(&["admin", "init-shards", "--shards", "8"]).await;
    assert_eq!(made.code, 0);
    assert!(made.text().starts_with("created 8 shards\nwith 1 of 3 replicas"), "{}", made.text());
    assert_eq!(cluster.run(&["admin", "set-leader", "1", "1"]).await.code, 0);
    assert_eq!(cluster.run(&["admin", "set-node-status", "1", "suspect"]).await.code, 0);
    let refused = cluster.run(&["admin", "set-node-status", "9", "dead"]).await;
    assert_eq!((refused.code, refused.stderr.trim()), (3, "kvdb: node_id is not registered"));
    let refused = cluster.run(&["admin", "coordinators", "remove", "1", "--yes"]).await;
    assert_eq!((refused.code, refused.stderr.trim()), (3, "kvdb: id is the last one"));
    let removed = cluster.run(&["admin", "coordinators", "remove", "2", "--yes"]).await;
    assert_eq!((removed.code, removed.text()), (0, "coordinator 2 leaves"));
    assert_eq!(cluster.run(&["admin", "init-shards", "--shards", "0"]).await.code, 2);
    let registered =
        cluster.run(&["admin", "register-node", "--address", "127.0.0.1:7204", "--json"]).await;
    assert_eq!(registered.json()["node_id"], 4);
    assert_eq!(cluster.run(&["admin", "register-node", "--address", "?"]).await.code, 3);
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_confirmed_or_not_done() {
    let cluster = cluster().await;
    for (words, told) in [
        (&["admin", "drop-keyspace", "default"][..], "Drop keyspace `default`"),
        (&["admin", "replace", "1"], "Replace node 1 (127.0.0.1:7201, ALIVE, 0 replicas)"),
        (&["admin", "set-node-status", "1", "removed"], "Remove node 1"),
        (&["admin", "coordinators", "remove", "1"], "Remove coordinator 1"),
    ] {
        let refused = cluster.run(words).await;
        assert_eq!(refused.code, 3, "{words:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(told), "{words:?}: {}", refused.stderr);
        assert!(refused.stderr.contains("confirm it with --yes"), "{words:?}: {}", refused.stderr);
    }
    let missing = cluster.run(&["admin", "drop-keyspace", "nowhere"]).await;
    assert!(missing.stderr.contains("`nowhere` does not exist"), "{}", missing.stderr);
    assert_eq!(cluster.run(&["admin", "drop-keyspace", "default", "--yes"]).await.code, 0);
}

#[tokio::test]
async fn errors_are_json_where_json_is_asked_for() {
    let cluster = cluster().await;
    let error = |ran: &Ran| serde_json::from_str::<serde_json::Value>(&ran.stderr).unwrap();
    let missing = cluster.run(&["get", "nothing", "--json"]).await;
    assert_eq!((missing.code, missing.json()["found"].as_bool()), (1, Some(false)));
    assert_eq!(
        (&error(&missing)["error"], &error(&missing)["exit_code"]),
        (&"NOT_FOUND".into(), &1.into())
    );
    let refused = cluster.run(&["get", "k", "--keyspace", "nowhere", "--json"]).await;
    assert_eq!((refused.code, error(&refused)["error"].as_str()), (3, Some("UNKNOWN_KEYSPACE")));
    let usage = cluster.run(&["--json", "put"]).await;
    assert_eq!((usage.code, error(&usage)["error"].as_str()), (2, Some("USAGE")));
    let unknown = cluster.run(&["get", "--json", "--no-such-flag"]).await;
    assert_eq!((unknown.code, error(&unknown)["exit_code"].as_u64()), (2, Some(2)));
    let role = cluster.run(&["--json", "node", "--coordinators", "nowhere"]).await;
    assert_eq!((role.code, error(&role)["error"].as_str()), (2, Some("USAGE")));
    let skipped =
        cluster.run_with(&["import", "-", "--skip-bad-lines", "--json"], b"a\tb\nbad\n").await;
    assert_eq!((skipped.code, error(&skipped)["line"].as_u64()), (0, Some(2)));
}

#[tokio::test]
async fn usage_is_told_as_if_nothing_were_in_the_environment() {
    let cluster = cluster().await;
    // KVDB_ENDPOINT is set for every command of these tests.
    let refused = cluster.run(&["incr"]).await;
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("Usage: kvdb incr"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("--endpoint"), "{}", refused.stderr);
}

#[tokio::test]
async fn an_endpoint_may_have_a_scheme() {
    let cluster = cluster().await;
    let endpoint = format!("http://{}/", cluster.endpoint);
    let ping = cluster.run(&["ping", "--endpoint", &endpoint]).await;
    assert_eq!(ping.code, 0, "{}", ping.stderr);
    let endpoint = format!("https://{}", cluster.endpoint);
    let refused = cluster.run(&["ping", "--endpoint", &endpoint]).await;
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("no encryption yet"), "{}", refused.stderr);
}

#[tokio::test]
async fn times_and_sizes_are_taken_and_told_with_units() {
    let cluster = cluster().await;
    assert_eq!(cluster.run(&["put", "k", "v", "--ttl", "10m"]).await.code, 0);
    let bare = cluster.run(&["put", "k", "v", "--ttl", "5"]).await;
    assert!(bare.code == 2 && bare.stderr.contains("such as 30s"), "{}", bare.stderr);
    let none = cluster.run(&["admin", "create-keyspace", "k", "--history", "0s"]).await;
    assert!(none.code == 2 && none.stderr.contains("expected 1 s to 30 d"), "{}", none.stderr);
    let large = cluster.run(&["admin", "set-history", "k", "--bytes", "1GiB"]).await;
    assert!(large.code == 2 && large.stderr.contains("1 MiB to 256 MiB"), "{}", large.stderr);
}

#[tokio::test]
async fn bad_settings_of_a_role_are_bad_usage() {
    let cluster = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_str().unwrap();
    for (words, told) in [
        (&["node", "--config", place][..], "is a directory"),
        (&["node", "--log", "nonsense=zzz"], "such as info,kvdb_node=debug"),
        (&["node", "--data", place], "--coordinators is missing"),
        (&["node", "--data", place, "--coordinators", "https://a:1"], "no encryption yet"),
        (&["node", "--data", place, "--coordinators", "a:1", "--listen", "off"], "can't be off"),
        (&["coordinator", "--id", "1", "--peers", "2=a:1", "--data", place], "no 1 in it"),
    ] {
        let refused = cluster.run(words).await;
        assert!(refused.stderr.contains(told), "{words:?}: {}", refused.stderr);
        assert_eq!(refused.code, 2, "{words:?}: {}", refused.stderr);
    }
}

#[tokio::test]
async fn files_of_other_systems_are_imported_as_they_are_meant() {
    let cluster = cluster().await;
    let rows = b"\xef\xbb\xbfa\t1\r\nb\t2\r\n";
    let import = cluster.run_with(&["import", "-"], rows).await;
    assert_eq!(import.code, 0, "{}", import.stderr);
    for (key, value) in [("a", &b"1"[..]), ("b", b"2")] {
        assert_eq!(cluster.run(&["get", key, "--raw"]).await.stdout, value, "{key}");
    }
    let json = b"\xef\xbb\xbf{\"key\":\"c\",\"value\":\"3\"}\r\n";
    assert_eq!(cluster.run_with(&["import", "-"], json).await.code, 0);
    assert_eq!(cluster.run(&["get", "c", "--raw"]).await.stdout, b"3");
    // What TSV would lose then is refused, and JSON lines hold it.
    cluster.run_with(&["put", "cr", "-"], b"x\r").await;
    let export = cluster.run(&["export", "-"]).await;
    assert!(export.code == 3 && export.stderr.contains("carriage return"), "{}", export.stderr);
}

#[tokio::test]
async fn skipped_lines_are_all_counted_and_an_import_of_nothing_else_fails() {
    let cluster = cluster().await;
    let bad = "bad\n".repeat(25);
    let import = cluster
        .run_with(&["import", "-", "--skip-bad-lines"], format!("{bad}a\t1\n").as_bytes())
        .await;
    assert_eq!(import.code, 0, "{}", import.stderr);
    assert!(import.text().contains("skipped 25 bad lines"), "{}", import.text());
    assert_eq!(import.stderr.matches("skipped line ").count(), 10, "{}", import.stderr);
    assert!(import.stderr.contains("from line 11 on; only the first 10"), "{}", import.stderr);
    let nothing = cluster.run_with(&["import", "-", "--skip-bad-lines"], bad.as_bytes()).await;
    assert_eq!(nothing.code, 3);
    assert!(nothing.stderr.contains("all 25 lines were skipped"), "{}", nothing.stderr);
    assert_eq!(cluster.run_with(&["import", "-"], b"").await.code, 0);
}

#[tokio::test]
async fn the_way_to_go_on_after_a_bad_line_does_not_fail_there_again() {
    let cluster = cluster().await;
    let rows = b"a\t1\nbad\nb\t2\n";
    let import = cluster.run_with(&["import", "-"], rows).await;
    assert_eq!(import.code, 3);
    assert!(import.text().contains("correct line 2"), "{}", import.text());
    let rest = "--from-line 2 --skip-bad-lines";
    assert!(import.text().contains(rest), "{}", import.text());
    let words: Vec<&str> = ["import", "-"].into_iter().chain(rest.split(' ')).collect();
    assert_eq!(cluster.run_with(&words, rows).await.code, 0);
    assert_eq!(cluster.keys(), 2);
}

#[tokio::test]
async fn the_version_completions_and_man_pages_need_no_cluster() {
    let cluster = cluster().await;
    let version = cluster.run(&["version"]).await;
    assert_eq!((version.code, version.text()), (0, concat!("kvdb ", env!("CARGO_PKG_VERSION"))));
    for shell in ["bash", "zsh", "fish"] {
        let script = cluster.run(&["completions", shell]).await;
        assert_eq!(script.code, 0);
        assert!(script.text().contains("drop-keyspace"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    let man = cluster.run(&["man", folder.path().join("man1").to_str().unwrap()]).await;
    assert_eq!(man.code, 0, "{}", man.stderr);
    let page = std::fs::read_to_string(folder.path().join("man1/kvdb-admin-drain.1")).unwrap();
    assert!(page.contains("kvdb admin drain 2"), "{page}");
}

#[tokio::test]
async fn a_bench_counts_every_request() {
    let cluster = cluster().await;
    let words = ["bench", "--requests", "500", "--clients", "8", "--keys", "100", "--json"];
    // The gateway in memory has one keyspace.
    let words = [&words[..], &["--keyspace", "default"]].concat();
    let report = cluster.run(&words).await.json();
    assert_eq!((&report["requests"], &report["errors"]), (&500.into(), &0.into()));
    assert!(report["p50_us"].as_u64() <= report["p999_us"].as_u64());
    // One lock after the other: both in one statement would wait for each other.
    let puts = cluster.fake.state.lock().unwrap().puts;
    assert_eq!((puts, cluster.keys()), (500, 100));

    cluster.fake.fail_next(Fault::LoseAnswer);
    let broken = cluster.run(&words).await;
    assert_eq!((broken.code, &broken.json()["errors"]), (5, &1.into()));
}

#[tokio::test]
async fn a_bench_of_the_echo_tells_its_processor_time_apart() {
    let cluster = cluster().await;
    let words = ["bench", "--target", "echo", "--requests", "300", "--json", "--row", "put"];
    let report = cluster.run(&words).await.json();
    assert_eq!((&report["requests"], &report["system"]), (&300.into(), &"echo".into()));
    assert!(report["server_cpu_seconds_per_million"].is_number(), "{report}");
    assert!(report["server_peak_memory_bytes"].as_u64() > Some(1_000_000), "{report}");
}

#[tokio::test]
async fn a_bench_in_batches_writes_and_reads_what_a_single_one_does() {
    let cluster = cluster().await;
    let words = ["bench", "--target", "kvdb-batch", "--pipeline", "10", "--keys", "100", "--fill"];
    let words =
        [&words[..], &["--workload", "a", "--requests", "400", "--json", "--keyspace", "default"]]
            .concat();
    let report = cluster.run(&words).await.json();
    assert_eq!((&report["requests"], &report["errors"]), (&400.into(), &0.into()));
    assert_eq!((&report["missing"], cluster.keys()), (&0.into(), 100));
    let f = ["bench", "--workload", "f", "--target", "kvdb-batch", "--keyspace", "default"];
    assert_eq!(cluster.run(&f).await.code, 2);
}

#[tokio::test]
async fn reports_of_a_bench_are_put_side_by_side() {
    let cluster = cluster().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let words = ["bench", "--keyspace", "default", "--clients", "2", "--json", "--row", "put-c1"];
    let words = [&words[..], &["--requests"]].concat();
    let mut rows = cluster.run(&[&words[..], &["100"]].concat()).await.stdout;
    let etcd = [&words[..], &["50", "--system", "etcd"]].concat();
    rows.extend(cluster.run(&etcd).await.stdout);
    std::fs::write(path("rows.jsonl"), rows).unwrap();
    let (rows, out) = (path("rows.jsonl"), path("out"));
    let words = ["bench", "compare", rows.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let words = [&words[..], &["--name", "today", "--about", "A test."]].concat();
    let compared = cluster.run(&words).await;
    assert!(compared.code == 0 && compared.text().contains("put-c1  etcd"), "{}", compared.text());
    let page = std::fs::read_to_string(path("out/today.md")).unwrap();
    assert!(page.contains("A test.") && page.contains("today-throughput.svg"), "{page}");
    let document = std::fs::read(path("out/today.json")).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    assert_eq!(document["rows"].as_array().unwrap().len(), 2);
    assert!(path("out/today-throughput.svg").exists());
    std::fs::write(path("bad.jsonl"), "nonsense").unwrap();
    let bad = path("bad.jsonl");
    assert_eq!(cluster.run(&["bench", "compare", bad.to_str().unwrap()]).await.code, 2);
}
