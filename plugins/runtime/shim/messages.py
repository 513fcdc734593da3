"""The messages that a shim understands, as dataclasses: the task API, runc's options, bootstrapping.

Events are `kernel.payloads`, whose Packed is `google.protobuf.Any` and whose Mount is `containerd.types.Mount`.

Source: `contracts/containerd.task.v3.tsv` (v2 has the same fields), `containerd.runc.v1.tsv`,
`containerd.runtime.bootstrap.v1.tsv`.
"""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Final

from moored.kernel import payloads
from moored.kernel.payloads import Mount, Packed
from moored.kernel.protowire import Kind, encode, specs, wire

NEVER: Final = -62135596800 * 10**9
"""The time of what has not happened, nanoseconds since 1970: Go's zero time, since clients read no time as 1970."""

OPTIONS_URL: Final = "containerd.runc.v1.Options"
CHECKPOINT_OPTIONS_URL: Final = "containerd.runc.v1.CheckpointOptions"
GENERIC_OPTIONS_URL: Final = "runtimeoptions.v1.Options"
DETAILS_URL: Final = "containerd.runc.v1.ProcessDetails"
FEATURES_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def prepare() -> None:
    """Make now what the codec needs of each class, so that shims forked later share it."""
    for kind in (*globals().values(), *payloads.PAYLOADS.values(), Mount, Packed):
        if is_dataclass(kind) and isinstance(kind, type):
            specs(kind)


@dataclass(frozen=True, slots=True)
class Empty:
    """`google.protobuf.Empty`."""


