//! Shards that grow too large become two by themselves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use serde_json::Value;
use support::Cluster;

const ROWS: usize = 40_000;

fn shards(cluster: &Cluster) -> Vec<Value> {
    let map = cluster.json(&["admin", "shards", "--json"]);
    map.and_then(|map| map["shards"].as_array().cloned()).unwrap_or_default()
}

#[test]
fn shards_that_grow_too_large_are_split_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(3, folder, &["--split-size-bytes", "1500000"]);
    assert_eq!(shards(&cluster).len(), 4);
    let file = cluster.data_of("rows.tsv");
    let filler = "x".repeat(200);
    let rows: Vec<String> = (0..ROWS).map(|n| format!("row-{n:06}\t{n}-{filler}")).collect();
    std::fs::write(&file, rows.join("\n") + "\n").unwrap();
    let imported = cluster.kvdb(&["import", file.to_str().unwrap()]);
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    // About 9 MB: each of the four shards has more than it should.
    cluster.until("all four are split", |cluster| shards(cluster).len() >= 8);
    let operators = cluster.json(&["admin", "operations", "--json"]).unwrap();
    let operators = operators["operations"].as_array().unwrap().clone();
    let why = |operator: &Value| operator["reason"].as_str().unwrap().contains("more than");
    assert!(operators.iter().filter(|one| one["kind"] == "split").all(why), "{operators:?}");

    let copy = cluster.data_of("copy.tsv");
    let exported = cluster.kvdb(&["export", "--prefix", "row-", copy.to_str().unwrap()]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let text = std::fs::read_to_string(&copy).unwrap();
    let mut found: Vec<&str> = text.lines().collect();
    found.sort_unstable();
    assert!(found == rows, "{} of {ROWS} rows came back, or they are others", found.len());
}
