"""Opens LMDB databases for other plugins, and frees the reader slots of dead processes in them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from weakref import WeakSet

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import MooredError
from moored.plugins.metadata.lmdb.database import LmdbDatabase

CHECK_SECONDS: Final = 60.0
"""Pause between two rounds over the reader slots."""


class LmdbOpener:
    """The port's DatabaseOpener."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
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
