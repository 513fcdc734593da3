"""One file with copies of several databases: a tar archive that is told whole from cut, and good from damaged.

    FOLDER/environment/data.mdb    the copy of the database in that folder, once for each; as below the daemon's root
    outside/N/data.mdb             the same of a folder that lies elsewhere
    manifest.json                  the last one: {"format", "databases": [{"member", "folder", "bytes", "sha256"}]}

Folders are those below the root, or absolute ones. Format: "moored metadata 1".
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import msgspec

from moored.kernel.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from moored.plugins.metadata.lmdb.folder import DATA, ENVIRONMENT
from moored.plugins.metadata.lmdb.records import NO_ROOM

FORMAT: Final = "moored metadata 1"
MANIFEST: Final = "manifest.json"
MODE: Final = 0o600
BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
PIECE: Final = 1 << 20
MAX_MANIFEST: Final = 1 << 20
MAX_MEMBERS: Final = 1024
MAX_NAME: Final = 99
"""Bytes of a member's name that need no further header."""
RELATIVE: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"

Copy = Callable[[int], None]
"""Writes a database to a descriptor, from its position on."""


class Saved(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One database in an archive."""

    member: str
    folder: str
    bytes: int
    sha256: str

    def below(self, root: Path) -> Path:
        """Give its folder, for a daemon with that root."""
        return root / self.folder


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an archive says of itself."""

    format: str
    databases: list[Saved]


def write_archive(fd: int, root: Path, copies: Sequence[tuple[Path, Copy]]) -> None:
    """Write the databases of these folders to an empty file. Blocks. Raises ResourceExhausted, Unavailable."""
    try:
        saved = [_write_copy(fd, *_names(number, folder, root), copy) for number, (folder, copy) in enumerate(copies)]
        data = msgspec.json.encode(Manifest(format=FORMAT, databases=saved))
        os.pwrite(fd, _header(MANIFEST, len(data)), at := os.lseek(fd, 0, os.SEEK_END))
        _write_at(fd, data + bytes(-len(data) % BLOCK) + END, at + BLOCK)
    except OSError as error:
        kind = ResourceExhausted if error.errno in NO_ROOM else Unavailable
        raise kind(f"copy of the metadata failed: {error.strerror}") from error


def _names(number: int, folder: Path, root: Path) -> tuple[str, str]:
    """Give the member and the folder that stand for a database's folder."""
    inside = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else ""
    member = f"{inside}/{ENVIRONMENT}/{DATA}"
    if re.fullmatch(RELATIVE, inside) and len(member) <= MAX_NAME:
        return member, inside
    return f"outside/{number}/{DATA}", str(folder)


def _write_copy(fd: int, member: str, folder: str, copy: Copy) -> Saved:
    at = os.lseek(fd, 0, os.SEEK_END)
    begins = os.lseek(fd, at + BLOCK, os.SEEK_SET)
    copy(fd)
    size = os.lseek(fd, 0, os.SEEK_END) - begins
    # Only now its size is known.
    _write_at(fd, _header(member, size), at)
    os.ftruncate(fd, begins + size + -size % BLOCK)
    digest = hashlib.sha256()
    for offset in range(begins, begins + size, PIECE):
        digest.update(os.pread(fd, min(PIECE, begins + size - offset), offset))
    return Saved(member=member, folder=folder, bytes=size, sha256=digest.hexdigest())


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, MODE
    return info.tobuf(tarfile.GNU_FORMAT)


def _write_at(fd: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


class Archive:
    """An archive that is read; everything in it is checked before it is used."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """Read what is in it; `name` is for the texts of errors.

        Raises DataLoss for one that is cut or damaged, InvalidArgument for what is none, FailedPrecondition for one of
        another format.
        """
        self._file = file
        self._name = name
        try:
            with tarfile.open(fileobj=file, mode="r:") as opened:
                members = {info.name: info for _, info in zip(range(MAX_MEMBERS), opened, strict=False) if info.isreg()}
        except (tarfile.TarError, EOFError) as error:
            raise InvalidArgument(f"file {name!r} is no backup of metadata: {error}") from error
        self._members = members
        self.databases: Final = self._manifest().databases
        for one in self.databases:
            self._check(one)

    def _manifest(self) -> Manifest:
        info = self._members.get(MANIFEST)
        if info is None:
            raise DataLoss(f"file {self._name!r} is cut or no backup of metadata: it has no {MANIFEST!r}")
        if info.size > MAX_MANIFEST:
            raise InvalidArgument(f"file {self._name!r} has a {MANIFEST!r} of {info.size} bytes")
        self._file.seek(info.offset_data)
        try:
            manifest = msgspec.json.decode(self._file.read(info.size), type=Manifest)
        except msgspec.DecodeError as error:
            raise DataLoss(f"file {self._name!r} has a damaged {MANIFEST!r}: {error}") from error
        if manifest.format != FORMAT:
            raise FailedPrecondition(f"file {self._name!r} has format {manifest.format!r}, wanted {FORMAT!r}")
        return manifest

    def _check(self, one: Saved) -> None:
        info = self._members.get(one.member)
        if info is None or info.size != one.bytes:
            raise DataLoss(f"file {self._name!r} is damaged: {one.member!r} is not as its manifest says")
        outside = PurePosixPath(one.folder)
        if not re.fullmatch(RELATIVE, one.folder) and not (outside.is_absolute() and ".." not in outside.parts):
            raise InvalidArgument(f"file {self._name!r} has a database of folder {one.folder!r}")

    def unpack(self, one: Saved, home: Path) -> None:
        """Write one of its databases into a new folder, durably. Blocks. Raises DataLoss, OSError."""
        home.mkdir(mode=0o700)
        (home / ENVIRONMENT).mkdir(mode=0o700)
        digest = hashlib.sha256()
        self._file.seek(self._members[one.member].offset_data)
        fd = os.open(home / ENVIRONMENT / DATA, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with os.fdopen(fd, "wb") as target:
            left = one.bytes
            while left and (piece := self._file.read(min(left, PIECE))):
                digest.update(piece)
                target.write(piece)
                left -= len(piece)
            target.flush()
            os.fsync(target.fileno())
        if left or digest.hexdigest() != one.sha256:
            raise DataLoss(f"file {self._name!r} is damaged: {one.member!r} has other bytes than its manifest says")
