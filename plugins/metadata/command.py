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
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from moored.kernel.errors import AlreadyExists, FailedPrecondition, MooredError, NotFound
from moored.kernel.folderlock import FolderLock
from moored.plugins.metadata.bbolt.copy import export_file, import_file
from moored.plugins.metadata.lmdb.database import LmdbDatabase
from moored.plugins.metadata.saving import backup, restore

OBJECTS = "io.containerd.metadata.v1.bolt"
SNAPSHOTTERS = "io.containerd.snapshotter.v1."
BOLT_MODE = 0o644
"""containerd's mode of meta.db; that of the snapshotters' files is 0600."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One database in both its forms: containerd's file and this daemon's folder, each below its own root."""

    file: Path
    folder: Path
    mode: int


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
    """Import into new folders beside the real ones, then move all of them into place. Raises MooredError, OSError."""
    pairs = _in_containerd(source, root)
    for pair in pairs:
        _refuse_running(pair.file)
        if pair.folder.exists():
            raise AlreadyExists(f"folder {str(pair.folder)!r} is there, metadata is imported into a new root only")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FolderLock(root)
    made: list[Path] = []
    try:
        for pair in pairs:
            made.append(new := _beside(pair.folder))
            shutil.rmtree(new, ignore_errors=True)
            new.parent.mkdir(mode=0o700, exist_ok=True)
            asyncio.run(_import_one(pair.file, new))
        for pair in pairs:
            _beside(pair.folder).rename(pair.folder)
            _sync(pair.folder.parent)
    finally:
        for leftover in made:
            shutil.rmtree(leftover, ignore_errors=True)
        lock.release()
    return [f"{pair.file} -> {pair.folder}" for pair in pairs]


async def _import_one(file: Path, folder: Path) -> None:
    database = LmdbDatabase(folder)
    try:
        await import_file(file, database)
    except MooredError as error:
        raise type(error)(f"file {str(file)!r}: {error.text}") from error
    finally:
        await database.close()


async def _export_one(pair: Pair) -> None:
    database = LmdbDatabase(pair.folder, create=False)
    try:
        await export_file(database, pair.file, mode=pair.mode)
    finally:
        await database.close()


def _export(target: Path, root: Path) -> list[str]:
    """Write every file beside its place and move it there. Raises MooredError, OSError."""
    pairs = list(_in_moored(target, root))
    if not pairs:
        raise NotFound(f"root {str(root)!r} has no metadata")
    with ExitStack() as stack:
        stack.callback(FolderLock(root).release)
        for pair in pairs:
            if pair.file.exists():
                raise AlreadyExists(f"file {str(pair.file)!r} is there already")
        for pair in pairs:
            pair.file.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            asyncio.run(_export_one(pair))
    return [f"{pair.folder} -> {pair.file}" for pair in pairs]


def _in_containerd(source: Path, root: Path) -> list[Pair]:
    if not source.is_dir():
        return [Pair(source, root / OBJECTS, BOLT_MODE)]
    files = [source / OBJECTS / "meta.db", *sorted(source.glob(f"{SNAPSHOTTERS}*/metadata.db"))]
    return [_pair(file, root) for file in files]


def _pair(file: Path, root: Path) -> Pair:
    plugin = file.parent.name
    if plugin == OBJECTS:
        return Pair(file, root / OBJECTS, BOLT_MODE)
    return Pair(file, root / plugin / "metadata", 0o600)


def _in_moored(target: Path, root: Path) -> Iterator[Pair]:
    if (root / OBJECTS).is_dir():
        file = target / OBJECTS / "meta.db" if target.is_dir() else target
        yield Pair(file, root / OBJECTS, BOLT_MODE)
    if target.is_dir():
        for folder in sorted(root.glob(f"{SNAPSHOTTERS}*/metadata")):
            yield Pair(target / folder.parent.name / "metadata.db", folder, 0o600)


def _refuse_running(file: Path) -> None:
    """A running containerd holds a lock on its files, and they may change under a reader."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(f"file {str(file)!r} is in use, stop its daemon first") from None
    finally:
        os.close(fd)


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.import")


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
