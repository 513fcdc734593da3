"""A plugin that hangs, in whatever way, is timed out and hurts nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.hooks import hookimpl
from moored.kernel.plugin import InitContext
from moored.kernel.ports.daemon import Outcome, PluginRecord
from unit.kernels import Open, World, by_uri, daemon, outcomes, plug, type_a, type_b, type_c, type_d

A, B, C, D = (f"{kind.uri}.x" for kind in (type_a, type_b, type_c, type_d))
LIMIT = 0.2


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Generator[World]:
    """Fails the test that leaves a timer or a handler."""
    handler, (_, interval) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    yield World(tmp_path)
    assert signal.getsignal(signal.SIGALRM) in (handler, signal.SIG_DFL)
    assert signal.getitimer(signal.ITIMER_REAL)[1] == interval


async def wait_forever() -> None:
    await asyncio.Event().wait()


async def sleep_on_the_loop() -> None:
    hang()


async def spin_forever() -> None:
    for _ in itertools.repeat(None):
        pass


async def swallow_exceptions() -> None:
    while True:
        with contextlib.suppress(Exception):
            hang()


async def hang_after_a_wait() -> None:
    await asyncio.sleep(0)
    hang()


def hang() -> None:
    time.sleep(60)


HOLDING = [sleep_on_the_loop, spin_forever, swallow_exceptions, hang_after_a_wait]


def hanging_start(hang_: Any) -> Open:
    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        await hang_()
        yield

    return open_


def hanging_stop(hang_: Any) -> Open:
    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        await hang_()

    return open_


def patient(steps: int) -> Open:
    """Starts and stops in many short steps, so that its deadlines get every chance to strike."""

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        for _ in range(steps):
            await asyncio.sleep(0.01)
        yield
        for _ in range(steps):
            await asyncio.sleep(0.01)

    return open_


@pytest.mark.parametrize("hang_", [wait_forever, *HOLDING])
def test_hang_in_start_is_timed_out(world: World, hang_: Any) -> None:
    records = world.after_start(
        plug(type_a, hanging_start(hang_), start_timeout=LIMIT), plug(type_b), plug(type_c, requires=(type_a,))
    )

    assert outcomes(records) == {"a": Outcome.TIMED_OUT, "b": Outcome.OK, "c": Outcome.BLOCKED}
    held = "held the event loop and " if hang_ in HOLDING else ""
    assert records[A].reason == f"{held}did not start within 0.2s"
    assert hang_.__name__ in records[A].traceback
    assert records[A].start_seconds >= LIMIT
    assert records[C].blocked_by == (A,)


@pytest.mark.parametrize("hang_", [wait_forever, *HOLDING])
def test_hang_in_stop_is_timed_out(world: World, hang_: Any) -> None:
    records = world.after_stop(
        plug(type_a),
        plug(type_b, hanging_stop(hang_), requires=(type_a,), stop_timeout=LIMIT),
        plug(type_c, requires=(type_b,)),
    )

    assert outcomes(records) == {"a": Outcome.STOPPED, "b": Outcome.TIMED_OUT, "c": Outcome.STOPPED}
    held = "held the event loop and " if hang_ in HOLDING else ""
    assert records[B].reason == f"{held}did not stop within 0.2s"
    assert hang_.__name__ in records[B].traceback


def test_time_limits_come_from_the_settings_unless_the_plugin_has_its_own(world: World) -> None:
    world.start_timeout = world.stop_timeout = LIMIT

    records = world.after_stop(
        plug(type_a, hanging_start(wait_forever)),
        plug(type_b, hanging_start(wait_forever), start_timeout=0.1),
        plug(type_c, hanging_stop(wait_forever)),
        plug(type_d, hanging_stop(wait_forever), stop_timeout=0.1),
    )

    assert {record.uri: record.reason for record in records.values()} == {
        A: "did not start within 0.2s",
        B: "did not start within 0.1s",
        C: "did not stop within 0.2s",
        D: "did not stop within 0.1s",
    }


def test_plugin_that_holds_the_loop_takes_no_time_from_the_others(world: World) -> None:
    records = world.after_stop(
        plug(type_a, hanging_start(sleep_on_the_loop), start_timeout=1.2),
        plug(type_b, hanging_stop(sleep_on_the_loop), stop_timeout=1.2),
        plug(type_c, patient(steps=20), start_timeout=1.2, stop_timeout=1.2),
    )

    assert outcomes(records) == {"a": Outcome.TIMED_OUT, "b": Outcome.TIMED_OUT, "c": Outcome.STOPPED}


def test_hang_in_the_stop_of_a_failed_plugin_is_timed_out_too(world: World) -> None:
    async def child() -> None:
        raise ValueError("broken")

    def failing_then(hang_: Any) -> Open:
        @asynccontextmanager
        async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(child())
                    yield
            finally:
                await hang_()

        return open_

    settled: list[PluginRecord] = []
    both = asyncio.Event()

    class Told:
        @hookimpl
        def moored_plugin_settled(self, record: PluginRecord) -> None:
            if record.outcome is Outcome.FAILED:
                settled.append(record)
                if len(settled) == 2:
                    both.set()

    async def main() -> None:
        world.hooks.register(Told())
        async with world.running(
            plug(type_a, failing_then(wait_forever), stop_timeout=LIMIT),
            plug(type_b, failing_then(sleep_on_the_loop), stop_timeout=LIMIT),
        ):
            await both.wait()

    asyncio.run(main())

    assert {record.uri: record.reason for record in settled} == {
        A: "failed while running: did not stop within 0.2s",
        B: "failed while running: held the event loop and did not stop within 0.2s",
    }


class Stubborn:
    """Waits through every cancellation until it is released."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.released = asyncio.Event()
        self.left: list[str] = []

    async def wait(self) -> None:
        self.began.set()
        while not self.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.released.wait()

    @asynccontextmanager
    async def in_start(self, ctx: InitContext[Any]) -> AsyncGenerator[str]:
        ctx.hooks.register(self)
        await self.wait()
        yield "late port"
        self.left.append("start")

    @asynccontextmanager
    async def in_stop(self, _ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        await self.wait()
        self.left.append("stop")


async def release(*plugins: Stubborn) -> None:
    """Let the plugins' tasks end, as they would at last."""
    for plugin in plugins:
        plugin.released.set()
    mine = asyncio.current_task()
    await asyncio.wait([task for task in asyncio.all_tasks() if task is not mine])


def test_plugins_that_ignore_cancellation_are_left_behind(world: World) -> None:
    start, stop = Stubborn(), Stubborn()

    async def main() -> tuple[dict[str, PluginRecord], dict[str, PluginRecord]]:
        kernel = world.kernel(
            plug(type_a, start.in_start, start_timeout=LIMIT, stop_timeout=LIMIT),
            plug(type_b, requires=(type_a,)),
            plug(type_c, stop.in_stop, stop_timeout=LIMIT),
            plug(type_d),
        )
        await kernel.start(daemon())
        assert not world.hooks.is_registered(start)
        started = by_uri(kernel)
        await kernel.stop()
        stopped = by_uri(kernel)
        await release(start, stop)
        assert by_uri(kernel) == stopped
        return started, stopped

    started, stopped = asyncio.run(main())

    assert outcomes(started) == {"a": Outcome.TIMED_OUT, "b": Outcome.BLOCKED, "c": Outcome.OK, "d": Outcome.OK}
    assert started[A].reason == "did not start within 0.2s and ignores its cancellation"
    assert outcomes(stopped) == {
        "a": Outcome.TIMED_OUT,
        "b": Outcome.BLOCKED,
        "c": Outcome.TIMED_OUT,
        "d": Outcome.STOPPED,
    }
    assert stopped[C].reason == "did not stop within 0.2s and ignores its cancellation"
    assert (start.left, stop.left) == (["start"], ["stop"])


def test_start_that_ignores_the_daemons_stop_is_left_behind_at_the_stops_deadline(world: World) -> None:
    stubborn = Stubborn()

    async def main() -> dict[str, PluginRecord]:
        kernel = world.kernel(plug(type_a, stubborn.in_start, stop_timeout=LIMIT), plug(type_b))
        start = asyncio.create_task(kernel.start(daemon()))
        await stubborn.began.wait()
        await kernel.stop()
        await start
        stopped = by_uri(kernel)
        await release(stubborn)
        assert by_uri(kernel) == stopped
        return stopped

    records = asyncio.run(main())

    assert outcomes(records) == {"a": Outcome.TIMED_OUT, "b": Outcome.STOPPED}
    assert records[A].reason == "did not end when told to stop"
    assert stubborn.left == ["start"]


def test_start_that_ends_after_its_cancellation_is_timed_out_and_left_again(world: World) -> None:
    left = []

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[str]:
        with contextlib.suppress(asyncio.CancelledError):
            await wait_forever()
        yield "late port"
        left.append(True)

    records = world.after_start(plug(type_a, open_, start_timeout=LIMIT), plug(type_b, requires=(type_a,)))

    assert outcomes(records) == {"a": Outcome.TIMED_OUT, "b": Outcome.BLOCKED}
    assert records[A].reason == "did not start within 0.2s"
    assert left == [True]


def test_stop_that_ends_after_its_cancellation_is_timed_out(world: World) -> None:
    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        with contextlib.suppress(asyncio.CancelledError):
            await wait_forever()

    assert world.after_stop(plug(type_a, open_, stop_timeout=LIMIT))[A].reason == "did not stop within 0.2s"


def test_running_plugin_is_under_no_deadline(world: World) -> None:
    async def main() -> dict[str, PluginRecord]:
        async with world.running(plug(type_a, start_timeout=LIMIT, stop_timeout=LIMIT)) as kernel:
            hold = time.perf_counter() + 2 * LIMIT
            while time.perf_counter() < hold:
                pass
            for _ in range(5):
                await asyncio.sleep(0)
        return by_uri(kernel)

    assert outcomes(asyncio.run(main())) == {"a": Outcome.STOPPED}
