"""Frozen dataclasses as protobuf messages and back, for the few messages that the kernel itself has to understand.

A field is made with one of the functions below, which gives it its number; fields may be left out when an instance is
made. Fields that a message has and its class does not are skipped, as are values of another wire type than the
field's; what is zero or empty is not written.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from moored.kernel.records import encode_uvarint

M = TypeVar("M")

_SECOND: Final = 1_000_000_000
_KEY: Final = "moored.protowire"


class Kind(enum.Enum):
    """What a field holds, and as what Python value."""

    TEXT = "str"
    TEXTS = "tuple of str"
    BYTES = "bytes"
    FLAG = "bool"
    INT64 = "int"
    UINT32 = "int of 32 bits"
    LABELS = "mapping of str to str"
    TIME = "nanoseconds since 1970, or None"
    MESSAGE = "dataclass, or None"
    MESSAGES = "tuple of dataclasses"


_VARINTS: Final = frozenset({Kind.FLAG, Kind.INT64, Kind.UINT32})
_DEFAULTS: Final[Mapping[Kind, Any]] = {
    Kind.TEXT: "",
    Kind.TEXTS: (),
    Kind.BYTES: b"",
    Kind.FLAG: False,
    Kind.INT64: 0,
    Kind.UINT32: 0,
    Kind.TIME: None,
    Kind.MESSAGE: None,
    Kind.MESSAGES: (),
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A field's number, its kind, and for messages their class."""

    number: int
    kind: Kind
    of: type[Any] | None = None


def wire(number: int, kind: Kind = Kind.TEXT, of: type[Any] | None = None) -> Any:
    """Make a dataclass field; `of` is the class of MESSAGE and MESSAGES."""
    metadata = {_KEY: Spec(number, kind, of)}
    if kind is Kind.LABELS:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=_DEFAULTS[kind], metadata=metadata)


def specs(kind: type[Any]) -> Mapping[str, Spec]:
    """Give the fields of a class by name, in the order of their numbers."""
    return _specs(cast(Hashable, kind))


@functools.cache
def _specs(kind: Any) -> Mapping[str, Spec]:
    found = {one.name: one.metadata[_KEY] for one in dataclasses.fields(kind)}
    return dict(sorted(found.items(), key=lambda item: item[1].number))


def encode(message: Any) -> bytes:
    """Give the message's bytes; the same message always gives the same. Raises ValueError for a number out of range."""
    return b"".join([_encoded(spec, getattr(message, name)) for name, spec in specs(type(message)).items()])


def decode(kind: type[M], data: bytes) -> M:
    """Give the message in `data`. Raises ValueError if that is none."""
    wanted = {spec.number: spec for spec in specs(kind).values()}
    found: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        spec = wanted.get(number)
        if spec is not None and isinstance(value, int) == (spec.kind in _VARINTS):
            found.setdefault(number, []).append(value)
    values = {name: _decoded(spec, found[spec.number]) for name, spec in specs(kind).items() if spec.number in found}
    return kind(**values)


# --- encoding ---------------------------------------------------------------------------------------------------------


def _encoded(spec: Spec, value: Any) -> bytes:
    if spec.kind is Kind.TEXT:
        return _piece(spec.number, value.encode()) if value else b""
    if spec.kind in _VARINTS:
        return encode_uvarint(spec.number << 3) + encode_uvarint(_in_range(spec.kind, int(value))) if value else b""
    return b"".join(_piece(spec.number, piece) for piece in _pieces(spec.kind, value))


def _pieces(kind: Kind, value: Any) -> Iterable[bytes]:
    """Give the value as what stands on the wire; nothing for one that is not written."""
    match kind:
        case Kind.TEXTS:
            return [text.encode() for text in value]
        case Kind.LABELS:
            return [_piece(1, key.encode()) + _piece(2, value[key].encode()) for key in sorted(value)]
        case Kind.MESSAGES:
            return [encode(one) for one in value]
        case Kind.MESSAGE:
            return [] if value is None else [encode(value)]
        case Kind.TIME:
            return [] if value is None else [encode(_Time(*divmod(value, _SECOND)))]
        case _:
            return [value.encode() if isinstance(value, str) else value] if value else []


def _in_range(kind: Kind, value: int) -> int:
    low, high = (0, 1 << 32) if kind is Kind.UINT32 else (-1 << 63, 1 << 63)
    if not low <= value < high:
        raise ValueError(f"number {value} is out of range, wanted {low} to {high - 1}")
    return value & ((1 << 64) - 1)


def _piece(number: int, data: bytes) -> bytes:
    return encode_uvarint(number << 3 | 2) + encode_uvarint(len(data)) + data


# --- decoding ---------------------------------------------------------------------------------------------------------


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Give number and value of each varint and each piece of bytes; fixed numbers are skipped."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise ValueError(f"field number {number} is out of range")
        if kind == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"field {number} has wire type {kind}, which is not in use")
        size, at = _read_varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if size > len(data) - at:
            raise ValueError(f"field {number} of {size} bytes ends after {len(data) - at}")
        if kind == 2:
            yield number, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & ((1 << 64) - 1), at + index + 1
    raise ValueError(f"number at byte {at} does not end")


def _decoded(spec: Spec, values: Sequence[Any]) -> Any:
    """Give the value of all that was found under the field's number; of a single value the last one counts."""
    return _DECODERS[spec.kind](spec, values)


def _messages(spec: Spec, values: Sequence[bytes]) -> tuple[Any, ...]:
    assert spec.of is not None
    return tuple(decode(spec.of, value) for value in values)


def _labels(values: Sequence[bytes]) -> dict[str, str]:
    pairs = [decode(_Pair, value) for value in values]
    return {pair.key: pair.value for pair in pairs}


def _nanoseconds(time: _Time) -> int:
    return time.seconds * _SECOND + time.nanos


_DECODERS: Final[Mapping[Kind, Callable[[Spec, Sequence[Any]], Any]]] = {
    Kind.TEXT: lambda _, values: values[-1].decode(),
    Kind.TEXTS: lambda _, values: tuple(value.decode() for value in values),
    Kind.BYTES: lambda _, values: values[-1],
    Kind.FLAG: lambda _, values: bool(values[-1]),
    Kind.INT64: lambda _, values: (values[-1] ^ 1 << 63) - (1 << 63),
    Kind.UINT32: lambda _, values: values[-1] & 0xFFFFFFFF,
    Kind.LABELS: lambda _, values: _labels(values),
    # A message given in several pieces is the sum of them.
    Kind.TIME: lambda _, values: _nanoseconds(decode(_Time, b"".join(values))),
    Kind.MESSAGE: lambda spec, values: _messages(spec, [b"".join(values)])[0],
    Kind.MESSAGES: _messages,
}


@dataclass(frozen=True, slots=True)
class _Pair:
    key: str = wire(1)
    value: str = wire(2)


@dataclass(frozen=True, slots=True)
class _Time:
    seconds: int = wire(1, Kind.INT64)
    nanos: int = wire(2, Kind.INT64)
