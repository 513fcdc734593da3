"""Databases: how a plugin gets a metadata store of its own, for a folder that it names."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from moored.kernel.plugin import PluginType
from moored.kernel.ports.metadata import Database


class DatabaseOpener(Protocol):
    """Opens databases, each for a folder that belongs to nothing else; several may be kept in one file.

    Errors: FailedPrecondition when the folder is in use, here or by another process; DataLoss when what is there is no
    database of this kind or is damaged; PermissionDenied, ResourceExhausted.
    Concurrency: any calls may overlap.
    Cancellation: a cancelled call has opened nothing when CancelledError comes out of it.
    """

    async def open(self, folder: Path) -> Database:
        """Open the database of `folder`, made where it is missing, with folders for this user only.

        The caller closes it before the opener's plugin stops, which the kernel sees to for plugins that require it.
        """

    def home(self, folder: Path) -> Path:
        """Give the folder whose files hold the database of `folder`: what to copy, to restore or to move away."""


@runtime_checkable
class Backups(Protocol):
    """What an opener offers besides, whose databases can be copied while they are written to."""

    async def backup(self) -> BinaryIO:
        """Give a file, for reading from its beginning, with a copy of every database that is open.

        All copies are of one moment after the call. The file has no name and is the caller's to close. Raises
        ResourceExhausted where there is no room for it, Unavailable if a database has stopped.
        """


DATABASES: PluginType[DatabaseOpener] = PluginType("io.moored.database.v1")
