"""A gRPC client that costs little beside what it measures: requests are bytes made beforehand, answers are bytes too.

Each client is a generator on a link of its own; it yields what it waits for and is resumed with the answer:

    def client(link):
        answer = yield link.unary("/pkg.Service/Method", request)          # until the call has ended
        stream = link.open("/pkg.Service/Chat")
        answer = yield stream.send(request)                                # until the next message has come

`run` drives many of them on one thread. A call without any answering message is an error; its headers, the only place
that says why, are compressed and shown as they came.
"""

from __future__ import annotations

import selectors
import socket
import struct
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from moored.api import http2 as wire

REFILL: Final = 1 << 28
READ_BYTES: Final = 1 << 20
STALLED_SECONDS: Final = 120.0


class CallFailed(Exception):
    """A call ended without an answer."""


@dataclass(eq=False, slots=True)
class Stream:
    """One call."""

    link: Link
    number: int
    window: int
    whole: bool
    """Whether its client waits for the end, or for the next message."""
    owed: int = 0
    """Messages sent and not answered."""
    received: bytearray = field(default_factory=bytearray)
    headers: list[bytes] = field(default_factory=list)

    def send(self, message: bytes, *, last: bool = False) -> Stream:
        """Send a message; to be yielded, which gives the answer to it."""
        self.link.send(self, message, last=last)
        return self


Client: TypeAlias = Generator[Stream, bytes, None]


