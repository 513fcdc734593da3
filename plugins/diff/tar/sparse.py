"""Maps of sparse files: which pieces of a file an archive holds, in the old GNU format and the three PAX ones."""

from __future__ import annotations

from collections.abc import Callable

from moored.plugins.diff.tar.header import BLOCK, Entry, malformed, number, shown
from moored.plugins.diff.tar.pax import SPARSE, SPARSE_BLOCKS, SPARSE_MAP, integer

MAX_MAP = 1 << 20
"""Bytes of a map that stands in front of the data."""

Map = list[tuple[int, int]]
Take = Callable[[int], bytes]
"""Gives exactly that many bytes of the archive, or raises."""


def from_pax(entry: Entry, records: dict[bytes, bytes], take: Take) -> None:
    """Make a sparse entry of one whose records say so; `take` gives the entry's stored data. Raises Unknown.

    An unknown version leaves a plain file, as containerd does.
    """
    version = (records.get(SPARSE + b"major", b""), records.get(SPARSE + b"minor", b""))
    if version not in {(b"1", b"0"), (b"0", b"0"), (b"0", b"1"), (b"", b"")}:
        return
    if version != (b"1", b"0") and not {SPARSE_MAP, SPARSE_BLOCKS} & records.keys():
        return
    try:
        entry.name = records.get(SPARSE + b"name") or entry.name
        size = records.get(SPARSE + b"size") or records.get(SPARSE + b"realsize")
        pieces = _leading_map(entry, take) if version == (b"1", b"0") else _listed_map(records)
        _accept(entry, pieces, integer(size) if size else entry.size)
    except ValueError as fault:
        raise malformed(entry.offset, f"sparse map of {shown(entry.name)}: {fault}") from None


def from_gnu(entry: Entry, block: bytes, take: Take) -> None:
    """Make a sparse entry of one of type S; `take` gives the extension blocks behind its header. Raises Unknown."""
    try:
        _accept(entry, _gnu_map(block, take), number(block[483:495]))
    except ValueError as fault:
        raise malformed(entry.offset, f"sparse map of {shown(entry.name)}: {fault}") from None


def _gnu_map(block: bytes, take: Take) -> Map:
    pieces, more = _pairs(block[386:482], block[482])
    blocks = 0
    while more:
        blocks += 1
        if blocks * BLOCK > MAX_MAP:
            raise ValueError(f"over {MAX_MAP} bytes")
        further = take(BLOCK)
        found, more = _pairs(further[:504], further[504])
        pieces += found
    return pieces


def _pairs(area: bytes, flag: int) -> tuple[Map, bool]:
    found = []
    for place in range(0, len(area), 24):
        if not area[place]:
            break
        found.append((number(area[place : place + 12]), number(area[place + 12 : place + 24])))
    return found, flag != 0


def _listed_map(records: dict[bytes, bytes]) -> Map:
    text = records.get(SPARSE_MAP, b"")
    numbers = [integer(word) for word in text.split(b",")] if text else []
    if len(numbers) != 2 * integer(records.get(SPARSE_BLOCKS, b"")):
        raise ValueError("number of blocks does not fit the map")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _leading_map(entry: Entry, take: Take) -> Map:
    text = b""
    wanted = 1
    while (lines := text.count(b"\n")) < wanted:
        if len(text) >= MAX_MAP or len(text) + BLOCK > entry.stored:
            raise ValueError("it has no end")
        # the first line says how many follow; a line is at least two bytes, so that many blocks are needed anyway
        need = max(BLOCK, min((wanted - lines) * 2, MAX_MAP - len(text), entry.stored - len(text)) // BLOCK * BLOCK)
        text += take(need)
        if wanted == 1 and b"\n" in text:
            count = integer(text[: text.index(b"\n")])
            if not 0 <= count <= MAX_MAP // 4:
                raise ValueError(f"it has {count} pieces")
            wanted = 1 + 2 * count
    numbers = [integer(line) for line in text.split(b"\n", wanted)[1:wanted]]
    entry.stored -= len(text)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _accept(entry: Entry, pieces: Map, size: int) -> None:
    """Set the map of an entry whose pieces are in order, inside the file, and just what is stored."""
    place = total = 0
    for offset, length in pieces:
        if offset < place or length < 0 or offset + length > size:
            raise ValueError(f"piece at {offset} of {length} bytes does not fit")
        place = offset + length
        total += length
    if size < 0 or total != entry.stored:
        raise ValueError(f"it names {total} bytes, {entry.stored} are stored")
    entry.size = size
    entry.sparse = pieces
