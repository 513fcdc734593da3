"""The client's ends of a container's streams: FIFOs that it made, or plain files.

Source: contracts/shim-v2.md 9.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Final

from moored.kernel.errors import DeadlineExceeded
from moored.kernel.oserrors import about
from moored.plugins.runtime.shim.loop import Loop

_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


async def open_output(loop: Loop, path: str, seconds: float) -> list[int]:
    """Open what the client reads: the descriptor to write to, and for a FIFO one that reads.

    A FIFO is opened once somebody reads it; our own read end then keeps it whole while clients go and come. Raises
    DeadlineExceeded if nobody has opened it in time, Unknown and others if it cannot be opened.
    """
    with about(f"output {path!r}"):
        if not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116  # pathlib is memory in every shim
            return [append_to(path)]
        write = await _open_when_read(loop, path, seconds)
        try:
            return [write, os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)]
        except OSError:
            os.close(write)
            raise


async def _open_when_read(loop: Loop, path: str, seconds: float) -> int:
    deadline, pause = time.monotonic() + seconds, _FIRST_PAUSE
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"output {path!r} was opened by no reader within {seconds:g} s")
        await loop.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def open_input(path: str) -> list[int]:
    """Open what the client writes, without waiting for it: a descriptor to read, and for a FIFO one that writes.

    While the second is open the input does not end, however often clients come and go.
    """
    with about(f"input {path!r}"):
        read = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISFIFO(os.fstat(read).st_mode):
                return [read]
            return [read, os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)]
        except OSError:
            os.close(read)
            raise


def open_log(path: str) -> int:
    """Open a file to append to, made with its folders where missing (0755, and 0644 for the file)."""
    with about(f"log {path!r}"):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)  # noqa: PTH103, PTH120  # as above
        return append_to(path, os.O_CREAT)


def append_to(path: str, flags: int = 0) -> int:
    """Open a file to append to."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o644)
