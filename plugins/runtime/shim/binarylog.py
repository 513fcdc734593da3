"""A program that takes a container's output: `binary:///path?key=value` and `binary-v2:///path?key=value`.

It is started with its arguments `key value ..`, an environment of only CONTAINER_ID and CONTAINER_NAMESPACE, and
standard streams on /dev/null; descriptor 3 is standard output to read, 4 standard error, and 5 a pipe on which it says
that it is ready: by closing it (`binary`), or by a byte (`binary-v2`). Source: contracts/shim-v2.md 9.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from typing import Final

from moored.kernel.errors import DeadlineExceeded, Unknown
from moored.kernel.oserrors import about
from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim.descriptors import Descriptors
from moored.plugins.runtime.shim.loop import ExitStatus, Future, Loop
from moored.plugins.runtime.shim.settling import settle
from moored.plugins.runtime.shim.streamuri import StreamUri

SCHEMES: Final = frozenset({"binary", "binary-v2"})

READY: Final = 30.0
"""Seconds until it has to be ready."""
TO_END: Final = 12.0
"""Seconds that it has to end by itself after SIGTERM."""

_FIRST: Final = 3
_ABOVE: Final = 16
"""Copies of the three descriptors are made from here on, so that putting one in its place closes none of the others."""


class BinaryLog:
    """One running logging program; `start` makes it."""

    def __init__(self, loop: Loop, pid: int, path: str) -> None:
        self._loop = loop
        self._pid = pid
        self._path = path
        self._ended: Future[ExitStatus] = loop.child(pid)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    async def close(self) -> None:
        """Ask it to end, and end it if it does not; its pipes should be closed already, so that it sees their end."""
        self._signal(signal.SIGTERM)
        try:
            await self._loop.within(TO_END, self._ended)
        except TimeoutError:
            log.warning(f"logging program {self._path!r} did not end within {TO_END:g} s of SIGTERM and is killed")
            self.kill()
            await self._ended

    def _signal(self, number: int) -> None:
        if not self._ended.done():  # else the pid may be somebody else's
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)


async def start(loop: Loop, uri: StreamUri, outputs: tuple[int, int], name: str, namespace: str) -> BinaryLog:
    """Start the program with descriptors to read output and errors from and wait until it is ready.

    `name` is the id of the container, or of the exec. Raises Unknown if it cannot be started or says that it is not
    ready, DeadlineExceeded if it says nothing.
    """
    with about(f"logging program {uri.path!r}"):
        own = Descriptors()
        try:
            ready, ready_child = own.pipe()
            logger = BinaryLog(loop, _spawn(uri, (*outputs, ready_child), name, namespace), uri.path)
            own.close([ready_child])
            try:
                await _until_ready(loop, ready, uri)
            except BaseException:
                logger.kill()
                raise
            return logger
        finally:
            own.close_all()


def _spawn(uri: StreamUri, descriptors: tuple[int, int, int], name: str, namespace: str) -> int:
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in descriptors]
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_DUP2, fd, _FIRST + index) for index, fd in enumerate(copies)
    ]
    actions += [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(_FIRST)]
    arguments = [uri.path, *(text for pair in uri.query for text in pair)]
    environment = {"CONTAINER_ID": name, "CONTAINER_NAMESPACE": namespace}
    try:
        # The shim ignores SIGPIPE, which would be inherited.
        defaults = [signal.SIGPIPE, signal.SIGTERM, signal.SIGINT]
        return os.posix_spawn(uri.path, arguments, environment, file_actions=actions, setsigmask=[], setsigdef=defaults)
    finally:
        for fd in copies:
            os.close(fd)


async def _until_ready(loop: Loop, ready: int, uri: StreamUri) -> None:
    waiting = loop.spawn(loop.readable(ready))
    try:
        await loop.within(READY, waiting)
    except TimeoutError:
        raise DeadlineExceeded(f"logging program {uri.path!r} was not ready within {READY:g} s") from None
    finally:
        await settle(loop, waiting)
    if not os.read(ready, 1) and uri.scheme == "binary-v2":
        raise Unknown(f"logging program {uri.path!r} did not say that it is ready, it may have ended")
