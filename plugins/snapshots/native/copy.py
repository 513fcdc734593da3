"""Copies a tree as it is: contents, owners, modes, times, extended attributes, hard links, devices.

Contents are shared or left sparse where the file system can do it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Final

from moored.kernel.workers import Stop
from moored.plugins.snapshots.tree import Descent

_FICLONE: Final = 0x40049409
_CHUNK: Final = 1 << 24
"""Bytes copied in one call, so that a Stop is seen."""
_BUFFER: Final = 1 << 20
"""Bytes copied in one call where the kernel does not copy."""
_CANNOT_SHARE: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})
_CANNOT_KEEP: Final = frozenset({errno.EOPNOTSUPP, errno.EPERM, errno.EACCES})
_OPEN: Final = os.O_CLOEXEC | os.O_NOFOLLOW


def copy_tree(source: int, target: int, stop: Stop) -> None:
    """Copy all that is in the open folder `source`, and its own attributes, to the empty open folder `target`.

    Nothing may change in either meanwhile. Raises OSError.
    """
    with Descent(source) as down, Descent(target) as along:
        _Copy(target, down, along, stop).run()


class _Copy:
    """One copy under way; both positions move together."""

    def __init__(self, top: int, source: Descent, target: Descent, stop: Stop) -> None:
        self._top = top
        self._source = source
        self._target = target
        self._stop = stop
        self._names: list[str] = []
        self._linked: dict[tuple[int, int], str] = {}

    def run(self) -> None:
        """Copy folder by folder; a folder gets its attributes when all below it is there, since that sets its times."""
        pending = [self._copy_entries()]
        while True:
            if pending[-1]:
                name = pending[-1].pop()
                os.mkdir(name, 0o700, dir_fd=self._target.fd)
                self._source.enter(name)
                self._target.enter(name)
                self._names.append(name)
                pending.append(self._copy_entries())
                continue
            _copy_folder_attributes(self._source.fd, self._target.fd)
            pending.pop()
            if not pending:
                return
            self._source.leave()
            self._target.leave()
            self._names.pop()

    def _copy_entries(self) -> list[str]:
        """Copy all but folders, and give these."""
        self._stop.check()
        folders = []
        with os.scandir(self._source.fd) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    folders.append(entry.name)
                elif not self._link(entry.name, status):
                    self._copy_entry(entry.name, status)
        return folders

    def _link(self, name: str, status: os.stat_result) -> bool:
        """Link to the copy of the same file, if there is one."""
        if status.st_nlink < 2:
            return False
        key = (status.st_dev, status.st_ino)
        first = self._linked.setdefault(key, "/".join((*self._names, name)))
        if first == "/".join((*self._names, name)):
            return False
        try:
            os.link(first, name, src_dir_fd=self._top, dst_dir_fd=self._target.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in {errno.ENAMETOOLONG, errno.EMLINK}:
                raise
            return False  # a copy of its own is the best that can be had
        return True

    def _copy_entry(self, name: str, status: os.stat_result) -> None:
        source, target = self._source.fd, self._target.fd
        if stat.S_ISREG(status.st_mode):
            self._copy_file(name, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            # After chown, which takes setuid away. The name is no link: it was made here.
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        _copy_attributes(f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}")
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)

    def _copy_file(self, name: str, status: os.stat_result) -> None:
        source = os.open(name, os.O_RDONLY | _OPEN, dir_fd=self._source.fd)
        try:
            target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=self._target.fd)
            try:
                copy_contents(source, target, status.st_size, self._stop)
            finally:
                os.close(target)
        finally:
            os.close(source)


def copy_contents(source: int, target: int, size: int, stop: Stop) -> None:
    """Copy a file's bytes to an empty one: shared if the file system can, else with its holes. Raises OSError."""
    if not size:
        return
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
    else:
        return
    os.ftruncate(target, size)
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, begin, os.SEEK_HOLE)
        _copy_range(source, target, begin, end, stop)
        offset = end


def _copy_range(source: int, target: int, offset: int, end: int, stop: Stop) -> None:
    while offset < end:
        stop.check()
        copied = _copy_chunk(source, target, offset, min(_CHUNK, end - offset))
        if not copied:
            return  # the file is shorter than it was
        offset += copied


def _copy_chunk(source: int, target: int, offset: int, size: int) -> int:
    try:
        return os.copy_file_range(source, target, size, offset, offset)
    except OSError as error:
        # EXDEV: the kernel copies within one file system only.
        if error.errno not in _CANNOT_SHARE:
            raise
    return os.pwrite(target, os.pread(source, min(size, _BUFFER), offset), offset)


def _copy_folder_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    _copy_attributes(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", follow=True)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_attributes(source: str, target: str, *, follow: bool = False) -> None:
    """Copy extended attributes; those that a security module or the file system keeps to itself are left out."""
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _CANNOT_KEEP:
            return
        raise
    for name in names:
        try:
            value = os.getxattr(source, name, follow_symlinks=follow)
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _CANNOT_KEEP | {errno.ENODATA}:
                raise
