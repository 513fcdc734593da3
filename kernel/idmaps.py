"""User namespaces that exist only to say how owners are mapped; nothing ever runs in them."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from moored.kernel.errors import InvalidArgument

_CLONE_VM: Final = 0x100
_CLONE_FILES: Final = 0x400
_CLONE_VFORK: Final = 0x4000
_CLONE_NEWUSER: Final = 0x10000000
_WALL: Final = 0x40000000
_STACK: Final = 1 << 16

_RANGE: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


def ranges(mapping: str) -> str:
    """Turn `CONTAINER:HOST:LENGTH[,...]` into the lines of a uid_map file. Raises InvalidArgument."""
    found = [_RANGE.fullmatch(part) for part in mapping.split(",")]
    if not all(found):
        raise InvalidArgument(f"id mapping {mapping!r} is none, wanted CONTAINER:HOST:LENGTH[,...]")
    return "".join(f"{part[1]} {part[2]} {part[3]}\n" for part in found if part)


@contextmanager
def user_namespace(uid_mapping: str, gid_mapping: str) -> Generator[int]:
    """Give the descriptor of a new user namespace with such mappings, each as in `ranges`.

    Raises InvalidArgument, OSError (EINVAL for ranges that overlap).
    """
    uids, gids = ranges(uid_mapping), ranges(gid_mapping)
    pid = _dead_process()
    try:
        # Until it is waited for, the credentials of a process that has ended are there, and the namespace with them.
        Path(f"/proc/{pid}/uid_map").write_text(uids, encoding="ascii")
        Path(f"/proc/{pid}/gid_map").write_text(gids, encoding="ascii")
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, _WALL)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _dead_process() -> int:
    """Give the pid of a process that ended as soon as it was in a user namespace of its own.

    It runs nothing but the C library's _exit, on memory and descriptors that it shares, so nothing is copied, and no
    signal tells of its end.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    stack = ctypes.create_string_buffer(_STACK)
    top = (ctypes.addressof(stack) + _STACK) & ~0xF
    flags = _CLONE_VM | _CLONE_FILES | _CLONE_VFORK | _CLONE_NEWUSER
    pid = int(libc.clone(ctypes.cast(libc._exit, ctypes.c_void_p), top, flags, None))
    if pid < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{os.strerror(error)} (a new user namespace)")
    return pid
