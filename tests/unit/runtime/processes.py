"""What tests of the shim's parts have in common: a loop that must give everything back, and processes to watch."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from moored.plugins.runtime.shim.loop import ExitStatus, Future, Loop
from unit.descriptors import descriptors

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which a test fails that waits in vain."""


@contextmanager
def clean_loop() -> Generator[Loop]:
    """Give a loop; fail if a descriptor or a child is left."""
    before, strangers = descriptors(), children()
    made = Loop()
    yield made
    made.close()
    assert descriptors() == before
    assert children() <= strangers


def children() -> set[str]:
    """Give the children of this process, those that ended and were not reaped too."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def run(loop: Loop, work: Coroutine[Any, Any, T]) -> T:
    """Run with patience."""

    async def patient() -> T:
        return await loop.within(PATIENCE, work)

    return loop.run(patient())


async def until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Wait for something that nothing tells."""
    while not condition():
        await loop.sleep(0.002)


def spawn(loop: Loop, command: Sequence[str], fds: tuple[int, int, int]) -> Future[ExitStatus]:
    """Start a program with three descriptors."""
    actions: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
    return loop.child(os.posix_spawnp(command[0], command, dict(os.environ), file_actions=actions))


def shell(loop: Loop, script: str, fds: tuple[int, int, int]) -> Future[ExitStatus]:
    """Start a script."""
    return spawn(loop, ["sh", "-c", script], fds)


class Client:
    """A client's end of a FIFO, read or written through the same loop."""

    def __init__(self, loop: Loop, path: Path, flags: int) -> None:
        self._loop = loop
        self.fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)

    async def read(self, size: int = 65536) -> bytes:
        """Read what is there, empty at the end; a FIFO that nobody has opened yet is waited for."""
        while True:
            await self._loop.readable(self.fd)
            try:
                return os.read(self.fd, size)
            except BlockingIOError:
                continue

    async def read_all(self) -> bytes:
        """Read to the end, and close."""
        pieces: list[bytes] = []
        while piece := await self.read():
            pieces.append(piece)
        self.close()
        return b"".join(pieces)

    async def line(self) -> bytes:
        """Read one line."""
        data = b""
        while not data.endswith(b"\n"):
            piece = await self.read(1)
            if not piece:
                break
            data += piece
        return data

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self.fd, rest) :]
            except BlockingIOError:
                await self._loop.writable(self.fd)

    def close(self) -> None:
        """Go away."""
        os.close(self.fd)
