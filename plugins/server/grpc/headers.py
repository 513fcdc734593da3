"""Headers of gRPC calls over HTTP/2: what a request's say, and the bytes of an answer's (gRPC's PROTOCOL-HTTP2).

Requests are decompressed by hpack, and each distinct block once: a client's second call repeats its first one's block.
Answers are never compressed with what was sent before, so that their bytes can be made in advance.
"""

from __future__ import annotations

import base64
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote

from hpack import Decoder, HPACKError

from moored.api.http2 import COMPRESSION_ERROR, ENHANCE_YOUR_CALM, Broken, literal

MAX_BLOCK: Final = 16384
"""Bytes of the headers of a call, compressed or not."""
KNOWN_BLOCKS: Final = 256
"""Blocks that are remembered, of each connection."""
KNOWN_METADATA: Final = 64
"""Values of the longest request that is remembered; one header can hold thousands."""
SHOWN: Final = 100
"""Characters of what a client sent that an answer to it quotes: such answers may have to wait for it to read."""
NAMESPACE_HEADER: Final = "containerd-namespace"
LEASE_HEADER: Final = "containerd-lease"
CODINGS: Final = ("identity", "gzip", "deflate")
"""How messages may be compressed."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

_INVALID_ARGUMENT: Final = 3
_INTERNAL: Final = 13
_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_TIMEOUT: Final = 30 * 24 * 3600.0
_OF_CONNECTION: Final = ("connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade")
"""What a request of HTTP/2 must not hold (RFC 9113, 8.2.2)."""
_OF_TRANSPORT: Final = ("content-type", "te", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "host")
_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_NAME_CHARACTERS: Final = frozenset(string.ascii_lowercase + string.digits + "-_.")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to headers that are none of a gRPC call: HTTP status, gRPC code, text."""

    http: int
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """The headers of a call. timeout in seconds, None without one; metadata without what belongs to the transport."""

    path: str
    timeout: float | None
    coding: str
    metadata: tuple[tuple[str, str | bytes], ...]
    namespace: str
    lease: str
    refusal: Refusal | None = None


class Blocks:
    """Reads the header blocks of one connection, in the order in which they came."""

    def __init__(self) -> None:
        self._decoder = Decoder(MAX_BLOCK)
        self._known: dict[bytes, Request | None] = {}
        self._state: tuple[object, ...] = ()

    def read(self, block: bytes) -> Request | None:
        """The request that the block stands for, None for one that HTTP/2 calls malformed.

        Raises Broken for a block that cannot be decompressed: nothing after it could be.
        """
        try:
            return self._known[block]
        except KeyError:
            pass
        try:
            fields = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            code = ENHANCE_YOUR_CALM if "larger than" in str(error) else COMPRESSION_ERROR
            raise Broken(code, f"headers: {error}") from error
        except (IndexError, ValueError) as error:
            raise Broken(COMPRESSION_ERROR, f"headers: {error}") from error
        found = _request((bytes(name), bytes(value)) for name, value in fields)
        # A block means the same for as long as the table that it may point into has not changed.
        if (state := self._table()) != self._state or len(self._known) >= KNOWN_BLOCKS:
            self._known.clear()
            self._state = state
        elif found is None or len(found.metadata) <= KNOWN_METADATA:
            self._known[block] = found
        return found

    def _table(self) -> tuple[object, ...]:
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return len(entries), table.maxsize, _Same(entries[0]) if entries else None


class _Same:
    """Equal only to the very same object, which it keeps, so that no other one can take its place in memory."""

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._held is self._held

    __hash__ = None  # type: ignore[assignment]  # nothing looks it up