class Link:
    """One connection to a unix socket; one call at a time."""

    def __init__(self, address: Path | str, metadata: Mapping[str, str]) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(address))
        self.waiting: Stream | None = None
        self._open: Stream | None = None
        self._metadata = dict(metadata)
        self._blocks: dict[str, bytes] = {}
        self._next = 1
        self._frame_size = 16384
        self._window = wire.FIRST_WINDOW
        self._stream_window = wire.FIRST_WINDOW
        self._received = 0
        self._in = bytearray()
        self._out = bytearray(wire.PREFACE)
        # The windows of this side: what comes is never held back.
        self._out += wire.settings({wire.INITIAL_WINDOW: wire.MAX_WINDOW, wire.ENABLE_PUSH: 0})
        self._out += wire.window_update(0, wire.MAX_WINDOW - wire.FIRST_WINDOW)
        self._queue: list[tuple[Stream, memoryview, bool]] = []
        self._flush()
        self.socket.setblocking(False)

    def open(self, path: str, *, whole: bool = False) -> Stream:
        """Begin a call."""
        block = self._blocks.get(path)
        if block is None:
            block = self._blocks[path] = _block(path, self._metadata)
        stream = Stream(self, self._next, self._stream_window, whole)
        self._next += 2
        self._open = stream
        self._frame(wire.HEADERS, wire.END_HEADERS, stream.number, block)
        return stream

    def unary(self, path: str, message: bytes) -> Stream:
        """Make a call with one message; to be yielded, which gives all bytes of the answer without its frame."""
        return self.open(path, whole=True).send(message, last=True)

    def send(self, stream: Stream, message: bytes, *, last: bool) -> None:
        """Queue a message of a call, to be sent as the other side has room for it."""
        stream.owed += 1
        framed = struct.pack(">BI", 0, len(message)) + message
        self._queue.append((stream, memoryview(framed), last))
        self._pump()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    # --- input and output; used by `run` ------------------------------------------------------------------------------

    def has_output(self) -> bool:
        """Whether bytes wait for room in the socket."""
        return bool(self._out)

    def write(self) -> None:
        """Send what the socket takes."""
        while self._out:
            try:
                sent = self.socket.send(self._out)
            except BlockingIOError:
                return
            del self._out[:sent]

    def read(self) -> bytes | None:
        """Take what has come; the answer that its client waits for, if that is complete."""
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise CallFailed("the connection was closed")
        buffer = self._in
        buffer += data
        at = 0
        answer: bytes | None = None
        while len(buffer) - at >= 9:
            size = buffer[at] << 16 | buffer[at + 1] << 8 | buffer[at + 2]
            if len(buffer) - at - 9 < size:
                break
            kind, flags = buffer[at + 3], buffer[at + 4]
            number = int.from_bytes(buffer[at + 5 : at + 9], "big") & wire.MAX_WINDOW
            found = self._take(kind, flags, number, buffer[at + 9 : at + 9 + size])
            answer = found if found is not None else answer
            at += 9 + size
        del buffer[:at]
        self.write()
        return answer

    def _take(self, kind: int, flags: int, number: int, payload: bytearray) -> bytes | None:
        if kind in (wire.DATA, wire.HEADERS, wire.RESET):
            return self._taken_of_call(kind, flags, number, payload)
        if kind == wire.SETTINGS and not flags & wire.ACK:
            self._configure(payload)
            self._frame(wire.SETTINGS, wire.ACK, 0, b"")
        elif kind == wire.PING and not flags & wire.ACK:
            self._frame(wire.PING, wire.ACK, 0, bytes(payload))
        elif kind == wire.WINDOW:
            more = int.from_bytes(payload, "big")
            if number == 0:
                self._window += more
            elif self._open is not None and self._open.number == number:
                self._open.window += more
            self._pump()
        elif kind == wire.GOAWAY:
            raise CallFailed(f"the server ends the connection: {bytes(payload[8:])!r}")
        return None

    def _taken_of_call(self, kind: int, flags: int, number: int, payload: bytearray) -> bytes | None:
        stream = self.waiting
        if kind == wire.DATA:
            self._received += len(payload)
            if self._received > REFILL:
                self._frame(wire.WINDOW, 0, 0, self._received.to_bytes(4, "big"))
                self._received = 0
        if stream is None or stream.number != number:
            return None
        if kind == wire.DATA:
            stream.received += payload
            if not stream.whole and len(stream.received) >= 5:
                size = int.from_bytes(stream.received[1:5], "big")
                if len(stream.received) >= 5 + size:
                    answer = bytes(stream.received[5 : 5 + size])
                    del stream.received[: 5 + size]
                    stream.owed -= 1
                    return answer
            return None
        stream.headers.append(bytes(payload))
        if kind != wire.RESET and not flags & wire.END_STREAM:
            return None
        if not stream.whole and stream.owed <= 0:
            return None
        if len(stream.received) < 5 or not stream.whole:
            raise CallFailed(f"call ended without an answer: {stream.headers}")
        return bytes(stream.received[5:])

    def _configure(self, payload: bytearray) -> None:
        for name, value in struct.iter_unpack(">HI", payload):
            if name == 5:
                self._frame_size = value
            elif name == 4:
                if self._open is not None:
                    self._open.window += value - self._stream_window
                self._stream_window = value

    def _pump(self) -> None:
        while self._queue:
            stream, left, last = self._queue[0]
            size = min(len(left), self._window, stream.window, self._frame_size)
            if size <= 0:
                break
            whole = size == len(left)
            self._frame(wire.DATA, wire.END_STREAM if whole and last else 0, stream.number, left[:size])
            self._window -= size
            stream.window -= size
            if whole:
                self._queue.pop(0)
            else:
                self._queue[0] = (stream, left[size:], last)
        self.write()

    def _frame(self, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
        self._out += wire.head(len(payload), kind, flags, number)
        self._out += payload

    def _flush(self) -> None:
        self.socket.sendall(self._out)
        self._out.clear()


def _block(path: str, metadata: Mapping[str, str]) -> bytes:
    """The headers of a call."""
    fixed = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fixed |= {"content-type": "application/grpc", "te": "trailers", **metadata}
    return wire.literal((name, value.encode()) for name, value in fixed.items())


def run(
    address: Path | str, makers: Sequence[Callable[[Link], Client]], *, namespace: str = "bench", lease: str = ""
) -> tuple[float, list[float]]:
    """Run a client of each maker to its end, all side by side; seconds of the whole and of each wait for an answer."""
    metadata = {"containerd-namespace": namespace, **({"containerd-lease": lease} if lease else {})}
    links = [Link(address, metadata) for _ in makers]
    taken: list[float] = []
    selector = selectors.DefaultSelector()
    try:
        began = time.perf_counter()
        clients: dict[Link, tuple[Client, float]] = {}
        for link, make in zip(links, makers, strict=True):
            client = make(link)
            link.waiting = next(client)
            clients[link] = (client, began)
            selector.register(link.socket, _events(link), link)
        while clients:
            ready = selector.select(STALLED_SECONDS)
            if not ready:
                raise CallFailed(f"no answer for {STALLED_SECONDS} seconds")
            for key, events in ready:
                _serve(key.data, events, clients, taken)
                if key.data in clients:
                    if key.events != (wanted := _events(key.data)):
                        selector.modify(key.fileobj, wanted, key.data)
                else:
                    selector.unregister(key.fileobj)
        return time.perf_counter() - began, taken
    finally:
        selector.close()
        for link in links:
            link.close()


def _events(link: Link) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_output() else 0)


def _serve(link: Link, events: int, clients: dict[Link, tuple[Client, float]], taken: list[float]) -> None:
    if events & selectors.EVENT_WRITE:
        link.write()
    if not events & selectors.EVENT_READ:
        return
    answer = link.read()
    if answer is None:
        return
    client, since = clients[link]
    now = time.perf_counter()
    taken.append(now - since)
    try:
        link.waiting = client.send(answer)
    except StopIteration:
        del clients[link]
    else:
        clients[link] = (client, now)
