"""The shipped object database in a kernel of the test's own, with what it needs and without a collector."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import THING, Running, running
from moored.kernel.conformance.objects import World
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.events import EVENT, Exchange
from moored.kernel.ports.objects import METADATA, Objects

BOLT = "io.containerd.metadata.v1.bolt"
STORES = (
    "io.containerd.content.v1.content",
    "io.containerd.event.v1.exchange",
    "io.containerd.lease.v1.manager",
    "io.moored.database.v1.lmdb",
    BOLT,
)
SERVICES = tuple(f"io.containerd.grpc.v1.{name}" for name in ("containers", "images", "leases", "namespaces"))


@dataclass(frozen=True)
class Opened:
    """The port, the exchange that it tells, and the kernel around them."""

    objects: Objects
    exchange: Exchange
    kernel: Running

    @property
    def world(self) -> World:
        """What conformance suites work on."""
        return World(
            namespaces=self.objects.namespaces,
            images=self.objects.images,
            containers=self.objects.containers,
            leases=self.objects.leases,
            exchange=self.exchange,
        )


@asynccontextmanager
async def opened(folder: Path, *more: Any, **configs: Any) -> AsyncGenerator[Opened]:
    """Start it, with further plugins."""
    found: list[tuple[Objects, Exchange]] = []

    @asynccontextmanager
    async def look(ctx: InitContext[None]) -> AsyncGenerator[None]:
        found.append((ctx.one(METADATA), ctx.one(EVENT)))
        yield

    probe: Registration[Any, Any] = Registration(kind=THING, id="probe", open=look, requires=(METADATA, EVENT))
    async with running(folder, *STORES, *more, probe, configs=configs) as kernel:
        yield Opened(*found[0], kernel)
