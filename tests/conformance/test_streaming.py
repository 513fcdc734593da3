"""Every stream manager does what its port says."""

from __future__ import annotations

import asyncio

import pytest

from moored.kernel.conformance.streaming import CHECKS, Check
from moored.plugins.streaming.manager import LeasedStreams


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_stream_manager(check: Check) -> None:
    async def run() -> None:
        async with asyncio.timeout(20), LeasedStreams() as manager:
            await check(manager)

    asyncio.run(run())
