"""All objects as a graph: which are roots, what each keeps, and which of them a collection may remove.

Read once from one view; what was written since is read again, object by object, and only ever adds edges.
Source: semantics 5, meta-db 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from moored.kernel.collect import Edges
from moored.kernel.ports.metadata import Bucket, Tree
from moored.kernel.records import LABELS, below_of, decode_time, value_of
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.links import (
    CONDITION,
    CONTAINER,
    CONTENT,
    FLAT,
    IMAGE,
    INGEST,
    LEASE,
    MOUNT,
    REFERENCE,
    REFERRER,
    ROOT,
    SANDBOX,
    SNAPSHOT,
    USED_AT,
    Condition,
    Node,
    Rule,
    Rules,
    conditions,
    expiry_of,
    is_flat,
    used_at,
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

BREATH_SECONDS: Final = 0.003
"""Work between two pauses that let other threads run; Python's own switch would keep them waiting longer."""
PAUSE_SECONDS: Final = 0.0001


class Graph:
    """The objects of one view, and what lies outside of the database."""

    def __init__(
        self, now: int, outside: Mapping[Node, bytes] = MappingProxyType({}), kinds: Iterable[str] = ()
    ) -> None:
        """Begin without objects of the database; now (ns since 1970) decides what has expired.

        `outside` are the things that lie elsewhere, with the lease that each is under, b"" for one that is kept for its
        own sake; `kinds` are all kinds of these that there may be.
        """
        self._now = now
        self._rules = Rules(kinds)
        self.next_expiry: int | None = None
        """When the first of the objects that were not yet expired will be, ns since 1970."""
        self.roots: list[Node] = []
        self.removable: list[Node] = []
        self._edges: dict[Node, list[Node]] = {}
        self._below: dict[Node, Node] = {}
        """A snapshot's parent, an image's target: kept by flat leases too."""
        self._conditions: list[tuple[Node, Node, Condition]] = []
        self._used_at: dict[Node, list[int]] = {}
        for node, lease in outside.items():
            self.removable.append(node)
            if lease:
                self._edge(Node(LEASE, node.namespace, lease), node)
            else:
                self.roots.append(node)

    def edges(self, node: Node) -> Iterable[Node]:
        """Give what an object keeps."""
        found = self._edges.get(node)
        if found is not None:
            return found
        if not node.kind.startswith(FLAT):
            return ()
        below = self._below.get(node._replace(kind=node.kind.removeprefix(FLAT)))
        return () if below is None else (below._replace(kind=FLAT + below.kind),)

    def scan(self, root: Bucket) -> None:
        """Read all objects; meant for a thread of its own, beside which others get to run."""
        breathe = breather()
        for kind, namespace, before, holder in _holders(root):
            read = self._reader(kind)
            known = self.removable if kind in REMOVABLE else None
            for key, record in holder.trees():
                breathe()
                node = Node(kind, namespace, before + key)
                if known is not None:
                    known.append(node)
                read(node, record, False)
        for holder_, target, condition in self._conditions:
            if any(condition(value) for value in self._used_at.get(target, ())):
                self._edge(holder_, target)

    def read_again(self, root: Bucket, node: Node) -> bool:
        """Add what an object keeps now; it counts as not expired. False if it is not there."""
        record = record_of(root, node)
        if record is None:
            return False
        before = len(self._conditions)
        self._reader(node.kind)(node, record.tree(), True)
        for holder, target, condition in self._conditions[before:]:
            # It may have been written as well; a value that is not fulfilled any more only keeps for one run.
            found = record_of(root, target)
            values = self._values(found.tree()) if found is not None else ()
            if any(condition(value) for value in values):
                self._edge(holder, target)
        return True

    def _reader(self, kind: str) -> Callable[[Node, Tree, bool], None]:
        """Give what reads a record of that kind; its flag says that the object was touched just now."""
        return {
            LEASE: self._read_lease,
            IMAGE: self._read_image,
            INGEST: self._read_ingest,
            CONTENT: self._read_content,
            SNAPSHOT: self._read_snapshot,
            CONTAINER: self._read_container,
            MOUNT: self._read_mount,
            SANDBOX: self._read_sandbox,
        }[kind]

    def _read_lease(self, node: Node, record: Tree, touched: bool) -> None:
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
            for key in below_of(record, name) or ():
                self._edge(node, Node(flat + kind, node.namespace, key))
        for snapshotter, held in (below_of(record, b"snapshots") or {}).items():
            for key in held if not isinstance(held, bytes) else ():
                self._edge(node, Node(before + SNAPSHOT, node.namespace, snapshotter + b"/" + key))

    def _read_image(self, node: Node, record: Tree, touched: bool) -> None:
        target = value_of(below_of(record, b"target") or {}, b"digest") or b""
        self._below_of(node, Node(CONTENT, node.namespace, target))
        labels = record.get(LABELS)
        if labels is None:
            self.roots.append(node)
            return
        # One that has expired is no root any more, but others may keep it.
        expired = self._expired(expiry_of(record)) and not touched
        self._refer(node, record, back=expired, conditional=True)
        if not expired:
            self.roots.append(node)

    def _read_ingest(self, node: Node, record: Tree, _touched: bool) -> None:
        if expected := value_of(record, b"expected"):
            self._edge(node, Node(CONTENT, node.namespace, expected))
        expiry = value_of(record, b"expireat")
        if expiry is not None and not self._expired(decode_time(expiry)):
            self.roots.append(node)

    def _read_content(self, node: Node, record: Tree, _touched: bool) -> None:
        if LABELS in record and self._refer(node, record, back=True, conditional=True):
            self.roots.append(node)

    def _read_snapshot(self, node: Node, record: Tree, _touched: bool) -> None:
        if parent := value_of(record, b"parent"):
            self._below_of(node, node._replace(key=node.key.partition(b"/")[0] + b"/" + parent))
        if LABELS not in record:
            return
        if self._refer(node, record, back=True, conditional=False):
            self.roots.append(node)
        if values := self._values(record):
            self._used_at[node] = values

    def _read_container(self, node: Node, record: Tree, _touched: bool) -> None:
        if snapshotter := value_of(record, b"snapshotter"):
            key = value_of(record, b"snapshotKey") or b""
            self._edge(node, Node(SNAPSHOT, node.namespace, snapshotter + b"/" + key))
        self._refer(node, record, back=True, conditional=False)
        self.roots.append(node)

    def _read_mount(self, node: Node, record: Tree, _touched: bool) -> None:
        # It keeps nothing itself. One that is being made is somebody's, who has had no chance to refer to it.
        for rule, value in self._labels(record):
            if rule.what == REFERRER:
                self._edge(rule.node(node.namespace, value), node)
        if below_of(record, b"active") is None:
            self.roots.append(node)

    def _read_sandbox(self, node: Node, record: Tree, _touched: bool) -> None:
        # Only what their labels name matters.
        self._refer(node, record, back=False, conditional=False)
        self.roots.append(node)

    def _refer(self, node: Node, record: Tree, *, back: bool, conditional: bool) -> bool:
        """Take in what the labels say; tell whether they make it a root, where they can."""
        root = False
        namespace = node.namespace
        for rule, value in self._labels(record):
            what = rule.what
            if what == REFERENCE:
                self._edge(node, rule.node(namespace, value))
            elif what == REFERRER and back:
                self._edge(rule.node(namespace, value), node)
            elif what == ROOT:
                root = True
            elif what == CONDITION and conditional:
                target, found = conditions(rule, namespace, value, self._now)
                self._conditions += [(node, target, condition) for condition in found]
        return root

    def _labels(self, record: Tree) -> list[tuple[Rule, bytes]]:
        """Give those labels of a record that say something here."""
        rule_of = self._rules.of
        return [
            (rule, value)
            for name, value in (below_of(record, LABELS) or {}).items()
            if (rule := rule_of(name)) is not None and isinstance(value, bytes)
        ]

    def _values(self, record: Tree) -> list[int]:
        """Give what conditions on a snapshot are about."""
        found = (used_at(value) for rule, value in self._labels(record) if rule.what == USED_AT)
        return [value for value in found if value is not None]

    def _edge(self, node: Node, target: Node) -> None:
        found = self._edges.get(node)
        if found is None:
            self._edges[node] = [target]
        else:
            found.append(target)

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


