"""Registers the restart monitor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.plugin import InitContext, PluginType, Registration
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.tasks import TASKS

CONTAINER_MONITOR: Final[PluginType[None]] = PluginType("io.containerd.monitor.container.v1")
"""Offers nothing to other plugins."""
DEFAULT_INTERVAL: Final = Duration(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.monitor.container.v1.restart"]"""

    interval: Duration = setting(DEFAULT_INTERVAL, ge=0, doc="time between looks at all containers; 0 takes 10s")
    max_backoff: Duration = setting(
        Duration(300), ge=0, doc="at most so long from start to start of a task that keeps ending at once"
    )
    change_timeout: Duration = setting(
        Duration(120), ge=1, doc="after so long a start or stop is given up, to be tried again at a later look"
    )


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[None]:
    """Restart until the end."""
    from moored.plugins.monitors.restart.monitor import Plan, RestartMonitor
    from moored.plugins.monitors.restart.policy import POLICIES

    ctx.facts.capabilities.extend(POLICIES)
    config = ctx.config
    plan = Plan(
        interval=config.interval or DEFAULT_INTERVAL, max_backoff=config.max_backoff, timeout=config.change_timeout
    )
    monitor = RestartMonitor(ctx.named(TASKS, "tasks-service"), ctx.one(METADATA), plan, ctx.log)
    running = asyncio.create_task(monitor.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


plugin = Registration(
    kind=CONTAINER_MONITOR,
    id="restart",
    config=Config,
    open=open_,
    requires=(METADATA, TASKS),
    summary="starts tasks again that ended, as the labels of their containers say",
)
