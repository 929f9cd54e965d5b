#!/usr/bin/env bash
# Everything that CI tests, on a fresh machine.
set -euo pipefail
cd "$(dirname "$0")/.."
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --locked --no-fail-fast
else
  cargo test --workspace --locked --lib --bins --tests
fi
cargo test --workspace --locked --doc --quiet
scripts/python_client.sh
scripts/redis_clients.sh
KVDB_BIN=${CARGO_TARGET_DIR:-target}/debug/kvdb COMMANDS=30000 UNAVAILABLE=0 scripts/redis_compat.sh
# Where what they need can be had; each says so if not.
KVDB_BIN=${CARGO_TARGET_DIR:-target}/debug/kvdb UNAVAILABLE=0 scripts/deploy_check.sh
KVDB_BIN=${CARGO_TARGET_DIR:-target}/debug/kvdb UNAVAILABLE=0 scripts/redis_py_suite.sh
KVDB_BIN=${CARGO_TARGET_DIR:-$PWD/target}/debug/kvdb UNAVAILABLE=0 scripts/redis_programs.sh
# It takes three minutes.
KVDB_BIN=${CARGO_TARGET_DIR:-target}/debug/kvdb UNAVAILABLE=0 scripts/redis_suite.sh
