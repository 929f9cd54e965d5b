#!/usr/bin/env bash
# Counts the instructions of hot pieces under valgrind and holds them against bench/instructions.txt. Counts hardly
# depend on the machine's load, as times do; they do depend on the compiler.
#   scripts/instructions.sh            fails where a piece takes more than 10 % above the recorded count
#   scripts/instructions.sh --update   records what is counted now
set -euo pipefail
cd "$(dirname "$0")/.."
baseline=bench/instructions.txt
pieces=(routing codec resp wal apply)
command -v valgrind >/dev/null || { echo "valgrind is not there; install it (Debian's package is valgrind)" >&2; exit 1; }
cargo build --quiet --release --locked --package kvdb-bench --example hot
hot=target/release/examples/hot
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# All instructions of a run.
run() { # PIECE TIMES
  valgrind --tool=callgrind --callgrind-out-file="$scratch/out" "$hot" "$1" "$2" >"$scratch/log" 2>&1 ||
    { cat "$scratch/log" >&2; exit 1; }
  sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$scratch/log"
}

# Of one step: what 1,000 more of them cost, so that the start of the process doesn't count.
count() { # PIECE
  local few many
  few=$(run "$1" 1000)
  many=$(run "$1" 2000)
  echo $(((many - few) / 1000))
}

failed=0
found="# Instructions of one step of each piece, counted by scripts/instructions.sh with $(rustc --version)."
for piece in "${pieces[@]}"; do
  now=$(count "$piece")
  found+=$'\n'"$piece $now"
  before=$(awk -v piece="$piece" '$1 == piece { print $2 }' "$baseline" 2>/dev/null || true)
  if [ -z "$before" ]; then
    echo "$piece: $now, not recorded yet"
  else
    echo "$piece: $now, recorded $before ($(awk -v now="$now" -v before="$before" 'BEGIN { printf "%+.1f %%", (now / before - 1) * 100 }'))"
    [ $((now * 100)) -le $((before * 110)) ] || failed=1
  fi
done
if [ "${1:-}" = --update ]; then
  mkdir -p bench
  echo "$found" >"$baseline"
  echo "recorded in $baseline"
elif [ $failed = 1 ]; then
  echo "More than 10 % above what is recorded. If it is worth it: scripts/instructions.sh --update" >&2
  exit 1
fi
