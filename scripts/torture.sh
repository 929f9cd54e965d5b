#!/usr/bin/env bash
# `kvdb torture` with the built binary: LENGTH seconds, with the schedule of SEED.
set -euo pipefail
cd "$(dirname "$0")/.."
# What some faults need. Installed only by root and only where it is missing; a fault whose tool
# can't be had is skipped, and the report says so.
wanted=()
for pair in strace:strace fsfreeze:util-linux mkfs.ext4:e2fsprogs; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || wanted+=("${pair##*:}")
done
if [ "${#wanted[@]}" -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${wanted[*]}" >&2
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${wanted[@]}"; } >/dev/null 2>&1 ||
    echo "they can't be installed; going on without" >&2
fi
args=(--seconds "${LENGTH:-600}")
[ -n "${SEED:-}" ] && args+=(--seed "$SEED")
mkdir -p target/torture
exec "${KVDB_BIN:-target/release/kvdb}" torture "${args[@]}" \
  --html target/torture/report.html --json-file target/torture/report.json
