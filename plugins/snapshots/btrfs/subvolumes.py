"""Subvolumes by ioctl(2), relative to open folders. All functions raise OSError."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from moored.kernel.workers import Stop
from moored.plugins.snapshots.tree import FOLDER, remove_tree

_CREATE: Final = 0x5000940E
_SNAPSHOT: Final = 0x50009417
_DESTROY: Final = 0x5000940F
_LOOK_UP: Final = 0xD0009412
_SET_FLAGS: Final = 0x4008941A
_VOLUME: Final = struct.Struct("=q4088s")
"""A descriptor and a name."""
_VOLUME_V2: Final = struct.Struct("=qQQ32x4040s")
"""A descriptor, a transaction, flags and a name."""
_LOOKED_UP: Final = struct.Struct("=QQ4080s")
"""A tree's id, an object's id and its path."""
_READ_ONLY: Final = 1 << 1
_TOP_INODE: Final = 256


def create(name: str, folder: int) -> None:
    """Make an empty subvolume `name` in the open folder."""
    fcntl.ioctl(folder, _CREATE, bytearray(_VOLUME.pack(0, os.fsencode(name))))


def snapshot(source: int, name: str, folder: int, *, read_only: bool) -> None:
    """Make the subvolume `name` in the open folder with what the open one `source` has; durable on return."""
    flags = _READ_ONLY if read_only else 0
    fcntl.ioctl(folder, _SNAPSHOT, bytearray(_VOLUME_V2.pack(source, 0, flags, os.fsencode(name))))


def id_of(subvolume: int) -> int:
    """Give the id of the tree of an open subvolume, which mounts name it by."""
    looked_up = bytearray(_LOOKED_UP.pack(0, _TOP_INODE, b""))
    fcntl.ioctl(subvolume, _LOOK_UP, looked_up)
    return int(_LOOKED_UP.unpack(looked_up)[0])


def is_subvolume(fd: int) -> bool:
    """Whether an open folder on btrfs is the top of a subvolume."""
    return os.fstat(fd).st_ino == _TOP_INODE


def remove(name: str, folder: int, stop: Stop) -> None:
    """Remove a subvolume with all that is in it, or whatever else has the name; gone already is fine."""
    try:
        fd = os.open(name, FOLDER, dir_fd=folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise
        remove_tree(name, folder, stop)
        return
    try:
        if not is_subvolume(fd):
            remove_tree(name, folder, stop)
            return
        try:
            _destroy(name, folder)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            # It has subvolumes in it: emptied like a folder, they go like folders too, but may not be read-only.
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("=Q", 0))
            remove_tree(name, folder, stop)
    finally:
        os.close(fd)


def _destroy(name: str, folder: int) -> None:
    fcntl.ioctl(folder, _DESTROY, bytearray(_VOLUME.pack(0, os.fsencode(name))))
