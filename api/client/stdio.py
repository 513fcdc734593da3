"""Where the streams of a process go, and the ends of them that a client holds.

    process --pipe--> shim --FIFO--> Output          Input --FIFO--> shim --pipe--> process

The client makes the FIFOs in a folder of its own and opens those that it reads before the process is created, so that
nothing waits for anybody. Source: contracts/shim-v2.md 9.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.ports.tasks import Stdio

PIECE: Final = 64 << 10
"""Bytes of one read; what a pipe holds."""
READER_SECONDS: Final = 10.0
"""How long the first write waits for the other side to open the stream."""
_SCHEMES: Final = ("binary://", "binary-v2://", "file://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    """A choice of streams.

    kind    `null`: none; `pipes`: stdout and stderr apart; `terminal`: one stream, a terminal for the process;
            `uri`: stdout and stderr go to `uri`, which the shim opens
    stdin   whether the process can be written to; with a terminal it can
    fifo    with `uri`: path of a FIFO that the process reads from, which the caller has made and removes
    """

    kind: Literal["null", "pipes", "terminal", "uri"]
    stdin: bool = False
    uri: str = ""
    fifo: str = ""

    @property
    def is_terminal(self) -> bool:
        """Whether the process gets a terminal."""
        return self.kind == "terminal"


NULL: Final = Io(kind="null")
PIPES: Final = Io(kind="pipes")
PIPES_AND_STDIN: Final = Io(kind="pipes", stdin=True)
TERMINAL: Final = Io(kind="terminal", stdin=True)


def log_to(uri: str, *, stdin: str = "") -> Io:
    """Have stdout and stderr written by the shim: `file:///PATH`, or `binary:///PROGRAM?KEY=VALUE`.

    stdin is the path of a FIFO that the caller has made and removes: the shim opens both of its ends, so that clients
    may come and go, and the process reads its end only when it is told to by `Input.close` or `close_stdin`.
    Raises InvalidArgument for other URIs.
    """
    if not uri.startswith(_SCHEMES):
        raise InvalidArgument(f"log uri {uri!r} must begin with one of {', '.join(_SCHEMES)}")
    if stdin and not stdin.startswith("/"):
        raise InvalidArgument(f"input {stdin!r} must be the absolute path of a FIFO")
    return Io(kind="uri", uri=uri, fifo=stdin)


class _End:
    """One end of a FIFO, which nothing waits in but tasks that ask for it. One task at a time."""

    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        self.is_open = True
        self._stop: Callable[[], None] | None = None

    async def ready(self, *, writing: bool) -> None:
        """Wait until it can be read from or written to, or is closed."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(self.fd, wake)

        def stop() -> None:
            remove(self.fd)
            wake()

        self._stop = stop
        try:
            await waiter
        finally:
            self._stop = None
            if self.is_open:
                remove(self.fd)

    def close(self) -> None:
        """Close it and wake who waits; again is harmless."""
        if self.is_open:
            self.is_open = False
            if self._stop is not None:
                self._stop()
            os.close(self.fd)


