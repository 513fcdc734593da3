"""All shims of the daemon: how they are started, found again, undone, and left alone when the daemon ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from structlog.typing import FilteringBoundLogger

from moored.api.convert import type_name
from moored.kernel.errors import MooredError, NotFound, Unknown
from moored.kernel.namespaces import bind, current_namespace
from moored.kernel.ports.containers import ContainerStore, TypedBytes
from moored.kernel.ports.sandboxes import SandboxStore
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import RuntimeInfo, SandboxEndpoint
from moored.plugins.runtime.manager import bundle as files
from moored.plugins.runtime.manager.binary import Forms, find
from moored.plugins.runtime.manager.bootstrap import Daemon, old_parameters, sandbox_endpoint
from moored.plugins.runtime.manager.bundle import Bundle, spec_of
from moored.plugins.runtime.manager.choice import Choice, Runtimes
from moored.plugins.runtime.manager.kinds import External, Joined, Kind
from moored.plugins.runtime.manager.leftovers import end_processes_in, remove_empty_cgroup, wait_for_one_in
from moored.plugins.runtime.manager.own import Housed, Own
from moored.plugins.runtime.manager.program import run
from moored.plugins.runtime.manager.shim import Deadlines, ManagedShim, OnGone, drop_socket, remove, stored_endpoint
from moored.plugins.runtime.manager.task import ShimTask
from moored.plugins.runtime.shim.address import group_of

if TYPE_CHECKING:
    from moored.plugins.runtime.shim.launcher import Zygote

_INFO_SECONDS: Final = 10.0
_JOINS_SINCE: Final = 3
"""Version of the task API from which on containers join the shim of their sandbox."""
_CLEANUPS: Final = 16
"""Cleanups after dead shims that run side by side; each calls an OCI runtime."""


class ShimManager:
    """A `kernel.ports.shims.Shims`, and what the task runtime needs besides.

    containers  records that name the runtime of a bundle which does not, None without them
    sandboxes   records of those that containers join, None without them
    runtimes    what the names of runtimes mean; the task runtime, which has them in its config, sets them
    """

    def __init__(
        self,
        daemon: Daemon,
        deadlines: Deadlines,
        log: FilteringBoundLogger,
        containers: ContainerStore | None = None,
        sandboxes: SandboxStore | None = None,
    ) -> None:
        self.runtimes = Runtimes({}, {})
        self.daemon = daemon
        self.deadlines = deadlines
        self._log = log
        self._containers = containers
        self._sandboxes = sandboxes
        self._forms = Forms()
        self._shims: set[ManagedShim] = set()
        self._cleanups = asyncio.Semaphore(_CLEANUPS)
        self._zygote: Zygote | None = None

    async def close(self) -> None:
        """Let every shim go on without us."""
        await asyncio.gather(*(shim.leave() for shim in tuple(self._shims)))
        if self._zygote is not None:
            await self._zygote.close()

    @property
    def zygote(self) -> Zygote:
        """What forks our shims; started by its first use at the latest."""
        if self._zygote is None:
            from moored.plugins.runtime.shim.launcher import Zygote

            self._zygote = Zygote()
        return self._zygote

    # --- kinds --------------------------------------------------------------------------------------------------------

    def external(self, runtime: str) -> Kind:
        """Give the way of a runtime's shim binary; blocks. Raises InvalidArgument, NotFound."""
        return External(find(runtime), self.daemon, self._forms, self._log)

    def own(self, choice: Choice) -> Kind:
        """Give the way of our own shim with an OCI runtime."""
        return Own(lambda: self.zygote, self.daemon, choice)

    async def in_sandbox(self, sandbox: str, given: SandboxEndpoint) -> tuple[Endpoint, bool] | None:
        """Give where the containers of a sandbox are served, and whether by a shim of ours.

        None if they have shims of their own: for a sandbox without a record, and one whose shim is too old. `given` is
        what the client knows, empty for the sandbox' own shim. Raises NotFound if there is none, InvalidArgument for a
        strange address.
        """
        if self._sandboxes is not None:
            try:
                await self._sandboxes.get(sandbox)
            except NotFound:
                self._log.warning("sandbox of a container has no record", sandbox=sandbox)
                return None
        shim = self.shim(current_namespace(), sandbox)
        if given.address:
            endpoint = sandbox_endpoint(given.address, given.version)
        elif shim is not None:
            endpoint = shim.endpoint
        else:
            raise NotFound(f"can't find shim for sandbox {sandbox}")
        ours = shim is not None and isinstance(shim.kind, Own) and shim.endpoint.address == endpoint.address
        return (endpoint, ours) if endpoint.version >= _JOINS_SINCE else None

    def shim(self, namespace: str, id_: str) -> ManagedShim | None:
        """Give the shim of a sandbox or container, if there is one."""
        return next((one for one in self._shims if (one.namespace, one.id) == (namespace, id_)), None)

    def stored_kind(self, bundle: Bundle) -> Kind | None:
        """Give the way of a bundle's shim as its files tell it, None if they do not; blocks."""
        if sandbox := bundle.text(files.SANDBOX):
            kind = Housed if bundle.has(files.INVOCATION) else Joined
            return kind(sandbox, stored_endpoint(bundle))
        if bundle.has(files.INVOCATION):
            return Own(lambda: self.zygote, self.daemon)
        binary = bundle.text(files.BINARY)
        return External(Path(binary), self.daemon, self._forms, self._log) if binary else None

    async def _kind_of(self, bundle: Bundle) -> Kind:
        kind = await asyncio.to_thread(self.stored_kind, bundle)
        if kind is not None:
            return kind
        if self._containers is None:
            raise NotFound(f"task {bundle.id!r} has no shim")
        # of containerd before 1.6
        with bind(namespace=bundle.namespace):
            container = await self._containers.get(bundle.id)
        return await asyncio.to_thread(self.external, container.runtime)

    # --- shims --------------------------------------------------------------------------------------------------------

    async def start(self, bundle: Bundle, kind: Kind, options: TypedBytes | None, on_gone: OnGone) -> ManagedShim:
        """Run the shim of a prepared bundle. After an error all is undone, the bundle too. Raises as Kind.start."""
        shim = self._shim(bundle, kind)
        self._shims.add(shim)
        try:
            await shim.start(options, self._leaving(on_gone))
        except BaseException:
            await self.undo(shim)
            raise
        return shim

    async def load(self, bundle: Bundle, kind: Kind | None, endpoint: Endpoint, on_gone: OnGone) -> ManagedShim:
        """Take up the shim of an earlier daemon, without waiting for it; kind is the stored one.

        Raises NotFound, Unknown, OSError.
        """
        shim = self._shim(bundle, kind or await self._kind_of(bundle))
        shim.load(endpoint, self._leaving(on_gone))
        self._shims.add(shim)
        return shim

    def _shim(self, bundle: Bundle, kind: Kind) -> ManagedShim:
        return ManagedShim(bundle, kind, self.deadlines, self._log, self._cleanups)

    def _leaving(self, on_gone: OnGone) -> OnGone:
        async def gone(shim: ManagedShim, exit_: object) -> None:
            self._shims.discard(shim)
            await on_gone(shim, exit_)  # type: ignore[arg-type]

        return gone

    # --- undoing ------------------------------------------------------------------------------------------------------

    async def undo(self, shim: ManagedShim) -> None:
        """Take back a start or create that did not come to its end, whatever there is of it. Raises nothing.

        Nobody has been told of such a shim, so it is killed if it does not end by itself; unless others are served by
        the same process.
        """
        endpoints = [shim.endpoint] if shim.endpoint.address else await asyncio.to_thread(self._endpoints, shim.files)
        if shim.connected:
            shared = self._serves_others(shim.files, endpoints)
            # an OCI runtime that is killed in a create leaves more than its delete finds
            await asyncio.to_thread(wait_for_one_in, shim.bundle, self.deadlines.cleanup)
            await ShimTask(shim, self.deadlines, lambda _task: None).undo(shared=shared)
        await shim.leave()
        self._shims.discard(shim)
        await self._wipe(shim.files, shim.kind, endpoints)

    async def undo_leftover(self, bundle: Bundle, end: Callable[[ManagedShim], Awaitable[None]] | None = None) -> None:
        """The same for what an earlier daemon left half-done; `end` is called first with a shim that lives.

        Raises nothing.
        """
        try:
            kind: Kind | None = await self._kind_of(bundle)
        except MooredError as error:
            self._log.warning("shim of a leftover is not known", id=bundle.id, reason=error.text)
            kind = None
        endpoints = await asyncio.to_thread(self._endpoints, bundle)
        await asyncio.to_thread(wait_for_one_in, bundle.path, self.deadlines.cleanup)
        for endpoint in endpoints:
            shim = self._shim(bundle, kind or Joined("", endpoint))
            with suppress(MooredError):
                await shim.dial(endpoint, seconds=self.deadlines.load)
                shared = self._serves_others(bundle, endpoints)
                if end is not None:
                    await end(shim)
                await ShimTask(shim, self.deadlines, lambda _task: None).undo(shared=shared)
            await shim.leave()
        await self._wipe(bundle, kind, endpoints)

    def _endpoints(self, bundle: Bundle) -> list[Endpoint]:
        """Every place where the shim of a bundle may listen; blocks."""
        with suppress(MooredError):
            return [stored_endpoint(bundle)]
        group = bundle.id
        with suppress(MooredError, OSError):
            group = group_of(_spec_in(bundle), bundle.id)
        return [Endpoint(f"unix://{path}", 3) for path in self.daemon.sockets(bundle.namespace, group)]

    async def _wipe(self, bundle: Bundle, kind: Kind | None, endpoints: list[Endpoint]) -> None:
        shared = isinstance(kind, (Joined, Housed)) or self._serves_others(bundle, endpoints)
        if not shared:
            await self._end_processes(bundle.path)
        if kind is not None:
            try:
                async with self._cleanups:
                    await kind.cleanup(bundle, clean=False, seconds=self.deadlines.cleanup)
            except MooredError as error:
                self._log.warning("cleanup after the shim failed", id=bundle.id, reason=error.text)
        await asyncio.to_thread(self._drop, bundle, [] if shared else endpoints)
        await remove(bundle, self._log, (lambda _hidden: None) if shared else end_processes_in)

    def _drop(self, bundle: Bundle, endpoints: Iterable[Endpoint]) -> None:
        for endpoint in endpoints:
            drop_socket(endpoint)
        with suppress(MooredError, OSError):
            linux = _spec_in(bundle).get("linux")
            if isinstance(linux, dict):
                remove_empty_cgroup(str(linux.get("cgroupsPath") or ""))

    def _serves_others(self, bundle: Bundle, endpoints: Iterable[Endpoint]) -> bool:
        addresses = {endpoint.address for endpoint in endpoints}
        return any(other.files != bundle and other.endpoint.address in addresses for other in self._shims)

    async def _end_processes(self, folder: Path) -> None:
        try:
            ended = await asyncio.to_thread(end_processes_in, folder)
        except TimeoutError as error:
            self._log.error("processes of a start are left", reason=str(error))
            return
        if ended:
            self._log.info("processes of a start were ended", processes=ended, folder=str(folder))

    # --- asking -------------------------------------------------------------------------------------------------------

    async def info(self, runtime: str, options: TypedBytes | None = None) -> RuntimeInfo:
        """See the port; the runtime is one with a shim binary."""
        from google.protobuf.message import DecodeError

        from moored.api.types import introspection_pb2

        binary = await asyncio.to_thread(find, runtime)
        data = old_parameters(options)
        try:
            answer = await run((str(binary), "-info"), seconds=_INFO_SECONDS, stdin=data)
        except OSError as error:
            raise Unknown(f"failed to run {str(binary)!r}: {error.strerror}") from error
        if answer.status:
            said = answer.errors[:4096].decode("utf-8", "backslashreplace").strip()
            raise Unknown(f"failed to run {str(binary)!r} -info: exit status {answer.status} (stderr: {said!r})")
        try:
            found = introspection_pb2.RuntimeInfo.FromString(answer.output)
        except DecodeError as error:
            raise Unknown(f"{str(binary)!r} -info answered what is no RuntimeInfo: {error}") from None
        return RuntimeInfo(
            name=found.name,
            version=found.version.version,
            revision=found.version.revision,
            options=TypedBytes(type_name(found.options), found.options.value) if found.HasField("options") else None,
            features=TypedBytes(found.features.type_url, found.features.value) if found.HasField("features") else None,
            annotations=dict(found.annotations),
        )


def _spec_in(bundle: Bundle) -> dict[str, Any]:
    return spec_of((bundle.path / files.CONFIG).read_bytes())
