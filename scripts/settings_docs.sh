#!/usr/bin/env bash
# Writes docs/settings.md from the definitions of the flags.
set -euo pipefail
cd "$(dirname "$0")/.."
KVDB_WRITE_DOCS=1 cargo test --quiet --locked -p kvdb --bin kvdb settings_page
