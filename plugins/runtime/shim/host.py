"""What a new shim tells the kernel of itself: its session, its name, its part as reaper, and where its streams go."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import log

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_SCORE: Final = "/proc/self/oom_score_adj"
_MAX_SCORE: Final = 1000
_CGROUPS: Final = "/sys/fs/cgroup"
_ARG_START: Final = 47
"""Places in /proc/self/stat, counted from 0."""


class Host:
    """The calls into the C library, looked up once: each look-up makes classes, which a shim would have for itself."""

    def __init__(self) -> None:
        self._prctl = ctypes.CDLL(None).prctl

    def rename(self) -> None:
        """Give this process, and those forked from it, the short name of shims."""
        self._prctl(_PR_SET_NAME, b"moored-shim", 0, 0, 0)

    def settle(self, bundle: str, title: str) -> None:
        """Become a session in the bundle's folder, reaper of what runtimes leave, and silent. Raises OSError.

        The log goes to the bundle's `log` FIFO. It is opened for both ways, so that no reader has to be there and what
        was written without one is read by the next daemon.
        """
        with suppress(PermissionError):  # it leads a group already
            os.setsid()
        os.chdir(bundle)
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            to = os.open("log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            to = null
        for number, fd in enumerate((null, null, to)):
            os.dup2(fd, number)
        for fd in {null, to}:
            os.close(fd)
        with suppress(OSError, ValueError):
            _show(title)


def _show(title: str) -> None:
    """Let process lists show the title: it is written over the command line, as much as there is room for."""
    fields = files.read_file("/proc/self/stat").rpartition(b")")[2].split()
    start, end = (int(fields[index - 2]) for index in (_ARG_START, _ARG_START + 1))
    room = end - start
    memory = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(memory, title.encode()[: room - 1].replace(b" ", b"\0").ljust(room, b"\0"), start)
    finally:
        os.close(memory)


def raise_oom_score() -> None:
    """Make the kernel take a shim rather than the daemon when memory runs out, and its containers rather than both."""
    try:
        score = int(files.read_file(_SCORE))
        files.write(_SCORE, str(min(score + 1, _MAX_SCORE)).encode())
    except (OSError, ValueError) as error:
        log.warning(f"oom score not raised: {error}")


def join_cgroup(path: str) -> None:
    """Move into a cgroup, given as runc's options have it: a path below the root of every hierarchy. Raises OSError."""
    unified = os.access(f"{_CGROUPS}/cgroup.controllers", os.F_OK)
    for top in [_CGROUPS] if unified else [f"{_CGROUPS}/{name}" for name in os.listdir(_CGROUPS)]:
        procs = f"{top}/{path.strip('/')}/cgroup.procs"
        if os.access(procs, os.F_OK):
            files.write(procs, str(os.getpid()).encode())
