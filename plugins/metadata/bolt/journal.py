"""A Database that can tell which objects were written since a moment: what a collection beside writers lives on.

    mark began ──┬─ view: all objects, their references ──┬─ slice ─┬─ slice ─┬─ ended
    writers      └─ every update: the paths it writes ────┴─────────┴─────────┘
                                 each slice first takes over what was written up to it

Recording begins inside an update. Updates run one after the other, so all that came before are in the view and all that
come after are recorded, whether or not they are in it too. While nothing is recorded, updates get the database's own
buckets and cost nothing more. A path may be recorded of an update that was rolled back, never the other way round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeAlias, TypeVar

from moored.kernel.ports.metadata import Bucket, Cursor, Database, Entry, Stats, Tree

R = TypeVar("R")

Names: TypeAlias = tuple[bytes, ...]
"""A path of names from the root down to a value or a bucket."""


class Journal:
    """A Database over another one, through which every write to it goes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._written: set[Names] | None = None
        self.collecting = asyncio.Lock()
        """Held by a collection, for there is one recording."""

    def view(self) -> AbstractContextManager[Bucket]:
        """See the port."""
        return self._database.view()

    async def update(self, change: Callable[[Bucket], R]) -> R:
        """See the port."""

        return await self._database.update(lambda root: change(self._recorded(root)))

    def _recorded(self, root: Bucket) -> Bucket:
        # Asked when an update runs, not when it is queued: recording begins and ends between two updates.
        return root if self._written is None else _Recording(root, (), self._written)

    @property
    def file(self) -> object:
        """See the port."""
        return self._database.file

    def root_in(self, bucket: Bucket) -> Bucket:
        """See the port; what is written there is recorded as ever."""
        return self._recorded(self._database.root_in(bucket.bare if isinstance(bucket, _Recording) else bucket))

    async def update_unrecorded(self, change: Callable[[Bucket], R]) -> R:
        """Do as `update` for changes that the collection itself makes."""
        return await self._database.update(change)

    async def record(self) -> None:
        """Begin to record; a view opened afterwards shows all that is not recorded."""

        def begin(_: Bucket) -> None:
            self._written = set()

        await self._database.update(begin)

    def taken(self) -> set[Names]:
        """Give the paths recorded since the last call; for use inside `update_unrecorded`."""
        written, self._written = self._written, set()
        return written or set()

    def stop(self) -> None:
        """End recording."""
        self._written = None

    async def backup(self, path: Path) -> None:
        """See the port."""
        await self._database.backup(path)

    def stats(self) -> Stats:
        """See the port."""
        return self._database.stats()

    async def close(self) -> None:
        """See the port."""
        await self._database.close()


class _Recording:
    """A bucket that notes the path of each write."""

    __slots__ = ("_bucket", "_path", "_written")

    def __init__(self, bucket: Bucket, path: Names, written: set[Names]) -> None:
        self._bucket = bucket
        self._path = path
        self._written = written

    @property
    def bare(self) -> Bucket:
        """The database's own bucket."""
        return self._bucket

    def get(self, key: bytes) -> bytes | None:
        return self._bucket.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._note(key)
        self._bucket.put(key, value)

    def delete(self, key: bytes) -> None:
        self._note(key)
        self._bucket.delete(key)

    def bucket(self, name: bytes) -> Bucket | None:
        found = self._bucket.bucket(name)
        return None if found is None else self._below(name, found)

    def create_bucket(self, name: bytes) -> Bucket:
        self._note(name)
        return self._below(name, self._bucket.create_bucket(name))

    def create_bucket_if_missing(self, name: bytes) -> Bucket:
        self._note(name)
        return self._below(name, self._bucket.create_bucket_if_missing(name))

    def delete_bucket(self, name: bytes) -> None:
        self._note(name)
        self._bucket.delete_bucket(name)

    def cursor(self) -> Cursor:
        return _RecordingCursor(self._bucket.cursor(), self._path, self._written)

    def items(self, prefix: bytes = b"") -> Iterator[Entry]:
        return self._bucket.items(prefix)

    def tree(self) -> Tree:
        return self._bucket.tree()

    def trees(self) -> Iterator[tuple[bytes, Tree]]:
        return self._bucket.trees()

    def sequence(self) -> int:
        return self._bucket.sequence()

    def next_sequence(self) -> int:
        return self._bucket.next_sequence()

    def set_sequence(self, number: int) -> None:
        self._bucket.set_sequence(number)

    def _note(self, name: bytes) -> None:
        self._written.add((*self._path, name))

    def _below(self, name: bytes, bucket: Bucket) -> Bucket:
        return _Recording(bucket, (*self._path, name), self._written)


class _RecordingCursor:
    """A cursor that notes the path of each delete."""

    __slots__ = ("_at", "_cursor", "_path", "_written")

    def __init__(self, cursor: Cursor, path: Names, written: set[Names]) -> None:
        self._cursor = cursor
        self._path = path
        self._written = written
        self._at: bytes | None = None

    def first(self) -> Entry | None:
        return self._moved(self._cursor.first())

    def last(self) -> Entry | None:
        return self._moved(self._cursor.last())

    def next(self) -> Entry | None:
        return self._moved(self._cursor.next())

    def prev(self) -> Entry | None:
        return self._moved(self._cursor.prev())

    def seek(self, key: bytes) -> Entry | None:
        return self._moved(self._cursor.seek(key))

    def delete(self) -> None:
        if self._at is not None:
            self._written.add((*self._path, self._at))
        self._cursor.delete()

    def _moved(self, entry: Entry | None) -> Entry | None:
        if entry is not None:
            self._at = entry[0]
        return entry
