"""All objects as a graph: which are roots, what each keeps, and which of them a collection may remove.

Read once from one view; what was written since is read again, object by object, and only ever adds edges.
Source: semantics 5, meta-db 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from moored.kernel.ports.metadata import Bucket
from moored.kernel.records import decode_time
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.links import (
    CONTAINER,
    CONTENT,
    FLAT,
    IMAGE,
    INGEST,
    LEASE,
    MOUNT,
    SANDBOX,
    SNAPSHOT,
    Condition,
    Links,
    Node,
    expiry_of,
    is_flat,
    links_of,
)

PLACES: Final = {
    LEASE: (schema.LEASES,),
    SNAPSHOT: (schema.SNAPSHOTS,),
    INGEST: (schema.CONTENT, schema.INGESTS),
    CONTENT: (schema.CONTENT, schema.BLOB),
    IMAGE: (schema.IMAGES,),
    CONTAINER: (schema.CONTAINERS,),
    SANDBOX: (schema.SANDBOXES,),
    MOUNT: (schema.MOUNTS,),
}
"""Where the records of each kind lie below a namespace; one level deeper for snapshots."""

REMOVABLE: Final = frozenset({LEASE, SNAPSHOT, INGEST, CONTENT, IMAGE, MOUNT})

BREATH_SECONDS: Final = 0.002
"""Work between two pauses that let other threads run; Python's own switch would keep them waiting longer."""
PAUSE_SECONDS: Final = 0.0001


class Graph:
    """The objects of one view."""

    def __init__(self, now: int) -> None:
        """Begin empty; now (ns since 1970) decides what has expired."""
        self._now = now
        self.next_expiry: int | None = None
        """When the first of the objects that were not yet expired will be, ns since 1970."""
        self.roots: list[Node] = []
        self.removable: list[Node] = []
        self._edges: dict[Node, list[Node]] = {}
        self._below: dict[Node, Node] = {}
        """A snapshot's parent, an image's target: kept by flat leases too."""
        self._conditions: list[tuple[Node, Node, Condition]] = []
        self._used_at: dict[Node, list[int]] = {}

    def edges(self, node: Node) -> Iterable[Node]:
        """Give what an object keeps."""
        if not node.kind.startswith(FLAT):
            return self._edges.get(node, ())
        below = self._below.get(node._replace(kind=node.kind.removeprefix(FLAT)))
        return () if below is None else (below._replace(kind=FLAT + below.kind),)

    def scan(self, root: Bucket) -> None:
        """Read all objects; meant for a thread of its own, beside which others get to run."""
        breathe = _breather()
        for node, record in _records(root):
            breathe()
            if node.kind in REMOVABLE:
                self.removable.append(node)
            self._read(node, record, touched=False)
        for holder, target, condition in self._conditions:
            if any(condition(value) for value in self._used_at.get(target, ())):
                self._edge(holder, target)

    def read_again(self, root: Bucket, node: Node) -> bool:
        """Add what an object keeps now; it counts as not expired. False if it is not there."""
        record = record_of(root, node)
        if record is None:
            return False
        conditions = len(self._conditions)
        self._read(node, record, touched=True)
        for holder, target, condition in self._conditions[conditions:]:
            # It may have been written as well; a value that is not fulfilled any more only keeps for one run.
            found = record_of(root, target)
            links = links_of(target.namespace, found, self._now) if found is not None else None
            if links is not None and any(condition(value) for value in links.used_at):
                self._edge(holder, target)
        return True

    def _read(self, node: Node, record: Bucket, *, touched: bool) -> None:
        links = links_of(node.namespace, record, self._now)
        match node.kind:
            case "lease":
                self._read_lease(node, record, touched)
            case "image":
                self._read_image(node, record, links, touched)
            case "ingest":
                self._read_ingest(node, record)
            case "content":
                self._refer(node, links, back=True, conditions=True)
            case "snapshot":
                self._read_snapshot(node, record, links)
            case "container":
                self._read_container(node, record, links)
            case "mount":
                self._read_mount(node, record, links)
            case _:  # sandboxes: only what their labels name matters
                self._refer(node, links, back=False, conditions=False)
                self.roots.append(node)
        if links is not None and links.root and node.kind in (CONTENT, SNAPSHOT):
            self.roots.append(node)

    def _read_lease(self, node: Node, record: Bucket, touched: bool) -> None:
        if self._expired(expiry_of(record)) and not touched:
            return
        self.roots.append(node)
        before = FLAT if is_flat(record) else ""
        for kind, name, flat in (
            (CONTENT, b"content", before),
            (IMAGE, b"images", before),
            (INGEST, b"ingests", ""),
            (MOUNT, b"mounts", ""),
        ):
            for key, _ in _items(record.bucket(name)):
                self._edge(node, Node(flat + kind, node.namespace, key))
        for snapshotter, held in _buckets(record.bucket(b"snapshots")):
            for key, _ in _items(held):
                self._edge(node, Node(before + SNAPSHOT, node.namespace, snapshotter + b"/" + key))

    def _read_image(self, node: Node, record: Bucket, links: Links | None, touched: bool) -> None:
        # One that has expired is no root any more, but others may keep it.
        expired = self._expired(expiry_of(record)) and not touched
        self._below_of(node, Node(CONTENT, node.namespace, _target(record)))
        self._refer(node, links, back=expired, conditions=True)
        if not expired:
            self.roots.append(node)

    def _read_ingest(self, node: Node, record: Bucket) -> None:
        if expected := record.get(b"expected"):
            self._edge(node, Node(CONTENT, node.namespace, expected))
        expiry = record.get(b"expireat")
        if expiry is not None and not self._expired(decode_time(expiry)):
            self.roots.append(node)

    def _read_snapshot(self, node: Node, record: Bucket, links: Links | None) -> None:
        if parent := record.get(b"parent"):
            self._below_of(node, node._replace(key=node.key.partition(b"/")[0] + b"/" + parent))
        self._refer(node, links, back=True, conditions=False)
        if links is not None and links.used_at:
            self._used_at[node] = links.used_at

    def _read_container(self, node: Node, record: Bucket, links: Links | None) -> None:
        if snapshotter := record.get(b"snapshotter"):
            key = record.get(b"snapshotKey") or b""
            self._edge(node, Node(SNAPSHOT, node.namespace, snapshotter + b"/" + key))
        self._refer(node, links, back=True, conditions=False)
        self.roots.append(node)

    def _read_mount(self, node: Node, record: Bucket, links: Links | None) -> None:
        # It keeps nothing itself. One that is being made is somebody's, who has had no chance to refer to it.
        for referrer in links.referrers if links is not None else ():
            self._edge(referrer, node)
        if record.bucket(b"active") is None:
            self.roots.append(node)

    def _refer(self, node: Node, links: Links | None, *, back: bool, conditions: bool) -> None:
        if links is None:
            return
        for target in links.refs:
            self._edge(node, target)
        if back:
            for referrer in links.referrers:
                self._edge(referrer, node)
        if conditions:
            self._conditions += [(node, target, condition) for target, condition in links.conditions]

    def _edge(self, node: Node, target: Node) -> None:
        self._edges.setdefault(node, []).append(target)

    def _below_of(self, node: Node, target: Node) -> None:
        self._below[node] = target
        self._edge(node, target)

    def _expired(self, when: int | None) -> bool:
        if when is None:
            return False
        if when < self._now:
            return True
        self.next_expiry = when if self.next_expiry is None else min(when, self.next_expiry)
        return False


