"""Registers the scheduler of garbage collections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from moored.kernel.config import setting
from moored.kernel.duration import Duration
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.objects import GC, METADATA, Scheduler


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
    async with scheduled(ctx.one(METADATA), plan, ctx.log) as scheduler:
        yield scheduler


plugin = Registration(
    kind=GC,
    id="scheduler",
    config=Config,
    open=open_,
    requires=(METADATA,),
    essential=True,
    summary="removes what nothing refers to any more",
)
