"""Sandboxes: environments that containers share, such as pods; their records, and what makes and ends them.

A sandbox has a record in a store and is run by the *controller* that its record names (`sandboxer`):

    create --> start --> containers whose record names it join --> stop --> shutdown

The store knows nothing of what runs, and a controller nothing of records. Times are nanoseconds since 1970, UTC, None
where a thing has not happened. Source: `contracts/semantics.md` 3.7, `contracts/shim-v2.md` 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from moored.kernel.imagespec.platforms import Platform
from moored.kernel.plugin import PluginType
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import Metric, SandboxEndpoint

READY: Final = "SANDBOX_READY"
"""State of a sandbox that takes containers."""
NOT_READY: Final = "SANDBOX_NOTREADY"
"""State of one that ended, or was not started yet."""

CREATE_TOPIC: Final = "/sandboxes/create"
START_TOPIC: Final = "/sandboxes/start"
EXIT_TOPIC: Final = "/sandboxes/exit"

NO_ENDPOINT: Final = SandboxEndpoint()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One record. Times are given by the store."""

    id: str
    runtime: str = ""
    runtime_options: TypedBytes | None = None
    spec: TypedBytes | None = None
    sandboxer: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, TypedBytes] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class SandboxStore(Protocol):
    """The sandboxes of the current namespace.

    Errors: NotFound `bucket "X" not found`, or `no sandbox buckets` where the namespace has never had one;
    AlreadyExists, InvalidArgument; after an error nothing has changed. No write is told by an event.
    """

    async def get(self, id: str) -> Sandbox:  # noqa: A002 - the field's term
        """One sandbox."""

    async def list(self, filters: Sequence[str] = ()) -> list[Sandbox]:
        """Those that match any filter (id, labels), by id."""

    async def create(self, sandbox: Sandbox) -> Sandbox:
        """Add one. AlreadyExists `sandbox bucket "X" already exists`."""

    async def update(self, sandbox: Sandbox, paths: Sequence[str] = ()) -> Sandbox:
        """Replace labels, extensions, spec and runtime, or what paths name (contracts/semantics.md 1.3).

        Without paths the runtime's name must be the stored one. A spec or options that are not given stay.
        """

    async def delete(self, id: str) -> None:  # noqa: A002 - the field's term
        """Remove one; what runs is not looked at. NotFound `failed to delete sandbox "X"`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSandbox:
    """All that a controller needs to make a sandbox.

    sandbox      its record; of little use without a runtime
    rootfs       mounts of a root file system for the sandbox itself
    options      for what makes the sandbox (CRI gives its PodSandboxConfig); runtime options are the record's
    netns        path of the network namespace that it is to have
    annotations  for what makes the sandbox
    """

    sandbox: Sandbox
    rootfs: Sequence[Mount] = ()
    options: TypedBytes | None = None
    netns: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInstance:
    """A sandbox that was started.

    pid       of the process that holds its namespaces, on the host
    endpoint  the task API that serves its containers; empty where they have shims of their own
    spec      of the process, if there is one
    """

    id: str
    pid: int = 0
    created_at: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    endpoint: SandboxEndpoint = NO_ENDPOINT
    spec: TypedBytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxExit:
    """How a sandbox ended: status 0 to 255, 128 + N for signal N."""

    status: int = 0
    exited_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """What a sandbox is doing; info is for people, and there only if asked for, extra for the controller's clients."""

    id: str
    pid: int = 0
    state: str = ""
    info: Mapping[str, str] = field(default_factory=dict)
    created_at: int | None = None
    exited_at: int | None = None
    extra: TypedBytes | None = None
    endpoint: SandboxEndpoint = NO_ENDPOINT


class SandboxController(Protocol):
    """Makes and ends the sandboxes of the current namespace, and knows them over restarts of the daemon.

    Errors: NotFound for a sandbox that it does not run, where nothing else is said; AlreadyExists, InvalidArgument, and
    what the process behind it answers; DeadlineExceeded where that is silent, which changes nothing.
    Concurrency: calls may overlap. Cancellation: create, start, stop and shutdown go on to their end, others stop.
    """

    @property
    def tells_exits(self) -> bool:
        """Whether `/sandboxes/exit` is published by itself, once for each end; else whoever has waited is to do it."""

    async def create(self, new: NewSandbox) -> None:
        """Make a sandbox, whole or not at all, without starting it. AlreadyExists."""

    async def start(self, id: str) -> SandboxInstance:  # noqa: A002 - the field's term
        """Start it; one that fails to is gone. Raises Unknown `unable to find sandbox "X"` too."""

    async def platform(self, id: str) -> Platform:  # noqa: A002 - the field's term
        """Tell what runs in it."""

    async def stop(self, id: str, seconds: int = 0) -> None:  # noqa: A002 - the field's term
        """End all that runs in it, by force after `seconds`. One that is not there, or has ended, is fine."""

    async def wait(self, id: str) -> SandboxExit:  # noqa: A002 - the field's term
        """Wait for its end, also before it was started, and again after it. No deadline."""

    async def status(self, id: str, *, verbose: bool = False) -> SandboxStatus:  # noqa: A002 - the field's term
        """Tell what it is doing. One that is not there has ended now."""

    async def shutdown(self, id: str) -> None:  # noqa: A002 - the field's term
        """Remove it with all that is in it, in any state."""

    async def metrics(self, id: str) -> Metric:  # noqa: A002 - the field's term
        """Counters of all that is in it. NotFound where there are none."""

    async def update(self, id: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> None:  # noqa: A002 - the field's term
        """Take note that its record changed."""


SANDBOX_STORE: Final[PluginType[SandboxStore]] = PluginType("io.containerd.sandbox.store.v1")
"""The id is `local`."""
SANDBOX_CONTROLLER: Final[PluginType[SandboxController]] = PluginType("io.containerd.sandbox.controller.v1")
"""By the names that records have in `sandboxer`."""
POD_SANDBOX_CONTROLLER: Final[PluginType[SandboxController]] = PluginType("io.containerd.podsandbox.controller.v1")
"""The same for controllers of this daemon's own; names are shared with SANDBOX_CONTROLLER, which wins."""
