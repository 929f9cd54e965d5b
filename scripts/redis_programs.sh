#!/usr/bin/env bash
# Programs and frameworks that are built on Redis's collections, against a cluster of processes: tests/python/redis_programs.py,
# while a node is killed, then tests/python/redis_frameworks.py and django-redis's own tests, from its source package.
# Without python3 or the packages it says so and, where UNAVAILABLE=0, counts as passed.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
export KVDB_BIN=${KVDB_BIN:-target/release/kvdb} PORT_OFFSET=${PORT_OFFSET:-$((10000 + RANDOM % 10000))}
export KVDB_CLUSTER_DATA=$work/data KVDB_CLUSTER_LOGS=$work/logs
trap 'scripts/cluster.sh wipe >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
if ! { python3 -m venv "$work/venv" &&
  "$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check redis==8.1.0 rq==3.0.0 dramatiq==2.2.1 django==5.2.19 \
    django-redis==7.0.0 pytest==9.2.0 pytest-mock==3.17.0 pytest-xdist==3.8.0 msgpack==1.2.4 &&
  "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-binary django-redis --no-deps --dest "$work" django-redis==7.0.0 &&
  tar xzf "$work"/django_redis-*.tar.gz -C "$work"; } >"$work/pip.log" 2>&1; then
  echo "skipped: the programs need python3 and packages of PyPI, which can't be had here"
  exit "${UNAVAILABLE:-1}"
fi
python=$work/venv/bin/python port=$((7379 + PORT_OFFSET)) endpoint=127.0.0.1:$((7400 + PORT_OFFSET))
export PYTHONDONTWRITEBYTECODE=1

scripts/cluster.sh start >/dev/null
"$python" tests/python/redis_programs.py "$port" "$KVDB_BIN" "$endpoint" "$KVDB_CLUSTER_DATA/run"
scripts/cluster.sh start >/dev/null

# django-redis's own tests wait most of the time: beside the frameworks. Of its settings, those of the plain client.
sed -i "s/127\.0\.0\.1:6379/127.0.0.1:$port/g" "$work"/django_redis-*/tests/settings/*.py
(cd "$work"/django_redis-*/ && exec timeout 300 "$python" -m pytest tests -q --tb=short -r f -c /dev/null --rootdir . -p no:cacheprovider \
  -k 'sqlite] or not sqlite' >"$work/django.log" 2>&1) &
django=$!
"$python" tests/python/redis_frameworks.py "$port"
wait $django || true
sed -n 's/^FAILED .*::\([a-z_]*\).*/\1/p' "$work/django.log" | sort -u >"$work/failed"
sed 's/ *#.*//; /^$/d' tests/redis/django_redis.txt | sort -u >"$work/expected"
tail -n 1 "$work/django.log" | sed 's/^=* *//; s/ *=*$//; s/^/django-redis: /'
if ! grep -q ' passed' "$work/django.log" || grep -q '^ERROR' "$work/django.log" || ! diff "$work/expected" "$work/failed" >"$work/diff"; then
  echo "django-redis: other tests than those of tests/redis/django_redis.txt have failed (> now, < expected):"
  cat "$work/diff" 2>/dev/null || true
  tail -n 60 "$work/django.log"
  exit 1
fi
