#!/usr/bin/env bash
# Writes the table of commands in docs/redis.md, from the table that the gateway runs.
set -euo pipefail
cd "$(dirname "$0")/.."
KVDB_WRITE_DOCS=1 cargo test --quiet --locked -p kvdb-redis --test documentation
