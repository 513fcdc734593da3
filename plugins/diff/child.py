"""How a worker process runs: it reads its task, locks itself in, works, reports and ends.

Its task comes on descriptor 0. All modules are imported before the root changes: afterwards nothing is ever loaded,
since the files around it are a stranger's.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Callable
from typing import Any

from moored.kernel.errors import Internal, MooredError
from moored.plugins.diff.faults import text_of
from moored.plugins.diff.reports import fault, receive, send
from moored.plugins.diff.syscalls import Syscalls

Work = Callable[[dict[str, Any], Syscalls], dict[str, Any]]


def serve(work: Work, report: int, daemon: int, syscalls: Syscalls) -> None:
    """Do one piece of work for the process `daemon`, and report it on a descriptor, if anybody is left to get it."""
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
        answer = work(receive(0), syscalls)
    except MooredError as error:
        answer = fault(error)
    except OSError as error:
        answer = fault(text_of(error, "the worker process failed"))
    except Exception as error:  # noqa: BLE001 - here the request ends
        _tell(error)
        answer = fault(Internal(f"the worker process failed: {type(error).__name__}"))
    send(report, answer)


def _tell(error: Exception) -> None:
    """Say on stderr what went wrong and where, without source lines: those would be read from a stranger's files."""
    frames = [f"{frame.f_code.co_filename}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)]
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
