"""How kinds of snapshots are written in containerd's metadata files; all else is `kernel.records`'."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from moored.kernel.errors import DataLoss
from moored.kernel.ports.snapshots import Kind

KINDS: Final[Mapping[int, Kind]] = MappingProxyType({1: Kind.VIEW, 2: Kind.ACTIVE, 3: Kind.COMMITTED})
_KIND_BYTES: Final = MappingProxyType({kind: bytes([number]) for number, kind in KINDS.items()})


def encode_kind(kind: Kind) -> bytes:
    """Write a kind."""
    return _KIND_BYTES[kind]


def decode_kind(data: bytes | None) -> Kind:
    """Read a kind. Raises DataLoss if it is none."""
    kind = KINDS.get(data[0]) if data is not None and len(data) == 1 else None
    if kind is None:
        raise DataLoss(f"snapshot record has the kind {data!r}, wanted one byte from 1 to 3")
    return kind
