"""Introspection of this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from moored.kernel.errors import InvalidArgument
from moored.kernel.filters import MappingAdaptor, compile_filters
from moored.kernel.ports.daemon import DaemonView, Outcome, PluginRecord
from moored.kernel.ports.introspection import ServerIdentity, Warnings
from moored.plugins.introspection.identity import stored_uuid

FOLDER = "io.containerd.grpc.v1.introspection"
"""Where the uuid lies under the daemon's root, as in containerd (semantics 3.11)."""


class LocalIntrospection:
    """The Introspection port over the running daemon."""

    def __init__(self, daemon: DaemonView, warnings: Warnings) -> None:
        self._daemon = daemon
        self._warnings = warnings
        self._uuid = ""
        self._making = asyncio.Lock()

    def plugins(self, filters: Sequence[str]) -> Sequence[PluginRecord]:
        """See Introspection."""
        try:
            wanted = compile_filters(filters)
        except InvalidArgument as error:
            # This service alone has its class in front too (semantics 1.2).
            raise InvalidArgument(f"invalid argument: {error.text}") from error
        return [
            record
            for record in self._daemon.plugins()
            if record.outcome is not Outcome.DISABLED
            and wanted.match(MappingAdaptor({"type": record.type, "id": record.id}))
        ]

    async def server(self) -> ServerIdentity:
        """See Introspection. Raises DataLoss for a damaged uuid file, OSError."""
        async with self._making:
            self._uuid = self._uuid or await asyncio.to_thread(stored_uuid, self._daemon.root / FOLDER)
        pidns = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - procfs answers from memory
        return ServerIdentity(self._uuid, os.getpid(), pidns, self._warnings.deprecations())
