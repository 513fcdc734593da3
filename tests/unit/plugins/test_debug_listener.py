"""The debug listener and its pages, fetched over HTTP."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from harness import (
    on_loop,
    outcome_of,
    running,
)
from moored.kernel.ports.daemon import (
    Outcome,
)

DEBUG = "io.containerd.server.v1.debug"
PPROF = "io.containerd.http.v1.pprof"


@asynccontextmanager
async def debugged(folder: Path) -> AsyncGenerator[aiohttp.ClientSession]:
    path = folder / "debug.sock"
    async with running(folder, DEBUG, PPROF, configs={DEBUG: {"address": str(path)}}) as world:
        assert world.record(DEBUG).outcome is Outcome.OK, world.record(DEBUG).reason
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        async with aiohttp.ClientSession("http://debug", connector=aiohttp.UnixConnector(str(path))) as session:
            yield session
    assert not path.exists()


async def fetched(session: aiohttp.ClientSession, path: str, status: int = 200) -> str:
    async with session.get(path) as response:
        assert response.status == status
        return await response.text()


@on_loop
async def test_debug_without_address_is_skipped(tmp_path: Path) -> None:
    assert await outcome_of(tmp_path, DEBUG, PPROF) == (Outcome.SKIPPED, "no address configured")


@on_loop
async def test_debug_shows_stacks_of_threads_and_tasks(tmp_path: Path) -> None:
    async def waits_for_a_test() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(waits_for_a_test(), name="waiter of this test")
    async with debugged(tmp_path) as session:
        text = await fetched(session, "/debug/pprof/goroutine?debug=2")
    task.cancel()
    await asyncio.wait({task})
    assert "thread 'MainThread'" in text
    assert "task 'waiter of this test' waiting" in text
    # Down to what it waits for, not only the coroutine that the task runs.
    assert "waits_for_a_test" in text
    assert "Event.wait" in text


@on_loop
async def test_debug_shows_the_process_in_short(tmp_path: Path) -> None:
    async with debugged(tmp_path) as session:
        told = json.loads(await fetched(session, "/debug/vars"))
        assert told["plugins"][DEBUG] == "ok"
        assert told["version"] == "0.0.1-test"
        assert told["memory"]["rss"] > 10 << 20
        index = await fetched(session, "/debug/pprof/")
        for page in ("cmdline", "heap", "threadcreate"):
            assert page in index
            assert await fetched(session, f"/debug/pprof/{page}")
        heap = await fetched(session, "/debug/pprof/heap")
        assert "builtins.dict" in heap
        assert "rss" in heap


@on_loop
async def test_debug_profile_is_folded_stacks_and_only_one_is_taken(tmp_path: Path) -> None:
    async with debugged(tmp_path) as session:
        first = asyncio.create_task(fetched(session, "/debug/pprof/profile?seconds=1"))
        while "task" in (text := await fetched(session, "/debug/pprof/goroutine")):
            if "PprofPages._profile" in text:
                break
        await fetched(session, "/debug/pprof/profile?seconds=1", 409)
        profile = await first
    for line in profile.splitlines():
        stack, _, count = line.rpartition(" ")
        assert ";" in stack
        assert int(count) > 0
    assert "asyncio" in profile


@pytest.mark.parametrize("seconds", ["0", "0.5", "121", "-1", "nan", "x"])
@on_loop
async def test_debug_profile_is_bounded(tmp_path: Path, seconds: str) -> None:
    async with debugged(tmp_path) as session:
        assert "from 1 to 120" in await fetched(session, f"/debug/pprof/profile?seconds={seconds}", 400)


@on_loop
async def test_debug_serves_get_of_known_pages_only(tmp_path: Path) -> None:
    async with debugged(tmp_path) as session:
        await fetched(session, "/debug/pprof/trace", 404)
        await fetched(session, "/", 404)
        async with session.post("/debug/vars") as response:
            assert response.status == 405
        async with session.head("/debug/vars") as response:
            assert response.status == 200
