"""Bodies of uploads that go chunk by chunk, and what a registry says of how far one is.

Source: OCI distribution specification, pushing a blob in chunks.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import aiohttp

from moored.api.registry.network import read_address
from moored.api.registry.requests import Upload

_PIECE: Final = 256 << 10
_HAS: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")


async def in_chunks(body: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes]:
    """Give the same bytes in pieces of that size, the last one smaller."""
    waiting = bytearray()
    try:
        async for piece in body:
            waiting += piece
            while len(waiting) >= size:
                yield bytes(waiting[:size])
                del waiting[:size]
        if waiting:
            yield bytes(waiting)
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()


def body_of(data: bytes) -> Upload:
    """Give bytes as a body, in pieces, so that it is seen how it moves."""

    async def body() -> AsyncGenerator[bytes]:
        for at in range(0, len(data), _PIECE):
            yield data[at : at + _PIECE]

    return body


no_bytes: Final[Upload] = body_of(b"")
"""A body without any."""


def progress(response: aiohttp.ClientResponse, place: str, usual: int) -> tuple[str, int]:
    """Read where to go on with an upload, and how many bytes the registry has of it (`Range: 0-LAST`).

    place and usual are those where the answer does not say. Raises PermissionDenied for what is no http address.
    """
    location = response.headers.get("Location", "")
    match = _HAS.fullmatch(response.headers.get("Range", "").strip())
    have = int(match[1]) + 1 if match else usual
    if have == 1 != usual:
        have = 0  # an upload without any bytes is told as `0-0` too
    return (str(read_address(location, response.url)) if location else place), have
