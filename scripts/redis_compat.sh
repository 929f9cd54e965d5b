#!/usr/bin/env bash
# Random commands to a real Redis and to a gateway, in lockstep: every answer must be the same (tests/redis/lockstep.py).
#   COMMANDS=300000   how many
#   SEED=1            which; a difference is told with the seed of its round, and SEED of it with COMMANDS=1 repeats it
# Without a redis-server of version 7.0 it says so and, where UNAVAILABLE=0, counts as passed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
bin=$(realpath "${KVDB_BIN:-target/release/kvdb}")
offset=${PORT_OFFSET:-$((10000 + RANDOM % 10000))}
port=$((7379 + offset)) redis_port=$((7380 + offset))

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
if ! command -v redis-server >/dev/null && command -v apt-get >/dev/null; then
  { as_root apt-get update -q && as_root apt-get install -y -q --no-install-recommends redis-server; } >/dev/null 2>&1 || true
fi
if ! redis-server --version 2>/dev/null | grep -q 'v=7\.0\.' || ! command -v python3 >/dev/null; then
  echo "skipped: the comparison needs redis-server 7.0 and python3"
  exit "${UNAVAILABLE:-1}"
fi

work=$(mktemp -d)
redis-server --port "$redis_port" --bind 127.0.0.1 --save "" --appendonly no --slowlog-log-slower-than -1 --dir "$work" >"$work/redis.log" 2>&1 &
redis=$!
TMPDIR=$work "$bin" dev --temporary --nodes 1 --shards 1 --port-offset "$offset" >"$work/dev.log" 2>&1 &
server=$!
trap 'kill $redis $server 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
await_ready $server "$work/dev.log"
python3 tests/redis/lockstep.py --redis "$redis_port" --kvdb "$port" --seed "${SEED:-1}" --commands "${COMMANDS:-300000}"
