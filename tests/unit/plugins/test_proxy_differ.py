"""The differ in another process: what travels there and back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from harness import GRPC_SERVER, on_loop, plug, running
from moored.kernel.errors import InvalidArgument, Unavailable
from moored.kernel.namespaces import LEASE, bind, current_namespace
from moored.kernel.ports.diff import LAYER
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.introspection import SERVICE
from moored.kernel.ports.mounts import Mount
from moored.plugins.proxy.diff import RemoteDiffer
from moored.plugins.proxy.endpoint import RemoteEndpoint

BLOB = Descriptor(media_type=f"{LAYER}+gzip", digest=f"sha256:{'1' * 64}", size=9, annotations={"a": "b"})
DONE = Descriptor(media_type=LAYER, digest=f"sha256:{'2' * 64}", size=20)
MOUNTS = [Mount(type="overlay", source="overlay", target="/t", options=("ro", "lowerdir=/a:/b"))]


class Told:
    """A differ that keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def apply(self, descriptor: Descriptor, mounts: Any, **more: Any) -> Descriptor:
        self.asked.append((current_namespace(), LEASE.get(), descriptor, list(mounts), more))
        return DONE

    async def compare(self, lower: Any, upper: Any, **more: Any) -> Descriptor:
        self.asked.append((current_namespace(), LEASE.get(), list(lower), list(upper), more))
        return BLOB


@asynccontextmanager
async def proxied(folder: Path) -> AsyncGenerator[tuple[RemoteDiffer, Told]]:
    told, address = Told(), str(folder / "m.sock")
    plugins = (GRPC_SERVER, "io.containerd.grpc.v1.diff", plug(SERVICE, "diff-service", told))
    async with running(folder, *plugins, configs={GRPC_SERVER: {"address": address}}):
        endpoint = RemoteEndpoint(address)
        try:
            with bind("ns", "lease"):
                yield RemoteDiffer(endpoint), told
        finally:
            await endpoint.close()


@on_loop
async def test_apply_travels_whole(tmp_path: Path) -> None:
    payload = AnyMessage(type_url="t", value=b"v").SerializeToString()
    progress: list[int] = []
    async with proxied(tmp_path) as (differ, told):
        for sync in (True, False):
            done = await differ.apply(BLOB, MOUNTS, payloads={"key": payload}, sync_fs=sync, progress=progress.append)
            assert done == DONE
            assert told.asked[-1] == ("ns", "lease", BLOB, MOUNTS, {"payloads": {"key": payload}, "sync_fs": sync})
        with pytest.raises(InvalidArgument, match="'key'"):
            await differ.apply(BLOB, MOUNTS, payloads={"key": b"\xff"})
    assert progress == [0, 9, 0, 9]


@on_loop
async def test_compare_travels_whole(tmp_path: Path) -> None:
    wanted = {"media_type": "m", "reference": "r", "labels": {"l": "v"}, "source_date_epoch": 1_600_000_000_000_000_001}
    async with proxied(tmp_path) as (differ, told):
        assert await differ.compare([], MOUNTS, **wanted) == BLOB
        assert told.asked == [("ns", "lease", [], MOUNTS, wanted)]
        assert await differ.compare(MOUNTS, []) == BLOB
        nothing = {"media_type": "", "reference": "", "labels": {}, "source_date_epoch": None}
        assert told.asked[1:] == [("ns", "lease", MOUNTS, [], nothing)]


@on_loop
async def test_differ_that_is_away_is_unavailable(tmp_path: Path) -> None:
    endpoint = RemoteEndpoint(str(tmp_path / "none.sock"))
    with bind("ns"), pytest.raises(Unavailable, match=r"none\.sock"):
        await RemoteDiffer(endpoint).apply(BLOB, MOUNTS)
    await endpoint.close()
