"""What the process is doing, as text: the stack of every thread and of every asyncio task down to what it awaits."""

from __future__ import annotations

import asyncio
import gc
import linecache
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

_SUSPENDED = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType)

MAX_TASKS = 10_000
MAX_DEPTH = 100
"""Frames of one stack; the innermost are shown."""


def dump(loop: asyncio.AbstractEventLoop | None = None) -> str:
    """Return the stacks of all threads, then of the unfinished tasks of the loop (default: the running one, if any).

    Never raises for what it finds; call it in the loop's thread. In a signal handler outside of the loop pass the loop.
    """
    return "".join(_threads()) + "".join(_tasks(loop or _running_loop()))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _threads() -> Iterator[str]:
    names = {thread.ident: thread for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        thread = names.get(ident)
        shown = f"{thread.name!r} native id {thread.native_id}" if thread else f"{ident}, not made by Python"
        yield f"thread {shown}:\n"
        yield from _lines(list(reversed(list(_outwards(frame)))))
        yield "\n"


def _outwards(frame: types.FrameType | None) -> Iterator[tuple[types.FrameType, int | None]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def _tasks(loop: asyncio.AbstractEventLoop | None) -> Iterator[str]:
    if loop is None:
        return
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    for task in tasks[:MAX_TASKS]:
        state = "cancelling" if task.cancelling() else "waiting"
        yield f"task {task.get_name()!r} {state}:\n"
        yield from _lines(list(_inwards(task.get_coro())))
        yield "\n"
    if len(tasks) > MAX_TASKS:
        yield f"and {len(tasks) - MAX_TASKS} more tasks\n"


def _inwards(waiting: Any) -> Iterator[tuple[types.FrameType, int | None]]:
    """The frames from a coroutine to what it awaits at last; `Task.get_stack` shows the first of them only."""
    for _ in range(MAX_DEPTH):
        frames = (getattr(waiting, name, None) for name in ("cr_frame", "gi_frame", "ag_frame"))
        frame = next((found for found in frames if isinstance(found, types.FrameType)), None)
        if frame is not None:
            yield frame, frame.f_lineno
            inner = (getattr(waiting, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await"))
            waiting = next((found for found in inner if found is not None), None)
        else:
            # The awaitables of async generators (and of __await__) have no attribute that leads on, but a reference.
            waiting = next((found for found in gc.get_referents(waiting) if isinstance(found, _SUSPENDED)), None)
        if waiting is None:
            return


def _lines(frames: list[tuple[types.FrameType, int | None]]) -> Iterator[str]:
    if len(frames) > MAX_DEPTH:
        yield f"  {len(frames) - MAX_DEPTH} outer frames left out\n"
    for frame, line in frames[-MAX_DEPTH:]:
        code = frame.f_code
        # Compiled code (grpc's server) has frames without a line.
        yield f"  {code.co_filename}:{line or '?'} in {code.co_qualname}\n"
        if line and (source := linecache.getline(code.co_filename, line).strip()):
            yield f"    {source}\n"
