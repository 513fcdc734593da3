"""Ending tasks in an orderly way."""

from __future__ import annotations

from typing import Any

from moored.plugins.runtime.shim.loop import Loop, Task


async def settle(loop: Loop, task: Task[Any]) -> None:
    """Cancel a task and wait until it has ended, however it ends: then it has let go of its descriptors."""
    task.cancel()
    await ended(loop, task)


async def ended(loop: Loop, task: Task[Any]) -> None:
    """Wait until a task has ended, however it ends."""
    over = loop.future()
    task.add_callback(lambda: over.set_result(None))
    await over
