"""Every way in which a plugin can start, fail and stop is its own outcome, and nobody else's."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from moored.kernel.lifecycle import StartFailed
from moored.kernel.plugin import InitContext, Skip
from moored.kernel.ports.daemon import Outcome, PluginRecord
from unit.kernels import (
    Told,
    World,
    by_uri,
    daemon,
    failing,
    imported,
    outcomes,
    plain,
    plug,
    type_a,
    type_b,
    type_c,
    type_d,
)

A, B, C, D = (f"{kind.uri}.x" for kind in (type_a, type_b, type_c, type_d))


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> Generator[World]:
    """Fails the test that leaves a thread, a timer or a handler."""
    threads, handler = set(threading.enumerate()), signal.getsignal(signal.SIGALRM)
    interval = signal.getitimer(signal.ITIMER_REAL)[1]
    yield World(tmp_path)
    assert set(threading.enumerate()) <= threads
    assert signal.getsignal(signal.SIGALRM) in (handler, signal.SIG_DFL)
    assert signal.getitimer(signal.ITIMER_REAL)[1] == interval


class Oops(BaseException):
    """No Exception at all."""


class Untellable(Exception):
    """Cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_plugin_that_starts_is_ok_and_told_in_full(world: World) -> None:
    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[str]:
        ctx.facts.exports["root"] = "/somewhere"
        ctx.facts.capabilities.append("fast")
        ctx.facts.platforms.append("linux/amd64")
        yield "port"

    records = world.after_start(
        plug(type_a), plug(type_b, open_, requires=(type_a,), after=(type_c,), summary="does b", essential=True)
    )

    record = records[B]
    assert (record.outcome, record.reason, record.traceback) == (Outcome.OK, "", "")
    assert (record.distribution, record.distribution_version, record.entry_point) == (
        f"dist-of-{B}",
        "1.0",
        "module:plugin",
    )
    assert (record.requires, record.after) == ((type_a.uri,), (type_c.uri,))
    assert (record.depends_on, record.waits_for) == ((A,), ())
    assert (record.exports, record.capabilities) == ({"root": "/somewhere"}, ("fast",))
    assert (record.platforms, record.summary, record.essential) == (("linux/amd64",), "does b", True)
    assert (record.order, record.import_seconds) == (1, 0.25)
    assert record.start_seconds > 0
    assert record.started_at is not None


def test_plugin_that_skips_keeps_its_reason(world: World) -> None:
    records = world.after_start(
        plug(type_a, failing(Skip("no btrfs here\nsecond line"))), plug(type_b, failing(Skip()))
    )

    assert (records[A].outcome, records[A].reason, records[A].traceback) == (Outcome.SKIPPED, "no btrfs here", "")
    assert records[B].reason == "no reason given"


def test_disabled_plugin_is_neither_imported_nor_opened(world: World) -> None:
    world.disabled = [A]

    records = world.after_start(plug(type_a, failing(AssertionError())), plug(type_b))

    assert outcomes(records) == {"b": Outcome.OK, "a": Outcome.DISABLED}
    assert records[A].reason == "named in disabled_plugins"
    assert list(records) == [B, A]


@pytest.mark.parametrize(("timed_out", "outcome"), [(False, Outcome.FAILED), (True, Outcome.TIMED_OUT)])
def test_failed_import_is_the_outcome(world: World, timed_out: bool, outcome: Outcome) -> None:
    loaded = dataclasses.replace(
        imported(plug(type_a)), registration=None, reason="import failed: X", traceback="Tb", timed_out=timed_out
    )

    record = world.after_start(loaded, plug(type_b))[A]

    assert (record.outcome, record.reason, record.traceback) == (outcome, "import failed: X", "Tb")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first line\nsecond line"), "ValueError: first line"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (TimeoutError("server silent"), "TimeoutError: server silent"),
        (Oops("base"), "Oops: base"),
        (Untellable(), "Untellable"),
        (BaseExceptionGroup("g", [ExceptionGroup("h", [OSError("deep")]), Oops()]), "OSError: deep (and 1 more)"),
    ],
)
def test_whatever_open_raises_is_that_plugins_failure_alone(world: World, error: BaseException, reason: str) -> None:
    records = world.after_stop(plug(type_a), plug(type_b, failing(error)), plug(type_c), plug(type_d, after=(type_b,)))

    assert outcomes(records) == {
        "a": Outcome.STOPPED,
        "b": Outcome.FAILED,
        "c": Outcome.STOPPED,
        "d": Outcome.STOPPED,
    }
    assert records[B].reason == reason
    assert "raise error" in records[B].traceback


def test_open_that_is_no_context_manager_fails(world: World) -> None:
    records = world.after_start(plug(type_a, lambda _ctx: object()), plug(type_b))  # type: ignore[arg-type, return-value]

    assert outcomes(records) == {"a": Outcome.FAILED, "b": Outcome.OK}


