"""Names of any length in one space: find, make, drop, and the neighbours in byte order (the layout is in `layout`)."""

from __future__ import annotations

from moored.kernel.errors import DataLoss
from moored.plugins.metadata.lmdb.layout import ID, ID_SIZE, MORE, MORE_TAG, NUL, NUMBERED, PIECE
from moored.plugins.metadata.lmdb.records import Record, Records

Step = tuple[bytes, bytes]
"""A space and the key in it that leads on to the next space."""


def find(records: Records, space: bytes, name: bytes) -> bytes | None:
    """Give the record of `name`."""
    at = 0
    while len(name) - at > PIECE:
        link = records.get(space + name[at : at + PIECE] + NUL)
        if link is None:
            return None
        space = _space_of(link)
        at += PIECE
    return records.link(space + name[at:])


def store(records: Records, space: bytes, name: bytes, record: bytes) -> None:
    """Put the record of `name`, and the continuations that lead there."""
    at = 0
    while len(name) - at > PIECE:
        key = space + name[at : at + PIECE] + NUL
        link = records.get(key)
        if link is None:
            space = records.new_space()
            records.put(key, MORE_TAG + space)
        else:
            space = _space_of(link)
        at += PIECE
    records.put(space + name[at:], record)


def drop(records: Records, space: bytes, name: bytes) -> None:
    """Delete the record of `name`, which exists, and the continuations that are empty without it."""
    at = 0
    steps: list[Step] = []
    while len(name) - at > PIECE:
        key = space + name[at : at + PIECE] + NUL
        steps.append((space, key))
        link = records.get(key)
        if link is None:
            raise DataLoss(f"metadata store is damaged: no record at {key!r}")
        space = _space_of(link)
        at += PIECE
    records.delete(space + name[at:])
    while steps:
        left = records.at_or_after(space)
        if left is not None and left[0].startswith(space):
            return
        space, key = steps.pop()
        records.delete(key)


def following(records: Records, space: bytes, name: bytes, *, strictly: bool) -> Record | None:
    """Give the smallest name that is at or above `name` (strictly: above), with its record."""
    steps: list[Step] = []
    at = 0
    while len(name) - at > PIECE:
        key = space + name[at : at + PIECE] + NUL
        link = records.get(key)
        if link is None:
            # What is above `name` here is above the missing link too, and the piece itself is below both.
            return _first_from(records, space, key, steps, strictly=False)
        steps.append((space, key))
        space = _space_of(link)
        at += PIECE
    # Without a name the key is the bucket's own record, which is no entry.
    return _first_from(records, space, space + name[at:], steps, strictly=strictly or not name)


def _first_from(records: Records, space: bytes, key: bytes, steps: list[Step], *, strictly: bool) -> Record | None:
    while True:
        found = records.after(key) if strictly else records.at_or_after(key)
        if found is None or not found[0].startswith(space):
            if not steps:
                return None
            space, key = steps.pop()
            strictly = True
        elif tag(found) == MORE:
            steps.append((space, found[0]))
            space = key = _space_of(found[1])
            strictly = False
        else:
            return _whole_name(steps, found), found[1]


def preceding(records: Records, space: bytes, name: bytes | None) -> Record | None:
    """Give the greatest name below `name` (None: of all), with its record."""
    steps: list[Step] = []
    at = 0
    if name is None:
        return _last_before(records, space, _behind(space), steps)
    while len(name) - at > PIECE:
        key = space + name[at : at + PIECE] + NUL
        link = records.get(key)
        if link is None:
            return _last_before(records, space, key, steps)
        steps.append((space, key))
        space = _space_of(link)
        at += PIECE
    return _last_before(records, space, space + name[at:], steps)


def _last_before(records: Records, space: bytes, key: bytes, steps: list[Step]) -> Record | None:
    while True:
        found = records.before(key)
        if found is None or not found[0].startswith(space) or len(found[0]) == ID_SIZE:
            if not steps:
                return None
            space, key = steps.pop()
        elif tag(found) == MORE:
            steps.append((space, found[0]))
            space = _space_of(found[1])
            key = _behind(space)
        else:
            return _whole_name(steps, found), found[1]


def _whole_name(steps: list[Step], found: Record) -> bytes:
    last = found[0][ID_SIZE:]
    return b"".join(key[ID_SIZE:-1] for _, key in steps) + last if steps else last


def _behind(space: bytes) -> bytes:
    return ID.pack(ID.unpack(space)[0] + 1)


def _space_of(link: bytes) -> bytes:
    if len(link) != 1 + ID_SIZE:
        raise DataLoss(f"metadata store is damaged: {link[:16]!r} is no reference to a space")
    return link[1:]


def tag(found: Record) -> int:
    """Give what kind of record it is. Raises DataLoss if it is none."""
    kind = found[1][0] if found[1] else -1
    if not 0 <= kind <= NUMBERED:
        raise DataLoss(f"metadata store is damaged: unknown record {found[1][:16]!r} at key {found[0]!r}")
    return kind
