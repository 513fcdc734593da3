"""The differ port through a socket: our service and proxy together, and the proxy before a real containerd."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import structlog

from conformance.remote import each_containerd, endpoint, every_check, is_old, namespace_of, started
from harness import GRPC_SERVER, plug, running
from moored.kernel.conformance.diff import Check, Stage, checks
from moored.kernel.namespaces import bind
from moored.kernel.ports.introspection import SERVICE
from moored.plugins.content.local.store import open_store
from moored.plugins.diff.walking import WalkingDiffer
from moored.plugins.proxy.content import RemoteContent
from moored.plugins.proxy.diff import RemoteDiffer

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="changes owners and mounts")]

DIFF_SERVICE = "io.containerd.grpc.v1.diff"
BY_OLD_CONTAINERD = {
    "compare_finds_changes": "a whiteout has the time of the comparison",
    "compare_is_repeatable": "there is no source date",
    "compare_then_apply": "zstd is only read",
}
"""What containerd 1.6 does differently."""


@every_check(checks(), {})
def test_service_and_proxy(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        address, log = str(tmp_path / "m.sock"), structlog.get_logger()
        async with open_store(tmp_path / "content", log) as store:
            differ = plug(SERVICE, "diff-service", WalkingDiffer(store, log))
            configs = {GRPC_SERVER: {"address": address}}
            async with (
                running(tmp_path, GRPC_SERVER, DIFF_SERVICE, differ, configs=configs),
                endpoint(address) as other,
            ):
                (tmp_path / "stage").mkdir()
                with bind("conformance"):
                    await check(Stage(RemoteDiffer(other), store, tmp_path / "stage"))

    asyncio.run(run())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


@pytest.fixture(scope="module", params=each_containerd)
def containerd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with started(request.param, tmp_path_factory.mktemp("containerd")) as address:
        yield address


@pytest.mark.peer
@every_check(checks(), {})
def test_containerd(check: Check, containerd: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name = check.__name__.removeprefix("check_")
    if name in BY_OLD_CONTAINERD and is_old(containerd):
        request.applymarker(pytest.mark.xfail(reason=BY_OLD_CONTAINERD[name]))

    async def run() -> None:
        async with namespace_of(containerd), endpoint(containerd) as other:
            await check(Stage(RemoteDiffer(other), RemoteContent(other), tmp_path))

    asyncio.run(run())
