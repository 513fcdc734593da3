"""The daemon's side of the workers' zygote: keeps one while there is work, and has it fork workers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from moored.kernel.errors import DeadlineExceeded, Internal, Unavailable

PATIENCE: Final = 10.0
"""Seconds for an answer of the zygote, its start included."""
_MODULE: Final = "moored.plugins.diff.zygote"
_MAX_ANSWER: Final = 4096


class Zygote:
    """A process that has loaded the workers' code and forks one for each request; one request at a time.

    It is started by the first request, again when it died, and replaced when it hangs. Ending it ends no worker.

    linger   seconds without requests after which it ends itself
    """

    def __init__(self, linger: float, patience: float = PATIENCE) -> None:
        self._linger = linger
        self._patience = patience
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int:
        """The zygote's pid, 0 while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def fork(self, module: str, descriptors: Sequence[int]) -> int:
        """Have a worker forked, with copies of its descriptors; its pid, a child of this process for which to wait.

        Not to be cancelled: the worker would be nobody's. Raises Internal for what the zygote met or if it cannot be
        started, DeadlineExceeded if it hangs twice, Unavailable if it dies twice.
        """
        async with self._turn:
            try:
                return await self._ask(module, descriptors)
            except (DeadlineExceeded, Unavailable):
                await self._end()
            return await self._ask(module, descriptors)

    async def close(self) -> None:
        """End the zygote; workers go on, and a further request starts another."""
        async with self._turn:
            await self._end()

    async def _ask(self, module: str, descriptors: Sequence[int]) -> int:
        if self._process is None or self._process.returncode is not None:
            await self._end()
            await self._start()
        assert self._socket is not None
        try:
            async with asyncio.timeout(self._patience):
                socket.send_fds(self._socket, [module.encode()], descriptors)
                data = await asyncio.get_running_loop().sock_recv(self._socket, _MAX_ANSWER)
        except TimeoutError:
            raise DeadlineExceeded(f"the zygote did not fork a worker process within {self._patience:g}s") from None
        except OSError as error:
            raise Unavailable(f"the zygote of worker processes is gone: {error.strerror}") from error
        if not data:
            raise Unavailable("the zygote of worker processes is gone")
        answer = json.loads(data)
        if "fault" in answer:
            raise Internal(f"cannot start a worker process: {answer['fault']}")
        return int(answer["pid"])

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                # a session of its own: a terminal's signals are for the daemon, which ends its workers in order
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-S", "-P", "-m", _MODULE, str(os.getpid()), str(self._linger)),
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"},
                    cwd="/",
                    start_new_session=True,
                )
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError):
                    raise Internal(f"cannot start the zygote of worker processes: {error.strerror}") from error
                raise
        self._socket = ours

    async def _end(self) -> None:
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        # one on a disk that hangs is gone when that is back
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                await process.wait()
