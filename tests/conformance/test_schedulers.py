"""Every scheduler of collections does what its port says."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from moored.kernel.conformance.schedulers import CHECKS, Check, Collecting
from moored.plugins.gc.scheduler.scheduler import Plan, scheduled

PLAN = Plan(pause_threshold=0.02, deletion_threshold=0, mutation_threshold=100, schedule_delay=0.0, startup_delay=0.1)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_scheduler(check: Check) -> None:
    async def run() -> None:
        objects = Collecting()
        async with asyncio.timeout(20), scheduled(objects, PLAN, structlog.get_logger()) as scheduler:  # type: ignore[arg-type]
            await check(scheduler, objects)

    asyncio.run(run())
