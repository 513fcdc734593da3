"""A tree of buckets as a stream, depth first and in key order, so that any tree passes through bounded memory.

tree   = Enter(name "", sequence of the root) entry* Leave
entry  = Value(key, value) | Enter(name, sequence) entry* Leave
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.metadata import Bucket, Entry

MAX_DEPTH: Final = 128
"""Buckets inside of each other; containerd's own files have 8."""


class Enter(NamedTuple):
    """A bucket begins."""

    name: bytes
    sequence: int


class Value(NamedTuple):
    """A key with its value in the current bucket."""

    key: bytes
    value: bytes


class Leave(NamedTuple):
    """The current bucket ends."""


Event: TypeAlias = Enter | Value | Leave
LEAVE: Final = Leave()


def walk(root: Bucket) -> Iterator[Event]:
    """Yield the tree below `root`, whose transaction stays open meanwhile.

    Raises InvalidArgument if it is deeper than MAX_DEPTH.
    """
    yield Enter(b"", root.sequence())
    open_buckets: list[tuple[Bucket, Iterator[Entry]]] = [(root, root.items())]
    while open_buckets:
        bucket, entries = open_buckets[-1]
        entry = next(entries, None)
        if entry is None:
            open_buckets.pop()
            yield LEAVE
        elif entry[1] is not None:
            yield Value(entry[0], entry[1])
        else:
            below = bucket.bucket(entry[0])
            assert below is not None
            if len(open_buckets) > MAX_DEPTH:
                raise InvalidArgument(f"bucket {entry[0]!r} is nested deeper than {MAX_DEPTH} levels")
            open_buckets.append((below, below.items()))
            yield Enter(entry[0], below.sequence())
