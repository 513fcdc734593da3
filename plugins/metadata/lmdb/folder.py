"""The store's folder: one owner, private modes, created whole or not at all, and measured before LMDB maps it.

<folder>/            0700
├── lock             flock of the owner, with its process id
└── environment/     0700, made as environment.new and renamed
    ├── data.mdb     0600, LMDB 0.9 format
    └── lock.mdb     0600, LMDB's readers
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
from pathlib import Path
from typing import Final

from moored.kernel.errors import DataLoss, FailedPrecondition, NotFound

DATA: Final = "data.mdb"
ENVIRONMENT: Final = "environment"
LOCK: Final = "lock"

READERS: Final = "lock.mdb"
READERS_BYTES: Final = 72 << 10
"""Size of LMDB's reader table, which gives it more than a thousand slots of 64 bytes."""

PAGE_HEADER: Final = 16
META: Final = struct.Struct("=IIQQ48s48sQQ")
"""Magic, version, address, map size, free list's tree, main tree, last page, transaction."""
MAGIC: Final = 0xBEEFC0DE
VERSION: Final = 1
PAGE_SIZES: Final = tuple(1 << n for n in range(9, 17))


class Owner:
    """An flock on `<folder>/lock`, which also keeps this process from opening the environment twice."""

    def __init__(self, folder: Path) -> None:
        """Take the lock at once. Raises FailedPrecondition naming folder and holder when somebody has it."""
        self._fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise FailedPrecondition(f"metadata folder {str(folder)!r} is in use by process {holder}") from None
        # On a full disk the next one is not told our number, but we start.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it. Safe to call once only."""
        os.close(self._fd)


def make_folder(folder: Path) -> None:
    """Make the folder if need be, and private in any case."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def exists(folder: Path, *, create: bool) -> bool:
    """Tell whether the environment was ever made; clear what an interrupted creation left.

    Raises NotFound if it is missing and may not be created.
    """
    if (folder / ENVIRONMENT).exists():
        return True
    if not create:
        raise NotFound(f"no metadata store in {str(folder)!r}")
    shutil.rmtree(folder / f"{ENVIRONMENT}.new", ignore_errors=True)
    return False


def reserve_readers(home: Path) -> None:
    """Allocate the reader table before LMDB maps it: to touch a hole in a mapped file on a full disk is a SIGBUS.

    Not while LMDB has it open, for closing any descriptor of it would drop LMDB's locks. Raises OSError.
    """
    fd = os.open(home / READERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, READERS_BYTES)
    finally:
        os.close(fd)


def check_data_file(path: Path) -> None:
    """Refuse a data file that LMDB would map beyond its end (SIGBUS) or take for a new one.

    Raises DataLoss for a missing, empty, foreign or truncated file and FailedPrecondition for another data version.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(2 * PAGE_SIZES[-1])
    except FileNotFoundError:
        raise DataLoss(f"metadata file {str(path)!r} is missing, wanted an LMDB file") from None
    newest = _newest_meta(path, head)
    if newest is None:
        raise DataLoss(f"metadata file {str(path)!r} of {size} bytes is no LMDB file")
    page_size, last_page = newest
    wanted = (last_page + 1) * page_size
    if size < wanted:
        raise DataLoss(f"metadata file {str(path)!r} is truncated: {size} bytes, wanted {wanted}")


def _newest_meta(path: Path, head: bytes) -> tuple[int, int] | None:
    """Give page size and last page of the last commit."""
    first = _meta(path, head, 0)
    if first is None:
        return None
    page_size, *_ = first
    metas = [meta for meta in (first, _meta(path, head, page_size)) if meta is not None]
    _, last_page, _ = max(metas, key=lambda meta: meta[2])
    return page_size, last_page


def _meta(path: Path, head: bytes, offset: int) -> tuple[int, int, int] | None:
    if len(head) < offset + PAGE_HEADER + META.size:
        return None
    magic, version, _, _, free, _, last_page, transaction = META.unpack_from(head, offset + PAGE_HEADER)
    if magic != MAGIC:
        return None
    if version != VERSION:
        raise FailedPrecondition(f"metadata file {str(path)!r} has LMDB data version {version}, wanted {VERSION}")
    page_size = int.from_bytes(free[:4], "little" if struct.pack("=H", 1) == b"\x01\x00" else "big")
    return (page_size, last_page, transaction) if page_size in PAGE_SIZES else None


def close_on_exec(folder: Path) -> None:
    """Keep LMDB's descriptors out of programs that are started; LMDB leaves the data file's inheritable."""
    files = {(status.st_dev, status.st_ino) for status in (path.stat() for path in folder.iterdir())}
    for link in Path("/proc/self/fd").iterdir():
        try:
            status = os.fstat(int(link.name))
        except OSError:
            continue  # the folder's own descriptor is closed by now
        if (status.st_dev, status.st_ino) in files:
            os.set_inheritable(int(link.name), False)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
