"""A content store behind a proxy: as the raw store of a daemon, and when the other side fails."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness import THING, on_loop, running
from moored.kernel.conformance import fails_with
from moored.kernel.conformance.content import digest_of, get, pattern, put
from moored.kernel.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from moored.kernel.namespaces import bind
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.content import CONTENT, LabelledContentStore
from moored.kernel.ports.objects import METADATA, Objects
from moored.plugins.proxy.content import RemoteContent, registration
from moored.plugins.proxy.endpoint import RemoteEndpoint
from unit.content.served import served

LMDB = "io.moored.database.v1.lmdb"
EXCHANGE = "io.containerd.event.v1.exchange"
BOLT = "io.containerd.metadata.v1.bolt"
DATA = pattern(5 << 20)


@dataclass
class ProxyTable:
    address: str
    type: str = CONTENT.uri
    platform: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)


def taker(found: list[Objects]) -> Registration[Any, Any]:
    """A plugin that keeps the object database for the test."""

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        found.append(ctx.one(METADATA))
        yield None

    return Registration(kind=THING, id="taker", open=open_, requires=(METADATA,))


@on_loop
async def test_proxy_is_the_raw_store_of_another_daemon(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    found: list[Objects] = []
    async with served(tmp_path / "far") as far:
        plugins = (registration("far", ProxyTable(far.address)), LMDB, EXCHANGE, BOLT, taker(found))
        async with running(tmp_path / "near", *plugins):
            with bind("ns"):
                content = found[0].content
                async with await content.writer("ref", len(DATA), digest_of(DATA)) as writer:
                    await writer.write(DATA)
                    await writer.commit(len(DATA), digest_of(DATA), {"near": "1"})
                assert await get(content, digest_of(DATA)) == DATA
                # The far side has it in the same namespace, without the label, which is the near side's.
                assert (await far.parts.content.info(digest_of(DATA))).labels == {}


@on_loop
async def test_labels_travel(tmp_path: Path) -> None:
    async with served(tmp_path) as far:
        endpoint = RemoteEndpoint(far.address)
        store: LabelledContentStore = RemoteContent(endpoint)
        with bind("ns"):
            async with await store.writer("ref") as writer:
                await writer.write(b"x")
                assert (await writer.commit(1, "", {"a": "1"})).labels == {"a": "1"}
            await fails_with(NotFound, _under_unknown_lease(store), "lease does not exist")
        await endpoint.close()


async def _under_unknown_lease(store: LabelledContentStore) -> None:
    with bind(lease="gone"):
        await store.writer("other")


@on_loop
async def test_blob_that_changes_size_is_data_loss(tmp_path: Path) -> None:
    async with served(tmp_path) as far:
        endpoint = RemoteEndpoint(far.address)
        store = RemoteContent(endpoint)
        with bind("ns"):
            digest = await put(store, b"data")
            await fails_with(DataLoss, store.reader(digest, 5), f"content {digest} has 4 bytes, 5 wanted")
            far.parts.blob_file(digest).chmod(0o644)
            far.parts.blob_file(digest).write_bytes(b"DATA")
            await fails_with(DataLoss, store.verify(digest))
        await endpoint.close()


@on_loop
async def test_errors_of_the_other_side_arrive_and_close_the_writer(tmp_path: Path) -> None:
    async with served(tmp_path) as far:
        endpoint = RemoteEndpoint(far.address)
        store = RemoteContent(endpoint)
        await fails_with(FailedPrecondition, store.writer("ref"), "namespace is required")
        with bind("ns"):
            async with await store.writer("ref") as writer:
                await writer.write(b"data")
                await fails_with(InvalidArgument, writer.commit(4, "", {"k": "v" * 4096}))
                await fails_with(FailedPrecondition, writer.write(b"more"))
            assert (await store.status("ref")).offset == 4
        await endpoint.close()


@on_loop
async def test_nobody_at_the_other_end_is_unavailable(tmp_path: Path) -> None:
    endpoint = RemoteEndpoint(str(tmp_path / "none.sock"))
    store = RemoteContent(endpoint)
    with bind("ns"):
        for call in (store.info(digest_of(b"")), store.writer("ref"), anext(store.walk()), store.list_statuses()):
            assert "none.sock" in (await fails_with(Unavailable, call)).text
    await endpoint.close()


@pytest.mark.parametrize("address", ["", "/x"])
def test_registration_wants_an_address(address: str) -> None:
    if address:
        assert registration("far", ProxyTable(address)).uri == "io.containerd.content.v1.far"
    else:
        with pytest.raises(InvalidArgument, match="has no address"):
            registration("far", ProxyTable(address))
