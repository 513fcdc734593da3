"""Mounts that are descriptors before they are anywhere: fsopen(2), open_tree(2), mount_setattr(2) and move_mount(2).

    created, cloned ─ descriptor of a mount that nobody sees ─ set_attributes ─ attach

A descriptor that is closed before it is attached takes its mount along. All of it blocks, but for `open_within` with
RESOLVE_CACHED. Linux 5.2, id mappings 5.12.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from moored.kernel.libc import libc

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_OPENAT2: Final = 437
_MOUNT_SETATTR: Final = 442

_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_CLONE: Final = 1
_CLOEXEC: Final = os.O_CLOEXEC
_FROM_DESCRIPTOR: Final = 4
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_CREATE: Final = 6

ATTR_RDONLY: Final = 1
ATTR_NOSUID: Final = 2
ATTR_NODEV: Final = 4
ATTR_NOEXEC: Final = 8
ATTR_ATIME: Final = 0x70
"""All that says how access times are kept; cleared before one of the next two is set."""
ATTR_NOATIME: Final = 0x10
ATTR_STRICTATIME: Final = 0x20
ATTR_NODIRATIME: Final = 0x80
ATTR_IDMAP: Final = 0x100000

MAX_VALUE: Final = 255
"""Bytes in the value of an option."""
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20
"""EAGAIN where the disk would have to be looked at; Linux 5.12."""


def created(kind: str, source: str, options: Sequence[str], attributes: int = 0) -> int:
    """Make a file system with options in order (`key=value`, or a flag) and give the descriptor of its mount.

    Raises OSError with what the file system said; EINVAL for an option that it does not know.
    """
    context = _call(f"fsopen of {kind!r}", _FSOPEN, kind.encode(), 1)
    try:
        given = [f"source={source}", *options] if source else options
        for option in given:
            key, equals, value = option.partition("=")
            command, text = (_SET_STRING, os.fsencode(value)) if equals else (_SET_FLAG, None)
            _configure(context, f"option {option[:200]!r} of {kind!r}", command, key.encode(), text)
        _configure(context, f"mount of {kind!r} {source!r}", _CREATE, None, None)
        return _call(f"mount of {kind!r}", _FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def _configure(context: int, what: str, command: int, key: bytes | None, value: bytes | None) -> None:
    try:
        _call(what, _FSCONFIG, context, command, key, value, 0)
    except OSError as error:
        if said := _said(context):
            raise OSError(error.errno, f"{error.strerror}: {said}") from None
        raise


def _said(context: int) -> str:
    """Give the complaints of a file system that is being made."""
    found = []
    with suppress(OSError):
        while text := os.read(context, 1024):
            found.append(text.decode(errors="replace").strip().removeprefix("e "))
    return "; ".join(found)


def cloned(path: str, *, recursive: bool) -> int:
    """Give the descriptor of a new mount of the folder or file at a path, with all that is mounted in it. OSError."""
    flags = _CLONE | _CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _call(f"clone of {path!r}", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def set_attributes(mount: int, attributes: int, *, clear: int = 0, user_namespace: int = 0, recursive: bool) -> None:
    """Set ATTR_ bits of a mount; ATTR_IDMAP with the descriptor of the namespace that maps.

    Raises OSError, EINVAL where the file system cannot be mapped.
    """
    raw = struct.pack("=QQQQ", attributes, clear, 0, user_namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call("mount attributes", _MOUNT_SETATTR, mount, b"", flags, raw, len(raw))


def attach(mount: int, path: str) -> None:
    """Put a mount that is nowhere yet on a path. Raises OSError."""
    _call(f"mount on {path!r}", _MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(path), _FROM_DESCRIPTOR)


@contextmanager
def closing(descriptor: int) -> Generator[int]:
    """Close a descriptor behind the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_within(top: int, path: str, flags: int, resolve: int) -> int:
    """Open a path below the folder `top` with openat2(2) and its RESOLVE_ bits. Raises OSError."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return _call(f"path {path!r}", _OPENAT2, top, os.fsencode(path), how, len(how))


def _call(what: str, number: int, *arguments: int | bytes | None) -> int:
    result = int(libc().syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} ({what})")
    return result


def known(kind: str) -> bool:
    """Whether the kernel has a type of file system, loading it if need be."""
    try:
        os.close(_call("fsopen", _FSOPEN, kind.encode(), 1))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return kind in Path("/proc/filesystems").read_text().split()
        return False
    return True
