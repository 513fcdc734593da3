"""Registers the scheduler of garbage collections."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.metrics import METRICS_EXPORTER, MetricsExporter
from moored.kernel.ports.objects import GC, METADATA, Scheduler

if TYPE_CHECKING:
    from moored.plugins.gc.scheduler.scheduler import Tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """[plugins."io.containerd.gc.v1.scheduler"]"""

    pause_threshold: float = setting(
        0.02, doc="share of the time that writers may be held up, within 0 and 0.5; 0 allows one collection a second"
    )
    deletion_threshold: int = setting(
        0,
        doc="deletions after which one is due after schedule_delay; 0: at the next slot, however many there are",
    )
    mutation_threshold: int = setting(100, doc="writes after which one is due at the next slot; 0: none is")
    schedule_delay: Duration = setting(
        Duration(0), doc="from asking for a collection, or the deletion_threshold, to its start"
    )
    startup_delay: Duration = setting(
        Duration(0.1), doc="from the start to the first collection; 0: none until there is another reason"
    )


@asynccontextmanager
async def open_(ctx: InitContext[Config]) -> AsyncGenerator[Scheduler]:
    """Schedule until the end."""
    from moored.plugins.gc.scheduler.scheduler import Plan, scheduled

    config = ctx.config
    plan = Plan(
        pause_threshold=config.pause_threshold,
        deletion_threshold=config.deletion_threshold,
        mutation_threshold=config.mutation_threshold,
        schedule_delay=config.schedule_delay,
        startup_delay=config.startup_delay,
    )
    ctx.facts.exports.update(
        PauseThreshold=f"{plan.pause_threshold:g}",
        DeletionThreshold=str(plan.deletion_threshold),
        MutationThreshold=str(plan.mutation_threshold),
        ScheduleDelay=str(config.schedule_delay),
    )
    with _counted(list(ctx.all(METRICS_EXPORTER).values())) as tell:
        async with scheduled(ctx.one(METADATA), plan, ctx.log, tell=tell) as scheduler:
            yield scheduler


@contextmanager
def _counted(exporters: Sequence[MetricsExporter]) -> Generator[Tell]:
    """Count collections where somebody shows the counts; without an exporter the library is not loaded."""
    if not exporters:
        yield lambda _done: None
        return
    from moored.plugins.gc.scheduler.metrics import CollectionCounts

    counts = CollectionCounts()
    for exporter in exporters:
        exporter.register(counts)
    try:
        yield counts.tell
    finally:
        for exporter in exporters:
            exporter.unregister(counts)


plugin = Registration(
    kind=GC,
    id="scheduler",
    config=Config,
    open=open_,
    requires=(METADATA,),
    after=(METRICS_EXPORTER,),
    essential=True,
    summary="removes what nothing refers to any more",
)
