"""Carries what a shim writes to the `log` FIFO of its bundle into the daemon's log, line by line, within bounds."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Final

from structlog.typing import FilteringBoundLogger

MAX_LINE: Final = 8 << 10
"""Bytes of a line that are logged; the rest of it is dropped."""
LINES_A_SECOND: Final = 100
"""Lines of one shim that are logged in a second; what is above is counted and dropped, so that no shim has to wait."""
_CHUNK: Final = 1 << 16
_LEVEL: Final = re.compile(r"\blevel=([a-z]+)")
_METHODS: Final = {"trace": "debug", "debug": "debug", "warning": "warning", "warn": "warning", "error": "error"}


class LogPipe:
    """Reads one FIFO until it is closed. `fd` is the open FIFO and is owned from here on."""

    def __init__(self, fd: int, log: FilteringBoundLogger) -> None:
        self._fd = fd
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._line = bytearray()
        self._second = 0
        self._lines = 0
        self._dropped = 0
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Log what is still in the FIFO and close it. May be called again."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._read()
        if self._line:
            self._tell()
        self._tell_dropped()
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._add(line)
            self._tell()
        self._add(rest)

    def _add(self, data: bytes) -> None:
        self._line += data[: MAX_LINE - len(self._line)]

    def _tell(self) -> None:
        line = bytes(self._line).decode("utf-8", "backslashreplace").rstrip()
        self._line.clear()
        second = int(self._loop.time())
        if second != self._second:
            self._tell_dropped()
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_A_SECOND:
            self._dropped += 1
        elif line:
            level = _LEVEL.search(line[:200])
            method = _METHODS.get(level[1], "info") if level else "info"
            getattr(self._log, method)("shim", line=line)

    def _tell_dropped(self) -> None:
        if self._dropped:
            self._log.warning("shim logs too much", dropped_lines=self._dropped)
            self._dropped = 0
