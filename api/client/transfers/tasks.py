"""Coroutines side by side, whose first error is raised as it is, not in a group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

R = TypeVar("R")


async def beside(
    main: Awaitable[R],
    *,
    to_the_end: Sequence[Coroutine[Any, Any, None]],
    meanwhile: Sequence[Coroutine[Any, Any, None]],
) -> R:
    """Await main while the others run; the error of any ends all.

    to_the_end   are awaited after main, too
    meanwhile    are cancelled after it
    """
    first = asyncio.ensure_future(main)
    lasting = [asyncio.ensure_future(work) for work in to_the_end]
    passing = [asyncio.ensure_future(work) for work in meanwhile]
    waiting: set[asyncio.Future[Any]] = {first, *lasting, *passing}
    try:
        while not (first.done() and all(task.done() for task in lasting)):
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # Main's error tells why: others fail because of it.
            for task in sorted(done, key=lambda task: task is not first):
                task.result()
        return first.result()
    finally:
        await _ended([first, *lasting, *passing])


async def _ended(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
