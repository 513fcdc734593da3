"""Starts worker processes: each has a pipe into it, may have one out of it, and sends one report."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from moored.kernel.errors import Internal
from moored.plugins.diff.reports import MAX_REPORT, packed, raise_fault, unpacked

R = TypeVar("R")

PIPE_BYTES: Final = 1 << 20
MAX_STDERR: Final = 1 << 16


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

    def __init__(self, process: asyncio.subprocess.Process, into: int, out: int, report: asyncio.Task[bytes]) -> None:
        self._process = process
        self._into = into
        self.out = out
        self._report = report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="layer")

    def write(self, data: bytes | memoryview) -> None:
        """Write all to the process, blocking. Raises BrokenPipeError once it reads no more."""
        done = os.write(self._into, data)
        while done < len(data):
            done += os.write(self._into, memoryview(data)[done:])

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
        if self._process.returncode is None:
            self._process.kill()

    async def result(self) -> dict[str, Any]:
        """The report, once the process has ended; raises the error that it tells of, Internal if there is none."""
        data = await asyncio.shield(self._report)
        assert self._process.stderr is not None
        said = await self._process.stderr.read(MAX_STDERR)
        status = await self._process.wait()
        if not data:
            raise Internal(f"a worker process ended with status {status} and said {said.decode(errors='replace')!r}")
        found = unpacked(data)
        try:
            raise_fault(found)
        except Internal as error:
            error.add_note(said.decode(errors="replace"))
            raise
        return found

    async def close(self) -> None:
        """Make sure that nothing runs any more and nothing is open."""
        self.kill()
        ending = asyncio.ensure_future(self._end())
        try:
            await settled(ending)
        finally:
            self.end_input()
            if self.out >= 0:
                os.close(self.out)
                self.out = -1
            # every call has been waited for
            self._thread.shutdown()

    async def _end(self) -> None:
        await self._process.wait()
        await asyncio.wait([self._report])
        # the transport of stderr is closed by its end
        assert self._process.stderr is not None
        while await self._process.stderr.read(MAX_STDERR):
            pass


@asynccontextmanager
async def worker(module: str, task: dict[str, Any], *, output: bool = False) -> AsyncGenerator[Worker]:
    """Start `python -m MODULE` with a task; it is gone, whatever happens, when the block is left."""
    into_read, into = os.pipe()
    report, report_write = os.pipe()
    out, out_write = os.pipe() if output else (-1, -1)
    for fd in (into, out_write):
        if fd >= 0:
            _widen(fd)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-P", "-m", module, str(report_write)),
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
    one = Worker(process, into, out, asyncio.create_task(_read(report)))
    try:
        await one.run(_send_task, one, task)
        yield one
    finally:
        await one.close()


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
