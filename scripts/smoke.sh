#!/usr/bin/env bash
# Put, get, scan and delete against the running cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
kvdb=("${KVDB_BIN:-target/release/kvdb}" --endpoint "127.0.0.1:$((7400 + ${PORT_OFFSET:-0}))")
key="smoke-$$"
"${kvdb[@]}" put "$key" "value of $key" >/dev/null
[ "$("${kvdb[@]}" get "$key")" = "value of $key" ] || { echo "get: not what was put" >&2; exit 1; }
"${kvdb[@]}" scan --prefix "$key" | grep -q "value of $key" || { echo "scan: the key is missing" >&2; exit 1; }
"${kvdb[@]}" del "$key" >/dev/null
if "${kvdb[@]}" get "$key" >/dev/null 2>&1; then echo "del: the key is still there" >&2; exit 1; fi
echo "smoke test passed"
