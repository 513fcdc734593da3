"""The content port through a socket: our service and proxy together, and the proxy before a real containerd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conformance.remote import each_containerd, endpoint, every_check, namespace_of, started
from moored.kernel.conformance.content import Check, checks
from moored.kernel.namespaces import bind
from moored.plugins.proxy.content import RemoteContent
from unit.content.served import served

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


@asynccontextmanager
async def remote(address: str) -> AsyncGenerator[RemoteContent]:
    async with endpoint(address) as other:
        yield RemoteContent(other)


@every_check(checks(), BY_ANY_WIRE)
def test_service_and_proxy(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as service, remote(service.address) as store:
            with bind("conformance"):
                await check(store)

    asyncio.run(run())


# --- a real containerd ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=each_containerd)
def containerd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The address of a containerd with a private root."""
    with started(request.param, tmp_path_factory.mktemp("containerd")) as address:
        yield address


@pytest.mark.root
@pytest.mark.peer
@every_check(checks(), BY_ANY_WIRE | BY_CONTAINERD, races=["abort_and_commit_race"])
def test_containerd(check: Check, containerd: str) -> None:
    async def run() -> None:
        async with namespace_of(containerd), remote(containerd) as store:
            await check(store)

    asyncio.run(run())
