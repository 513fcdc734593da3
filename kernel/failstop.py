"""Databases that end the daemon when they fail: what the disk has is then not known, and nothing may be built on it.

A supervisor starts the daemon again, which reads what is really there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from moored.kernel.errors import MooredError
from moored.kernel.ports.databases import DatabaseOpener
from moored.kernel.ports.metadata import Bucket, Database, Stats

R = TypeVar("R")


class FailStop:
    """A DatabaseOpener over another one; `give_up` is told once, with a reason, of each database that has failed."""

    def __init__(self, opener: DatabaseOpener, give_up: Callable[[str], None]) -> None:
        self._opener = opener
        self._give_up = give_up

    async def open(self, folder: Path) -> Database:
        """See the port."""
        return _Watched(await self._opener.open(folder), self.home(folder), self._give_up)

    def home(self, folder: Path) -> Path:
        """See the port."""
        return self._opener.home(folder)


class _Watched:
    """The database; a failure shows in an update, for views write nothing."""

    def __init__(self, database: Database, folder: Path, give_up: Callable[[str], None]) -> None:
        self._database = database
        self._folder = folder
        self._give_up = give_up
        self._told = False

    def view(self) -> AbstractContextManager[Bucket]:
        return self._database.view()

    async def update(self, change: Callable[[Bucket], R]) -> R:
        try:
            return await self._database.update(change)
        except MooredError:
            self._look()
            raise

    def _look(self) -> None:
        if not self._told and (reason := self._database.stats().failed) is not None:
            self._told = True
            self._give_up(f"the database in {str(self._folder)!r} has failed: {reason}")

    @property
    def file(self) -> object:
        return self._database.file

    def root_in(self, bucket: Bucket) -> Bucket:
        return self._database.root_in(bucket)

    async def backup(self, path: Path) -> None:
        await self._database.backup(path)

    def stats(self) -> Stats:
        return self._database.stats()

    async def close(self) -> None:
        # A closed one has stopped too.
        self._told = True
        await self._database.close()
