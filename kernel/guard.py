"""Time limits for code that does not yield: an interval timer interrupts even a blocking call in the main thread.

`asyncio.timeout` ends a coroutine that waits; it cannot end one that holds the event loop (`time.sleep`, a slow stat
or an endless loop). `watched` runs each step of a coroutine under SIGALRM, so that such a step fails with `Overrun` in
the plugin's own frame and the loop lives on. In other threads than the main one `alarm` and `watched` have no effect.
`Deadline` joins both: one limit for a piece of work, however it hangs.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

R = TypeVar("R")

GRACE = 1.0
"""Seconds that work gets to react to its cancellation or interruption before it is given up."""

HOLD = 0.05
"""Seconds of holding the event loop from which on they are not counted against others that wait for it."""


class Overrun(BaseException):
    """A step took longer than it may; a BaseException, so that a plugin's `except Exception` does not swallow it."""


class Late(Exception):
    """A piece of work had not ended by its deadline; its cause is what the work raised in the end."""


class _Alarm:
    """The timer of one block. A class and not a generator, so that no foreign frame stands between it and the block."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds if threading.current_thread() is threading.main_thread() else None
        self._armed = False

    def __enter__(self) -> None:
        if self._seconds is None:
            return
        self._handler_before = signal.signal(signal.SIGALRM, self._overrun)
        self._armed = True
        self._began = time.monotonic()
        # The repeat interval catches code that swallowed the first Overrun.
        self._timer_before = signal.setitimer(signal.ITIMER_REAL, max(self._seconds, 1e-6), GRACE)

    def __exit__(self, *_exc: object) -> None:
        if not self._armed:
            return
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler_before)
        left, interval = self._timer_before
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - self._began), 1e-6), interval)

    def _overrun(self, _signal: int, frame: types.FrameType | None) -> None:
        # In a frame of this module the block has not begun or is over; to raise there would skip `__exit__`, or lose
        # the result of a step that did end.
        if self._armed and frame is not None and frame.f_globals is not globals():
            raise Overrun(f"still running after {self._seconds:g}s")


def alarm(seconds: float | None) -> AbstractContextManager[None]:
    """Raise Overrun inside the block once `seconds` have passed; None or a foreign thread: no limit.

    A timer and handler that were set before are put back with the time that is left to them.
    """
    return _Alarm(seconds)


@types.coroutine
def watched(
    work: Coroutine[Any, Any, R],
    left: Callable[[], float | None],
    took: Callable[[float], None] = lambda _seconds: None,
) -> Generator[Any, Any, R]:
    """Await `work`; each uninterrupted step of it may take `left()` seconds (None: any), then it gets Overrun.

    `took` is told the seconds of each step after it.
    """
    value: Any = None
    thrown: BaseException | None = None
    try:
        while True:
            began = time.monotonic()
            try:
                with alarm(left()):
                    waits_for = work.send(value) if thrown is None else work.throw(thrown)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                took(time.monotonic() - began)
            value = thrown = None
            try:
                value = yield waits_for
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - cancellation and results that are errors belong to `work`
                thrown = error
    finally:
        work.close()


class Deadline:
    """The limit of one piece of work, `what`, among others on the same event loop (`under_way` holds those).

    When `seconds` have passed the work is cancelled if it waits, and interrupted if it holds the loop. When it has not
    ended GRACE seconds later either, `give_up` is called once and the work goes on unheeded. Time in which another
    piece of work held the loop is not counted.
    """

    def __init__(self, what: str, seconds: float, under_way: set[Deadline], give_up: Callable[[], None]) -> None:
        self.text = f"did not {what} within {seconds:g}s"
        self._seconds = seconds
        self._under_way = under_way
        self._give_up = give_up

    @property
    def passed(self) -> bool:
        """Whether the time is over, or was when the work ended."""
        return self._scope.expired() or self._loop.time() >= self._at

    async def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Await the work, once. Raises what it raises, but Late once the deadline has passed.

        Work that swallows its cancellation and then ends still gives its result; `passed` tells.
        """
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + self._seconds
        self._scope = asyncio.timeout_at(self._at)
        self._arm()
        self._under_way.add(self)
        try:
            async with self._scope:
                return await watched(work, self._left, self._took)
        except Overrun as error:
            raise Late(f"held the event loop and {self.text}") from error
        except BaseException as error:
            if self.passed:
                raise Late(self.text) from error
            raise
        finally:
            self._giving_up.cancel()
            self._under_way.discard(self)

    def _left(self) -> float:
        """Seconds that a step may take: up to the deadline, after it (the work cleans up) to the end of the grace."""
        left = self._at - self._loop.time()
        return max(left if left > 0 else left + GRACE, 0.001)

    def _took(self, seconds: float) -> None:
        if seconds > HOLD:
            for other in self._under_way - {self}:
                other._move(seconds)

    def _move(self, seconds: float) -> None:
        if not self._scope.expired():
            self._at += seconds
            self._scope.reschedule(self._at)

    def _arm(self) -> None:
        self._giving_up = self._loop.call_at(self._at + GRACE, self._abandon)

    def _abandon(self) -> None:
        if self._loop.time() < self._at + GRACE:
            self._arm()  # moved meanwhile
        else:
            self._give_up()
