"""Runs worker processes: each has a pipe into it, may have one out of it, and sends one report for each task.

A *crew* runs so many of them side by side and gives up one that makes no progress. A process that cannot even be killed
(its disk hangs) is left behind and keeps its place until it is gone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, Self, TypeVar

import structlog
from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import DeadlineExceeded, Internal, Unavailable
from moored.plugins.diff.exits import exit_of
from moored.plugins.diff.launcher import Zygote
from moored.plugins.diff.reports import MAX_REPORT, is_whole, packed, raise_fault, unpacked
from moored.plugins.diff.spares import Spares

R = TypeVar("R")

PIPE_BYTES: Final = 1 << 20
MAX_STDERR: Final = 1 << 16
MAX_PROCESSES: Final = 8
STALL_SECONDS: Final = 600.0
LINGER_SECONDS: Final = 60.0
"""How long a daemon keeps what forks its processes for the next one."""
MANY: Final = 100_000
"""Entries of a layer after which a process ends: memory that it has had once it does not give back."""
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

    def __init__(self, pid: int, pipes: _Pipes, threads: ThreadPoolExecutor, stall: float | None) -> None:
        self.pid = pid
        self._exit = exit_of(pid)
        self._into = pipes.into
        self._out = pipes.out
        self._said = pipes.said
        self._control = pipes.control
        self._report = message_of(pipes.control)
        self._stall = stall
        self._killed = False
        self._threads = threads
        self.is_done = False
        """Whether it has done its task and said so."""
        self.is_fit = True
        """Whether the task has not left it too large for another one."""

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        # the loop may not have been told yet
        return self._exit.done() or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    async def give(self, task: dict[str, Any], stored: int | None) -> None:
        """Write the task, the first of its input, after the descriptor that belongs to it, if there is one."""
        # where it stopped reading its report tells why
        with suppress(BrokenPipeError):
            if stored is not None:
                socket.send_fds(self._control, [b"/"], [stored])
            # the pipe is empty: a thread is not worth it, but for a task that is longer than that
            if left := self.offer(packed(task)):
                await self.run(self.write, left)

    def offer(self, data: bytes) -> memoryview:
        """Write what the process's pipe has room for, and give what is left. Raises BrokenPipeError as `write`."""
        left = memoryview(data)
        with suppress(BlockingIOError):
            while left:
                left = left[os.write(self._into, left) :]
        return left

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
        """Run blocking calls, one after the other, in a thread. Cancelled, it kills the process."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self.kill()
            await settled(future)
            raise

    def renew(self) -> None:
        """Let a process that is done, and was asked for that, go back to the root, with another input for another task.

        Raises OSError if it has ended.
        """
        self.end_input()
        with ExitStack() as undone, ExitStack() as sent:
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            sent.callback(os.close, root)
            theirs, ours = os.pipe()
            sent.callback(os.close, theirs)
            undone.callback(os.close, ours)
            socket.send_fds(self._control, [b"/"], [root, theirs])
            undone.pop_all()
        _prepare(ours)
        self._into = ours
        self._report = message_of(self._control)
        self.is_done = False

    def kill(self) -> None:
        """End the process at once."""
        self._killed = True
        # only once it is waited for can its id be another's
        if not self._exit.done():
            os.kill(self.pid, signal.SIGKILL)

    async def result(self) -> dict[str, Any]:
        """The report, the last that the process does of its task.

        Raises the error that it tells of, Internal if there is none, DeadlineExceeded when it takes too long.
        """
        data = await self._within_patience(self._report)
        if not data:
            status = os.waitstatus_to_exitcode(await self._within_patience(self._exit))
            raise Internal(f"a worker process ended with status {status} and said {self._last_words()!r}")
        found = unpacked(data)
        try:
            raise_fault(found)
        except Internal as error:
            await self._within_patience(self._exit)
            error.add_note(self._last_words())
            raise
        self.is_done, self.is_fit = True, found["entries"] <= MANY
        return found

    async def _within_patience(self, future: asyncio.Future[R]) -> R:
        try:
            async with asyncio.timeout(self._stall):
                return await asyncio.shield(future)
        except TimeoutError:
            raise DeadlineExceeded(f"the worker process did not end within {self._stall:g}s") from None

    def _last_words(self) -> str:
        """What it said, for when it has ended: else this would wait for more."""
        return os.read(self._said, MAX_STDERR).decode(errors="replace")

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
            if not ending.done():
                left_behind(ending)

    async def _end(self) -> None:
        await self._exit
        await asyncio.wait([self._report])
        self._control.close()
        os.close(self._said)


class Crew:
    """Worker processes, `most` of them side by side; further ones wait, first come, first served.

    stall   seconds without progress after which a process is given up: while it takes or gives no data, and from the
            end of its input to its own; None for any
    linger  seconds that what forks the processes is kept for the next one, and processes for more work, until the crew
            is closed; 0: nothing outlasts the last one that runs, and there is nothing to close
    """

    def __init__(
        self,
        most: int = MAX_PROCESSES,
        stall: float | None = STALL_SECONDS,
        log: FilteringBoundLogger | None = None,
        *,
        linger: float = 0.0,
    ) -> None:
        self._most = most
        self.stall = stall
        self._log = log or structlog.get_logger()
        self._places = asyncio.Semaphore(most)
        self._left_behind: set[asyncio.Future[None]] = set()
        self._linger = linger
        self._users = 0
        self._threads: ThreadPoolExecutor | None = None
        self._spares = Spares(self._started, self._close, linger)
        self.zygote = Zygote(linger or LINGER_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await settled(asyncio.ensure_future(self._release()))

    def expect(self, module: str) -> None:
        """Have a process ready: a module's work is likely to come within the time that one lingers."""
        if self._linger:
            self._spares.expect(module)

    @asynccontextmanager
    async def worker(
        self,
        module: str,
        task: dict[str, Any],
        *,
        stored: int | None = None,
        output: bool = False,
        again: bool = False,
    ) -> AsyncGenerator[Worker]:
        """Start a process for a module's work; nothing of it goes on, whatever happens, when the block is left.

        stored  the descriptor of a file that the task is about
        again   with linger, one that is done may live on for another task; for a moment it still has its folder open

        Raises Unavailable where every place is held by a process that cannot be killed; Internal, Unavailable or
        DeadlineExceeded where none starts.
        """
        if len(self._left_behind) >= self._most:
            raise Unavailable(f"{self._most} worker processes hang and cannot be killed, no further one is started")
        again = again and not output and bool(self._linger)
        async with self._lasting(), self._place() as place:
            one = None if output else self._spares.at_hand(module)
            try:
                if one is None:
                    starting = asyncio.ensure_future(self._ready(module, output))
                    try:
                        await settled(starting)
                    finally:
                        # cancelled meanwhile or not, it is to be closed below
                        one = starting.result() if starting.exception() is None else None
                    one = starting.result()
                await one.give({**task, "again": again}, stored)
                yield one
            finally:
                if one is not None and (not again or not self._kept(module, one)):
                    await one.close(partial(self._leave_behind, one, place))

    def _kept(self, module: str, one: Worker) -> bool:
        """Keep a process for another task, if it can have one."""
        # made ready soon, not now: whoever has waited for its work comes first
        return one.is_done and one.is_fit and not one.ended and self._spares.put(module, partial(self._renewed, one))

    async def _renewed(self, one: Worker) -> Worker:
        try:
            one.renew()
        except OSError as error:
            await self._close(one)
            raise Unavailable(f"a worker process has ended: {error.strerror}") from error
        return one

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[ExitStack]:
        """Wait for a place; it is given back with the stack."""
        await self._places.acquire()
        with ExitStack() as stack:
            stack.callback(self._places.release)
            yield stack

    @asynccontextmanager
    async def _lasting(self) -> AsyncGenerator[None]:
        """Keep the zygote and the threads."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and not self._linger:
                await settled(asyncio.ensure_future(self._release()))

    async def _ready(self, module: str, output: bool) -> Worker:
        """Take a process that was kept, or start one."""
        kept = None if output else await self._spares.take(module)
        return kept if kept is not None else await self._started(module, output)

    async def _started(self, module: str, output: bool = False) -> Worker:
        if self._threads is None:
            # for as many processes as there are places
            self._threads = ThreadPoolExecutor(self._most, thread_name_prefix="layer")
        return await _started(self.zygote, module, output, self._threads, self.stall)

    async def _close(self, one: Worker) -> None:
        """End a process that has no place."""
        with ExitStack() as none:
            await one.close(partial(self._leave_behind, one, none))

    async def _release(self) -> None:
        await self._spares.close()
        threads, self._threads = self._threads, None
        if threads is not None:
            # where no process is left every call has been waited for
            threads.shutdown(wait=not self._users)
        await self.zygote.close()

    def _leave_behind(self, one: Worker, place: ExitStack, end: asyncio.Future[None]) -> None:
        self._log.error("a worker process cannot be killed, its disk may hang", pid=one.pid)
        self._left_behind.add(end)
        held = place.pop_all()

        def ended(_: asyncio.Future[None]) -> None:
            self._left_behind.discard(end)
            held.close()

        end.add_done_callback(ended)


class _Pipes:
    """The daemon's ends of a process's pipes, -1 for none, and `theirs`: what become its 0, 1, 2 and control."""

    def __init__(self, output: bool) -> None:
        with ExitStack() as undone:

            def pipe() -> tuple[int, int]:
                ends = os.pipe()
                for fd in ends:
                    undone.callback(os.close, fd)
                return ends

            into_read, self.into = pipe()
            self.said, said_write = pipe()
            self.out, out_write = pipe() if output else (-1, os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
            self.control, control = socket.socketpair()
            undone.pop_all()
        self.control.setblocking(False)
        self.theirs = (into_read, out_write, said_write, control.detach())
        for fd in (self.into, self.out):
            if fd >= 0:
                _prepare(fd)

    def close_theirs(self) -> None:
        """Close what the process has."""
        for fd in self.theirs:
            os.close(fd)

    def close_ours(self) -> None:
        """Close the daemon's ends."""
        self.control.close()
        for fd in (self.into, self.out, self.said):
            if fd >= 0:
                os.close(fd)


