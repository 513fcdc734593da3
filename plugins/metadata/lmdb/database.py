"""`Database` of the port: all that is in a store, or a part of one, below a name in its root."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from moored.kernel.errors import AlreadyExists, DataLoss, Internal, MooredError, Unavailable
from moored.kernel.ports.metadata import Bucket, Database, Stats
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.bbolt.copy import apply_tree
from moored.plugins.metadata.bbolt.tree import walk
from moored.plugins.metadata.lmdb.bucket import LmdbBucket, made_part, part_of, root_of
from moored.plugins.metadata.lmdb.environment import CLOSED, DEFAULT_LIMIT
from moored.plugins.metadata.lmdb.folder import sync_folder
from moored.plugins.metadata.lmdb.records import Records
from moored.plugins.metadata.lmdb.store import Store

R = TypeVar("R")


class LmdbDatabase:
    """A `Database` that has a store to itself."""

    def __init__(self, store: Store) -> None:
        """Serve that store, which is closed with this."""
        self._store: Final = store

    @classmethod
    def opened(cls, folder: Path, *, limit: int = DEFAULT_LIMIT, create: bool = True) -> LmdbDatabase:
        """Open the store in `folder`; see there for the arguments and errors."""
        return cls(Store(folder, limit=limit, create=create))

    @contextmanager
    def view(self) -> Generator[Bucket]:
        """See the port."""
        with self._store.view() as records:
            yield root_of(records)

    async def update(self, change: Callable[[Bucket], R]) -> R:
        """See the port."""
        return await self._store.update(lambda records: change(root_of(records)))

    @property
    def file(self) -> object:
        """See the port."""
        return self._store

    def root_in(self, bucket: Bucket) -> Bucket:
        """See the port."""
        return root_of(_records(bucket))

    async def backup(self, path: Path) -> None:
        """See the port."""
        await self._store.backup(path)

    def stats(self) -> Stats:
        """See the port."""
        return self._store.stats()

    async def close(self) -> None:
        """See the port."""
        await self._store.close()


class Part:
    """A `Database` that shares a store with others, and may be changed together with them."""

    def __init__(self, store: Store, name: str, left: Callable[[], Awaitable[None]] | None = None) -> None:
        """Serve what is below `name`, once `start` has made that sure; `left` is called once closed."""
        self._store = store
        self._name = name.encode()
        self._left = left
        self._closing: asyncio.Future[None] | None = None

    async def start(self, taken_over: Database | None = None) -> None:
        """Make it, with what that other database holds, unless it is there."""

        def start(records: Records) -> None:
            if part_of(records, self._name) is not None:
                return
            root = made_part(records, self._name)
            if taken_over is not None:
                with taken_over.view() as old:
                    apply_tree(root, walk(old))

        await self._store.update(start)

    @contextmanager
    def view(self) -> Generator[Bucket]:
        """See the port."""
        self._check_open()
        with self._store.view() as records:
            yield self._root(records)

    async def update(self, change: Callable[[Bucket], R]) -> R:
        """See the port."""
        self._check_open()
        return await self._store.update(lambda records: change(self._root(records)))

    @property
    def file(self) -> object:
        """See the port."""
        return self._store

    def root_in(self, bucket: Bucket) -> Bucket:
        """See the port."""
        return self._root(_records(bucket))

    async def backup(self, path: Path) -> None:
        """See the port; the copy has a store to itself."""
        await to_the_end(self._backup(path))

    async def _backup(self, path: Path) -> None:
        if await asyncio.to_thread(path.exists):
            raise AlreadyExists(f"backup {str(path)!r} already exists")
        fresh = path.with_name(f"{path.name}.new")

        def fill(root: Bucket) -> None:
            with self.view() as own:
                apply_tree(root, walk(own))

        def moved() -> None:
            fresh.rename(path)
            sync_folder(path.parent)

        await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
        try:
            copy = await asyncio.to_thread(LmdbDatabase.opened, fresh)
            try:
                await copy.update(fill)
            finally:
                await copy.close()
            await asyncio.to_thread(moved)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, fresh, ignore_errors=True)
            raise

    def stats(self) -> Stats:
        """See the port; all numbers are those of the store."""
        return self._store.stats()

    async def close(self) -> None:
        """See the port."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        with suppress(MooredError):
            await self._store.update(lambda _: None)  # what was accepted comes before it
        if self._left is not None:
            await self._left()

    def _root(self, records: Records) -> LmdbBucket:
        root = part_of(records, self._name)
        if root is None:
            raise DataLoss(f"metadata store is damaged: it has lost database {self._name.decode()!r}")
        return root

    def _check_open(self) -> None:
        if self._closing is not None:
            raise Unavailable(f"metadata store has stopped: {CLOSED}")


def _records(bucket: Bucket) -> Records:
    if not isinstance(bucket, LmdbBucket):
        raise Internal(f"{bucket!r} is of another store")
    return bucket.records


def parts_of(store: Store) -> list[str]:
    """Give the names of the databases that share a store."""
    with store.view() as records:
        return [name.decode() for name, _ in root_of(records).items()]
