#!/usr/bin/env bash
# Runs Redis's own tests, from Debian's source package of redis 7.0, against a cluster in one process. The sources stay
# under target/ and are never committed. Tests that need what isn't supported yet are named in tests/redis/skip.txt,
# each with its reason; every other one must pass.
#   UNITS="unit/scan unit/multi"   only these
#   KVDB_BIN=target/debug/kvdb     another binary
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${KVDB_BIN:-target/release/kvdb}")
units=${UNITS:-unit/protocol unit/quit unit/type/string unit/type/incr unit/keyspace unit/expire unit/scan unit/bitops unit/multi}
offset=${PORT_OFFSET:-21000}
port=$((7379 + offset))
work=target/redis-suite
mkdir -p $work/logs
root=$(pwd)

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Sources of the package, in a list of their own so that the machine's stays as it is.
fetch() {
  [ -d "$work"/redis-7.0.* ] 2>/dev/null && return 0
  command -v tclsh >/dev/null || as_root apt-get install -y -q tcl >/dev/null
  command -v dpkg-source >/dev/null || as_root apt-get install -y -q dpkg-dev >/dev/null
  local list=/etc/apt/sources.list.d/kvdb-redis-suite.sources
  if [ ! -f $list ]; then
    printf 'Types: deb-src\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' |
      as_root tee $list >/dev/null
    as_root apt-get update -q >/dev/null
  fi
  (cd $work && apt-get source -q redis=5:7.0* >fetch.log 2>&1) || { tail -5 $work/fetch.log >&2; exit 1; }
}

if ! fetch; then echo "the source package of redis 7.0 can't be had here" >&2; exit 1; fi
suite=$(echo $root/$work/redis-7.0.*/)

# The suite reads names of tests, one a line; a reason stands after " # needs".
grep -v '^#' tests/redis/skip.txt | sed 's/ # needs .*//; /^$/d' >$work/skip.txt
skipped=$(wc -l <$work/skip.txt)

"$bin" dev --temporary --port-offset "$offset" >$work/dev.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
for _ in $(seq 600); do
  grep -q "is ready" $work/dev.log && break
  kill -0 $server 2>/dev/null || { cat $work/dev.log >&2; exit 1; }
  sleep 0.1
done

passed=0 failed=0
cd "$suite"
for unit in $units; do
  log=$root/$work/logs/${unit//\//_}.log
  ./runtest --host 127.0.0.1 --port $port --singledb --cluster-mode --ignore-encoding --ignore-digest --durable \
    --tags "-slow -needs:debug -needs:repl -needs:config-maxmemory" --skipfile "$root/$work/skip.txt" \
    --single "$unit" >"$log" 2>&1 </dev/null || true
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