def test_blocked_plugin_names_the_whole_chain(world: World) -> None:
    records = world.after_start(
        plug(type_a, failing(OSError("disk gone"))),
        plug(type_b, failing(AssertionError()), requires=(type_a,)),
        plug(type_c, failing(AssertionError()), requires=(type_b,)),
    )

    assert outcomes(records) == {"a": Outcome.FAILED, "b": Outcome.BLOCKED, "c": Outcome.BLOCKED}
    assert records[C].blocked_by == (B, A)
    assert records[B].reason == f"requires {type_a.uri}: {A} is failed (OSError: disk gone)"
    assert "disk gone" in records[C].reason


def test_blocked_by_a_skipped_and_by_a_disabled_plugin(world: World) -> None:
    world.disabled = [B]

    records = world.after_start(
        plug(type_a, failing(Skip("not here"))),
        plug(type_b),
        plug(type_c, requires=(type_a,)),
        plug(type_d, requires=(type_b,)),
    )

    assert (records[C].outcome, records[C].blocked_by) == (Outcome.BLOCKED, (A,))
    assert "skipped (not here)" in records[C].reason
    assert (records[D].outcome, records[D].blocked_by) == (Outcome.BLOCKED, (B,))
    assert "disabled" in records[D].reason


def test_blocked_by_a_type_that_nobody_provides(world: World) -> None:
    records = world.after_start(plug(type_a, requires=(type_b,)), plug(type_c, requires=(type_c,)))

    assert (records[A].outcome, records[A].blocked_by) == (Outcome.BLOCKED, (type_b.uri,))
    assert records[A].reason == f"requires {type_b.uri}, which no installed plugin provides"
    assert records[C].blocked_by == (type_c.uri,)


def test_one_started_provider_is_enough(world: World) -> None:
    records = world.after_start(
        plug(type_a, failing(Skip())),
        plug(type_a, id_="y"),
        plug(type_b, requires=(type_a,)),
        plug(type_c, after=(type_d,)),
    )

    assert outcomes(records) == {"a": Outcome.SKIPPED, "a.y": Outcome.OK, "b": Outcome.OK, "c": Outcome.OK}


def test_independent_plugins_start_side_by_side(world: World) -> None:
    a_began, b_began = asyncio.Event(), asyncio.Event()

    def meeting(mine: asyncio.Event, other: asyncio.Event) -> Any:
        @asynccontextmanager
        async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
            mine.set()
            await other.wait()
            yield

        return open_

    records = world.after_start(plug(type_a, meeting(a_began, b_began)), plug(type_b, meeting(b_began, a_began)))

    assert outcomes(records) == {"a": Outcome.OK, "b": Outcome.OK}


def test_start_follows_the_edges_and_stop_reverses_them(world: World) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        name = ctx.uri.split(".")[2]
        await asyncio.sleep(0)
        told.append(f"+{name}")
        yield
        await asyncio.sleep(0)
        told.append(f"-{name}")

    records = world.after_stop(
        plug(type_a, open_, requires=(type_b,)),
        plug(type_b, open_, after=(type_c,)),
        plug(type_c, open_),
        plug(type_d, failing(Skip()), requires=(type_a,)),
    )

    assert told == ["+c", "+b", "+a", "-a", "-b", "-c"]
    assert outcomes(records) == {"c": Outcome.STOPPED, "b": Outcome.STOPPED, "a": Outcome.STOPPED, "d": Outcome.SKIPPED}


def test_failure_of_a_running_plugins_task_is_its_own(world: World) -> None:
    fail = asyncio.Event()

    async def child() -> None:
        await fail.wait()
        raise ValueError("lost the device")

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child())
            yield

    async def main() -> tuple[dict[str, PluginRecord], tuple[str, ...], dict[str, PluginRecord]]:
        told = Told()
        world.hooks.register(told)
        async with world.running(
            plug(type_a, open_, essential=True), plug(type_b, requires=(type_a,)), plug(type_c)
        ) as kernel:
            fail.set()
            await told.wait_for(A, Outcome.FAILED)
            failed, unhealthy = by_uri(kernel), kernel.unhealthy()
        return failed, unhealthy, by_uri(kernel)

    failed, unhealthy, stopped = asyncio.run(main())

    assert outcomes(failed) == {"a": Outcome.FAILED, "b": Outcome.OK, "c": Outcome.OK}
    assert failed[A].reason == "failed while running: ValueError: lost the device"
    assert "lost the device" in failed[A].traceback
    assert unhealthy == (f"{A} is failed: failed while running: ValueError: lost the device",)
    assert outcomes(stopped) == {"a": Outcome.FAILED, "b": Outcome.STOPPED, "c": Outcome.STOPPED}


def test_plugin_that_swallows_its_failure_ended_by_itself(world: World) -> None:
    async def child() -> None:
        raise ValueError

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child())
                yield
        except* ValueError:
            pass

    async def main() -> PluginRecord:
        told = Told()
        world.hooks.register(told)
        async with world.running(plug(type_a, open_)):
            return await told.wait_for(A, Outcome.FAILED)

    assert asyncio.run(main()).reason == "ended by itself"


