"""The catalogue of hostile registries, rows 107 to 113: bodies, manifests and statuses that are not right."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from fault.registry_pulls import DATA, IMAGE, LAYER, MIB, blob, gathered, me, offset, refusal, streamed, within
from harness import on_loop
from hostile_registry import HostileRegistry, manifest_response, speaking
from moored.kernel.errors import (
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    Unknown,
)
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from registries import Image, client, fetched

# --- 107: bodies that break off -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [True, False])
@on_loop
async def test_107_a_body_that_breaks_off_is_gone_on_with(ranges: bool) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        start = offset(request) if ranges else 0
        first = "Range" not in request.headers
        more = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"} if start else {}
        data = DATA[start:]
        return await streamed(
            request, data[:100_000] if first else data, say=len(data), status=206 if start else 200, **more
        )

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert await fetched(registry, LAYER) == DATA
    assert len(server.asked) == 2
    assert server.asked[1].headers["Range"].startswith("bytes=")


@pytest.mark.parametrize("say", [len(DATA), 100])
@on_loop
async def test_107_a_body_that_is_always_too_short_is_given_up(say: int) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "Range" in request.headers:
            return blob(b"", 206, Content_Range=f"bytes {offset(request)}-{len(DATA) - 1}/{len(DATA)}")
        return await streamed(request, DATA[:100], say=say)

    async with HostileRegistry(answer) as server:
        error = await refusal(server)
    assert isinstance(error, (FailedPrecondition, Unavailable))
    assert len(server.asked) <= 4


@on_loop
async def test_107_a_byte_a_connection_is_no_progress() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        start = offset(request)
        more = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
        return await streamed(request, DATA[start : start + 1], say=len(DATA) - start, status=206, **more)

    async with HostileRegistry(answer) as server:
        assert isinstance(await refusal(server), Unavailable)
    assert len(server.asked) == 3


@on_loop
async def test_107_another_host_goes_on_where_one_breaks_off() -> None:
    async def short(request: web.Request) -> web.StreamResponse:
        return await streamed(request, DATA[:500], say=len(DATA))

    async def whole(request: web.Request) -> web.StreamResponse:
        start = offset(request)
        return blob(DATA[start:], 206, Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")

    async with (
        HostileRegistry(short) as bad,
        HostileRegistry(whole) as good,
        client(f"{good.place}/a:one", bad.host, good.host) as registry,
    ):
        assert await fetched(registry, LAYER) == DATA
    assert (len(bad.asked), good.asked[0].headers["Range"]) == (1, f"bytes=500-{len(DATA) - 1}")


# --- 108: bodies that are too long --------------------------------------------------------------------------------


@on_loop
async def test_108_a_body_that_says_to_be_too_long_is_not_read() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await streamed(request, DATA, say=500 * MIB)

    async with HostileRegistry(answer) as server:
        error = await refusal(server)
    assert isinstance(error, FailedPrecondition)
    assert error.text == f"{LAYER.digest} has {500 * MIB} bytes in its registry, wanted are {len(DATA)}"


@on_loop
async def test_108_a_body_without_a_length_is_read_to_one_byte_more() -> None:
    async def speak(_head: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await server.flood(writer, b"10000\r\n" + bytes(65536) + b"\r\n", 500 * MIB)

    got = bytearray()
    async with speaking(speak) as server, client(f"{server.place}/a:one", server.host) as registry:
        with within(), pytest.raises(FailedPrecondition, match=f"sends more than {len(DATA)} bytes"):
            await gathered(registry.fetch(LAYER), got)
        assert got == bytes(len(DATA))
    assert server.sent < 4 * MIB


# --- 110, 111, 112: what is not what it says ----------------------------------------------------------------------


@on_loop
async def test_111_another_digest_than_the_wanted_one_is_refused() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return manifest_response(Image.of(10).entry, IMAGE.manifest)

    async with (
        HostileRegistry(answer) as server,
        client(f"{server.place}/a@{IMAGE.entry.digest}", server.host) as registry,
    ):
        with pytest.raises(FailedPrecondition, match="its registry answers with sha256:"):
            await registry.resolve()


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:" + "0" * 32, "../../etc", "sha256:" + "A" * 64, ""])
@on_loop
async def test_111_a_digest_that_is_none_is_not_taken(digest: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return manifest_response(IMAGE.entry, IMAGE.manifest, **{"Docker-Content-Digest": digest})

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert await registry.resolve() == IMAGE.entry
    assert [one.method for one in server.asked] == ["HEAD", "GET"]


@pytest.mark.parametrize("digest", [IMAGE.entry.digest, ""])
@on_loop
async def test_111_a_web_page_is_no_manifest(digest: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Docker-Content-Digest": digest, "Content-Type": "text/html; charset=utf-8"}
        return web.Response(body=b"<html>log in", headers=headers)

    async with HostileRegistry(answer) as server:
        error = await refusal(server, "resolve")
    assert isinstance(error, InvalidArgument)
    assert "answers with a web page" in error.text


@pytest.mark.parametrize(
    ("media_type", "digest", "kind"),
    [
        (media.DOCKER_SCHEMA1, IMAGE.entry.digest, InvalidArgument),
        (media.DOCKER_SCHEMA1_SIGNED, IMAGE.entry.digest, InvalidArgument),
        ("text/plain", IMAGE.entry.digest, InvalidArgument),
        (media.DOCKER_SCHEMA1, "", Unimplemented),
    ],
)
@on_loop
async def test_schema_1_is_refused(media_type: str, digest: str, kind: type[MooredError]) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
        return web.Response(body=b'{"schemaVersion": 1}', headers=headers)

    async with HostileRegistry(answer) as server:
        error = await refusal(server, "resolve")
    assert type(error) is kind
    assert "no longer supported" in error.text


@on_loop
async def test_112_a_manifest_that_says_to_be_huge_is_refused_unread() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.method == "HEAD"
        return manifest_response(IMAGE.entry, b"", **{"Content-Length": str(50 * MIB)})

    async with HostileRegistry(answer) as server:
        error = await refusal(server, "resolve")
    assert isinstance(error, NotFound)
    assert error.text.startswith(f"rejecting {50 * MIB} byte manifest for {server.place}/a:one")


@pytest.mark.parametrize("head", [b"Transfer-Encoding: chunked", b"Content-Length: 52428800", b"Connection: close"])
@on_loop
async def test_112_a_manifest_that_turns_out_huge_is_given_up(head: bytes) -> None:
    async def speak(asked: bytes, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + head + b"\r\n\r\n")
        data = bytes(65536)
        await server.flood(writer, b"10000\r\n" + data + b"\r\n" if b"chunked" in head else data, 50 * MIB)

    async with speaking(speak) as server:
        error = await refusal(server, "resolve")
    assert isinstance(error, InvalidArgument)
    assert server.sent < MAX_DOCUMENT + 4 * MIB


@on_loop
async def test_112_a_document_whose_descriptor_says_that_it_is_huge_is_not_asked_for() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return blob()

    huge = Entry(media_type=media.OCI_MANIFEST, digest=IMAGE.entry.digest, size=MAX_DOCUMENT + 1)
    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        with pytest.raises(InvalidArgument, match="at most"):
            await registry.document(huge)
    assert server.asked == []


# --- 113: statuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "times", "kind"),
    [
        (429, 5, Unavailable),
        (408, 5, Unavailable),
        (500, 2, Unavailable),
        (503, 2, Unavailable),
        (504, 2, Unavailable),
        (502, 1, Unavailable),
        (418, 1, Unknown),
        (403, 1, PermissionDenied),
        (404, 1, NotFound),
    ],
)
@on_loop
async def test_113_how_often_is_asked(status: int, times: int, kind: type[MooredError]) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status)

    async with HostileRegistry(answer) as server:
        error = await refusal(server)
    assert type(error) is kind
    assert len(server.asked) == times


@on_loop
async def test_113_different_troubles_are_asked_again_five_times_in_all() -> None:
    statuses = iter([500, 503, 500, 504, 500, 503])

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=next(statuses))

    async with HostileRegistry(answer) as server:
        await refusal(server)
    assert len(server.asked) == 5


@on_loop
async def test_113_a_server_in_trouble_is_asked_again_only_if_it_is_the_last() -> None:
    async def trouble(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    async def fine(_: web.Request) -> web.StreamResponse:
        return blob()

    async with (
        HostileRegistry(trouble) as bad,
        HostileRegistry(fine) as good,
        client(f"{good.place}/a:one", bad.host, good.host) as registry,
    ):
        assert await fetched(registry, LAYER) == DATA
    assert (len(bad.asked), len(good.asked)) == (1, 1)


@pytest.mark.parametrize("wait", ["1", "0", "-1", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT", "NaN", "1e9", "٣"])
@on_loop
async def test_113_what_a_server_wants_to_be_waited_for_is_waited_for(wait: str) -> None:
    times: list[float] = []

    async def answer(_: web.Request) -> web.StreamResponse:
        times.append(time.monotonic())
        return blob(status=200) if len(times) == 2 else web.Response(status=429, headers={"Retry-After": wait})

    async with HostileRegistry(answer) as server, client(f"{server.place}/a:one", server.host) as registry:
        assert await fetched(registry, LAYER) == DATA
    assert (times[1] - times[0] >= 1) == (wait == "1")


@pytest.mark.parametrize(
    "wait", ["2", "3600", "9" * 5000, format_datetime(datetime.now(UTC) + timedelta(days=400), usegmt=True)]
)
@on_loop
async def test_113_a_server_that_wants_too_much_time_is_not_asked_again(wait: str) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": wait})

    async with HostileRegistry(answer) as server:
        start = time.monotonic()
        error = await refusal(server)
    assert time.monotonic() - start < 1.5
    assert len(server.asked) == 1
    assert f"(try again after {wait[:10]}" in error.text


@on_loop
async def test_113_a_server_that_refuses_every_token_is_given_up() -> None:
    tokens = iter(range(1000))

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/token":
            return web.json_response({"access_token": f"t{next(tokens)}"})
        realm = f'Bearer realm="{server.url}/token",error="invalid_token"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    async with HostileRegistry(answer) as server:
        error = await refusal(server, credentials=me)
    assert isinstance(error, PermissionDenied)
    assert len([one for one in server.asked if one.path != "/token"]) == 5


@on_loop
async def test_113_a_password_that_is_refused_is_not_sent_again() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})

    async with HostileRegistry(answer) as server:
        assert isinstance(await refusal(server, credentials=me), PermissionDenied)
    assert [bool(one.secret) for one in server.asked] == [False, True]
