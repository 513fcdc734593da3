"""The daemon's side of a zygote: a process that has loaded some code, and forks other processes on request.

The daemon itself, with its threads, never forks. Requests and answers are messages of a SOCK_SEQPACKET socket, which is
the zygote's descriptor 0; what they say is their business, and so is whose children the forked processes are.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from moored.kernel.errors import DeadlineExceeded, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How a zygote is started: in a session of its own, for a terminal's signals are the daemon's to act on.

    env     None for this process's
    folder  None for this process's
    """

    command: Sequence[str]
    env: Mapping[str, str] | None = None
    folder: str | None = None


class Zygote:
    """One process of a program; one request at a time.

    It is started by the first request or before, again when it died, and replaced when it hangs. Ending it ends none of
    those that it forked.

    name      what errors call it
    program   asked at each start
    patience  seconds for an answer, the start included, and for the end of a process that was killed
    grace     seconds that it has to end by itself once nobody asks any more, before it is killed
    longest   bytes of an answer
    """

    def __init__(
        self, name: str, program: Callable[[], Program], *, patience: float, grace: float = 0.0, longest: int = 4096
    ) -> None:
        self._name = name
        self._program = program
        self._patience = patience
        self._grace = grace
        self._longest = longest
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None

    @property
    def pid(self) -> int:
        """Its pid, 0 while there is none."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def start(self) -> None:
        """Start the process, if there is none, without waiting for it to be ready. Raises OSError."""
        async with self._turn:
            await self._start()

    async def close(self) -> None:
        """End it; a further request starts another."""
        async with self._turn:
            await self._end()

    async def ask(self, request: bytes, descriptors: Sequence[int] = (), *, wanted: str) -> bytes:
        """Give the answer to a request that comes with copies of the descriptors; `wanted` says what, for errors.

        A request whose first zygote dies or hangs is made of a second one, and may have been carried out all the same.
        So may one that is cancelled: that ends the zygote, since its answer would be taken for the next one's.
        Raises OSError if it cannot be started, DeadlineExceeded if it hangs twice, Unavailable if it dies twice.
        """
        async with self._turn:
            try:
                return await self._ask(request, descriptors, wanted)
            except (DeadlineExceeded, Unavailable):
                await self._end()
            return await self._ask(request, descriptors, wanted)

    async def _ask(self, request: bytes, descriptors: Sequence[int], wanted: str) -> bytes:
        await self._start()
        assert self._socket is not None
        try:
            async with asyncio.timeout(self._patience):
                # no request is under way, so that there is room for this one
                socket.send_fds(self._socket, [request], descriptors)
                data = await asyncio.get_running_loop().sock_recv(self._socket, self._longest)
        except TimeoutError:
            raise DeadlineExceeded(f"{self._name} did not fork {wanted} within {self._patience:g}s") from None
        except asyncio.CancelledError:
            await self._end()
            raise
        except OSError as error:
            raise Unavailable(f"{self._name} is gone: {error.strerror}") from error
        if not data:
            raise Unavailable(f"{self._name} is gone")
        return data

    async def _start(self) -> None:
        if self.pid:
            return
        await self._end()
        program = self._program()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *program.command,
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    env=program.env,
                    cwd=program.folder,
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and not self._grace:
            # before it sees the end of its requests: asyncio warns of one that ends just when it is killed
            _kill(process)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None or (self._grace and await _ended(process, self._grace)):
            return
        _kill(process)
        # one on a disk that hangs is gone when that is back
        await _ended(process, self._patience)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await process.wait()
        return True
    return False
