#!/usr/bin/env bash
# Checks how large the release binary is.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${KVDB_BIN:-target/release/kvdb}
most_mib=30
bytes=$(stat -c %s "$bin")
echo "size: $bin has $(awk -v bytes="$bytes" 'BEGIN { printf "%.1f", bytes / 1048576 }') MiB; at most $most_mib are wanted"
if [ "$bytes" -gt $((most_mib * 1024 * 1024)) ]; then
  echo "too large: look for debug information (profile.release in Cargo.toml) and new dependencies (cargo tree)" >&2
  exit 1
fi
