"""The shim's ttrpc server answers good and bad frames as containerd's does, and ends only what may be ended."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.errors import NotFound
from moored.kernel.protowire import decode, encode
from moored.plugins.runtime.shim import wire
from moored.plugins.runtime.shim.loop import Loop, Stopped
from moored.plugins.runtime.shim.messages import Empty, PidResponse, ProcessRequest

SERVICE = "test.Service"


class Handlers:
    """Handlers that show what happens to them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.gate = loop.future()
        self.ended: list[str] = []

    async def echo(self, request: ProcessRequest) -> PidResponse:
        return PidResponse(int(request.id))

    async def missing(self, request: ProcessRequest) -> Empty:
        raise NotFound(f"process {request.id}")

    async def broken(self, request: ProcessRequest) -> Empty:
        raise KeyError("a fault")

    async def slow(self, request: ProcessRequest) -> Empty:
        try:
            await self.gate
            self.ended.append(f"{request.id} done")
        except Stopped:
            self.ended.append(f"{request.id} stopped")
            raise
        return Empty()

    def methods(self) -> dict[str, wire.Method]:
        return {
            "Echo": wire.Method(ProcessRequest, self.echo),
            "Missing": wire.Method(ProcessRequest, self.missing),
            "Broken": wire.Method(ProcessRequest, self.broken),
            "Slow": wire.Method(ProcessRequest, self.slow),
            "Wait": wire.Method(ProcessRequest, self.slow, waits=True),
        }


class Peer:
    """A raw client."""

    def __init__(self, loop: Loop, path: str) -> None:
        self.loop = loop
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)

    async def send(self, stream: int, data: bytes, kind: int = 1, size: int | None = None) -> None:
        rest = struct.pack(">IIBB", len(data) if size is None else size, stream, kind, 0) + data
        while rest:
            with suppress(BlockingIOError):
                rest = rest[self.sock.send(rest) :]
            if rest:
                await self.loop.writable(self.sock.fileno())

    async def call(
        self, stream: int, method: str, id_: str = "1", nanoseconds: int = 0, service: str = SERVICE
    ) -> None:
        await self.send(stream, encode(wire.Request(service, method, encode(ProcessRequest(id_)), nanoseconds)))

    async def answer(self) -> tuple[int, int, str, bytes]:
        """Stream, code, text, payload."""
        header = await self._read(10)
        size, stream, kind, _ = struct.unpack(">IIBB", header)
        assert kind == 2
        found = decode(wire.Response, await self._read(size) if size else b"")
        status = found.status or wire.Status()
        return stream, status.code, status.message, found.payload

    async def _read(self, size: int) -> bytes:
        await self.loop.within(5, self.loop.readable(self.sock.fileno()))
        data = self.sock.recv(size, socket.MSG_WAITALL)
        assert len(data) == size
        return data


Body = Callable[[Peer, Handlers], Coroutine[Any, Any, None]]


@pytest.fixture
def serve(tmp_path: Path) -> Generator[Callable[[Body], None]]:
    loop = Loop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def run(body: Body) -> None:
        async def main() -> None:
            handlers = Handlers(loop)
            server = wire.Server(loop, listener, {SERVICE: handlers.methods()}, lambda: None)
            loop.spawn(server.run())
            peer = Peer(loop, str(tmp_path / "s"))
            with peer.sock:
                await body(peer, handlers)

        loop.run(main())

    with listener:
        yield run
    loop.close()


def test_calls_are_answered_with_payload_or_status(serve: Callable[[Body], None]) -> None:
    async def body(peer: Peer, handlers: Handlers) -> None:
        await peer.call(1, "Echo", "7")
        assert await peer.answer() == (1, 0, "", encode(PidResponse(7)))
        await peer.call(3, "Missing", "x")
        assert await peer.answer() == (3, 5, "process x: not found", b"")
        await peer.call(5, "Broken")
        assert (await peer.answer())[:2] == (5, 2)
        await peer.call(7, "Nothing")
        assert await peer.answer() == (7, 12, "method Nothing", b"")
        await peer.call(9, "Echo", service="other.Service")
        assert await peer.answer() == (9, 12, "service other.Service", b"")

    serve(body)


def test_bad_frames_are_told_and_the_connection_goes_on(serve: Callable[[Body], None]) -> None:
    async def body(peer: Peer, handlers: Handlers) -> None:
        await peer.send(2, b"")
        assert await peer.answer() == (2, 3, "StreamID must be odd for client initiated streams", b"")
        await peer.send(1, b"x", kind=3)
        assert await peer.answer() == (1, 3, "StreamID is no longer active", b"")
        await peer.send(1, b"", kind=9)  # of a kind that is not known: no answer
        await peer.call(5, "Echo")
        assert (await peer.answer())[:2] == (5, 0)
        await peer.call(5, "Echo")
        assert await peer.answer() == (5, 3, "StreamID cannot be re-used and must increment", b"")
        await peer.send(7, b"\xff\xff")
        assert (await peer.answer())[1] == 3
        await peer.send(9, encode(wire.Request(SERVICE, "Echo", b"\x0a\x05x")))
        stream, code, text, _ = await peer.answer()
        assert (stream, code) == (9, 13)
        assert text.startswith("ttrpc: error unmarshalling payload: ")
        await peer.send(11, bytes(wire.MAX_DATA + 1))
        text = f"message length {wire.MAX_DATA + 1} exceed maximum message size of {wire.MAX_DATA}"
        assert await peer.answer() == (11, 8, text, b"")
        await peer.call(13, "Echo")
        assert (await peer.answer())[:2] == (13, 0)

    serve(body)


def test_deadline_is_answered_and_only_waiting_stops(serve: Callable[[Body], None]) -> None:
    async def body(peer: Peer, handlers: Handlers) -> None:
        await peer.call(1, "Slow", "work", nanoseconds=10**6)
        assert await peer.answer() == (1, 4, "context deadline exceeded", b"")
        await peer.call(3, "Wait", "wait", nanoseconds=10**6)
        assert await peer.answer() == (3, 4, "context deadline exceeded", b"")
        handlers.gate.set_result(None)
        await handlers.loop.sleep(0.01)
        assert handlers.ended == ["wait stopped", "work done"]

    serve(body)


def test_caller_that_goes_stops_what_waits_and_nothing_else(serve: Callable[[Body], None]) -> None:
    async def body(peer: Peer, handlers: Handlers) -> None:
        await peer.call(1, "Slow", "work")
        await peer.call(3, "Wait", "wait")
        await peer.call(5, "Echo")
        await peer.answer()
        peer.sock.close()
        while not handlers.ended:
            await handlers.loop.sleep(0.001)
        handlers.gate.set_result(None)
        await handlers.loop.sleep(0.01)
        assert handlers.ended == ["wait stopped", "work done"]

    serve(body)


def test_answers_come_as_they_are_ready(serve: Callable[[Body], None]) -> None:
    async def body(peer: Peer, handlers: Handlers) -> None:
        await peer.call(1, "Slow")
        await peer.call(3, "Echo")
        assert (await peer.answer())[0] == 3
        handlers.gate.set_result(None)
        assert (await peer.answer())[0] == 1

    serve(body)
