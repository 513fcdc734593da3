"""Objects written straight into the records, and what a collection leaves of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.ports.objects import Collection
from moored.kernel.records import encode_text, encode_time, write_labels
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.collect import Listed, collect
from moored.plugins.metadata.bolt.graph import PLACES, Graph
from moored.plugins.metadata.bolt.journal import Journal
from moored.plugins.metadata.bolt.leftovers import Swept
from moored.plugins.metadata.lmdb.opener import LmdbOpener

LOG = structlog.get_logger()
NS = "ns"

Write = Callable[[Bucket], object]
Labels = Mapping[str, str]
NONE: Labels = {}


@dataclass
class Store:
    """A raw store in which there is nothing, that counts its sweeps."""

    dirty: bool = False
    sweeps: int = 0

    async def sweep(self) -> Swept:
        self.sweeps += 1
        return Swept(0, whole=True)


@dataclass
class World:
    database: Journal
    content: Store = field(default_factory=Store)
    snapshotters: dict[str, Store] = field(default_factory=lambda: {"o": Store()})
    exchange: Exchange | None = None
    outside: dict[str, Listed] = field(default_factory=dict)

    async def write(self, *writes: Write) -> None:
        def change(root: Bucket) -> None:
            for write in writes:
                write(root)

        await self.database.update(change)

    async def collect(self) -> Collection:
        return await collect(
            database=self.database,
            content=self.content,
            snapshotters=self.snapshotters,
            outside=self.outside,
            exchange=self.exchange,
            log=LOG,
        )

    def left(self) -> set[str]:
        """`content a`, `snapshot o/k` and so on: what is there now."""
        graph = Graph(0)
        with self.database.view() as root:
            graph.scan(root)
        return {f"{node.kind} {node.key.decode()}" for node in graph.removable}


@asynccontextmanager
async def world(folder: Path, journal: Callable[[Database], Journal] = Journal) -> AsyncGenerator[World]:
    database = await LmdbOpener(LOG).open(folder / "records")
    try:
        await database.update(schema.prepare)
        yield World(journal(database))
    finally:
        await database.close()


def record(kind: str, *names: str, labels: Labels = NONE, **values: bytes) -> Write:
    def write(root: Bucket) -> None:
        bucket = schema.made_object_bucket(root, NS, *PLACES[kind], *names)
        write_labels(bucket, {f"containerd.io/gc.{key}": value for key, value in labels.items()})
        for key, value in values.items():
            bucket.put(key.encode(), value)

    return write


def blob(digest: str, labels: Labels = NONE) -> Write:
    return record("content", digest, labels=labels)


def image(name: str, digest: str, labels: Labels = NONE) -> Write:
    def write(root: Bucket) -> None:
        record("image", name, labels=labels)(root)
        target = schema.made_object_bucket(root, NS, schema.IMAGES, name, "target")
        target.put(b"digest", encode_text(digest))

    return write


def snapshot(key: str, parent: str = "", labels: Labels = NONE) -> Write:
    return record("snapshot", "o", key, labels=labels, **({"parent": parent.encode()} if parent else {}))


def container(name: str, key: str = "", labels: Labels = NONE) -> Write:
    more = {"snapshotter": b"o", "snapshotKey": key.encode()} if key else {"snapshotter": b""}
    return record("container", name, labels=labels, **more)


def sandbox(name: str, labels: Labels = NONE) -> Write:
    return record("sandbox", name, labels=labels)


def mount(name: str, labels: Labels = NONE) -> Write:
    """One that is made."""

    def write(root: Bucket) -> None:
        record("mount", name, labels=labels)(root)
        schema.made_object_bucket(root, NS, schema.MOUNTS, name, "active")

    return write


def ingest(ref: str, *, expires: int | None = None, expected: str = "") -> Write:
    more = {"expireat": encode_time(expires)} if expires is not None else {}
    return record("ingest", ref, **({"expected": expected.encode()} if expected else {}), **more)


def lease(name: str, held: Sequence[str] = (), labels: Labels = NONE) -> Write:
    """held: `content a`, `ingests r`, `images n`, `snapshots/o k`."""

    def write(root: Bucket) -> None:
        record("lease", name, labels=labels)(root)
        for one in held:
            kind, _, key = one.partition(" ")
            schema.made_object_bucket(root, NS, schema.LEASES, name, *kind.split("/")).put(key.encode(), b"")

    return write


def gone(kind: str, *names: str) -> Write:
    def write(root: Bucket) -> None:
        holder = schema.object_bucket(root, NS, *PLACES[kind], *names[:-1])
        assert holder is not None
        holder.delete_bucket(names[-1].encode())

    return write
