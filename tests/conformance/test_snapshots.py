"""Every snapshotter does what its port says."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from moored.kernel.conformance.snapshots import CHECKS, Check
from unit.snapshots.world import KINDS, layers_of, mounted, nothing_left, opened, place_for


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_snapshotter(check: Check, kind: str, tmp_path: Path) -> None:
    async def run(root: Path) -> None:
        async with opened(layers_of(kind, root)) as snapshotter:
            await check(snapshotter, mounted)

    threads = threading.active_count()
    with nothing_left(), place_for(kind, tmp_path) as place:
        asyncio.run(run(place / "snapshotter"))
    assert threading.active_count() <= threads  # of an earlier test one may end meanwhile
