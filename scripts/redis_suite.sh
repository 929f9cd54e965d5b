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

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

# The version of the package's source that apt knows of.
known() { apt-cache showsrc redis 2>/dev/null | sed -n 's/^Version: \(5:7\.0\..*\)$/\1/p' | sort -V | tail -n 1; }

# Sources of the package, if need be in a list of their own so that the machine's stays as it is.
fetch() {
  compgen -G "$work/redis-7.0.*/runtest" >/dev/null && return 0
  command -v apt-get >/dev/null || return 1
  command -v tclsh >/dev/null || as_root apt-get install -y -q tcl >/dev/null
  command -v dpkg-source >/dev/null || as_root apt-get install -y -q dpkg-dev >/dev/null
  local list=/etc/apt/sources.list.d/kvdb-redis-suite.sources
  if [ -z "$(known)" ] && [ ! -f $list ]; then
    printf 'Types: deb-src\nURIs: http://deb.debian.org/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' |
      as_root tee $list >/dev/null
    as_root apt-get update -q >/dev/null
  fi
  [ -n "$(known)" ] || return 1
  (cd $work && apt-get source -q "redis=$(known)" >fetch.log 2>&1) || { tail -n 5 $work/fetch.log >&2; return 1; }
}

if ! fetch; then
  echo "skipped: Redis's own tests need the source package of redis 7.0 (Debian 12), which can't be had here"
  # Who asks for them by name is told that they didn't run.
  exit "${UNAVAILABLE:-1}"
fi
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
