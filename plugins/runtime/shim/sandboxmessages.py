"""The messages of the sandbox API that a shim understands, as dataclasses.

Source: `contracts/containerd.runtime.sandbox.v1.tsv`, of CRI `contracts/runtime.v1.tsv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Final

from moored.kernel.payloads import Mount, Packed
from moored.kernel.protowire import Kind, specs, wire

POD_CONFIG_URL: Final = "runtime.v1.PodSandboxConfig"

POD: Final = 0
NODE: Final = 2
"""As `runtime.v1.NamespaceMode` numbers them: the sandbox has a namespace of its own, or that of the host."""


def prepare() -> None:
    """Make now what the codec needs of each class, so that shims forked later share it."""
    for kind in tuple(globals().values()):
        if is_dataclass(kind) and isinstance(kind, type):
            specs(kind)


@dataclass(frozen=True, slots=True)
class CreateSandboxRequest:
    """options are for what makes the sandbox; those of the runtime came with the start of the shim."""

    sandbox_id: str = wire(1)
    bundle_path: str = wire(2)
    rootfs: tuple[Mount, ...] = wire(3, Kind.MESSAGES, Mount)
    options: Packed | None = wire(4, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value
    netns_path: str = wire(5)
    annotations: Mapping[str, str] = wire(6, Kind.LABELS)


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """StartSandbox, Platform, WaitSandbox, PingSandbox, ShutdownSandbox and SandboxMetrics."""

    sandbox_id: str = wire(1)


@dataclass(frozen=True, slots=True)
class StartSandboxResponse:
    """pid is that of the process whose namespaces containers may join."""

    pid: int = wire(1, Kind.UINT32)
    created_at: int | None = wire(2, Kind.TIME)


@dataclass(frozen=True, slots=True)
class Platform:
    """`containerd.types.Platform`."""

    os: str = wire(1)
    architecture: str = wire(2)


@dataclass(frozen=True, slots=True)
class PlatformResponse:
    """What runs in a sandbox."""

    platform: Platform | None = wire(1, Kind.MESSAGE, Platform)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class StopSandboxRequest:
    """How long what runs is asked before it is killed."""

    sandbox_id: str = wire(1)
    timeout_secs: int = wire(2, Kind.UINT32)


@dataclass(frozen=True, slots=True)
class SandboxStatusRequest:
    """With `verbose` the answer has something for people to read."""

    sandbox_id: str = wire(1)
    verbose: bool = wire(2, Kind.FLAG)


@dataclass(frozen=True, slots=True)
class SandboxStatusResponse:
    """exited_at is Go's zero time for one that has not."""

    sandbox_id: str = wire(1)
    pid: int = wire(2, Kind.UINT32)
    state: str = wire(3)
    info: Mapping[str, str] = wire(4, Kind.LABELS)
    created_at: int | None = wire(5, Kind.TIME)
    exited_at: int | None = wire(6, Kind.TIME)


@dataclass(frozen=True, slots=True)
class Metric:
    """`containerd.types.Metric`."""

    timestamp: int | None = wire(1, Kind.TIME)
    id: str = wire(2)
    data: Packed | None = wire(3, Kind.MESSAGE, Packed)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class SandboxMetricsResponse:
    """Counters of the pod's cgroup."""

    metrics: Metric | None = wire(1, Kind.MESSAGE, Metric)  # noqa: RUF009 - it gives a field, not its value


# --- what CRI says of a pod -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserNamespace:
    """`runtime.v1.UserNamespace`."""

    mode: int = wire(1, Kind.INT64)


@dataclass(frozen=True, slots=True)
class NamespaceOption:
    """`runtime.v1.NamespaceOption`: a mode for each kind."""

    network: int = wire(1, Kind.INT64)
    pid: int = wire(2, Kind.INT64)
    ipc: int = wire(3, Kind.INT64)
    userns_options: UserNamespace | None = wire(5, Kind.MESSAGE, UserNamespace)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class SecurityContext:
    """`runtime.v1.LinuxSandboxSecurityContext`."""

    namespace_options: NamespaceOption | None = wire(1, Kind.MESSAGE, NamespaceOption)  # noqa: RUF009 - it gives a field, not its value


@dataclass(frozen=True, slots=True)
class LinuxPod:
    """`runtime.v1.LinuxPodSandboxConfig`."""

    cgroup_parent: str = wire(1)
    security_context: SecurityContext | None = wire(2, Kind.MESSAGE, SecurityContext)  # noqa: RUF009 - it gives a field, not its value
    sysctls: Mapping[str, str] = wire(3, Kind.LABELS)


@dataclass(frozen=True, slots=True)
class PodConfig:
    """`runtime.v1.PodSandboxConfig`, as far as a shim acts on it."""

    hostname: str = wire(2)
    linux: LinuxPod | None = wire(8, Kind.MESSAGE, LinuxPod)  # noqa: RUF009 - it gives a field, not its value
