"""`Database` of the port in plain dictionaries: the reference that the real ones are compared with."""

from __future__ import annotations

import asyncio
import copy
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from moored.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unknown,
)
from moored.kernel.ports.metadata import MAX_KEY, MAX_NAME, Bucket, Entry, Stats, Tree

R = TypeVar("R")


@dataclass
class Node:
    """What a bucket holds."""

    entries: dict[bytes, bytes | Node] = field(default_factory=dict)
    sequence: int = 0
    dead: bool = False

    def kill(self) -> None:
        self.dead = True
        for value in self.entries.values():
            if isinstance(value, Node):
                value.kill()


@dataclass
class Transaction:
    root: Node
    writable: bool
    open: bool = True


class MemoryBucket:
    def __init__(self, tx: Transaction, node: Node) -> None:
        self.tx = tx
        self.node = node

    def get(self, key: bytes) -> bytes | None:
        self.alive()
        value = self.node.entries.get(key)
        return value if isinstance(value, bytes) else None

    def put(self, key: bytes, value: bytes) -> None:
        self.writable()
        if not key:
            raise Unknown("key required")
        if len(key) > MAX_KEY:
            raise Unknown("key too large")
        if self.node is self.tx.root:
            raise InvalidArgument("only buckets in the root")
        if isinstance(self.node.entries.get(key), Node):
            raise Unknown("incompatible value")
        self.node.entries[key] = bytes(value)

    def delete(self, key: bytes) -> None:
        self.writable()
        if isinstance(self.node.entries.get(key), Node):
            raise Unknown("incompatible value")
        self.node.entries.pop(key, None)

    def bucket(self, name: bytes) -> MemoryBucket | None:
        self.alive()
        value = self.node.entries.get(name)
        return MemoryBucket(self.tx, value) if isinstance(value, Node) else None

    def create_bucket(self, name: bytes) -> MemoryBucket:
        self.nameable(name)
        if isinstance(self.node.entries.get(name), Node):
            raise AlreadyExists("bucket already exists")
        return self.create_bucket_if_missing(name)

    def create_bucket_if_missing(self, name: bytes) -> MemoryBucket:
        self.nameable(name)
        value = self.node.entries.setdefault(name, Node())
        if not isinstance(value, Node):
            raise Unknown("incompatible value")
        return MemoryBucket(self.tx, value)

    def delete_bucket(self, name: bytes) -> None:
        self.writable()
        value = self.node.entries.get(name)
        if value is None:
            raise NotFound("bucket not found")
        if not isinstance(value, Node):
            raise Unknown("incompatible value")
        value.kill()
        del self.node.entries[name]

    def cursor(self) -> MemoryCursor:
        self.alive()
        return MemoryCursor(self)

    def items(self, prefix: bytes = b"") -> Iterator[Entry]:
        cursor = self.cursor()
        entry = cursor.seek(prefix)
        while entry is not None and entry[0].startswith(prefix):
            yield entry
            entry = cursor.next()

    def tree(self) -> Tree:
        self.alive()
        return {
            name: value if isinstance(value, bytes) else MemoryBucket(self.tx, value).tree()
            for name, value in self.node.entries.items()
        }

    def trees(self) -> Iterator[tuple[bytes, Tree]]:
        for name, value in self.items():
            below = self.bucket(name) if value is None else None
            if below is not None:
                yield name, below.tree()

    def sequence(self) -> int:
        self.alive()
        return self.node.sequence

    def next_sequence(self) -> int:
        self.set_sequence((self.node.sequence + 1) % (1 << 64))
        return self.node.sequence

    def set_sequence(self, number: int) -> None:
        self.writable()
        if not 0 <= number < 1 << 64:
            raise InvalidArgument("sequence out of range")
        self.node.sequence = number

    def nameable(self, name: bytes) -> None:
        self.writable()
        if not name:
            raise Unknown("bucket name required")
        if len(name) > MAX_NAME:
            raise Unknown("key too large")

    def writable(self) -> None:
        self.alive()
        if not self.tx.writable:
            raise Internal("tx not writable")

    def alive(self) -> None:
        if not self.tx.open:
            raise Internal("tx closed")
        if self.node.dead:
            raise NotFound("bucket not found")


class MemoryCursor:
    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket
        self.at: bytes | None = None

    def first(self) -> Entry | None:
        return self.go(0)

    def last(self) -> Entry | None:
        return self.go(len(self.bucket.node.entries) - 1)

    def next(self) -> Entry | None:
        return self.first() if self.at is None else self.go(bisect_right(self.names(), self.at))

    def prev(self) -> Entry | None:
        return self.last() if self.at is None else self.go(bisect_left(self.names(), self.at) - 1)

    def seek(self, key: bytes) -> Entry | None:
        return self.go(bisect_left(self.names(), key))

    def delete(self) -> None:
        if self.at is None:
            raise FailedPrecondition("no position")
        self.bucket.delete(self.at)

    def names(self) -> list[bytes]:
        return sorted(self.bucket.node.entries)

    def go(self, place: int) -> Entry | None:
        self.bucket.alive()
        names = self.names()
        if not 0 <= place < len(names):
            return None
        self.at = names[place]
        value = self.bucket.node.entries[self.at]
        return self.at, (value if isinstance(value, bytes) else None)


class MemoryDatabase:
    def __init__(self) -> None:
        self.committed = Node()
        self.closed = False
        self.updates = 0

    @contextmanager
    def view(self) -> Iterator[Bucket]:
        self.usable()
        tx = Transaction(self.committed, writable=False)
        try:
            yield MemoryBucket(tx, tx.root)
        finally:
            tx.open = False

    async def update(self, change: Callable[[Bucket], R]) -> R:
        self.usable()
        await asyncio.sleep(0)
        tx = Transaction(copy.deepcopy(self.committed), writable=True)
        try:
            result = change(MemoryBucket(tx, tx.root))
        except StopIteration as error:
            raise Internal(f"update raised {error!r}") from error
        finally:
            tx.open = False
        self.committed = tx.root
        self.updates += 1
        return result

    @property
    def file(self) -> object:
        return self

    def root_in(self, bucket: Bucket) -> Bucket:
        assert isinstance(bucket, MemoryBucket)
        return MemoryBucket(bucket.tx, bucket.tx.root)

    async def backup(self, path: Path) -> None:
        self.usable()
        if path.exists():  # noqa: ASYNC240 - a test's
            raise AlreadyExists("there")
        path.mkdir()  # noqa: ASYNC240 - a test's

    def stats(self) -> Stats:
        return Stats(
            used_bytes=0,
            file_bytes=0,
            limit_bytes=0,
            full=False,
            failed="closed" if self.closed else None,
            updates=self.updates,
            commits=self.updates,
            waiting=0,
            views=0,
            oldest_view_seconds=0.0,
        )

    async def close(self) -> None:
        self.closed = True

    def usable(self) -> None:
        if self.closed:
            raise Unavailable("closed")
