"""Finds and ends what a start or create left that nobody ever learnt of: processes, empty cgroups; blocks."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_SECONDS: Final = 5.0


def processes_in(folder: Path) -> list[int]:
    """Give the pids whose working folder is this one: a start of a shim and all that it forks begin there."""
    wanted = str(folder)
    with os.scandir("/proc") as entries:
        pids = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    return [pid for pid in pids if _cwd(pid) == wanted]


def _cwd(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""


def wait_for_one_in(folder: Path, seconds: float) -> None:
    """Wait until at most one process is there: what a shim has just called is then done, and can be undone."""
    deadline = time.monotonic() + seconds
    while len([pid for pid in processes_in(folder) if not _is_dead(pid)]) > 1 and time.monotonic() < deadline:
        time.sleep(0.005)


def end_processes_in(folder: Path) -> int:
    """Kill them, until there are none any more; gives how many there were. Raises TimeoutError if one does not end."""
    ended = set()
    deadline = time.monotonic() + _SECONDS
    # again and again: one that is about to be killed may fork
    while pids := [pid for pid in processes_in(folder) if not _is_dead(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {pids} in {str(folder)!r} do not end")
        for pid in pids:
            _kill_in(pid, folder)
        ended.update(pids)
        time.sleep(0.002)
    return len(ended)


def _kill_in(pid: int, folder: Path) -> None:
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            # the pid may have become another process since it was found
            if _cwd(pid) == str(folder):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b") ")[2][:1] in {b"Z", b"X"}


def remove_empty_cgroup(path: str) -> None:
    """Remove a container's cgroup from every hierarchy where it is there and empty; `path` as in the OCI spec.

    An OCI runtime that was killed in the middle of a create has made it without a record of it. Only absolute paths,
    which mean the same to everybody; systemd removes those that it made.
    """
    if not path.startswith("/") or ":" in path or ".." in path.split("/") or path.strip("/") == "":
        return
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1] in {"cgroup", "cgroup2"}:
            with suppress(OSError):
                # refused by the kernel unless nothing is in it
                Path(f"{fields[4]}/{path.lstrip('/')}").rmdir()
