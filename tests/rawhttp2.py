"""A client of HTTP/2 that does what it is told, right or wrong, and the listener with the probe for it to meet."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from google.protobuf.wrappers_pb2 import StringValue as Text
from hpack import Decoder, Encoder

from harness import GRPC_SERVER, Probe, Running, plug, running
from moored.kernel.ports.daemon import Outcome
from moored.kernel.ports.services import GRPC
from moored.plugins.server.grpc.call import Call
from moored.plugins.server.grpc.connection import Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME_SIZE, MAX_HEADER_LIST = range(1, 7)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = range(5, 10)
CALM = 11
WAIT = 20.0
"""Seconds for anything that must come."""


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame, however wrong."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """A frame of settings."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def more(stream: int, size: int) -> bytes:
    """A window update."""
    return frame(WINDOW, 0, stream, struct.pack(">I", size))


def message(data: bytes | str, *, packed: bool = False) -> bytes:
    """A message of gRPC: bytes as they are, text as the probe understands it."""
    raw = Text(value=data).SerializeToString() if isinstance(data, str) else data
    return struct.pack(">BI", packed, len(raw)) + raw


def request(method: str = "Echo", *extra: tuple[str, str], **instead: str | None) -> list[tuple[str, str]]:
    """The headers of a call to the probe, some of them with another value, or (None) left out."""
    usual: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method if "/" in method else f"/test.Probe/{method}",
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return [*((name, value) for name, value in (usual | instead).items() if value is not None), *extra]


