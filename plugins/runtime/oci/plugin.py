"""Registers the drivers of runc, crun and runsc.

Their state is in the plugin's own folder below the daemon's `state`, a folder for each namespace:

    runc --root /run/moored/io.moored.oci-runtime.v1.runc/default list
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.errors import InvalidArgument
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.oci import OCI_RUNTIME, OciRuntime
from moored.plugins.runtime.oci.driver import Driver
from moored.plugins.runtime.oci.invocations import Settings

_BINARY = "a name for PATH or an absolute path; a container's BinaryName comes before it"
_FLAGS = "global flags given before the verb of each call"
_ROOT = "where the runtime keeps its state, in a folder for each namespace; empty takes the plugin's own"
_SYSTEMD = "make cgroups through systemd for every container, not only for those that ask for it"
_TIMEOUT = "how long the binary may take to say its version, and again its features"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuncConfig:
    """[plugins."io.moored.oci-runtime.v1.runc"]"""

    binary: str = setting("runc", doc=_BINARY)
    flags: tuple[str, ...] = setting((), doc=_FLAGS)
    root: str = setting("", doc=_ROOT)
    systemd_cgroup: bool = setting(False, doc=_SYSTEMD)
    timeout: Duration = setting(Duration(10), ge=0.1, doc=_TIMEOUT)

    def __post_init__(self) -> None:
        check(self.binary, self.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrunConfig(RuncConfig):
    """[plugins."io.moored.oci-runtime.v1.crun"]"""

    binary: str = setting("crun", doc=_BINARY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunscConfig(RuncConfig):
    """[plugins."io.moored.oci-runtime.v1.runsc"]"""

    binary: str = setting("runsc", doc=_BINARY)
    platform: str = setting("", doc="how system calls are caught: ptrace, systrap, kvm; empty leaves it to runsc")
    network: str = setting(
        "",
        choices=("", "sandbox", "host", "none"),
        doc="runsc's own network stack, the host's, or a loopback; empty takes what the container and the host need",
    )
    ignore_cgroups: bool | None = setting(
        None, doc="run without cgroups, so without limits and metrics; unset does it where runsc could not make them"
    )


def check(binary: str, root: str) -> None:
    """Raise InvalidArgument for a binary that is neither a name nor an absolute path, or a relative root."""
    if not binary or ("/" in binary and not binary.startswith("/")):
        raise InvalidArgument(f"binary {binary!r} must be a name or an absolute path")
    if root and not root.startswith("/"):
        raise InvalidArgument(f"root {root!r} must be an absolute path")


@asynccontextmanager
async def open_runc(ctx: InitContext[RuncConfig]) -> AsyncGenerator[OciRuntime]:
    """Drive runc."""
    config = ctx.config
    yield Driver(_settings("runc", config, config.root or str(ctx.state)), config.timeout)


@asynccontextmanager
async def open_crun(ctx: InitContext[CrunConfig]) -> AsyncGenerator[OciRuntime]:
    """Drive crun."""
    config = ctx.config
    yield Driver(_settings("crun", config, config.root or str(ctx.state)), config.timeout)


@asynccontextmanager
async def open_runsc(ctx: InitContext[RunscConfig]) -> AsyncGenerator[OciRuntime]:
    """Drive gVisor."""
    config = ctx.config
    settings = _settings(
        "runsc",
        config,
        config.root or str(ctx.state),
        platform=config.platform,
        network=config.network,
        ignore_cgroups=config.ignore_cgroups,
    )
    yield Driver(settings, config.timeout)


def _settings(driver: str, config: RuncConfig | CrunConfig | RunscConfig, root: str, **more: object) -> Settings:
    common = {"binary": config.binary, "flags": config.flags, "systemd_cgroup": config.systemd_cgroup}
    return Settings(driver=driver, root=root, **common, **more)  # type: ignore[arg-type]


runc = Registration(kind=OCI_RUNTIME, id="runc", open=open_runc, config=RuncConfig, summary="runs containers with runc")
crun = Registration(kind=OCI_RUNTIME, id="crun", open=open_crun, config=CrunConfig, summary="runs containers with crun")
runsc = Registration(
    kind=OCI_RUNTIME, id="runsc", open=open_runsc, config=RunscConfig, summary="runs containers in gVisor sandboxes"
)
