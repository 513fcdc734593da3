"""The store's folder: one owner, private modes, created whole or not at all, and measured before LMDB maps it.

<folder>/            0700
├── lock             flock of the owner, with its process id
├── closed           after an orderly close: how the data file was then
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
from moored.plugins.metadata.lmdb.mark import CLOSED, Mark
from moored.plugins.metadata.lmdb.pages import Meta, check_pages

DATA: Final = "data.mdb"
ENVIRONMENT: Final = "environment"
LOCK: Final = "lock"

READERS: Final = "lock.mdb"
READERS_BYTES: Final = 72 << 10
"""Size of LMDB's reader table, which gives it more than a thousand slots of 64 bytes."""

PAGE_HEADER: Final = 16
META: Final = struct.Struct("<IIQQ48s48sQQ")
"""Magic, version, address, map size, free list's tree, main tree, last page, transaction."""
MAGIC: Final = 0xBEEFC0DE
VERSION: Final = 1
OTHER_VERSIONS: Final = frozenset({2, 999})
"""LMDB's newer format, and that of its development."""
PAGE_SIZES: Final = tuple(1 << n for n in range(9, 17))
UNMARKED: Final = Mark()


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


def remove_store(folder: Path) -> None:
    """Remove a store that nobody has open, and its folder if nothing else is in it. Raises OSError."""
    # The environment goes in one step: half of one must not be taken for a damaged one.
    gone = folder / f"{ENVIRONMENT}.new"
    shutil.rmtree(gone, ignore_errors=True)
    (folder / ENVIRONMENT).rename(gone)
    sync_folder(folder)
    shutil.rmtree(gone)
    for name in (CLOSED, LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def reserve_readers(home: Path) -> None:
    """Allocate the reader table before LMDB maps it: to touch a hole in a mapped file on a full disk is a SIGBUS.

    Not while LMDB has it open, for closing any descriptor of it would drop LMDB's locks. Raises OSError.
    """
    fd = os.open(home / READERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, READERS_BYTES)
    finally:
        os.close(fd)


def check_data_file(path: Path, mark: Mark = UNMARKED) -> None:
    """Refuse a data file that LMDB would map beyond its end (SIGBUS), take for a new one, or end the process over.

    Its pages are walked unless it is as it was when the mark was written.
    Raises DataLoss for a missing, empty, foreign, truncated or damaged file and FailedPrecondition for another data
    version.
    """
    name = str(path)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataLoss(f"metadata file {name!r} is missing, wanted an LMDB file") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        newest = _newest_meta(name, size, file.read(2 * PAGE_SIZES[-1]))
        wanted = (newest.last_page + 1) * newest.page_size
        if size < wanted:
            raise DataLoss(f"metadata file {name!r} is truncated: {size} bytes, wanted {wanted}")
        if not mark.fits(os.fstat(file.fileno()), newest.transaction):
            check_pages(file.fileno(), name, newest)


def _newest_meta(name: str, size: int, head: bytes) -> Meta:
    """Give the meta page of the last commit; `size` is that of the file."""
    first = _meta(name, head, 0)
    second = _meta(name, head, first.page_size) if first is not None else None
    if first is None or second is None:
        raise DataLoss(f"metadata file {name!r} of {size} bytes is no LMDB file")
    if first.page_size != second.page_size:
        raise DataLoss(f"metadata file {name!r} is damaged: pages of {first.page_size} and {second.page_size} bytes")
    # Each commit writes the one of the two that is older, and 0 stands for none.
    low, high = sorted((first.transaction, second.transaction))
    if low and high != low + 1:
        raise DataLoss(f"metadata file {name!r} is damaged: its last transactions are {low} and {high}")
    return second if second.transaction > first.transaction else first


def _meta(name: str, head: bytes, offset: int) -> Meta | None:
    if len(head) < offset + PAGE_HEADER + META.size:
        return None
    magic, version, _, _, free, main, last_page, transaction = META.unpack_from(head, offset + PAGE_HEADER)
    if magic != MAGIC:
        return None
    if version in OTHER_VERSIONS:
        raise FailedPrecondition(f"metadata file {name!r} has LMDB data version {version}, wanted {VERSION}")
    page_size = int.from_bytes(free[:4], "little")
    if version != VERSION or page_size not in PAGE_SIZES:
        return None
    return Meta(page_size, free, main, last_page, transaction)


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
