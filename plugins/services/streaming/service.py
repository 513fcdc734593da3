"""The streaming service on the wire. Source: semantics 3.9."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from moored.api.services.streaming.v1 import streaming_pb2 as pb
from moored.api.services.streaming.v1 import streaming_pb2_grpc as rpc
from moored.kernel.errors import InvalidArgument, ResourceExhausted, Unavailable, Unknown
from moored.kernel.payloads import Packed
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.ports.streaming import StreamManager

MAX_MESSAGE: Final = 128 << 10
"""Bytes of one message that a client sends; those of byte streams are at most 32 KiB."""
QUEUE: Final = 64
"""Messages that wait for the consumer; when there are as many, the client's further ones wait on the wire."""
_EMPTY: Final = AnyMessage(type_url="google.protobuf.Empty")


class StreamingService(rpc.StreamingServicer):
    """containerd.services.streaming.v1.Streaming."""

    def __init__(self, manager: StreamManager) -> None:
        self._manager = manager

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_StreamingServicer_to_server(self, cast(Any, server))

    async def Stream(self, requests: AsyncIterator[AnyMessage], context: Any) -> None:  # type: ignore[override] # noqa: N802
        """Keep one stream until its consumer closes it or the client is gone."""
        first = await anext(requests, None)
        if first is None:
            raise InvalidArgument("the first message of a stream must name it")
        name = _named(first)
        stream = ClientStream(context.write)
        managed = await self._manager.register(name, stream)
        reading = asyncio.create_task(stream.read(requests), name="stream reader")
        try:
            await context.write(_EMPTY)
            await stream.closed.wait()
        finally:
            # The generator of requests must have ended before the call does.
            reading.cancel()
            await asyncio.wait([reading])
            stream.end()
            self._manager.abandoned(name, managed)
        if (fault := stream.fault) is not None:
            raise fault


class ClientStream:
    """The Stream of one call."""

    def __init__(self, write: Callable[[AnyMessage], Awaitable[None]]) -> None:
        self.closed = asyncio.Event()
        self.fault: ResourceExhausted | None = None
        self._write = write
        self._turn = asyncio.Lock()
        self._messages: deque[Packed] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    async def read(self, requests: AsyncIterator[AnyMessage]) -> None:
        """Take the client's messages in until it has sent the last."""
        async for message in requests:
            if len(message.value) > MAX_MESSAGE:
                size = len(message.value)
                self.fault = ResourceExhausted(f"message of {size} bytes in a stream, at most {MAX_MESSAGE} are taken")
                self.closed.set()
                return
            while len(self._messages) >= QUEUE:
                self._room.clear()
                await self._room.wait()
            self._messages.append(Packed(message.type_url.rpartition("/")[2], message.value))
            self._arrived.set()
        self._no_more()

    def _no_more(self) -> None:
        self._ended = True
        self._arrived.set()

    def end(self) -> None:
        """Note that the call is over: what was received can still be taken, nothing can be sent."""
        self.closed.set()
        self._no_more()

    async def send(self, message: Packed) -> None:
        """See Stream."""
        async with self._turn:
            if self.closed.is_set():
                raise Unavailable("the client has left the stream")
            try:
                await self._write(AnyMessage(type_url=message.type_url, value=message.value))
            except Exception as error:
                # The transport has no one class for what it raises when the client is gone.
                raise Unavailable(f"the client of the stream cannot be sent to: {error}") from error

    async def receive(self) -> Packed | None:
        """See Stream."""
        while not self._messages:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        self._room.set()
        return self._messages.popleft()

    async def close(self) -> None:
        """See Stream."""
        self.closed.set()


def _named(message: AnyMessage) -> str:
    if message.type_url.rpartition("/")[2] != pb.StreamInit.DESCRIPTOR.full_name:
        raise Unknown(f"can't unmarshal type {message.type_url!r} to a StreamInit")
    init = pb.StreamInit()
    try:
        init.ParseFromString(message.value)
    except DecodeError as error:
        raise InvalidArgument(f"StreamInit cannot be read: {error}") from error
    return init.id
