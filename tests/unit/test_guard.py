"""Time limits: what holds the event loop is interrupted where it stands, and nothing of the limit stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Coroutine, Generator
from typing import Any

import pytest

from moored.kernel.guard import Deadline, Late, Overrun, alarm, watched


@pytest.fixture(autouse=True)
def _no_timer_is_left() -> Generator[None]:
    handler, (left, interval) = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    yield
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL)[1] == interval
    assert signal.getitimer(signal.ITIMER_REAL)[0] <= left


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def hang() -> None:
    time.sleep(60)


def test_alarm_interrupts_a_blocking_call() -> None:
    began = time.monotonic()

    with pytest.raises(Overrun, match=r"after 0\.05s"), alarm(0.05):
        time.sleep(60)

    assert time.monotonic() - began < 30


def test_alarm_is_not_swallowed_by_except_exception() -> None:
    with pytest.raises(Overrun), alarm(0.05), contextlib.suppress(Exception):
        time.sleep(60)


def test_alarm_comes_again_where_the_first_was_swallowed() -> None:
    def swallow_one() -> None:
        with contextlib.suppress(BaseException):
            time.sleep(60)
        time.sleep(60)

    with pytest.raises(Overrun), alarm(0.05):
        swallow_one()


def test_alarm_without_seconds_sets_no_timer() -> None:
    before = signal.getsignal(signal.SIGALRM)

    with alarm(None):
        assert signal.getsignal(signal.SIGALRM) == before


def test_alarm_passes_exceptions_of_the_block() -> None:
    with pytest.raises(ValueError, match="mine"), alarm(60):
        raise ValueError("mine")


def test_alarm_gives_an_earlier_timer_back() -> None:
    rung = threading.Event()
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    timer = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with alarm(60):
            spin(0.25)
            assert not rung.is_set()
        with contextlib.suppress(TimeoutError):
            asyncio.run(asyncio.wait_for(asyncio.to_thread(rung.wait, 30), 30))
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)

    assert rung.is_set()


def test_alarm_in_another_thread_is_without_effect() -> None:
    ended: list[bool] = []

    def work() -> None:
        with alarm(0.001):
            spin(0.01)
        asyncio.run(limited(busy(0.01), 0.001))
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert ended == [True]


def test_no_signal_comes_late_however_close_the_block_ends_to_the_limit() -> None:
    handler = signal.getsignal(signal.SIGALRM)
    overruns = 0

    for turn in range(2000):
        try:
            with alarm(0.00005 + turn % 20 * 0.000005):
                spin(0.0001)
        except Overrun:
            overruns += 1
        assert signal.getsignal(signal.SIGALRM) == handler
        spin(0.00002)

    assert overruns > 0


def test_watched_step_that_ended_is_not_abandoned_however_close_to_the_limit() -> None:
    interrupted = 0

    async def main() -> None:
        nonlocal interrupted
        for turn in range(2000):
            seen: list[str] = []
            try:
                await limited(noting(seen), 0.00005 + turn % 20 * 0.000005)
            except Overrun:
                interrupted += 1
                assert seen == []
            else:
                assert seen == ["ended"]

    asyncio.run(main())

    assert interrupted > 0


async def noting(seen: list[str]) -> None:
    try:
        spin(0.0001)
        await asyncio.sleep(0)
        seen[:] = ["ended"]  # no call, so that no signal is handled between this and the end
    except GeneratorExit:
        seen[:] = ["abandoned"]
        raise


async def busy(seconds: float) -> str:
    spin(seconds)
    return "done"


async def limited(work: Coroutine[Any, Any, Any], seconds: float | None) -> Any:
    return await watched(work, lambda: seconds)


def test_watched_passes_results_in_and_out() -> None:
    async def work() -> list[object]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_soon(future.set_result, "from a future")
        return [await future, await asyncio.sleep(0, "from a sleep")]

    assert asyncio.run(limited(work(), 60)) == ["from a future", "from a sleep"]


def test_watched_passes_exceptions_in_and_out() -> None:
    async def work() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_soon(future.set_exception, OSError("of the future"))
        try:
            return await future
        except OSError as error:
            raise ValueError(f"saw {error}") from error

    with pytest.raises(ValueError, match="saw of the future"):
        asyncio.run(limited(work(), None))


def test_watched_limits_each_step_and_not_their_sum() -> None:
    async def work() -> int:
        for _ in range(20):
            spin(0.05)
            await asyncio.sleep(0)
        return 20

    assert asyncio.run(limited(work(), 0.9)) == 20


def test_watched_interrupts_the_step_and_lets_it_clean_up() -> None:
    seen = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
            hang()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    with pytest.raises(Overrun):
        asyncio.run(limited(work(), 0.1))

    assert seen == ["cleaned up"]


def test_watched_passes_cancellation_and_its_refusal() -> None:
    async def work() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "went on"

    async def main() -> str:
        task = asyncio.create_task(limited(work(), 60))
        await started.wait()
        task.cancel()
        return str(await task)

    started = asyncio.Event()

    assert asyncio.run(main()) == "went on"


def test_watched_tells_the_seconds_of_each_step() -> None:
    async def work() -> None:
        spin(0.02)
        await asyncio.sleep(0)

    steps: list[float] = []

    async def main() -> None:
        await watched(work(), lambda: None, steps.append)

    asyncio.run(main())

    assert len(steps) == 2
    assert steps[0] >= 0.02


def never() -> None:
    pytest.fail("gave up work that ended")


def test_deadline_cancels_what_waits() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    deadline = Deadline("come", 0.05, set(), never)

    with pytest.raises(Late, match=r"^did not come within 0\.05s$") as raised:
        asyncio.run(deadline.run(work()))

    assert isinstance(raised.value.__cause__, TimeoutError)
    assert deadline.passed


def test_deadline_interrupts_what_holds_the_loop() -> None:
    async def work() -> None:
        hang()

    with pytest.raises(Late, match=r"^held the event loop and did not come within 0\.05s$"):
        asyncio.run(Deadline("come", 0.05, set(), never).run(work()))


def test_deadline_names_late_whatever_was_made_of_the_cancellation() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise OSError("connection lost") from None

    with pytest.raises(Late, match="did not come") as raised:
        asyncio.run(Deadline("come", 0.05, set(), never).run(work()))

    assert isinstance(raised.value.__cause__, OSError)


def test_deadline_in_time_passes_results_and_exceptions() -> None:
    async def work(good: bool) -> str:
        await asyncio.sleep(0)
        if good:
            return "result"
        raise OSError("broken")

    assert asyncio.run(Deadline("come", 60, set(), never).run(work(good=True))) == "result"
    with pytest.raises(OSError, match="broken"):
        asyncio.run(Deadline("come", 60, set(), never).run(work(good=False)))


def test_clean_up_after_the_deadline_may_hold_the_loop_for_a_moment() -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            spin(0.1)
            cleaned.append(True)

    with pytest.raises(Late):
        asyncio.run(Deadline("come", 0.05, set(), never).run(work()))

    assert cleaned == [True]


def test_deadline_gives_up_once_what_ignores_its_cancellation_and_passes_its_result() -> None:
    async def work() -> str:
        while not given_up:
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
        return "late result"

    def give_up() -> None:
        given_up.append(True)
        over.set()

    given_up: list[bool] = []
    over = asyncio.Event()
    deadline = Deadline("come", 0.05, set(), give_up)

    assert asyncio.run(deadline.run(work())) == "late result"
    assert given_up == [True]
    assert deadline.passed


def test_time_in_which_another_work_held_the_loop_is_not_counted() -> None:
    async def holds() -> None:
        await waiting.wait()
        spin(1.0)
        held.set()

    async def waits() -> str:
        waiting.set()
        await held.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        return "in time"

    async def main() -> str:
        holder = asyncio.create_task(Deadline("hold", 60, under_way, never).run(holds()))
        result = await Deadline("wait", 0.8, under_way, never).run(waits())
        await holder
        return result

    waiting, held = asyncio.Event(), asyncio.Event()
    under_way: set[Deadline] = set()

    assert asyncio.run(main()) == "in time"
    assert under_way == set()
