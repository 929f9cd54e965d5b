#!/usr/bin/env bash
# A Python client made from the .proto files alone, against a running cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
command -v python3 >/dev/null || { echo "skipped: the Python client test needs python3"; exit 0; }
work=$(mktemp -d)
bin=${CARGO_TARGET_DIR:-$PWD/target}/debug/kvdb
export PORT_OFFSET=$((10000 + RANDOM % 10000))
trap 'kill "${pid:-0}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" install --quiet --disable-pip-version-check grpcio grpcio-tools 2>"$work/pip.log"; then
  echo "skipped: the Python client test needs grpcio and grpcio-tools, which pip can't reach here"
  exit 0
fi
"$work/venv/bin/python" -m grpc_tools.protoc -Iproto --python_out="$work" --grpc_python_out="$work" proto/kvdb/v1/*.proto
cargo build --quiet --locked -p kvdb
"$bin" dev --temporary --port-offset "$PORT_OFFSET" >"$work/dev.log" 2>&1 &
pid=$!
await_ready $pid "$work/dev.log"
PYTHONPATH="$work" "$work/venv/bin/python" tests/python/client.py "$PORT_OFFSET"
PYTHONPATH="$work" "$work/venv/bin/python" examples/python/tour.py "127.0.0.1:$((7400 + PORT_OFFSET))"
