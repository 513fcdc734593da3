"""The snapshotter in another process: what a service does not keep of the port's promises, and one that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from harness import GRPC_SERVER, THING, on_loop, plug, running
from moored.api.services.snapshots.v1 import snapshots_pb2 as pb
from moored.api.services.snapshots.v1 import snapshots_pb2_grpc as rpc
from moored.kernel.conformance import fails_with
from moored.kernel.errors import DeadlineExceeded, InvalidArgument, Unimplemented
from moored.kernel.namespaces import bind
from moored.kernel.plugin import InitContext, Registration
from moored.kernel.ports.services import GRPC, GrpcRegistrar
from moored.kernel.ports.snapshots import REBASE, SNAPSHOTTER, Snapshotter
from moored.plugins.proxy.endpoint import RemoteEndpoint
from moored.plugins.proxy.snapshots import RemoteSnapshotter, registration
from unit.plugins.test_proxy import ProxyTable


class Service(rpc.SnapshotsServicer):
    """It has one snapshot, `k` of `p`; it never tells of any, nor commits."""

    def register(self, server: GrpcRegistrar) -> None:
        rpc.add_SnapshotsServicer_to_server(self, server)  # type: ignore[arg-type]

    async def Stat(self, request: Any, context: Any) -> Any:
        parent = "p" if request.key == "k" else ""
        return pb.StatSnapshotResponse(info=pb.Info(name=f"{request.snapshotter}/{request.key}", parent=parent))

    async def Commit(self, request: Any, context: Any) -> Any:
        await asyncio.Event().wait()

    async def List(self, request: Any, context: Any) -> Any:
        yield pb.ListSnapshotsResponse(info=[pb.Info(name="first")])
        await asyncio.Event().wait()


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[str]:
    address = str(folder / "m.sock")
    plugins = (GRPC_SERVER, plug(GRPC, "snapshots", Service()))
    async with running(folder, *plugins, configs={GRPC_SERVER: {"address": address}}):
        with bind("ns"):
            yield address


async def slowly_listed(far: RemoteSnapshotter, found: list[str]) -> None:
    """Who takes its time is not who is waited for."""
    async for info in far.walk():
        found.append(info.name)
        await asyncio.sleep(0.3)


@on_loop
async def test_call_without_an_answer_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as address:
        endpoint = RemoteEndpoint(address, 0.2)
        far = RemoteSnapshotter(endpoint, "far")
        await fails_with(DeadlineExceeded, far.commit("c", "k"))
        found: list[str] = []
        error = await fails_with(DeadlineExceeded, slowly_listed(far, found))
        assert address in error.text
        assert found == ["first"]
        await endpoint.close()


@on_loop
async def test_parents_are_judged_before_they_travel(tmp_path: Path) -> None:
    async with served(tmp_path) as address:
        endpoint = RemoteEndpoint(address, 0.2)
        old, new = RemoteSnapshotter(endpoint, "far"), RemoteSnapshotter(endpoint, "far", frozenset((REBASE,)))
        for far in (old, new):
            text = "snapshot 'k' has the parent 'p', it cannot become 'q'"
            await fails_with(InvalidArgument, far.commit("c", "k", {}, "q"), text)
            await fails_with(DeadlineExceeded, far.commit("c", "k", {}, "p"))
        await fails_with(Unimplemented, old.commit("c", "other", {}, "q"))
        await fails_with(DeadlineExceeded, new.commit("c", "other", {}, "q"))
        await endpoint.close()


@on_loop
async def test_entry_of_the_config_becomes_a_snapshotter(tmp_path: Path) -> None:
    found: dict[str, Snapshotter] = {}

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        found.update(ctx.all(SNAPSHOTTER))
        yield None

    user: Registration[Any, Any] = Registration(kind=THING, id="user", open=open_, requires=(SNAPSHOTTER,))
    async with served(tmp_path) as address:
        proxy = registration("far", ProxyTable(SNAPSHOTTER.uri, address, capabilities=["rebase", "own"]))
        (tmp_path / "other").mkdir()
        async with running(tmp_path / "other", proxy, user):
            assert found["far"].capabilities == {"rebase", "own"}
            assert (await found["far"].stat("x")).name == "far/x"
