"""Records as messages of containerd's API, byte for byte what protobuf makes of the objects in them.

Lists of very many objects are answered by this: from a record straight to its message is half of the work of making
an object, then a message, then its bytes. Source: images.proto, containers.proto, descriptor.proto.
"""

from __future__ import annotations

import functools
from typing import Final

from moored.kernel.errors import DataLoss, InvalidArgument
from moored.kernel.filters import quote
from moored.kernel.ports.metadata import Tree
from moored.kernel.records import (
    CREATED_AT,
    LABELS,
    UPDATED_AT,
    below_of,
    decode_any,
    decode_text,
    decode_time,
    decode_zigzag,
    encode_any,
    encode_text,
    encode_uvarint,
    value_of,
)

MAX_SECONDS: Final = 4096
"""Different seconds that are kept in mind."""

_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))
"""The numbers of one byte, which most lengths are."""
_LONG: Final = 1 << 28
_LONGER: Final = 1 << 35
"""Numbers from the one up to the other have five bytes; so have seconds since 1978 and three of four nanoseconds."""
_WORD: Final = (1 << 64) - 1
_SECOND: Final = 10**9
_FIRST_SECOND: Final = -62135596800
_LAST_SECOND: Final = 253402300799
"""Seconds from 1970 to the beginning of year 1 and to the end of year 9999, between which protobuf has times."""


def varint(number: int) -> bytes:
    """Write a number of 64 bits, a negative one as its two's complement."""
    if _LONG <= number < _LONGER:
        low = number & 0x7F | (number & 0x3F80) << 1 | (number & 0x1FC000) << 2 | (number & 0xFE00000) << 3
        return (low | (number >> 28) << 32 | 0x80808080).to_bytes(5, "little")
    return encode_uvarint(number & _WORD)


def piece(data: bytes) -> bytes:
    """Give what follows the tag of a text, of bytes or of a message: the length, then the data."""
    size = len(data)
    return (_SHORT[size] if size < 0x80 else encode_uvarint(size)) + data


def text(record: Tree, key: bytes, tag: bytes) -> bytes:
    """Give the field of a text in a record, nothing for none or an empty one. Raises DataLoss for what is no UTF-8."""
    data = record.get(key)
    if not data or not isinstance(data, bytes):
        return b""
    size = len(data)
    if size < 0x80 and data.isascii():
        return tag + _SHORT[size] + data
    return tag + piece(checked(data))


def checked(data: bytes) -> bytes:
    """Give the data if it is UTF-8, which protobuf's texts have to be. Raises DataLoss."""
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise DataLoss(f"record has the text {quote(decode_text(data[:64]))}, wanted UTF-8") from error
    return data


def texts(record: Tree, name: bytes, tag: bytes) -> bytes:
    """Give the fields of a map of texts in the bucket `name` of a record. Raises as `text`."""
    found = below_of(record, name)
    if not found:
        return b""
    entries = []
    for key, value in found.items():
        if not isinstance(value, bytes):
            continue
        front, back = len(key), len(value)
        if front + back < 0x7C and key.isascii() and value.isascii():
            entries.append(b"%b%c\x0a%c%b\x12%c%b" % (tag, front + back + 4, front, key, back, value))
        else:
            entries.append(tag + piece(b"\x0a" + piece(checked(key)) + b"\x12" + piece(checked(value))))
    return b"".join(entries)


def times(record: Tree, created_tag: bytes, updated_tag: bytes) -> bytes:
    """Give the fields of both times of a record. Raises DataLoss; InvalidArgument outside of the years 1 to 9999."""
    created, updated = value_of(record, CREATED_AT), value_of(record, UPDATED_AT)
    first = _timestamp(created)
    return created_tag + first + updated_tag + (first if updated == created else _timestamp(updated))


def _timestamp(stored: bytes | None) -> bytes:
    seconds, nanos = divmod(decode_time(stored), _SECOND)
    if not _FIRST_SECOND <= seconds <= _LAST_SECOND:
        raise InvalidArgument(f"timestamp '{seconds}.{nanos:09}' is outside of the years 1 to 9999")
    data = _seconds(seconds)
    if nanos:
        data += b"\x10" + varint(nanos)
    return _SHORT[len(data)] + data


@functools.lru_cache(MAX_SECONDS)
def _seconds(seconds: int) -> bytes:
    """Give the field of the seconds, which very many objects share."""
    return b"\x08" + varint(seconds) if seconds else b""


def packed(record: Tree, key: bytes, tag: bytes) -> bytes:
    """Give the field of a message and its type, nothing for none. Raises DataLoss."""
    data = value_of(record, key)
    return b"" if data is None else tag + piece(canonical(data))


def canonical(data: bytes) -> bytes:
    """Give a stored Any as `encode_any` writes it. Raises DataLoss, also if the URL of its type is no UTF-8."""
    if data[:1] == b"\x0a" and len(data) > 2 and (end := data[1] + 2) < 0x82 and data[2:end].isascii():
        # Most are stored just so: a short type, the value, and no byte more.
        left = len(data) - end - 1
        size = left - (1 if left <= 0x80 else 2 if left <= 0x4001 else 3)
        value = b"\x12" + encode_uvarint(size) if size > 0 else b""
        if len(value) + max(size, 0) == left + 1 and data.startswith(value, end):
            return data
    message = decode_any(data)
    checked(encode_text(message.type_url))
    return encode_any(message)


def image(name: bytes, record: Tree) -> bytes:
    """Give the image in a record, message Image. Raises as `read_image`, and for texts that are no UTF-8."""
    target = below_of(record, b"target")
    if target is None:
        raise DataLoss(f"image {quote(decode_text(name))} has no target")
    size = value_of(target, b"size")
    number = decode_zigzag(size) if size else 0
    described = text(target, b"mediatype", b"\x0a") + text(target, b"digest", b"\x12")
    if number:
        described += b"\x18" + varint(number)
    described += texts(record, b"annotations", b"\x2a")
    fields = (
        b"\x0a" + piece(checked(name)) if name else b"",
        texts(record, LABELS, b"\x12"),
        b"\x1a" + piece(described),
        times(record, b"\x3a", b"\x42"),
    )
    return b"".join(fields)


def container(id_: bytes, record: Tree) -> bytes:
    """Give the container in a record, message Container. Raises as `read_container`, and as `image` for texts."""
    runtime = below_of(record, b"runtime") or {}
    driven = text(runtime, b"name", b"\x0a") + packed(runtime, b"options", b"\x12")
    fields = (
        b"\x0a" + piece(checked(id_)) if id_ else b"",
        texts(record, LABELS, b"\x12"),
        text(record, b"image", b"\x1a"),
        b"\x22" + piece(driven),
        packed(record, b"spec", b"\x2a"),
        text(record, b"snapshotter", b"\x32"),
        text(record, b"snapshotKey", b"\x3a"),
        times(record, b"\x42", b"\x4a"),
        extensions(record),
        text(record, b"sandboxid", b"\x5a"),
    )
    return b"".join(fields)


def extensions(record: Tree) -> bytes:
    """Give the fields of a container's extensions. Raises DataLoss."""
    found = below_of(record, b"extensions")
    if not found:
        return b""
    entries = []
    for key, value in found.items():
        if isinstance(value, bytes):
            entries.append(b"\x52" + piece(b"\x0a" + piece(checked(key)) + b"\x12" + piece(canonical(value))))
    return b"".join(entries)
