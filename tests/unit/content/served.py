"""The content service on a unix socket, over the namespaced store of `unit.content.namespaced`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import grpc.aio

from harness import GRPC_SERVER, plug, running
from moored.api.services.content.v1.content_pb2_grpc import ContentStub
from moored.kernel.ports.objects import METADATA
from moored.plugins.metadata.bolt.content import SHARED
from unit.content.namespaced import World, world

CONTENT_SERVICE = "io.containerd.grpc.v1.content"
NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"


@dataclass
class Served:
    """The store's parts, where it is served, and a client of it."""

    parts: World
    address: str
    stub: ContentStub


@asynccontextmanager
async def served(folder: Path, policy: str = SHARED) -> AsyncGenerator[Served]:
    """Open everything below a folder and serve it at `m.sock` there."""
    address = str(folder / "m.sock")
    async with world(folder, policy) as parts:
        objects = plug(METADATA, "bolt", SimpleNamespace(content=parts.content))
        configs = {GRPC_SERVER: {"address": address}}
        async with (
            running(folder, GRPC_SERVER, CONTENT_SERVICE, objects, configs=configs),
            grpc.aio.insecure_channel(f"unix:{address}") as channel,
        ):
            yield Served(parts, address, ContentStub(channel))


def headers(namespace: str, lease: str = "") -> tuple[tuple[str, str], ...]:
    """The metadata of a call."""
    return ((NAMESPACE_HEADER, namespace), *([(LEASE_HEADER, lease)] if lease else []))
