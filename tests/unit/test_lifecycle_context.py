"""What a plugin gets: the ports that it declared, config, folders of its own, hooks that go when it stops."""

from __future__ import annotations

import asyncio
import signal
import stat
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pluggy
import pytest

from moored.kernel.hooks import hookimpl
from moored.kernel.plugin import AmbiguousUse, InitContext, Skip, UndeclaredUse
from moored.kernel.ports.daemon import Outcome, PluginRecord
from unit.kernels import (
    Told,
    World,
    failing,
    outcomes,
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


def test_context_gives_declared_types_by_one_all_and_named(world: World) -> None:
    seen: dict[str, object] = {}

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        seen["one"] = ctx.one(type_b)
        seen["all"] = ctx.all(type_a)
        seen["named"] = ctx.named(type_a, "y")
        seen["none"] = ctx.all(type_c)
        yield

    world.after_start(
        plug(type_a),
        plug(type_a, id_="y"),
        plug(type_a, failing(Skip()), id_="z"),
        plug(type_b),
        plug(type_d, open_, requires=(type_a,), after=(type_b, type_c)),
    )

    y = f"{type_a.uri}.y"
    assert seen == {"one": B, "all": {"x": A, "y": y}, "named": y, "none": {}}


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda ctx: ctx.one(type_c), UndeclaredUse, f"'{D}' uses '{type_c.uri}' without naming it"),
        (lambda ctx: ctx.all(type_c), UndeclaredUse, f"'{D}' uses '{type_c.uri}' without naming it"),
        (
            lambda ctx: ctx.one(type_a),
            AmbiguousUse,
            f"'{D}' wants one plugin of type '{type_a.uri}', there are 'x', 'y'",
        ),
        (lambda ctx: ctx.one(type_b), AmbiguousUse, f"'{D}' wants one plugin of type '{type_b.uri}', there are none"),
        (
            lambda ctx: ctx.named(type_a, "z"),
            AmbiguousUse,
            f"'{D}' wants plugin '{type_a.uri}.z', of its type there are 'x'",
        ),
    ],
)
def test_wrong_lookup_fails_the_plugin_that_asks(world: World, ask: Any, error: type[Exception], text: str) -> None:
    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        ask(ctx)
        yield

    records = world.after_start(
        plug(type_a), plug(type_a, id_="y"), plug(type_c), plug(type_d, open_, requires=(type_a,), after=(type_b,))
    )

    assert records[D].outcome is Outcome.FAILED
    assert records[D].reason.startswith(f"{error.__name__}: {text}")


def test_config_is_the_plugins_own_or_none(world: World) -> None:
    seen: dict[str, object] = {}

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        seen[ctx.uri] = ctx.config
        yield

    world.configs = {A: "config of a"}

    world.after_start(plug(type_a, open_), plug(type_b, open_))

    assert seen == {A: "config of a", B: None}


def test_ports_of_dependencies_are_there_until_the_dependent_has_stopped(world: World) -> None:
    seen: list[object] = []

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        yield
        await asyncio.sleep(0)
        seen.append(ctx.one(type_a))

    world.after_stop(plug(type_a), plug(type_b, open_, requires=(type_a,)))

    assert seen == [A]


def test_folders_are_the_plugins_own_private_and_made_on_first_use(world: World) -> None:
    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        assert ctx.root == world.tmp_path / "root" / A
        assert ctx.state == world.tmp_path / "state" / A
        assert ctx.root.is_dir()
        yield

    assert world.after_start(plug(type_a, open_), plug(type_b))[A].reason == ""

    for folder in (world.tmp_path / "root", world.tmp_path / "state"):
        assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o700]


def test_folders_are_not_made_where_the_daemons_own_is_gone(world: World) -> None:
    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[Path]:
        (world.tmp_path / "root").rmdir()
        yield ctx.root

    assert world.after_start(plug(type_a, open_))[A].reason.startswith("FileNotFoundError")


class Broken:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    @hookimpl
    def moored_plugin_settled(self, record: PluginRecord) -> None:
        raise self._error


def test_every_outcome_and_the_stop_are_told_to_the_hook(world: World) -> None:
    told = Told()
    world.hooks.register(told)
    world.disabled = [C]

    world.after_stop(plug(type_a), plug(type_b, failing(OSError()), after=(type_a,)), plug(type_c))

    seen = [(record.uri, record.outcome) for record in told.records]
    assert [outcome for uri, outcome in seen if uri == A] == [Outcome.OK, Outcome.STOPPED]
    assert [outcome for uri, outcome in seen if uri == B] == [Outcome.FAILED]
    assert [outcome for uri, outcome in seen if uri == C] == [Outcome.DISABLED]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(1), asyncio.CancelledError()])
def test_hook_that_raises_changes_nothing(world: World, error: BaseException) -> None:
    world.hooks.register(Broken(error))

    records = world.after_stop(plug(type_a), plug(type_b, failing(OSError())))

    assert outcomes(records) == {"a": Outcome.STOPPED, "b": Outcome.FAILED}


def test_hooks_of_a_plugin_work_while_it_runs_and_are_gone_when_it_stops(world: World) -> None:
    told = Told()

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        ctx.hooks.register(told)
        yield

    async def main() -> None:
        async with world.running(plug(type_a, open_), plug(type_b, requires=(type_a,))):
            assert world.hooks.is_registered(told)
        assert not world.hooks.is_registered(told)

    asyncio.run(main())

    seen = [(record.uri, record.outcome) for record in told.records]
    assert seen == [(A, Outcome.OK), (B, Outcome.OK), (B, Outcome.STOPPED)]


def test_hooks_of_a_plugin_that_fails_to_start_are_gone(world: World) -> None:
    told = Told()

    @asynccontextmanager
    async def open_(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        ctx.hooks.register(told)
        raise OSError
        yield

    world.after_start(plug(type_a, open_))

    assert not world.hooks.is_registered(told)
    assert told.records == []


def test_hook_that_does_not_exist_fails_its_plugin_and_leaves_nothing(world: World) -> None:
    class Unknown:
        @hookimpl
        def moored_nonsense(self) -> None:
            """Nobody calls this."""

    unknown, told = Unknown(), Told()
    refused = asyncio.Event()

    @asynccontextmanager
    async def wrong(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        with pytest.raises(pluggy.PluginValidationError, match="moored_nonsense"):
            ctx.hooks.register(unknown)
        refused.set()
        yield

    @asynccontextmanager
    async def right(ctx: InitContext[Any]) -> AsyncGenerator[None]:
        await refused.wait()
        ctx.hooks.register(told)
        yield

    records = world.after_start(plug(type_a, wrong), plug(type_b, right))

    assert outcomes(records) == {"a": Outcome.OK, "b": Outcome.OK}
