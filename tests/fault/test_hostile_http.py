"""Answers that are no HTTP, never end or lie about themselves: an error in bounded time and memory, no more."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from fault.registry_pulls import DATA, IMAGE, LAYER, MIB, SECRETS, blob, gathered, me, refusal, within
from harness import on_loop
from hostile_registry import HostileRegistry, saying, speaking
from moored.api.registry.client import Registry
from moored.kernel.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unknown,
)
from registries import QUICK, client, fetched
from unit.descriptors import none_left_open

# --- HTTP that is none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00" * 1000,
        b"hello, this is HTTP/0.9\n",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 -1 OK\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\x00: a\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 6000 + b"\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdefgh\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"x" * 300_000 + b"\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 206 Part\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
    ids=range(27),
)
@pytest.mark.parametrize("action", ["fetch", "resolve"])
@on_loop
async def test_what_is_no_http_is_an_error_of_ours(answer: bytes, action: str) -> None:
    async with speaking(saying(answer)) as server:
        error = await refusal(server, action)
    assert isinstance(error, (Unavailable, Unknown, FailedPrecondition, InvalidArgument, NotFound))
    assert error.text.isprintable()
    assert len(server.heads) <= 10


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: value\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Trailer: value\r\n" * 1000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"\r\n" * 32768),
        (b"", b"\r\n" * 32768),
        (b"HTTP/1.1 418 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"[" * 65536 + b"\r\n"),
    ],
    ids=["headers", "header", "continue", "trailers", "extension", "digits", "lines", "blank", "error"],
)
@on_loop
async def test_what_never_ends_is_given_up(start: bytes, piece: bytes) -> None:
    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        await server.flood(writer, piece, 1 << 40)

    limits = type(QUICK)(header=0.4, dial=0.1, stall=0.5, progress=0.5)
    async with speaking(speak) as server:
        error = await refusal(server, limits=limits)
    assert isinstance(error, (Unavailable, Unknown, FailedPrecondition, DeadlineExceeded))
    assert error.text.isprintable()


@pytest.mark.parametrize(
    "told",
    [
        "",
        "bytes 0-{last}/{size}",
        "bytes 9-{last}/{size}",
        "bytes 10-{last}/99",
        "bytes 10-{last}/" + "9" * 400,
        "bytes {big}-{last}/{size}",
        "bytes */{size}",
        "items 10-{last}/{size}",
        "bytes 10-{last}",
        "\xff",
    ],
)
@on_loop
async def test_a_range_that_is_not_the_asked_one_is_refused(told: str) -> None:
    text = told.format(last=len(DATA) - 1, size=len(DATA), big="9" * 5000)

    async def answer(_: web.Request) -> web.StreamResponse:
        return blob(DATA[10:], 206, Content_Range=text)

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        with within(), pytest.raises((Unknown, FailedPrecondition)) as error:
            await fetched(registry, LAYER, 10)
    assert error.value.text.isprintable()


@on_loop
async def test_a_range_that_is_more_than_was_asked_for_is_cut_and_refused() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob(DATA[10:], 206, Content_Range=f"bytes 10-{len(DATA) - 1}/{len(DATA)}")

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        got = bytearray()
        with pytest.raises(FailedPrecondition):
            await gathered(registry.fetch(LAYER, 10, 20), got)
    assert got == DATA[10:20]


@on_loop
async def test_a_part_is_cut_out_of_a_whole_body() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob()

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert await fetched(registry, LAYER, 70_000, 70_010) == DATA[70_000:70_010]
        assert not await registry.takes_ranges(LAYER)


@pytest.mark.parametrize("status", [200, 404, 416, 500])
@on_loop
async def test_a_server_that_has_no_parts_is_known(status: int) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob(b"x", status)

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert not await registry.takes_ranges(LAYER)


@pytest.mark.parametrize("host", ["lies", "encodes"])
@on_loop
async def test_a_mirror_that_lies_is_passed_over(host: str) -> None:
    async def bad(_: web.Request) -> web.StreamResponse:
        return blob(DATA + b"more") if host == "lies" else blob(Content_Encoding="br")

    async def fine(_: web.Request) -> web.StreamResponse:
        return blob()

    async with (
        HostileRegistry(bad) as mirror,
        HostileRegistry(fine) as good,
        client(f"{good.place}/a:one", mirror.host, good.host) as registry,
    ):
        assert await fetched(registry, LAYER) == DATA
    assert len(mirror.asked) == 1


@pytest.mark.parametrize("content_type", ["\udcff/\udcfe", "a b/c", "x" * 5000, "a/b/c", "", ";", "application"])
@on_loop
async def test_a_content_type_that_is_none_is_left_out(content_type: str) -> None:
    async def speak(head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = b"" if head.startswith(b"HEAD") else IMAGE.manifest
        said = content_type.encode("utf-8", "surrogateescape")
        digest = IMAGE.entry.digest.encode()
        size = len(IMAGE.manifest)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: %s\r\nDocker-Content-Digest: %s\r\n\r\n%s"
            % (size, said, digest, data)
        )

    async with speaking(speak) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert (await registry.resolve()).media_type == ""


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"errors": 1}',
        b'{"errors": [1]}',
        b'{"errors": [{"code": {"a": []}, "message": null}]}',
        b'{"errors": {}}',
        b"\xff\xfe",
        json.dumps({"errors": [{"code": "X", "message": "\x1b[31m\n\u202e" + "y" * 50_000}] * 2}).encode(),
        b"x" * (10 * MIB),
    ],
    ids=range(8),
)
@on_loop
async def test_what_a_server_says_of_an_error_is_told_short_and_clean(body: bytes) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=418, body=body, reason="a\tb")

    async with HostileRegistry(answer) as server:
        error = await refusal(server)
    assert isinstance(error, Unknown)
    assert len(error.text) < 1500
    assert error.text.isprintable()


@on_loop
async def test_secrets_are_in_no_error_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.Response(status=500, body=b"x")
        return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{server.url}/token"'})

    with caplog.at_level("DEBUG"):
        async with HostileRegistry(answer) as server:
            error = await refusal(server, credentials=me)
    said = f"{error!r}{error.__cause__!r}{error.__context__!r}{caplog.text}"
    assert not any(secret in said for secret in SECRETS)


@on_loop
async def test_many_pulls_of_a_hostile_registry_leave_no_connection() -> None:
    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await server.flood(writer, b"10000\r\n" + bytes(65536) + b"\r\n", 1 << 40)

    with none_left_open():
        async with speaking(speak) as server:
            for _ in range(20):
                async with client(f"{server.place}/a:one", server.host) as registry:
                    with pytest.raises(FailedPrecondition):
                        await fetched(registry, LAYER)
            async with asyncio.timeout(5):
                while server.tasks:
                    await asyncio.sleep(0.01)


async def _cancel(registry: Registry) -> None:
    task = asyncio.create_task(fetched(registry, LAYER))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on_loop
async def test_a_fetch_can_be_cancelled_at_any_time() -> None:
    async def head(_head: bytes, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def body(_head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nabc" % len(DATA))
        await reader.read()

    for speak in (head, body):
        async with speaking(speak) as server:
            async with client(f"{server.place}/a:one", server.host) as registry:
                await _cancel(registry)
            async with asyncio.timeout(5):
                while server.tasks:
                    await asyncio.sleep(0.01)
