"""The URIs by which a client says where a container's output goes, as Go's `net/url` reads them."""

from __future__ import annotations

from typing import Final, NamedTuple

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_SCHEME: Final = _LETTERS | frozenset("0123456789+-.")


class StreamUri(NamedTuple):
    """`scheme://path?query`: the scheme in lower case, `fifo` for a bare path, which is taken as it is.

    `query` has each key once, with the first of its values, in the order of the keys' first appearance.
    """

    scheme: str
    path: str
    query: tuple[tuple[str, str], ...] = ()


def parse(text: str) -> StreamUri:
    """Read a URI; never fails, since what is no URI is a path."""
    scheme, colon, rest = text.partition(":")
    scheme = scheme.lower()
    if not colon or scheme[:1] not in _LETTERS or not _SCHEME.issuperset(scheme):
        return StreamUri("fifo", text)
    path, _, query = rest.partition("#")[0].partition("?")
    if path.startswith("//"):  # an authority, which none of the schemes has a use for
        _, slash, path = path[2:].partition("/")
        path = slash + path
    return StreamUri(scheme, _unescaped(path), tuple(_pairs(query).items()))


def _pairs(query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for piece in query.split("&"):
        if piece and ";" not in piece:  # Go drops what has a semicolon
            key, _, value = piece.replace("+", " ").partition("=")
            found.setdefault(_unescaped(key), _unescaped(value))
    return found


def _unescaped(text: str) -> str:
    """Resolve `%41`; a percent sign that begins no escape stays."""
    if "%" not in text:
        return text
    first, *pieces = text.encode().split(b"%")
    out = bytearray(first)
    for piece in pieces:
        try:
            out += bytes.fromhex(piece[:2].decode()) + piece[2:]
        except ValueError:
            out += b"%" + piece
    return out.decode(errors="surrogateescape")
