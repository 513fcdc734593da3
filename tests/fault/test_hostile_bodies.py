"""The catalogue of hostile registries, rows 117 and 118: bodies that are encoded, and that come slowly or never."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib

import pytest
from aiohttp import web

from fault.registry_pulls import DATA, LAYER, MIB, blob, bomb, refusal, within
from harness import on_loop
from hostile_registry import HostileRegistry, dripping, speaking
from moored.kernel.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Unknown,
)
from moored.kernel.imagespec import media
from registries import QUICK, Image, client, described, fetched, once

# --- 117: encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(DATA)),
        ("x-gzip", gzip.compress(DATA)),
        ("deflate", zlib.compress(DATA)),
        ("GZIP", gzip.compress(DATA)),
        ("identity", DATA),
        ("", DATA),
    ],
)
@on_loop
async def test_117_an_encoding_is_undone(encoding: str, data: bytes) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob(data, Content_Encoding=encoding)

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert await fetched(registry, LAYER) == DATA
    assert server.asked[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("action", ["fetch", "resolve"])
@on_loop
async def test_117_a_bomb_is_put_out_at_the_size_that_is_expected(action: str) -> None:
    data = bomb(512 * MIB)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "HEAD":
            return web.Response(status=405)
        return blob(data, Content_Encoding="gzip", Content_Type=media.OCI_MANIFEST)

    async with HostileRegistry(answer) as server:
        error = await refusal(server, action)
    assert isinstance(error, FailedPrecondition if action == "fetch" else InvalidArgument)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("br", DATA),
        ("zstd", DATA),
        ("gzip, gzip", gzip.compress(gzip.compress(DATA))),
        ("\xff", DATA),
        ("x" * 5000, DATA),
        ("gzip", b""),
        ("gzip", DATA),
        ("gzip", gzip.compress(DATA)[:-100]),
        ("gzip", gzip.compress(DATA)[:-8] + bytes(8)),
        ("gzip", gzip.compress(DATA[:-1]) + gzip.compress(DATA[-1:])),
        ("gzip", gzip.compress(DATA[:-1]) + b"rubbish"),
    ],
)
@on_loop
async def test_117_an_encoding_that_is_none_is_refused(encoding: str, data: bytes) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob(data, Content_Encoding=encoding)

    async with HostileRegistry(answer) as server:
        error = await refusal(server)
    assert isinstance(error, Unknown)
    assert "Content-Encoding" in error.text
    assert error.text.isprintable()


# --- 118: slowness ------------------------------------------------------------------------------------------------


@on_loop
async def test_118_a_body_that_drips_is_given_up() -> None:
    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA))
        await dripping(writer, DATA)

    async with speaking(speak) as server:
        error = await refusal(server)
    assert isinstance(error, DeadlineExceeded)
    assert "sent less than 1024 bytes in 1 seconds" in error.text
    assert len(server.heads) <= 3


@on_loop
async def test_118_a_body_that_stops_is_given_up() -> None:
    async def speak(_head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nabc" % len(DATA))
        await reader.read()

    async with speaking(speak) as server:
        error = await refusal(server)
    assert isinstance(error, DeadlineExceeded)
    assert "stopped sending" in error.text


@pytest.mark.parametrize("action", ["fetch", "resolve"])
@on_loop
async def test_118_an_answer_that_never_begins_is_given_up(action: str) -> None:
    async def speak(_head: bytes, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    limits = type(QUICK)(header=0.2, dial=0.2, stall=0.2)
    async with speaking(speak) as server:
        error = await refusal(server, action, limits=limits)
    assert isinstance(error, DeadlineExceeded)
    assert len(server.heads) == 5


@on_loop
async def test_118_a_head_that_drips_is_given_up() -> None:
    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await dripping(writer, b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10_000)

    limits = type(QUICK)(header=0.2, dial=0.2, stall=5)
    async with speaking(speak) as server:
        assert isinstance(await refusal(server, limits=limits), DeadlineExceeded)


@on_loop
async def test_118_a_reader_that_takes_its_time_is_not_held_against_the_server() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob()

    limits = type(QUICK)(progress=0.05, least=10 * MIB, stall=0.1)
    async with (
        HostileRegistry(answer) as server,
        client(f"{server.place}/a:one", server.host, limits=limits) as registry,
    ):
        got = b""
        async for piece in registry.fetch(LAYER):
            await asyncio.sleep(0.2)
            got += piece
    assert got == DATA


@on_loop
async def test_118_an_error_that_drips_is_told_without_its_text() -> None:
    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 418 No\r\nContent-Length: 60000\r\n\r\n")
        await dripping(writer, bytes(60000))

    async with speaking(speak) as server:
        assert isinstance(await refusal(server), Unknown)


@on_loop
async def test_118_a_token_that_drips_is_given_up() -> None:
    async def speak(head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/token" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
            await dripping(writer, bytes(60000))
            return
        challenge = f'Bearer realm="http://{server.place}/token"'.encode()
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\nWWW-Authenticate: " + challenge + b"\r\n\r\n")

    async with speaking(speak) as server:
        assert isinstance(await refusal(server), DeadlineExceeded)


@on_loop
async def test_118_an_upload_that_nobody_reads_is_given_up() -> None:
    async def speak(head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"POST"):
            writer.write(b"HTTP/1.1 202 OK\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /up\r\n\r\n")
            return
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    big = Image(bytes(32 * MIB))
    async with speaking(speak) as server, client(f"{server.place}/a:one", server.host) as registry:
        with within(10, memory=40 * MIB), pytest.raises(DeadlineExceeded, match="did not answer PUT in time"):
            await registry.push_blob(big.layer_entry, once(big.layer))


@on_loop
async def test_118_an_upload_that_takes_long_and_moves_is_not_given_up() -> None:
    received = 0

    async def speak(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        if head.startswith(b"POST"):
            writer.write(b"HTTP/1.1 202 OK\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /up\r\n\r\n")
            return
        while received < len(data):
            await asyncio.sleep(0.02)
            received += len(await reader.readexactly(min(MIB, len(data) - received)))
        writer.write(b"HTTP/1.1 201 OK\r\nContent-Length: 0\r\n\r\n")

    data = bytes(48 * MIB)
    limits = type(QUICK)(header=0.2, dial=0.2, stall=0.5)
    async with speaking(speak) as server, client(f"{server.place}/a:one", server.host, limits=limits) as registry:
        start = time.monotonic()
        assert await registry.push_blob(described(data, media.OCI_LAYER), once(data))
    assert time.monotonic() - start > limits.header + limits.dial
    assert received == len(data)
