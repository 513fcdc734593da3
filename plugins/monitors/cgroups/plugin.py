"""Registers the monitor of cgroups."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moored.kernel.config import setting
from moored.kernel.errors import ResourceExhausted
from moored.kernel.payloads import Packed, TaskDelete, TaskOOM, unpack
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.events import EVENT, Envelope, Exchange
from moored.kernel.ports.metrics import METRICS_EXPORTER
from moored.kernel.ports.tasks import TASK_MONITOR, TaskMonitor

UNIFIED_MARK = Path("/sys/fs/cgroup/cgroup.controllers")
"""There where cgroup v2 is all there is."""
SHIM_TIMEOUT = "io.containerd.timeout.metrics.shimstats"
SHIM_SECONDS = 2.0
TOPICS = ('topic=="/tasks/oom"', 'topic=="/tasks/delete"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.monitor.task.v1.cgroups"]"""

    no_prometheus: bool = setting(False, doc="show no metrics of tasks")


class NoMonitor:
    """A TaskMonitor that watches nothing."""

    async def watch(self, *_: Any) -> None:
        """Ignore it."""

    async def forget(self, *_: Any) -> None:
        """Ignore it."""


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[TaskMonitor]:
    """Show the counters in all exporters until the end."""
    if ctx.config.no_prometheus:
        yield NoMonitor()
        return
    from moored.plugins.monitors.cgroups.monitor import CgroupMonitor

    seconds = ctx.daemon.timeout(SHIM_TIMEOUT)
    monitor = CgroupMonitor(
        unified=await asyncio.to_thread(UNIFIED_MARK.exists),
        deadline=SHIM_SECONDS if seconds is None else seconds,
        loop=asyncio.get_running_loop(),
        log=ctx.log,
    )

    def tell(envelope: Envelope) -> None:
        payload = unpack(Packed(envelope.type_url, envelope.payload or b""))
        match payload:
            case TaskOOM():
                monitor.ran_out_of_memory((envelope.namespace, payload.container_id))
            case TaskDelete() if payload.id in {"", payload.container_id}:
                # Tasks whose shim died are not deleted by anybody.
                monitor.ended((envelope.namespace, payload.container_id), payload.pid)

    exporters = list(ctx.all(METRICS_EXPORTER).values())
    for exporter in exporters:
        exporter.register(monitor)
    listening = asyncio.create_task(_listen(ctx.one(EVENT), tell))
    try:
        yield monitor
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        for exporter in exporters:
            exporter.unregister(monitor)


async def _listen(exchange: Exchange, tell: Any) -> None:
    while True:
        try:
            async with exchange.subscribe(*TOPICS) as events:
                async for envelope in events:
                    tell(envelope)
        except ResourceExhausted:
            # Missed counts are lost; a task whose end was missed gives no counters and is not shown.
            continue


plugin = Registration(
    kind=TASK_MONITOR,
    id="cgroups",
    config=Config,
    open=open_,
    requires=(EVENT,),
    after=(METRICS_EXPORTER,),
    summary="shows memory, CPU, I/O and processes of every task to Prometheus",
)
