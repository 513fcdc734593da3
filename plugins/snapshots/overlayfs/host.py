"""What this host's overlayfs can do, found by trying it without leaving a mount behind."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from moored.kernel.libc import libc
from moored.kernel.plugin import Skip
from moored.kernel.ports.snapshots import REBASE, REMAP_IDS
from moored.kernel.workers import Stop
from moored.plugins.snapshots.faults import NO_ROOM
from moored.plugins.snapshots.folder import Folder, new_entry, new_name
from moored.plugins.snapshots.tree import FOLDER

_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_CREATE: Final = 6
_GETDENTS64: Final = {"x86_64": 217}.get(os.uname().machine, 61)
_DT_UNKNOWN: Final = 0
_IDMAPPED_SINCE: Final = (5, 19)


def host_options(folder: Folder, entry: str, chosen: Sequence[str]) -> list[str]:
    """Give the options that overlay mounts need beside the chosen ones; tries them in the entry `entry`, then removed.

    On a full disk nothing can be tried: overlayfs is taken to work there, so that snapshots can be removed.
    Raises Skip naming what is missing, OSError.
    """
    folder.remove(new_entry(entry), Stop())
    names = {option.partition("=")[0] for option in chosen}
    try:
        userxattr = _tried(folder, entry, names)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        userxattr = in_user_namespace()
    finally:
        folder.remove(new_entry(entry), Stop())
    options = ["userxattr"] if userxattr and "userxattr" not in names else []
    if "index" not in names and Path("/sys/module/overlay/parameters/index").exists():
        options.append("index=off")
    return options


def _tried(folder: Folder, entry: str, chosen: set[str]) -> bool:
    """Try overlays on the folder's file system and tell whether they want `userxattr`."""
    os.mkdir(new_name(entry), 0o700, dir_fd=folder.fd(entry))
    fd = folder.open_entry(new_entry(entry))
    try:
        for name in ("lower", "base", "upper", "work"):
            os.mkdir(name, 0o755, dir_fd=fd)
        if not _tells_types(fd):
            raise Skip(f"{str(folder.root)!r} does not support d_type (xfs needs ftype=1), overlayfs needs it")
        userxattr = "userxattr" in chosen or (in_user_namespace() and _fault(fd, ["userxattr"]) is None)
        fault = _fault(fd, ["userxattr"] if userxattr else [])
    finally:
        os.close(fd)
    if fault in NO_ROOM:
        raise OSError(fault, os.strerror(fault or 0))
    if fault not in {None, errno.ENOSYS}:
        raise Skip(f"overlayfs cannot be mounted on the snapshots' file system: {os.strerror(fault or 0).lower()}")
    return userxattr


def _fault(fd: int, options: Sequence[str]) -> int | None:
    """Give the error of an overlay on the folders in `fd`, which is made but mounted nowhere; None if it works.

    ENOSYS on kernels before 5.2, which cannot tell.
    """
    context = int(libc().syscall(_FSOPEN, b"overlay", 1))
    if context < 0:
        return ctypes.get_errno()
    place = f"/proc/self/fd/{fd}"
    texts = {
        "lowerdir": f"{place}/lower:{place}/base",
        "upperdir": f"{place}/upper",
        "workdir": f"{place}/work",
    }
    try:
        calls: list[tuple[int, bytes, bytes | None]] = [
            (_SET_STRING, key.encode(), value.encode()) for key, value in texts.items()
        ]
        calls += [(_SET_FLAG, option.encode(), None) for option in options]
        for command, key, value in (*calls, (_CREATE, None, None)):
            if libc().syscall(_FSCONFIG, context, command, key, value, 0) < 0:
                return ctypes.get_errno()
        return None
    finally:
        os.close(context)


def _tells_types(fd: int) -> bool:
    """Whether listings tell the kind of each entry, which overlayfs needs to see whiteouts."""
    buffer = ctypes.create_string_buffer(4096)
    listing = os.open(".", FOLDER, dir_fd=fd)
    try:
        size = int(libc().syscall(_GETDENTS64, listing, buffer, len(buffer)))
    finally:
        os.close(listing)
    if size < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    at = 0
    while at < size:
        # struct linux_dirent64: u64 inode, i64 offset, u16 length, u8 type, name
        length, kind = int.from_bytes(buffer.raw[at + 16 : at + 18], "little"), buffer.raw[at + 18]
        if kind == _DT_UNKNOWN:
            return False
        at += length
    return True


def host_capabilities() -> set[str]:
    """Give REMAP_IDS and REBASE as far as this host allows them."""
    found = set()
    release = re.match(r"([0-9]+)\.([0-9]+)", os.uname().release)
    if release is not None and (int(release[1]), int(release[2])) >= _IDMAPPED_SINCE:
        found.add(REMAP_IDS)
    if not in_user_namespace():
        # A layer that is unpacked without its parent has whiteouts, devices that no user namespace can make.
        found.add(REBASE)
    return found


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace other than the first."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except FileNotFoundError:
        return False
