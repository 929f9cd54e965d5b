#!/usr/bin/env bash
# Every dependency must be under a permissive licence.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo metadata --format-version 1 --locked | python3 -c '
import json, re, sys
allowed = {"MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib",
           "Unicode-3.0", "Unicode-DFS-2016", "0BSD", "CC0-1.0", "BSL-1.0", "Unlicense"}
bad = []
for package in json.load(sys.stdin)["packages"]:
    licence = (package.get("license") or "").replace("/", " OR ")
    # One permissive choice of an OR is enough; all parts of an AND are needed.
    choices = [re.sub(r"[()]", "", choice).split(" AND ") for choice in licence.split(" OR ")]
    if not any(all(part.strip() in allowed for part in choice) for choice in choices):
        bad.append("%s %s: %s" % (package["name"], package["version"], licence or "none"))
print("\n".join(bad) if bad else "licences: all permissive")
sys.exit(1 if bad else 0)'
