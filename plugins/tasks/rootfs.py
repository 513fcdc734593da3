"""The root file systems of tasks as far as the mount manager has to make them, each held by its container.

    mounts of the request ─ activate under the container's id ─ what is left goes to the shim
    task deleted, or never made ─ deactivate

An activation has a back reference to the container, so that a collection takes it once that is gone, whatever happens.
Source: `contracts/shim-v2.md` 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import AlreadyExists, MooredError, NotFound, Unimplemented
from moored.kernel.namespaces import current_namespace
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.mounts import Mount, MountManager
from moored.kernel.ports.tasks import Runtime

ALLOWED: Final = "containerd.io/runtime-allow-mounts"
"""Annotation of a runtime's info: the types, apart by commas, that its shim mounts itself."""
HELD_BY: Final = "containerd.io/gc.bref.container"
_KNOWN: Final = frozenset({"io.containerd.runc.v2", "io.containerd.runhcs.v1"})
"""Runtimes that are not asked, since their answer is known to name none."""


class RootFilesystems:
    """In the current namespace. Without a manager all mounts are the shim's.

    Concurrency: calls for one container one after the other.
    """

    def __init__(self, manager: MountManager | None, runtime: Runtime, log: FilteringBoundLogger) -> None:
        self._manager = manager
        self._runtime = runtime
        self._log = log
        self._allowed: dict[str, frozenset[str]] = dict.fromkeys(_KNOWN, frozenset())
        self._plain: set[tuple[str, str]] = set()
        """Namespaces and ids of containers of which it is known that nothing was carried out, as of nearly all."""

    async def activate(
        self, container_id: str, mounts: Sequence[Mount], runtime: str, options: TypedBytes | None
    ) -> Sequence[Mount]:
        """Carry out what the shim of that runtime cannot, and give what is left for it.

        What was carried out for an earlier task of the container, and is still there, is used again. Raises as
        MountManager.activate.
        """
        name = (current_namespace(), container_id)
        self._plain.add(name)
        if self._manager is None or not mounts:
            return mounts
        allowed = await self._allowed_for(runtime, options)
        try:
            found = await self._manager.activate(container_id, mounts, labels={HELD_BY: container_id}, handled=allowed)
        except Unimplemented:
            return mounts
        except AlreadyExists:
            found = await self._manager.info(container_id)
        self._plain.discard(name)
        return found.system

    async def release(self, container_id: str) -> None:
        """Undo it, if there is something to undo. Faults go to the log: a collection tries again."""
        name = (current_namespace(), container_id)
        if self._manager is None or name in self._plain:
            self._plain.discard(name)
            return
        try:
            await self._manager.deactivate(container_id)
        except NotFound:
            pass
        except MooredError as error:
            self._log.warning("mounts of a task are left", container=container_id, reason=error.text)

    async def _allowed_for(self, runtime: str, options: TypedBytes | None) -> frozenset[str]:
        """Ask a runtime once; one that gives no answer counts as mounting nothing special, and is asked again."""
        if runtime not in self._allowed:
            try:
                told = (await self._runtime.info(runtime, options)).annotations.get(ALLOWED, "")
            except MooredError as error:
                self._log.warning("runtime does not tell what it mounts", runtime=runtime, reason=error.text)
                return frozenset()
            self._allowed[runtime] = frozenset(filter(None, told.split(",")))
        return self._allowed[runtime]
