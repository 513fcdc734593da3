"""What is done for a shim that is gone: its container deleted by force, its rootfs unmounted, its socket removed.

Blocks. For the daemon (on a thread) and for `delete` of the command line. Source: `contracts/shim-v2.md` 2.
"""

from __future__ import annotations

import os
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
        if served := files.served_at(bundle):
            address.drop_dead(served)
    except (OSError, ValueError) as error:
        warn(f"socket of {container_id!r} not removed: {error}")
    pid = UNKNOWN_PID
    with suppress(OSError, MooredError):
        pid = files.read_pid(bundle)
    return Ended(pid, KILLED, time.time_ns())
