#!/usr/bin/env bash
# KvDB beside etcd and Redis: three nodes of each on loopback, one system at a time, the same loop, client
# count, keys and values. Prints the targets with their ratios and every row; writes bench/results/NAME.json,
# NAME.md and plots. docs/performance.md says what is measured and how.
#
#   QUICK=1            2 seconds a row instead of 5, and no growth, restart, import or curves
#   SYSTEMS="..."      some of: echo etcd redis kvdb growth curves nodes (all by default)
#   NAME=2026-11-25    name of the result files; today by default
#   ROWS=FILE          keep the rows there, add to what is there already, and compare all of them
#   KEYS=100000        keys; growth goes to ten times as many
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$(realpath "${KVDB_BIN:-target/release/kvdb}")
quick=${QUICK:-}
systems=${SYSTEMS:-echo etcd redis kvdb $([ -n "$quick" ] || echo growth curves nodes)}
keys=${KEYS:-100000}
length=$([ -n "$quick" ] && echo 2 || echo 5)
name=${NAME:-$(date +%F)}
[ -x "$bin" ] || { echo "$bin is not there; run \`make build\`" >&2; exit 1; }
[ "$(basename "$bin")" = kvdb ] || { echo "$bin must be called kvdb: that is how scripts/cluster.sh knows its own" >&2; exit 1; }
mkdir -p bench/work
work=$(mktemp -d "$PWD/bench/work/run-XXXXXX")
rows=${ROWS:-$work/rows.jsonl}
touch "$rows"
missing=()

# --- processes ---------------------------------------------------------------------------------------

# What this script has started and not yet ended.
started=()

launch() { # LOG COMMAND...: sets $pid
  local log=$1
  shift
  "$@" </dev/null >"$log" 2>&1 &
  pid=$!
  started+=("$pid")
}

end_all() { # SIGNAL
  local pid
  for pid in "${started[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  started=()
}

cluster() { # COMMAND: the KvDB cluster of $data
  KVDB_BIN=$bin KVDB_CLUSTER_DATA=$data/state KVDB_CLUSTER_LOGS=$data/logs PORT_OFFSET=$offset SHARDS=$shards \
    scripts/cluster.sh "$1"
}

