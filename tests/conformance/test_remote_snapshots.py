"""The snapshots port through a socket: our service and proxy together, and the proxy before a real containerd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.remote import each_containerd, endpoint, every_check, namespace_of, started
from harness import GRPC_SERVER, plug, running
from moored.kernel.conformance.snapshots import CHECKS, Check
from moored.kernel.namespaces import bind
from moored.kernel.ports.objects import METADATA
from moored.kernel.ports.snapshots import REBASE
from moored.plugins.metadata.bolt import schema
from moored.plugins.metadata.bolt.snapshots import NamespacedSnapshotter
from moored.plugins.metadata.lmdb.opener import LmdbOpener
from moored.plugins.proxy.snapshots import RemoteSnapshotter
from moored.plugins.snapshots.overlayfs.layers import Options, OverlayLayers
from remote_snapshotter import serving
from unit.snapshots.world import LOG, mounted, opened

pytestmark = pytest.mark.root

SERVICE = "io.containerd.grpc.v1.snapshots"
BY_CONTAINERD = {
    "missing_snapshots": "a namespace without snapshots has no snapshotter, says the text",
    "only_active_are_committed": "the texts are others",
    "only_committed_are_parents": "the texts are others",
}
"""What containerd does differently."""


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[str]:
    """The address of our service over an overlayfs snapshotter."""
    address = str(folder / "m.sock")
    async with opened(OverlayLayers(folder / "raw", Options())) as backend:
        database = await LmdbOpener(LOG).open(folder / "records")
        try:
            await database.update(schema.prepare)
            snapshotter = NamespacedSnapshotter(
                database=database, exchange=None, name="overlayfs", backend=backend, changed=lambda _: None
            )
            objects = plug(METADATA, "bolt", SimpleNamespace(snapshotter=lambda name: snapshotter))
            configs = {GRPC_SERVER: {"address": address}}
            async with running(folder, GRPC_SERVER, SERVICE, objects, configs=configs):
                yield address
        finally:
            await database.close()


@every_check(CHECKS, {})
def test_service_and_proxy(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as address, endpoint(address) as other:
            with bind("conformance"):
                await check(RemoteSnapshotter(other, "overlayfs", frozenset((REBASE,))), mounted)

    asyncio.run(run())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@every_check(CHECKS, {})
def test_process_of_a_third_party(check: Check, tmp_path: Path) -> None:
    socket = tmp_path / "h.sock"

    async def run() -> None:
        async with endpoint(str(socket)) as other:
            await check(RemoteSnapshotter(other, "far"), mounted)

    with serving(tmp_path / "snapshots", socket):
        asyncio.run(run())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture(scope="module", params=each_containerd)
def containerd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with started(request.param, tmp_path_factory.mktemp("containerd")) as address:
        yield address


@pytest.mark.peer
@every_check(CHECKS, BY_CONTAINERD)
def test_containerd(check: Check, containerd: str) -> None:
    async def run() -> None:
        async with namespace_of(containerd), endpoint(containerd) as other:
            await check(RemoteSnapshotter(other, "overlayfs"), mounted)

    asyncio.run(run())
