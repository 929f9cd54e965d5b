//! Each fuzz target over its corpus, and over mutations of it.

#![allow(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

use kvdb_fuzz::{Mutator, TARGETS, Target};
use std::path::{Path, PathBuf};

/// Mutations a target, unless `KVDB_FUZZ_ROUNDS` says otherwise.
const ROUNDS: usize = 3_000;
/// Longer inputs find little that shorter ones don't.
const MOST_BYTES: usize = 16 * 1024;

fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder(target)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let read = paths.into_iter().map(|path| std::fs::read(path).unwrap());
    read.chain((target.seeds)()).collect()
}

/// Runs a target, and says with what it failed.
fn run(target: &Target, input: &[u8]) {
    let told = std::panic::catch_unwind(|| (target.run)(input));
    if let Err(panic) = told {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{} fails with {hex}", target.name);
        std::panic::resume_unwind(panic);
    }
}

fn try_all(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let mut pool = corpus(target);
    assert!(!pool.is_empty());
    for input in &pool {
        run(target, input);
    }
    let rounds = std::env::var("KVDB_FUZZ_ROUNDS").ok();
    let rounds = rounds.and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let mut mutator = Mutator::new(name.bytes().map(u64::from).sum());
    for _ in 0..rounds {
        let (one, other) = (mutator.below(pool.len()), mutator.below(pool.len()));
        let input = mutator.mutate(&pool[one], &pool[other]);
        run(target, &input);
        // Changes add up, within bounds.
        if input.len() < MOST_BYTES && mutator.below(4) == 0 {
            if pool.len() < 200 {
                pool.push(input);
            } else {
                let place = mutator.below(pool.len());
                pool[place] = input;
            }
        }
    }
}

#[test]
fn every_target_has_a_test_here_and_a_place_in_the_fuzzer() {
    let tests = include_str!("corpus.rs");
    for target in TARGETS {
        assert!(tests.contains(&format!("try_all(\"{}\")", target.name)), "{}", target.name);
        let fuzzer = folder(&target).join(format!("../../fuzz_targets/{}.rs", target.name));
        let text = std::fs::read_to_string(&fuzzer).unwrap();
        assert!(text.contains(&format!("kvdb_fuzz::{}(", target.name)), "{text}");
    }
}

#[test]
fn wal_frames() {
    try_all("wal_frames");
}

#[test]
fn engine_records() {
    try_all("engine_records");
}

#[test]
fn snapshots() {
    try_all("snapshots");
}

#[test]
fn commands() {
    try_all("commands");
}

#[test]
fn protobuf() {
    try_all("protobuf");
}

#[test]
fn import_files() {
    try_all("import_files");
}

#[test]
fn redis_requests() {
    try_all("redis_requests");
}

#[test]
fn hyperloglogs() {
    try_all("hyperloglogs");
}

#[test]
fn redis_dumps() {
    try_all("redis_dumps");
}
