"""The dump of stacks: every thread, every task, down to what it waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import grpc.aio

from harness import basics, on_loop
from moored.kernel.stacks import MAX_DEPTH, dump


async def innermost(event: asyncio.Event) -> None:
    await event.wait()


async def generated(event: asyncio.Event) -> AsyncGenerator[int]:
    await innermost(event)
    yield 1


async def outermost(event: asyncio.Event) -> None:
    async for _ in generated(event):
        pass


async def deep(event: asyncio.Event, levels: int) -> None:
    if levels:
        await deep(event, levels - 1)
    else:
        await innermost(event)


async def section(name: str) -> str:
    await asyncio.sleep(0)
    return dump().partition(f"task {name!r}")[2].partition("\n\n")[0]


@on_loop
async def test_task_is_shown_down_to_what_it_waits_for() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(outermost(event), name="a task")
    text = await section("a task")
    event.set()
    await task
    places = [text.index(name) for name in ("outermost", "innermost", "Event.wait")]
    assert places == sorted(places)


@on_loop
async def test_task_of_many_levels_is_cut() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(deep(event, 3 * MAX_DEPTH), name="deep task")
    text = await section("deep task")
    event.set()
    await task
    assert 10 < text.count(" in deep") <= MAX_DEPTH


def test_threads_are_shown_by_name_without_a_loop() -> None:
    ready, leave = threading.Event(), threading.Event()

    def waits_in_a_thread() -> None:
        ready.set()
        leave.wait()

    thread = threading.Thread(target=waits_in_a_thread, name="a thread")
    thread.start()
    ready.wait()
    text = dump()
    leave.set()
    thread.join()
    mine = text.partition("thread 'a thread'")[2].partition("\n\n")[0]
    assert "waits_in_a_thread" in mine
    assert "task " not in text


def test_tasks_of_a_given_loop_are_shown_from_outside_of_it() -> None:
    loop = asyncio.new_event_loop()
    event = asyncio.Event()
    task = loop.create_task(innermost(event), name="suspended")
    loop.run_until_complete(asyncio.sleep(0))
    text = dump(loop)
    loop.call_soon(event.set)
    loop.run_until_complete(task)
    loop.close()
    assert "task 'suspended' waiting" in text


@on_loop
async def test_tasks_of_compiled_code_without_line_numbers_are_shown(tmp_path: Path) -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{tmp_path}/s")
    await server.start()
    text = dump()
    await server.stop(None)
    assert "server.pyx" in text


@on_loop
async def test_tasks_of_plugins_are_shown_by_name(tmp_path: Path) -> None:
    async with basics(tmp_path):
        text = dump()
    assert "plugin io.containerd.grpc.v1.version" in text


@on_loop
async def test_stacks_are_shown_beside_what_cannot_be() -> None:
    class Odd:
        """Awaited by a future-like protocol of its own, with attributes that mislead."""

        cr_frame = "no frame"
        cr_await = None

        def __await__(self) -> Generator[Any]:
            yield from event.wait().__await__()

    event = asyncio.Event()

    async def waits_oddly() -> None:
        await Odd()

    task = asyncio.create_task(waits_oddly(), name="odd")
    text = await section("odd")
    event.set()
    await task
    assert "waits_oddly" in text
    assert "Event.wait" in text
