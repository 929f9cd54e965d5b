//! What the pages and the files under `deploy/` say is so: links lead somewhere, metrics are exported,
//! charts are drawn from recorded figures.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages that people read, from the root of the repository.
fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for folder in ["", "docs", "docs/decisions", "deploy", "bench/results"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "md") {
                pages.push(path);
            }
        }
    }
    assert!(pages.len() > 15, "{pages:?}");
    pages
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    for path in pages() {
        let page = std::fs::read_to_string(&path).unwrap();
        for link in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let is_there = target.exists()
                && (heading.is_empty()
                    || anchors(&std::fs::read_to_string(&target).unwrap()).contains(heading));
            if !is_there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_chart_is_drawn_from_recorded_figures() {
    let command = Command::new("python3")
        .arg(root().join("scripts/chart.py"))
        .arg("bench/results/2026-11-28.json")
        .current_dir(root())
        .output();
    let drawn = command.unwrap();
    assert!(drawn.status.success(), "{drawn:?}");
    let chart = read("docs/images/beside-etcd-and-redis.svg");
    assert!(chart.as_bytes() == drawn.stdout, "draw it again: see the head of scripts/chart.py");
}

/// Words that somebody who knows the field would have to translate.
const BANNED: [&str; 11] = [
    "asleep",
    "newcomer",
    "request window",
    "the gate ",
    "planted bug",
    "an operator ",
    "operators ",
    "was never born",
    "rebirth",
    "greeted",
    "told otherwise",
];

#[test]
fn pages_use_the_words_of_the_field() {
    // What was measured, and what was called otherwise before, stays as it was written.
    let is_record = |path: &Path| {
        path.ends_with("CHANGELOG.md") || path.parent().is_some_and(|of| of.ends_with("results"))
    };
    for path in pages().into_iter().filter(|path| !is_record(path)) {
        let page = std::fs::read_to_string(&path).unwrap().to_lowercase();
        for word in BANNED {
            assert!(!page.contains(word), "{} says `{word}`", path.display());
        }
    }
}

/// Families that have no series before something happens.
const EMPTY_AT_FIRST: [&str; 6] = [
    "kvdb_keyspace_errors_total",
    "kvdb_less_preferred_leader",
    "kvdb_raft_rejections_total",
    "kvdb_reclaimed_records_total",
    "kvdb_redis_commands_total",
    "kvdb_retries_total",
];

fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The names under which a process shows what it has: of histograms all three.
fn exported(metrics: &str, into: &mut BTreeSet<String>) {
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["", "_bucket", "_count", "_sum"],
            "info" => &["_info"],
            _ => &[""],
        };
        into.extend(endings.iter().map(|ending| format!("{name}{ending}")));
    }
}

/// Names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_metric = |word: &&str| word.starts_with("kvdb_") || word.starts_with("process_");
    words.filter(is_metric).map(str::to_owned).collect()
}

#[test]
fn every_metric_that_is_named_is_exported() {
    let cluster = support::Cluster::start();
    assert!(cluster.kvdb(&["get", "first"]).status.success());
    let mut there = BTreeSet::new();
    for part in [&cluster.coordinators[0], &cluster.nodes[0], &cluster.gateway] {
        let http = part.args.iter().position(|arg| arg == "--http").unwrap();
        exported(&scrape(&part.args[http + 1]), &mut there);
    }
    let source: String = ["gateway", "node", "coordinator", "runtime"]
        .iter()
        .flat_map(|name| sources(&root().join(format!("crates/kvdb-{name}/src"))))
        .collect();
    let mut missing = BTreeMap::<&str, Vec<String>>::new();
    for file in
        ["deploy/prometheus/kvdb-alerts.yml", "deploy/grafana/kvdb.json", "docs/operations.md"]
    {
        let names = named(&read(file));
        assert!(names.len() > 10, "{file} names {names:?}");
        for name in names {
            let registered = format!("\"{}\"", name.trim_end_matches("_total"));
            let may_come = EMPTY_AT_FIRST.contains(&name.as_str()) && source.contains(&registered);
            if !there.contains(&name) && !may_come {
                missing.entry(file).or_default().push(name);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}\nthere are {there:?}");
    // And the other way round: what is exported is explained.
    let explained = named(&read("docs/operations.md"));
    let parts = ["_bucket", "_count", "_sum"];
    let unexplained: Vec<_> = there
        .iter()
        .filter(|name| !parts.iter().any(|part| name.ends_with(part)))
        .filter(|name| !explained.contains(*name))
        .collect();
    assert!(unexplained.is_empty(), "not in docs/operations.md: {unexplained:?}");
}

fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => texts.extend(sources(&path)),
            false => texts.push(std::fs::read_to_string(&path).unwrap()),
        }
    }
    texts
}
