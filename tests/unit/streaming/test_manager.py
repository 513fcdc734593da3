"""The stream manager's bound and its books."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from harness import on_loop
from moored.kernel.errors import NotFound, ResourceExhausted, Unknown
from moored.kernel.namespaces import bind
from moored.kernel.payloads import Packed
from moored.plugins.streaming.manager import LeasedStreams


class Dummy:
    """A stream that notes its end."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def send(self, message: Packed) -> None: ...

    async def receive(self) -> Packed | None:
        return None

    async def close(self) -> None:
        self.closed.set()


def leases(*gone: str) -> Any:
    async def resources(lease: str) -> list[object]:
        if lease in gone:
            raise NotFound(lease)
        return []

    return SimpleNamespace(resources=resources)


@on_loop
async def test_streams_of_clients_that_are_gone_make_room_and_no_others_do() -> None:
    async with LeasedStreams(leases(), max_streams=2) as manager:
        first, second = Dummy(), Dummy()
        await manager.register("1", first)
        managed = await manager.register("2", second)
        with pytest.raises(ResourceExhausted, match="2 streams are open"):
            await manager.register("3", Dummy())
        manager.abandoned("2", managed)
        await manager.register("3", Dummy())

        assert (first.closed.is_set(), second.closed.is_set()) == (False, True)
        with pytest.raises(NotFound):
            manager.get("2")


@on_loop
async def test_names_belong_to_their_namespace_and_are_free_after_close() -> None:
    async with LeasedStreams(leases()) as manager:
        with bind("a"):
            stream = await manager.register("s", Dummy())
            with pytest.raises(Unknown, match="already exists"):
                await manager.register("s", Dummy())
        with bind("b"), pytest.raises(NotFound):
            manager.get("s")
        await stream.close()
        with bind("a"):
            await manager.register("s", Dummy())


@on_loop
async def test_only_streams_of_a_lease_that_is_gone_are_closed() -> None:
    async with LeasedStreams(leases("old")) as manager:
        streams = {name: Dummy() for name in ("old", "new", "")}
        for name, stream in streams.items():
            with bind("ns", lease=name):
                await manager.register(f"s{name}", stream)
        manager.changed(deleted=True)
        await asyncio.wait_for(streams["old"].closed.wait(), 5)

        assert not streams["new"].closed.is_set()
        assert not streams[""].closed.is_set()


@on_loop
async def test_what_is_open_is_closed_in_the_end() -> None:
    stream = Dummy()
    async with LeasedStreams(leases()) as manager:
        await manager.register("s", stream)

    assert stream.closed.is_set()
