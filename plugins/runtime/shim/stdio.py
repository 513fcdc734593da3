"""A process's standard streams: what it is given as 0, 1 and 2, and how that is joined to what the client named.

`open_streams` makes the process's side before the runtime is called and begins to open the client's, `started` joins
them after it. Then:

    child 1, 2 --pipe--> copy --> client's FIFO, or a log file
    child 1, 2 --pipe--> logging program
    terminal <---------> copy <-> client's FIFOs, a log file, or a logging program
    child 0 <--pipe----- copy <-- client's FIFO

A client that does not read stops the process that writes, nothing else. Source: contracts/shim-v2.md 9.

The client's end of the output is opened while the runtime works, not after it: containerd's client library gives up an
end that its thread has not come back from opening when it learns of the exit, and what was written is lost with it. The
sooner that thread is let go, the better for a process that ends at once.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from moored.kernel.errors import MooredError, Unknown
from moored.kernel.oserrors import about, reason
from moored.plugins.runtime.shim import binarylog, fifos, log
from moored.plugins.runtime.shim.console import Console, ConsoleSocket
from moored.plugins.runtime.shim.copying import copy, copy_or_drop
from moored.plugins.runtime.shim.descriptors import Descriptors
from moored.plugins.runtime.shim.loop import Loop, Task
from moored.plugins.runtime.shim.settling import ended, settle
from moored.plugins.runtime.shim.streamuri import StreamUri, parse

TO_OPEN: Final = 30.0
"""Seconds that a client has to open its ends."""


class Stdio(NamedTuple):
    """What the client asks for: paths of FIFOs or files, a URI for the output, empty for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Streams:
    """The streams of one process.

    child_fds       descriptors for the runtime's 0, 1 and 2; they are closed by `started` or `close`
    console_socket  path for `--console-socket`, empty without a terminal

    Concurrency: one method at a time until `started` is over, then any.
    """

    def __init__(self, loop: Loop, stdio: Stdio, uri: StreamUri, name: str, namespace: str) -> None:
        self._loop = loop
        self._stdio = stdio
        self._uri = uri
        self._name = name
        self._namespace = namespace
        self._fds = Descriptors()
        self._inputs: list[Task[None]] = []
        self._outputs: list[Task[None]] = []
        self._kept: list[int] = []
        self._logger: binarylog.BinaryLog | None = None
        self._sinks: dict[int, list[int]] = {}
        self._opening: Task[MooredError | None] | None = None
        self._closing: Task[None] | None = None
        self.child_fds: tuple[int, int, int] = (-1, -1, -1)
        self.console_socket = ""

    async def started(self) -> None:
        """Give up the process's ends and join the rest to the client's, waiting until it has opened them.

        Raises as `moored.plugins.runtime.shim.fifos` does; `close` is to be called then too.
        """
        raise NotImplementedError

    def exited(self) -> None:
        """The process has ended: a terminal's output is at its end even if somebody still holds the terminal."""

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in characters; nothing happens where there is none."""

    def close_stdin(self) -> None:
        """Let the input end as soon as no client has it open."""
        self._fds.close(self._kept)

    async def drained(self, seconds: float) -> bool:
        """Wait until all output was copied, at most so long, and say whether it was."""
        self.exited()
        try:
            await self._loop.within(seconds, self._all_copied())
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Give up everything, whatever is still being copied. May be called at any time and again."""
        if self._closing is None:
            self._closing = self._loop.spawn(self._close())
        await self._closing

    async def _all_copied(self) -> None:
        for task in self._outputs:
            await ended(self._loop, task)

    async def _close(self) -> None:
        if self._opening is not None:
            await settle(self._loop, self._opening)
            self._opening = None
        for task in self._inputs + self._outputs:
            await settle(self._loop, task)
        self._inputs, self._outputs = [], []  # each knows this one, and memory is to be free without a collection
        self._fds.close_all()
        if self._logger is not None:
            await self._logger.close()

    # --- parts that both kinds use --------------------------------------------------------------------------------

    def _begin_to_open(self, outputs: Iterable[tuple[int, str]]) -> None:
        """Open what the client reads, one after the other, as soon as it has opened it."""
        self._opening = self._loop.spawn(self._open_all(outputs))

    async def _open_all(self, outputs: Iterable[tuple[int, str]]) -> MooredError | None:
        try:
            for number, path in outputs:
                self._sinks[number] = self._fds.take(await fifos.open_output(self._loop, path, TO_OPEN))
        except MooredError as error:
            return error
        return None

    async def _opened(self) -> None:
        """Wait until all of that is open. Raises as `fifos.open_output`."""
        if self._opening is not None and (error := await self._opening) is not None:
            raise error

    def _copying(self, tasks: list[Task[None]], work: Coroutine[Any, Any, None], what: str, fds: list[int]) -> None:
        """Run a copy; at its end close the descriptors."""

        async def run() -> None:
            try:
                await work
            except BrokenPipeError:
                pass  # the process does not read any more
            except OSError as error:
                log.warning(f"{what} of {self._name!r} cannot be copied: {reason(error)}")
            self._fds.close(fds)

        tasks.append(self._loop.spawn(run()))

    def _open_input(self) -> int:
        read, *self._kept = self._fds.take(fifos.open_input(self._stdio.stdin))
        return read

    async def _start_logger(self) -> tuple[int, int]:
        """Start the logging program and give the ends to write to."""
        (stdout, to_stdout), (stderr, to_stderr) = self._fds.pipe(), self._fds.pipe()
        self._logger = await binarylog.start(self._loop, self._uri, (stdout, stderr), self._name, self._namespace)
        self._fds.close((stdout, stderr))
        return to_stdout, to_stderr


