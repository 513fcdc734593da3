"""Runs the measurements and prints a table: the median of each daemon, and the median of the rounds' ratios.

    python -m contrib.bench [GROUP ...] [--rounds N] [--scale X] [--json FILE] [--alone]

Groups: daemon (start, idle memory, latency), writes, lists, ingest, unpack, import, pull, gc, tasks (run, loops, exec),
moorctl (its commands beside those of others), idle (memory of shims, start with many of them); all of them by default.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from contrib.bench import containers, content, daemon, garbage, idle, imports, metadata, moorctl, pull, tasks, unpack
from contrib.bench.peers import Peer, containerd, moored
from contrib.bench.rounds import Group, Values, measured, say, summary

GROUPS = {
    "writes": metadata.WRITE_GROUP,
    "lists": metadata.LIST_GROUP,
    "ingest": content.GROUP,
    "unpack": unpack.GROUP,
    "import": imports.GROUP,
    "pull": pull.GROUP,
    "gc": garbage.GROUP,
    "tasks": tasks.GROUP,
    "moorctl": moorctl.GROUP,
}
OWN = ("daemon", "idle")
"""Groups that start daemons of their own."""


def main() -> None:
    """Measure what is asked for; everything lies below one temporary folder, removed in the end."""
    args = _arguments()
    # So that what was started is stopped, and what was made removed.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    found: dict[str, dict[str, dict[str, object]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        base = Path(folder)
        peers = [peer for peer in (moored(0, base / "padding"), None if args.alone else containerd()) if peer]
        versions = {peer.name: _version(peer) for peer in peers}
        for name in args.groups or (*OWN, *GROUPS):
            if name in ("tasks", "idle", "import") and not containers.installed("runc"):
                say(f"{name}: left out, it needs root, ctr, busybox and runc")
            elif name == "moorctl" and not moorctl.installed():
                say(f"{name}: left out, it needs root, ctr, busybox, runc and an installed moorctl")
            elif name == "daemon":
                found[name] = summary(daemon.main(base, alone=args.alone, rounds=args.rounds))
            elif name == "idle":
                found[name] = summary(idle.main(base, alone=args.alone, rounds=args.rounds, scale=args.scale))
            elif GROUPS[name].needs_root and os.geteuid() != 0:
                say(f"{name}: left out, it needs root")
            else:
                found[name] = summary(_group(name, GROUPS[name], peers, base, args))
    report = {"versions": versions, "rounds": args.rounds, "scale": args.scale}
    if args.json:
        text = json.dumps({**report, "groups": found}, indent=2)
        if args.json == "-":
            print(text)
            return
        Path(args.json).write_text(text + "\n")
    _table(found)


def _group(name: str, group: Group, peers: list[Peer], base: Path, args: argparse.Namespace) -> dict[str, list[Values]]:
    return measured(name, group, peers, base, rounds=args.rounds, scale=args.scale)


def _table(found: dict[str, dict[str, dict[str, object]]]) -> None:
    for group, values in found.items():
        print(f"{group:28}{'moored':>12}{'containerd':>12}{'ratio':>8}")
        for name, entry in values.items():
            other, ratio = entry.get("containerd"), entry.get("ratio")
            beside = f"{other:12.3f}{ratio:8.2f}" if other is not None and ratio is not None else f"{'-':>12}{'-':>8}"
            print(f"  {name:26}{entry['moored']:12.3f}{beside}")


def _version(peer: Peer) -> str:
    done = subprocess.run(
        [*peer.command, "--version"], capture_output=True, text=True, check=False, env=peer.environment()
    )
    return done.stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m contrib.bench", description="Measure moored beside containerd.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"{', '.join((*OWN, *GROUPS))}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each daemon, taken in turns; default 5")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of all amounts; 0.1 for a quick look")
    parser.add_argument("--json", metavar="FILE", help="write all values there too; - prints them instead of the table")
    parser.add_argument("--alone", action="store_true", help="without containerd")
    args = parser.parse_args()
    unknown = [name for name in args.groups if name not in (*OWN, *GROUPS)]
    if unknown:
        parser.error(f"group {unknown[0]!r} is unknown, wanted {', '.join((*OWN, *GROUPS))}")
    return args


if __name__ == "__main__":
    sys.exit(main())