def record_of(root: Bucket, node: Node) -> Bucket | None:
    """Give the record of an object, None if it is not there."""
    return schema.path(root, schema.SCHEMA, node.namespace, *PLACES[node.kind], *_names(node))


def holder_of(root: Bucket, node: Node) -> Bucket | None:
    """Give the bucket that the record of an object is in."""
    return schema.path(root, schema.SCHEMA, node.namespace, *PLACES[node.kind], *_names(node)[:-1])


def name_of(node: Node) -> bytes:
    """Give the name of an object's record in its bucket."""
    return _names(node)[-1]


def node_at(path: tuple[bytes, ...]) -> Node | None:
    """Give the object whose record a path of names leads to or into, None if it leads to none."""
    if len(path) < 2 or path[0] != schema.SCHEMA:
        return None
    namespace, rest = path[1], path[2:]
    for kind, place in PLACES.items():
        depth = len(place)
        if rest[:depth] != place:
            continue
        if kind != SNAPSHOT:
            return Node(kind, namespace, rest[depth]) if len(rest) > depth else None
        return Node(kind, namespace, b"/".join(rest[depth : depth + 2])) if len(rest) > depth + 1 else None
    return None


def _names(node: Node) -> tuple[bytes, ...]:
    if node.kind != SNAPSHOT:
        return (node.key,)
    snapshotter, _, key = node.key.partition(b"/")
    return snapshotter, key


def _records(root: Bucket) -> Iterator[tuple[Node, Bucket]]:
    top = root.bucket(schema.SCHEMA)
    for namespace, below in _buckets(top):
        for kind, place in PLACES.items():
            holder = schema.path(below, *place)
            if kind != SNAPSHOT:
                for key, record in _buckets(holder):
                    yield Node(kind, namespace, key), record
                continue
            for snapshotter, snapshots in _buckets(holder):
                for key, record in _buckets(snapshots):
                    yield Node(kind, namespace, snapshotter + b"/" + key), record


def _buckets(bucket: Bucket | None) -> Iterator[tuple[bytes, Bucket]]:
    if bucket is None:
        return
    for key, value in bucket.items():
        found = bucket.bucket(key) if value is None else None
        if found is not None:
            yield key, found


def _items(bucket: Bucket | None) -> Iterator[tuple[bytes, bytes | None]]:
    return iter(()) if bucket is None else bucket.items()


def _target(record: Bucket) -> bytes:
    target = record.bucket(b"target")
    return (target.get(b"digest") or b"") if target is not None else b""


def _breather() -> Callable[[], None]:
    """Give a function that, called often, lets other threads run now and then."""
    calls = 0
    until = time.monotonic() + BREATH_SECONDS

    def breathe() -> None:
        nonlocal calls, until
        calls += 1
        if calls % 16:
            return
        if time.monotonic() > until:
            time.sleep(PAUSE_SECONDS)
            until = time.monotonic() + BREATH_SECONDS

    return breathe
