#!/usr/bin/env bash
# Starts, stops and shows a cluster of processes on this machine: 3 coordinators, 3 nodes, 1 gateway.
# Only what this checkout started is ever touched: each part has a pid file, and a pid counts only while
# its executable is the one that was started.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${KVDB_BIN:-target/release/kvdb}
shards=${SHARDS:-8}
data=${KVDB_CLUSTER_DATA:-data}
logs=${KVDB_CLUSTER_LOGS:-logs}
offset=${PORT_OFFSET:-0}
parts=(coordinator-1 coordinator-2 coordinator-3 node-1 node-2 node-3 gateway)
port() { echo $(($1 + offset)); }
coordinators="127.0.0.1:$(port 7101),127.0.0.1:$(port 7102),127.0.0.1:$(port 7103)"
peers="1=127.0.0.1:$(port 7101),2=127.0.0.1:$(port 7102),3=127.0.0.1:$(port 7103)"
endpoint="127.0.0.1:$(port 7400)"

[ "$offset" = 0 ] && with_endpoint= || with_endpoint=" --endpoint $endpoint"
# Three addresses from a first port on.
addresses() { echo "127.0.0.1:$(port "$1") 127.0.0.1:$(port $(($1 + 1))) 127.0.0.1:$(port $(($1 + 2)))"; }

http_of() {
  case $1 in
    coordinator-*) port $((7180 + ${1##*-})) ;;
    node-*) port $((7280 + ${1##*-})) ;;
    gateway) port 7480 ;;
  esac
}

# Whether a process is a kvdb. (Its arguments can't be read once it has ended.)
is_kvdb() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -Eq '^([^ ]*/)?kvdb '; }

# Prints the pid of a part that runs.
pid_of() {
  local file=$data/run/$1.pid pid
  [ -f "$file" ] || return 1
  pid=$(cat "$file")
  is_kvdb "$pid" 2>/dev/null || return 1
  echo "$pid"
}

launch() {
  local part=$1 number=${1##*-} role=${1%-*}
  pid_of "$part" >/dev/null && return 0
  local args
  case $role in
    coordinator) args=(coordinator --id "$number" --peers "$peers" --data "$data/$part"
      --listen "127.0.0.1:$(port $((7100 + number)))") ;;
    node) args=(node --coordinators "$coordinators" --data "$data/$part"
      --listen "127.0.0.1:$(port $((7200 + number)))") ;;
    gateway) args=(gateway --coordinators "$coordinators" --listen "$endpoint"
      --redis "127.0.0.1:$(port 7379)") ;;
  esac
  nohup "$bin" "${args[@]}" --http "127.0.0.1:$(http_of "$part")" </dev/null >>"$logs/$part.log" 2>&1 &
  local pid=$!
  echo $pid >"$data/run/$part.pid"
  # Until it has become kvdb (or ended) it is a copy of this script.
  until is_kvdb $pid || ! kill -0 $pid 2>/dev/null; do sleep 0.01; done
}

fail() {
  echo "$1: $2. The end of $logs/$1.log:" >&2
  tail -n 15 "$logs/$1.log" >&2 || true
  exit 1
}

ready() { (exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && head -n 1 <&3 | grep -q 200) 2>/dev/null; }

wait_ready() {
  local part=$1 until=$((SECONDS + 60))
  until ready "$(http_of "$part")"; do
    pid_of "$part" >/dev/null || fail "$part" "has ended"
    [ $SECONDS -lt $until ] || fail "$part" "is not ready after 60 seconds"
    sleep 0.1
  done
}

# A key that isn't there is an answer too: it takes a shard that serves.
healthy() {
  local until=$((SECONDS + 60)) code
  while :; do
    code=0
    "$bin" --endpoint "$endpoint" get kvdb-health-probe >/dev/null 2>&1 || code=$?
    [ $code -gt 1 ] || return 0
    [ $SECONDS -lt $until ] || { echo "the cluster is not healthy after 60 seconds" >&2; exit 1; }
    sleep 0.1
  done
}

start() {
  [ -x "$bin" ] || { echo "$bin is not there; run \`make build\`" >&2; exit 1; }
  # Parts are found again by that name.
  [ "${bin##*/}" = kvdb ] || { echo "$bin must be named kvdb: this script knows its processes by the name" >&2; exit 1; }
  mkdir -p "$data/run" "$logs"
  local up=0 part
  for part in "${parts[@]}"; do pid_of "$part" >/dev/null && up=$((up + 1)); done
  if [ $up -eq ${#parts[@]} ]; then
    echo "The cluster is up."
  else
    local is_new
    for part in "${parts[@]}"; do
      is_new=
      [ -e "$data/$part" ] || is_new=1
      launch "$part"
      # Nodes get their numbers in the order in which they register: node-2 is to be node 2.
      case $part in node-*) [ -z "$is_new" ] || wait_ready "$part" ;; esac
    done
  fi
  for part in "${parts[@]}"; do wait_ready "$part"; done
  "$bin" --endpoint "$endpoint" admin init-shards --shards "$shards" >/dev/null
  healthy
  cat <<END
KvDB is ready: 3 coordinators, 3 nodes and a gateway, each a process of its own.

  gateway       gRPC $endpoint  Redis 127.0.0.1:$(port 7379)  HTTP http://127.0.0.1:$(port 7480)
  coordinators  gRPC $(addresses 7101)  HTTP $(addresses 7181)
  nodes         gRPC $(addresses 7201)  HTTP $(addresses 7281)
  files         data in $data, logs in $logs

Try:
  $bin$with_endpoint set greeting hello
  redis-cli -p $(port 7379) get greeting
  $bin$with_endpoint status

Stop it with \`make stop-cluster\`; the data stays. \`make wipe-data\` removes it.
Note: no authentication and no encryption yet: keep the ports on a private network.
END
}

stop() {
  local part pid
  # The front door first, then the data, then the control plane.
  for part in gateway node-1 node-2 node-3 coordinator-1 coordinator-2 coordinator-3; do
    pid=$(pid_of "$part") || continue
    kill -TERM "$pid" 2>/dev/null || true
  done
  for part in "${parts[@]}"; do
    local until=$((SECONDS + 15))
    while pid=$(pid_of "$part"); do
      [ $SECONDS -lt $until ] || { kill -KILL "$pid" 2>/dev/null || true; }
      sleep 0.05
    done
    rm -f "$data/run/$part.pid"
  done
  echo "The cluster is stopped."
}

status() {
  local part pid
  for part in "${parts[@]}"; do
    if pid=$(pid_of "$part"); then
      if ready "$(http_of "$part")"; then echo "$part  pid $pid  ready"; else echo "$part  pid $pid  not ready"; fi
    else
      echo "$part  down"
    fi
  done
  "$bin" --endpoint "$endpoint" admin status 2>/dev/null || echo "the gateway does not answer"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  status) status ;;
  wipe) stop && rm -rf "$data" "$logs" && echo "Data and logs are gone." ;;
  *) echo "usage: $0 start|stop|status|wipe" >&2; exit 2 ;;
esac
