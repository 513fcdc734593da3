"""One tar header block: its fields, their two encodings of numbers, and its checksum.

ustar, GNU and V7 blocks are told apart by their magic, as POSIX.1-2017 (pax) and the GNU tar manual lay them out.
"""

from __future__ import annotations

import zlib
from struct import Struct

from moored.kernel.errors import Unknown

BLOCK = 512
ZEROS = bytes(BLOCK)

REGULAR, OLD_REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"\0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
GLOBAL_PAX, PAX, GNU_LONG_NAME, GNU_LONG_LINK, GNU_SPARSE = b"g", b"x", b"L", b"K", b"S"
HEADER_ONLY = frozenset((HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))
"""Types without data, whatever their size field says."""

FIELDS = Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12s")
USTAR_MAGIC, GNU_MAGIC, STAR_TRAILER = b"ustar\0", b"ustar ", b"tar\0"
NAME_MAX_SHOWN = 200
MAX_NUMBER = (1 << 63) - 1


class Entry:
    """One member of an archive.

    name and link are raw bytes as found. size is the logical size in bytes, that of the file to be made; `stored` is
    what the archive holds for it. Times are nanoseconds since 1970, atime None where the archive has none. `sparse`
    lists (offset, length) of the stored pieces. `offset` is the header's place in the stream, `pax` the records that
    belong to it.
    """

    __slots__ = (
        "atime",
        "gid",
        "link",
        "major",
        "minor",
        "mode",
        "mtime",
        "name",
        "offset",
        "pax",
        "size",
        "sparse",
        "stored",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: bytes = REGULAR) -> None:
        self.name = name
        self.type = kind
        self.link = b""
        self.mode = self.uid = self.gid = self.size = self.stored = self.mtime = self.major = self.minor = 0
        self.offset = 0
        self.atime: int | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.sparse: list[tuple[int, int]] | None = None
        self.pax: dict[bytes, bytes] | None = None


def shown(name: bytes) -> str:
    """A name from an archive as an error text may show it: quoted, short, printable."""
    text = repr(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= NAME_MAX_SHOWN else f"{text[:NAME_MAX_SHOWN]}...'"


def malformed(offset: int, what: str) -> Unknown:
    """The error for bytes that are no good tar; the class is the one that clients get from containerd."""
    return Unknown(f"invalid tar header at byte {offset}: {what}")


def number(field: bytes) -> int:
    """A numeric field: octal text between blanks and NULs, or base 256 where the first bit is set. Raises ValueError.

    Base 256 may be negative; more than 63 bits are refused.
    """
    if field[0] & 0x80:
        return _base256(field)
    text = field.strip(b" \0").partition(b"\0")[0]
    if not text:
        return 0
    # int() would take signs, blanks and underscores too
    if not text.isdigit() or b"8" in text or b"9" in text:
        raise ValueError(f"{field!r} is no octal number")
    return int(text, 8)


def _base256(field: bytes) -> int:
    if field[0] & 0x40:
        value = ~int.from_bytes(bytes(byte ^ 0xFF for byte in field), "big")
    else:
        value = int.from_bytes(field, "big") ^ (0x80 << 8 * (len(field) - 1))
    if not -MAX_NUMBER - 1 <= value <= MAX_NUMBER:
        raise ValueError(f"{field!r} is over 63 bits")
    return value


def checksum(block: bytes) -> int:
    """The sum of a block's bytes with blanks in place of the checksum field.

    The low half of Adler-32 is one plus the plain sum, modulo 65521, which 256 bytes cannot reach.
    """
    low = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    return low - sum(block[148:156]) + 256


def signed_checksum(block: bytes) -> int:
    """The same over signed bytes, which some old archivers wrote."""
    return checksum(block) - 256 * sum(byte > 127 for byte in block[:148] + block[156:])


class Decoder:
    """Turns header blocks into entries; remembers numbers that it has read, since most repeat."""

    def __init__(self) -> None:
        self._known: dict[bytes, int] = {}

    def decode(self, block: bytes, offset: int) -> Entry:
        """The entry of a block of 512 bytes, without data. Raises Unknown naming the field and the offset."""
        fields = FIELDS.unpack(block)
        name, mode, uid, gid, size, mtime, total, kind, link, magic, _, _, _, major, minor, prefix, tail = fields
        entry = Entry(name if name[-1] else name[: name.index(0)], kind)
        entry.offset = offset
        what = "checksum"
        try:
            found = number(total)
            if found != checksum(block) and found != signed_checksum(block):
                raise malformed(offset, f"its checksum is {checksum(block)}, not {found}")
            what = "mode"
            entry.mode = self._number(mode)
            what = "uid"
            entry.uid = self._number(uid)
            what = "gid"
            entry.gid = self._number(gid)
            what = "size"
            entry.size = entry.stored = number(size)
            what = "mtime"
            entry.mtime = self._number(mtime) * 1_000_000_000
            if magic in {USTAR_MAGIC, GNU_MAGIC}:
                what = "device number"
                entry.major = self._number(major)
                entry.minor = self._number(minor)
        except ValueError as fault:
            raise malformed(offset, f"{what} of {shown(entry.name)}: {fault}") from None
        entry.link = link if link[-1] else link[: link.index(0)]
        if magic == USTAR_MAGIC and prefix[0]:
            # star keeps times at the end of the prefix
            room = prefix[:131] if tail[8:] == STAR_TRAILER else prefix
            entry.name = room.partition(b"\0")[0] + b"/" + entry.name
        if kind == OLD_REGULAR:
            entry.type = DIRECTORY if entry.name.endswith(b"/") else REGULAR
        if entry.size < 0:
            raise malformed(offset, f"the size of {shown(entry.name)} is {entry.size}")
        return entry

    def _number(self, field: bytes) -> int:
        value = self._known.get(field)
        if value is None:
            value = number(field)
            if len(self._known) < 4096:
                self._known[field] = value
        return value
