"""Time limits for code that does not yield: an interval timer interrupts even a blocking call in the main thread.

`asyncio.timeout` ends a coroutine that waits; it cannot end one that holds the event loop (`time.sleep`, a slow stat
or an endless loop). `watched` runs each step of a coroutine under SIGALRM, so that such a step fails with `Overrun` in the
plugin's own frame and the loop lives on. In other threads than the main one both are without effect.
"""

from __future__ import annotations

import signal
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

R = TypeVar("R")


class Overrun(BaseException):
    """A step took longer than it may; a BaseException, so that a plugin's `except Exception` does not swallow it."""


@contextmanager
def alarm(seconds: float | None) -> Generator[None]:
    """Raise Overrun inside the block once `seconds` have passed. Not reentrant; None or a foreign thread: no limit."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def overrun(_signal: int, _frame: types.FrameType | None) -> None:
        # A signal may still be delivered after the timer was stopped; then the step is over and nothing is raised.
        if armed:
            raise Overrun(f"still running after {seconds:g}s")

    before = signal.signal(signal.SIGALRM, overrun)
    # The repeat interval catches code that swallowed the first Overrun.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6), 1.0)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@types.coroutine
def watched(work: Coroutine[Any, Any, R], left: Callable[[], float | None]) -> Generator[Any, Any, R]:
    """Await `work`; each uninterrupted step of it may take `left()` seconds (None: any), then it gets Overrun."""
    value: Any = None
    thrown: BaseException | None = None
    try:
        while True:
            try:
                with alarm(left()):
                    waits_for = work.send(value) if thrown is None else work.throw(thrown)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            value = thrown = None
            try:
                value = yield waits_for
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - cancellation and results that are errors belong to `work`
                thrown = error
    finally:
        work.close()
