"""Writes archives: ustar headers with a PAX header in front where a value does not fit; equal entries, equal bytes."""

from __future__ import annotations

from collections.abc import Callable

from moored.kernel.errors import Internal
from moored.plugins.diff.tar.header import BLOCK, FIELDS, HEADER_ONLY, PAX, ZEROS, Entry, checksum, shown
from moored.plugins.diff.tar.pax import XATTR

Write = Callable[[bytes | memoryview], object]

_MAX_OCTAL = 0o7777777
_MAX_LONG_OCTAL = 0o77777777777
_SECOND = 1_000_000_000


class Writer:
    """An archive in the making: `add` an entry, then `data` of just its size, and so on; `close` ends it.

    `write` takes all bytes that it is given. Of an entry count name, type, link, mode, uid, gid, size, mtime, major,
    minor and xattrs. Raises Internal when data and size do not fit.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._left = 0
        self._padding = 0

    def add(self, entry: Entry) -> None:
        """Begin an entry."""
        self._finish()
        records = _records(entry)
        if records:
            data = b"".join(_record(key, value) for key, value in sorted(records.items()))
            head = Entry(_pax_name(entry.name), PAX)
            head.size = len(data)
            head.mode = 0o644
            self._write(_block(head) + data + bytes(-len(data) % BLOCK))
        self._write(_block(entry))
        if entry.type not in HEADER_ONLY:
            self._left = entry.size
            self._padding = -entry.size % BLOCK

    def data(self, data: bytes | memoryview) -> None:
        """Go on with the data of the entry."""
        if len(data) > self._left:
            raise Internal(f"an entry of the archive gets {len(data) - self._left} bytes more than its size")
        self._left -= len(data)
        self._write(data)

    def close(self) -> None:
        """Write the end of the archive."""
        self._finish()
        self._write(ZEROS + ZEROS)

    def _finish(self) -> None:
        if self._left:
            raise Internal(f"an entry of the archive lacks {self._left} bytes of its size")
        if self._padding:
            self._write(bytes(self._padding))
            self._padding = 0


def _records(entry: Entry) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    if len(entry.name) > 100 or not entry.name.isascii():
        found[b"path"] = entry.name
    if len(entry.link) > 100 or not entry.link.isascii():
        found[b"linkpath"] = entry.link
    for key, value, most in (
        (b"uid", entry.uid, _MAX_OCTAL),
        (b"gid", entry.gid, _MAX_OCTAL),
        (b"size", entry.size, _MAX_LONG_OCTAL),
    ):
        if not 0 <= value <= most:
            found[key] = b"%d" % value
    if entry.mtime % _SECOND or not 0 <= entry.mtime // _SECOND <= _MAX_LONG_OCTAL:
        found[b"mtime"] = _time(entry.mtime)
    found.update((XATTR + key, value) for key, value in (entry.xattrs or {}).items())
    return found


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, rest = divmod(abs(nanoseconds), _SECOND)
    return sign + (b"%d.%09d" % (seconds, rest)).rstrip(b"0").rstrip(b".") if rest else sign + b"%d" % seconds


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    size = rest + len(str(size))
    return b"%d %s=%s\n" % (size, key, value)


def _pax_name(name: bytes) -> bytes:
    folder, _, base = name.rstrip(b"/").rpartition(b"/")
    made = b"/".join(part for part in (folder, b"PaxHeaders.0", base) if part)
    return made[:100].decode("ascii", "replace").encode("ascii", "replace")


def _block(entry: Entry) -> bytes:
    seconds = entry.mtime // _SECOND
    try:
        fields = (
            _text(entry.name),
            _octal(entry.mode & 0o7777, 8),
            _octal(entry.uid if 0 <= entry.uid <= _MAX_OCTAL else 0, 8),
            _octal(entry.gid if 0 <= entry.gid <= _MAX_OCTAL else 0, 8),
            _octal(entry.size if entry.size <= _MAX_LONG_OCTAL else 0, 12),
            _octal(seconds if 0 <= seconds <= _MAX_LONG_OCTAL else 0, 12),
            b" " * 8,
            entry.type,
            _text(entry.link),
            b"ustar\0",
            b"00",
            b"",
            b"",
            _octal(entry.major, 8),
            _octal(entry.minor, 8),
            b"",
            b"",
        )
    except ValueError as fault:
        raise Internal(f"{shown(entry.name)} does not fit into a tar header: {fault}") from fault
    block = FIELDS.pack(*fields)
    return block[:148] + b"%06o\0 " % checksum(block) + block[156:]


def _text(value: bytes) -> bytes:
    return value[:100] if value.isascii() else value[:100].decode("ascii", "replace").encode("ascii", "replace")


def _octal(value: int, width: int) -> bytes:
    text = b"%0*o" % (width - 1, value)
    if value < 0 or len(text) >= width:
        raise ValueError(f"{value} has no {width - 1} octal digits")
    return text
