"""Watches the memory of a daemon, `python -m contrib.bench.memory PID`: by itself, and while a core has nothing to do.

It says that it has begun, and with the end of its input how many bytes were resident at most. What it takes to look is
not taken from who is measured: a daemon of many threads would pay more for that than one of few.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SAMPLE_SECONDS = 0.05
PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """Watch a process and all below it for the block; afterwards the list has the most that was resident, bytes."""
    found: list[int] = []
    command = [sys.executable, "-m", __name__, str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        watcher.stdout.readline()
        try:
            yield found
        finally:
            watcher.stdin.close()
            found.append(int(watcher.stdout.readline()))


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def _watch(pid: int) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    say = sys.stdout
    say.write("begun\n")
    say.flush()
    peak = 0
    over = False
    while not over:
        peak = max(peak, sum(map(_resident, family(pid))))
        over = bool(select.select([0], [], [], SAMPLE_SECONDS)[0])
    say.write(f"{peak}\n")


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