class Output:
    """What a process writes. Concurrency: one reader at a time. Nothing is read ahead: a process waits for its reader.

    Iterating gives pieces as they come, until every process that has the stream has closed it.
    """

    def __init__(self, path: Path, *, begun: bool = False) -> None:
        self._end = _End(path, os.O_RDONLY)
        self._kept = b""
        self._begun = begun

    async def read(self, size: int = -1) -> bytes:
        """Give what there is, at most so many bytes, waiting for the first; nothing at the end. All of it for -1."""
        if size == 0:
            return b""
        if size < 0:
            return b"".join([piece async for piece in self.pieces()])
        if not self._kept:
            self._kept = await self._next(min(size, PIECE))
        given, self._kept = self._kept[:size], self._kept[size:]
        return given

    async def readline(self, limit: int = 1 << 20) -> bytes:
        """Give the bytes up to a newline, that included, or up to the end. Raises InvalidArgument over the limit."""
        while b"\n" not in self._kept:
            if len(self._kept) > limit:
                raise InvalidArgument(f"line is longer than {limit} bytes")
            piece = await self._next(PIECE)
            if not piece:
                line, self._kept = self._kept, b""
                return line
            self._kept += piece
        line, _, self._kept = self._kept.partition(b"\n")
        return line + b"\n"

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Give what comes, piece by piece, to the end."""
        while piece := await self.read(PIECE):
            yield piece

    def __aiter__(self) -> AsyncGenerator[bytes]:
        return self.pieces()

    async def _next(self, size: int) -> bytes:
        while self._end.is_open:
            # Before the other side has opened the FIFO a read would look like the end.
            if self._begun:
                try:
                    return os.read(self._end.fd, size)
                except BlockingIOError:
                    pass
            await self._end.ready(writing=False)
            self._begun = True
        return b""

    async def close(self) -> None:
        """Let go of it; what is in it is lost. Again is harmless."""
        self.abandon()

    def abandon(self) -> None:
        """Let go of it at once."""
        self._end.close()


class Input:
    """What a process reads. Concurrency: one writer at a time.

    The FIFO is opened by the first write, once it has a reader: what is written before that would be lost with it.
    """

    def __init__(self, path: Path, tell_end: Callable[[], Awaitable[None]]) -> None:
        self._path = path
        self._tell_end = tell_end
        self._end: _End | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Write all of the data, waiting for room. Raises FailedPrecondition once the process reads no more."""
        view = memoryview(data)
        while view:
            end = self._end or await self._opened()
            if not end.is_open:
                raise FailedPrecondition("input of the process is closed")
            try:
                view = view[os.write(end.fd, view) :]
            except BlockingIOError:
                await end.ready(writing=True)
            except BrokenPipeError as error:
                raise FailedPrecondition("process reads no more input") from error

    async def _opened(self) -> _End:
        until, pause = time.monotonic() + READER_SECONDS, 0.001
        while not self._closed:
            try:
                self._end = _End(self._path, os.O_WRONLY)
            except OSError as error:
                if error.errno != errno.ENXIO or time.monotonic() > until:
                    raise FailedPrecondition("process reads no input") from error
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
            else:
                return self._end
        raise FailedPrecondition("input of the process is closed")

    async def close(self) -> None:
        """Let the process read the end of its input; again is harmless."""
        if not self._closed:
            self.abandon()
            await self._tell_end()

    def abandon(self) -> None:
        """Let go of it without telling anybody."""
        self._closed = True
        if self._end is not None:
            self._end.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class Streams:
    """The client's ends of one process' streams, and the FIFOs between."""

    def __init__(
        self,
        stdio: Stdio,
        tell_end: Callable[[], Awaitable[None]],
        folder: Path | None = None,
        *,
        begun: bool = False,
    ) -> None:
        """Open the FIFOs that stdio names; begun: the shim has opened its ends.

        Raises FailedPrecondition for one that cannot be opened.
        """
        self.stdio = stdio
        self.stdin: Input | None = None
        self.stdout: Output | None = None
        self.stderr: Output | None = None
        self._folder = folder
        try:
            if stdio.stdout and "://" not in stdio.stdout:
                self.stdout = Output(Path(stdio.stdout), begun=begun)
            if stdio.stderr and "://" not in stdio.stderr and not stdio.terminal:
                self.stderr = Output(Path(stdio.stderr), begun=begun)
            if stdio.stdin:
                self.stdin = Input(Path(stdio.stdin), tell_end)
        except OSError as error:
            self.close()
            raise FailedPrecondition(f"stream {error.filename!r} cannot be opened: {error.strerror}") from error

    def close(self) -> None:
        """Close what is open and remove the FIFOs that were made here."""
        if self.stdin is not None:
            self.stdin.abandon()
        for output in (self.stdout, self.stderr):
            if output is not None:
                output.abandon()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def made(io: Io, name: str, folder: Path, tell_end: Callable[[], Awaitable[None]]) -> Streams:
    """Make the FIFOs of a new process in a folder of their own below `folder`, and open them.

    Raises PermissionDenied where that cannot be written to.
    """
    if io.kind == "null":
        return Streams(Stdio(), tell_end)
    if io.kind == "uri":
        return Streams(Stdio(stdin=io.fifo, stdout=io.uri, stderr=io.uri), tell_end)
    own = _new_folder(folder)
    try:
        paths = [own / f"{name}-{stream}" for stream in ("stdin", "stdout", "stderr")]
        wanted = (io.stdin, True, not io.is_terminal)
        stdin, stdout, stderr = (_fifo(path) if yes else "" for path, yes in zip(paths, wanted, strict=True))
        stdio = Stdio(stdin=stdin, stdout=stdout, stderr=stderr, terminal=io.is_terminal)
        return Streams(stdio, tell_end, own)
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


def _new_folder(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder))
    except OSError as error:
        raise FailedPrecondition(f"no folder for streams can be made in '{folder}': {error.strerror}") from error


def _fifo(path: Path) -> str:
    os.mkfifo(path, 0o700)
    return str(path)
