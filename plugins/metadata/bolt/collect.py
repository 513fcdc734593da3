"""Garbage collection of the object database, beside its writers.

    record ─ view ─ mark ─┬─ slice ─ slice ─ ...          records, each slice one short update
                          └─ what was written meanwhile is kept, and all that it reaches
    then, beside each other:  events, blobs and ingests, each snapshotter, mounts, what lies outside of the database

The mark reads one view, in a thread, while writers go on. What they write from then on is recorded (`journal`), and
each slice of the sweep, which no other update can overlap, first marks those objects and what they reach now. That is
enough: an object that became reachable since did so by a reference that was written since. What is unreachable is
removed from the referring end, so that between two slices no object is there that has lost one it refers to.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import structlog
from structlog.typing import FilteringBoundLogger

from moored.kernel.collect import mark, referrers_first
from moored.kernel.errors import MooredError
from moored.kernel.payloads import ImageDelete, SnapshotRemove
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.metadata import Bucket
from moored.kernel.ports.objects import Collectable, Collection
from moored.kernel.records import decode_text, encode_text
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bolt.graph import Graph, breathing, holder_of, name_of, node_at, record_of
from moored.plugins.metadata.bolt.journal import Journal
from moored.plugins.metadata.bolt.leftovers import Swept
from moored.plugins.metadata.bolt.links import CONTENT, FLAT, IMAGE, INGEST, MOUNT, SNAPSHOT, Node
from moored.plugins.metadata.bolt.writes import Event

SLICE_SECONDS: Final = 0.02
"""How long one slice of the sweep may keep writers waiting."""


Listed: TypeAlias = Callable[[], Iterable[Collectable]]
"""Gives the things of one kind that lie outside of the database."""
NOTHING: Final[Mapping[str, Listed]] = {}


class Sweepable(Protocol):
    """A namespaced store over a raw one that may hold more than the records name."""

    dirty: bool
    """Whether a sweep could find something: at the start, and since something was removed."""

    async def sweep(self) -> Swept:
        """Remove from the raw store what no record names."""


async def collect(
    *,
    database: Journal,
    content: Sweepable,
    snapshotters: Mapping[str, Sweepable],
    exchange: Exchange | None,
    mounts: Sweepable | None = None,
    outside: Mapping[str, Listed] = NOTHING,
    log: FilteringBoundLogger | None = None,
) -> Collection:
    """Remove all that no root reaches: records first, then what the raw stores hold and what `outside` lists by kind.

    All updates must go through `database`. Objects that are written while it runs are kept. Calls run one after the
    other. Raises what the database raises; then some of the garbage may be gone. What a raw store cannot remove is
    logged and left for the next run.
    """
    raw = _Raw(content, snapshotters, mounts)
    return await to_the_end(_collect(database, raw, outside, exchange, log or structlog.get_logger()))


@dataclass(frozen=True, slots=True)
class _Raw:
    """The raw stores under the records."""

    content: Sweepable
    snapshotters: Mapping[str, Sweepable]
    mounts: Sweepable | None

    def __iter__(self) -> Iterator[Sweepable]:
        yield self.content
        yield from self.snapshotters.values()
        if self.mounts is not None:
            yield self.mounts

    def of(self, node: Node) -> Sweepable | None:
        """Give the one that may hold what a record stood for."""
        if node.kind in (CONTENT, INGEST):
            return self.content
        if node.kind == MOUNT:
            return self.mounts
        if node.kind == SNAPSHOT:
            return self.snapshotters.get(decode_text(node.key.partition(b"/")[0]))
        return None


async def _collect(
    database: Journal,
    raw: _Raw,
    outside: Mapping[str, Listed],
    exchange: Exchange | None,
    log: FilteringBoundLogger,
) -> Collection:
    async with database.collecting:
        began = time.monotonic()
        sweep, error = await _sweep_records(database, outside)
        for node in sweep.removed:
            if (soiled := raw.of(node)) is not None:
                soiled.dirty = True
        dirty = [store for store in raw if store.dirty and error is None]
        ended = [sweep.outside[node] for node in sweep.removed if node in sweep.outside]
        await asyncio.gather(
            _publish(exchange, sweep.removed, log),
            *(_sweep_raw(store, log) for store in dirty),
            *(_end(thing, log) for thing in ended),
        )
        if error is not None:
            raise error
        return Collection(
            pause_seconds=sweep.pause,
            seconds=time.monotonic() - began,
            removed=dict(Counter(node.kind for node in sweep.removed)),
            next_expiry=sweep.graph.next_expiry,
        )


async def _sweep_records(database: Journal, outside: Mapping[str, Listed]) -> tuple[_Sweep, MooredError | None]:
    """Mark, and remove records; an error of a slice is given with what the slices before it did."""
    await database.record()
    try:
        # After the recording began: a lease that is not in the view and comes to be is seen by it.
        things = {_node(kind, thing): thing for kind, listed in outside.items() for thing in listed()}
        sweep = await asyncio.to_thread(_marked, database, things, tuple(outside))
        while sweep.garbage:
            done = len(sweep.removed)
            try:
                await database.update_unrecorded(lambda root: sweep.slice(root, database.taken()))
            except MooredError as error:
                del sweep.removed[done:]
                return sweep, error
        return sweep, None
    finally:
        database.stop()


def _node(kind: str, thing: Collectable) -> Node:
    return Node(kind, encode_text(thing.namespace), encode_text(thing.name))


def _marked(database: Journal, outside: Mapping[Node, Collectable], kinds: Sequence[str]) -> _Sweep:
    graph = Graph(time.time_ns(), {node: encode_text(thing.lease) for node, thing in outside.items()}, kinds)
    with database.view() as root:
        graph.scan(root)
    edges = breathing(graph.edges)
    kept = mark(graph.roots, edges)
    garbage = {node for node in graph.removable if node not in kept and not _is_in(kept, node)}
    # From the end of the list, so the referring ones last.
    return _Sweep(graph, kept, referrers_first(garbage, edges)[::-1], outside)


def _is_in(kept: set[Node], node: Node) -> bool:
    return node in kept or node._replace(kind=FLAT + node.kind) in kept


@dataclass(slots=True)
class _Sweep:
    """The removal of what was not reached, slice by slice."""

    graph: Graph
    kept: set[Node]
    garbage: list[Node]
    outside: Mapping[Node, Collectable]
    removed: list[Node] = field(default_factory=list)
    pause: float = 0.0

    def slice(self, root: Bucket, written: Iterable[tuple[bytes, ...]]) -> None:
        """Remove some of the garbage, inside an update; `written` are the paths written since the last slice."""
        began = time.monotonic()
        self._keep(root, written)
        while self.garbage:
            node = self.garbage.pop()
            if not _is_in(self.kept, node) and (node in self.outside or _remove(root, node)):
                self.removed.append(node)
            if time.monotonic() - began > SLICE_SECONDS:
                break
        self.pause += time.monotonic() - began

    def _keep(self, root: Bucket, written: Iterable[tuple[bytes, ...]]) -> None:
        nodes = {node for path in written if (node := node_at(path)) is not None}
        mark([node for node in nodes if self.graph.read_again(root, node)], self.graph.edges, self.kept)


def _remove(root: Bucket, node: Node) -> bool:
    record, holder = record_of(root, node), holder_of(root, node)
    if record is None or holder is None:
        return False
    parent = record.get(b"parent") if node.kind == SNAPSHOT else None
    if parent and (above := holder.bucket(parent)) is not None and (children := above.bucket(b"children")) is not None:
        # containerd leaves the name there, and the parent can then not be removed by a client.
        children.delete(name_of(node))
    holder.delete_bucket(name_of(node))
    return True


async def _sweep_raw(store: Sweepable, log: FilteringBoundLogger) -> None:
    store.dirty = False
    try:
        swept = await store.sweep()
    except MooredError as error:
        log.warning("cannot sweep a raw store", error=error.text)
        store.dirty = True
    else:
        store.dirty = store.dirty or not swept.whole


async def _end(thing: Collectable, log: FilteringBoundLogger) -> None:
    try:
        await thing.close()
    except MooredError as error:
        log.warning("cannot end what nothing keeps", name=thing.name, namespace=thing.namespace, error=error.text)


async def _publish(exchange: Exchange | None, removed: Sequence[Node], log: FilteringBoundLogger) -> None:
    if exchange is None:
        return
    for event in filter(None, map(_event, removed)):
        try:
            await exchange.publish(*event)
        except MooredError as error:
            # A namespace of an imported store whose name is no identifier.
            log.debug("cannot tell of a removal", topic=event[0], error=error.text)


def _event(node: Node) -> Event | None:
    namespace = decode_text(node.namespace)
    if node.kind == IMAGE:
        return "/images/delete", ImageDelete(name=decode_text(node.key)), namespace
    if node.kind == SNAPSHOT:
        snapshotter, _, key = node.key.partition(b"/")
        return "/snapshot/remove", SnapshotRemove(key=decode_text(key), snapshotter=decode_text(snapshotter)), namespace
    return None
