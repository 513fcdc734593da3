"""Registers the shim manager and the task runtime."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moored.kernel.config import setting
from moored.kernel.errors import FailedPrecondition
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.oci import OCI_RUNTIME
from moored.kernel.ports.shims import OPT, SHIMS, Shims
from moored.kernel.ports.tasks import RUNTIME, Runtime

if TYPE_CHECKING:
    from moored.plugins.runtime.manager.bootstrap import Daemon
    from moored.plugins.runtime.manager.shim import Deadlines

MAX_SOCKET_DIR: Final = 42
"""Characters; with the name of a socket they just fit into an address."""
_TIMEOUT: Final = "io.containerd.timeout."
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_DEFAULT_RUNTIMES: Final = (
    ("io.containerd.runc.v2", "runc"),
    ("io.containerd.runc.v1", "runc"),
    ("io.containerd.crun.v2", "crun"),
    ("io.containerd.runsc.v1", "runsc"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShimConfig:
    """[plugins."io.containerd.shim.v1.manager"]"""

    env: list[str] = setting(factory=list, doc="variables for shims besides the daemon's own, NAME=VALUE")
    socket_dir: str = setting(
        "", doc="folder of the shims' sockets, absolute, at most 42 characters; empty is `s` below the state folder"
    )

    def __post_init__(self) -> None:
        if self.socket_dir and not Path(self.socket_dir).is_absolute():
            raise ValueError(f"socket_dir is {self.socket_dir!r}, wanted an absolute path")
        if len(os.path.normpath(self.socket_dir)) > MAX_SOCKET_DIR:
            raise ValueError(f"socket_dir is {self.socket_dir!r}, wanted at most {MAX_SOCKET_DIR} characters")
        for one in self.env:
            if "=" not in one:
                raise ValueError(f"env has {one!r}, wanted NAME=VALUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """[plugins."io.containerd.runtime.v2.task"]"""

    platforms: list[str] = setting(factory=lambda: [_platform()], doc="platforms whose containers can run here")
    runtimes: dict[str, str] = setting(
        factory=lambda: dict(_DEFAULT_RUNTIMES),
        doc='driver of the OCI runtime for each name that clients use, called by our own shim; "shim", and every other '
        "name: the shim binary of that name",
    )


@asynccontextmanager
async def open_shims(ctx: InitContext[ShimConfig]) -> AsyncGenerator[Shims]:
    """Manage shims until the end, after which they go on."""
    from moored.plugins.runtime.manager.manager import ShimManager

    metadata = list(ctx.all(METADATA).values())
    containers, sandboxes = (metadata[0].containers, metadata[0].sandboxes) if len(metadata) == 1 else (None, None)
    manager = ShimManager(await _daemon(ctx), _deadlines(ctx), ctx.log, containers, sandboxes)
    try:
        yield manager
    finally:
        await manager.close()


@asynccontextmanager
async def open_task(ctx: InitContext[TaskConfig]) -> AsyncGenerator[Runtime]:
    """Find the tasks of earlier daemons and make new ones."""
    from moored.plugins.runtime.manager.bundle import Folders
    from moored.plugins.runtime.manager.choice import Runtimes
    from moored.plugins.runtime.manager.manager import ShimManager
    from moored.plugins.runtime.manager.runtime import TaskRuntime

    manager = ctx.one(SHIMS)
    if not isinstance(manager, ShimManager):
        raise FailedPrecondition(f"shim manager is a {type(manager).__name__!r}, wanted the one of this distribution")
    for folder in (ctx.root, ctx.state):
        # users of containers with user namespaces pass through
        folder.chmod(0o711)
    ctx.facts.platforms.extend(ctx.config.platforms)
    manager.runtimes = runtimes = Runtimes(ctx.config.runtimes, ctx.all(OCI_RUNTIME))
    if runtimes.any_own:
        await manager.zygote.start()
    runtime = TaskRuntime(
        manager=manager,
        folders=Folders(ctx.state, ctx.root),
        events=ctx.one(EVENT),
        runtimes=runtimes,
        hooks=ctx.hooks,
        log=ctx.log,
    )
    async with runtime.running():
        yield runtime


def _deadlines(ctx: InitContext[ShimConfig]) -> Deadlines:
    from moored.plugins.runtime.manager.shim import Deadlines

    names = {"load": "shim.load", "cleanup": "shim.cleanup", "shutdown": "shim.shutdown", "state": "task.state"}
    found = {key: ctx.daemon.timeout(f"{_TIMEOUT}{name}") for key, name in names.items()}
    return Deadlines(**{key: seconds for key, seconds in found.items() if seconds is not None})


async def _daemon(ctx: InitContext[ShimConfig]) -> Daemon:
    """Give what shims are told; the addresses are those that the listeners are going to have."""
    import json

    from moored.plugins.runtime.manager.bootstrap import Daemon

    effective = await ctx.daemon.config()
    values = {value.key: value.value_json for value in effective.values}
    addresses = {
        name: json.loads(values.get(f'plugins."io.containerd.server.v1.{name}".address', '""'))
        for name in ("grpc", "ttrpc")
    }
    return Daemon(
        grpc=addresses["grpc"],
        ttrpc=addresses["ttrpc"] or f"{addresses['grpc']}.ttrpc",
        binary=_program(),
        version=ctx.daemon.version,
        socket_dir=_socket_dir(ctx.config.socket_dir, ctx.daemon.state),
        environment=tuple(ctx.config.env),
    )


def _program() -> str:
    """Give the path of the daemon's own program, which shims may call to publish events."""
    beside = Path(sys.executable).with_name("moored")
    return str(beside) if beside.exists() else shutil.which("moored") or sys.executable


def _socket_dir(configured: str, state: Path) -> Path:
    if configured:
        return Path(os.path.normpath(configured))
    places = [state / "s"]
    if os.geteuid() == 0:
        places.append(Path("/run/moored/s"))
    else:
        if runtime_dir := os.environ.get("XDG_RUNTIME_DIR"):
            places.append(Path(runtime_dir) / "moored/s")
        places += [Path(f"/run/{os.geteuid()}/moored/s"), Path(f"/tmp/moored-s-{os.geteuid()}")]  # noqa: S108
    return next(place for place in places if len(str(place)) <= MAX_SOCKET_DIR)


def _platform() -> str:
    machine = os.uname().machine
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


shims = Registration(
    kind=SHIMS,
    id="manager",
    config=ShimConfig,
    open=open_shims,
    requires=(EVENT,),
    after=(METADATA, OPT),
    summary="starts shims and keeps their connections",
)

task = Registration(
    kind=RUNTIME,
    id="task",
    config=TaskConfig,
    open=open_task,
    requires=(SHIMS, EVENT),
    after=(OCI_RUNTIME, OPT),
    start_timeout=30,
    summary="makes tasks and finds them again after a restart",
)
