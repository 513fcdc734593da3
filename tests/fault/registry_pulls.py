"""What tests of hostile registries have in common: an image, bounds, and what becomes of pulling it."""

from __future__ import annotations

import base64
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from hostile_registry import HostileRegistry, RawRegistry
from moored.api.registry.credentials import Credentials
from moored.kernel.errors import (
    MooredError,
)
from registries import Image, client, fetched

IMAGE = Image(bytes(range(256)) * 800)
LAYER, DATA = IMAGE.layer_entry, IMAGE.layer
MIB = 1 << 20


async def me(_: str) -> Credentials | None:
    return Credentials("me", "hunter2")


SECRETS = ("hunter2", base64.b64encode(b"me:hunter2").decode())


@contextmanager
def within(seconds: float = 15.0, memory: int = 24 * MIB) -> Generator[None]:
    """Fail if the block takes longer, or makes Python hold more memory at any time."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < seconds
    assert peak < memory, f"{peak / MIB:.1f} MiB were held"


async def refusal(server: HostileRegistry | RawRegistry, action: str = "fetch", **settings: Any) -> MooredError:
    """What becomes of resolving a tag, or of fetching the layer."""
    with within():
        async with client(f"{server.place}/a:one", server.host, **settings) as registry:
            with pytest.raises(MooredError) as error:
                await (registry.resolve() if action == "resolve" else fetched(registry, LAYER))
    return error.value


def blob(data: bytes = DATA, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        body=data, status=status, headers={key.replace("_", "-"): text for key, text in headers.items()}
    )


async def gathered(pieces: AsyncIterator[bytes], got: bytearray) -> None:
    """Keep all pieces that come before an error, too."""
    async for piece in pieces:
        got += piece


def offset(request: web.BaseRequest) -> int:
    """Where the wanted range begins."""
    return int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


async def streamed(
    request: web.Request, data: bytes, *, say: int | None = None, status: int = 200, **headers: str
) -> web.StreamResponse:
    """Send a body and close the connection, whatever length was said; None: in chunks."""
    response = web.StreamResponse(status=status, headers=headers)
    if say is not None:
        response.content_length = say
    else:
        response.enable_chunked_encoding()
    await response.prepare(request)
    for at in range(0, len(data), 1 << 16):
        await response.write(data[at : at + (1 << 16)])
    if say is not None and say != len(data):
        assert request.transport is not None
        request.transport.close()
    return response


def bomb(size: int) -> bytes:
    """So many zeros, gzipped."""
    made = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(made.compress(bytes(MIB)) for _ in range(size // MIB)) + made.flush()
