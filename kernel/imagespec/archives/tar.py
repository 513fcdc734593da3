"""Tar streams, as far as archives of images need them: names, links, sizes and bytes; nothing is ever extracted.

Reading takes ustar, GNU long names and PAX `path`, `linkpath` and `size`; writing makes plain files and folders of
root at the begin of time, byte for byte as Go's archive/tar. Source: POSIX pax; faults catalogue rows 27 and 56.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Final

from moored.kernel.errors import InvalidArgument, Unknown

BLOCK: Final = 512
MAX_HEADER: Final = 1 << 20
"""Bytes of a long name or PAX header."""
PIECE: Final = 1 << 20
END: Final = bytes(2 * BLOCK)
_LARGEST_OCTAL: Final = 0o77777777777
_RECORD: Final = re.compile(rb"([0-9]{1,7}) ([^=]+)=")


class Input:
    """Bytes that come in chunks, read in pieces of the size that is wanted."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._at = 0

    async def read(self, size: int) -> bytes:
        """Give so many bytes, fewer only at the end."""
        if len(self._buffer) - self._at < size:
            await self._fill(size)
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        return data

    async def _fill(self, size: int) -> None:
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        while have < size and (chunk := await anext(self._chunks, None)) is not None:
            parts.append(chunk)
            have += len(chunk)
        self._buffer, self._at = b"".join(parts), 0

    async def exactly(self, size: int) -> bytes:
        """Give so many bytes. Raises Unknown `unexpected EOF` when they end before."""
        data = await self.read(size)
        if len(data) < size:
            raise Unknown("unexpected EOF")
        return data


@dataclass(slots=True)
class Member:
    """One member. name and target are cleaned as paths are, and stay texts: `../x` is a name like any other.

    kind     `file`, `link` (symbolic) or `other`
    """

    name: str
    kind: str
    size: int
    target: str
    input: Input
    left: int

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Give the bytes of the member, once."""
        while self.left:
            data = await self.input.exactly(min(self.left, PIECE))
            self.left -= len(data)
            yield data

    async def whole(self, limit: int) -> bytes:
        """Give all of them. Raises InvalidArgument if there are more than `limit`."""
        if self.size > limit:
            raise InvalidArgument(f"file {self.name[:256]!r} has {self.size} bytes, at most {limit} are read")
        return b"".join([piece async for piece in self.pieces()])

    async def skip(self) -> None:
        """Pass over what is left of it, and over its padding."""
        async for _ in self.pieces():
            pass
        await self.input.exactly(-self.size % BLOCK)


async def members(source: Input) -> AsyncGenerator[Member]:
    """Give the members of an archive; each is passed over when the next is asked for.

    Raises Unknown for what is no tar or ends too early, InvalidArgument for headers over the limit. What follows the
    end of the archive is not looked at.
    """
    extended: dict[str, str] = {}
    while True:
        block = await source.read(BLOCK)
        if not block or block == bytes(BLOCK):
            return
        if len(block) < BLOCK:
            raise Unknown("unexpected EOF")
        info = _header(block)
        size = _size(info.size, extended)
        if info.type in {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE}:
            data = await _extension(source, info)
            if info.type == tarfile.XHDTYPE:
                extended |= _pax(data)
            elif info.type != tarfile.XGLTYPE:
                key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                extended[key] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
            continue
        member = _member(info, extended, size, source)
        extended = {}
        yield member
        await member.skip()


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise Unknown("archive/tar: invalid tar header") from error


def _size(plain: int, extended: dict[str, str]) -> int:
    text = extended.get("size", "")
    if text and not re.fullmatch("[0-9]{1,18}", text):
        raise Unknown("archive/tar: invalid tar header")
    size = int(text) if text else plain
    if size < 0:
        raise Unknown("archive/tar: invalid tar header")
    return size


async def _extension(source: Input, info: tarfile.TarInfo) -> bytes:
    if not 0 <= info.size <= MAX_HEADER:
        raise InvalidArgument(f"header of {info.size} bytes in the archive, at most {MAX_HEADER} are read")
    data = await source.exactly(info.size)
    await source.exactly(-info.size % BLOCK)
    return data


def _pax(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while place < len(data):
        match = _RECORD.match(data, place)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < place + length <= len(data) or data[place + length - 1] != 0x0A:
            raise Unknown("archive/tar: invalid tar header")
        value = data[match.end() : place + length - 1]
        key = match[2].decode("utf-8", "replace")
        if key in {"path", "linkpath", "size"}:
            found[key] = value.decode("utf-8", "surrogateescape")
        place += length
    return found


def _member(info: tarfile.TarInfo, extended: dict[str, str], size: int, source: Input) -> Member:
    name = posixpath.normpath(extended.get("path", info.name) or ".")
    if info.type == tarfile.SYMTYPE:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), extended.get("linkpath", info.linkname)))
        return Member(name, "link", 0, target, source, 0)
    if info.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not info.name.endswith("/"):
        return Member(name, "file", size, "", source, size)
    # Of other kinds only those that may have bytes are passed over with them.
    has_data = info.type not in {tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
    size = size if has_data else 0
    return Member(name, "other", size, "", source, size)


# --- writing ----------------------------------------------------------------------------------------------------------


def header(name: str, size: int = 0, mode: int = 0o444) -> bytes:
    """Make the header of a file, or of a folder where the name ends with a slash."""
    folder = name.endswith("/")
    if size <= _LARGEST_OCTAL:
        return _block(name, size, mode, b"5" if folder else b"0")
    record = _record("size", str(size))
    folder_of, _, last = name.rpartition("/")
    extension = _block(f"{folder_of}/PaxHeaders.0/{last}", len(record), 0, b"x")
    return extension + record + padding(len(record)) + _block(name, 0, mode, b"0")


def padding(size: int) -> bytes:
    """Make what follows a file of that size up to the next header."""
    return bytes(-size % BLOCK)


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def _block(name: str, size: int, mode: int, kind: bytes) -> bytes:
    raw = name.encode()
    if len(raw) > 100:
        raise InvalidArgument(f"name {name[:256]!r} is too long for an archive of an image")
    block = b"".join(
        (
            raw.ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            b"%011o\0" % size,
            b"%011o\0" % 0,
            b" " * 8,
            kind,
            bytes(100),
            b"ustar\00000",
            bytes(64),
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
