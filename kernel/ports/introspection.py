"""What the daemon tells of itself: plugins, identity, deprecated things in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from moored.kernel.plugin import PluginType
from moored.kernel.ports.daemon import PluginRecord


@dataclass(frozen=True, slots=True)
class Deprecation:
    """Something deprecated that was used; last_occurrence is UTC."""

    id: str
    message: str
    last_occurrence: datetime


class Warnings(Protocol):
    """Collects the use of deprecated things. Bounded by the number of distinct ids. Any thread."""

    def emit(self, id: str, message: str) -> None:  # noqa: A002 - the field's term
        """Note that it was used now; `id` is its stable name (`io.containerd.deprecation/cri-registry-mirrors`)."""

    def deprecations(self) -> Sequence[Deprecation]:
        """All that were used since start, by id."""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """uuid lasts as long as the root folder; pid and pidns (inode of the pid namespace) are of this process."""

    uuid: str
    pid: int
    pidns: int
    deprecations: Sequence[Deprecation]


class Introspection(Protocol):
    """Errors: InvalidArgument for a filter that does not parse, NotFound for an unknown plugin."""

    def plugins(self, filters: Sequence[str]) -> Sequence[PluginRecord]:
        """Imported plugins in start order; filters over `type` and `id` (contracts/semantics.md 1.4)."""

    async def server(self) -> ServerIdentity:
        """Who this daemon is; the first call ever makes and stores the uuid."""


WARNING: PluginType[Warnings] = PluginType("io.containerd.warning.v1")
SERVICE: PluginType[Any] = PluginType("io.containerd.service.v1")
"""containerd's local services: ids name ports (`introspection-service` is an Introspection)."""