@pytest.mark.parametrize("error", [OSError("busy"), SystemExit(1), asyncio.CancelledError(), Skip("too late"), Oops()])
def test_plugin_that_raises_in_stop_fails_and_the_others_stop(world: World, error: BaseException) -> None:
    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        raise error

    records = world.after_stop(plug(type_a), plug(type_b, open_, requires=(type_a,)), plug(type_c, requires=(type_b,)))

    assert outcomes(records) == {"a": Outcome.STOPPED, "b": Outcome.FAILED, "c": Outcome.STOPPED}
    assert records[B].reason.startswith(f"failed while stopping: {type(error).__name__}")
    assert "raise error" in records[B].traceback


def test_lost_required_plugins_fail_the_start_all_at_once(world: World) -> None:
    world.required = [A, B, C, A]
    stopped = []

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        stopped.append(True)

    async def main() -> dict[str, PluginRecord]:
        kernel = world.kernel(
            plug(type_a, failing(OSError("no disk"))),
            plug(type_b, requires=(type_a,)),
            plug(type_c),
            plug(type_d, open_),
        )
        with pytest.raises(StartFailed) as raised:
            await kernel.start(daemon())
        assert [fault.text for fault in raised.value.faults] == [
            f"required plugin '{A}' is failed: OSError: no disk",
            f"required plugin '{B}' is blocked: requires {type_a.uri}: {A} is failed (OSError: no disk)",
        ]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        await kernel.stop()
        return by_uri(kernel)

    records = asyncio.run(main())

    assert stopped == [True]
    assert outcomes(records) == {"a": Outcome.FAILED, "b": Outcome.BLOCKED, "c": Outcome.STOPPED, "d": Outcome.STOPPED}


def test_senseless_sets_are_told_whole_and_start_nothing(world: World) -> None:
    world.required = ["io.moored.a.v1.gone", D]
    world.disabled = [D]
    kernel = world.kernel(
        plug(type_a, failing(AssertionError()), requires=(type_b,)),
        plug(type_b, failing(AssertionError()), after=(type_a,)),
        plug(type_c, failing(AssertionError()), requires=(type_b,)),
        plug(type_d),
    )

    async def main() -> None:
        with pytest.raises(StartFailed) as raised:
            await kernel.start(daemon())
        assert raised.value.faults == kernel.faults()
        await kernel.stop()

    asyncio.run(main())

    cycle, *required = (fault.text for fault in kernel.faults())
    assert cycle.startswith(f"plugins depend on each other: {A} -> {B} -> {A} ")
    assert f"dist-of-{A}" in cycle
    assert f"dist-of-{B}" in cycle
    assert required == [
        "required plugin 'io.moored.a.v1.gone' is not installed",
        f"required plugin '{D}' is also in disabled_plugins",
    ]
    assert {record.order for record in kernel.records() if record.uri != D} == {-1}
    assert {record.uri for record in kernel.records()} == {A, B, C, D}


def test_cancelled_start_stops_what_had_started(world: World) -> None:
    told = []

    @asynccontextmanager
    async def running(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        told.append("stopped")

    @asynccontextmanager
    async def starting(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")
        yield

    async def main() -> dict[str, PluginRecord]:
        kernel = world.kernel(
            plug(type_a, running), plug(type_b, starting, requires=(type_a,)), plug(type_c, requires=(type_b,))
        )
        start = asyncio.create_task(kernel.start(daemon()))
        await began.wait()
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return by_uri(kernel)

    began = asyncio.Event()
    records = asyncio.run(main())

    assert told == ["cleaned up", "stopped"]
    assert outcomes(records) == {"a": Outcome.STOPPED, "b": Outcome.STOPPED, "c": Outcome.STOPPED}
    assert records[B].reason == records[C].reason == "the daemon stopped first"


def test_start_cancelled_before_any_plugin_began_leaves_nothing(world: World) -> None:
    async def main() -> dict[str, PluginRecord]:
        kernel = world.kernel(plug(type_a), plug(type_b, requires=(type_a,)))
        start = asyncio.create_task(kernel.start(daemon()))
        await asyncio.sleep(0)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return by_uri(kernel)

    assert set(outcomes(asyncio.run(main())).values()) == {Outcome.STOPPED}


def test_stop_during_start_stops_all_and_a_second_stop_does_nothing(world: World) -> None:
    began = asyncio.Event()

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        began.set()
        await asyncio.Event().wait()
        yield

    async def main() -> dict[str, PluginRecord]:
        kernel = world.kernel(plug(type_a, open_), plug(type_b))
        start = asyncio.create_task(kernel.start(daemon()))
        await began.wait()
        await kernel.stop()
        await start
        await kernel.stop()
        return by_uri(kernel)

    assert outcomes(asyncio.run(main())) == {"a": Outcome.STOPPED, "b": Outcome.STOPPED}


def test_unhealthy_names_lost_essential_plugins_but_no_disabled_one(world: World) -> None:
    world.disabled = [B]

    async def main() -> tuple[str, ...]:
        async with world.running(
            plug(type_a, failing(OSError("x")), essential=True),
            plug(type_b, essential=True),
            plug(type_c, failing(OSError())),
            plug(type_d, plain, essential=True),
        ) as kernel:
            return kernel.unhealthy()

    assert asyncio.run(main()) == (f"{A} is failed: OSError: x",)
