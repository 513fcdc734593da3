"""Joins a process of a container to the terminal or pipes that a command has, until it ends or is left.

standard input --keys--> process.stdin        process.stdout, stderr --> standard output, standard error
signals --------------> process.kill          SIGWINCH --> process.resize
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from moored.api.cli import terminal
from moored.api.client.stdio import Input
from moored.api.client.tasks import Process
from moored.kernel.errors import MooredError
from moored.kernel.ports.tasks import Exit

PIECE: Final = 1 << 16
PIPE_SECONDS: Final = 1.0
"""How long a process has to end by itself once nobody reads what it writes."""
PATIENCE: Final = 2.0
"""Seconds without output after a process has ended, after which others that hold its output are not waited for."""
NOBODY_READS: Final = 128 + signal.SIGPIPE
"""Exit status where nobody takes the output any more."""
ENOUGH: Final = 3
"""Interrupts after which the command ends although the process does not."""
PASSED_ON: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
    signal.SIGALRM,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to join: whether the process has a terminal, gets input, gets signals; the keys that leave it.

    ends_with_reader: whether it is ended when nobody reads what it writes any more, as in a pipeline.
    """

    terminal: bool = False
    stdin: bool = False
    pass_signals: bool = True
    keys: bytes = b""
    ends_with_reader: bool = False


class Left(Exception):
    """The user has left the process running; by_keys: with the detach keys, else by insisting on an interrupt."""

    def __init__(self, *, by_keys: bool) -> None:
        super().__init__()
        self.by_keys = by_keys


async def join(
    process: Process, manner: Manner, *, started: bool = False, output: AsyncIterable[bytes] | None = None
) -> Exit:
    """Start the process unless it is started, copy its streams, and give how it ended.

    output is in place of the process's own, where that goes elsewhere.
    The status is NOBODY_READS if it was ended because nobody read what it wrote.
    Raises Left; BrokenPipeError where nobody reads and it is to go on; what `Process.start` raises.
    """
    streams = ((output or process.stdout, 1), (process.stderr, 2))
    outputs = [_Copy(stream, fd) for stream, fd in streams if stream is not None]
    with ExitStack() as stack:
        if manner.terminal and manner.stdin:
            stack.enter_context(terminal.raw())
        left: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        stack.callback(left.cancel)
        stack.enter_context(_signals(process, manner, left))
        if not started:
            await process.start()
        if manner.terminal:
            await _resize(process)
        tasks = [asyncio.create_task(copy.run(left)) for copy in outputs]
        if manner.stdin and process.stdin is not None:
            tasks.append(asyncio.create_task(_type(process.stdin, terminal.DetachKeys(manner.keys), left)))
        try:
            ended = await _ended(process, manner, left)
            await _drained(tasks[: len(outputs)], outputs)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return ended


async def _ended(process: Process, manner: Manner, left: asyncio.Future[Exit]) -> Exit:
    waiting = asyncio.ensure_future(process.wait())
    try:
        done, _ = await asyncio.wait((waiting, left), return_when=asyncio.FIRST_COMPLETED)
        if left not in done:
            return waiting.result()
        if not (manner.ends_with_reader and isinstance(left.exception(), BrokenPipeError)):
            return left.result()
        await _kill(process, signal.SIGTERM)
        await asyncio.wait([waiting], timeout=PIPE_SECONDS)
        if not waiting.done():
            await _kill(process, signal.SIGKILL)
        return replace(await waiting, status=NOBODY_READS)
    finally:
        waiting.cancel()


async def _drained(tasks: list[asyncio.Task[None]], outputs: list[_Copy]) -> None:
    """Wait for the end of the outputs, or until nothing has come for a while although it would have been taken."""
    while pending := [task for task in tasks if not task.done()]:
        await asyncio.wait(pending, timeout=PATIENCE / 4)
        if all(task.done() or copy.idle > PATIENCE for task, copy in zip(tasks, outputs, strict=True)):
            break
    for task in tasks:
        if task.done():
            task.result()


class _Copy:
    """One output of the process, copied to a descriptor of the command."""

    def __init__(self, stream: AsyncIterable[bytes], fd: int) -> None:
        self._stream = stream
        self._fd = fd
        self._last = time.monotonic()
        self._writing = False
        self._broken = False

    @property
    def idle(self) -> float:
        """Seconds for which nothing has come; 0 while nobody takes what has."""
        return 0.0 if self._writing else time.monotonic() - self._last

    async def run(self, left: asyncio.Future[Exit]) -> None:
        """Copy to the end; that nobody takes it is told by `left`, and the rest is read so that nobody waits."""
        async for piece in self._stream:
            if self._broken:
                continue
            self._writing = True
            try:
                await asyncio.to_thread(write_all, self._fd, piece)
            except BrokenPipeError as error:
                self._broken = True
                if not left.done():
                    left.set_exception(error)
            finally:
                self._writing = False
                self._last = time.monotonic()


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, also where somebody made the descriptor non-blocking. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            time.sleep(0.01)


async def _type(into: Input, keys: terminal.DetachKeys, left: asyncio.Future[Exit]) -> None:
    """Copy standard input until its end, which the process is told, or until the detach keys."""
    async for data in _typed():
        passed, leave = keys.feed(data)
        try:
            await into.write(passed)
        except MooredError:
            return
        if leave and not left.done():
            left.set_exception(Left(by_keys=True))
            return
    with suppress(MooredError):
        await into.close()


async def _typed() -> AsyncGenerator[bytes]:
    """What comes on standard input."""
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            loop.add_reader(terminal.STDIN, _wake, ready)
        except (PermissionError, OSError):
            pass  # a file, of which nobody need wait for the next bytes
        else:
            try:
                await ready
            finally:
                loop.remove_reader(terminal.STDIN)
        try:
            data = os.read(terminal.STDIN, PIECE)
        except BlockingIOError:
            continue
        except OSError:
            return
        if not data:
            return
        yield data


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextmanager
def _signals(process: Process, manner: Manner, left: asyncio.Future[Exit]) -> Generator[None]:
    """Pass signals on, and the terminal's changes of size."""
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    interrupts = 0

    def spawn(work: Coroutine[None, None, None]) -> None:
        task = loop.create_task(work)
        running.add(task)
        task.add_done_callback(running.discard)

    def passed(number: signal.Signals) -> None:
        nonlocal interrupts
        interrupts += number in (signal.SIGINT, signal.SIGTERM)
        if interrupts >= ENOUGH and not left.done():
            left.set_exception(Left(by_keys=False))
        spawn(_kill(process, number))

    with ExitStack() as stack:
        if manner.terminal:
            loop.add_signal_handler(signal.SIGWINCH, lambda: spawn(_resize(process)))
            stack.callback(loop.remove_signal_handler, signal.SIGWINCH)
        for number in PASSED_ON if manner.pass_signals else ():
            loop.add_signal_handler(number, passed, number)
            stack.callback(loop.remove_signal_handler, number)
        yield


async def _kill(process: Process, number: signal.Signals) -> None:
    with suppress(MooredError):
        await process.kill(number)


async def _resize(process: Process) -> None:
    columns, lines = terminal.size()
    with suppress(MooredError):
        await process.resize(columns, lines)