def _request(fields: Iterable[tuple[bytes, bytes]]) -> Request | None:
    pseudo: dict[str, str] = {}
    transport: dict[str, str] = {}
    metadata: list[tuple[str, str | bytes]] = []
    regular = False
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("utf-8", "backslashreplace")
        if "\n" in value or "\r" in value or "\0" in value:
            return None
        if name.startswith(":"):
            if regular or name in pseudo or name not in (":method", ":scheme", ":path", ":authority"):
                return None
            pseudo[name] = value
            continue
        regular = True
        if not name or not _NAME_CHARACTERS.issuperset(name) or name in _OF_CONNECTION:
            return None
        if name == "te" and value != "trailers":
            return None
        if name in _OF_TRANSPORT:
            transport.setdefault(name, value)
        elif not name.startswith("grpc-") or name.endswith("-bin"):
            metadata += [(name, one) for one in _values(name, value)]
    if not {":method", ":scheme", ":path"} <= pseudo.keys() or not pseudo[":path"]:
        return None
    timeout, refusal = None, _refusal(pseudo, transport)
    if refusal is None and "grpc-timeout" in transport:
        timeout = _timeout(transport["grpc-timeout"])
        if timeout is None:
            refusal = Refusal(400, _INTERNAL, f"malformed grpc-timeout: {transport['grpc-timeout'][:SHOWN]!r}")
    return Request(
        pseudo[":path"],
        timeout,
        transport.get("grpc-encoding", "identity"),
        tuple(metadata),
        _first(metadata, NAMESPACE_HEADER),
        _first(metadata, LEASE_HEADER),
        refusal,
    )


def _refusal(pseudo: dict[str, str], transport: dict[str, str]) -> Refusal | None:
    kind = transport.get("content-type", "").lower()
    if kind != "application/grpc" and not kind.startswith(("application/grpc+", "application/grpc;")):
        return Refusal(415, _INVALID_ARGUMENT, f"invalid gRPC request content-type {kind[:SHOWN]!r}")
    if pseudo[":method"] != "POST":
        return Refusal(405, _INTERNAL, f"method {pseudo[':method'][:SHOWN]!r} of a gRPC request must be POST")
    return None


def _timeout(text: str) -> float | None:
    number, unit = text[:-1], text[-1:]
    if not number.isascii() or not number.isdigit() or len(number) > 8 or unit not in _SECONDS:
        return None
    return min(int(number) * _SECONDS[unit], _LONGEST_TIMEOUT)


def _values(name: str, value: str) -> list[str | bytes]:
    """The value as callers know it: bytes of keys on -bin, which may have been joined by commas."""
    if not name.endswith("-bin"):
        return [value]
    found: list[str | bytes] = []
    for part in value.split(","):
        try:
            found.append(base64.b64decode(part.strip() + "=" * (-len(part.strip()) % 4), validate=True))
        except ValueError:
            # Also binascii.Error: what is not base64, or not even ASCII.
            continue
    return found


def _first(metadata: Metadata, name: str) -> str:
    return next((value for key, value in metadata if key == name and isinstance(value, str)), "")


# --- answers ----------------------------------------------------------------------------------------------------------


def encoded(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """The fields as a block; bytes are those of keys on -bin."""
    return literal(
        (name.lower(), value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"="))
        for name, value in fields
    )


OK_HEADERS: Final = encoded(
    ((":status", "200"), ("content-type", "application/grpc"), ("grpc-accept-encoding", ",".join(CODINGS)))
)
"""Those of every call that is answered."""
OK_TRAILERS: Final = encoded((("grpc-status", "0"),))


def trailers(code: int, text: str, metadata: Metadata = ()) -> bytes:
    """Those at the end of a call."""
    if not code and not text and not metadata:
        return OK_TRAILERS
    said = [("grpc-status", str(code)), ("grpc-message", quote(text, safe=_PRINTABLE, errors="replace"))]
    return encoded((*(said if text else said[:1]), *metadata))


def only_trailers(code: int, text: str, metadata: Metadata = (), *, http: int = 200) -> bytes:
    """Those of a call that ends before anything was sent."""
    first = encoded(((":status", str(http)), ("content-type", "application/grpc")))
    return first + trailers(code, text, metadata)
