from __future__ import annotations

import asyncio
import random

from harness import on_loop
from moored.plugins.snapshots.keys import Keys


@on_loop
async def test_key_is_held_by_one_or_shared_by_many() -> None:
    keys, held, most = Keys(), {"alone": 0, "shared": 0}, 0

    async def use(number: int) -> None:
        nonlocal most
        kind = "alone" if number % 4 == 0 else "shared"
        async with keys.hold(["k"] if kind == "alone" else [], [] if kind == "alone" else ["k"]):
            held[kind] += 1
            most = max(most, held["shared"])
            assert held["alone"] <= 1
            assert not (held["alone"] and held["shared"])
            await asyncio.sleep(0)
            held[kind] -= 1

    await asyncio.gather(*(use(number) for number in range(40)))
    assert most > 1


@on_loop
async def test_sets_that_cross_do_not_block_each_other_for_good() -> None:
    keys, random_ = Keys(), random.Random(7)

    async def use() -> None:
        names = random_.sample("abcdef", 3)
        async with keys.hold(names[:2], names[1:]):
            await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await asyncio.gather(*(use() for _ in range(300)))


@on_loop
async def test_waiting_call_is_not_overtaken() -> None:
    keys, order = Keys(), []

    async def use(name: str, alone: list[str], shared: list[str]) -> None:
        async with keys.hold(alone, shared):
            order.append(name)
            await asyncio.sleep(0)

    async with keys.hold([], ["k"]):
        first = asyncio.ensure_future(use("writer", ["k"], []))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(use("reader", [], ["k"]))
        other = asyncio.ensure_future(use("other", ["x"], []))
        for _ in range(5):
            await asyncio.sleep(0)
        assert order == ["other"]
    await asyncio.gather(first, second, other)
    assert order == ["other", "writer", "reader"]


@on_loop
async def test_cancelled_wait_lets_the_next_one_in() -> None:
    keys = Keys()

    async def use() -> None:
        async with keys.hold(["k"]):
            pass

    async with keys.hold([], ["k"]):
        waiting = asyncio.ensure_future(use())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(1), keys.hold([], ["k"]):
            pass
    async with asyncio.timeout(1):
        await use()


@on_loop
async def test_cancelled_in_the_moment_of_its_turn_gives_it_back() -> None:
    keys = Keys()

    async def use() -> None:
        async with keys.hold(["k"]):
            await asyncio.Event().wait()

    async with keys.hold(["k"]):
        waiting = asyncio.ensure_future(use())
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(1), keys.hold(["k"]):
        pass
