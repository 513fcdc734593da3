"""The few protobuf fields that metrics are made of, written one by one."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

_DOUBLE: Final = struct.Struct("<d")
_MASK: Final = (1 << 64) - 1


def varint(value: int) -> bytes:
    """Write an unsigned number of at most 64 bits."""
    out = bytearray()
    value &= _MASK
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int | None) -> bytes:
    """Write a uint32 or uint64 field; nothing for 0."""
    return varint(field << 3) + varint(value) if value else b""


def numbers(values: Iterable[int | None]) -> bytes:
    """Write the fields 1, 2, 3 and so on."""
    return b"".join(number(field, value) for field, value in enumerate(values, 1))


def table(names: Iterable[str], found: Mapping[str, int]) -> bytes:
    """Write the fields 1, 2, 3 and so on with what was found under these names."""
    return numbers(found.get(name) for name in names)


def packed(field: int, values: Iterable[int]) -> bytes:
    """Write a repeated uint64 field."""
    data = b"".join(map(varint, values))
    return message(field, data) if data else b""


def double(field: int, value: float) -> bytes:
    """Write a double field; nothing for 0."""
    return varint(field << 3 | 1) + _DOUBLE.pack(value) if value else b""


def text(field: int, value: str) -> bytes:
    """Write a string field; nothing if it is empty."""
    return message(field, value.encode()) if value else b""


def message(field: int, data: bytes) -> bytes:
    """Write a message that is there, even if it is empty."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def optional(field: int, data: bytes | None) -> bytes:
    """Write a message if it is there."""
    return b"" if data is None else message(field, data)
