"""Threads and a loop: results, errors, iterations and blocks cross, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from moored.api.client.portal import Portal, awaited, fed
from moored.kernel.errors import FailedPrecondition, NotFound


@pytest.fixture
def portal():
    made = Portal()
    made.start()
    yield made
    made.stop()
    assert "moored client" not in {thread.name for thread in threading.enumerate()}


async def counting(ended, stop=3):
    task = asyncio.current_task()
    try:
        for number in range(stop):
            assert asyncio.current_task() is task  # timeouts and task groups depend on that
            yield number
        raise NotFound("no more")
    finally:
        ended.append(task is asyncio.current_task())


@contextlib.asynccontextmanager
async def block(steps, swallow=False):
    task = asyncio.current_task()
    steps.append("in")
    try:
        async with asyncio.timeout(60):
            yield "value"
    except KeyError:
        steps.append("error")
        if not swallow:
            raise
    finally:
        steps.append(task is asyncio.current_task())


def test_results_and_errors_come_back(portal):
    async def fail():
        raise NotFound("it")

    assert portal.call(lambda: asyncio.sleep(0, "done")) == "done"
    assert portal.run(lambda: asyncio.get_running_loop().is_running())
    with pytest.raises(NotFound, match="it"):
        portal.call(fail)


def test_an_iteration_has_one_task_and_its_error_comes_last(portal):
    ended, got = [], []

    with pytest.raises(NotFound, match="no more"):
        got += [number for number in portal.iterate(lambda: counting(ended)) if got.append(number) is None]

    assert got == [0, 1, 2]
    assert ended == [True]


def test_an_iteration_that_is_left_is_closed(portal):
    ended = []
    steps = portal.iterate(lambda: counting(ended))

    assert next(steps) == 0
    steps.close()

    assert ended == [True]


def test_blocks_are_entered_and_left_in_one_task(portal):
    steps = []
    with portal.block(lambda: block(steps)) as value:
        steps.append(value)

    assert steps == ["in", "value", True]


def test_errors_go_through_a_block(portal):
    steps = []
    with pytest.raises(KeyError), portal.block(lambda: block(steps)):
        raise KeyError

    assert steps == ["in", "error", True]
    with portal.block(lambda: block(steps, swallow=True)):
        raise KeyError


def test_an_error_on_the_way_in_is_raised(portal):
    @contextlib.asynccontextmanager
    async def broken():
        raise NotFound("nothing to enter")
        yield

    with pytest.raises(NotFound, match="nothing to enter"), portal.block(broken):
        pass


def test_calls_from_inside_are_refused_rather_than_stuck(portal):
    with pytest.raises(FailedPrecondition, match="callbacks"):
        portal.run(lambda: portal.run(lambda: None))


def test_a_portal_that_is_stopped_says_so():
    with pytest.raises(FailedPrecondition, match="outside of its 'with' block"):
        Portal().run(lambda: None)


def test_what_threads_give_is_taken_in_threads(portal):
    seen = []

    def pieces():
        seen.append(threading.current_thread().name)
        yield b"a"
        yield b"b"

    async def gather():
        write = awaited(seen.append)
        async for piece in fed(pieces()):
            await write(piece)

    portal.call(gather)

    assert seen[1:] == [b"a", b"b"]
    assert seen[0] != "moored client"
