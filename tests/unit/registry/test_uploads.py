"""Blobs that go to a registry chunk by chunk: when, and what becomes of a registry that takes less than it gets."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from aiohttp import web

from harness import on_loop
from hostile_registry import HostileRegistry
from moored.kernel.errors import FailedPrecondition, MooredError, Unknown
from moored.kernel.imagespec import media
from registries import client, described, once

DATA = bytes(range(256)) * 400
BLOB = described(DATA, media.OCI_LAYER)
CHUNK = 30_000


@dataclass
class Uploads:
    """A registry that takes uploads; `largest` bytes a request at most.

    faults: what it does at each PATCH in turn: `break` the connection after having taken it, take `half`, `forget` all.
    """

    largest: int = 1 << 30
    faults: list[str] = field(default_factory=list)
    got: bytearray = field(default_factory=bytearray)
    done: bytes | None = None
    requests: list[str] = field(default_factory=list)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.method)
        where = {"Location": f"/v2/a/blobs/uploads/{len(self.requests)}?state=x%2Fy"}
        match request.method:
            case "POST":
                self.got.clear()
                return web.Response(status=202, headers=where)
            case "PATCH":
                return await self._patch(request, where)
            case "GET":
                return web.Response(status=204, headers={**where, **self._range()})
            case _:
                body = await request.read()
                if len(body) > self.largest:
                    return web.Response(status=413)
                self.done = bytes(self.got) + body
                return web.Response(status=201)

    async def _patch(self, request: web.Request, where: dict[str, str]) -> web.StreamResponse:
        first, _, last = request.headers["Content-Range"].partition("-")
        body = await request.read()
        assert int(last) - int(first) + 1 == len(body) == request.content_length
        if len(body) > self.largest:
            return web.Response(status=413)
        if int(first) != len(self.got):
            return web.Response(status=416, headers={**where, **self._range()})
        fault = self.faults.pop(0) if self.faults else ""
        self.got += body[: len(body) // 2] if fault == "half" else body
        if fault == "forget":
            self.got.clear()
        if fault == "break":
            assert request.transport is not None
            request.transport.close()
        return web.Response(status=202, headers={**where, **self._range()})

    def _range(self) -> dict[str, str]:
        return {"Range": f"0-{max(0, len(self.got) - 1)}"}


async def pushed(uploads: Uploads, chunk: int = CHUNK) -> Uploads:
    async with (
        HostileRegistry(uploads) as server,
        client(f"{server.place}/a:one", server.host, upload_chunk=chunk) as registry,
    ):
        assert await registry.push_blob(BLOB, once(DATA))
    return uploads


@on_loop
async def test_a_blob_goes_in_one_request_unless_told_otherwise() -> None:
    uploads = await pushed(Uploads(), chunk=0)

    assert uploads.requests == ["POST", "PUT"]
    assert uploads.done == DATA


@on_loop
async def test_a_large_blob_goes_in_chunks_where_that_is_set() -> None:
    uploads = await pushed(Uploads())

    assert uploads.requests == ["POST", "PATCH", "PATCH", "PATCH", "PATCH", "PUT"]
    assert uploads.done == DATA


@on_loop
async def test_a_blob_below_the_size_of_a_chunk_goes_in_one_request() -> None:
    assert (await pushed(Uploads(), chunk=len(DATA))).requests == ["POST", "PUT"]


@on_loop
async def test_a_registry_that_takes_only_so_much_gets_chunks(monkeypatch) -> None:
    uploads = Uploads(largest=CHUNK)
    async with HostileRegistry(uploads) as server, client(f"{server.place}/a:one", server.host) as registry:
        monkeypatch.setattr("moored.api.registry.client.CHUNK", CHUNK)
        assert await registry.push_blob(BLOB, once(DATA))

    assert uploads.requests[:3] == ["POST", "PUT", "POST"]
    assert uploads.done == DATA


@pytest.mark.parametrize("faults", [["break"], ["half"], ["", "half", "break"], ["break", "break"], ["half", "half"]])
@on_loop
async def test_what_is_missing_of_a_chunk_is_sent_again(faults: list[str]) -> None:
    assert (await pushed(Uploads(faults=faults))).done == DATA


@on_loop
async def test_a_registry_that_forgets_what_it_had_is_an_error() -> None:
    with pytest.raises(Unknown, match="registry has 0 bytes of an upload, wanted are 30000 to 60000"):
        await pushed(Uploads(faults=["", "forget"]))


@on_loop
async def test_a_registry_that_takes_no_chunks_is_an_error() -> None:
    with pytest.raises(MooredError, match="413"):
        await pushed(Uploads(largest=100))


@on_loop
async def test_a_source_that_is_shorter_than_its_descriptor_is_not_finished() -> None:
    uploads = Uploads()
    async with (
        HostileRegistry(uploads) as server,
        client(f"{server.place}/a:one", server.host, upload_chunk=CHUNK) as registry,
    ):
        with pytest.raises(FailedPrecondition, match="has other than the"):
            await registry.push_blob(BLOB, once(DATA[:-1]))

    assert uploads.done is None
