#!/usr/bin/env bash
# Everything that CI tests, on a fresh machine. (scripts/python_client.sh is run by hand for now.)
set -euo pipefail
cd "$(dirname "$0")/.."
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace --locked --no-fail-fast
else
  cargo test --workspace --locked --lib --bins --tests
fi
