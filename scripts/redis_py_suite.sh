#!/usr/bin/env bash
# redis-py's own tests of commands, from its source package, against a cluster in one process. A test that needs a command
# which KvDB doesn't have is counted apart; the few that fail otherwise are named in tests/redis/redis_py.txt, with reasons.
# Without python3 or the package it says so and, where UNAVAILABLE=0, counts as passed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
bin=$(realpath "${KVDB_BIN:-target/release/kvdb}")
offset=${PORT_OFFSET:-$((10000 + RANDOM % 10000))}
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
if ! { python3 -m venv "$work/venv" && cd "$work" &&
  venv/bin/pip install --quiet --disable-pip-version-check pytest pytest-asyncio pytest-timeout mock numpy PyJWT &&
  venv/bin/pip download --quiet --disable-pip-version-check --no-binary :all: --no-deps redis==8.1.0 &&
  tar xzf redis-*.tar.gz && venv/bin/pip install --quiet --disable-pip-version-check ./redis-*/; } >"$work/pip.log" 2>&1; then
  echo "skipped: redis-py's own tests need python3 and its source package, which can't be had here"
  exit "${UNAVAILABLE:-1}"
fi
cd "$OLDPWD"
judge=$PWD/tests/redis
expected=$(sed 's/ *#.*//; /^$/d' tests/redis/redis_py.txt | tr '\n' ' ')
TMPDIR=$work "$bin" dev --temporary --nodes 1 --shards 1 --port-offset "$offset" >"$work/dev.log" 2>&1 &
server=$!
await_ready $server "$work/dev.log"
cd "$work"/redis-*/
status=0
EXPECTED_FAILURES=$expected PYTHONPATH=$judge PYTHONDONTWRITEBYTECODE=1 timeout 900 "$work/venv/bin/python" -m pytest tests/test_commands.py -q --tb=no -r N -s --timeout 60 \
  -p redis_py_judge -p no:cacheprovider --redis-url "redis://127.0.0.1:$((7379 + offset))/0" >"$work/py.log" 2>&1 || status=$?
grep -E '^(FAILED [a-z_0-9]+:|redis-py:)' "$work/py.log" || { tail -n 30 "$work/py.log"; status=1; }
exit $status
