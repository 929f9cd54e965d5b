#!/usr/bin/env python3
"""Draws the chart of the README, KvDB beside etcd and Redis, from the rows of a run of `make bench`.

    scripts/chart.py bench/results/2026-11-28.json >docs/images/beside-etcd-and-redis.svg
"""

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

# Row of the run, what it is, and who is beside KvDB in it.
GROUPS = [
    ("put-c64", "put, 64 clients", "etcd"),
    ("put-c256", "put, 256 clients", "etcd"),
    ("get-c64", "strong get, 64 clients", "etcd"),
    ("get-c256", "strong get, 256 clients", "etcd"),
    ("SET-c64", "Redis SET, 64 clients", "redis"),
    ("GET-c64", "Redis GET, 64 clients", "redis"),
]
NAMES = {"kvdb": "KvDB", "etcd": "etcd", "redis": "Redis"}
WIDTH, LEFT, RIGHT, BAR, GAP, TOP = 760, 170, 150, 16, 14, 44
STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #24292f }
    .title { font-size: 15px; font-weight: 600 } .note { font-size: 12px; fill: #57606a }
    .kvdb { fill: #0969da } .etcd { fill: #8c959f } .redis { fill: #cf6a5c }
    @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .note { fill: #9198a1 } .kvdb { fill: #4493f8 } }
"""


def main():
    path = Path(sys.argv[1])
    rows = {(row["row"], row["system"]): row["ops_per_second"] for row in json.loads(path.read_text())["rows"]
            if "ops_per_second" in row}
    longest = max(rows[row, system] for row, _, other in GROUPS for system in ("kvdb", other))
    y, parts = TOP, []
    for row, title, other in GROUPS:
        parts.append(f'<text x="{LEFT - 10}" y="{y + BAR + 5}" text-anchor="end">{escape(title)}</text>')
        for system in ("kvdb", other):
            rate = rows[row, system]
            width = rate / longest * (WIDTH - LEFT - RIGHT)
            parts.append(f'<rect class="{system}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" rx="2"/>')
            parts.append(f'<text x="{LEFT + width + 6:.1f}" y="{y + 12}">{NAMES[system]} {rate:,.0f}</text>')
            y += BAR
        y += GAP
    notes = ["KvDB and etcd answer a write when a majority of three has synced it. Redis syncs its own file always,",
             f"and its two replicas follow later. Figures: bench/results/{path.stem}.md"]
    for note in notes:
        parts.append(f'<text class="note" x="10" y="{y + 8}">{escape(note)}</text>')
        y += 17
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 6}" width="{WIDTH}" height="{y + 6}" role="img">')
    print(f"  <title>Operations a second of KvDB, etcd and Redis</title>\n  <style>{STYLE}  </style>")
    print('  <text class="title" x="10" y="22">Operations a second, all on one machine with two cores (more is better)</text>')
    print("  " + "\n  ".join(parts) + "\n</svg>")


main()
