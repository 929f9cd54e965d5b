# What scripts share; to be sourced.

# Waits until a `kvdb dev` is ready: await_ready PID LOG. Without that within two minutes it fails, and shows its log.
await_ready() {
  local pid=$1 log=$2
  for _ in $(seq 1200); do
    grep -q "is ready" "$log" 2>/dev/null && return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  echo "kvdb dev isn't ready:" >&2
  tail -n 50 "$log" >&2
  return 1
}
