//! Traces that are remembered in files.

use std::path::PathBuf;

/// Compares a trace with `tests/golden/<name>.txt`. With `UPDATE_GOLDEN=1` in the environment the
/// file is written instead.
///
/// # Panics
/// At the first line that differs.
pub fn assert_golden(name: &str, trace: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, trace).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_GOLDEN=1 writes it", path.display()));
    let differs = expected.lines().zip(trace.lines()).position(|(left, right)| left != right);
    if let Some(line) = differs {
        panic!(
            "{name}.txt, line {}:\n  expected {}\n  got      {}",
            line + 1,
            expected.lines().nth(line).unwrap(),
            trace.lines().nth(line).unwrap()
        );
    }
    assert_eq!(expected.lines().count(), trace.lines().count(), "{name}: lengths differ");
}