def plain(headers: Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as a block that leaves no trace in any table."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in headers)


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    rest = len(data) - 127
    return (bytes((len(data),)) if rest < 0 else bytes((127, rest & 127 | 128, rest >> 7))) + data


@dataclass
class Answer:
    """What came on one stream."""

    headers: list[dict[str, str]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> tuple[int, str]:
        """The code and text at the end."""
        return int(self.headers[-1]["grpc-status"]), self.headers[-1].get("grpc-message", "")

    @property
    def texts(self) -> list[str]:
        """The messages, which must be whole."""
        found, rest = [], self.data
        while rest:
            packed, size = struct.unpack_from(">BI", rest)
            assert not packed
            assert len(rest) >= 5 + size
            found.append(Text.FromString(rest[5 : 5 + size]).value)
            rest = rest[5 + size :]
        return found


class Session:
    """One connection. What comes is kept by stream; nothing is acknowledged or given back by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.encoder, self.decoder = Encoder(), Decoder()
        self.answers: dict[int, Answer] = {}
        self.others: list[tuple[int, int, int, bytes]] = []
        """Frames of no stream, and window updates."""
        self.goaway: tuple[int, int, str] | None = None
        """Last stream, error code, text."""

    def send(self, *data: bytes) -> None:
        """Send bytes as soon as there is room."""
        self.writer.write(b"".join(data))

    def block(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """Headers compressed as this connection does."""
        return self.encoder.encode(list(headers))

    def open(self, stream: int, method: str = "Echo", *extra: tuple[str, str], flags: int = 0) -> None:
        """Begin a call that has still something to say."""
        self.send(frame(HEADERS, END_HEADERS | flags, stream, self.block(request(method, *extra))))

    def call(self, stream: int, method: str = "Echo", text: str = "x", *extra: tuple[str, str]) -> None:
        """Begin and end a request of one message."""
        self.open(stream, method, *extra)
        self.send(frame(DATA, END_STREAM, stream, message(text)))

    async def next(self) -> bool:
        """Take one frame; False at the end of the connection."""
        try:
            head = await asyncio.wait_for(self.reader.readexactly(9), WAIT)
            payload = await asyncio.wait_for(self.reader.readexactly(int.from_bytes(head[:3])), WAIT)
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        self._take(head[3], head[4], int.from_bytes(head[5:]), payload)
        return True

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        assert len(payload) <= 16384
        answer = self.answers.setdefault(stream, Answer()) if stream else Answer()
        if kind == HEADERS:
            assert flags & END_HEADERS
            answer.headers.append(dict(self.decoder.decode(payload)))
        elif kind == DATA:
            answer.data += payload
        elif kind == RESET:
            answer.reset = int.from_bytes(payload)
        elif kind == GOAWAY:
            self.goaway = (*struct.unpack_from(">II", payload), payload[8:].decode())
        else:
            self.others.append((kind, flags, stream, payload))
        answer.ended = answer.ended or bool(kind in (HEADERS, DATA) and flags & END_STREAM)

    async def until(self, stream: int) -> Answer:
        """The whole answer on a stream, up to its end or reset."""
        while not ((answer := self.answers.get(stream)) and (answer.ended or answer.reset is not None)):
            assert await self.next(), f"stream {stream} never ended: {self.answers.get(stream)}, {self.goaway}"
        return answer

    async def received(self, stream: int, size: int) -> Answer:
        """The answer of a stream once it has so many bytes of data."""
        while not ((answer := self.answers.get(stream)) and len(answer.data) >= size):
            assert await self.next(), f"stream {stream} stopped: {self.goaway}"
        return answer

    async def settled(self) -> None:
        """Come back when the server has answered everything that was sent, and all that follows of that at once."""
        for _ in range(2):
            mark = struct.pack(">Q", id(self) & 0xFFFFFFFF)
            self.others = [one for one in self.others if one[0] != PING]
            self.send(frame(PING, payload=mark))
            while (PING, ACK, 0, mark) not in self.others:
                assert await self.next(), f"closed instead of answering: {self.goaway}"

    async def broken(self) -> int:
        """The error code with which the server ends the connection."""
        while await self.next():
            pass
        assert self.goaway is not None, "closed without a word"
        return self.goaway[1]

    async def works(self, stream: int) -> None:
        """Check that the connection still serves calls."""
        self.call(stream, "Echo", f"still {stream}")
        answer = await self.until(stream)
        assert (answer.texts, answer.status) == ([f"still {stream}"], (0, ""))

    def updates(self, stream: int) -> int:
        """The bytes that the server has given back of a window."""
        return sum(int.from_bytes(one[3]) for one in self.others if one[0] == WINDOW and one[2] == stream)


@asynccontextmanager
async def listening(folder: Path, service: Any = None, **config: Any) -> AsyncGenerator[tuple[Running, Probe]]:
    """The unix listener with the probe, and with another service, at m.sock in the folder."""
    probe = Probe()
    plugins = [plug(GRPC, "probe", probe), *([plug(GRPC, "another", service)] if service else [])]
    configs = {GRPC_SERVER: {"address": f"{folder}/m.sock", **config}}
    async with running(folder, GRPC_SERVER, *plugins, configs=configs) as world:
        assert world.record(GRPC_SERVER).outcome is Outcome.OK, world.record(GRPC_SERVER).reason
        yield world, probe


@asynccontextmanager
async def silent(folder: Path) -> AsyncGenerator[Session]:
    """A connection on which nothing was said yet."""
    reader, writer = await asyncio.open_unix_connection(folder / "m.sock")
    try:
        yield Session(reader, writer)
    finally:
        writer.close()
        with_error = await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        assert all(isinstance(error, ConnectionError | None) for error in with_error)


@asynccontextmanager
async def greeted(folder: Path, *pairs: tuple[int, int]) -> AsyncGenerator[Session]:
    """A connection after the preface and these settings."""
    async with silent(folder) as session:
        session.send(PREFACE, settings(*pairs))
        yield session


@asynccontextmanager
async def session(
    folder: Path, *pairs: tuple[int, int], service: Any = None, **config: Any
) -> AsyncGenerator[tuple[Session, Probe]]:
    """The listener, and a connection to it that sent these settings."""
    async with listening(folder, service, **config) as (_, probe), greeted(folder, *pairs) as found:
        yield found, probe


async def flooded(folder: Path, data: bytes) -> Session:
    """What a client has got that says all this and reads nothing before the server sends it away."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await loop.sock_connect(client, str(folder / "m.sock"))
        saying = loop.create_task(loop.sock_sendall(client, PREFACE + settings() + data))
        # It stays while it has something left to say, and is gone before anybody looks otherwise.
        await eventually(lambda: saying.done() or any(one._closing for one in connections()))
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
        found = Session(asyncio.StreamReader(), cast(Any, None))
        with suppress(ConnectionResetError):
            while part := await asyncio.wait_for(loop.sock_recv(client, 1 << 20), WAIT):
                found.reader.feed_data(part)
    found.reader.feed_eof()
    return found


def calls_alive() -> int:
    """How many calls the server still knows, or forgot to forget; cycles are collected first."""
    gc.collect()
    return sum(type(one) is Call for one in gc.get_objects())


def connections() -> list[Connection]:
    """The server's side of every connection."""
    return [one for one in gc.get_objects() if type(one) is Connection]


def handlers() -> int:
    """How many handlers of calls run on this loop."""
    return sum("Calls.serve" in repr(task.get_coro()) for task in asyncio.all_tasks())


async def eventually(holds: Any) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(WAIT):
        while not holds():
            await asyncio.sleep(0.001)
