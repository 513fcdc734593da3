"""Bodies of answers: read in bounded pieces at a bounded pace, with their encoding undone, and what errors say.

Source: faults catalogue rows 107 to 118.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

import aiohttp

from moored.api.registry.network import place
from moored.api.registry.settings import Limits
from moored.kernel.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MooredError,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unknown,
)

MAX_ERROR_BODY: Final = 64 * 1024
_READ: Final = 256 * 1024
_INFLATED: Final = 1 << 20
_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")

_Decode = Callable[[bytes], Iterable[bytes]]


async def bounded(response: aiohttp.ClientResponse, limit: int, limits: Limits) -> bytes:
    """Read a body of at most so many bytes. Raises InvalidArgument for more, and as `pieces`."""
    if encoding_of(response) == "" and (response.content_length or 0) > limit:
        raise InvalidArgument(f"answer of {place(response.url)} has {response.content_length} bytes, at most {limit}")
    data = bytearray()
    async for piece in pieces(response, limits):
        data += piece
        if len(data) > limit:
            raise InvalidArgument(f"answer of {place(response.url)} is longer than {limit} bytes")
    return bytes(data)


async def pieces(response: aiohttp.ClientResponse, limits: Limits) -> AsyncGenerator[bytes]:
    """Give a body as it comes, decoded, in pieces of at most 1 MiB.

    Raises Unavailable when it breaks off, Unknown when it is not what its encoding says or that is none we asked for,
    DeadlineExceeded when it stops or drips.
    """
    where = place(response.url)
    decoder = _Inflate(where) if encoding_of(response) else None
    waited, got = 0.0, 0
    while True:
        before = time.monotonic()
        raw = await _read(response, where, limits)
        waited += time.monotonic() - before
        got += len(raw)
        if got >= limits.least:
            waited, got = 0.0, 0
        elif waited > limits.progress:
            raise DeadlineExceeded(f"{where} sent less than {limits.least} bytes in {limits.progress:g} seconds")
        if not raw:
            break
        if decoder is None:
            yield raw
        else:
            for piece in decoder.decoded(raw):
                yield piece
    if decoder is not None:
        decoder.end()


async def _read(response: aiohttp.ClientResponse, where: str, limits: Limits) -> bytes:
    try:
        # The connection's own timer starts again with bytes that are no part of the body, too.
        async with asyncio.timeout(limits.stall):
            return await response.content.read(_READ)
    except TimeoutError:
        raise DeadlineExceeded(f"{where} stopped sending") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unavailable(f"{where} broke off: {_clean(str(error) or type(error).__name__)}") from error


def encoding_of(response: aiohttp.ClientResponse) -> str:
    """Give the Content-Encoding, empty for none. Raises Unknown for one that is not undone."""
    name = response.headers.get("Content-Encoding", "").strip().lower()
    if name in {"", "identity"}:
        return ""
    if name not in {"gzip", "x-gzip", "deflate"}:
        raise Unknown(
            f"answer of {place(response.url)} has Content-Encoding {name[:100]!r}, wanted is identity or gzip"
        )
    return name


class _Inflate:
    """Undoes gzip or zlib, a bounded piece at a time; one stream, and nothing after it."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)

    def decoded(self, raw: bytes) -> Iterable[bytes]:
        while raw:
            if self._inflate.eof:
                raise self._wrong("data after its end")
            try:
                piece = self._inflate.decompress(raw, _INFLATED)
            except zlib.error as error:
                raise self._wrong(str(error)) from error
            raw = self._inflate.unconsumed_tail or self._inflate.unused_data
            if piece:
                yield piece

    def end(self) -> None:
        if not self._inflate.eof:
            raise self._wrong("it ends too early")

    def _wrong(self, why: str) -> Unknown:
        return Unknown(f"answer of {self._where} is not what its Content-Encoding says: {why}")


def media_type_of(response: aiohttp.ClientResponse) -> str:
    """Give the Content-Type without parameters, empty where it is none or malformed."""
    found = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return found if _TYPE.fullmatch(found) else ""


async def refuse(response: aiohttp.ClientResponse, what: str, limits: Limits) -> MooredError:
    """Make the error for a status that was not hoped for, with what the registry says of it; `what` is told for 404."""
    status = response.status
    url = response.url.with_query(None).with_user(None)
    text = f"unexpected status from {response.method} request to {str(url)[:1000]}: {status} {_clean(response.reason)}"
    text = text.strip()
    if wait := _clean(response.headers.get("Retry-After")):
        text = f"{text} (try again after {wait})"
    if told := await _told(response, limits):
        text = f"{text}: {told}"
    match status:
        case HTTPStatus.NOT_FOUND:
            return NotFound(what)
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return PermissionDenied(text)
        case HTTPStatus.REQUEST_TIMEOUT | HTTPStatus.TOO_MANY_REQUESTS | 500 | 502 | 503 | 504:
            return Unavailable(text)
        case _:
            return Unknown(text)


async def _told(response: aiohttp.ClientResponse, limits: Limits) -> str:
    """What the registry's list of errors says; nothing where it does not come whole and soon."""
    try:
        async with asyncio.timeout(limits.stall):
            found: Any = json.loads(await bounded(response, MAX_ERROR_BODY, limits))
        texts = [f"{one.get('code', '')}: {one.get('message', '')}" for one in found["errors"][:5]]
    except (MooredError, TimeoutError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return "; ".join(_clean(text) for text in texts)


def _clean(text: str | None) -> str:
    """What a server sent, fit for a message."""
    return "".join(char for char in text or "" if char.isprintable())[:200]
