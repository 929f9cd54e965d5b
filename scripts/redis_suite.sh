#!/usr/bin/env bash
# Runs Redis's own tests, from Debian's source package of redis 7.0, against a cluster in one process. The sources stay
# under target/ and are never committed. Tests that need what isn't supported yet are named in tests/redis/skip.txt,
# each with its reason; every other one must pass.
#   UNITS="unit/scan unit/multi"   only these
#   FULL=1                         all rounds of the tests that `shorten` names
#   KVDB_BIN=target/debug/kvdb     another binary
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
bin=$(realpath -m "${KVDB_BIN:-target/release/kvdb}")
units=${UNITS:-unit/protocol unit/quit unit/type/string unit/type/incr unit/type/hash unit/type/list unit/type/list-2 unit/type/list-3 unit/type/set unit/type/zset unit/sort unit/geo unit/hyperloglog unit/dump unit/keyspace unit/expire unit/scan unit/bitops unit/multi}
offset=${PORT_OFFSET:-21000}
port=$((7379 + offset))
work=target/redis-suite
mkdir -p $work/logs
root=$(pwd)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# apt with a list of sources, and indexes, of this suite's own: the machine's stay as they are.
apt=$root/$work/apt
own() {
  local program=$1
  shift
  "$program" -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts="$apt/parts" \
    -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root "$@"
}

# The sources that belong to the packages this machine is set up for: a `deb-src` for each `deb`.
list_sources() {
  local etc=${APT_ETC:-/etc/apt} file
  rm -rf "$apt/parts"
  mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/cache/archives/partial"
  { cat "$etc/sources.list" "$etc"/sources.list.d/*.list 2>/dev/null || true; } | sed -n 's/^[[:space:]]*deb[[:space:]]/deb-src /p' >"$apt/sources.list"
  for file in "$etc"/sources.list.d/*.sources; do
    [ ! -f "$file" ] || sed 's/^Types:.*/Types: deb-src/' "$file" >"$apt/parts/$(basename "$file")"
  done
}

# The version of the package's source that apt knows of.
known() { own apt-cache showsrc redis 2>/dev/null | sed -n 's/^Version: \(5:7\.0\..*\)$/\1/p' | sort -V | tail -n 1; }

fetch() {
  compgen -G "$work/redis-7.0.*/runtest" >/dev/null && return 0
  command -v apt-get >/dev/null || return 1
  command -v tclsh >/dev/null || as_root apt-get install -y -q tcl >/dev/null
  command -v dpkg-source >/dev/null || as_root apt-get install -y -q dpkg-dev >/dev/null
  list_sources
  # A place that has packages but no sources of them is an error to apt, and none here.
  own apt-get update -q >"$work/fetch.log" 2>&1 || true
  [ -n "$(known)" ] || return 1
  (cd $work && own apt-get source -q "redis=$(known)" >>fetch.log 2>&1) || { tail -n 5 $work/fetch.log >&2; return 1; }
}

# Some tests send tens of thousands of commands one after the other, minutes with a debug build. A copy of their unit does fewer
# rounds. (Those of unit/sort fill lists and sets for tests that need BY with a pattern, which aren't run.)
shorten() {
  mkdir -p "$suite/tests/short"
  sed 's/^\( *\)10000\? \(lpush\|sadd\)/\1100 \2/' "$suite/tests/unit/sort.tcl" >"$suite/tests/short/sort.tcl"
  sed 's/{\$x < 10000}/{$x < 500}/; /test {Fuzzing dense/,/^    }/s/{\$j < 1000}/{$j < 100}/' \
    "$suite/tests/unit/hyperloglog.tcl" >"$suite/tests/short/hyperloglog.tcl"
}

# What would be asked for, and no more: for a look at it, and for its test.
if [ "${1:-}" = list-sources ]; then
  list_sources
  cat "$apt/sources.list" "$apt"/parts/* 2>/dev/null || true
  exit 0
fi

if ! fetch; then
  echo "skipped: Redis's own tests need the source package of redis 7.0 (Debian 12), which can't be had here"
  # Who asks for them by name is told that they didn't run.
  exit "${UNAVAILABLE:-1}"
fi
suite=$(echo $root/$work/redis-7.0.*/)

shorten

# The suite reads names of tests, one a line; a reason stands after " # needs".
grep -v '^#' tests/redis/skip.txt | sed 's/ # needs .*//; /^$/d' >$work/skip.txt
skipped=$(wc -l <$work/skip.txt)

"$bin" dev --temporary --port-offset "$offset" >$work/dev.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
await_ready $server $work/dev.log

passed=0 failed=0
cd "$suite"
for unit in $units; do
  log=$root/$work/logs/${unit//\//_}.log file=$unit
  [ -n "${FULL:-}" ] || [ ! -f "tests/short/${unit#unit/}.tcl" ] || file=short/${unit#unit/}
  ./runtest --host 127.0.0.1 --port $port --singledb --cluster-mode --ignore-encoding --ignore-digest --durable \
    --tags "-slow -needs:debug -needs:pfdebug -needs:repl -needs:config-maxmemory" --skipfile "$root/$work/skip.txt" \
    --single "$file" >"$log" 2>&1 </dev/null || true
  ok=$(grep -c '\[.*ok.*\]: ' "$log" || true)
  # Failures stand twice in the log, as they happen and in the summary with stars.
  bad=$(grep -E '\[.*(err|exception|timeout).*\]: ' "$log" | grep -vc '^\*\*\*' || true)
  # Something that broke the run itself.
  if [ "$bad" = 0 ] && ! grep -q 'All tests passed' "$log"; then bad=1; tail -n 20 "$log"; fi
  [ "$bad" = 0 ] || grep -E '\[.*(err|exception|timeout).*\]: ' -A 2 "$log" | grep -v '^\*\*\*' | head -n 60
  echo "$unit passed=$ok failed=$bad"
  passed=$((passed + ok)) failed=$((failed + bad))
done
echo "passed=$passed failed=$failed skipped=$skipped"
[ "$failed" = 0 ]
