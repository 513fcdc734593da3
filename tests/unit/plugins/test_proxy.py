"""Proxies: a plugin in another process, reached over a socket, there or not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty

from harness import (
    GRPC_SERVER,
    THING,
    on_loop,
    plug,
    running,
)
from moored.api.services.version.v1 import version_pb2_grpc
from moored.api.services.version.v1.version_pb2 import VersionResponse
from moored.kernel.errors import InvalidArgument, NotFound, Unavailable
from moored.kernel.namespaces import namespace_or_empty
from moored.kernel.plugin import InitContext, PluginType, Registration
from moored.kernel.ports.daemon import (
    Outcome,
)
from moored.kernel.ports.services import GRPC, GrpcRegistrar
from moored.plugins.proxy.endpoint import RemoteEndpoint, registration


@dataclass
class ProxyTable:
    type: str
    address: str
    platform: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)


class RemoteVersion:
    """Behaves as its namespace says."""

    def register(self, server: GrpcRegistrar) -> None:
        version_pb2_grpc.add_VersionServicer_to_server(self, server)  # type: ignore[arg-type]

    async def Version(self, request: Empty, context: Any) -> VersionResponse:
        if namespace_or_empty() == "missing":
            raise NotFound("it is missing")
        return VersionResponse(version=namespace_or_empty())


METHOD = "/containerd.services.version.v1.Version/Version"
SNAPSHOTTER: PluginType[RemoteEndpoint] = PluginType("io.containerd.snapshotter.v1")


def user_of_proxy(found: dict[str, RemoteEndpoint]) -> Registration[Any, Any]:
    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        found.update(ctx.all(SNAPSHOTTER))
        yield None

    return Registration(kind=THING, id="user", open=open_, requires=(SNAPSHOTTER,))


@on_loop
async def test_proxy_calls_the_other_side_and_brings_its_errors_back(tmp_path: Path) -> None:
    address = str(tmp_path / "m.sock")
    table = ProxyTable(SNAPSHOTTER.uri, address, "linux/amd64", {"root": "/r"}, ["rebase"])
    found: dict[str, RemoteEndpoint] = {}
    plugins = (GRPC_SERVER, plug(GRPC, "version", RemoteVersion()), registration("far", table), user_of_proxy(found))
    async with running(tmp_path, *plugins, configs={GRPC_SERVER: {"address": address}}) as world:
        record = world.record("io.containerd.snapshotter.v1.far")
        assert record.outcome is Outcome.OK
        assert record.exports == {"root": "/r", "address": address}
        assert record.capabilities == ("rebase",)
        assert record.platforms == ("linux/amd64",)
        assert (await found["far"].unary(METHOD, Empty(), VersionResponse, "k8s.io")).version == "k8s.io"
        with pytest.raises(NotFound, match="it is missing"):
            await found["far"].unary(METHOD, Empty(), VersionResponse, "missing")


@pytest.mark.parametrize("kind", ["absent", "dead"])
@on_loop
async def test_dead_proxy_delays_no_start_and_names_its_address(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "proxy.sock")
    if kind == "dead":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(address)
    found: dict[str, RemoteEndpoint] = {}
    began = asyncio.get_running_loop().time()
    async with running(tmp_path, registration("far", ProxyTable(SNAPSHOTTER.uri, address)), user_of_proxy(found)):
        assert asyncio.get_running_loop().time() - began < 1
        with pytest.raises(Unavailable, match=address):
            await found["far"].unary(METHOD, Empty(), VersionResponse)
        assert asyncio.get_running_loop().time() - began < 7


@on_loop
async def test_proxy_reaches_an_address_that_came_to_life(tmp_path: Path) -> None:
    address = str(tmp_path / "m.sock")
    endpoint = RemoteEndpoint(address)
    with pytest.raises(Unavailable):
        await endpoint.unary(METHOD, Empty(), VersionResponse)
    plugins = (GRPC_SERVER, plug(GRPC, "version", RemoteVersion()))
    async with running(tmp_path, *plugins, configs={GRPC_SERVER: {"address": address}}):
        async with asyncio.timeout(10):
            while True:
                try:
                    answer = await endpoint.unary(METHOD, Empty(), VersionResponse, "here")
                except Unavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
        await endpoint.close()
    assert answer.version == "here"


def test_proxy_of_a_type_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"io\.containerd\.event\.v1"):
        registration("far", ProxyTable("io.containerd.event.v1", "/x"))
    with pytest.raises(InvalidArgument, match="has no address"):
        registration("far", ProxyTable(SNAPSHOTTER.uri, ""))