async def _started(
    zygote: Zygote, module: str, output: bool, threads: ThreadPoolExecutor, stall: float | None
) -> Worker:
    try:
        pipes = _Pipes(output)
    except OSError as error:
        raise Internal(f"cannot start a worker process: {error.strerror}") from error
    try:
        return _watched(await zygote.fork(module, pipes.theirs), pipes, threads, stall)
    except BaseException:
        pipes.close_ours()
        raise
    finally:
        pipes.close_theirs()


def _watched(pid: int, pipes: _Pipes, threads: ThreadPoolExecutor, stall: float | None) -> Worker:
    try:
        return Worker(pid, pipes, threads, stall)
    except OSError as error:
        # no descriptor is left to watch it with; it has no task yet, so its end does not take long
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise Internal(f"cannot start a worker process: {error.strerror}") from error


def _prepare(pipe: int) -> None:
    """Make the daemon's end of a pipe for data what `Worker` wants."""
    os.set_blocking(pipe, False)
    # over the user's limit for pipes they work too, with more switches
    with suppress(PermissionError):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def message_of(control: socket.socket) -> asyncio.Future[bytes]:
    """The next message on a socket; of one that is cut or too long nothing, and what sends it can send no more."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()
    found = bytearray()

    def ready() -> None:
        try:
            data = control.recv(MAX_STDERR)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # reset: it ended with input unread
        found.extend(data)
        whole = is_whole(found)
        if whole or not data or len(found) > MAX_REPORT:
            loop.remove_reader(control)
            if not whole:
                with suppress(OSError):
                    control.shutdown(socket.SHUT_RDWR)
            future.set_result(bytes(found) if whole else b"")

    loop.add_reader(control, ready)
    return future
