"""Starts worker processes: each has a pipe into it, may have one out of it, and sends one report.

A *crew* runs so many of them side by side and gives up one that makes no progress. A process that cannot even be killed
(its disk hangs) is left behind and keeps its place until it is gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import sys
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import DeadlineExceeded, Internal, Unavailable
from moored.plugins.diff.reports import MAX_REPORT, packed, raise_fault, unpacked

R = TypeVar("R")

PIPE_BYTES: Final = 1 << 20
MAX_STDERR: Final = 1 << 16
MAX_PROCESSES: Final = 8
STALL_SECONDS: Final = 600.0
REAP_SECONDS: Final = 5.0
"""How long a killed process is waited for before it is left behind."""
_LOOK_MS: Final = 500
"""How often a thread that waits for a pipe looks whether the process was killed: one that hangs keeps the pipe open."""


async def settled(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, however often the waiting is cancelled; the cancellation is raised afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class Worker:
    """A running process. `into` is the write end of its descriptor 0, `out` the read end of its 1 if it has one.

    Both are for blocking calls in `run`, which ends them by killing the process when it is cancelled.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, into: int, out: int, report: asyncio.Task[bytes], stall: float | None
    ) -> None:
        self._process = process
        self._into = into
        self._out = out
        self._report = report
        self._stall = stall
        self._killed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layer")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def write(self, data: bytes | memoryview) -> None:
        """Write all to the process, blocking.

        Raises BrokenPipeError once it reads no more, DeadlineExceeded when it takes nothing for too long.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._into, left) :]
            except BlockingIOError:
                self._ready(self._into, select.POLLOUT, "took")

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes from the process, blocking; none at its end. Raises as `write`."""
        while True:
            try:
                return os.read(self._out, size)
            except BlockingIOError:
                self._ready(self._out, select.POLLIN, "gave")

    def _ready(self, fd: int, event: int, word: str) -> None:
        poll = select.poll()
        poll.register(fd, event)
        began = time.monotonic()
        while not poll.poll(_LOOK_MS if self._stall is None else min(_LOOK_MS, self._stall * 1000)):
            if self._killed:
                raise BrokenPipeError
            if self._stall is not None and time.monotonic() - began >= self._stall:
                raise DeadlineExceeded(f"the worker process {word} no data for {self._stall:g}s")

    def end_input(self) -> None:
        """Let the process see the end of its input."""
        if self._into >= 0:
            os.close(self._into)
            self._into = -1

    async def run(self, call: Callable[..., R], *arguments: Any) -> R:
        """Run blocking calls, one after the other, in the worker's own thread. Cancelled, it kills the process."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.kill()
            await settled(future)
            raise

    def kill(self) -> None:
        """End the process at once."""
        self._killed = True
        if self._process.returncode is None:
            self._process.kill()

    async def result(self) -> dict[str, Any]:
        """The report, once the process has ended.

        Raises the error that it tells of, Internal if there is none, DeadlineExceeded when it takes too long.
        """
        assert self._process.stderr is not None
        try:
            async with asyncio.timeout(self._stall):
                data = await asyncio.shield(self._report)
                said = await self._process.stderr.read(MAX_STDERR)
                status = await self._process.wait()
        except TimeoutError:
            raise DeadlineExceeded(f"the worker process did not end within {self._stall:g}s") from None
        if not data:
            raise Internal(f"a worker process ended with status {status} and said {said.decode(errors='replace')!r}")
        found = unpacked(data)
        try:
            raise_fault(found)
        except Internal as error:
            error.add_note(said.decode(errors="replace"))
            raise
        return found

    async def close(self, left_behind: Callable[[asyncio.Future[None]], None]) -> None:
        """Make sure that nothing runs any more and nothing is open.

        `left_behind` is told of a process that cannot be killed, with the future that its end will settle.
        """
        self.kill()
        ending = asyncio.ensure_future(self._end())
        try:
            await settled(asyncio.ensure_future(asyncio.wait([ending], timeout=REAP_SECONDS)))
        finally:
            self.end_input()
            if self._out >= 0:
                os.close(self._out)
                self._out = -1
            # every call has been waited for
            self._thread.shutdown()
            if not ending.done():
                left_behind(ending)

    async def _end(self) -> None:
        await self._process.wait()
        await asyncio.wait([self._report])
        # the transport of stderr is closed by its end
        assert self._process.stderr is not None
        while await self._process.stderr.read(MAX_STDERR):
            pass


class Crew:
    """Worker processes, `most` of them side by side; further ones wait, first come, first served.

    stall   seconds without progress after which a process is given up: while it takes or gives no data, and from the
            end of its input to its own; None for any
    """

    def __init__(
        self,
        most: int = MAX_PROCESSES,
        stall: float | None = STALL_SECONDS,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._most = most
        self.stall = stall
        self._log = log or structlog.get_logger()
        self._places = asyncio.Semaphore(most)
        self._left_behind: set[asyncio.Future[None]] = set()

    @asynccontextmanager
    async def worker(self, module: str, task: dict[str, Any], *, output: bool = False) -> AsyncGenerator[Worker]:
        """Start `python -m MODULE` with a task; it is gone, whatever happens, when the block is left.

        Raises Unavailable where every place is held by a process that cannot be killed, Internal where none starts.
        """
        if len(self._left_behind) >= self._most:
            raise Unavailable(f"{self._most} worker processes hang and cannot be killed, no further one is started")
        async with AsyncExitStack() as stack:
            await self._places.acquire()
            stack.callback(self._places.release)
            one = await _started(module, output, self.stall)
            try:
                await one.run(_send_task, one, task)
                yield one
            finally:
                await one.close(partial(self._leave_behind, one, stack))

    def _leave_behind(self, one: Worker, place: AsyncExitStack, end: asyncio.Future[None]) -> None:
        self._log.error("a worker process cannot be killed, its disk may hang", pid=one.pid)
        self._left_behind.add(end)
        place.pop_all()

        def ended(_: asyncio.Future[None]) -> None:
            self._left_behind.discard(end)
            self._places.release()

        end.add_done_callback(ended)


async def _started(module: str, output: bool, stall: float | None) -> Worker:
    into_read, into = os.pipe()
    report, report_write = os.pipe()
    out, out_write = os.pipe() if output else (-1, -1)
    for fd in (into, out):
        if fd >= 0:
            _widen(fd)
            os.set_blocking(fd, False)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-P", "-m", module, str(report_write), str(os.getpid())),
            stdin=into_read,
            stdout=out_write if output else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(report_write,),
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"},
            cwd="/",
            limit=MAX_STDERR,
        )
    except BaseException as error:
        for fd in (into, report, out):
            if fd >= 0:
                os.close(fd)
        if isinstance(error, OSError):
            raise Internal(f"cannot start a worker process: {error.strerror}") from error
        raise
    finally:
        for fd in (into_read, report_write, out_write):
            if fd >= 0:
                os.close(fd)
    return Worker(process, into, out, asyncio.create_task(_read(report)), stall)


def _send_task(one: Worker, task: dict[str, Any]) -> None:
    # where it stopped reading its report tells why
    with suppress(BrokenPipeError):
        one.write(packed(task))


def _widen(pipe: int) -> None:
    # over the user's limit for pipes they work too, with more switches
    with suppress(PermissionError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


async def _read(fd: int) -> bytes:
    """All bytes of a pipe; closes it."""
    reader = asyncio.StreamReader(limit=MAX_REPORT)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    try:
        return await reader.read(MAX_REPORT)
    finally:
        transport.close()
