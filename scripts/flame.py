#!/usr/bin/env python3
"""Draws where the time of a profile went, as a flame graph (Gregg's form: width is time, height is depth).

    perf record -a -F 199 --call-graph dwarf,8192 -o profile -- sleep 5
    perf script -i profile --no-inline -F comm,pid,tid,ip,sym |
      scripts/flame.py --title "Puts" --name gateway=4711 --name nodes=4712,4713,4714 >flame.svg

A process that has a name is the lowest frame of its threads; all others are told by the name of the thread.
"""

import argparse
import re
import sys
import zlib
from xml.sax.saxutils import escape, quoteattr

WIDTH, ROW, LEAST = 1200.0, 16, 1.2
HEADER = re.compile(r"^(\S.*?)\s+(\d+)(?:/(\d+))?\s*$")


def path_of(symbol):
    """A symbol without what is in angle brackets, which makes it unreadable."""
    depth, kept = 0, []
    for at, char in enumerate(symbol):
        if char == "<":
            depth += 1
        elif char == ">" and symbol[at - 1] != "-":
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append(char)
    return re.sub(r"(::)+", "::", "".join(kept)).strip(":") or symbol


def stacks(lines, names):
    """Each sample, from the bottom up."""
    bottom, frames = None, []
    for line in lines:
        line = line.rstrip("\n")
        header = HEADER.match(line)
        if header:
            thread, process = header.group(1), header.group(2)
            bottom, frames = [names[process], thread] if process in names else [thread], []
        elif not line.strip():
            if bottom:
                yield bottom + frames[::-1]
            bottom = None
        elif bottom:
            symbol = path_of(line.strip().partition(" ")[2])
            if not frames or frames[-1] != symbol:
                frames.append(symbol)
    if bottom:
        yield bottom + frames[::-1]


class Frame:
    def __init__(self):
        self.samples, self.above = 0, {}

    def add(self, stack):
        self.samples += 1
        if stack:
            self.above.setdefault(stack[0], Frame()).add(stack[1:])


def rectangles(frame, name, left, width, depth, whole):
    if width < LEAST:
        return
    yield name, left, width, depth, frame.samples / whole
    scale, at = width / frame.samples, left
    for above, one in sorted(frame.above.items()):
        yield from rectangles(one, above, at, one.samples * scale, depth + 1, whole)
        at += one.samples * scale


def main():
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about.add_argument("--title", default="Where the time went")
    about.add_argument("--name", action="append", default=[], metavar="NAME=PID,PID", help="names processes")
    options = about.parse_args()
    names = {}
    for one in options.name:
        name, _, processes = one.partition("=")
        names.update((process, name) for process in processes.split(","))
    root = Frame()
    for stack in stacks(sys.stdin, names):
        root.add(stack)
    if not root.samples:
        sys.exit("there are no samples in the input; it must be what `perf script -F comm,pid,tid,ip,sym` prints")
    drawn = list(rectangles(root, "all", 0.0, WIDTH, 0, root.samples))
    height = (max(depth for _, _, _, depth, _ in drawn) + 1) * ROW + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" width="{WIDTH:.0f}" '
        f'height="{height}" font-family="monospace" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-size="14">{escape(options.title)} ({root.samples} samples)</text>',
    ]
    for name, left, width, depth, part in drawn:
        top = height - (depth + 1) * ROW
        # Warm colours, the same for the same name.
        shade = zlib.crc32(name.encode())
        fill = f"rgb({215 + shade % 40},{120 + (shade >> 8) % 100},{60 + (shade >> 16) % 50})"
        out.append(
            f"<g><title>{escape(name)}: {part:.1%}</title>"
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{ROW - 1}" fill={quoteattr(fill)}/>'
        )
        if (room := int((width - 4) / 6.7)) >= 3:
            text = name if len(name) <= room else name[: room - 1] + "…"
            out.append(f'<text x="{left + 2:.1f}" y="{top + 12}">{escape(text)}</text>')
        out.append("</g>")
    print("\n".join(out + ["</svg>"]))


main()
