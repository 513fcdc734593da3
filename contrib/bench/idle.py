"""What containers cost that do nothing: memory of their shims, and the time until a new daemon has them all again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from contrib.bench import containers as steps
from contrib.bench.http2 import Client, Link
from contrib.bench.peers import Peer, Running, containerd, memory_mb, moored, running
from contrib.bench.rounds import Values, say

COUNTS = (1, 50, 200)
SIDE_BY_SIDE = 8
RUNNING = 2
SECONDS = 120.0


def _spread(ids: list[str], client: Callable[[list[str]], Callable[[Link], Client]]) -> list[Callable[[Link], Client]]:
    return [client(ids[at::SIDE_BY_SIDE]) for at in range(min(SIDE_BY_SIDE, len(ids)))]


def _made(ids: list[str]) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        for id_ in ids:
            yield from steps.create(link, id_, "runc", "sleep", "100000")
            yield from steps.start(link, id_)

    return client


def _removed(ids: list[str]) -> Callable[[Link], Client]:
    def client(link: Link) -> Client:
        for id_ in ids:
            yield from steps.kill(link, id_)
            yield from steps.delete(link, id_)

    return client


def _memory(one: Running, count: int) -> Values:
    time.sleep(3.0)  # idle: connections that linger are closed by then
    pids = steps.shims(one.address)
    if len(pids) != count:
        raise RuntimeError(f"{len(pids)} shims for {count} containers")
    each = [memory_mb(pid) for pid in pids]
    return {f"shim_{name}_of_{count}_mb": sum(found[name] for found in each) / count for name in ("pss", "private")}


def _measure(peer: Peer, folder: Path, scale: float) -> Values:
    counts = sorted({max(1, int(count * scale)) for count in COUNTS})
    ids: list[str] = []
    found: Values = {}
    with running(peer, folder) as one:
        steps.bring_image(one.address, folder)
        try:
            for count in counts:
                new = [f"idle-{at}" for at in range(len(ids), count)]
                steps.work(one.address, _spread(new, _made))
                ids += new
                found |= _memory(one, count)
        except BaseException:
            with steps.swept(one):
                raise
    began = time.perf_counter()
    with running(peer, folder) as one, steps.swept(one):
        while steps.statuses(one.address).count(RUNNING) < len(ids):
            if time.perf_counter() - began > SECONDS:
                raise RuntimeError("not all containers are found again")
            time.sleep(0.01)
        found[f"start_with_{len(ids)}_s"] = time.perf_counter() - began
        steps.work(one.address, _spread(ids, _removed))
    return found


def main(base: Path, *, alone: bool, rounds: int, scale: float) -> dict[str, list[Values]]:
    """Measure moored and, where it is installed, containerd; the rounds' values."""
    peers = [peer for peer in (moored(0, base / "idle-padding"), None if alone else containerd()) if peer is not None]
    found: dict[str, list[Values]] = {peer.name: [] for peer in peers}
    for number in range(rounds):
        for peer in peers:
            say(f"idle: round {number + 1} of {rounds}, {peer.name}")
            found[peer.name].append(_measure(peer, base / f"idle-{peer.name}-{number}", scale))
    return found
