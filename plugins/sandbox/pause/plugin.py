"""Registers the controller of sandboxes that are pause containers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration, Skip
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.sandboxes import POD_SANDBOX_CONTROLLER, SandboxController
from moored.kernel.ports.snapshots import SNAPSHOTTER
from moored.kernel.ports.tasks import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.podsandbox.controller.v1.podsandbox"]"""

    image: str = setting(
        "", doc="image whose process holds sandboxes, by its name in their namespaces; empty is no such controller"
    )
    snapshotter: str = setting("overlayfs", doc="snapshotter that the image is unpacked for")
    runtime: str = setting("io.containerd.runc.v2", doc="runtime of sandboxes that name none")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[SandboxController]:
    """Take up the sandboxes that there are, and serve until the end; sandboxes outlive it."""
    if not ctx.config.image:
        raise Skip("no image is configured, a pause container needs one")
    if ctx.config.snapshotter not in ctx.all(SNAPSHOTTER):
        raise Skip(f"snapshotter {ctx.config.snapshotter!r} is not there")
    from moored.plugins.sandbox.pause.controller import PauseController, Settings

    controller = PauseController(
        objects=ctx.one(METADATA),
        tasks=ctx.named(TASKS, "tasks-service"),
        events=ctx.one(EVENT),
        settings=Settings(image=ctx.config.image, snapshotter=ctx.config.snapshotter, runtime=ctx.config.runtime),
        log=ctx.log,
    )
    async with controller.running():
        yield controller


plugin = Registration(
    kind=POD_SANDBOX_CONTROLLER,
    id="podsandbox",
    config=Config,
    open=open_,
    requires=(METADATA, TASKS, EVENT),
    after=(SNAPSHOTTER,),
    summary="makes a sandbox of a pause container, for shims without the sandbox API",
)
