"""The daemon itself: start-up, idle memory, latency of Version calls."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import grpc.aio
from contrib.bench.peers import Peer, Running, containerd, memory_mb, moored, running, version_call
from contrib.bench.rounds import Values, say

PLUGINS = 70
CALLS = 4000


async def _latency(address: str, clients: int, calls: int) -> list[float]:
    """Milliseconds of each call, made by `clients` connections side by side."""
    taken: list[float] = []

    async def client() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{address}", options=options) as channel:
            await version_call(channel)
            for _ in range(calls // clients):
                began = time.perf_counter()
                await version_call(channel)
                taken.append((time.perf_counter() - began) * 1e3)

    await asyncio.gather(*(client() for _ in range(clients)))
    return taken


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


def _measure(peer: Peer, folder: Path) -> Values:
    with running(peer, folder) as one:
        return {"start_s": one.seconds, **_of_running(one)}


def _of_running(one: Running) -> Values:
    time.sleep(1.0)  # idle: what start-up left behind is collected
    found = {f"idle_{name}_mb": value for name, value in memory_mb(one.pid).items()}
    for clients in (1, 64):
        p50, p99 = _percentiles(asyncio.run(_latency(one.address, clients, CALLS)))
        found |= {f"version_{clients}_p50_ms": p50, f"version_{clients}_p99_ms": p99}
    return found


def main(base: Path, *, alone: bool, rounds: int) -> dict[str, list[Values]]:
    """Measure moored, padded with do-nothing plugins, and, where it is installed, containerd; the rounds' values."""
    peers = [peer for peer in (moored(PLUGINS, base / "padded"), None if alone else containerd()) if peer is not None]
    found: dict[str, list[Values]] = {peer.name: [] for peer in peers}
    for number in range(-1, rounds):
        for peer in peers:
            say(f"daemon: round {number + 1} of {rounds}, {peer.name}")
            values = _measure(peer, base / f"daemon-{peer.name}-{number}")
            if number >= 0:  # the first one wrote the byte code
                found[peer.name].append(values)
    return found
