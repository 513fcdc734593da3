"""Runs a measurement of several daemons in turns, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from contrib.bench.memory import peak_memory
from contrib.bench.peers import Peer, Running, running

Values: TypeAlias = dict[str, float]
"""Measurements by name; the name's end is the unit: `_s`, `_ms`, `_mb`, `_per_s`, `_mb_per_s`."""


@dataclass(frozen=True)
class Group:
    """Measurements that belong together.

    seed     fills a daemon's root before it starts, where that is quicker than calls
    prepare  is called once with each running daemon, before the rounds
    measure  is called in every round, with the round's number; `scale` makes all amounts smaller
    """

    measure: Callable[[Running, int, float], Values]
    prepare: Callable[[Running, float], None] = field(default=lambda _running, _scale: None)
    seed: Callable[[Peer, Path, float], None] = field(default=lambda _peer, _root, _scale: None)
    needs_root: bool = False


def measured(
    name: str, group: Group, peers: Sequence[Peer], base: Path, *, rounds: int, scale: float
) -> dict[str, list[Values]]:
    """Start all daemons, measure them in turns, stop them; the values of each round by peer."""
    found: dict[str, list[Values]] = {peer.name: [] for peer in peers}
    with ExitStack() as stack:
        started: dict[str, Running] = {}
        for peer in peers:
            folder = base / f"{name}-{peer.name}"
            group.seed(peer, folder / "root", scale)
            started[peer.name] = stack.enter_context(running(peer, folder))
            say(f"{name}: preparing {peer.name}")
            group.prepare(started[peer.name], scale)
        for number in range(rounds):
            # The first of a round finds another machine than the last: take turns in that too.
            for peer in peers if number % 2 == 0 else reversed(peers):
                say(f"{name}: round {number + 1} of {rounds}, {peer.name}")
                with peak_memory(started[peer.name].pid) as peak:
                    values = group.measure(started[peer.name], number, scale)
                found[peer.name].append({**values, "peak_rss_mb": peak[0] / 1e6})
    return found


def summary(found: Mapping[str, Sequence[Values]]) -> dict[str, dict[str, object]]:
    """Median of each measurement by peer, and the median of the ratios moored / other of the rounds."""
    result: dict[str, dict[str, object]] = {}
    for name in found["moored"][0]:
        each = {peer: [values[name] for values in rounds] for peer, rounds in found.items() if name in rounds[0]}
        entry: dict[str, object] = {peer: statistics.median(values) for peer, values in each.items()}
        entry["rounds"] = each
        for peer, values in each.items():
            if peer != "moored":
                pairs = zip(each["moored"], values, strict=True)
                entry["ratio"] = statistics.median(own / other for own, other in pairs if other)
        result[name] = entry
    return result


def say(text: str) -> None:
    """Tell on standard error what is going on."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
