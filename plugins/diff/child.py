"""How a worker process runs: it reads its task, locks itself in, works, reports, and is let out for another task.

    task on 0 -> locked in, works -> report ─ a fault, or none other is wanted: it ends
        ^                              │
        └── out again, with another 0 <┘    both by descriptors that the daemon sends where the report went

A task may come with the file of what it works on: that is sent there too, before the task.

Nothing that it holds while it works leads out of the folder. All modules are imported before the root changes:
afterwards nothing is ever loaded, since the files around it are a stranger's.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from moored.kernel.errors import Internal, MooredError
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.reports import fault, receive, send
from moored.plugins.diff.syscalls import Syscalls

Work = Callable[[dict[str, Any], Syscalls], Iterator[dict[str, Any]]]
"""Does a task and yields its report; what it does after that nobody waits for."""


def serve(work: Work, control: int, daemon: int, names: tuple[str, str], syscalls: Syscalls) -> None:
    """Do work for the process `daemon`, and report each piece on a socket, if anybody is left to get it.

    names   of the process without a task and with one
    """
    idle, busy = names
    try:
        os.umask(0)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # A daemon that is killed and started again finds nobody who still writes.
        syscalls.end_with_parent()
        if os.getppid() != daemon:
            # It ended before the line above.
            return
        syscalls.forbid_new_privileges()
        while True:
            task = receive(0)
            syscalls.rename(busy)
            if "stored" in task:
                task["stored"]["fd"] = _given(control, 1)[0]
            for report in work(task, syscalls):
                send(control, report)
            if not task["again"] or not _let_out(control):
                return
            syscalls.rename(idle)
    except MooredError as error:
        answer = fault(error)
    except OSError as error:
        answer = fault(text_of(error, "the worker process failed"))
    except Exception as error:  # noqa: BLE001 - here the request ends
        _tell(error)
        answer = fault(Internal(f"the worker process failed: {type(error).__name__}"))
    send(control, answer)


def _let_out(control: int) -> bool:
    """Go back to the root folder that the daemon sends and read on from its pipe; False at the end of its side."""
    fds = _given(control, 2)
    if not fds:
        return False
    root, into = fds
    os.dup2(into, 0)
    os.close(into)
    os.fchdir(root)
    os.close(root)
    with suppress(PermissionError):  # who may not did not lock itself in
        os.chroot(".")
    return True


def _given(control: int, count: int) -> list[int]:
    """The descriptors that the daemon sends next; none at the end of its side."""
    told = socket.socket(fileno=control)
    try:
        _, fds, _, _ = socket.recv_fds(told, 1, count)
    finally:
        told.detach()
    if fds and len(fds) != count:
        raise Internal(f"{len(fds)} descriptors came, wanted {count}")
    return fds


def _tell(error: Exception) -> None:
    """Say on stderr what went wrong and where, without source lines: those would be read from a stranger's files."""
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append(f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}")
        step = step.tb_next
    text = f"{type(error).__name__}: {error!s:.2000} at {' > '.join(frames)}"
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - its log


def open_root(path: str) -> int:
    """The folder that a task works on."""
    return os.open(os.fsencode(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def lock_in(root: int) -> None:
    """Make a folder the root of this process, as far as it may, and forbid imports."""
    sys.path.clear()
    sys.meta_path.clear()
    os.fchdir(root)
    try:
        os.chroot(".")
    except PermissionError:
        # not root: openat2 and walking by name still hold it in
        return
    os.chdir("/")
