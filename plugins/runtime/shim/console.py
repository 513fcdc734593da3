"""A container's terminal: the socket over which the runtime hands the pty's master over, and what is done with it.

Source: contracts/shim-v2.md 9.
"""

from __future__ import annotations

import errno
import os
import socket
import termios
from contextlib import suppress
from typing import Final

from moored.kernel.errors import DeadlineExceeded, Unknown
from moored.kernel.oserrors import about
from moored.plugins.runtime.shim.copying import CHUNK, write
from moored.plugins.runtime.shim.loop import Future, Loop, Task
from moored.plugins.runtime.shim.settling import settle

HANDOVER: Final = 10.0
"""Seconds for the runtime to hand the terminal over; it has done so before it ends."""
_PAUSE: Final = 0.05
"""Seconds between looks at a terminal that no process has open at the moment."""
_ATTEMPTS: Final = 16


class ConsoleSocket:
    """A listening socket in a private folder, for `--console-socket`; `path` is where."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._folder = _private_folder()
        self.path = f"{self._folder}/pty.sock"
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.setblocking(False)
            self._listener.bind(self.path)
            self._listener.listen(1)
        except OSError:
            self.close()
            raise

    async def receive(self) -> Console:
        """Take the terminal from the runtime. Raises DeadlineExceeded, or Unknown if something else comes."""
        with about("console socket"):
            received: list[int] = []
            taking = self._loop.spawn(self._take(received))
            try:
                await self._loop.within(HANDOVER, taking)
                return Console(self._loop, received.pop())
            except TimeoutError:
                raise DeadlineExceeded(f"the runtime handed no terminal over within {HANDOVER:g} s") from None
            finally:
                await settle(self._loop, taking)
                for fd in received:
                    os.close(fd)

    async def _take(self, received: list[int]) -> None:
        await self._loop.readable(self._listener.fileno())
        connection, _ = self._listener.accept()
        with connection:
            await self._loop.readable(connection.fileno())
            received += socket.recv_fds(connection, 4096, 4, socket.MSG_CMSG_CLOEXEC)[1]
        if len(received) != 1 or not os.isatty(received[0]):
            raise Unknown(f"the runtime sent {len(received)} descriptors, wanted that of one terminal")

    def close(self) -> None:
        """Remove the socket and its folder; what was received stays."""
        self._listener.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108  # pathlib is memory in every shim
        with suppress(FileNotFoundError):
            os.rmdir(self._folder)  # noqa: PTH106  # as above


class Console:
    """The master of one pty.

    Reading it fails while no process has the other side open, which may be for a moment only; it is at its end once the
    container's process has ended (`finish`) and nothing is left.
    """

    def __init__(self, loop: Loop, master: int) -> None:
        os.set_blocking(master, False)
        self._loop = loop
        self._master = master
        self._finished = False
        self._closed = False
        self._woken: Future[None] | None = None

    def resize(self, width: int, height: int) -> None:
        """Set the size in characters; nothing happens once the terminal is gone."""
        if not self._closed:
            termios.tcsetwinsize(self._master, (height & 0xFFFF, width & 0xFFFF))

    def finish(self) -> None:
        """The process has ended: `copy_out` takes what is there and ends."""
        self._finished = True
        if self._woken is not None:
            self._woken.set_result(None)

    def close(self) -> None:
        """Hang up; the copies must have ended."""
        self._finished = True
        if not self._closed:
            self._closed = True
            os.close(self._master)

    async def copy_out(self, sink: int, refused: list[OSError]) -> None:
        """Copy what the process writes; what the sink refuses is dropped, and the error appended to `refused`."""
        while data := await self._read():
            try:
                await write(self._loop, sink, data)
            except OSError as error:
                refused.append(error)

    async def copy_in(self, source: int) -> None:
        """Copy to the process until the source ends or the process has."""
        while not self._finished:
            await self._loop.readable(source)
            try:
                data = os.read(source, CHUNK)
            except BlockingIOError:
                continue
            if not data or not await self._write(data):
                return

    async def _read(self) -> bytes:
        """Give what there is, empty at the end."""
        while True:
            try:
                return os.read(self._master, CHUNK)
            except BlockingIOError:
                if self._finished:
                    return b""
                await self._until(self._loop.spawn(self._loop.readable(self._master)))
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                if self._finished:
                    return b""
                await self._until(self._loop.spawn(self._loop.sleep(_PAUSE)))

    async def _until(self, waiting: Task[None]) -> None:
        """Wait for something, or until the process has ended."""
        woken = self._woken = Future[None](self._loop)
        waiting.add_callback(lambda: woken.set_result(None))
        try:
            await woken
        finally:
            self._woken = None
            await settle(self._loop, waiting)

    async def _write(self, data: bytes) -> bool:
        """Write all, and say whether that could be done before the process ended."""
        rest = memoryview(data)
        while rest and not self._finished:
            try:
                rest = rest[os.write(self._master, rest) :]
            except BlockingIOError:
                await self._loop.writable(self._master)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                await self._loop.sleep(_PAUSE)
        return not rest


def _private_folder() -> str:
    parent = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108  # the folder below is new and for us alone
    for _ in range(_ATTEMPTS - 1):
        folder = f"{parent}/pty{os.urandom(6).hex()}"
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)  # noqa: PTH102  # as above
            return folder
    raise Unknown(f"found no free name for a folder in {parent!r}")
