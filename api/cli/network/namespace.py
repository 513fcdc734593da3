"""Network namespaces that stay without a process: each is mounted on a file, its loopback interface up."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Final

from moored.kernel.errors import FailedPrecondition, PermissionDenied, Unknown
from moored.kernel.mounts import unmount
from moored.kernel.ports.mounts import Mount

_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_UP: Final = 1


def make(path: Path) -> None:
    """Make a namespace on a new file. Raises PermissionDenied, FailedPrecondition if the file is there."""
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        raise FailedPrecondition(f"network namespace '{path}' exists already") from None
    except OSError as error:
        raise PermissionDenied(f"network namespace '{path}' cannot be made: {error.strerror}") from error
    faults: list[BaseException] = []
    # A thread of its own, since it is the thread that changes its namespace, for good.
    thread = threading.Thread(target=_make, args=(path, faults), name="netns")
    thread.start()
    thread.join()
    if faults:
        path.unlink(missing_ok=True)
        raise faults[0]


def _make(path: Path, faults: list[BaseException]) -> None:
    from moored.kernel.mounts import mount

    try:
        _unshare()
        _loopback_up()
        own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        mount(Mount(type="bind", source=own, options=("bind",)), path)
    except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
        faults.append(error)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise PermissionDenied(f"no network namespace can be made: {reason}; run moorctl as root")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", ioctl(control, _SIOCGIFFLAGS, request))[1]
        ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _UP))


def is_there(path: Path) -> bool:
    """Whether a namespace is mounted on the file: after a reboot only the file, or nothing, is left."""
    try:
        # The device of a namespace's file is that of all namespaces.
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def remove(path: Path) -> None:
    """Let go of a namespace; it ends with the last process in it. Again is harmless."""
    if is_there(path):
        try:
            unmount(path, lazy=True)
        except OSError as error:
            raise Unknown(f"network namespace '{path}' cannot be unmounted: {error.strerror}") from error
    with suppress(FileNotFoundError):
        path.unlink()
