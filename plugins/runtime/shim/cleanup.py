"""What is done for a shim that is gone: its container deleted by force, its rootfs unmounted, its socket removed.

Blocks. For the daemon (on a thread) and for `delete` of the command line. Source: `contracts/shim-v2.md` 2.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from moored.kernel.errors import MooredError
from moored.kernel.mounts import unmount_all
from moored.plugins.runtime.shim import address
from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim.service import invocation_of

KILLED: Final = 128 + 9
UNKNOWN_PID: Final = 0xFFFFFFFF
_PATIENCE: Final = 10.0


class Ended(NamedTuple):
    """What is told of the container: init's pid, 4294967295 if it is not known; its status; when, ns since 1970."""

    pid: int
    status: int
    at: int


def clean(bundle: str, namespace: str, container_id: str, warn: Callable[[str], None]) -> Ended:
    """Clean up; what fails is told to `warn` and the rest done all the same."""
    if calls := _end_calls(bundle):
        warn(f"calls of the runtime for container {container_id!r} had outlived the shim, {calls} killed")
    try:
        invocation = invocation_of(bundle, files.read_options(bundle), m.GenericOptions(), namespace)
        log = ["--log", f"{bundle}/{files.LOG}", "--log-format", "json"]
        argv = [
            invocation.binary,
            *invocation.flags,
            "--root",
            invocation.root,
            *log,
            "delete",
            "--force",
            container_id,
        ]
        environment = {**os.environ, **invocation.environment}
        done = subprocess.run(argv, check=False, capture_output=True, timeout=_PATIENCE, env=environment)
        if done.returncode:
            warn(f"container {container_id!r} not deleted: {done.stderr.decode(errors='replace').strip()}")
    except (OSError, ValueError, MooredError, subprocess.SubprocessError) as error:
        warn(f"container {container_id!r} not deleted: {error}")
    try:
        unmount_all(Path(bundle) / "rootfs")
    except OSError as error:
        warn(f"rootfs of {container_id!r} not unmounted: {error}")
    try:
        for served in (files.served_at(bundle), (files.read(bundle, files.DEBUG) or b"").decode()):
            if served:
                address.drop_dead(served)
    except (OSError, ValueError) as error:
        warn(f"socket of {container_id!r} not removed: {error}")
    pid = UNKNOWN_PID
    with suppress(OSError, MooredError):
        pid = files.read_pid(bundle)
    return Ended(pid, KILLED, time.time_ns())


def _end_calls(bundle: str) -> int:
    """Kill what the shim had called for this bundle and could not end any more; gives how many there were.

    Calls are known by where they log; what runs in a container has no reason to say that, and would harm only itself.
    """
    mark = f"\0--log\0{bundle}/{files.LOG}\0".encode()
    ended = 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib weighs in shims
        with suppress(OSError):
            if name.isdecimal() and mark in files.read_file(f"/proc/{name}/cmdline"):
                _kill(int(name), mark)
                ended += 1
    return ended


def _kill(pid: int, mark: bytes) -> None:
    """End a process that has the mark in its command line, and wait for its end. Raises OSError."""
    handle = os.pidfd_open(pid)
    try:
        # the pid may have become another process since it was found
        if mark in files.read_file(f"/proc/{pid}/cmdline"):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], _PATIENCE)
    finally:
        os.close(handle)
