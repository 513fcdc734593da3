"""Every differ does what its port says."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
import structlog

from moored.kernel.conformance.diff import Check, Stage, checks
from moored.plugins.content.local.store import open_store
from moored.plugins.diff.walking import WalkingDiffer
from unit.descriptors import none_left_open

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and mounts")]


@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))
def test_walking_differ(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with open_store(tmp_path / "content", structlog.get_logger()) as store:
            stage = tmp_path / "stage"
            stage.mkdir()
            await check(Stage(WalkingDiffer(store, structlog.get_logger()), store, stage))
            assert len(asyncio.all_tasks()) == 1

    with none_left_open():
        asyncio.run(run())
    # the loop's own threads that wait for a process may just be ending
    assert [one.name for one in threading.enumerate() if one.name.startswith("layer")] == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
