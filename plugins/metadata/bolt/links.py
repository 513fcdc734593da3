"""What the labels of an object say about who keeps whom: references both ways, roots, conditions, expiry.

    containerd.io/gc. +
    root...                          the object is kept for its own sake
    ref.content[.x], ref.image[.x]   it keeps a blob, an image
    ref.mount[.x]                    it keeps an activated mount
    ref.snapshot.SNAPSHOTTER[/x]     it keeps a snapshot
    bref.container[.x], bref.content[.x], bref.image[.x], bref.snapshot.SNAPSHOTTER[/x]   it is kept by that one
    cond.snapshot.SNAPSHOTTER[/x]    it keeps a snapshot while a condition on that one's value holds
    cond.value-usedat...             the value: when the snapshot was last used
    expire, flat                     on leases (and expire on images); read by `expiry_of` and `is_flat`

`.x` may also be `/x`; x is free. Source: semantics 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from moored.kernel.duration import Duration
from moored.kernel.ports.metadata import Bucket
from moored.kernel.records import LABELS, decode_text
from moored.kernel.rfc3339 import parse_ns

CONTENT: Final = "content"
SNAPSHOT: Final = "snapshot"
IMAGE: Final = "image"
CONTAINER: Final = "container"
LEASE: Final = "lease"
INGEST: Final = "ingest"
SANDBOX: Final = "sandbox"
MOUNT: Final = "mount"
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


@dataclass(slots=True)
class Links:
    """What the labels of one object say."""

    root: bool = False
    refs: list[Node] = field(default_factory=list)
    referrers: list[Node] = field(default_factory=list)
    conditions: list[tuple[Node, Condition]] = field(default_factory=list)
    used_at: list[int] = field(default_factory=list)


def links_of(namespace: bytes, record: Bucket, now: int) -> Links | None:
    """Read the labels of a record, None if none of them matter; now is ns since 1970."""
    labels = record.bucket(LABELS)
    if labels is None:
        return None
    links: Links | None = None
    for key, value in labels.items(PREFIX):
        if value is not None:
            links = links or Links()
            _read(links, namespace, key[len(PREFIX) :], value, now)
    return links


def expiry_of(record: Bucket) -> int | None:
    """Give when a record expires by its label, in ns since 1970; None for never or an unreadable label."""
    labels = record.bucket(LABELS)
    value = labels.get(EXPIRE) if labels is not None else None
    return None if value is None else parse_ns(decode_text(value))


def is_flat(record: Bucket) -> bool:
    """Tell whether a lease keeps only what it names."""
    labels = record.bucket(LABELS)
    return labels is not None and labels.get(FLAT_LABEL) is not None


_NAMED: Final = (
    (b"ref.content", CONTENT, False),
    (b"ref.image", IMAGE, False),
    (b"ref.mount", MOUNT, False),
    (b"bref.container", CONTAINER, True),
    (b"bref.content", CONTENT, True),
    (b"bref.image", IMAGE, True),
)
_SNAPSHOT_REF: Final = b"ref.snapshot."
_SNAPSHOT_REFERRER: Final = b"bref.snapshot."
_CONDITION: Final = b"cond.snapshot"
_USED_AT: Final = b"cond.value-usedat"


def _read(links: Links, namespace: bytes, name: bytes, value: bytes, now: int) -> None:
    if name.startswith(b"root"):
        links.root = True
    elif name.startswith(_SNAPSHOT_REF):
        links.refs.append(_snapshot(namespace, name[len(_SNAPSHOT_REF) :], value))
    elif name.startswith(_SNAPSHOT_REFERRER):
        links.referrers.append(_snapshot(namespace, name[len(_SNAPSHOT_REFERRER) :], value))
    elif name.startswith(_CONDITION):
        target, conditions = _conditions(namespace, name[len(_CONDITION) :], value, now)
        links.conditions += [(target, condition) for condition in conditions]
    elif name.startswith(_USED_AT):
        when = parse_ns(decode_text(value))
        if when is not None:
            links.used_at.append(when)
    else:
        for prefix, kind, back in _NAMED:
            if name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in (b"", b".", b"/"):
                (links.referrers if back else links.refs).append(Node(kind, namespace, value))


def _snapshot(namespace: bytes, snapshotter: bytes, key: bytes) -> Node:
    return Node(SNAPSHOT, namespace, snapshotter.partition(b"/")[0] + b"/" + key)


_OPERATOR: Final = re.compile(rb"([^!<>=]*)([!<>=]=?)(.*)", re.DOTALL)


def _conditions(namespace: bytes, name: bytes, value: bytes, now: int) -> tuple[Node, list[Condition]]:
    """Give the snapshot that `usedat<48h,usedat>0s|KEY` is about, and the conditions; one that holds is enough."""
    listed, bar, key = value.partition(b"|")
    target = _snapshot(namespace, name.lstrip(b"./"), key)
    parsed = (_condition(text, now) for text in listed.split(b",")) if bar else ()
    return target, [condition for condition in parsed if condition is not None]


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
