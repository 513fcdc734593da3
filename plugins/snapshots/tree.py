"""Trees of files that nobody vouches for: walked by descriptor, never out of the tree, however deep it is."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from moored.kernel.libc import libc
from moored.kernel.ports.snapshots import Usage
from moored.kernel.workers import Stop

_OPENAT2: Final = 437
_NO_XDEV: Final = 0x01
_NO_MAGICLINKS: Final = 0x02
_NO_SYMLINKS: Final = 0x04
_BLOCK: Final = 512
"""Bytes in the unit of st_blocks, on any file system."""
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_folder(name: str, parent: int) -> int:
    """Open the folder `name` in the folder `parent`, if it is none of: a symbolic link, another mount.

    Raises OSError, for these ELOOP or ENOTDIR and EXDEV.
    """
    how = _How(FOLDER, 0, _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS)
    fd = int(libc().syscall(_OPENAT2, parent, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how)))
    if fd >= 0:
        return fd
    error = ctypes.get_errno()
    if error != errno.ENOSYS:
        raise OSError(error, os.strerror(error))
    return _open_on_device(name, parent)


def _open_on_device(name: str, parent: int) -> int:
    """Do as `open_folder` on kernels before 5.6, where a bind mount of the same file system is not told apart."""
    fd = os.open(name, FOLDER, dir_fd=parent)
    if os.fstat(fd).st_dev != os.fstat(parent).st_dev:
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return fd


def sync_filesystem(fd: int) -> None:
    """Make all that was written to the file system of `fd` durable. Raises OSError."""
    if libc().syncfs(fd) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Descent:
    """A position in a tree, held by one descriptor at any depth.

    Raises OSError ESTALE when a folder was moved meanwhile, so that its parent is not the one it was entered from.
    """

    def __init__(self, top: int) -> None:
        """Begin at the open folder `top`, which stays the caller's."""
        self.fd = os.open(".", FOLDER, dir_fd=top)
        self._above: list[tuple[int, int]] = []

    def enter(self, name: str) -> None:
        """Go down. Raises as `open_folder`."""
        below = open_folder(name, self.fd)
        self._above.append(_identity(self.fd))
        os.close(self.fd)
        self.fd = below

    def leave(self) -> None:
        """Go up again."""
        above = open_folder("..", self.fd)
        if _identity(above) != self._above.pop():
            os.close(above)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        os.close(self.fd)
        self.fd = above

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def disk_usage(top: int, stop: Stop) -> Usage:
    """Measure the tree of the open folder `top`; hard links count once. What changes meanwhile may count or not."""
    size, inodes = os.fstat(top).st_blocks * _BLOCK, 1
    linked: set[tuple[int, int]] = set()

    def scan(fd: int) -> list[str]:
        nonlocal size, inodes
        stop.check()
        folders = []
        with os.scandir(fd) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                elif status.st_nlink > 1:
                    if (status.st_dev, status.st_ino) in linked:
                        continue
                    linked.add((status.st_dev, status.st_ino))
                size += status.st_blocks * _BLOCK
                inodes += 1
        return folders

    with Descent(top) as descent:
        pending = [scan(descent.fd)]
        while pending:
            if not pending[-1]:
                pending.pop()
                if pending:
                    descent.leave()
                continue
            try:
                descent.enter(pending[-1].pop())
            except OSError as error:
                # Gone meanwhile, or what is mounted there is not ours.
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV}:
                    raise
                continue
            pending.append(scan(descent.fd))
    return Usage(size, inodes)


def remove_tree(name: str, parent: int, stop: Stop) -> None:
    """Remove `name` from the folder `parent` with all that is in it; gone already is fine.

    Raises OSError, EXDEV where something is mounted in the tree: nothing on that mount is touched.
    """
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        top = open_folder(name, parent)
    except FileNotFoundError:
        return
    try:
        with Descent(top) as descent:
            _empty(descent, stop)
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def _empty(descent: Descent, stop: Stop) -> None:
    entered: list[str] = []
    pending = [_unlink_files(descent.fd, stop)]
    while pending:
        if not pending[-1]:
            pending.pop()
            if pending:
                descent.leave()
                with suppress(FileNotFoundError):
                    os.rmdir(entered.pop(), dir_fd=descent.fd)
            continue
        name = pending[-1].pop()
        try:
            descent.enter(name)
        except FileNotFoundError:
            continue
        entered.append(name)
        pending.append(_unlink_files(descent.fd, stop))


def _unlink_files(fd: int, stop: Stop) -> list[str]:
    """Remove all but folders, and give these."""
    stop.check()
    folders = []
    with os.scandir(fd) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=fd)
    return folders
