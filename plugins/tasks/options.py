"""What the daemon itself reads of a runtime's options (containerd.runc.v1.tsv); the rest is the shim's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, TypeVar

from moored.kernel.errors import Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.protowire import Kind, decode, wire


class _Typed(Protocol):
    TYPE: ClassVar[str]


M = TypeVar("M", bound=_Typed)

_REGISTERED: Final = (
    "containerd.",
    "google.protobuf.",
    "io.containerd.cgroups.",
    "runtime.",
    "runtimeoptions.",
    "types.containerd.io/opencontainers/runtime-spec/",
)
"""How the names begin of types that containerd knows; with any other one it says so instead of refusing the type."""


@dataclass(frozen=True, slots=True)
class RuncOptions:
    """Part of the options of a new task.

    criu_image_path    folder of a CRIU image to restore from
    task_api_address, task_api_version   endpoint of a sandbox, deprecated in favour of the request's own fields
    """

    TYPE: ClassVar[str] = "containerd.runc.v1.Options"
    criu_image_path: str = wire(10)
    task_api_address: str = wire(12)
    task_api_version: int = wire(13, Kind.UINT32)


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """Part of the options of a checkpoint: the folder to write to, empty for the content store."""

    TYPE: ClassVar[str] = "containerd.runc.v1.CheckpointOptions"
    image_path: str = wire(8)


def read_options(given: TypedBytes, kind: type[M], purpose: str, runtime: str) -> M:
    """Give the message in `given`. Raises Unknown for another type, naming purpose and runtime, and for bad bytes."""
    name = given.type_url.rpartition("/")[2]
    if name != kind.TYPE:
        if given.type_url.startswith(_REGISTERED) or name.startswith(_REGISTERED):
            raise Unknown(f"invalid task {purpose} option for {runtime}")
        raise Unknown(f"type with url {given.type_url}: not found")
    try:
        return decode(kind, given.value)
    except ValueError as error:
        raise Unknown("proto: cannot parse invalid wire-format data") from error
