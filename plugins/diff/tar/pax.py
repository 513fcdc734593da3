"""PAX extended headers: records of `LENGTH KEY=VALUE\\n`, and what they change in an entry."""

from __future__ import annotations

from moored.plugins.diff.tar.header import MAX_NUMBER, Entry, malformed, shown

XATTR = b"SCHILY.xattr."
SPARSE = b"GNU.sparse."
SPARSE_BLOCKS = b"GNU.sparse.numblocks"
SPARSE_MAP, SPARSE_OFFSET, SPARSE_BYTES = b"GNU.sparse.map", b"GNU.sparse.offset", b"GNU.sparse.numbytes"
_TEXTS = frozenset((b"path", b"linkpath", b"uname", b"gname"))
_LENGTH_DIGITS = 10


def parse(data: bytes, offset: int) -> dict[bytes, bytes]:
    """The records of an extended header; of equal keys the last one counts. Raises Unknown.

    The repeated pairs of sparse format 0.0 come as one `GNU.sparse.map`, the way of format 0.1.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    place, end = 0, len(data)
    while place < end:
        blank = data.find(b" ", place, place + _LENGTH_DIGITS + 1)
        digits = data[place : max(blank, place)]
        if not digits.isdigit():
            raise malformed(offset, f"extended header has no record length at {place}")
        stop = place + int(digits)
        if stop > end or stop <= blank + 2 or data[stop - 1] != 0x0A:
            raise malformed(offset, f"extended header record at {place} does not end where it says")
        key, equals, value = data[blank + 1 : stop - 1].partition(b"=")
        _check(key, equals, value, offset)
        if key in {SPARSE_OFFSET, SPARSE_BYTES}:
            if (key == SPARSE_BYTES) != len(pairs) % 2 or b"," in value:
                raise malformed(offset, "sparse map has an offset without a length")
            pairs.append(value)
        else:
            records[key] = value
        place = stop
    if pairs:
        records[SPARSE_MAP] = b",".join(pairs)
    return records


def _check(key: bytes, equals: bytes, value: bytes, offset: int) -> None:
    if not key or not equals or b"\0" in key:
        raise malformed(offset, f"extended header record has the key {shown(key)}")
    if key in _TEXTS and b"\0" in value:
        raise malformed(offset, f"extended header has a NUL in {key.decode()}")


def merge(entry: Entry, records: dict[bytes, bytes]) -> None:
    """Change an entry as its records say; an empty value leaves the header's. Raises Unknown."""
    for key, value in records.items():
        if key.startswith(XATTR):
            if entry.xattrs is None:
                entry.xattrs = {}
            entry.xattrs[key[len(XATTR) :]] = value
        elif value:
            _set(entry, key, value)
    entry.pax = records


def _set(entry: Entry, key: bytes, value: bytes) -> None:
    try:
        if key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = entry.stored = integer(value)
        elif key == b"uid":
            entry.uid = integer(value)
        elif key == b"gid":
            entry.gid = integer(value)
        elif key == b"mtime":
            entry.mtime = nanoseconds(value)
        elif key == b"atime":
            entry.atime = nanoseconds(value)
    except ValueError as fault:
        raise malformed(entry.offset, f"{key.decode()} of {shown(entry.name)}: {fault}") from None
    if entry.size < 0:
        raise malformed(entry.offset, f"the size of {shown(entry.name)} is {entry.size}")


def integer(text: bytes) -> int:
    """A decimal number of up to 63 bits, possibly negative. Raises ValueError."""
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19:
        raise ValueError(f"{shown(text)} is no decimal number")
    value = int(text)
    if not -MAX_NUMBER - 1 <= value <= MAX_NUMBER:
        raise ValueError(f"{shown(text)} is over 63 bits")
    return value


def nanoseconds(text: bytes) -> int:
    """Seconds with a decimal fraction as nanoseconds; digits beyond them are cut. Raises ValueError."""
    whole, point, fraction = text.partition(b".")
    if (point and fraction and not fraction.isdigit()) or len(fraction) > 100:
        raise ValueError(f"{shown(text)} is no time")
    seconds = integer(whole)
    rest = int(fraction[:9].ljust(9, b"0"))
    return seconds * 1_000_000_000 + (-rest if whole.startswith(b"-") else rest)
