"""Every mount manager does what its port says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from moored.kernel.conformance.mounts import CHECKS, Check
from unit.mounts.world import opened


@pytest.mark.root
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_mount_manager(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with opened(tmp_path) as world:
            await check(world.manager)
            assert (world.mounted, world.folders) == ([], [])

    asyncio.run(run())
