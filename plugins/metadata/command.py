"""`moored metadata import|export|backup|restore`: metadata carried from containerd and back, and copies of it.

    moored --root DIR metadata import /var/lib/containerd        meta.db and every snapshotter's metadata.db
    moored --root DIR metadata import FILE                       a meta.db alone
    moored --root DIR metadata export FILE|FOLDER                the same way back
    moored --root DIR metadata backup FILE                       all databases in one file (`saving`)
    moored --root DIR metadata restore FILE                      and back

All but `backup` are for a daemon that is stopped. Import and export carry only names, labels and relations. Blobs and
snapshots lie in the same folders under both daemons: move or link `io.containerd.content.v1.content` and
`io.containerd.snapshotter.v1.*/snapshots` beside the metadata before either daemon starts, or its garbage collector
finds records without files.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moored.kernel.errors import AlreadyExists, FailedPrecondition, MooredError, NotFound
from moored.kernel.folderlock import FolderLock
from moored.plugins.metadata.bbolt.copy import export_file, import_file
from moored.plugins.metadata.lmdb.database import Part, parts_of
from moored.plugins.metadata.lmdb.folder import ENVIRONMENT, sync_folder
from moored.plugins.metadata.lmdb.opener import HOME
from moored.plugins.metadata.lmdb.store import Store
from moored.plugins.metadata.saving import backup, restore

OBJECTS = "io.containerd.metadata.v1.bolt"
SNAPSHOTTERS = "io.containerd.snapshotter.v1."
OBJECTS_FILE = "meta.db"
OBJECTS_MODE = 0o644
SNAPSHOTS = "metadata"
"""The folder of a snapshotter's records, in its own."""
SNAPSHOTS_FILE = "metadata.db"
SNAPSHOTS_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Pair:
    """One database in both its forms: containerd's file, and this daemon's by the folder that names it."""

    file: Path
    folder: str

    @property
    def mode(self) -> int:
        """containerd's mode of the file."""
        return OBJECTS_MODE if self.folder == OBJECTS else SNAPSHOTS_MODE


def run(args: argparse.Namespace) -> int:
    """Carry the command out; `args.rest` is its own command line. Returns the exit status, 0 or 1 with a line why."""
    own = _parser().parse_args(args.rest)
    try:
        root, _state = args.folders()
        carried = _verb(own, root, args)
    except (MooredError, OSError) as error:
        sys.stderr.write(f"moored: {error}\n")
        return 1
    for line in carried:
        sys.stdout.write(f"{line}\n")
    return 0


def _verb(own: argparse.Namespace, root: Path, args: argparse.Namespace) -> list[str]:
    match own.verb:
        case "import":
            return _import(own.source, root)
        case "export":
            return _export(own.target, root)
        case "backup":
            return backup(root, own.file, args.socket())
        case _:
            return restore(own.file, root)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moored metadata", description="Carry containerd's metadata over and back, and copy the daemon's own."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    imported = verbs.add_parser("import", help="take over the metadata of a stopped containerd")
    imported.add_argument("source", type=Path, metavar="FILE|ROOT", help="a meta.db, or containerd's root folder")
    exported = verbs.add_parser("export", help="write the metadata as containerd's files")
    exported.add_argument("target", type=Path, metavar="FILE|ROOT", help="a new file, or an existing folder")
    saved = verbs.add_parser("backup", help="write a copy of all metadata, also while the daemon runs")
    saved.add_argument("file", type=Path, metavar="FILE", help="a new file")
    restored = verbs.add_parser("restore", help="put a copy back into a root that has no metadata")
    restored.add_argument("file", type=Path, metavar="FILE", help="what backup has written")
    return parser


def _import(source: Path, root: Path) -> list[str]:
    """Import into a new folder beside the real one, then move it into place. Raises MooredError, OSError."""
    pairs = _in_containerd(source)
    home = root / HOME
    for pair in pairs:
        _refuse_running(pair.file)
    for folder in (home, *(root / pair.folder / ENVIRONMENT for pair in pairs)):
        if folder.exists():
            raise AlreadyExists(f"folder {str(folder)!r} is there, metadata is imported into a new root only")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FolderLock(root)
    new = home.with_name(f"{HOME}.import")
    try:
        shutil.rmtree(new, ignore_errors=True)
        asyncio.run(_import_all(pairs, new))
        new.rename(home)
        sync_folder(root)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        lock.release()
    return [f"{pair.file} -> {root / pair.folder}" for pair in pairs]


async def _import_all(pairs: Sequence[Pair], home: Path) -> None:
    store = Store(home)
    try:
        for pair in pairs:
            part = Part(store, pair.folder)
            await part.start()
            try:
                await import_file(pair.file, part)
            except MooredError as error:
                raise type(error)(f"file {str(pair.file)!r}: {error.text}") from error
    finally:
        await store.close()


def _export(target: Path, root: Path) -> list[str]:
    """Write every file beside its place and move it there. Raises MooredError, OSError."""
    if not (root / HOME).is_dir():
        raise NotFound(f"root {str(root)!r} has no metadata")
    with ExitStack() as stack:
        stack.callback(FolderLock(root).release)
        pairs = asyncio.run(_export_all(target, root / HOME))
    return [f"{root / pair.folder} -> {pair.file}" for pair in pairs]


async def _export_all(target: Path, home: Path) -> list[Pair]:
    store = Store(home, create=False)
    try:
        pairs = [pair for folder in parts_of(store) if (pair := _exported(folder, target)) is not None]
        for pair in pairs:
            if pair.file.exists():
                raise AlreadyExists(f"file {str(pair.file)!r} is there already")
        for pair in pairs:
            pair.file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            await export_file(Part(store, pair.folder), pair.file, mode=pair.mode)
    finally:
        await store.close()
    return pairs


def _in_containerd(source: Path) -> list[Pair]:
    if not source.is_dir():
        return [Pair(source, OBJECTS)]
    files = sorted(source.glob(f"{SNAPSHOTTERS}*/{SNAPSHOTS_FILE}"))
    return [Pair(source / OBJECTS / OBJECTS_FILE, OBJECTS)] + [
        Pair(file, f"{file.parent.name}/{SNAPSHOTS}") for file in files
    ]


def _exported(folder: str, target: Path) -> Pair | None:
    """Give where a database goes; None if it does not."""
    if folder == OBJECTS:
        return Pair(target / OBJECTS / OBJECTS_FILE if target.is_dir() else target, folder)
    plugin = folder.removesuffix(f"/{SNAPSHOTS}")
    if not target.is_dir() or not plugin.startswith(SNAPSHOTTERS) or plugin == folder:
        return None
    return Pair(target / plugin / SNAPSHOTS_FILE, folder)


def _refuse_running(file: Path) -> None:
    """A running containerd holds a lock on its files, and they may change under a reader."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(f"file {str(file)!r} is in use, stop its daemon first") from None
    finally:
        os.close(fd)
