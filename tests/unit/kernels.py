"""Kernels of plugins that are made in a test: no entry points, folders under a temporary one, everything stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pluggy

from moored.kernel.hooks import hookimpl, new_manager
from moored.kernel.lifecycle import Kernel, Settings
from moored.kernel.plugin import InitContext, PluginType, Registration
from moored.kernel.ports.daemon import DaemonView, Outcome, PluginRecord
from moored.kernel.registry import Candidate, Loaded, Source

type_a: PluginType[Any] = PluginType("io.moored.a.v1")
type_b: PluginType[Any] = PluginType("io.moored.b.v1")
type_c: PluginType[Any] = PluginType("io.moored.c.v1")
type_d: PluginType[Any] = PluginType("io.moored.d.v1")

Open = Callable[[InitContext[Any]], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def plain(ctx: InitContext[Any]) -> AsyncGenerator[str]:
    """Starts and stops at once; the port is the URI."""
    yield ctx.uri


def failing(error: BaseException) -> Open:
    """An open that raises instead of starting."""

    @asynccontextmanager
    async def open_(_ctx: InitContext[Any]) -> AsyncGenerator[None]:
        raise error
        yield

    return open_


def plug(kind: PluginType[Any], open_: Open = plain, id_: str = "x", **more: Any) -> Registration[Any, Any]:
    """A registration `<kind>.x`."""
    return Registration(kind=kind, id=id_, open=open_, **more)


def candidate(uri: str, kind: str, get: Callable[[], object]) -> Candidate:
    """A candidate of distribution `dist-of-<URI>`."""
    return Candidate(uri, kind, uri.removeprefix(f"{kind}."), Source(f"dist-of-{uri}", "1.0", "module:plugin"), get)


@dataclass
class World:
    """What a test's kernels are made of."""

    tmp_path: Path
    start_timeout: float = 60
    stop_timeout: float = 60
    disabled: Collection[str] = ()
    required: Collection[str] = ()
    configs: dict[str, Any] = field(default_factory=dict)
    hooks: pluggy.PluginManager = field(default_factory=new_manager)

    def kernel(self, *plugins: Registration[Any, Any] | Loaded) -> Kernel:
        """A kernel of these, not started. A disabled plugin is known by name only."""
        loaded = [plugin if isinstance(plugin, Loaded) else imported(plugin) for plugin in plugins]
        root, state = self.tmp_path / "root", self.tmp_path / "state"
        for folder in (root, state):
            folder.mkdir(exist_ok=True)
        return Kernel(
            {one.candidate.uri: one.candidate for one in loaded},
            {one.candidate.uri: one for one in loaded if one.candidate.uri not in self.disabled},
            Settings(
                root=root,
                state=state,
                start_timeout=self.start_timeout,
                stop_timeout=self.stop_timeout,
                configs=self.configs,
                disabled=self.disabled,
                required=self.required,
            ),
            self.hooks,
        )

    @asynccontextmanager
    async def running(self, *plugins: Registration[Any, Any] | Loaded) -> AsyncIterator[Kernel]:
        """A started kernel; stopped at the end, when it must have left no task."""
        kernel = self.kernel(*plugins)
        await kernel.start(daemon())
        try:
            yield kernel
        finally:
            await kernel.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    def after_start(self, *plugins: Registration[Any, Any] | Loaded) -> dict[str, PluginRecord]:
        """The records by URI of a kernel that has started; it is stopped again."""

        async def main() -> dict[str, PluginRecord]:
            async with self.running(*plugins) as kernel:
                return by_uri(kernel)

        return asyncio.run(main())

    def after_stop(self, *plugins: Registration[Any, Any] | Loaded) -> dict[str, PluginRecord]:
        """The records by URI of a kernel that started and stopped."""

        async def main() -> dict[str, PluginRecord]:
            async with self.running(*plugins) as kernel:
                pass
            return by_uri(kernel)

        return asyncio.run(main())


def imported(registration: Registration[Any, Any]) -> Loaded:
    """What a successful import gives; asking for it again fails the test."""

    def get() -> object:
        raise AssertionError(f"the kernel imported {registration.uri}")

    return Loaded(
        candidate(registration.uri, registration.kind.uri, get),
        registration,
        reason="",
        traceback="",
        timed_out=False,
        seconds=0.25,
    )


def by_uri(kernel: Kernel) -> dict[str, PluginRecord]:
    """The records of all plugins."""
    return {record.uri: record for record in kernel.records()}


def outcomes(records: dict[str, PluginRecord]) -> dict[str, Outcome]:
    """Only the outcomes, by the letter of the type and, unless it is x, the id: `a`, `b.y`."""
    return {
        uri.removeprefix("io.moored.").replace(".v1", "").removesuffix(".x"): record.outcome
        for uri, record in records.items()
    }


def daemon() -> DaemonView:
    """A daemon that no plugin of these tests looks at."""
    return cast(DaemonView, object())


class Told:
    """Keeps every record that the hook brings."""

    def __init__(self) -> None:
        self.records: list[PluginRecord] = []
        self._news = asyncio.Event()

    @hookimpl
    def moored_plugin_settled(self, record: PluginRecord) -> None:
        self.records.append(record)
        self._news.set()

    async def wait_for(self, uri: str, outcome: Outcome) -> PluginRecord:
        while True:
            for record in self.records:
                if (record.uri, record.outcome) == (uri, outcome):
                    return record
            self._news.clear()
            await self._news.wait()
