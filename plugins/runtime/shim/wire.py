"""ttrpc over the shim's loop: frames on a socket, a server of unary methods, and a small client.

Source: `contracts/ttrpc.md`. Messages are dataclasses of `kernel.protowire`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from moored.api.errors import from_status, to_status
from moored.kernel.errors import InvalidArgument, MooredError, ResourceExhausted, Unavailable
from moored.kernel.protowire import Kind, decode, encode, wire
from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim.loop import Loop, Task

REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

MAX_DATA: Final = 4 << 20
"""Bytes of a frame without its header."""

_HEADER: Final = struct.Struct(">IIBB")
_CHUNK: Final = 16 << 10
_MAX_UNSENT: Final = 2 * MAX_DATA
_CREDENTIALS: Final = struct.Struct("3i")
_SECOND: Final = 10**9


@dataclass(frozen=True, slots=True)
class Status:
    """`google.rpc.Status`."""

    code: int = wire(1, Kind.INT64)
    message: str = wire(2)


@dataclass(frozen=True, slots=True)
class Request:
    """`ttrpc.Request` without its metadata: a shim serves one namespace."""

    service: str = wire(1)
    method: str = wire(2)
    payload: bytes = wire(3, Kind.BYTES)
    timeout: int = wire(4, Kind.INT64)


@dataclass(frozen=True, slots=True)
class Response:
    """`ttrpc.Response`."""

    status: Status | None = wire(1, Kind.MESSAGE, Status)  # noqa: RUF009 - it gives a field, not its value
    payload: bytes = wire(2, Kind.BYTES)


class Frame(NamedTuple):
    """One frame; data is None for one that was too long and was thrown away, `size` is what it had."""

    size: int
    stream: int
    kind: int
    data: bytes | None


class Frames:
    """A connected socket as frames; sending never waits, `flushed` does. One task receives."""

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._in = bytearray()
        self._out = bytearray()
        self._writer: Task[None] | None = None
        self._broken = False

    async def receive(self) -> Frame | None:
        """Give the next frame, None once the peer is gone."""
        if not await self._fill(_HEADER.size):
            return None
        size, stream, kind, _flags = _HEADER.unpack_from(self._in)
        del self._in[: _HEADER.size]
        if size > MAX_DATA:
            return Frame(size, stream, kind, None) if await self._skip(size) else None
        if not await self._fill(size):
            return None
        data = bytes(self._in[:size])
        del self._in[:size]
        return Frame(size, stream, kind, data)

    async def _fill(self, size: int) -> bool:
        while len(self._in) < size:
            if not (piece := await self._read()):
                return False
            self._in += piece
        return True

    async def _skip(self, size: int) -> bool:
        while len(self._in) < size:
            size -= len(self._in)
            self._in.clear()
            if not await self._fill(1):
                return False
        del self._in[:size]
        return True

    async def _read(self) -> bytes:
        while True:
            try:
                return self._sock.recv(_CHUNK)
            except BlockingIOError:
                await self._loop.readable(self._sock.fileno())
            except OSError:
                return b""

    def send(self, stream: int, kind: int, data: bytes) -> None:
        """Send a frame, or what fits of it now and the rest in the background; a peer that is gone gets nothing."""
        if self._broken:
            return
        self._out += _HEADER.pack(len(data), stream, kind, 0)
        self._out += data
        if self._writer is None and not self._write():
            self._writer = self._loop.spawn(self._drain())

    def _write(self) -> bool:
        """Send what can be sent now and tell whether that was all."""
        while self._out:
            try:
                sent = self._sock.send(self._out)
            except BlockingIOError:
                return False
            except OSError:
                self._broken = True
                self._out.clear()
                return True
            del self._out[:sent]
        return True

    async def _drain(self) -> None:
        while not self._write():
            await self._loop.writable(self._sock.fileno())
        self._writer = None

    async def flushed(self) -> None:
        """Wait while more is unsent than a peer that reads would leave."""
        if len(self._out) > _MAX_UNSENT and self._writer is not None:
            await self._writer

    async def sent(self) -> None:
        """Wait until all is sent or the peer is gone."""
        if self._writer is not None:
            await self._writer

    def close(self) -> None:
        """End the connection; what is unsent is lost."""
        self._broken = True
        self._out.clear()
        if self._writer is not None:
            self._writer.cancel()
        self._sock.close()


# --- server -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Method:
    """A unary method: the class of its request, and what answers it with a message.

    One that only `waits` is cancelled when the caller is gone; all others are carried to their end.
    """

    request: type[Any]
    handler: Callable[[Any], Awaitable[Any]]
    waits: bool = False


Services = Mapping[str, Mapping[str, Method]]
"""Methods by name, by full name of the service."""


class Server:
    """Serves every connection to a listening socket until it is closed; peers must be of our own user and group."""

    def __init__(self, loop: Loop, listener: socket.socket, services: Services, connected: Callable[[], None]) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._services = services
        self._connected = connected
        self._calls: set[Task[None]] = set()

    async def run(self) -> None:
        """Accept connections, for good."""
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                await self._loop.readable(self._listener.fileno())
            except OSError as error:
                log.warning(f"connection not accepted: {error}")
                await self._loop.sleep(0.1)  # out of descriptors or memory: others may give some back
            else:
                if is_own(sock):
                    self._connected()
                    self._loop.spawn(self._serve(Frames(self._loop, sock)))
                else:
                    sock.close()

    async def idle(self) -> None:
        """Wait until no call is under way but those that only wait."""
        while self._calls:
            with suppress(BaseException):
                await next(iter(self._calls))

    async def _serve(self, frames: Frames) -> None:
        waiting: set[Task[None]] = set()
        last = 0
        try:
            while (frame := await frames.receive()) is not None:
                if fault := _fault(frame, last):
                    frames.send(frame.stream, RESPONSE, encode(Response(Status(*to_status(fault)))))
                elif frame.kind == REQUEST:
                    last = frame.stream
                    self._begin(frames, frame, waiting)
                await frames.flushed()
        finally:
            for task in waiting:
                task.cancel()
            frames.close()

    def _begin(self, frames: Frames, frame: Frame, waiting: set[Task[None]]) -> None:
        try:
            request = decode(Request, frame.data or b"")
        except ValueError as error:
            fault = InvalidArgument(f"unmarshal request error: {error}", bare=True)
            frames.send(frame.stream, RESPONSE, encode(Response(Status(*to_status(fault)))))
            return
        service = self._services.get(request.service)
        method = service.get(request.method) if service is not None else None
        if method is None:
            text = f"service {request.service}" if service is None else f"method {request.method}"
            frames.send(frame.stream, RESPONSE, encode(Response(Status(12, text))))
            return
        task = self._loop.spawn(self._answer(frames, frame.stream, method, request))
        group = waiting if method.waits else self._calls
        group.add(task)
        task.add_callback(lambda: group.discard(task))

    async def _answer(self, frames: Frames, stream: int, method: Method, request: Request) -> None:
        try:
            message = decode(method.request, request.payload)
        except (ValueError, UnicodeDecodeError) as error:
            frames.send(stream, RESPONSE, encode(Response(Status(13, f"ttrpc: error unmarshalling payload: {error}"))))
            return
        # Past the caller's deadline the work goes on: half a container would be worse than an answer too late.
        work = self._loop.spawn(_outcome(method, message))
        try:
            if request.timeout > 0:
                response = await self._loop.within(request.timeout / _SECOND, work)
            else:
                response = await work
        except TimeoutError:
            frames.send(stream, RESPONSE, encode(Response(Status(4, "context deadline exceeded"))))
            if not method.waits:
                await work
        else:
            frames.send(stream, RESPONSE, encode(response))
        finally:
            if method.waits:
                work.cancel()


async def _outcome(method: Method, message: Any) -> Response:
    try:
        payload = encode(await method.handler(message))
    except MooredError as error:
        return Response(Status(*to_status(error)))
    except Exception as error:  # noqa: BLE001  # a request ends here
        log.failure(f"{type(message).__name__} failed", error)
        return Response(Status(*to_status(error)))
    if len(payload) > MAX_DATA - 16:
        fault = ResourceExhausted(f"message length {len(payload)} exceed maximum message size of {MAX_DATA}", bare=True)
        return Response(Status(*to_status(fault)))
    return Response(payload=payload)


def _fault(frame: Frame, last: int) -> MooredError | None:
    """Say what is wrong with a frame that a client sent."""
    if frame.stream % 2 == 0:
        return InvalidArgument("StreamID must be odd for client initiated streams", bare=True)
    if frame.kind == DATA:
        return InvalidArgument("StreamID is no longer active", bare=True)
    if frame.data is None:
        text = f"message length {frame.size} exceed maximum message size of {MAX_DATA}"
        return ResourceExhausted(text, bare=True)
    if frame.kind == REQUEST and frame.stream <= last:
        return InvalidArgument("StreamID cannot be re-used and must increment", bare=True)
    return None


def is_own(sock: socket.socket) -> bool:
    """Whether the peer is of our own user and group."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, gid = _CREDENTIALS.unpack(raw)
    return (uid, gid) == (os.geteuid(), os.getegid())


# --- client -----------------------------------------------------------------------------------------------------------


class Client:
    """One connection to a ttrpc server, for one call at a time."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._stream = -1

    @classmethod
    async def connect(cls, loop: Loop, path: str) -> Client:
        """Connect to a socket by its path. Raises OSError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(path)
        except BaseException:  # a full backlog is an error too, a socket of the file system has no connect under way
            sock.close()
            raise
        return cls(Frames(loop, sock))

    async def call(self, service: str, method: str, message: Any, answer: type[Any] | None = None) -> Any:
        """Call and give the answer, None if its class is not told. Raises what the server says; Unavailable if gone."""
        self._stream += 2
        request = Request(service, method, encode(message))
        self._frames.send(self._stream, REQUEST, encode(request))
        while (frame := await self._frames.receive()) is not None:
            if frame.stream != self._stream or frame.kind != RESPONSE:
                continue  # the late answer to a call given up
            response = decode(Response, frame.data or b"")
            if response.status is not None and response.status.code:
                raise from_status(response.status.code, response.status.message)
            return None if answer is None else decode(answer, response.payload)
        raise Unavailable("connection closed by the server", bare=True)

    def close(self) -> None:
        """Hang up."""
        self._frames.close()
