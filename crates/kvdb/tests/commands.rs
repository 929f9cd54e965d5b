//! Commands that a gateway in memory can't serve, against real processes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use support::{Cluster, KVDB};

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[test]
fn a_bench_has_a_keyspace_of_its_own_and_its_values_can_be_exported() {
    let cluster = Cluster::start();
    let keyspaces = || {
        let all = cluster.json(&["admin", "keyspaces", "--json"]).unwrap();
        let names = all["keyspaces"].as_array().unwrap().iter().map(|one| one["name"].to_string());
        names.collect::<Vec<_>>()
    };
    let small = ["--requests", "200", "--clients", "8", "--keys", "50", "--json"];
    let bench = |words: &[&str]| {
        let words = [&["bench"], words, &small].concat();
        cluster.json(&words).unwrap()
    };
    // What reads finds its keys, in order where it asks for that.
    for words in [&["--mode", "get"][..], &["--workload", "e"]] {
        let report = bench(words);
        assert_eq!((&report["errors"], &report["missing"]), (&0.into(), &0.into()), "{report}");
    }
    assert_eq!(keyspaces(), ["\"default\""]);
    assert!(cluster.get("bench:0000000001").is_empty());

    assert!(cluster.kvdb(&["admin", "create-keyspace", "load"]).status.success());
    bench(&["--keyspace", "load", "--fill"]);
    let file = cluster.folder.path().join("load.tsv");
    let exported = cluster.kvdb(&["export", "--keyspace", "load", file.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 50);
    assert!(cluster.kvdb(&["admin", "drop-keyspace", "load", "--yes"]).status.success());
}

#[test]
fn nodes_and_shards_tell_what_they_do_and_hold() {
    let cluster = Cluster::start();
    let value = "x".repeat(1000);
    for number in 0..200 {
        let put = cluster.kvdb(&["put", &format!("key-{number}"), &value]);
        assert!(put.status.success());
    }
    cluster.until("all is told", |cluster| {
        let nodes = cluster.json(&["admin", "nodes", "--json"]).unwrap();
        let nodes = nodes["nodes"].as_array().unwrap().clone();
        let shards = cluster.json(&["admin", "shards", "--json"]).unwrap();
        let shards = shards["shards"].as_array().unwrap().clone();
        let bytes: u64 = shards.iter().filter_map(|shard| shard["bytes"].as_u64()).sum();
        nodes.len() == 3
            && nodes.iter().all(|node| {
                node["version"] == env!("CARGO_PKG_VERSION")
                    && node["disk_free_bytes"].as_u64() > Some(0)
                    && node["silent_ms"].as_u64() < Some(10_000)
                    && node["uptime_ms"].is_u64()
                    && node["bytes"].as_u64() > Some(100_000)
            })
            && bytes > 150_000
    });
    // Keys that are there, a collection as one: not those that were deleted or have expired.
    let keys = |cluster: &Cluster, of: &str| -> Option<Vec<u64>> {
        let told = cluster.json(&["admin", of, "--json"])?;
        told[of].as_array()?.iter().map(|row| row["keys"].as_u64()).collect()
    };
    for command in [
        &["redis", "HSET", "hash", "one", "1", "two", "2"][..],
        &["put", "short", "x", "--ttl-ms", "1"],
        &["del", "first", "key-0", "key-1", "key-2"],
    ] {
        assert!(cluster.kvdb(command).status.success(), "{command:?}");
    }
    cluster.until("all keys are counted", |cluster| {
        keys(cluster, "shards").is_some_and(|shards| shards.iter().sum::<u64>() == 198)
            && keys(cluster, "nodes") == Some(vec![198; 3])
    });
    let table = text(&cluster.kvdb(&["admin", "nodes"]));
    assert!(
        table.contains("OPS/S")
            && table.contains("KEYS")
            && table.contains("DISK FREE")
            && table.contains("HEARD"),
        "{table}"
    );
    let table = text(&cluster.kvdb(&["admin", "shards"]));
    assert!(table.contains("OPS/S") && table.contains("KEYS") && table.contains("KiB"), "{table}");
}

#[test]
fn watch_expire_and_history_on_the_command_line() {
    let cluster = Cluster::start();
    // Keys and values of any bytes, from files.
    let folder = cluster.folder.path();
    let (key, value) = (folder.join("key"), folder.join("value"));
    std::fs::write(&key, b"w-\0\xff\n").unwrap();
    std::fs::write(&value, b"\xfe\t\n").unwrap();
    let (key, value) = (key.to_str().unwrap(), value.to_str().unwrap());

    let mut watch = Command::new(KVDB)
        .args(["--endpoint", &cluster.endpoint, "watch", "--prefix", "w-", "--json"])
        .args(["--progress", "--limit", "3"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut lines =
        lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    let stands = lines.next().unwrap();
    assert!(stands["progress_version"].is_u64(), "{stands}");
    assert!(cluster.kvdb(&["put", "--key-file", key, "--value-file", value]).status.success());
    assert!(cluster.kvdb(&["put", "other", "x"]).status.success());
    assert!(cluster.kvdb(&["expire", "--key-file", key, "--ttl-ms", "600000"]).status.success());
    assert!(cluster.kvdb(&["del", "--key-file", key]).status.success());
    let told: Vec<_> = lines.filter(|line| line["kind"].is_string()).collect();
    assert!(watch.wait().unwrap().success(), "it ends after so many");
    let kinds: Vec<_> = told.iter().map(|line| line["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PUT", "PUT", "DELETE"]);
    assert!(told.iter().all(|line| line["key_b64"] == "dy0A/wo="), "{told:?}");
    assert!(told[0]["value_b64"] == "/gkK" && told[0]["expires_at_ms"].is_null(), "{told:?}");
    assert!(told[1]["expires_at_ms"].is_u64(), "{told:?}");

    // Another goes on from a cursor; one of other keys is refused.
    let cursor = told[0]["cursor"].as_str().unwrap();
    let rest = cluster.kvdb(&["watch", "--prefix", "w-", "--cursor", cursor, "--limit", "2"]);
    assert_eq!(text(&rest), "PUT\tw-\\u{0}\\xff\\n\t\\xfe\\t\\n\nDELETE\tw-\\u{0}\\xff\\n");
    let other = cluster.kvdb(&["watch", "--prefix", "x-", "--cursor", cursor]);
    assert!(
        !other.status.success() && String::from_utf8_lossy(&other.stderr).contains("other keys")
    );
    assert_eq!(cluster.kvdb(&["watch", "--cursor", "no cursor"]).status.code(), Some(2));

    // Of a collection: how many elements it has, and which have changed.
    assert!(cluster.kvdb(&["put", "c-first", "x"]).status.success());
    let since = cluster.kvdb(&["get", "c-first", "--json"]);
    let since: serde_json::Value = serde_json::from_slice(&since.stdout).unwrap();
    let since = since["version"].as_u64().unwrap().to_string();
    for words in [
        vec!["hset", "c-first{t}", "name", "Ada", "born", "1815"],
        vec!["hdel", "c-first{t}", "born"],
        vec!["rpush", "c-first{u}", "job"],
        vec!["zadd", "c-first{u}z", "1", "tab\there"],
    ] {
        assert!(cluster.kvdb(&[&["redis"], &words[..]].concat()).status.success(), "{words:?}");
    }
    let watch = |key: &str, more: &[&str]| {
        let all = ["watch", "--key", key, "--from-version", &since];
        text(&cluster.kvdb(&[&all[..], more].concat()))
    };
    let told = watch("c-first{t}", &["--limit", "2"]);
    assert_eq!(
        told,
        "PUT\tc-first{t}\t(hash of 2: name, born)\nPUT\tc-first{t}\t(hash of 1: born)"
    );
    assert_eq!(watch("c-first{u}", &["--limit", "1"]), "PUT\tc-first{u}\t(list of 1: …)");
    let told = watch("c-first{u}z", &["--limit", "1", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["type"], &told["count"]), (&"zset".into(), &1.into()), "{told}");
    assert_eq!(told["elements"], serde_json::json!(["tab\there"]), "{told}");
    assert!(told["more_elements"] == false && told["value"].is_null(), "{told}");

    // Expiry.
    assert!(cluster.kvdb(&["put", "session", "s", "--ttl-ms", "600000"]).status.success());
    let never = cluster.kvdb(&["expire", "session", "--never", "--json"]);
    let never: serde_json::Value = serde_json::from_slice(&never.stdout).unwrap();
    assert_eq!(never["applied"], true);
    let kept = cluster.json(&["get", "session", "--json"]).unwrap();
    assert!(kept["expires_at_ms"].is_null(), "{kept}");
    assert!(cluster.kvdb(&["expire", "session", "--ttl-ms", "1"]).status.success());
    cluster.until("it is gone", |cluster| cluster.get("session").is_empty());
    assert_eq!(cluster.kvdb(&["expire", "session", "--never"]).status.code(), Some(1));
    assert_eq!(
        cluster.kvdb(&["expire", "session"]).status.code(),
        Some(2),
        "how long is to be said"
    );

    // History of a keyspace.
    let make = ["admin", "create-keyspace", "k", "--history", "90m", "--history-bytes", "2MiB"];
    assert!(cluster.kvdb(&make).status.success());
    let history = |cluster: &Cluster| {
        let all = cluster.json(&["admin", "keyspaces", "--json"]).unwrap();
        let all = all["keyspaces"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["name"] == "k").unwrap()["history"].clone()
    };
    assert_eq!(history(&cluster)["max_age_ms"], 5_400_000);
    assert_eq!(history(&cluster)["max_bytes"], 2 << 20);
    let table = text(&cluster.kvdb(&["admin", "keyspaces"]));
    assert!(table.contains("90 m, 2 MiB a shard"), "{table}");
    for bad in [&["--for", "1y"][..], &["--bytes", "1GiB"], &[], &["--off", "--for", "1h"]] {
        let args: Vec<&str> = ["admin", "set-history", "k"].iter().chain(bad).copied().collect();
        assert!(!cluster.kvdb(&args).status.success(), "{bad:?}");
    }
    assert!(cluster.kvdb(&["admin", "set-history", "k", "--off"]).status.success());
    assert!(history(&cluster).is_null());
    let unknown = cluster.kvdb(&["admin", "set-history", "nope", "--off"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("`nope` does not exist"));
}
