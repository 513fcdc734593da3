"""Opens LMDB databases for other plugins, and frees the reader slots of dead processes in them."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast
from weakref import WeakSet

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import FailedPrecondition, MooredError, ResourceExhausted, Unavailable
from moored.kernel.ports.metadata import Database
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.lmdb.archive import Copy, write_archive
from moored.plugins.metadata.lmdb.database import LmdbDatabase, Part
from moored.plugins.metadata.lmdb.folder import ENVIRONMENT, remove_store
from moored.plugins.metadata.lmdb.records import NO_ROOM
from moored.plugins.metadata.lmdb.store import Store

HOME: Final = "io.moored.database.v1.lmdb"
"""The folder of the common store below the daemon's root, the plugin's own."""
CHECK_SECONDS: Final = 60.0
"""Pause between two rounds over the reader slots."""


class LmdbOpener:
    """The port's DatabaseOpener.

    Databases whose folders lie below the daemon's root share one store, so that what changes several of them is one
    commit; each is named there by its folder. Others have a store each, in their folders.
    """

    def __init__(self, log: FilteringBoundLogger, root: Path = Path("/"), shared: Path | None = None) -> None:
        """Name folders as below `root`, where they lie there; `shared` is the folder of the store for those, if any."""
        self._log = log
        self._root = root
        self._shared = shared
        self._store: Store | None = None
        """The shared one, while a database in it is open."""
        self._parts: set[str] = set()
        self._turn = asyncio.Lock()
        self._stores: WeakSet[Store] = WeakSet()

    async def open(self, folder: Path) -> Database:
        """See the port."""
        opening = asyncio.ensure_future(self._open(folder))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
            raise

    def home(self, folder: Path) -> Path:
        """See the port."""
        return self._shared if self._shared is not None and folder.is_relative_to(self._root) else folder

    async def _open(self, folder: Path) -> Database:
        if (home := self.home(folder)) != folder:
            async with self._turn:
                return await self._open_part(home, folder, folder.relative_to(self._root).as_posix())
        store = await asyncio.to_thread(Store, folder)
        self._stores.add(store)
        return LmdbDatabase(store)

    async def _open_part(self, shared: Path, folder: Path, name: str) -> Part:
        if name in self._parts:
            raise FailedPrecondition(f"metadata folder {str(folder)!r} is in use by process {os.getpid()}")
        if self._store is None:
            self._store = await asyncio.to_thread(Store, shared)
            self._stores.add(self._store)
        part = Part(self._store, name, partial(self._leave, name))
        self._parts.add(name)
        try:
            await self._take_over(part, folder)
        except BaseException:
            await self._forget(name)
            raise
        return part

    async def _take_over(self, part: Part, folder: Path) -> None:
        """Start a part; what has lain in the folder itself so far is moved into it."""
        if not await asyncio.to_thread((folder / ENVIRONMENT).exists):
            await part.start()
            return
        old = LmdbDatabase(await asyncio.to_thread(partial(Store, folder, create=False)))
        try:
            await part.start(old)
        finally:
            await old.close()
        await asyncio.to_thread(remove_store, folder)
        self._log.info("took a database over into the common store", folder=str(folder))

    async def _leave(self, name: str) -> None:
        async with self._turn:
            await self._forget(name)

    async def _forget(self, name: str) -> None:
        self._parts.discard(name)
        if not self._parts and self._store is not None:
            store, self._store = self._store, None
            await store.close()

    async def backup(self) -> BinaryIO:
        """See the port's Backups."""
        return await to_the_end(self._backup())

    async def _backup(self) -> BinaryIO:
        with ExitStack() as held:
            # Without a pause in between: what writes to several databases takes turns with this.
            copies = [
                (store.folder, held.enter_context(store.frozen()))
                for store in sorted(self._stores, key=lambda one: one.folder)
                if not store.closed
            ]
            return await asyncio.to_thread(_archived, self._root, copies)

    async def check_readers(self) -> None:
        """Look after the reader slots until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for store in list(self._stores):
                try:
                    await asyncio.to_thread(store.check_readers)
                except MooredError as error:
                    self._log.debug("cannot check the readers of a database", error=error.text)
                    self._stores.discard(store)  # closed, or stopped for good


def _archived(root: Path, copies: Sequence[tuple[Path, Copy]]) -> BinaryIO:
    """Write a file without a name, on the disk that has the room for what it copies."""
    try:
        file = tempfile.TemporaryFile(dir=root, buffering=0)  # noqa: SIM115 - the caller's
    except OSError as error:
        kind = ResourceExhausted if error.errno in NO_ROOM else Unavailable
        raise kind(f"copy of the metadata cannot be made in {str(root)!r}: {error.strerror}") from error
    try:
        write_archive(file.fileno(), root, copies)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)
