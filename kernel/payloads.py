"""What events say: a frozen dataclass for each payload of containerd's events, with its name and form on the wire.

A publisher makes one and hands it to the exchange (`kernel.ports.events`); filters and hooks see the same fields in
what others published. Source: containerd.events.tsv, semantics 3.12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

from moored.kernel.protowire import Kind, decode, encode, specs, wire


@dataclass(frozen=True, slots=True)
class Packed:
    """A message of any type as bytes, named by its type URL (containerd's are bare type names)."""

    type_url: str = wire(1)
    value: bytes = wire(2, Kind.BYTES)


@dataclass(frozen=True, slots=True)
class Payload:
    """Root of all payloads; TYPE is the bare name of the message."""

    TYPE: ClassVar[str]

    def pack(self) -> Packed:
        """Give the message's bytes under its name. Raises ValueError for a number that does not fit its field."""
        return Packed(self.TYPE, encode(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceCreate(Payload):
    """A namespace was made by a client; a first write that makes one is not told."""

    TYPE: ClassVar[str] = "containerd.events.NamespaceCreate"
    name: str = wire(1)
    labels: Mapping[str, str] = wire(2, Kind.LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceUpdate(Payload):
    """Labels of a namespace were set; labels are those of the request."""

    TYPE: ClassVar[str] = "containerd.events.NamespaceUpdate"
    name: str = wire(1)
    labels: Mapping[str, str] = wire(2, Kind.LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceDelete(Payload):
    """A namespace is gone."""

    TYPE: ClassVar[str] = "containerd.events.NamespaceDelete"
    name: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCreate(Payload):
    """A name was given to content. Image payloads have the package of the images service."""

    TYPE: ClassVar[str] = "containerd.services.images.v1.ImageCreate"
    name: str = wire(1)
    labels: Mapping[str, str] = wire(2, Kind.LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUpdate(Payload):
    """An image changed; labels are the whole set after it."""

    TYPE: ClassVar[str] = "containerd.services.images.v1.ImageUpdate"
    name: str = wire(1)
    labels: Mapping[str, str] = wire(2, Kind.LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDelete(Payload):
    """An image was removed, by a client or by garbage collection."""

    TYPE: ClassVar[str] = "containerd.services.images.v1.ImageDelete"
    name: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentCreate(Payload):
    """A blob was committed; size is bytes."""

    TYPE: ClassVar[str] = "containerd.events.ContentCreate"
    digest: str = wire(1)
    size: int = wire(2, Kind.INT64)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentDelete(Payload):
    """A client removed a blob; what garbage collection removes is not told."""

    TYPE: ClassVar[str] = "containerd.events.ContentDelete"
    digest: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPrepare(Payload):
    """An active snapshot was made; views are not told."""

    TYPE: ClassVar[str] = "containerd.events.SnapshotPrepare"
    key: str = wire(1)
    parent: str = wire(2)
    snapshotter: str = wire(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCommit(Payload):
    """An active snapshot was committed under a name."""

    TYPE: ClassVar[str] = "containerd.events.SnapshotCommit"
    key: str = wire(1)
    name: str = wire(2)
    snapshotter: str = wire(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRemove(Payload):
    """A snapshot was removed, by a client or by garbage collection."""

    TYPE: ClassVar[str] = "containerd.events.SnapshotRemove"
    key: str = wire(1)
    snapshotter: str = wire(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime(Payload):
    """What runs a container, as its create event tells it."""

    TYPE: ClassVar[str] = "containerd.events.ContainerCreate.Runtime"
    name: str = wire(1)
    options: Packed | None = wire(2, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerCreate(Payload):
    """A container's record was made."""

    TYPE: ClassVar[str] = "containerd.events.ContainerCreate"
    id: str = wire(1)
    image: str = wire(2)
    runtime: Runtime | None = wire(3, Kind.MESSAGE, Runtime)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUpdate(Payload):
    """A container's record changed; labels are the whole set after it."""

    TYPE: ClassVar[str] = "containerd.events.ContainerUpdate"
    id: str = wire(1)
    image: str = wire(2)
    labels: Mapping[str, str] = wire(3, Kind.LABELS)
    snapshot_key: str = wire(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDelete(Payload):
    """A container's record is gone."""

    TYPE: ClassVar[str] = "containerd.events.ContainerDelete"
    id: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxCreate(Payload):
    """A sandbox was accepted; nothing runs yet."""

    TYPE: ClassVar[str] = "containerd.events.SandboxCreate"
    sandbox_id: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStart(Payload):
    """A sandbox can take containers."""

    TYPE: ClassVar[str] = "containerd.events.SandboxStart"
    sandbox_id: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxExit(Payload):
    """A sandbox ended. exited_at is nanoseconds since 1970."""

    TYPE: ClassVar[str] = "containerd.events.SandboxExit"
    sandbox_id: str = wire(1)
    exit_status: int = wire(2, Kind.UINT32)
    exited_at: int | None = wire(3, Kind.TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount of a task's root file system."""

    type: str = wire(1)
    source: str = wire(2)
    target: str = wire(3)
    options: tuple[str, ...] = wire(4, Kind.TEXTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskIO(Payload):
    """Where a task's streams go."""

    TYPE: ClassVar[str] = "containerd.events.TaskIO"
    stdin: str = wire(1)
    stdout: str = wire(2)
    stderr: str = wire(3)
    terminal: bool = wire(4, Kind.FLAG)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCreate(Payload):
    """A task was made and waits to be started."""

    TYPE: ClassVar[str] = "containerd.events.TaskCreate"
    container_id: str = wire(1)
    bundle: str = wire(2)
    rootfs: tuple[Mount, ...] = wire(3, Kind.MESSAGES, Mount)
    io: TaskIO | None = wire(4, Kind.MESSAGE, TaskIO)  # noqa: RUF009 - it gives a field, not its value
    checkpoint: str = wire(5)
    pid: int = wire(6, Kind.UINT32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStart(Payload):
    """A task runs."""

    TYPE: ClassVar[str] = "containerd.events.TaskStart"
    container_id: str = wire(1)
    pid: int = wire(2, Kind.UINT32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExit(Payload):
    """A process ended: the task's own if id is the container's, else an exec. exited_at is nanoseconds since 1970."""

    TYPE: ClassVar[str] = "containerd.events.TaskExit"
    container_id: str = wire(1)
    id: str = wire(2)
    pid: int = wire(3, Kind.UINT32)
    exit_status: int = wire(4, Kind.UINT32)
    exited_at: int | None = wire(5, Kind.TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDelete(Payload):
    """A task, or an exec named by id, is gone. exited_at is nanoseconds since 1970."""

    TYPE: ClassVar[str] = "containerd.events.TaskDelete"
    container_id: str = wire(1)
    pid: int = wire(2, Kind.UINT32)
    exit_status: int = wire(3, Kind.UINT32)
    exited_at: int | None = wire(4, Kind.TIME)
    id: str = wire(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOOM(Payload):
    """The kernel killed for want of memory."""

    TYPE: ClassVar[str] = "containerd.events.TaskOOM"
    container_id: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExecAdded(Payload):
    """An exec waits to be started."""

    TYPE: ClassVar[str] = "containerd.events.TaskExecAdded"
    container_id: str = wire(1)
    exec_id: str = wire(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExecStarted(Payload):
    """An exec runs."""

    TYPE: ClassVar[str] = "containerd.events.TaskExecStarted"
    container_id: str = wire(1)
    exec_id: str = wire(2)
    pid: int = wire(3, Kind.UINT32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPaused(Payload):
    """A task's processes are frozen."""

    TYPE: ClassVar[str] = "containerd.events.TaskPaused"
    container_id: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResumed(Payload):
    """A task's processes run again."""

    TYPE: ClassVar[str] = "containerd.events.TaskResumed"
    container_id: str = wire(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheckpointed(Payload):
    """A task's state was written."""

    TYPE: ClassVar[str] = "containerd.events.TaskCheckpointed"
    container_id: str = wire(1)
    checkpoint: str = wire(2)


PAYLOADS: Final[Mapping[str, type[Payload]]] = MappingProxyType(
    {kind.TYPE: kind for kind in vars().copy().values() if isinstance(kind, type) and hasattr(kind, "TYPE")}
)
"""Every payload by its type name."""


def unpack(packed: Packed) -> Payload | None:
    """Give the payload in a message, None if its type is not among these or its bytes do not parse.

    What stands before the last slash of the type URL is ignored.
    """
    kind = PAYLOADS.get(packed.type_url.rpartition("/")[2])
    if kind is None:
        return None
    try:
        return decode(kind, packed.value)
    except ValueError:
        return None


def field(payload: Payload, path: tuple[str, ...]) -> tuple[str, bool]:
    """Give the value at a filter's path and whether it is present; numbers and times never are.

    An empty text is absent, an empty label present. What follows a text in the path is ignored.
    """
    at: Any = payload
    for depth, name in enumerate(path):
        spec = specs(type(at)).get(name)
        value = None if spec is None else getattr(at, name)
        if spec is None or value is None:
            break
        match spec.kind:
            case Kind.TEXT:
                return value, bool(value)
            case Kind.FLAG:
                return str(value).lower(), True
            case Kind.LABELS:
                key = ".".join(path[depth + 1 :])
                return value.get(key, ""), key in value
            case Kind.MESSAGE if spec.of is not Packed:
                at = value
            case _:
                break
    return "", False
