"""Leases: hold what nothing else refers to yet, so that the garbage collector leaves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moored.kernel.plugin import PluginType


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """created_at in nanoseconds since 1970, UTC. Label `containerd.io/gc.expire` (RFC 3339) ends it."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0


@dataclass(frozen=True, slots=True)
class Resource:
    """type is `content`, `ingests`, `images` or `snapshots/SNAPSHOTTER`; id names one such object, existing or not."""

    type: str
    id: str


class LeaseManager(Protocol):
    """The leases of the current namespace.

    Errors: AlreadyExists, NotFound, InvalidArgument and Unimplemented `resource type T not supported yet` for resource
    types, FailedPrecondition without a namespace.
    """

    async def create(self, id: str, labels: Mapping[str, str]) -> Lease:  # noqa: A002 - the field's term
        """Add one; an empty id gets a new one."""

    async def delete(self, id: str) -> None:  # noqa: A002 - the field's term
        """Remove one; what only it held goes with the next collection."""

    async def list(self, filters: Sequence[str] = ()) -> list[Lease]:
        """Those that match any filter (id, labels), by id."""

    async def add(self, lease: str, resource: Resource) -> None:
        """Hold one more resource."""

    async def remove(self, lease: str, resource: Resource) -> None:
        """Hold it no longer; without effect if it was not held."""

    async def resources(self, lease: str) -> Sequence[Resource]:
        """What it holds, in the order content, images, ingests, snapshots."""


LEASES: PluginType[LeaseManager] = PluginType("io.containerd.lease.v1")
