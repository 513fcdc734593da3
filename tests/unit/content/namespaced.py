"""The namespaced content store on real parts: a local store, an LMDB database, an event exchange."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from moored.kernel.payloads import Payload
from moored.kernel.ports.events import Envelope
from moored.plugins.content.local.store import LocalContentStore, open_store
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.content import SHARED, NamespacedContent
from moored.plugins.metadata.bolt.leases import NamespacedLeases
from moored.plugins.metadata.bolt.namespaces import Namespaces
from moored.plugins.metadata.lmdb.database import LmdbDatabase


@dataclass
class Sent:
    """An exchange that keeps what was published: (topic, payload, namespace)."""

    events: list[tuple[str, Payload, str]] = field(default_factory=list)

    async def publish(self, topic: str, event: Payload, namespace: str) -> None:
        self.events.append((topic, event, namespace))

    async def forward(self, envelope: Envelope) -> None:
        raise NotImplementedError

    def subscribe(self, *filters: str) -> None:
        raise NotImplementedError


@dataclass
class World:
    """The store and what it stands on; changes are what it told of its writes."""

    content: NamespacedContent
    raw: LocalContentStore
    database: LmdbDatabase
    leases: NamespacedLeases
    namespaces: Namespaces
    sent: Sent
    changes: list[bool]
    folder: Path

    def blob_file(self, digest: str) -> Path:
        return self.folder / "content" / "blobs" / digest.replace(":", "/")

    def record(self, namespace: str, *names: str) -> Mapping[str, bytes | None]:
        """The entries of a bucket below a namespace; empty without one."""
        with self.database.view() as root:
            bucket = schema.object_bucket(root, namespace, *names)
            return {} if bucket is None else {key.decode(): value for key, value in bucket.items()}


@asynccontextmanager
async def world(folder: Path, policy: str = SHARED) -> AsyncGenerator[World]:
    """Open everything below a folder; again with the same folder it goes on with what is there."""
    async with open_store(folder / "content", structlog.get_logger()) as raw:
        database = LmdbDatabase.opened(folder / "db", limit=64 << 20)
        try:
            await database.update(schema.prepare)
            sent, changes = Sent(), []
            content = NamespacedContent(
                database=database, exchange=sent, backend=raw, policy=policy, changed=changes.append
            )
            parts = {"database": database, "exchange": sent, "changed": changes.append}
            yield World(content, raw, database, NamespacedLeases(**parts), Namespaces(**parts), sent, changes, folder)
        finally:
            await database.close()
