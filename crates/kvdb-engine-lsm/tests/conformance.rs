//! The suite that every engine passes.

#![expect(clippy::unwrap_used, reason = "a test fails by it, in its helpers too")]

mod support;

use kvdb_engine::conformance::run_all;
use kvdb_engine_lsm::LsmConfig;
use std::time::Duration;
use support::OnDisk;

#[test]
fn the_lsm_engine_conforms() {
    run_all(|| OnDisk::new(LsmConfig::default()));
}

#[test]
fn the_lsm_engine_conforms_while_it_flushes_and_compacts_all_the_time() {
    let config = LsmConfig {
        memtable_budget_bytes: 4 * 1024,
        flush_age: Duration::ZERO,
        cache_bytes: 1024,
        open_files: 2,
        compact_at_runs: 2,
        stall_at_runs: 3,
        longest_stall: Duration::from_millis(1),
        ..LsmConfig::default()
    };
    run_all(|| OnDisk::new(config.clone()));
}
