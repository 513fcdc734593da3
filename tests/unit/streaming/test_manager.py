"""The stream manager's bound and its books."""

from __future__ import annotations

import asyncio

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


@on_loop
async def test_streams_of_clients_that_are_gone_make_room_and_no_others_do() -> None:
    async with LeasedStreams(max_streams=2) as manager:
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
    async with LeasedStreams() as manager:
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
async def test_streams_are_listed_with_their_leases_until_they_are_closed() -> None:
    async with LeasedStreams() as manager:
        for name in ("l", ""):
            with bind("ns", lease=name):
                await manager.register(f"s{name}", Dummy())
        leased, free = manager.listed()
        await free.close()

        assert [(one.namespace, one.name, one.lease) for one in (leased, free)] == [("ns", "sl", "l"), ("ns", "s", "")]
        assert manager.listed() == [leased]


@on_loop
async def test_stream_that_was_closed_leaves_a_later_one_of_its_name_alone() -> None:
    async with LeasedStreams() as manager:
        old = await manager.register("s", Dummy())
        await old.close()
        later = Dummy()
        await manager.register("s", later)
        await old.close()

        assert not later.closed.is_set()
        manager.get("s")


@on_loop
async def test_what_is_open_is_closed_in_the_end() -> None:
    stream = Dummy()
    async with LeasedStreams() as manager:
        await manager.register("s", stream)

    assert stream.closed.is_set()
