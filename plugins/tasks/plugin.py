"""Registers the tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.diff import DIFFER, Differ
from moored.kernel.ports.introspection import WARNING
from moored.kernel.ports.mounts import MOUNT_MANAGER
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.tasks import RUNTIME, TASK_MONITOR, TASKS, Tasks

PREFERRED_DIFFER = "walking"
"""The one that packs checkpoints, where there are several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.service.v1.tasks-service"]"""

    blockio_config_file: str = setting("", doc="accepted for containerd's sake, without effect")
    rdt_config_file: str = setting("", doc="accepted for containerd's sake, without effect")


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Tasks]:
    """Take up the tasks that there are, and serve until the end; tasks outlive it."""
    from moored.plugins.tasks.checkpoints import Checkpoints
    from moored.plugins.tasks.rootfs import RootFilesystems
    from moored.plugins.tasks.tasks import LocalTasks

    for name in ("blockio_config_file", "rdt_config_file"):
        if getattr(ctx.config, name):
            ctx.log.warning("setting has no effect", setting=name)
    objects, runtime = ctx.one(METADATA), ctx.one(RUNTIME)
    tasks = LocalTasks(
        runtime=runtime,
        containers=objects.containers,
        checkpoints=Checkpoints(ctx.state, objects.content, _differ(ctx), objects.leases),
        rootfs=RootFilesystems(next(iter(ctx.all(MOUNT_MANAGER).values()), None), runtime, ctx.log),
        monitors=list(ctx.all(TASK_MONITOR).values()),
        warnings=ctx.named(WARNING, "deprecations"),
        log=ctx.log,
    )
    await tasks.open()
    yield tasks


def _differ(ctx: InitContext[Config]) -> Differ | None:
    found = ctx.all(DIFFER)
    return found.get(PREFERRED_DIFFER) or next(iter(found.values()), None)


plugin = Registration(
    kind=TASKS,
    id="tasks-service",
    config=Config,
    open=open_,
    requires=(METADATA, RUNTIME, WARNING),
    after=(DIFFER, MOUNT_MANAGER, TASK_MONITOR),
    essential=True,
    summary="runs the tasks of containers, and stores and restores their checkpoints",
)
