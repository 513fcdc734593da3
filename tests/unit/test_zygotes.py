"""The daemon's side of a zygote: when it is started, replaced and ended, with real processes that fork nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.errors import DeadlineExceeded, Unavailable
from moored.kernel.zygotes import Program, Zygote

ECHO = "while data := requests.recv(99): requests.send(b'%d %s' % (os.getpid(), data))"
BARE_ECHO = "while data := requests.recv(99): requests.send(data)"
MUTE = "while requests.recv(99): pass"
BRIEF = "requests.recv(99)"
WRITES = "_, fds, *_ = socket.recv_fds(requests, 99, 1); os.write(fds[0], b'here'); requests.send(b'done')"
SAYS_GOODBYE = "requests.recv(99); requests.send(b'a'); requests.recv(99); open({!r}, 'w')"


@asynccontextmanager
async def zygote(
    script: str, *, patience: float = 10.0, grace: float = 0.0, folder: Path | None = None
) -> AsyncGenerator[Zygote]:
    """One that runs a script with its socket as `requests`, ended at the end of the block."""
    text = f"import os, socket\nrequests = socket.socket(fileno=os.dup(0))\n{script}"
    program = Program(command=(sys.executable, "-I", "-S", "-c", text), folder=str(folder) if folder else None)
    one = Zygote("the zygote of tests", lambda: program, patience=patience, grace=grace)
    try:
        yield one
    finally:
        await one.close()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def pid_of(one: Zygote) -> int:
    """The pid of who answers."""
    return int((await one.ask(b"x", wanted="an echo")).split()[0])


@on_loop
async def test_it_is_started_by_the_first_request_and_answers_all() -> None:
    async with zygote(ECHO) as one:
        assert one.pid == 0
        pids = await asyncio.gather(*(pid_of(one) for _ in range(5)))
        assert set(pids) == {one.pid}
    assert one.pid == 0


@on_loop
async def test_it_can_be_started_before() -> None:
    async with zygote(ECHO) as one:
        await one.start()
        started = one.pid
        await one.start()
        assert await pid_of(one) == started


@on_loop
async def test_it_gets_copies_of_descriptors() -> None:
    ours, theirs = os.pipe()
    try:
        async with zygote(WRITES) as one:
            assert await one.ask(b"x", [theirs], wanted="a word") == b"done"
        assert os.read(ours, 99) == b"here"
    finally:
        os.close(ours)
        os.close(theirs)


@on_loop
async def test_one_that_died_is_replaced() -> None:
    async with zygote(ECHO) as one:
        dead = await pid_of(one)
        os.kill(dead, signal.SIGKILL)
        assert await pid_of(one) != dead


@on_loop
async def test_one_that_always_dies_is_unavailable() -> None:
    async with zygote(BRIEF) as one:
        with pytest.raises(Unavailable, match="the zygote of tests is gone"):
            await one.ask(b"x", wanted="an echo")


@on_loop
async def test_one_that_hangs_is_replaced_and_after_a_second_one_it_is_told() -> None:
    async with zygote(ECHO, patience=0.5) as one:
        hung = await pid_of(one)
        os.kill(hung, signal.SIGSTOP)
        assert await pid_of(one) != hung
    async with zygote(MUTE, patience=0.2) as one:
        with pytest.raises(DeadlineExceeded, match=r"the zygote of tests did not fork an echo within 0\.2s"):
            await one.ask(b"x", wanted="an echo")


@on_loop
async def test_answer_to_a_cancelled_request_is_nobody_elses() -> None:
    async with zygote(BARE_ECHO) as one:
        await one.ask(b"first", wanted="an echo")
        pid = one.pid
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.create_task(one.ask(b"second", wanted="an echo"))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await one.ask(b"third", wanted="an echo") == b"third"
        assert one.pid != pid


@on_loop
async def test_one_with_grace_ends_by_itself(tmp_path: Path) -> None:
    for name, grace in (("graceful", 10.0), ("killed", 0.0)):
        async with zygote(SAYS_GOODBYE.format(name), grace=grace, folder=tmp_path) as one:
            await one.ask(b"x", wanted="an echo")
    assert names(tmp_path) == ["graceful"]


@on_loop
async def test_one_that_cannot_be_started_is_an_error_of_the_system(tmp_path: Path) -> None:
    one = Zygote("none", lambda: Program(command=(str(tmp_path / "missing"),)), patience=1.0)
    with pytest.raises(FileNotFoundError):
        await one.ask(b"x", wanted="an echo")
    assert one.pid == 0
