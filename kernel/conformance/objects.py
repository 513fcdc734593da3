"""What the suites of the object database's stores work on, and how they look at events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from moored.kernel.conformance.events import LAST, publish_last, take_to_last
from moored.kernel.payloads import Packed, unpack
from moored.kernel.ports.containers import ContainerStore
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.images import ImageStore
from moored.kernel.ports.leases import LeaseManager
from moored.kernel.ports.namespaces import NamespaceStore


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The stores of one fresh object database, and the exchange that its events go to."""

    namespaces: NamespaceStore
    images: ImageStore
    containers: ContainerStore
    leases: LeaseManager
    exchange: Exchange


Check: TypeAlias = Callable[[World], Awaitable[None]]

DIGEST: Final = "sha256:" + "a" * 64
OTHER_DIGEST: Final = "sha512:" + "b" * 128
TOO_LONG: Final = {"k" * 100: "v" * 3997}
"""A label of one byte too much."""
TOO_LONG_TEXT: Final = (
    f"label key and value length (4097 bytes) greater than maximum size (4096 bytes), key: {'k' * 64}"
)
LONGEST: Final = {"k" * 96: "v" * 4000}
RE: Final = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
BAD_FILTER: Final = 'filters: parse error: [name >|=|< x]: unsupported operator "="'


@asynccontextmanager
async def told(exchange: Exchange) -> AsyncGenerator[list[tuple[str, str, object]]]:
    """Collect (namespace, topic, payload) of the events that are sent in the block; the list is filled at its end."""
    found: list[tuple[str, str, object]] = []
    topics = 'topic~="^/(namespaces|images|containers|leases)/"'
    async with exchange.subscribe(topics, f'topic=="{LAST}"') as events:
        yield found
        await publish_last(exchange)
        found += [
            (one.namespace, one.topic, unpack(Packed(one.type_url, one.payload or b"")))
            for one in await take_to_last(events)
        ]
