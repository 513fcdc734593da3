"""Runs a short program beside the event loop, with a deadline and bounds on what it says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moored.kernel.errors import DeadlineExceeded
from moored.kernel.workers import finished

MAX_OUTPUT: Final = 1 << 20
"""Bytes kept of each output; what comes after them is read and dropped."""
_CHUNK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended: its status (negative: killed by that signal) and what it wrote."""

    status: int
    output: bytes
    errors: bytes


async def run(
    command: Sequence[str],
    *,
    seconds: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    joined: bool = False,
) -> Finished:
    """Run a program in a process group of its own and wait for its end, not for that of what it leaves running.

    joined: standard error goes where the output goes.
    Errors: OSError if it cannot be started; DeadlineExceeded after `seconds`.
    Cancellation and a missed deadline kill its process group.
    """
    with ExitStack() as stack:
        source = _file_of(stdin, stack)
        output = _Pipe(stack)
        errors = output if joined else _Pipe(stack)
        process = await _started(command, folder, environment, (source, output.into, errors.into))
        output.close_into()
        errors.close_into()
        try:
            async with asyncio.timeout(seconds):
                await _ended(process.pid)
        except TimeoutError:
            _kill(process)
            raise DeadlineExceeded(f"{Path(command[0]).name!r} did not end within {seconds:g} seconds") from None
        except BaseException:
            _kill(process)
            raise
        status = process.wait()
        return Finished(status, output.taken(), b"" if joined else errors.taken())


class _Pipe:
    """What a program writes, read as it comes."""

    def __init__(self, stack: ExitStack) -> None:
        self._loop = asyncio.get_running_loop()
        self._from, self.into = os.pipe()
        self._data = bytearray()
        self._reading = True
        stack.callback(self._close)
        os.set_blocking(self._from, False)
        self._loop.add_reader(self._from, self._read)

    def close_into(self) -> None:
        """Drop our copy of the program's end."""
        if self.into >= 0:
            os.close(self.into)
            self.into = -1

    def taken(self) -> bytes:
        """All that has been written so far, up to MAX_OUTPUT."""
        while self._reading and self._read():
            pass
        return bytes(self._data)

    def _read(self) -> bool:
        """Read once; whether there may be more."""
        try:
            data = os.read(self._from, _CHUNK)
        except BlockingIOError:
            return False
        self._data += data[: MAX_OUTPUT - len(self._data)]
        if not data:
            self._reading = False
            self._loop.remove_reader(self._from)
        return bool(data)

    def _close(self) -> None:
        self.close_into()
        self._loop.remove_reader(self._from)
        os.close(self._from)


def _file_of(data: bytes, stack: ExitStack) -> int:
    """A file to read the data from: unlike a pipe it takes any size at once."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    at = 0
    while at < len(data):
        at += os.write(fd, data[at:])
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


async def _started(
    command: Sequence[str], folder: Path | None, environment: Mapping[str, str] | None, streams: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """Start it from a thread: the caller of vfork sleeps until the program has been loaded."""
    from concurrent.futures import Future

    future: Future[subprocess.Popen[bytes]] = Future()

    def start() -> None:
        try:
            future.set_result(
                subprocess.Popen(
                    command,
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    cwd=folder,
                    env=environment,
                    process_group=0,
                )
            )
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)

    asyncio.get_running_loop().run_in_executor(None, start)
    try:
        return await finished(future, always=True)
    except asyncio.CancelledError:
        if future.exception() is None:
            _kill(future.result())
        raise


async def _ended(pid: int) -> None:
    """Wait for a child's end without reaping it."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    fd = os.pidfd_open(pid)
    try:
        loop.add_reader(fd, over.cancel)
        await asyncio.wait([over])
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a child and all that is in its process group, and reap it."""
    # until it is reaped nobody else can have its id
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