# --- task API ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreateTaskRequest:
    """checkpoint is the folder of a CRIU image to restore from at Start."""

    id: str = wire(1)
    bundle: str = wire(2)
    rootfs: tuple[Mount, ...] = wire(3, Kind.MESSAGES, Mount)
    terminal: bool = wire(4, Kind.FLAG)
    stdin: str = wire(5)
    stdout: str = wire(6)
    stderr: str = wire(7)
    checkpoint: str = wire(8)
    parent_checkpoint: str = wire(9)
    options: Packed | None = wire(10, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class PidResponse:
    """CreateTaskResponse and StartResponse."""

    pid: int = wire(1, Kind.UINT32)


@dataclass(frozen=True, slots=True)
class ProcessRequest:
    """State, Start, Delete and Wait; also Pids, Pause, Resume, Stats and Connect, which have no exec_id."""

    id: str = wire(1)
    exec_id: str = wire(2)


@dataclass(frozen=True, slots=True)
class ContainerRequest:
    """Pids, Pause, Resume, Stats and Connect."""

    id: str = wire(1)


@dataclass(frozen=True, slots=True)
class DeleteResponse:
    """What is left of a process."""

    pid: int = wire(1, Kind.UINT32)
    exit_status: int = wire(2, Kind.UINT32)
    exited_at: int | None = wire(3, Kind.TIME)


@dataclass(frozen=True, slots=True)
class ExecProcessRequest:
    """spec is OCI's Process, JSON."""

    id: str = wire(1)
    exec_id: str = wire(2)
    terminal: bool = wire(3, Kind.FLAG)
    stdin: str = wire(4)
    stdout: str = wire(5)
    stderr: str = wire(6)
    spec: Packed | None = wire(7, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class ResizePtyRequest:
    """In characters."""

    id: str = wire(1)
    exec_id: str = wire(2)
    width: int = wire(3, Kind.UINT32)
    height: int = wire(4, Kind.UINT32)


@dataclass(frozen=True, slots=True)
class StateResponse:
    """id is the exec's for an exec."""

    id: str = wire(1)
    bundle: str = wire(2)
    pid: int = wire(3, Kind.UINT32)
    status: int = wire(4, Kind.UINT32)
    stdin: str = wire(5)
    stdout: str = wire(6)
    stderr: str = wire(7)
    terminal: bool = wire(8, Kind.FLAG)
    exit_status: int = wire(9, Kind.UINT32)
    exited_at: int | None = wire(10, Kind.TIME)


@dataclass(frozen=True, slots=True)
class KillRequest:
    """`all` counts for init only."""

    id: str = wire(1)
    exec_id: str = wire(2)
    signal: int = wire(3, Kind.UINT32)
    all: bool = wire(4, Kind.FLAG)


@dataclass(frozen=True, slots=True)
class CloseIORequest:
    """Only stdin can be closed."""

    id: str = wire(1)
    exec_id: str = wire(2)
    stdin: bool = wire(3, Kind.FLAG)


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """info is a ProcessDetails for an exec."""

    pid: int = wire(1, Kind.UINT32)
    info: Packed | None = wire(2, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class ProcessDetails:
    """`containerd.runc.v1.ProcessDetails`."""

    exec_id: str = wire(1)


def details(exec_id: str) -> Packed:
    """Give what tells of a process that it is an exec."""
    return Packed(type_url=DETAILS_URL, value=encode(ProcessDetails(exec_id)))


@dataclass(frozen=True, slots=True)
class PidsResponse:
    """Every process in the container."""

    processes: tuple[ProcessInfo, ...] = wire(1, Kind.MESSAGES, ProcessInfo)


@dataclass(frozen=True, slots=True)
class CheckpointTaskRequest:
    """path is the folder of the image."""

    id: str = wire(1)
    path: str = wire(2)
    options: Packed | None = wire(3, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class UpdateTaskRequest:
    """resources is OCI's LinuxResources, JSON; annotations are for other shims."""

    id: str = wire(1)
    resources: Packed | None = wire(2, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class WaitResponse:
    """How a process ended."""

    exit_status: int = wire(1, Kind.UINT32)
    exited_at: int | None = wire(2, Kind.TIME)


@dataclass(frozen=True, slots=True)
class StatsResponse:
    """stats is a Metrics of cgroups v1 or v2."""

    stats: Packed | None = wire(1, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class ConnectResponse:
    """task_pid is 0 for a container that is not known."""

    shim_pid: int = wire(1, Kind.UINT32)
    task_pid: int = wire(2, Kind.UINT32)
    version: str = wire(3)


@dataclass(frozen=True, slots=True)
class ShutdownRequest:
    """`now` makes no difference."""

    id: str = wire(1)
    now: bool = wire(2, Kind.FLAG)


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Options:
    """`containerd.runc.v1.Options`; its fields are also the keys of `options.json`."""

    no_pivot_root: bool = wire(1, Kind.FLAG)
    no_new_keyring: bool = wire(2, Kind.FLAG)
    shim_cgroup: str = wire(3)
    io_uid: int = wire(4, Kind.UINT32)
    io_gid: int = wire(5, Kind.UINT32)
    binary_name: str = wire(6)
    root: str = wire(7)
    criu_path: str = wire(8)
    systemd_cgroup: bool = wire(9, Kind.FLAG)
    criu_image_path: str = wire(10)
    criu_work_path: str = wire(11)
    task_api_address: str = wire(12)
    task_api_version: int = wire(13, Kind.UINT32)


@dataclass(frozen=True, slots=True)
class GenericOptions:
    """`runtimeoptions.v1.Options`: settings of a runtime in a file or here."""

    type_url: str = wire(1)
    config_path: str = wire(2)
    config_body: bytes = wire(3, Kind.BYTES)


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """`containerd.runc.v1.CheckpointOptions`, without what is not passed on to the runtime."""

    exit: bool = wire(1, Kind.FLAG)
    open_tcp: bool = wire(2, Kind.FLAG)
    external_unix_sockets: bool = wire(3, Kind.FLAG)
    terminal: bool = wire(4, Kind.FLAG)
    file_locks: bool = wire(5, Kind.FLAG)
    empty_namespaces: tuple[str, ...] = wire(6, Kind.TEXTS)
    work_path: str = wire(9)


# --- sending events ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope:
    """`containerd.types.Envelope`."""

    timestamp: int | None = wire(1, Kind.TIME)
    namespace: str = wire(2)
    topic: str = wire(3)
    event: Packed | None = wire(4, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """`containerd.services.events.ttrpc.v1.ForwardRequest`."""

    envelope: Envelope | None = wire(1, Kind.MESSAGE, Envelope)  # noqa: RUF009 - it gives a field, not its value


# --- bootstrapping ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extension:
    """Something more that the daemon sends: the runtime's options."""

    value: Packed | None = wire(1, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class BootstrapParams:
    """What a daemon of 2.3 and newer writes to `start`."""

    instance_id: str = wire(1)
    namespace: str = wire(2)
    log_level: int = wire(3, Kind.INT64)
    ttrpc_address: str = wire(5)
    grpc_address: str = wire(6)
    extensions: tuple[Extension, ...] = wire(8, Kind.MESSAGES, Extension)
    socket_dir: str = wire(9)


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """What `start` answers to it."""

    version: int = wire(1, Kind.INT64)
    address: str = wire(2)
    protocol: str = wire(3)


@dataclass(frozen=True, slots=True)
class RuntimeVersion:
    """`containerd.types.RuntimeVersion`."""

    version: str = wire(1)
    revision: str = wire(2)


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """`containerd.types.RuntimeInfo`, what `-info` answers."""

    name: str = wire(1)
    version: RuntimeVersion | None = wire(2, Kind.MESSAGE, RuntimeVersion)  # noqa: RUF009 - it gives a field, not its value
    options: Packed | None = wire(3, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value
    features: Packed | None = wire(4, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value
