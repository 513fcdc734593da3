"""How texts, numbers, times, messages and label maps are written in the buckets of containerd's metadata files.

    text      its UTF-8 bytes
    uvarint   7 bits a byte, the low ones first; the top bit says that more follow
    zigzag    a signed number n as the uvarint of (n << 1) ^ (n >> 63)
    time      15 bytes, big endian: 1, seconds since year 1 (8), nanoseconds (4), zone in minutes (2), -1 for UTC
    Any       a protobuf Any: type URL (field 1) and value (field 2), each left out where empty
    map       a bucket of text to text

Source: contracts/meta-db.md 2.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from moored.kernel.errors import DataLoss
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.metadata import Bucket, Tree

ZERO_TIME: Final = -62135596800 * 10**9
"""Year 1, what a missing time stands for, in ns since 1970."""

CREATED_AT: Final = b"createdat"
UPDATED_AT: Final = b"updatedat"
LABELS: Final = b"labels"

_TIME: Final = struct.Struct(">Bqih")
_TIME_FORMS: Final = ((1, _TIME.size), (2, _TIME.size + 1))
"""Version and length."""
_SECOND: Final = 10**9
_EPOCH: Final = 62135596800
"""Seconds from year 1 to 1970."""
_UTC: Final = -1
_MAX_VARINT: Final = 10
_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))
"""The numbers of one byte, which most are."""
_BYTES_FIELD: Final = 2
"""Protobuf's wire type of texts, bytes and messages."""


def encode_text(text: str) -> bytes:
    """Give a text's bytes; lone surrogates, by which `decode_text` shows bytes that are no UTF-8, give these back."""
    return text.encode("utf-8", "surrogateescape")


def decode_text(data: bytes) -> str:
    """Give a text that `encode_text` turns into the same bytes."""
    try:
        return data.decode()  # the usual case is several times as fast without a handler
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def encode_uvarint(number: int) -> bytes:
    """Write a number from 0 to 2**64 - 1."""
    if number <= 0x7F:
        return _SHORT[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def decode_uvarint(data: bytes) -> int:
    """Read one from the beginning of `data`; what follows it is ignored. DataLoss if there is none of 64 bits."""
    return _uvarint_at(data, 0)[0]


def encode_zigzag(number: int) -> bytes:
    """Write a signed number of 64 bits."""
    return encode_uvarint((number << 1) ^ (number >> 63))


def decode_zigzag(data: bytes) -> int:
    """Read a signed number. Raises as `decode_uvarint`."""
    number = decode_uvarint(data)
    return (number >> 1) ^ -(number & 1)


def encode_time(nanoseconds: int) -> bytes:
    """Write ns since 1970 as UTC."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    return _TIME.pack(1, seconds + _EPOCH, rest, _UTC)


def decode_time(data: bytes | None) -> int:
    """Read a time of any zone, in ns since 1970; none at all is year 1. Raises DataLoss for anything else."""
    if data is None:
        return ZERO_TIME
    # The second version has the zone's odd seconds behind.
    if not data or (data[0], len(data)) not in _TIME_FORMS:
        raise DataLoss(f"record has the time {data[:20]!r}, wanted {_TIME.size} bytes of version 1")
    _, seconds, rest, _ = _TIME.unpack_from(data)
    return int((seconds - _EPOCH) * _SECOND + rest)


def put_times(record: Bucket, created: int, updated: int) -> None:
    """Write both times of a record, in ns since 1970."""
    record.put(CREATED_AT, encode_time(created))
    record.put(UPDATED_AT, encode_time(updated))


def read_times(record: Bucket) -> tuple[int, int]:
    """Give when a record was created and last updated, in ns since 1970. Raises DataLoss."""
    return decode_time(record.get(CREATED_AT)), decode_time(record.get(UPDATED_AT))


def times_of(record: Tree) -> tuple[int, int]:
    """Do as `read_times` for what is in a record."""
    return decode_time(value_of(record, CREATED_AT)), decode_time(value_of(record, UPDATED_AT))


def value_of(record: Tree, key: bytes) -> bytes | None:
    """Give a value in a record, None if there is none."""
    found = record.get(key)
    return found if isinstance(found, bytes) else None


def text_of(record: Tree, key: bytes) -> str:
    """Give a text in a record, "" if there is none."""
    found = record.get(key)
    return decode_text(found) if isinstance(found, bytes) else ""


def below_of(record: Tree, name: bytes) -> Tree | None:
    """Give what is in the bucket `name` of a record, None without it."""
    found = record.get(name)
    return None if found is None or isinstance(found, bytes) else found


def encode_any(message: TypedBytes) -> bytes:
    """Write a message and its type."""
    parts = ((1, encode_text(message.type_url)), (2, message.value))
    return b"".join(
        encode_uvarint(number << 3 | _BYTES_FIELD) + encode_uvarint(len(part)) + part for number, part in parts if part
    )


def decode_any(data: bytes) -> TypedBytes:
    """Read a message and its type; fields of other numbers are ignored. Raises DataLoss if the bytes do not parse."""
    if data[:1] == b"\x0a" and len(data) > 2 and (end := 2 + data[1]) < 0x82 and data[end : end + 1] == b"\x12":
        # As encode_any writes it: a short type, then the value up to the end.
        size, at = _uvarint_at(data, end + 1)
        if at + size == len(data):
            return TypedBytes(decode_text(data[2:end]), data[at:])
    found = {1: b"", 2: b""}
    at = 0
    while at < len(data):
        tag, at = _uvarint_at(data, at)
        size, at = _uvarint_at(data, at)
        if tag & 7 != _BYTES_FIELD or at + size > len(data):
            raise DataLoss(f"record has the message {data[:20]!r}, wanted a protobuf Any")
        found[tag >> 3] = data[at : at + size]
        at += size
    return TypedBytes(decode_text(found[1]), found[2])


def read_map(record: Bucket, name: bytes) -> dict[str, str]:
    """Give the texts in the bucket `name` of a record, none without it."""
    bucket = record.bucket(name)
    return {} if bucket is None else texts_of({name: bucket.tree()}, name)


def texts_of(record: Tree, name: bytes) -> dict[str, str]:
    """Do as `read_map` for what is in a record."""
    found = below_of(record, name)
    if not found:
        return {}
    try:
        return {key.decode(): value.decode() for key, value in found.items() if isinstance(value, bytes)}
    except UnicodeDecodeError:
        return {decode_text(key): decode_text(value) for key, value in found.items() if isinstance(value, bytes)}


def write_map(record: Bucket, name: bytes, texts: Mapping[str, str]) -> None:
    """Replace the texts in the bucket `name` of a record; empty values are not stored."""
    if record.bucket(name) is not None:
        record.delete_bucket(name)
    kept = {key: value for key, value in texts.items() if value}
    if kept:
        bucket = record.create_bucket(name)
        for key, value in kept.items():
            bucket.put(encode_text(key), encode_text(value))


def read_labels(record: Bucket) -> dict[str, str]:
    """Give the labels of a record."""
    return read_map(record, LABELS)


def write_labels(record: Bucket, labels: Mapping[str, str]) -> None:
    """Replace the labels of a record; empty values are not stored."""
    write_map(record, LABELS, labels)


def _uvarint_at(data: bytes, at: int) -> tuple[int, int]:
    """Read the number at a place and give it with the place behind it."""
    number = 0
    for index, byte in enumerate(data[at : at + _MAX_VARINT]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80 and number < 1 << 64:
            return number, at + index + 1
    raise DataLoss(f"record has the number {data[at : at + _MAX_VARINT]!r}, wanted a varint of 64 bits")
