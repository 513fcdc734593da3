"""Every content store does what its port says."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import structlog

from moored.kernel.conformance.content import Check, checks
from moored.plugins.content.local.store import open_store
from unit.descriptors import descriptors


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))
def test_local_store(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with open_store(tmp_path / "content", structlog.get_logger()) as store:
            await check(store)

    fds, threads = descriptors(), threading.active_count()
    asyncio.run(run())
    assert descriptors() == fds
    assert threading.active_count() <= threads  # of an earlier test one may end meanwhile
