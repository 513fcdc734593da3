"""A folder tree that holds a stranger's files, walked by descriptor so that no link leads out of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from moored.plugins.diff.syscalls import Syscalls

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
MAX_LINKS = 255
"""Symbolic links in one path, as containerd has it."""
MAX_OPEN_LEVELS = 64
"""Folders that `remove` has open at a time."""
CACHED = 128
"""Folders that a tree has open at a time."""

Make = Callable[[int, bytes, bytes], None]
"""Makes the missing folder of a name in a folder; the last argument is its path from the root."""


def parts_of(path: bytes) -> list[bytes]:
    """The names of a path from a root, `.` and `..` resolved by the text alone; `..` at the root stays there."""
    found: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if found:
                found.pop()
        elif part and part != b".":
            found.append(part)
    return found


class Tree:
    """A root, and the folders in it that are open.

    Open folders are known by path; whoever removes or renames anything calls `forget`, since another folder may have
    the path then. Descriptors from `folder` are the tree's and last until its next call or one of `keep` or `forget`.
    """

    def __init__(self, root: int, syscalls: Syscalls) -> None:
        self.root = root
        self._syscalls = syscalls
        self._open: dict[bytes, int] = {}

    def folder(self, path: bytes, make: Make | None = None) -> int:
        """The folder at a clean path (names joined by `/`, empty for the root), made where `make` is given.

        Raises OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG and what `make` raises.
        """
        if not path:
            return self.root
        fd = self._open.get(path, -1)
        if fd >= 0:
            return fd
        above, _, name = path.rpartition(b"/")
        parent = self._open.get(above) if above else self.root
        if parent is not None:
            try:
                fd = os.open(name, OPEN_FOLDER, dir_fd=parent)
            except OSError as fault:
                if fault.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    raise
        if fd < 0:
            fd = self.open(path, make)
        self.keep(path, fd)
        return fd

    def keep(self, path: bytes, fd: int) -> None:
        """Let the tree have a folder that was opened elsewhere."""
        if len(self._open) >= CACHED:
            # the one that was opened first
            os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd

    def forget(self) -> None:
        """Close all but the root."""
        while self._open:
            os.close(self._open.popitem()[1])

    def open(self, path: bytes, make: Make | None = None) -> int:
        """As `folder`, for a descriptor that the caller closes."""
        try:
            return self._syscalls.open_in_root(self.root, path or b".", OPEN_FOLDER & ~os.O_NOFOLLOW)
        except NotImplementedError:
            return self._walk(path, make)
        except FileNotFoundError:
            if make is None:
                raise
        return self._walk(path, make)

    def _walk(self, path: bytes, make: Make | None) -> int:
        """Go name by name, resolving links by hand."""
        here = [os.dup(self.root)]
        names: list[bytes] = []
        todo = path.split(b"/")[::-1]
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == b"..":
                    if names:
                        names.pop()
                        os.close(here.pop())
                elif name and name != b".":
                    target = self._step(here, names, name, make)
                    if target is not None:
                        links += 1
                        if links > MAX_LINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                        if target.startswith(b"/"):
                            while names:
                                names.pop()
                                os.close(here.pop())
                        todo += target.split(b"/")[::-1]
            return here.pop()
        finally:
            for fd in here:
                os.close(fd)

    def _step(self, here: list[int], names: list[bytes], name: bytes, make: Make | None) -> bytes | None:
        """Go down one name, or give the target of the link that it is."""
        try:
            fd = os.open(name, OPEN_FOLDER, dir_fd=here[-1])
        except FileNotFoundError:
            if make is None:
                raise
            make(here[-1], name, b"/".join((*names, name)))
            fd = os.open(name, OPEN_FOLDER, dir_fd=here[-1])
        except OSError as fault:
            if fault.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
            if not stat.S_ISLNK(os.lstat(name, dir_fd=here[-1]).st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
            return os.readlink(name, dir_fd=here[-1])
        here.append(fd)
        names.append(name)
        return None


def remove(parent: int, name: bytes) -> None:
    """Remove what has that name in a folder, with all that is in it; nothing if there is none.

    However deep it is, only a few descriptors are used: what is too deep is first moved up.
    """
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as fault:
        if fault.errno not in {errno.EISDIR, errno.EPERM}:
            raise
        _remove_folder(parent, name)


class _Level:
    """A folder that is being emptied: its name in the one above, and the names in it that are still to be seen."""

    __slots__ = ("fd", "name", "names")

    def __init__(self, parent: int, name: bytes) -> None:
        self.fd = os.open(name, OPEN_FOLDER, dir_fd=parent)
        self.name = name
        self.names = names_in(self.fd)


def _remove_folder(parent: int, name: bytes) -> None:
    levels = [_Level(parent, name)]
    moved = 0
    try:
        while levels:
            level = levels[-1]
            if not level.names:
                os.close(levels.pop().fd)
                os.rmdir(level.name, dir_fd=levels[-1].fd if levels else parent)
            elif not _unlinked(level.fd, child := level.names.pop()):
                if len(levels) < MAX_OPEN_LEVELS:
                    levels.append(_Level(level.fd, child))
                else:
                    moved += 1
                    levels[0].names.append(_move(level.fd, child, levels[0].fd, moved))
    finally:
        for level in levels:
            os.close(level.fd)


def _unlinked(folder: int, name: bytes) -> bool:
    """Unlink what is no folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except OSError as fault:
        if fault.errno not in {errno.EISDIR, errno.EPERM}:
            raise
        return False
    return True


def _move(source: int, name: bytes, top: int, number: int) -> bytes:
    """Rename a folder into another one; its name there, which was free."""
    while True:
        free = b".moored-removed-%d-%s" % (number, os.urandom(8).hex().encode())
        try:
            os.mkdir(free, 0o700, dir_fd=top)
        except FileExistsError:
            continue
        os.rename(name, free, src_dir_fd=source, dst_dir_fd=top)
        return free


def names_in(folder: int) -> list[bytes]:
    """The names in an open folder, in any order."""
    # a listing by descriptor gives text only
    return [os.fsencode(name) for name in os.listdir(folder)]


Keep = Callable[[int, bytes], bool]
"""Whether what has that name in the folder of that inode number stays."""


class _Kept(_Level):
    __slots__ = ("inode", "kept")

    def __init__(self, parent: int, name: bytes) -> None:
        super().__init__(parent, name)
        self.inode = os.fstat(self.fd).st_ino
        self.kept = False


def empty(folder: int, keep: Keep) -> None:
    """Remove all below a folder that `keep` does not want, but no folder with something in it that it wants."""
    levels = [_Kept(folder, b".")]
    try:
        while levels:
            level = levels[-1]
            if level.names:
                name = level.names.pop()
                if stat.S_ISDIR(os.lstat(name, dir_fd=level.fd).st_mode):
                    levels.append(_Kept(level.fd, name))
                elif keep(level.inode, name):
                    level.kept = True
                else:
                    os.unlink(name, dir_fd=level.fd)
                continue
            os.close(levels.pop().fd)
            if levels:
                above = levels[-1]
                if level.kept or keep(above.inode, level.name):
                    above.kept = True
                else:
                    remove(above.fd, level.name)
    finally:
        for level in levels:
            os.close(level.fd)
