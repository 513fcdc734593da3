"""The ttrpc listener on a real socket."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path
from typing import Any

from google.protobuf.empty_pb2 import Empty

from harness import (
    on_loop,
    outcome_of,
    plug,
    running,
)
from moored.api.services.version.v1.version_pb2 import VersionResponse
from moored.kernel.errors import NotFound
from moored.kernel.namespaces import namespace_or_empty
from moored.kernel.ports.daemon import (
    Outcome,
)
from moored.kernel.ports.services import TTRPC, TtrpcRegistrar

TTRPC_SERVER = "io.containerd.server.v1.ttrpc"


class VersionOverTtrpc:
    """A ttrpc service that answers with its call's namespace."""

    def register(self, server: TtrpcRegistrar) -> None:
        from moored.api.services.version.v1 import version_pb2

        server.add_service(version_pb2.DESCRIPTOR.services_by_name["Version"], self)

    async def Version(self, request: Empty, context: Any) -> VersionResponse:
        if namespace_or_empty() == "missing":
            raise NotFound("it is missing")
        return VersionResponse(version=f"namespace {namespace_or_empty()!r}")


async def ttrpc_version(path: Path, namespace: str) -> bytes:
    """Call Version with a hand-made frame; the answer's bytes."""
    from moored.api.ttrpc.request_pb2 import Request

    request = Request(service="containerd.services.version.v1.Version", method="Version")
    request.metadata.add(key="containerd-namespace-ttrpc", value=namespace)
    data = request.SerializeToString()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(len(data).to_bytes(4) + (1).to_bytes(4) + b"\1\0" + data)
    head = await reader.readexactly(10)
    answer = await reader.readexactly(int.from_bytes(head[:4]))
    writer.close()
    await writer.wait_closed()
    return answer


@on_loop
async def test_ttrpc_serves_services_with_the_namespace_bound(tmp_path: Path) -> None:
    path = tmp_path / "m.sock.ttrpc"
    plugins = (TTRPC_SERVER, plug(TTRPC, "version", VersionOverTtrpc()))
    async with running(tmp_path, *plugins, configs={TTRPC_SERVER: {"address": str(path)}}) as world:
        assert world.address(TTRPC_SERVER) == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert b"namespace 'k8s.io'" in await ttrpc_version(path, "k8s.io")
        assert b"it is missing: not found" in await ttrpc_version(path, "missing")
        assert b"namespace ''" in await ttrpc_version(path, "")
    assert not path.exists()


@on_loop
async def test_ttrpc_without_address_is_skipped(tmp_path: Path) -> None:
    assert await outcome_of(tmp_path, TTRPC_SERVER, address="") == (Outcome.SKIPPED, "no address configured")


@on_loop
async def test_ttrpc_never_takes_a_live_socket_over(tmp_path: Path) -> None:
    path = tmp_path / "t.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        outcome, reason = await outcome_of(tmp_path, TTRPC_SERVER, address=str(path))
    assert outcome is Outcome.FAILED
    assert "in use" in reason
