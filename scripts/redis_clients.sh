#!/usr/bin/env bash
# redis-py and ioredis against a cluster of processes, one node of which is killed in the middle. What can't be had here
# is skipped with a line that says so.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { echo "skipped: the Redis client test needs python3"; exit 0; }
work=$(mktemp -d)
export KVDB_BIN=${KVDB_BIN:-${CARGO_TARGET_DIR:-$PWD/target}/debug/kvdb}
export PORT_OFFSET=${PORT_OFFSET:-$((10000 + RANDOM % 10000))}
export KVDB_CLUSTER_DATA=$work/data KVDB_CLUSTER_LOGS=$work/logs
trap 'scripts/cluster.sh wipe >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check redis 2>"$work/pip.log"; then
  echo "skipped: the Redis client test needs redis-py, which pip can't reach here"
  exit 0
fi
[ -x "$KVDB_BIN" ] || cargo build --quiet --locked -p kvdb
scripts/cluster.sh start >/dev/null
port=$((7379 + PORT_OFFSET))
if command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix "$work/npm" ioredis >"$work/npm.log" 2>&1; then
  node tests/node/ioredis.mjs "$work/npm/node_modules/ioredis" "$port"
else
  echo "skipped: the ioredis test needs npm and the registry"
fi
"$work/venv/bin/python" tests/python/redis_clients.py "$port" "$KVDB_CLUSTER_DATA/run/node-1.pid"
