"""The shim's event loop keeps its promises on time, descriptors, children and cancellation."""

import os
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from moored.plugins.runtime.shim.loop import Lock, Loop, Stopped
from unit.descriptors import descriptors


@pytest.fixture
def loop() -> Generator[Loop]:
    before = descriptors()
    made = Loop()
    yield made
    made.close()
    assert descriptors() == before


def start(script: str) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], {"PATH": "/bin:/usr/bin"})


def test_tasks_run_side_by_side_and_give_results(loop: Loop) -> None:
    order: list[str] = []

    async def note(name: str, seconds: float) -> str:
        await loop.sleep(seconds)
        order.append(name)
        return name

    async def main() -> tuple[str, str]:
        slow, quick = loop.spawn(note("slow", 0.02)), loop.spawn(note("quick", 0.005))
        return await slow, await quick

    assert loop.run(main()) == ("slow", "quick")
    assert order == ["quick", "slow"]


def test_error_of_a_task_reaches_who_awaits_it(loop: Loop) -> None:
    async def fail() -> None:
        raise KeyError("x")

    async def main() -> None:
        await loop.spawn(fail())

    with pytest.raises(KeyError):
        loop.run(main())


def test_task_that_fails_alone_is_logged(loop: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise KeyError("the reason")

    async def main() -> None:
        loop.spawn(fail())
        await loop.sleep(0)

    loop.run(main())

    assert "the reason" in capfd.readouterr().err


def test_cancelled_reader_leaves_the_descriptor_to_the_next(loop: Loop) -> None:
    ours, theirs = socket.socketpair()

    async def main() -> bytes:
        first = loop.spawn(loop.readable(ours.fileno()))
        await loop.sleep(0)
        first.cancel()
        with pytest.raises(Stopped):
            await first
        second = loop.spawn(loop.readable(ours.fileno()))
        theirs.send(b"x")
        await second
        return ours.recv(1)

    with ours, theirs:
        assert loop.run(main()) == b"x"


def test_one_descriptor_has_a_reader_and_a_writer(loop: Loop) -> None:
    ours, theirs = socket.socketpair()

    async def main() -> None:
        reader = loop.spawn(loop.readable(ours.fileno()))
        await loop.spawn(loop.writable(ours.fileno()))
        assert not reader.done()
        theirs.send(b"x")
        await reader

    with ours, theirs:
        loop.run(main())


def test_regular_files_are_always_ready(loop: Loop) -> None:
    with Path(__file__).open("rb") as file:
        loop.run(loop.readable(file.fileno()))


def test_descriptor_number_used_again_is_waited_for_anew(loop: Loop) -> None:
    async def main() -> None:
        for _ in range(2):
            read, write = os.pipe()
            os.write(write, b"x")
            await loop.readable(read)
            os.close(read)
            os.close(write)

    loop.run(main())


def test_deadline_cancels_a_coroutine_and_leaves_a_future(loop: Loop) -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await loop.future()
        finally:
            ended.append("forever")

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await loop.within(0.01, forever())
        await loop.sleep(0)
        kept = loop.future()
        with pytest.raises(TimeoutError):
            await loop.within(0.01, kept)
        kept.set_result(7)
        assert await loop.within(1, kept) == 7

    loop.run(main())

    assert ended == ["forever"]


def test_cancelled_twice_or_too_late_is_stopped_once(loop: Loop) -> None:
    stops: list[int] = []

    async def work(gate: object) -> None:
        try:
            await gate  # type: ignore[misc]
        except Stopped:
            stops.append(1)
            await loop.sleep(0.01)
            stops.append(2)

    async def main() -> None:
        gate = loop.future()
        task = loop.spawn(work(gate))
        await loop.sleep(0)
        gate.set_result(None)  # the wake-up is on its way
        task.cancel()
        task.cancel()
        await task

    loop.run(main())

    assert stops == [1, 2]


@pytest.mark.parametrize(("script", "wanted"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)])
def test_child_gives_its_exit_status(loop: Loop, script: str, wanted: int) -> None:
    async def main() -> int:
        return await loop.child(start(script))

    assert loop.run(main()) == wanted


def test_early_exit_is_kept_only_for_who_keeps_it(loop: Loop) -> None:
    async def main() -> None:
        forgotten = start("exit 0")
        await loop.child(forgotten)
        with loop.keeping_exits() as kept:
            early = start("exit 3")
            last = start("sleep 0.02")
            await loop.child(last)
            status = await loop.within(1, kept.child(early))
            assert status == 3
            assert status.at > 0
            with pytest.raises(TimeoutError):
                await loop.within(0.01, kept.child(forgotten))

    loop.run(main())


def test_strangers_stay_until_a_runtime_has_done_with_them_and_others_are_buried(loop: Loop) -> None:
    async def main() -> None:
        with loop.keeping_exits() as kept:
            with loop.leaving_strangers():
                stranger = start("exit 3")
                assert await loop.child(start("exit 4")) == 4
                os.waitid(os.P_PID, stranger, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
                assert await loop.child(start("exit 5")) == 5
                assert os.path.exists(f"/proc/{stranger}")  # noqa: PTH110, ASYNC240
            assert await loop.within(1, kept.child(stranger)) == 3
        assert not os.path.exists(f"/proc/{stranger}")  # noqa: PTH110, ASYNC240

    loop.run(main())


def test_work_apart_gives_its_error_without_stopping_the_loop(loop: Loop, tmp_path: Path) -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "no such thing")

    def work() -> None:
        (tmp_path / "done").touch()

    async def main() -> None:
        with pytest.raises(OSError, match="no such thing"):
            await loop.apart(fail)
        await loop.apart(work)

    loop.run(main())

    assert (tmp_path / "done").exists()


def test_lock_lets_one_in_at_a_time_also_when_a_waiter_gives_up(loop: Loop) -> None:
    inside: list[str] = []

    async def enter(lock: Lock, name: str) -> None:
        async with lock:
            inside.append(name)
            await loop.sleep(0.005)
            inside.append(name)

    async def main() -> None:
        lock = Lock(loop)
        tasks = [loop.spawn(enter(lock, name)) for name in "abc"]
        await loop.sleep(0)
        tasks[1].cancel()
        await tasks[0]
        await tasks[2]

    loop.run(main())

    assert inside == ["a", "a", "c", "c"]


def test_withdrawn_timers_do_not_pile_up_behind_a_live_one() -> None:
    loop = Loop()

    async def body() -> int:
        loop.later(1000, lambda: None)
        for _ in range(2000):
            loop.later(2000, lambda: None).cancel()
        return len(loop._timers)

    assert loop.run(body()) < 200
    loop.close()
