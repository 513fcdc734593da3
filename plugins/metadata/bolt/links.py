"""What the labels of an object say about who keeps whom: references both ways, roots, conditions, expiry.

    containerd.io/gc. +
    root...                          the object is kept for its own sake
    ref.content[.x], ref.image[.x]   it keeps a blob, an image
    ref.mount[.x], ref.stream[.x]    it keeps an activated mount, a client's stream; so for all `outside` kinds
    ref.snapshot.SNAPSHOTTER[/x]     it keeps a snapshot
    bref.container[.x], bref.content[.x], bref.image[.x], bref.snapshot.SNAPSHOTTER[/x]   it is kept by that one
    cond.snapshot.SNAPSHOTTER[/x]    it keeps a snapshot while a condition on that one's value holds
    cond.value-usedat...             the value: when the snapshot was last used
    expire, flat                     on leases (and expire on images); read by `expiry_of` and `is_flat`

`.x` may also be `/x`; x is free. Source: semantics 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from moored.kernel.duration import Duration
from moored.kernel.ports.metadata import Tree
from moored.kernel.records import LABELS, below_of, decode_text, value_of
from moored.kernel.rfc3339 import parse_ns

CONTENT: Final = "content"
SNAPSHOT: Final = "snapshot"
IMAGE: Final = "image"
CONTAINER: Final = "container"
LEASE: Final = "lease"
INGEST: Final = "ingest"
SANDBOX: Final = "sandbox"
MOUNT: Final = "mount"
OWN: Final = frozenset({CONTENT, SNAPSHOT, IMAGE, CONTAINER, LEASE, INGEST, SANDBOX, MOUNT})
"""The kinds that have records; all others lie outside of the database."""
FLAT: Final = "flat "
"""Before a kind: kept, but what its labels name is not followed."""

PREFIX: Final = b"containerd.io/gc."
EXPIRE: Final = b"containerd.io/gc.expire"
FLAT_LABEL: Final = b"containerd.io/gc.flat"


class Node(NamedTuple):
    """One object of the collection. The key of a snapshot is its snapshotter's name, a slash, and its own key."""

    kind: str
    namespace: bytes
    key: bytes


Condition: TypeAlias = Callable[[int], bool]
"""Whether a value (ns since 1970) fulfils it."""

ROOT: Final = "root"
REFERENCE: Final = "reference"
REFERRER: Final = "referrer"
CONDITION: Final = "condition"
USED_AT: Final = "used at"


class Rule(NamedTuple):
    """What a label of one name says, whatever its value.

    what is ROOT, REFERENCE (the object keeps what the value names), REFERRER (it is kept by that one), CONDITION or
    USED_AT; before stands before the value in the key of the node that it names: a snapshotter's name and a slash.
    """

    what: str
    kind: str = ""
    before: bytes = b""

    def node(self, namespace: bytes, value: bytes) -> Node:
        """Give what a label with that value names."""
        return Node(self.kind, namespace, self.before + value)


MAX_RULES: Final = 4096
"""Names of labels whose rule is kept; clients choose them."""


class Rules:
    """The rules by name of label. Most labels have one of few names, so that each is found out once."""

    def __init__(self, outside: Iterable[str] = ()) -> None:
        """Know the label `ref.KIND` of all kinds that lie outside of the database too."""
        self._named = (*_NAMED, *((b"ref." + kind.encode(), kind, REFERENCE) for kind in outside))
        self._known: dict[bytes, Rule | None] = {}

    def of(self, label: bytes) -> Rule | None:
        """Give the rule of a label, None if it says nothing here."""
        try:
            return self._known[label]
        except KeyError:
            pass
        if len(self._known) >= MAX_RULES:
            self._known.clear()
        found = self._known[label] = self._read(label[len(PREFIX) :]) if label.startswith(PREFIX) else None
        return found

    def _read(self, name: bytes) -> Rule | None:
        if name.startswith(b"root"):
            return Rule(ROOT)
        if name.startswith(b"cond.value-usedat"):
            return Rule(USED_AT)
        for prefix, what in _OF_SNAPSHOTS:
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                snapshotter = rest.lstrip(b"./") if what == CONDITION else rest
                return Rule(what, SNAPSHOT, snapshotter.partition(b"/")[0] + b"/")
        for prefix, kind, what in self._named:
            if name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in (b"", b".", b"/"):
                return Rule(what, kind)
        return None


_OF_SNAPSHOTS: Final = (
    (b"ref.snapshot.", REFERENCE),
    (b"bref.snapshot.", REFERRER),
    (b"cond.snapshot", CONDITION),
)
_NAMED: Final = (
    (b"ref.content", CONTENT, REFERENCE),
    (b"ref.image", IMAGE, REFERENCE),
    (b"ref.mount", MOUNT, REFERENCE),
    (b"bref.container", CONTAINER, REFERRER),
    (b"bref.content", CONTENT, REFERRER),
    (b"bref.image", IMAGE, REFERRER),
)


def expiry_of(record: Tree) -> int | None:
    """Give when a record expires by its label, in ns since 1970; None for never or an unreadable label."""
    labels = below_of(record, LABELS)
    value = value_of(labels, EXPIRE) if labels is not None else None
    return None if value is None else parse_ns(decode_text(value))


def is_flat(record: Tree) -> bool:
    """Tell whether a lease keeps only what it names."""
    labels = below_of(record, LABELS)
    return labels is not None and value_of(labels, FLAT_LABEL) is not None


def used_at(value: bytes) -> int | None:
    """Give the time that a USED_AT label tells, in ns since 1970; None for an unreadable one."""
    return parse_ns(decode_text(value))


_OPERATOR: Final = re.compile(rb"([^!<>=]*)([!<>=]=?)(.*)", re.DOTALL)


def conditions(rule: Rule, namespace: bytes, value: bytes, now: int) -> tuple[Node, list[Condition]]:
    """Give the snapshot that `usedat<48h,usedat>0s|KEY` is about, and the conditions; one that holds is enough."""
    listed, bar, key = value.partition(b"|")
    parsed = (_condition(text, now) for text in listed.split(b",")) if bar else ()
    return rule.node(namespace, key), [condition for condition in parsed if condition is not None]


def _condition(text: bytes, now: int) -> Condition | None:
    match = _OPERATOR.fullmatch(text)
    if match is None or match[1] != b"usedat" or match[2] not in (b"<", b">"):
        return None
    try:
        limit = Duration.parse(decode_text(match[3])).ns
    except ValueError:
        return None
    if match[2] == b"<":
        return lambda used: now - used < limit
    return lambda used: now - used > limit