clean_up() {
  end_all KILL
  [ -z "${data:-}" ] || cluster stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# --- small things ------------------------------------------------------------------------------------

say() { echo "$*" >&2; }
comma() { local IFS=,; echo "$*"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.3f", to - from }'; }

# Ports that are free now, a line each.
free_ports() {
  python3 -c '
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for one in sockets:
    one.bind(("127.0.0.1", 0))
for one in sockets:
    print(one.getsockname()[1])' "$1"
}

# An offset by which all ports of a KvDB cluster are free.
free_offset() {
  python3 -c '
import random, socket
ports = [7101, 7102, 7103, 7181, 7182, 7183, 7201, 7202, 7203, 7281, 7282, 7283, 7379, 7400, 7480]
def free(port):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
while True:
    offset = random.randrange(1000, 20000)
    if all(free(port + offset) for port in ports):
        print(offset)
        break'
}

http() { # PORT PATH
  (exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET %s HTTP/1.0\r\n\r\n' "$2" >&3 && cat <&3) 2>/dev/null
}

until_true() { # WHAT COMMAND...: at most 60 seconds
  local what=$1 until=$((SECONDS + 60))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || { say "$what is not ready after 60 seconds; logs: $work"; trap - EXIT; end_all KILL; exit 1; }
    sleep 0.1
  done
}

ticks() { # PID...: processor time in hundredths of a second
  local pid sum=0 fields
  for pid in "$@"; do
    fields=$(sed 's/.*) //' "/proc/$pid/stat")
    sum=$((sum + $(echo "$fields" | awk '{ print $12 + $13 }')))
  done
  echo $sum
}

resident() { # PID...: KiB
  local pid sum=0
  for pid in "$@"; do sum=$((sum + $(awk '/^VmRSS:/ { print $2 }' "/proc/$pid/status"))); done
  echo $sum
}

# One run of the loop: SYSTEM ROW options.
row() {
  local system=$1 row=$2
  shift 2
  say "  $system $row"
  "$bin" bench --json --keyspace default --system "$system" --row "$row" --seconds "$length" --keys "$keys" --value-bytes 128 \
    --server-pid "$(comma "${servers[@]}")" "$@" >>"$rows" || say "  $system $row: FAILED"
}

# A row that isn't one of the loop: SYSTEM ROW JSON-FIELDS.
other_row() { printf '{"system":"%s","row":"%s",%s}\n' "$1" "$2" "$3" >>"$rows"; }

# Installs a package of Debian where its program is missing. The service that comes with it is not wanted.
need() { # PROGRAM PACKAGE SERVICE
  command -v "$1" >/dev/null && return 0
  local become=()
  [ "$(id -u)" = 0 ] || become=(sudo -n)
  say "installing $2 from Debian's packages"
  if ! command -v apt-get >/dev/null || ! "${become[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
    apt-get install -y --no-install-recommends "$2" >"$work/apt.log" 2>&1; then
    say "$1 is not there and cannot be installed ($(tail -n 1 "$work/apt.log" 2>/dev/null || echo 'no apt-get')): going on without it"
    missing+=("$1")
    return 1
  fi
  if [ -d /run/systemd/system ]; then "${become[@]}" systemctl disable --now "$3" >/dev/null 2>&1 || true; fi
  command -v "$1" >/dev/null
}

# --- the systems -------------------------------------------------------------------------------------

grpc_rows() { # SYSTEM options: puts and linearizable gets, a unary call each
  local system=$1
  shift
  row "$system" put-c64 --clients 64 --mode put --fill "$@"
  row "$system" put-c256 --clients 256 --mode put "$@"
  row "$system" put-c1 --clients 1 --mode put "$@"
  row "$system" get-c64 --clients 64 --mode get "$@"
  row "$system" get-c256 --clients 256 --mode get "$@"
}

redis_rows() { # SYSTEM ADDRESS
  local way=(--target redis --address "$2")
  row "$1" SET-c64 --clients 64 --mode put --fill "${way[@]}"
  row "$1" SET-c64-p16 --clients 64 --pipeline 16 --mode put "${way[@]}"
  row "$1" GET-c64 --clients 64 --mode get "${way[@]}"
  row "$1" GET-c64-p16 --clients 64 --pipeline 16 --mode get "${way[@]}"
}

measure_echo() {
  say "echo: a unary gRPC service that answers at once"
  local port
  port=$(free_ports 1)
  launch "$work/echo.log" "$bin" bench echo-server --listen "127.0.0.1:$port"
  servers=("$pid")
  until_true echo grep -q . "$work/echo.log"
  grpc_rows echo --target echo --address "127.0.0.1:$port"
  end_all TERM
}

etcd_leader() { # PORT...: the port of the member that leads
  local port metrics
  for port in "$@"; do
    metrics=$(http "$port" /metrics) || continue
    case $metrics in *$'\netcd_server_is_leader 1'*) echo "$port"; return 0 ;; esac
  done
  return 1
}

measure_etcd() {
  need etcd etcd-server etcd || return 0
  say "etcd: three members, its default durability (each entry synced on a majority)"
  local ports=() client=() peer=() members="" number
  mapfile -t ports < <(free_ports 6)
  client=("${ports[@]:0:3}") peer=("${ports[@]:3:3}")
  for number in 0 1 2; do members+="${members:+,}m$number=http://127.0.0.1:${peer[number]}"; done
  servers=()
  for number in 0 1 2; do
    launch "$work/etcd-$number.log" etcd --name "m$number" --data-dir "$work/etcd-$number" \
      --listen-client-urls "http://127.0.0.1:${client[number]}" --advertise-client-urls "http://127.0.0.1:${client[number]}" \
      --listen-peer-urls "http://127.0.0.1:${peer[number]}" --initial-advertise-peer-urls "http://127.0.0.1:${peer[number]}" \
      --initial-cluster "$members" --initial-cluster-state new
    servers+=("$pid")
  done
  until_true etcd etcd_leader "${client[@]}"
  # Clients ask the leader: a member that follows would have to ask it in turn.
  grpc_rows etcd --target etcd --address "127.0.0.1:$(etcd_leader "${client[@]}")"
  end_all TERM
  rm -rf "$work"/etcd-*
}

measure_redis() {
  need redis-server redis-server redis-server || return 0
  say "Redis: a primary that syncs its log before each answer, two asynchronous replicas in memory"
  local ports=() number more
  mapfile -t ports < <(free_ports 3)
  servers=()
  for number in 0 1 2; do
    mkdir -p "$work/redis-$number"
    more=(--replicaof 127.0.0.1 "${ports[0]}")
    [ $number != 0 ] || more=(--appendonly yes --appendfsync always)
    launch "$work/redis-$number.log" redis-server --port "${ports[number]}" --bind 127.0.0.1 --dir "$work/redis-$number" \
      --save "" --repl-diskless-sync yes --repl-diskless-sync-delay 0 "${more[@]}"
    servers+=("$pid")
    until_true "Redis $number" redis-cli -p "${ports[number]}" ping
  done
  for number in 1 2; do
    until_true "replica $number" sh -c "redis-cli -p ${ports[number]} info replication | grep -q master_link_status:up"
  done
  redis_rows redis "127.0.0.1:${ports[0]}"
  end_all TERM
  rm -rf "$work"/redis-*
}

start_kvdb() { # SHARDS
  shards=$1
  data=$work/kvdb-$1
  offset=$(free_offset)
  cluster start >/dev/null
  mapfile -t servers < <(cat "$data"/state/run/*.pid)
  mapfile -t nodes < <(cat "$data"/state/run/node-*.pid)
  mapfile -t coordinators < <(cat "$data"/state/run/coordinator-*.pid)
  grpc=127.0.0.1:$((7400 + offset))
  until_true "a leader of each shard" all_led
}

all_led() {
  "$bin" --endpoint "$grpc" admin status --json |
    python3 -c 'import json, sys; status = json.load(sys.stdin); sys.exit(not 0 < status["shards"] == status["shards_with_leader"])'
}

# How often replicas have become leaders.
elections() {
  local number
  for number in 1 2 3; do http $((7280 + number + offset)) /metrics; done |
    awk '$1 == "kvdb_raft_elections_won_total" { all += $2 } END { print all }'
}

# Nobody uses any shard, and nothing is left to be done about them.
at_rest() {
  local before
  before=$(elections)
  sleep 5
  [ "$(elections)" = "$before" ] && nearly_all_asleep
}

# (A few are awake at any time: leaders wake now and then to see that all is well.)
nearly_all_asleep() {
  local number
  for number in 1 2 3; do
    http $((7280 + number + offset)) /metrics |
      awk '$1 == "kvdb_replicas" { all = $2 } $1 == "kvdb_replicas_hibernating" { asleep = $2 } END { exit !(all > 0 && asleep >= 0.95 * all) }' || return 1
  done
}

stop_kvdb() {
  cluster stop >/dev/null
  rm -rf "$data"
  data=
}

measure_kvdb() {
  say "KvDB: three coordinators, three nodes, one gateway; 8 shards of three replicas"
  start_kvdb 8
  grpc_rows kvdb --target kvdb-grpc --address "$grpc"
  redis_rows kvdb "127.0.0.1:$((7379 + offset))"
  stop_kvdb
}

# 10 times the keys by an import; a restart after kill -9; 1,000 shards.
measure_growth() {
  local base=$keys many=$((keys * 10)) from code fields before idle control until
  say "KvDB: growth from $base to $many keys"
  start_kvdb 8
  row kvdb put-c64-1x-keys --clients 64 --mode put --fill --address "$grpc"
  before=$(resident "${nodes[@]}")
  say "  kvdb import of $many rows"
  rows_of "$many" >"$work/rows.tsv"
  code=0
  fields=$(timed "$bin" --endpoint "$grpc" import "$work/rows.tsv") || code=$?
  [ $code = 0 ] && other_row kvdb import "$(echo "$fields" | awk -v rows="$many" \
    '{ printf "\"rows\":%d,\"rows_per_second\":%.0f,\"seconds\":%s,\"client_peak_memory_mib\":%.0f", rows, rows / $1, $1, $2 / 1024 }')" ||
    say "  kvdb import: FAILED"
  rm -f "$work/rows.tsv"
  keys=$many row kvdb put-c64-10x-keys --clients 64 --mode put --address "$grpc"
  say "  kvdb restart with $many keys after kill -9 of every process"
  kill -KILL "${servers[@]}"
  until_true "the end" no_process "${servers[@]}"
  from=$(now)
  cluster start >/dev/null
  "$bin" --endpoint "$grpc" put bench:restart yes >/dev/null
  other_row kvdb restart "\"keys\":$many,\"seconds\":$(since "$from")"
  stop_kvdb

  say "KvDB: 1,000 shards"
  start_kvdb 8
  before=$(resident "${nodes[@]}")
  stop_kvdb
  from=$(now)
  start_kvdb 1000
  fields="\"seconds_to_all_leaders\":$(since "$from")"
  # Leaders are spread evenly first; that is work too.
  until=$((SECONDS + 600))
  until at_rest || [ $SECONDS -ge $until ]; do :; done
  fields+=",\"seconds_to_rest\":$(since "$from")"
  before=$((($(resident "${nodes[@]}") - before) / 3))
  idle=$(ticks "${nodes[@]}") control=$(ticks "${coordinators[@]}")
  from=$(now)
  sleep 10
  idle=$(($(ticks "${nodes[@]}") - idle)) control=$(($(ticks "${coordinators[@]}") - control))
  fields+=$(awk -v ticks="$idle" -v took="$(since "$from")" -v control="$control" -v kib="$before" \
    'BEGIN { printf ",\"cores_per_node\":%.4f,\"cores_of_coordinators\":%.4f,\"kib_per_replica\":%.1f",
      ticks / 100 / took / 3, control / 100 / took, kib / 1000 }')
  other_row kvdb idle-1000-shards "$fields"
  row kvdb put-c64-1000-shards --clients 64 --mode put --fill --address "$grpc"
  stop_kvdb
}

# Throughput and memory by keys, clients, shards and nodes: a row a point, plotted as curves.
measure_curves() {
  local count base= before after gateway mode
  say "KvDB: curves"
  start_kvdb 8
  # Before any load: what that leaves free would be taken first.
  gateway=$(cat "$data/state/run/gateway.pid")
  for count in 100 1000 5000; do
    other_row kvdb "gateway@connections=$count" "\"kib_each\":$(memory_of_connections "$gateway" $((7379 + offset)) "$count")"
  done
  base=$(resident "${nodes[@]}")
  for count in "$keys" $((keys * 10)); do
    rows_of "$count" >"$work/rows.tsv"
    "$bin" --endpoint "$grpc" import "$work/rows.tsv" >/dev/null
    rm -f "$work/rows.tsv"
    after=$(resident "${nodes[@]}")
    other_row kvdb "nodes@keys=$count" "$(awk -v kib=$((after - base)) -v count="$count" 'BEGIN { printf "\"kib_each\":%.3f", kib / count }')"
    for mode in put get; do
      keys=$count row kvdb "$mode@keys=$count" --clients 64 --mode $mode --address "$grpc"
    done
  done
  for count in 1 4 16 64 256 1000; do
    for mode in put get; do row kvdb "$mode@clients=$count" --clients "$count" --mode $mode --address "$grpc"; done
  done
  stop_kvdb
  base=
  for count in 8 64 256 1000; do
    start_kvdb "$count"
    before=$(resident "${nodes[@]}")
    [ -z "$base" ] && base=$before ||
      other_row kvdb "replica@shards=$count" "$(awk -v kib=$((before - base)) -v count=$((3 * (count - 8))) 'BEGIN { printf "\"kib_each\":%.1f", kib / count }')"
    row kvdb "put@shards=$count" --clients 64 --mode put --fill --address "$grpc"
    row kvdb "get@shards=$count" --clients 64 --mode get --address "$grpc"
    stop_kvdb
  done
}

# One process with so many nodes and a gateway: what one machine can show of it.
measure_nodes() {
  local count
  say "KvDB: curve by nodes"
  for count in 1 3 5; do
    offset=$(free_offset)
    grpc=127.0.0.1:$((7400 + offset))
    launch "$work/dev.log" "$bin" dev --temporary --nodes "$count" --port-offset "$offset"
    servers=("$pid")
    until_true "a leader of each shard" all_led
    row kvdb "put@nodes=$count" --clients 64 --mode put --fill --address "$grpc"
    row kvdb "get@nodes=$count" --clients 64 --mode get --address "$grpc"
    end_all TERM
  done
}

# KiB that each of so many idle connections of the Redis protocol costs a process.
memory_of_connections() { # PID PORT COUNT
  python3 -c '
import resource, socket, sys
pid, port, count = map(int, sys.argv[1:])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 100, most), most))
def resident():
    lines = open(f"/proc/{pid}/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
before, held = resident(), []
for _ in range(count):
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall(b"PING\r\n")
    assert one.recv(64) == b"+PONG\r\n"
    held.append(one)
print("%.1f" % (max(0, resident() - before) / count))' "$@"
}

no_process() {
  local pid
  for pid in "$@"; do [ ! -e "/proc/$pid" ] || return 1; done
}

# Rows as `import` reads them: the keys of the loop, values of 128 bytes that don't repeat.
rows_of() {
  python3 -c '
import random, sys
random.seed(1)
out = sys.stdout
for number in range(int(sys.argv[1])):
    out.write("bench:%010d\t%0128x\n" % (number, random.getrandbits(512)))' "$1"
}

# Seconds and peak memory in KiB of a command.
timed() {
  python3 -c '
import resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print("%.3f %d" % (time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)' "$@"
}

about() {
  local cpu memory
  cpu=$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)
  memory=$(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)
  echo "Measured on $(date +%F) with \`make bench\`${quick:+ (QUICK=1)} on $(nproc) x ${cpu:-an unknown processor}, $memory, $(uname -sr):" \
    "everything on this one machine, over loopback, one system at a time; $length seconds a row, ${1} keys of 16 bytes, values of" \
    "128 bytes. $("$bin" --version)$(etcd --version 2>/dev/null | awk '/^etcd Version/ { print ", etcd " $3 }')$(redis-server --version 2>/dev/null |
      sed -n 's/.*v=\([0-9.]*\).*/, Redis \1/p')."
}

for system in $systems; do
  case $system in
    echo | etcd | redis | kvdb | growth | curves | nodes) "measure_$system" ;;
    *) say "SYSTEMS: there is no $system; there are echo, etcd, redis, kvdb, growth, curves and nodes"; exit 2 ;;
  esac
done
mkdir -p bench/results
"$bin" bench compare "$rows" --out bench/results --name "$name" --about "$(about "$keys")"
[ ${#missing[@]} = 0 ] || say "Without ${missing[*]}: could not be installed; their targets are not measured."
say "Written: bench/results/$name.json, $name.md and plots."
