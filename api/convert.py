"""Times, Any messages and lists between the wire and our values. protobuf is imported by the first call, not with this.

"No time" is Go's zero time, 0001-01-01T00:00:00Z, on the wire and None here; an unset Timestamp field is 1970.

An Any carries the bare type name as containerd writes it (`containerd.runc.v1.Options`); both that and the form with
`type.googleapis.com/` are read. OCI objects are JSON under names like
`types.containerd.io/opencontainers/runtime-spec/1/Spec`. Source: semantics 1.1 and 1.3.

A long list is answered with bytes that its store made (`Encodes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, runtime_checkable

from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.services import Encoded
from moored.kernel.records import encode_uvarint

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")

GO_ZERO_SECONDS: Final = -62135596800
"""Seconds from 1970 to Go's zero time."""

_LAST_SECOND: Final = 253402300799  # 9999-12-31T23:59:59Z, where RFC 3339 and datetime end
_SECOND: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PREFIX: Final = "type.googleapis.com/"


def timestamp(when: datetime | int | None) -> Timestamp:
    """Return the Timestamp of an aware datetime, of nanoseconds since 1970, or of no time (None).

    Raises ValueError for a naive datetime, InvalidArgument for nanoseconds outside of the years 1 to 9999.
    """
    from google.protobuf.timestamp_pb2 import Timestamp

    if when is None:
        return Timestamp(seconds=GO_ZERO_SECONDS)
    seconds, nanos = divmod(when if isinstance(when, int) else datetime_to_ns(when), _SECOND)
    _check(seconds, nanos)
    return Timestamp(seconds=seconds, nanos=nanos)


def set_timestamp(stamp: Timestamp, when: int) -> None:
    """Write nanoseconds since 1970 into a Timestamp, present then even if it is 1970. Raises InvalidArgument."""
    seconds, nanos = divmod(when, _SECOND)
    if not GO_ZERO_SECONDS <= seconds <= _LAST_SECOND:
        _check(seconds, nanos)
    stamp.seconds = seconds
    stamp.nanos = nanos


def to_ns(stamp: Timestamp) -> int | None:
    """Return nanoseconds since 1970, None for Go's zero time; raises InvalidArgument outside of the years 1 to 9999."""
    if is_go_zero(stamp):
        return None
    _check(stamp.seconds, stamp.nanos)
    return stamp.seconds * _SECOND + stamp.nanos


def to_datetime(stamp: Timestamp) -> datetime | None:
    """Return the UTC datetime, cut to microseconds, None for Go's zero time; raises like `to_ns`."""
    ns = to_ns(stamp)
    return None if ns is None else ns_to_datetime(ns)


def is_go_zero(stamp: Timestamp) -> bool:
    """Return whether the Timestamp is Go's zero time."""
    return stamp.seconds == GO_ZERO_SECONDS and stamp.nanos == 0


def datetime_to_ns(when: datetime) -> int:
    """Return nanoseconds since 1970 of an aware datetime; raises ValueError for a naive one."""
    if when.utcoffset() is None:
        raise ValueError(f"datetime {when.isoformat()!r} has no time zone, one is wanted")
    return (when - _EPOCH) // timedelta(microseconds=1) * 1000


def ns_to_datetime(ns: int) -> datetime:
    """Return the UTC datetime, cut to microseconds; raises InvalidArgument outside of the years 1 to 9999."""
    _check(*divmod(ns, _SECOND))
    return _EPOCH + timedelta(microseconds=ns // 1000)


def pack(message: Message | bytes, url: str | None = None) -> Any:
    """Return an Any with the message's bytes under `url`, by default the message's own name without prefix.

    Bytes are taken as they are and need a url (OCI JSON); an Any without url is returned as it is.
    """
    from google.protobuf.any_pb2 import Any

    if isinstance(message, bytes):
        if url is None:
            raise ValueError("bytes have no type name, a url is wanted")
        return Any(type_url=url, value=message)
    if isinstance(message, Any) and url is None:
        return message
    return Any(type_url=url or message.DESCRIPTOR.full_name, value=message.SerializeToString())


def type_name(packed: Any) -> str:
    """Return the type name of an Any, written with or without `type.googleapis.com/`; "" if it has none."""
    return packed.type_url.removeprefix(_PREFIX)


def unpack(packed: Any, kind: type[M]) -> M:
    """Return the message in an Any; raises InvalidArgument if it is of another type or does not parse."""
    from google.protobuf.message import DecodeError

    name, wanted = type_name(packed), kind.DESCRIPTOR.full_name
    if name != wanted:
        raise InvalidArgument(f"type {name!r} given, {wanted!r} wanted")
    try:
        return kind.FromString(packed.value)
    except DecodeError as error:
        raise InvalidArgument(f"value of type {name!r} does not parse: {error}") from error


@runtime_checkable
class Encodes(Protocol):
    """A store that can give its objects as the messages by which containerd's API names them."""

    async def encoded(self, filters: Sequence[str] = ()) -> list[bytes]:
        """Do as the store's `list`, each object as its message's bytes. Raises what `list` raises."""


def field(number: int, message: bytes) -> Encoded:
    """Return an answer that holds nothing but a message in the field of that number."""
    return Encoded(encode_uvarint(number << 3 | 2) + encode_uvarint(len(message)) + message)


def repeated(number: int, messages: Iterable[bytes]) -> Encoded:
    """Return an answer that holds nothing but the messages, in the repeated field of that number."""
    tag = encode_uvarint(number << 3 | 2)
    parts: list[bytes] = []
    for message in messages:
        parts += (tag, encode_uvarint(len(message)), message)
    return Encoded(b"".join(parts))


def _check(seconds: int, nanos: int) -> None:
    if not (GO_ZERO_SECONDS <= seconds <= _LAST_SECOND and 0 <= nanos < _SECOND):
        raise InvalidArgument(f"timestamp '{seconds}.{nanos:09}' is outside of the years 1 to 9999")
