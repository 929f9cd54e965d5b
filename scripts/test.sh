#!/usr/bin/env bash
# Everything that CI tests, on a fresh machine.
set -euo pipefail
cd "$(dirname "$0")/.."
step() { local since=$SECONDS; "$@"; echo "test: $*: $((SECONDS - since)) s"; }
if cargo nextest --version >/dev/null 2>&1; then
  step cargo nextest run --workspace --locked --no-fail-fast
else
  step cargo test --workspace --locked --lib --bins --tests
fi
step cargo test --workspace --locked --doc --quiet
step scripts/python_client.sh
step scripts/redis_clients.sh
export KVDB_BIN=${CARGO_TARGET_DIR:-$PWD/target}/debug/kvdb UNAVAILABLE=0
COMMANDS=30000 step scripts/redis_compat.sh
# Where what they need can be had; each says so if not.
step scripts/deploy_check.sh
step scripts/redis_py_suite.sh
step scripts/redis_programs.sh
step scripts/redis_suite.sh
