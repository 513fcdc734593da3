"""The shim's log: lines as logrus writes them, on standard error, which is the bundle's `log` FIFO.

A line is lost rather than waited for: a daemon that is away or does not read must not stop its containers.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final

_STDERR: Final = 2


def error(text: str) -> None:
    """Write that something failed."""
    _write("error", text)


def failure(text: str, fault: BaseException) -> None:
    """Write what failed, and the traceback of its error."""
    import traceback

    error(f"{text}: " + "".join(traceback.format_exception(fault)))


def warning(text: str) -> None:
    """Write what went wrong and was coped with."""
    _write("warning", text)


def info(text: str) -> None:
    """Write what happened."""
    _write("info", text)


def _write(level: str, text: str) -> None:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    message = text.strip().replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    line = f'time="{stamp}.{nanoseconds:09}Z" level={level} msg="{message}"\n'
    with suppress(OSError):
        os.write(_STDERR, line.encode(errors="replace"))
