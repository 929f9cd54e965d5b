//! The command, which judges files that anybody may have written.

#![allow(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod common;

use common::{Mix, Workload};
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn judge(argument: &str, input: &[u8]) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvdb-checker"))
        .args([argument].iter().filter(|argument| !argument.is_empty()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses its arguments doesn't read.
    let _ = child.stdin.take().unwrap().write_all(input);
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

fn history(stale_reads: u64) -> Vec<u8> {
    let workload =
        Workload { operations: 5_000, mix: Mix::Everything, stale_reads, ..Workload::default() };
    let mut lines = Vec::new();
    kvdb_checker::json::write(&mut lines, &common::run(&workload)).unwrap();
    lines
}

#[test]
fn a_file_is_judged_and_the_exit_code_says_how() {
    let (code, said, _) = judge("-", &history(0));
    assert_eq!((code, said.lines().last()), (Some(0), Some("verdict=ok")), "{said}");
    let (code, said, _) = judge("-", &history(2_000));
    assert_eq!((code, said.lines().last()), (Some(1), Some("verdict=violated")), "{said}");
    assert!(said.lines().count() > 3, "what is wrong is shown: {said}");
}

#[test]
fn what_is_no_history_is_refused_with_its_line() {
    let mut lines = history(0);
    lines.extend_from_slice(b"{\"event\":\"nonsense\"}\n");
    let (code, _, said) = judge("-", &lines);
    assert_eq!(code, Some(2));
    assert!(said.contains("is not an event"), "{said}");
    let (code, _, said) = judge("/no/such/file", b"");
    assert!(code == Some(2) && said.contains("/no/such/file"), "{said}");
    assert!(judge("", b"").2.contains("usage: kvdb-checker FILE"));
}
