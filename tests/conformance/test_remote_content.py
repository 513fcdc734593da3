"""The content port through a socket: our service and proxy together, and the proxy before a real containerd."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moored.api.services.leases.v1 import leases_pb2, leases_pb2_grpc
from moored.kernel.conformance.content import Check, checks
from moored.kernel.namespaces import bind
from moored.plugins.proxy.content import RemoteContent
from moored.plugins.proxy.endpoint import RemoteEndpoint
from unit.content.served import headers, served

START_SECONDS = 20.0

BY_ANY_WIRE = {
    "delete_removes": "a read is a call, which a deleted blob ends",
}
"""Checks that no store passes behind the content service, and why."""
BY_CONTAINERD = {
    "other_algorithms": "digests are sha256 until the commit",
    "resume_takes_another_algorithm": "digests are sha256 until the commit",
    "abort_reaches_open_writers": "writes to an aborted ingest go on, and its commit fails without a class",
    "abort_and_commit_race": "the commit of an aborted ingest fails without a class",
    "other_total_begins_again": "an ingest without a total takes any",
    "refs_are_any_text": "a lease holds refs of up to 32 KiB",
    "later_total_is_kept": "a total is stored only at the beginning",
}
"""What containerd does differently."""


def every_check(but: dict[str, str]) -> pytest.MarkDecorator:
    def param(check: Check) -> object:
        name = check.__name__.removeprefix("check_")
        marks = [pytest.mark.xfail(reason=but[name])] if name in but else []
        return pytest.param(check, id=name, marks=marks)

    return pytest.mark.parametrize("check", [param(check) for check in checks()])


@asynccontextmanager
async def remote(address: str) -> AsyncGenerator[RemoteContent]:
    endpoint = RemoteEndpoint(address)
    try:
        yield RemoteContent(endpoint)
    finally:
        await endpoint.close()


@every_check(BY_ANY_WIRE)
def test_service_and_proxy(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as service, remote(service.address) as store:
            with bind("conformance"):
                await check(store)

    asyncio.run(run())


# --- a real containerd ------------------------------------------------------------------------------------------------

CONTAINERDS = [
    path for path in [shutil.which("containerd"), *os.environ.get("MOORED_TEST_CONTAINERDS", "").split(":")] if path
]
"""The one on PATH, and further ones (other versions) by their paths."""


@pytest.fixture(scope="module", params=CONTAINERDS or [pytest.param("", marks=pytest.mark.skip("needs containerd"))])
def containerd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a containerd with a private root, without CRI."""
    folder = tmp_path_factory.mktemp("containerd")
    address = str(folder / "c.sock")
    config = folder / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{address}"\n[ttrpc]\naddress = "{address}.ttrpc"\n'
        # Blobs of one check, which has a namespace of its own, must not be there for the next.
        '[plugins."io.containerd.metadata.v1.bolt"]\ncontent_sharing_policy = "isolated"\n'
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([request.param, "-c", config], stdout=log, stderr=log, start_new_session=True)
    try:
        with grpc.insecure_channel(f"unix:{address}") as channel:
            grpc.channel_ready_future(channel).result(timeout=START_SECONDS)
        yield address
    finally:
        process.terminate()
        process.wait(START_SECONDS)


numbers = itertools.count()


@pytest.mark.root
@pytest.mark.peer
@every_check(BY_ANY_WIRE | BY_CONTAINERD)
def test_containerd(check: Check, containerd: str) -> None:
    namespace = f"conformance-{next(numbers)}"

    async def run() -> None:
        # Without a lease, the collections that deletes lead to would take what the check has written.
        async with grpc.aio.insecure_channel(f"unix:{containerd}") as channel:
            leases = leases_pb2_grpc.LeasesStub(channel)
            await leases.Create(leases_pb2.CreateRequest(id="check"), metadata=headers(namespace))
        async with remote(containerd) as store:
            with bind(namespace, "check"):
                await check(store)

    asyncio.run(run())
