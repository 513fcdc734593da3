"""A registry that misbehaves as a test tells it to, on 127.0.0.1: answers of HTTP's kind, or bytes as they are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from moored.api.registry.hosts import Host
from moored.kernel.imagespec.documents import Entry

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Speak = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Answers a request, of which it gets the head, with whatever bytes it likes."""


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def secret(self) -> str:
        """What it said to prove who it is."""
        return self.headers.get("Authorization", "")


@dataclass
class HostileRegistry:
    """Answers each request by a function. An async context manager."""

    handler: Handler
    tls: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def place(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.place}"

    @property
    def host(self) -> Host:
        return Host(url=f"{self.url}/v2")

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{rest:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, self.port, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read() if request.method in {"POST", "PUT", "PATCH"} else b""
        self.asked.append(Asked(request.method, request.path_qs, dict(request.headers), body))
        return await self.handler(request)


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncGenerator[RawRegistry]:
    """Run a server that says bytes as they are, to each request of each connection."""
    registry = RawRegistry(speak)
    server = await asyncio.start_server(registry.connected, "127.0.0.1", 0)
    server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    registry.port = server.sockets[0].getsockname()[1]
    try:
        yield registry
    finally:
        server.close()
        for task in registry.tasks:
            task.cancel()
        await asyncio.gather(*registry.tasks, return_exceptions=True)
        await server.wait_closed()


@dataclass
class RawRegistry:
    """What `speaking` gives: where it is, the heads of all requests, and how many bytes it could send."""

    speak: Speak
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    sent: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def host(self) -> Host:
        return Host(url=f"http://{self.place}/v2")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it is closed."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        writer.transport.set_write_buffer_limits(1 << 16)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            await self.speak(head, reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()
        self.tasks.discard(task)

    async def flood(self, writer: asyncio.StreamWriter, piece: bytes, total: int) -> None:
        """Send a piece again and again until so many bytes are sent or the other side has enough."""
        while self.sent < total:
            writer.write(piece)
            await writer.drain()
            self.sent += len(piece)


def saying(answer: bytes) -> Speak:
    """Say the same to every request, and close."""

    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return speak


async def dripping(writer: asyncio.StreamWriter, data: bytes, pause: float = 0.05) -> None:
    """Send bytes one by one, slowly, until the other side has enough."""
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await writer.drain()
        await asyncio.sleep(pause)


def manifest_response(entry: Entry, data: bytes, **headers: str) -> web.Response:
    """What a registry that behaves answers to a request for a manifest."""
    return web.Response(
        body=data, headers={"Content-Type": entry.media_type, "Docker-Content-Digest": entry.digest, **headers}
    )
