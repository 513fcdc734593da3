"""Loop devices: a file as a block device. All of it blocks."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_READ_ONLY: Final = 1
_LOOP_AUTOCLEAR: Final = 4
_LOOP_DIRECT_IO: Final = 16
_LOOP_CONFIG: Final = struct.Struct("=II 5Q4I64s64s32s2Q 8Q")
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO_BYTES: Final = 232
_LOOP_FLAGS_AT: Final = 52
_LOOP_NAME: Final = slice(56, 120)
_LOOP_NAME_BYTES: Final = 63
_LOOP_ATTEMPTS: Final = 100


@contextmanager
def loop_device(file: Path, *, read_only: bool, direct: bool = False, label: str = "") -> Generator[str]:
    """Give the path of a loop device on a file; it goes once the block is left and nothing has it mounted.

    label   what the device says that its file is called, for `keep` and `release`; otherwise the path
    Raises OSError.
    """
    fd = os.open(file, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    try:
        device, path = _attach(fd, os.fsencode(label or file), read_only=read_only, direct=direct)
    finally:
        os.close(fd)
    try:
        yield path
    finally:
        os.close(device)


def keep(device: Path) -> None:
    """Let a loop device stay after its last user is gone. Raises OSError."""
    _set_autoclear(device, None, wanted=False)


def release(device: Path, label: str) -> None:
    """Let a loop device with that label go after its last user; one that is free, or another's, stays as it is.

    Raises OSError.
    """
    _set_autoclear(device, label, wanted=True)


def _set_autoclear(device: Path, label: str | None, *, wanted: bool) -> None:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        info = bytearray(_LOOP_INFO_BYTES)
        try:
            fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
        except OSError as error:
            if error.errno == errno.ENXIO:  # it has no file
                return
            raise
        name = bytes(info[_LOOP_NAME]).rstrip(b"\0")
        if label is not None and name != os.fsencode(label)[:_LOOP_NAME_BYTES]:
            return
        flags = struct.unpack_from("=I", info, _LOOP_FLAGS_AT)[0]
        flags = flags | _LOOP_AUTOCLEAR if wanted else flags & ~_LOOP_AUTOCLEAR
        struct.pack_into("=I", info, _LOOP_FLAGS_AT, flags)
        fcntl.ioctl(fd, _LOOP_SET_STATUS64, bytes(info))
    finally:
        os.close(fd)


def _attach(fd: int, name: bytes, *, read_only: bool, direct: bool) -> tuple[int, str]:
    flags = _LOOP_AUTOCLEAR | (_LOOP_READ_ONLY if read_only else 0) | (_LOOP_DIRECT_IO if direct else 0)
    config = _LOOP_CONFIG.pack(
        fd, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, name[:_LOOP_NAME_BYTES], b"", b"", 0, 0, *([0] * 8)
    )
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_LOOP_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else took it first
                    raise
                continue
            return device, path
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")
