"""Streams of the daemon's streaming service: progress, questions for credentials, and bytes.

A stream is opened under a new name and then named in another call. Bytes go only as far as their receiver has room:
it says how much more it takes. Source: contracts/semantics.md 3.9.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias

from google.protobuf.any_pb2 import Any

from moored.api.client.connection import Calls, Stream
from moored.api.client.wire import descriptor_of
from moored.api.convert import pack, type_name, unpack
from moored.api.registry.credentials import Credentials, Lookup
from moored.api.services.streaming.v1 import streaming_pb2, streaming_pb2_grpc
from moored.api.types.transfer import progress_pb2, registry_pb2
from moored.api.types.transfer import streaming_pb2 as bytes_pb2
from moored.kernel.errors import DataLoss, MooredError
from moored.kernel.ports.transfer import Progress, Report

MAX_DATA: Final = 32 << 10
"""Bytes of one message that is sent."""
WINDOW: Final = 1 << 30
"""Bytes that the daemon may send before it needs another word; HTTP/2's own window bounds what is on the way.

It is that large since grpc loses what has come of a call that is over for the other side when it is written to.
"""

TAR_END: Final = bytes(1024)
SETTLE_SECONDS: Final = 0.1
STALL_SECONDS: Final = 10.0
PROGRESS_SECONDS: Final = 1.0

Messages: TypeAlias = Stream[Any, Any]


@asynccontextmanager
async def opened(calls: Calls, kind: str) -> AsyncGenerator[tuple[str, Messages]]:
    """Open a stream for the block; gives its name and the stream."""
    name = f"{kind}-{secrets.token_hex(12)}"
    stream = calls.bidi_stream(streaming_pb2_grpc.StreamingStub(calls.channel).Stream)
    try:
        await stream.ask(pack(streaming_pb2.StreamInit(id=name)))
        yield name, stream
    finally:
        stream.cancel()


async def report_progress(stream: Messages, report: Report, answered: asyncio.Event) -> None:
    """Tell what the daemon says until it has said all; answered: the call that it belongs to has ended."""
    while (message := await _next(stream, answered, PROGRESS_SECONDS)) is not None:
        news = unpack(message, progress_pb2.Progress)
        report(
            Progress(
                event=news.event,
                name=news.name,
                parents=tuple(news.parents),
                progress=news.progress,
                total=news.total,
                descriptor=descriptor_of(news.desc) if news.HasField("desc") else None,
            )
        )


async def answer_questions(stream: Messages, lookup: Lookup) -> None:
    """Say who one is to the hosts that the daemon names."""
    while (message := await _received(stream)) is not None:
        question = unpack(message, registry_pb2.AuthRequest)
        await stream.send(pack(_answer(await lookup(question.host))))


def _answer(found: Credentials | None) -> registry_pb2.AuthResponse:
    if not found:
        return registry_pb2.AuthResponse(authType=registry_pb2.NONE)
    if found.header:
        return registry_pb2.AuthResponse(authType=registry_pb2.HEADER, secret=found.header)
    kind = registry_pb2.CREDENTIALS if found.user else registry_pb2.REFRESH
    return registry_pb2.AuthResponse(authType=kind, username=found.user, secret=found.secret)


async def _received(stream: Messages) -> Any | None:
    """Give the next message; a stream that breaks has none, as the call that uses it tells why."""
    try:
        return await stream.receive()
    except MooredError:
        return None


async def send_bytes(stream: Messages, source: AsyncIterable[bytes]) -> None:
    """Send all bytes as there is room for them, and say that they were all."""
    room = _Room()
    updates = asyncio.create_task(_updates(stream, room))
    try:
        async for data in source:
            view = memoryview(data)
            while view:
                size = await room.take(min(len(view), MAX_DATA))
                await stream.send(pack(bytes_pb2.Data(data=bytes(view[:size]))))
                view = view[size:]
        await stream.done()
        # Not cancelled here: that would end the call, with bytes of it still on their way.
        await updates
    finally:
        # Not awaited: an error of the source is to be known before the daemon's, which only misses the rest.
        updates.cancel()


class _Room:
    """How many bytes the other side still takes."""

    def __init__(self) -> None:
        self._bytes = 0
        self._more = asyncio.Condition()

    async def add(self, size: int) -> None:
        async with self._more:
            self._bytes += size
            self._more.notify_all()

    async def take(self, wanted: int) -> int:
        """Wait for room and give how much of it is ours now."""
        async with self._more:
            await self._more.wait_for(lambda: self._bytes > 0)
            size = min(wanted, self._bytes)
            self._bytes -= size
            return size


async def _updates(stream: Messages, room: _Room) -> None:
    while (message := await _received(stream)) is not None:
        if type_name(message) == bytes_pb2.WindowUpdate.DESCRIPTOR.full_name:
            await room.add(max(unpack(message, bytes_pb2.WindowUpdate).update, 0))


async def receive_archive(stream: Messages, write: Callable[[bytes], Awaitable[None]], answered: asyncio.Event) -> None:
    """Write all bytes of an archive that come until the daemon has sent all.

    containerd never ends the stream, so that a tar's end counts too, once the call that it belongs to was answered and
    no more comes. Raises DataLoss for an archive that just stops.
    """
    window, tail = 0, b""
    while True:
        if window < WINDOW // 2:
            await stream.send(pack(bytes_pb2.WindowUpdate(update=WINDOW)))
            window += WINDOW
        idle = SETTLE_SECONDS if tail == TAR_END else STALL_SECONDS
        message = await _next(stream, answered, idle)
        if message is None:
            break
        if type_name(message) == bytes_pb2.Data.DESCRIPTOR.full_name:
            data = unpack(message, bytes_pb2.Data).data
            window -= len(data)
            tail = (tail + data)[-len(TAR_END) :]
            await write(data)
    if tail != TAR_END:
        # The call that it belongs to may be about to tell why, which ends this.
        with suppress(TimeoutError):
            async with asyncio.timeout(STALL_SECONDS):
                await answered.wait()
        raise DataLoss("the daemon's archive stops before its end")


async def _next(stream: Messages, answered: asyncio.Event, idle: float) -> Any | None:
    """Give the next message, None at the end, or when nothing has come for `idle` seconds after the answer."""
    coming = asyncio.ensure_future(_received(stream))
    over = asyncio.ensure_future(answered.wait())
    try:
        await asyncio.wait([coming, over], return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            await asyncio.wait([coming], timeout=idle)
        return coming.result() if coming.done() else None
    finally:
        over.cancel()
        if not coming.done():  # ends the call, of which nothing more is wanted
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
