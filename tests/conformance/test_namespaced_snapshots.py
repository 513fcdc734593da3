"""The snapshots of a namespace do what the port says, on a raw snapshotter that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moored.kernel.conformance.snapshots import CHECKS, Check
from moored.kernel.namespaces import bind
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.snapshots import NamespacedSnapshotter
from moored.plugins.snapshots.overlayfs.layers import Options, OverlayLayers
from unit.snapshots.world import mounted, nothing_left, opened, openers

pytestmark = pytest.mark.root


@asynccontextmanager
async def namespaced(folder: Path, kind: str) -> AsyncGenerator[NamespacedSnapshotter]:
    databases = openers(folder)[kind]
    async with opened(OverlayLayers(folder / "raw", Options()), databases) as backend:
        database = await databases.open(folder / "records")
        try:
            await database.update(schema.prepare)
            yield NamespacedSnapshotter(
                database=database, exchange=None, name="overlayfs", backend=backend, changed=lambda _: None
            )
        finally:
            await database.close()


@pytest.mark.parametrize("kind", ["apart", "joined"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_namespaced_snapshotter(check: Check, kind: str, tmp_path: Path) -> None:
    async def run() -> None:
        with bind(namespace="ns"):
            async with namespaced(tmp_path, kind) as snapshotter:
                await check(snapshotter, mounted)

    with nothing_left():
        asyncio.run(run())
