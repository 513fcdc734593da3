"""Bytes over a stream, as much at a time as the receiver has asked for. Source: semantics 3.9, byte streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from moored.api.types.transfer import streaming_pb2 as pb
from moored.kernel.errors import DeadlineExceeded, InvalidArgument, Unavailable
from moored.kernel.payloads import Packed
from moored.kernel.ports.streaming import Stream

MAX_DATA: Final = 32 << 10
"""Bytes of one message that is sent."""
WINDOW: Final = 1 << 20
"""Bytes that a client may have on the way to us."""
STALL_SECONDS: Final = 600.0
"""How long a client may take no bytes before an export ends."""

M = TypeVar("M", bound=Message)

_DATA: Final = pb.Data.DESCRIPTOR.full_name
_UPDATE: Final = pb.WindowUpdate.DESCRIPTOR.full_name


def packed(message: Message) -> Packed:
    """Give a message as streams carry it."""
    return Packed(message.DESCRIPTOR.full_name, message.SerializeToString())


async def received(stream: Stream) -> AsyncGenerator[bytes]:
    """Give the bytes that a client sends until it ends them; closes the stream. Messages of other types are skipped."""
    window = 0
    try:
        while True:
            if window <= WINDOW // 2:
                try:
                    await stream.send(packed(pb.WindowUpdate(update=WINDOW - window)))
                    window = WINDOW
                except Unavailable:
                    pass  # it may have said all before it left
            message = await stream.receive()
            if message is None:
                return
            if message.type_url == _DATA:
                data = _parsed(pb.Data(), message).data
                window = max(window - len(data), 0)
                yield data
    finally:
        await stream.close()


class Sender:
    """Sends bytes to a client as it has room for them."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._room = 0
        self._news = asyncio.Event()
        self._left = False
        self._reading = asyncio.create_task(self._read(), name="window updates")

    async def _read(self) -> None:
        while (message := await self._stream.receive()) is not None:
            if message.type_url == _UPDATE:
                self._room += max(_parsed(pb.WindowUpdate(), message).update, 0)
                self._news.set()
        self._left = True
        self._news.set()

    async def write(self, data: bytes) -> None:
        """Send all of the data. Raises Unavailable when the client has left, DeadlineExceeded when it takes nothing."""
        place = 0
        while place < len(data):
            await self._wait_for_room()
            piece = data[place : place + min(MAX_DATA, self._room)]
            self._room -= len(piece)
            place += len(piece)
            await self._stream.send(packed(pb.Data(data=piece)))

    async def _wait_for_room(self) -> None:
        while not self._room:
            if self._left:
                raise Unavailable("the client has left the stream")
            self._news.clear()
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"the client took no bytes for {STALL_SECONDS:g}s") from None

    async def close(self) -> None:
        """End the stream: the client has all."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await self._stream.close()


def _parsed(target: M, message: Packed) -> M:
    try:
        target.ParseFromString(message.value)
    except DecodeError as error:
        raise InvalidArgument(f"{message.type_url} in a stream cannot be read: {error}") from error
    return target
