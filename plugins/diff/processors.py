"""Stream processors: programs of the operator that turn a wrapped layer (an encrypted one) into a plain one.

blob -> program -> program -> ... -> a type that is unpacked
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import IO, Final

from moored.kernel.errors import Unknown
from moored.kernel.ports.daemon import StreamProcessor
from moored.kernel.ports.diff import Encoding, encoding
from moored.plugins.diff.exits import exit_of
from moored.plugins.diff.worker import settled

MEDIA_TYPE_VARIABLE: Final = "STREAM_PROCESSOR_MEDIATYPE"
PAYLOAD_FD: Final = 3
MAX_CHAIN: Final = 16
MAX_TEXT: Final = 4096
"""Bytes of a program's stderr that become an error's text."""
CHUNK: Final = 1 << 20


def chain(media_type: str, processors: Sequence[StreamProcessor]) -> tuple[list[tuple[str, StreamProcessor]], Encoding]:
    """Which programs a layer goes through, each with the type that it gets, and how the last one's output is stored.

    Processors come before what is unpacked without any; the last one given wins. Raises Unknown for a type that nobody
    takes.
    """
    found: list[tuple[str, StreamProcessor]] = []
    here = media_type
    while True:
        takes = [one for one in processors if here in one.accepts]
        if not takes or len(found) == MAX_CHAIN:
            break
        found.append((here, takes[-1]))
        here = takes[-1].returns
    how = encoding(here)
    if how is None or len(found) == MAX_CHAIN:
        raise Unknown(f"failed to get stream processor for {media_type}: no processor for media-type")
    return found, how


class _Program:
    """One running program; `out` is the read end of its output."""

    def __init__(self, processor: StreamProcessor, media_type: str, stdin: int, payload: bytes | None) -> None:
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self.out, write = os.pipe()
        actions: list[tuple[int, ...]] = [
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, write, 1),
            (os.POSIX_SPAWN_DUP2, self._stderr.fileno(), 2),
        ]
        with tempfile.TemporaryFile() as file:
            if payload is not None:
                file.write(payload)
                file.seek(0)
                actions.append((os.POSIX_SPAWN_DUP2, file.fileno(), PAYLOAD_FD))
            environment = dict(os.environ)
            environment.update(text.partition("=")[::2] for text in processor.env)
            environment[MEDIA_TYPE_VARIABLE] = media_type
            try:
                self.pid = os.posix_spawnp(
                    processor.path, [processor.path, *processor.args], environment, file_actions=actions
                )
            except OSError as fault:
                os.close(self.out)
                self._stderr.close()
                raise Unknown(f"cannot start stream processor {processor.id!r}: {fault.strerror}") from fault
            finally:
                os.close(write)
        self._id = processor.id
        self._exit = exit_of(self.pid)

    def give_out(self) -> int:
        """The output, from now on the caller's to close."""
        fd, self.out = self.out, -1
        return fd

    async def check(self) -> None:
        """Wait for the end; raises Unknown with what it said if that was none."""
        status = await asyncio.shield(self._exit)
        if status:
            said = os.pread(self._stderr.fileno(), MAX_TEXT, 0).decode(errors="replace").strip()
            raise Unknown(said or f"stream processor {self._id!r} ended with {_ending(status)}")

    async def close(self) -> None:
        """Kill what still runs."""
        if self.out >= 0:
            os.close(self.out)
        if not self._exit.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, 9)
        try:
            await settled(self._exit)
        finally:
            self._stderr.close()


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"status {code}" if code >= 0 else f"signal {-code}"


@asynccontextmanager
async def processed(
    source: AsyncIterator[bytes], steps: Sequence[tuple[str, StreamProcessor]], payloads: Mapping[str, bytes]
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """The output of the last program, fed with `source`; without programs the source itself.

    The iterator raises Unknown if any of them fails. They are gone when the block is left.
    """
    if not steps:
        yield source
        return
    async with AsyncExitStack() as stack:
        stdin, feed = os.pipe()
        into = stack.enter_context(os.fdopen(feed, "wb", 0))
        feeder = asyncio.ensure_future(_feed(source, into))
        stack.push_async_callback(_cancelled, feeder)
        programs: list[_Program] = []
        for media_type, processor in steps:
            try:
                program = _Program(processor, media_type, stdin, payloads.get(processor.id))
            finally:
                os.close(stdin)
            programs.append(program)
            stack.push_async_callback(program.close)
            stdin = program.give_out()
        output = _output(stack.enter_context(os.fdopen(stdin, "rb", 0)), programs, feeder)
        stack.push_async_callback(output.aclose)
        yield output


async def _cancelled(task: asyncio.Future[None]) -> None:
    task.cancel()
    await settled(task)
    if not task.cancelled():
        task.exception()


async def _output(pipe: IO[bytes], programs: Sequence[_Program], feeder: asyncio.Future[None]) -> AsyncGenerator[bytes]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=CHUNK)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    try:
        while data := await reader.read(CHUNK):
            yield data
    finally:
        transport.close()
    for program in programs:
        await program.check()
    await feeder


async def _feed(source: AsyncIterator[bytes], pipe: IO[bytes]) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        async for data in source:
            writer.write(data)
            await writer.drain()
    except (BrokenPipeError, ConnectionResetError):
        pass  # a program may end before it has read all
    finally:
        writer.close()