class PipeStreams(Streams):
    """Streams without a terminal."""

    async def open(self, uid: int, gid: int) -> None:
        """Make the process's side; the ends that it gets belong to uid and gid."""
        self._null = null = self._fds.take([os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)])[0]
        self._ours: dict[int, int] = {}
        stdin = self._pipe(0, uid, gid) if self._stdio.stdin else null
        if self._uri.scheme in binarylog.SCHEMES:
            stdout, stderr = await self._start_logger()
        else:
            stdout = self._pipe(1, uid, gid) if self._stdio.stdout else null
            stderr = self._pipe(2, uid, gid) if self._stdio.stderr else null
        if self._uri.scheme == "file":
            self._sinks = {
                number: self._fds.take([fifos.open_log(self._uri.path)]) for number, _ in self._outputs_wanted()
            }
        else:
            paths = {1: self._uri.path, 2: self._stdio.stderr}
            self._begin_to_open([(number, paths[number]) for number, _ in self._outputs_wanted()])
        self.child_fds = (stdin, stdout, stderr)

    def _pipe(self, number: int, uid: int, gid: int) -> int:
        """Make a pipe, keep our end and give the process's."""
        read, write = self._fds.pipe()
        ours, child = (write, read) if number == 0 else (read, write)
        self._ours[number] = ours
        os.set_blocking(ours, False)
        os.fchown(child, uid, gid)
        return child

    async def started(self) -> None:
        """Open stdin and copy, once stdout and stderr are open."""
        self._fds.close((*self.child_fds, self._null))
        await self._opened()
        for number, name in self._outputs_wanted():
            self._copy_out(number, name, self._sinks[number])
        if 0 in self._ours:
            source = self._open_input()
            self._copying(self._inputs, copy(self._loop, source, self._ours[0]), "stdin", [source, self._ours[0]])

    def _outputs_wanted(self) -> list[tuple[int, str]]:
        return [(number, name) for number, name in ((1, "stdout"), (2, "stderr")) if number in self._ours]

    def _copy_out(self, number: int, name: str, sink: list[int]) -> None:
        source = self._ours[number]
        work = copy_or_drop(self._loop, source, sink[0], f"{name} of {self._name!r}")
        self._copying(self._outputs, work, name, [source, *sink])


class TerminalStreams(Streams):
    """Streams of a process with a terminal; the error output is the output."""

    def open(self) -> None:
        """Make the socket on which the runtime hands the terminal over."""
        null = self._fds.take([os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)])[0]
        self.child_fds = (null, null, null)
        self._socket = ConsoleSocket(self._loop)
        self.console_socket = self._socket.path
        self._console: Console | None = None
        if self._uri.scheme == "fifo":
            self._begin_to_open([(1, self._uri.path or "/dev/null")])

    async def started(self) -> None:
        """Take the terminal, open stdin, and copy, once stdout is open."""
        self._fds.close(self.child_fds)
        console = self._console = await self._socket.receive()
        self._socket.close()
        if self._stdio.stdin:
            source = self._open_input()
            self._copying(self._inputs, self._copy_in(console, source), "stdin", [source])
        sink = await self._open_sink()
        self._copying(self._outputs, self._copy_out(console, sink[0]), "terminal", sink)

    async def _open_sink(self) -> list[int]:
        if self._uri.scheme in binarylog.SCHEMES:
            to_stdout, to_stderr = await self._start_logger()
            self._fds.close([to_stderr])
            os.set_blocking(to_stdout, False)
            return [to_stdout]
        if self._uri.scheme == "file":
            return self._fds.take([fifos.open_log(self._uri.path)])
        await self._opened()
        return self._sinks[1]

    async def _copy_in(self, console: Console, source: int) -> None:
        """Copy to the terminal; its end hangs up, as containerd's shim does."""
        await console.copy_in(source)
        self.exited()
        await self._all_copied()
        console.close()

    async def _copy_out(self, console: Console, sink: int) -> None:
        refused: list[OSError] = []
        await console.copy_out(sink, refused)
        if refused:
            log.warning(f"terminal of {self._name!r} was not written in part: {reason(refused[0])}")

    def exited(self) -> None:
        """Take what the terminal still holds."""
        if self._console is not None:
            self._console.finish()

    def resize(self, width: int, height: int) -> None:
        """Set the size; a terminal that is not there yet, or not any more, has none."""
        if self._console is not None:
            with suppress(OSError):
                self._console.resize(width, height)

    async def _close(self) -> None:
        self._socket.close()
        await super()._close()
        if self._console is not None:
            self._console.close()


async def open_streams(loop: Loop, stdio: Stdio, name: str, namespace: str, *, uid: int = 0, gid: int = 0) -> Streams:
    """Make the process's side of its streams; `name` is the id of the container, or of the exec.

    Raises Unknown for a scheme that is not known, and as `binarylog.start` does.
    """
    uri = parse(stdio.stdout)
    if uri.scheme not in binarylog.SCHEMES and uri.scheme not in {"fifo", "file"}:
        raise Unknown(f"unknown STDIO scheme {uri.scheme}")
    streams: PipeStreams | TerminalStreams
    kind = TerminalStreams if stdio.terminal else PipeStreams
    streams = kind(loop, stdio, uri, name, namespace)
    try:
        with about(f"streams of {name!r}"):
            if isinstance(streams, TerminalStreams):
                streams.open()
            else:
                await streams.open(uid, gid)
    except BaseException:
        await streams.close()
        raise
    return streams
