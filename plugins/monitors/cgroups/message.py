"""Protobuf messages by field numbers, without knowing their fields: enough to pick counters out of a shim's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Fields: TypeAlias = dict[int, list["int | bytes"]]
"""All values of each field: numbers as unsigned integers of 64 bits, everything else as bytes."""


def read_fields(data: bytes) -> Fields:
    """Give the fields of a message; numbers of fixed size are skipped. Raises ValueError if the bytes are none."""
    found: Fields = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            found.setdefault(number, []).append(value)
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"field {number} has wire type {kind}, which is not in use")
        size, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if size > len(data) - at:
            raise ValueError(f"field {number} of {size} bytes ends after {len(data) - at}")
        if kind == 2:
            found.setdefault(number, []).append(data[at : at + size])
        at += size
    return found


def messages_at(root: Fields, path: Sequence[int]) -> list[Fields]:
    """Give the messages that a path of field numbers leads to; none where one is missing. Raises ValueError."""
    found = [root]
    for number in path:
        found = [read_fields(value) for one in found for value in one.get(number, ()) if isinstance(value, bytes)]
    return found


def number_of(message: Fields, field: int) -> int:
    """Give a single number, 0 if it is missing."""
    value = message.get(field, [0])[-1]
    return value if isinstance(value, int) else 0


def numbers_of(message: Fields, field: int) -> list[int]:
    """Give a repeated number, packed or not. Raises ValueError."""
    found: list[int] = []
    for value in message.get(field, ()):
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return found


def text_of(message: Fields, field: int) -> str:
    """Give a text, or a number as text; an unset field is the number 0, or empty, as `number` says."""
    value = message.get(field, [b""])[-1]
    return str(value) if isinstance(value, int) else value.decode("utf-8", "replace")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & ((1 << 64) - 1), at + index + 1
    raise ValueError(f"number at byte {at} does not end")
