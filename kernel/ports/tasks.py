"""Tasks: what runs in a container.

TASKS is the API as clients see it, with containers, leases and events around it; RUNTIME below it knows shims only:

    gRPC, restart monitor, sandboxes, CRI --> TASKS --> RUNTIME --ttrpc--> shim --> OCI runtime --> processes

A task is the init process of a container and its *execs*; the exec id "" means init. Times are nanoseconds since 1970,
UTC, None where a thing has not happened. Source: `contracts/semantics.md` 4, `contracts/shim-v2.md` 5.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from moored.kernel.plugin import PluginType
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount


class Status(enum.IntEnum):
    """State of a process, numbered as in `containerd.v1.types.Status`.

    CREATED -> RUNNING <-> PAUSED -> STOPPED; UNKNOWN while the shim does not answer.
    """

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Where a process reads and writes: paths of FIFOs, or URLs (`file://`, `binary://`), empty for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """One process as its shim knows it; exit_status counts only with an exited_at."""

    container_id: str
    exec_id: str = ""
    pid: int = 0
    status: Status = Status.UNKNOWN
    stdio: Stdio = Stdio()
    exit_status: int = 0
    exited_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended: status 0 to 255, 128 + N for signal N; exited_at None for one that never ran."""

    pid: int = 0
    status: int = 0
    exited_at: int | None = None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process in the container, by its pid on the host; info names the exec that it is."""

    pid: int
    info: TypedBytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEndpoint:
    """The task API that a sandbox already serves (`ttrpc+unix://PATH` and its version); empty for none."""

    address: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """All that a runtime needs to make a task.

    runtime     a name (`io.containerd.runc.v2`) or the absolute path of a shim
    options     of the request, else of the container; runtime_options are the container's own
    spec        OCI runtime spec, JSON
    rootfs      what to mount on the bundle's `rootfs`, empty where the spec names a root of its own
    checkpoint  folder of a CRIU image to restore from
    sandbox     id of the sandbox that the container is in
    """

    runtime: str
    spec: TypedBytes
    options: TypedBytes | None = None
    runtime_options: TypedBytes | None = None
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = Stdio()
    checkpoint: str = ""
    sandbox: str = ""
    endpoint: SandboxEndpoint = SandboxEndpoint()


class Task(Protocol):
    """The task of one container, behind its shim.

    Errors: what the shim answers (`contracts/shim-v2.md` 5); NotFound for an exec that is not there and for a task that
    is deleted; Unavailable when the shim is gone; DeadlineExceeded when it does not answer in time, which changes
    nothing: the task stays known and a later call may find it answering.
    Concurrency: any calls may overlap. Cancellation: the caller stops waiting, the shim goes on.
    """

    @property
    def id(self) -> str:
        """The container's id."""

    @property
    def namespace(self) -> str:
        """The container's namespace."""

    @property
    def pid(self) -> int:
        """Init's pid on the host."""

    async def state(self, exec_id: str = "") -> ProcessState:
        """Ask the shim; Status.UNKNOWN for init if it is gone or silent for the configured time."""

    async def start(self, exec_id: str = "") -> int:
        """Run what was created and give its pid."""

    async def exec(self, exec_id: str, spec: TypedBytes, stdio: Stdio) -> None:
        """Add a process (OCI Process, JSON) without starting it. AlreadyExists `id X`."""

    async def kill(self, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        """Send a signal to one process, or to all in the container."""

    async def pause(self) -> None:
        """Freeze."""

    async def resume(self) -> None:
        """Thaw."""

    async def resize(self, width: int, height: int, exec_id: str = "") -> None:
        """Set the size of a terminal, in characters; without a terminal nothing happens."""

    async def close_stdin(self, exec_id: str = "") -> None:
        """Let the process read the end of its input once clients have closed theirs."""

    async def pids(self) -> list[ProcessInfo]:
        """Every process in the container; empty once it stopped."""

    async def checkpoint(self, path: str, options: TypedBytes | None) -> None:
        """Write a CRIU image to a folder."""

    async def update(self, resources: TypedBytes | None, annotations: Mapping[str, str]) -> None:
        """Change limits (OCI LinuxResources, JSON). InvalidArgument for none."""

    async def stats(self) -> TypedBytes:
        """Counters of the cgroup (`io.containerd.cgroups.v1.Metrics` or v2). NotFound for no cgroup."""

    async def wait(self, exec_id: str = "") -> Exit:
        """Wait for the end of a process, also of one not yet started, and again after it. No deadline."""

    async def delete(self, exec_id: str = "") -> Exit:
        """Forget a process that ended; for init the shim, its bundle and everything of it goes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """What a runtime tells of itself; options and features as `containerd.types.RuntimeInfo` has them.

    Annotation `containerd.io/runtime-allow-mounts`: types of mounts that it carries out itself, with commas between.
    """

    name: str
    version: str = ""
    revision: str = ""
    options: TypedBytes | None = None
    features: TypedBytes | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """Makes tasks, and knows those that there are, in all namespaces, over restarts of the daemon."""

    async def create(self, container_id: str, new: NewTask) -> Task:
        """Make a task in the current namespace, whole or not at all.

        Raises AlreadyExists `task X`, InvalidArgument, NotFound for a runtime that is not installed.
        """

    def get(self, container_id: str) -> Task:
        """One of the current namespace. NotFound `task X not found`."""

    def list(self, *, everywhere: bool = False) -> list[Task]:
        """Those of the current namespace, or of all, without asking their shims."""

    async def info(self, runtime: str, options: TypedBytes | None = None) -> RuntimeInfo:
        """Tell about what a runtime's name means here. NotFound for one that is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTask:
    """A client's request for a task; checkpoint is the content (a CRIU tar) to restore from.

    Or, as kubelet has it, its annotation `RestoreFromPath` names the folder of a CRIU image: then the task gets the
    changed files of a `rootfs-diff.tar` beside that folder, and runs at once.
    """

    container_id: str
    rootfs: Sequence[Mount] = ()
    stdio: Stdio = Stdio()
    checkpoint: Descriptor | None = None
    options: TypedBytes | None = None
    runtime_path: str = ""
    endpoint: SandboxEndpoint = SandboxEndpoint()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Counters of one task at one moment."""

    id: str
    timestamp: int
    data: TypedBytes


class Tasks(Protocol):
    """Tasks of the containers of the current namespace, each call first finding the container (semantics 4)."""

    async def create(self, request: CreateTask) -> int:
        """Make a task and give init's pid."""

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Run it and give its pid."""

    async def delete(self, container_id: str, exec_id: str = "") -> Exit:
        """Forget what ended."""

    async def get(self, container_id: str, exec_id: str = "") -> ProcessState:
        """One process."""

    async def list(self) -> list[ProcessState]:
        """Every init of the namespace; those whose shim does not answer with Status.UNKNOWN."""

    async def exec(self, container_id: str, exec_id: str, spec: TypedBytes | None, stdio: Stdio) -> None:
        """Add a process."""

    async def kill(self, container_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        """Send a signal."""

    async def pause(self, container_id: str) -> None:
        """Freeze."""

    async def resume(self, container_id: str) -> None:
        """Thaw."""

    async def resize(self, container_id: str, width: int, height: int, exec_id: str = "") -> None:
        """Set the size of a terminal."""

    async def close_stdin(self, container_id: str, exec_id: str = "") -> None:
        """End a process' input."""

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]:
        """Every process in the container."""

    async def checkpoint(self, container_id: str, options: TypedBytes | None) -> Sequence[Descriptor]:
        """Write a CRIU image, into the content store unless the options name a folder, and give what was stored."""

    async def update(self, container_id: str, resources: TypedBytes | None, annotations: Mapping[str, str]) -> None:
        """Change limits."""

    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """Counters of the tasks that match (id, namespace); those that give none are left out."""

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        """Wait for the end of a process."""


class TaskMonitor(Protocol):
    """Watches running tasks, for metrics; told of each task as it is made, found again after a restart, or deleted."""

    async def watch(self, task: Task, labels: Mapping[str, str]) -> None:
        """Begin; labels are those of every sample: `runtime`, its name. Quick, and raises nothing."""

    async def forget(self, task: Task) -> None:
        """End; unknown tasks are ignored."""


RUNTIME: Final[PluginType[Runtime]] = PluginType("io.containerd.runtime.v2")
TASKS: Final[PluginType[Tasks]] = PluginType("io.containerd.service.v1")
"""Looked up by its id, `tasks-service`: other services share the type."""
TASK_MONITOR: Final[PluginType[TaskMonitor]] = PluginType("io.containerd.monitor.task.v1")
