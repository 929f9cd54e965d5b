#!/usr/bin/env bash
# Checks what is in deploy/ with promtool: configuration, rules and their tests, each expression of the dashboard, and the
# metrics of a cluster in one process. Without promtool it says so; Debian's package prometheus has it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
bin=$(realpath -m "${KVDB_BIN:-target/release/kvdb}")
offset=${PORT_OFFSET:-$((10000 + RANDOM % 10000))}
if ! command -v promtool >/dev/null; then
  echo "skipped: the check of deploy/ needs promtool (Debian: apt-get install prometheus)"
  exit "${UNAVAILABLE:-1}"
fi
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill $server 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$work"' EXIT
(cd deploy/prometheus && promtool check config prometheus.yml && promtool test rules kvdb-alerts-test.yml)
# The dashboard's expressions, as rules; Grafana's interval becomes a plain one.
python3 - deploy/grafana/kvdb.json >"$work/dashboard.yml" <<'END'
import json, sys
print("groups:\n- name: dashboard\n  rules:")
for panel in json.load(open(sys.argv[1]))["panels"]:
    for target in panel.get("targets", []):
        expression = target["expr"].replace("$__rate_interval", "1m")
        print(f"  - record: panel_{panel['id']}_{target['refId'].lower()}\n    expr: {json.dumps(expression)}")
END
promtool check rules "$work/dashboard.yml"
TMPDIR=$work "$bin" dev --temporary --port-offset "$offset" >"$work/dev.log" 2>&1 &
server=$!
await_ready $server "$work/dev.log"
for port in 7181 7281 7480; do
  python3 - $((port + offset)) >"$work/metrics" <<'END'
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read().decode())
END
  # In OpenMetrics a counter's name has no _total where its type and help stand; promtool reads the older format.
  python3 - "$work/metrics" <<'END' >"$work/plain"
import re, sys
text = open(sys.argv[1]).read().replace("# EOF", "")
counters = set(re.findall(r"^# TYPE (\w+) counter$", text, re.M))
infos = set(re.findall(r"^# TYPE (\w+) info$", text, re.M))
def name(match):
    kind, name, rest = match.groups()
    if name in counters:
        name += "_total"
    if name in infos:
        name, rest = name + "_info", "gauge" if kind == "TYPE" else rest
    return f"# {kind} {name} {rest}"
print(re.sub(r"^# (HELP|TYPE) (\w+) (.*)$", name, text, flags=re.M).strip())
END
  promtool check metrics <"$work/plain"
done
echo "deploy: checked"
