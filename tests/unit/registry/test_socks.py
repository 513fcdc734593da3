"""Registries behind a SOCKS5 proxy, and what such proxies may answer."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from yarl import URL

from harness import on_loop
from hostile_registry import HostileRegistry
from moored.api.registry.hosts import Host
from moored.api.registry.socks import connect
from moored.kernel.errors import DeadlineExceeded, Unavailable
from registries import QUICK, Image, client, fetched


@dataclass
class Proxy:
    """A SOCKS5 proxy that leads to one server, whatever it is asked for; `asked` says what it was."""

    target: tuple[str, int]
    password: tuple[bytes, bytes] | None = None
    status: int = 0
    port: int = 0
    asked: list[tuple[bytes, int]] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self.serve(reader, writer)
        await closed(writer)
        self.tasks.discard(task)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        offered = await reader.readexactly(count)
        method = 2 if self.password else 0
        writer.write(bytes((5, method if method in offered else 255)))
        if self.password:
            user = await reader.readexactly((await reader.readexactly(2))[1])
            secret = await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(bytes((1, (user, secret) != self.password)))
        kind = (await reader.readexactly(4))[3]
        length = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        name = await reader.readexactly(length)
        self.asked.append((name, struct.unpack(">H", await reader.readexactly(2))[0]))
        writer.write(bytes((5, self.status, 0, 3, 4)) + b"here" + b"\0\0")
        if not self.status:
            there = await asyncio.open_connection(*self.target)
            copies = [asyncio.create_task(_copy(reader, there[1])), asyncio.create_task(_copy(there[0], writer))]
            try:
                await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)
                await closed(there[1])


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError, asyncio.CancelledError):
        await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxying(target: int, **more: object) -> AsyncGenerator[Proxy]:
    proxy = Proxy(("127.0.0.1", target), **more)  # type: ignore[arg-type]
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in proxy.tasks:
            task.cancel()
        await asyncio.gather(*proxy.tasks, return_exceptions=True)


IMAGE = Image.of(200_000)


async def handler(request: web.Request) -> web.StreamResponse:
    return web.Response(body=IMAGE.layer)


@on_loop
async def test_a_registry_is_asked_through_the_proxy_which_looks_its_name_up(monkeypatch) -> None:
    async with HostileRegistry(handler) as server, proxying(server.port) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"socks5://127.0.0.1:{proxy.port}")
        async with client("reg.invalid:81/a:one", Host(url="http://reg.invalid:81/v2")) as registry:
            assert await fetched(registry, IMAGE.layer_entry) == IMAGE.layer
            assert await fetched(registry, IMAGE.layer_entry) == IMAGE.layer

    assert proxy.asked == [(b"reg.invalid", 81)], "one connection serves both requests"


@on_loop
async def test_a_proxy_gets_the_password_that_its_address_has(monkeypatch) -> None:
    async with HostileRegistry(handler) as server, proxying(server.port, password=(b"me", b"s:ecret")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"socks5h://me:s%3Aecret@127.0.0.1:{proxy.port}")
        async with client("reg.invalid/a:one", Host(url="http://reg.invalid/v2")) as registry:
            assert await fetched(registry, IMAGE.layer_entry) == IMAGE.layer


@pytest.mark.parametrize(
    ("password", "address", "status", "said"),
    [
        ((b"me", b"right"), "me:wrong@", 0, "does not accept the user and password"),
        ((b"me", b"right"), "", 0, "wants a user and a password"),
        (None, "", 2, "a connection that its rules do not allow for reg.invalid:80"),
        (None, "", 99, "error 99 for reg.invalid:80"),
    ],
)
@on_loop
async def test_why_a_proxy_does_not_connect_is_told_without_its_secrets(
    monkeypatch, password, address, status, said
) -> None:
    async with proxying(1, password=password, status=status) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"socks5://{address}127.0.0.1:{proxy.port}")
        async with client("reg.invalid/a:one", Host(url="http://reg.invalid/v2")) as registry:
            with pytest.raises(Unavailable, match=said) as told:
                await registry.resolve()

    assert "wrong" not in told.value.text


@on_loop
async def test_a_proxy_that_is_not_there_is_told(monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    async with client("reg.invalid/a:one", Host(url="http://reg.invalid/v2")) as registry:
        with pytest.raises(Unavailable, match=r"reg\.invalid cannot be reached"):
            await registry.resolve()


@on_loop
async def test_a_proxy_that_says_nothing_is_given_up(monkeypatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await closed(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    monkeypatch.setenv("HTTP_PROXY", f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    limits = type(QUICK)(header=0.2, dial=0.2)
    async with client("reg.invalid/a:one", Host(url="http://reg.invalid/v2"), limits=limits) as registry:
        with pytest.raises(DeadlineExceeded):
            await registry.resolve()
    server.close()


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad\r\n\r\n", b"\x05", b"\x04\x00", b""])
@on_loop
async def test_what_is_no_socks_proxy_is_an_error(said: bytes) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(3)
        writer.write(said)
        await closed(writer)

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    with pytest.raises(OSError, match=r"does not speak SOCKS5|broke off"):
        await connect(URL(f"socks5://127.0.0.1:{server.sockets[0].getsockname()[1]}"), "a.test", 80)
    server.close()


@pytest.mark.parametrize(
    ("host", "sent"),
    [("10.1.2.3", bytes((10, 1, 2, 3))), ("fd00::1", bytes.fromhex("fd00" + "00" * 13 + "01")), ("a.test", b"a.test")],
)
@on_loop
async def test_addresses_are_sent_as_what_they_are(host: str, sent: bytes) -> None:
    async with HostileRegistry(handler) as server, proxying(server.port) as proxy:
        (await connect(URL(f"socks5://127.0.0.1:{proxy.port}"), host, 443)).close()

    assert proxy.asked == [(sent, 443)]
