"""Opens LMDB databases for other plugins, and frees the reader slots of dead processes in them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Final, cast
from weakref import WeakSet

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import MooredError, ResourceExhausted, Unavailable
from moored.kernel.workers import to_the_end
from moored.plugins.metadata.lmdb.archive import Copy, write_archive
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from moored.plugins.metadata.lmdb.records import NO_ROOM

CHECK_SECONDS: Final = 60.0
"""Pause between two rounds over the reader slots."""


class LmdbOpener:
    """The port's DatabaseOpener."""

    def __init__(self, log: FilteringBoundLogger, root: Path = Path("/")) -> None:
        """Name folders in backups as below `root`, where they lie there; the daemon's."""
        self._log = log
        self._root = root
        self._opened: WeakSet[LmdbDatabase] = WeakSet()

    async def open(self, folder: Path) -> LmdbDatabase:
        """See the port."""
        opening = asyncio.ensure_future(asyncio.to_thread(LmdbDatabase, folder))
        try:
            database = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().close()
            raise
        self._opened.add(database)
        return database

    async def backup(self) -> BinaryIO:
        """See the port's Backups."""
        return await to_the_end(self._backup())

    async def _backup(self) -> BinaryIO:
        with ExitStack() as held:
            # Without a pause in between: what writes to several databases takes turns with this.
            copies = [
                (database.folder, held.enter_context(database.frozen()))
                for database in sorted(self._opened, key=lambda one: one.folder)
                if not database.closed
            ]
            return await asyncio.to_thread(_archived, self._root, copies)

    async def check_readers(self) -> None:
        """Look after the reader slots until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for database in list(self._opened):
                try:
                    await asyncio.to_thread(database.check_readers)
                except MooredError as error:
                    self._log.debug("cannot check the readers of a database", error=error.text)
                    self._opened.discard(database)  # closed, or stopped for good


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
