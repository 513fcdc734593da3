"""`moored metadata backup|restore`: one file with all databases of a root, and the way back.

    moored --root DIR metadata backup FILE     of a stopped daemon's root; where it runs, `moorctl` asks it for the file
    moored --root DIR metadata restore FILE    into a root without metadata, of a stopped daemon

Databases that plugins keep outside of the root are in the file when the daemon runs, and not when it is stopped, for
only its plugins know of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from moored.kernel.errors import AlreadyExists, FailedPrecondition, NotFound
from moored.kernel.folderlock import FolderLock
from moored.kernel.newfile import new_file
from moored.plugins.metadata.lmdb.archive import Archive, Copy, write_archive
from moored.plugins.metadata.lmdb.folder import DATA, ENVIRONMENT, sync_folder
from moored.plugins.metadata.lmdb.opener import HOME
from moored.plugins.metadata.lmdb.store import Store

PLACES: Final = (f"*/{ENVIRONMENT}/{DATA}", f"*/*/{ENVIRONMENT}/{DATA}")
"""Where databases lie below a root: in the folder of their plugin, or one in it."""
CLIENT: Final = "moored.api.cli.main"


def backup(root: Path, file: Path, address: str) -> list[str]:
    """Write the file; where a daemon has the root, this process becomes a moorctl that asks the one at `address`.

    No address stands for moorctl's default. Gives a line for each database. Raises MooredError, OSError.
    """
    if not root.is_dir():
        raise NotFound(f"root {str(root)!r} has no metadata")
    try:
        lock = FolderLock(root)
    except FailedPrecondition:
        where = ["--address", address] if address else []
        command = [sys.executable, "-m", CLIENT, *where, "metadata", "backup", str(file)]
        os.execv(sys.executable, command)  # noqa: S606 - no shell is wanted
    try:
        folders = sorted(found.parents[1] for place in PLACES for found in root.glob(place))
        if not folders:
            raise NotFound(f"root {str(root)!r} has no metadata")
        asyncio.run(_copied(root, folders, file))
    finally:
        lock.release()
    return [f"{folder} -> {file}" for folder in folders]


async def _copied(root: Path, folders: Sequence[Path], file: Path) -> None:
    opened: list[Store] = []
    try:
        with ExitStack() as held, new_file(file) as target:
            copies: list[tuple[Path, Copy]] = []
            for folder in folders:
                opened.append(store := Store(folder, create=False))
                copies.append((folder, held.enter_context(store.frozen())))
            await asyncio.to_thread(write_archive, target.fileno(), root, copies)
    finally:
        for store in opened:
            await store.close()


def restore(file: Path, root: Path) -> list[str]:
    """Put the databases of a file into their folders, all of them or none; gives a line for each.

    Raises AlreadyExists where one is there, or other metadata, DataLoss for a damaged file, MooredError, OSError.
    """
    with file.open("rb") as source, ExitStack() as undo:
        archive = Archive(source, str(file))
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        undo.callback(FolderLock(root).release)
        folders = [one.below(root) for one in archive.databases]
        for folder in {*folders, root / HOME}:
            if os.path.lexists(folder):
                raise AlreadyExists(f"folder {str(folder)!r} is there, move it away first")
        for one, folder in zip(archive.databases, folders, strict=True):
            fresh = _beside(folder)
            if not folder.parent.exists():
                folder.parent.mkdir(mode=0o700, parents=True)
            shutil.rmtree(fresh, ignore_errors=True)
            undo.callback(shutil.rmtree, fresh, ignore_errors=True)
            archive.unpack(one, fresh)
            asyncio.run(_tried(fresh))
        _move(folders)
    return [f"{file} -> {folder}" for folder in folders]


def _move(folders: Sequence[Path]) -> None:
    """Give all of them their names, or none."""
    # The daemon's own comes last: without it a daemon that finds the others does not start.
    moved: list[Path] = []
    try:
        for folder in reversed(folders):
            _beside(folder).rename(folder)
            moved.append(folder)
            sync_folder(folder.parent)
    except OSError:
        for folder in moved:
            folder.rename(_beside(folder))
        raise


async def _tried(folder: Path) -> None:
    """Open a database and close it. Raises DataLoss if it is none."""
    await Store(folder, create=False).close()


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.restore")
