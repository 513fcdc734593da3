"""A ttrpc server with telling handlers, its clients, raw peers and made-up servers, each closed with its test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BytesValue, StringValue, UInt64Value

from moored.api.ttrpc.client import Client, ClientStream, Limits, connect
from moored.api.ttrpc.frame import (
    DATA,
    REQUEST,
    RESPONSE,
    Decoder,
    Frame,
    encode,
)
from moored.api.ttrpc.request_pb2 import Request, Response
from moored.api.ttrpc.server import CallContext, Kind, Method, Server, ServerLimits, Services
from moored.kernel.errors import (
    NotFound,
    Unknown,
)

SERVICE = "moored.test.Echo"
NS = "containerd-namespace-ttrpc"


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run to the end within 20 s, and find neither tasks nor file descriptors left."""

    async def guarded() -> None:
        before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - procfs does not block
        async with asyncio.timeout(20):
            await main
        for _ in range(3):  # transports close their sockets in a callback
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert set(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208 - likewise

    asyncio.run(guarded())


class Echo:
    """Handlers that show what they were given; `gate` holds some of them up."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.finished = asyncio.Event()
        self.contexts: list[CallContext] = []
        self.seen: list[str] = []
        self.error: Exception = Unknown("not set")

    async def unary(self, request: StringValue, context: CallContext) -> StringValue:
        self.contexts.append(context)
        self.seen.append(request.value)
        return StringValue(value=request.value)

    async def sized(self, request: UInt64Value, context: CallContext) -> BytesValue:
        return BytesValue(value=bytes(request.value))

    async def nothing(self, request: Empty, context: CallContext) -> Empty:
        return Empty()

    async def fail(self, request: Empty, context: CallContext) -> Empty:
        raise self.error

    async def wrong(self, request: Empty, context: CallContext) -> object:
        return None

    async def hang(self, request: Empty, context: CallContext) -> Empty:
        self.contexts.append(context)
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Empty()

    async def stubborn(self, request: Empty, context: CallContext) -> StringValue:
        with contextlib.suppress(asyncio.CancelledError):
            await self.gate.wait()
        return StringValue(value="done all the same")

    async def gives_up(self, request: Empty, context: CallContext) -> Empty:
        raise asyncio.CancelledError

    async def count(self, request: UInt64Value, context: CallContext) -> AsyncIterator[UInt64Value]:
        for n in range(request.value):
            yield UInt64Value(value=n)
        if self.error.args != ("not set",):
            raise self.error

    async def flood(self, request: Empty, context: CallContext) -> AsyncIterator[BytesValue]:
        self.entered.set()
        try:
            while True:
                yield BytesValue(value=bytes(64 << 10))
        finally:
            self.cancelled.set()

    async def join(self, requests: AsyncIterator[StringValue], context: CallContext) -> StringValue:
        self.entered.set()
        parts = [request.value async for request in requests]
        self.seen.extend(parts)
        self.finished.set()
        return StringValue(value=",".join(parts))

    async def gated_join(self, requests: AsyncIterator[StringValue], context: CallContext) -> StringValue:
        self.entered.set()
        await self.gate.wait()
        return await self.join(requests, context)

    async def ignore(self, requests: AsyncIterator[StringValue], context: CallContext) -> Empty:
        self.entered.set()
        await self.gate.wait()
        return Empty()

    async def chat(self, requests: AsyncIterator[StringValue], context: CallContext) -> AsyncIterator[StringValue]:
        async for request in requests:
            if request.value == "fail":
                raise NotFound("word 'fail'")
            if request.value == "stop":
                return
            yield StringValue(value=request.value.upper())

    async def listen(self, requests: AsyncIterator[StringValue], context: CallContext) -> AsyncIterator[StringValue]:
        async def upper() -> AsyncIterator[StringValue]:
            async for request in requests:
                yield StringValue(value=request.value.upper())

        return upper()

    def services(self) -> Services:
        table: dict[str, tuple[Kind, type[Message], type[Message]]] = {
            "unary": (Kind.UNARY, StringValue, StringValue),
            "sized": (Kind.UNARY, UInt64Value, BytesValue),
            "nothing": (Kind.UNARY, Empty, Empty),
            "fail": (Kind.UNARY, Empty, Empty),
            "wrong": (Kind.UNARY, Empty, Empty),
            "hang": (Kind.UNARY, Empty, Empty),
            "stubborn": (Kind.UNARY, Empty, StringValue),
            "gives_up": (Kind.UNARY, Empty, Empty),
            "count": (Kind.SERVER_STREAM, UInt64Value, UInt64Value),
            "flood": (Kind.SERVER_STREAM, Empty, BytesValue),
            "join": (Kind.CLIENT_STREAM, StringValue, StringValue),
            "gated_join": (Kind.CLIENT_STREAM, StringValue, StringValue),
            "ignore": (Kind.CLIENT_STREAM, StringValue, Empty),
            "chat": (Kind.BIDI, StringValue, StringValue),
            "listen": (Kind.BIDI, StringValue, StringValue),
        }
        services = Services()
        services.register(SERVICE, {name: Method(*row, getattr(self, name)) for name, row in table.items()})
        return services


class Raw:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()

    async def send(self, *frames: Frame | bytes) -> None:
        self.writer.write(b"".join(f if isinstance(f, bytes) else encode(f) for f in frames))
        await self.writer.drain()

    async def recv(self) -> Frame:
        while True:
            for event in self.decoder:
                assert isinstance(event, Frame)
                return event
            data = await self.reader.read(1 << 16)
            if not data:
                raise EOFError
            self.decoder.feed(data)

    async def status(self, stream_id: int) -> tuple[int, str]:
        frame = await self.recv()
        assert (frame.stream_id, frame.kind, frame.flags) == (stream_id, RESPONSE, 0)
        status = Response.FromString(frame.data).status
        return status.code, status.message


class World:
    """One server, and clients of it that are closed with it."""

    def __init__(self, server: Server, echo: Echo, path: str, stack: contextlib.AsyncExitStack) -> None:
        self.server, self.echo, self.path, self._stack = server, echo, path, stack

    async def client(self, **limits: Any) -> Client:
        return await self._stack.enter_async_context(await connect(self.path, limits=Limits(**limits)))

    async def raw(self) -> Raw:
        raw = Raw(*await asyncio.open_unix_connection(self.path))

        async def close() -> None:
            raw.writer.close()
            with contextlib.suppress(OSError):
                await raw.writer.wait_closed()

        self._stack.push_async_callback(close)
        return raw


@contextlib.asynccontextmanager
async def world(*, require_same_user: bool = True, **limits: Any) -> AsyncIterator[World]:
    with tempfile.TemporaryDirectory(prefix="ttrpc-") as folder:
        path = f"{folder}/s.sock"
        echo = Echo()
        server = Server(echo.services(), limits=ServerLimits(**limits), require_same_user=require_same_user)
        async with server, contextlib.AsyncExitStack() as stack:
            await server.listen(path)
            yield World(server, echo, path, stack)


def request(stream_id: int, method: str, message: Message | None = None, flags: int = 0, **fields: Any) -> Frame:
    payload = b"" if message is None else message.SerializeToString()
    fields = {"service": SERVICE, "method": method, "payload": payload} | fields
    return Frame(stream_id, REQUEST, flags, Request(**fields).SerializeToString())


def text(value: str) -> StringValue:
    return StringValue(value=value)


def data(stream_id: int, value: str, flags: int = 0) -> Frame:
    return Frame(stream_id, DATA, flags, text(value).SerializeToString())


async def echo(client: Client, value: str = "still here") -> None:
    assert (await client.unary(SERVICE, "unary", text(value), StringValue)).value == value


async def until(true: Callable[[], bool]) -> None:
    """Give the loop turns until it is so; `run` ends a wait without end."""
    while not true():
        await asyncio.sleep(0)


async def stalled(w: World) -> None:
    """Many round trips on another connection: what was to happen meanwhile has happened."""
    other = await w.client()
    for _ in range(20):
        await other.unary(SERVICE, "nothing", Empty(), Empty)


async def open_stream(
    client: Client, method: str, kind: Kind, message: Message | None = None, response: type[Message] = UInt64Value
) -> ClientStream[Any]:
    return await client.stream(SERVICE, method, kind, response, message)


@contextlib.asynccontextmanager
async def answering(*frames: Frame | bytes) -> AsyncIterator[Client]:
    """A client whose server answers the first request with these bytes, and then closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"".join(f if isinstance(f, bytes) else encode(f) for f in frames))
        await writer.drain()
        await reader.read()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="ttrpc-") as folder:
        server = await asyncio.start_unix_server(serve, f"{folder}/s")
        client = await connect(f"{folder}/s")
        try:
            yield client
        finally:
            await client.close()
            server.close()
            await server.wait_closed()
            await until(lambda: len(asyncio.all_tasks()) == 1)
