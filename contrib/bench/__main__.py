"""Runs the measurements and prints a table: value of each peer, and moored's ratio to the other."""

from __future__ import annotations

import json
import sys

from contrib.bench import daemon


def main() -> None:
    """`--json` prints the raw numbers instead of the table."""
    found = daemon.main()
    if "--json" in sys.argv[1:]:
        print(json.dumps(found, indent=2))
        return
    peer = found.get("containerd", {})
    print(f"{'':24}{'moored':>12}{'containerd':>12}{'ratio':>8}")
    for name, value in found["moored"].items():
        other = peer.get(name)
        beside = f"{other:12.3f}{value / other:8.2f}" if other else f"{'-':>12}{'-':>8}"
        print(f"{name:24}{value:12.3f}{beside}")


if __name__ == "__main__":
    main()
