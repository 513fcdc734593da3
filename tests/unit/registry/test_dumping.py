"""What is told of requests to registries: every head, and no secret."""

from __future__ import annotations

import logging

import pytest
from aiohttp import web

from harness import on_loop
from hostile_registry import HostileRegistry
from moored.api.registry.credentials import Credentials
from moored.api.registry.hosts import Host
from moored.kernel.errors import PermissionDenied, Unavailable
from registries import Image, client, fetched

IMAGE = Image.of(100)


async def handler(request: web.Request) -> web.StreamResponse:
    if not request.headers.get("Authorization"):
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"', "Set-Cookie": "secret-cookie"})
    return web.Response(body=IMAGE.layer, headers={"X-Odd": "a b"})


@on_loop
async def test_heads_of_requests_and_answers_are_told_without_secrets() -> None:
    told: list[bytes] = []

    async def dump(head: bytes) -> None:
        told.append(head)

    async def me(_: str) -> Credentials:
        return Credentials("me", "hidden-password")

    async with (
        HostileRegistry(handler) as server,
        client(f"{server.place}/a:one", server.host, dump=dump, credentials=me) as registry,
    ):
        assert await fetched(registry, IMAGE.layer_entry) == IMAGE.layer

    refused, given = [text.decode() for text in told]
    path = f"/v2/a/blobs/{IMAGE.layer_entry.digest}"
    assert refused.startswith(f"GET {path} HTTP/1.1\r\nHost: {server.place}\r\n")
    assert "HTTP/1.1 401 Unauthorized\r\n" in refused
    assert "Authorization: Basic ...\r\n" in given
    assert "HTTP/1.1 200 OK\r\n" in given
    assert given.endswith("\r\n\r\n")
    assert IMAGE.layer not in b"".join(told)
    assert "X-Odd: a b\r\n" in given
    everything = b"".join(told)
    assert b"secret-cookie" not in everything
    assert b"aGlkZGVu" not in everything


@on_loop
async def test_a_request_without_an_answer_is_told_too() -> None:
    told: list[bytes] = []

    async def dump(head: bytes) -> None:
        told.append(head)

    async with client("reg.test/a:one", Host(url="http://127.0.0.1:1/v2"), dump=dump) as registry:
        with pytest.raises(Unavailable):
            await registry.resolve()

    assert told[0].startswith(b"HEAD /v2/a/manifests/one HTTP/1.1\r\n")
    assert told[0].endswith(b"! ClientConnectorError\r\n\r\n")


@on_loop
async def test_connections_are_noted_where_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    async with HostileRegistry(handler) as server:
        host = Host(url=f"http://localhost:{server.port}/v2")
        with caplog.at_level(logging.DEBUG, "moored.registry"):
            async with client(f"localhost:{server.port}/a:one", host, trace=True) as registry:
                with pytest.raises(PermissionDenied):
                    await registry.resolve()

    assert "DNS lookup of localhost" in caplog.text
    assert "connection made" in caplog.text