def _holders(root: Bucket) -> Iterator[tuple[str, bytes, bytes, Bucket]]:
    """Yield the buckets that hold objects: kind, namespace, what stands before the names in them in a node's key."""
    for namespace, below in _buckets(root.bucket(schema.SCHEMA)):
        for kind, place in PLACES.items():
            holder = schema.path(below, *place)
            if holder is None:
                continue
            if kind != SNAPSHOT:
                yield kind, namespace, b"", holder
                continue
            for snapshotter, snapshots in _buckets(holder):
                yield kind, namespace, snapshotter + b"/", snapshots


def _buckets(bucket: Bucket | None) -> Iterator[tuple[bytes, Bucket]]:
    if bucket is None:
        return
    for key, value in bucket.items():
        found = bucket.bucket(key) if value is None else None
        if found is not None:
            yield key, found


def breather() -> Callable[[], None]:
    """Give a function that, called often, lets other threads run now and then."""
    calls = 0
    until = time.monotonic() + BREATH_SECONDS

    def breathe() -> None:
        nonlocal calls, until
        calls += 1
        if calls % 32:
            return
        if time.monotonic() > until:
            time.sleep(PAUSE_SECONDS)
            until = time.monotonic() + BREATH_SECONDS

    return breathe


def breathing(edges: Edges[Node]) -> Edges[Node]:
    """Give the same edges; who asks for them lets other threads run now and then."""
    breathe = breather()

    def asked(node: Node) -> Iterable[Node]:
        breathe()
        return edges(node)

    return asked
