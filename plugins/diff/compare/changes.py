"""Walks two trees side by side, by descriptor and in order of names, and finds what differs.

Two files are the same if type, mode, owner, device, capabilities, size and time are; where both times are whole
seconds, as after unpacking, their content is compared too. Folders have no size and time here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from moored.kernel.errors import Unknown
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.tar.header import shown
from moored.plugins.diff.tree import OPEN_FOLDER, names_in

CAPABILITY = "security.capability"
CHUNK = 1 << 20
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SECOND = 1_000_000_000
_NO_XATTR = frozenset((61, 95))  # ENODATA, EOPNOTSUPP


class Change:
    """One name that differs: `kind` is ADDED, MODIFIED, DELETED, or SAME for a file with several names.

    folder and name lead to it in the upper tree; path is the one from the root; found is its lstat, None when deleted.
    """

    __slots__ = ("folder", "found", "kind", "name", "path")

    def __init__(self, kind: str, path: bytes, folder: int, name: bytes, found: os.stat_result | None) -> None:
        self.kind = kind
        self.path = path
        self.folder = folder
        self.name = name
        self.found = found


ADDED, MODIFIED, DELETED, SAME = "added", "modified", "deleted", "same"


class _Level:
    """A folder of both trees: descriptors, -1 where it is missing, and the names that are still to be seen, last first.

    `touched` are the names that the overlay's upper folder has here, None if that is not known.
    """

    __slots__ = ("lower", "lower_names", "names", "path", "shortcut", "touched", "upper", "upper_names")

    def __init__(self, path: bytes, lower: int, upper: int, shortcut: int) -> None:
        self.path = path
        self.lower = lower
        self.upper = upper
        self.shortcut = shortcut
        self.lower_names = frozenset(names_in(lower)) if lower >= 0 else frozenset()
        self.upper_names = frozenset(names_in(upper))
        self.touched = frozenset(names_in(shortcut)) if shortcut >= 0 else None
        self.names = sorted(self.lower_names | self.upper_names, reverse=True)

    def close(self) -> None:
        for fd in (self.lower, self.upper, self.shortcut):
            if fd >= 0:
                os.close(fd)


def changes(lower: int, upper: int, shortcut: int = -1) -> Iterator[Change]:
    """What differs below two folders, in order of paths, a folder before what is in it.

    `shortcut` is the upper folder of the overlay that `upper` shows and whose lower ones are just what `lower` shows:
    what has no name there is not looked at. Descriptors stay the caller's. Raises the errors of `faults`.
    """
    levels = [_Level(b"", os.dup(lower), os.dup(upper), os.dup(shortcut) if shortcut >= 0 else -1)]
    try:
        while levels:
            level = levels[-1]
            if not level.names:
                levels.pop().close()
                continue
            name = level.names.pop()
            path = level.path + b"/" + name if level.path else name
            try:
                yield from _name(level, name, path, levels)
            except OSError as fault:
                raise text_of(fault, f"cannot compare {shown(path)}") from fault
    finally:
        for level in levels:
            level.close()


def _name(level: _Level, name: bytes, path: bytes, levels: list[_Level]) -> Iterator[Change]:
    if name not in level.upper_names:
        yield Change(DELETED, path, level.upper, name, None)
        return
    below = name in level.lower_names
    if below and level.touched is not None and name not in level.touched:
        return
    found = os.lstat(name, dir_fd=level.upper)
    old = os.lstat(name, dir_fd=level.lower) if below else None
    if old is None:
        yield Change(ADDED, path, level.upper, name, found)
    elif not _same(level, name, old, found):
        yield Change(MODIFIED, path, level.upper, name, found)
    elif found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
        yield Change(SAME, path, level.upper, name, found)
    if stat.S_ISDIR(found.st_mode):
        levels.append(_below(level, name, path, old is not None and stat.S_ISDIR(old.st_mode)))


def _below(level: _Level, name: bytes, path: bytes, in_lower: bool) -> _Level:
    upper = os.open(name, OPEN_FOLDER, dir_fd=level.upper)
    lower = os.open(name, OPEN_FOLDER, dir_fd=level.lower) if in_lower else -1
    shortcut = -1
    if level.touched is not None and name in level.touched:
        shortcut = os.open(name, OPEN_FOLDER, dir_fd=level.shortcut)
    return _Level(path, lower, upper, shortcut)


def _same(level: _Level, name: bytes, old: os.stat_result, new: os.stat_result) -> bool:
    return os.path.samestat(old, new) or (_same_attributes(level, name, old, new) and _same_data(level, name, old, new))


def _same_attributes(level: _Level, name: bytes, old: os.stat_result, new: os.stat_result) -> bool:
    if (old.st_mode, old.st_uid, old.st_gid, old.st_rdev) != (new.st_mode, new.st_uid, new.st_gid, new.st_rdev):
        return False
    return capability(level.lower, name, old) == capability(level.upper, name, new)


def _same_data(level: _Level, name: bytes, old: os.stat_result, new: os.stat_result) -> bool:
    if stat.S_ISDIR(new.st_mode):
        return True
    if old.st_size != new.st_size or old.st_mtime_ns != new.st_mtime_ns:
        return False
    if new.st_mtime_ns % _SECOND:
        return True
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(name, dir_fd=level.lower) == os.readlink(name, dir_fd=level.upper)
    return not stat.S_ISREG(new.st_mode) or not new.st_size or _same_content(level, name)


def _same_content(level: _Level, name: bytes) -> bool:
    one = open_file(level.lower, name)
    try:
        other = open_file(level.upper, name)
        try:
            while True:
                data = os.read(one, CHUNK)
                if data != _exactly(other, max(len(data), 1)):
                    return False
                if not data:
                    return True
        finally:
            os.close(other)
    finally:
        os.close(one)


def _exactly(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while 0 < len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def open_file(folder: int, name: bytes) -> int:
    """Open a regular file for reading; raises Unknown if something else has the name by now."""
    fd = os.open(name, _OPEN_FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise Unknown(f"{shown(name)} was replaced while it was read")
    return fd


def capability(folder: int, name: bytes, found: os.stat_result) -> bytes:
    """The file capabilities of a regular file, empty if it has none."""
    if not stat.S_ISREG(found.st_mode):
        return b""
    fd = open_file(folder, name)
    try:
        return os.getxattr(fd, CAPABILITY)
    except OSError as fault:
        if fault.errno in _NO_XATTR:
            return b""
        raise
    finally:
        os.close(fd)
