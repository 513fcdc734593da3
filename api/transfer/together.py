"""Several things at once, with the error of one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from moored.kernel.errors import MooredError, Unavailable, Unknown

R = TypeVar("R")


async def together(works: Iterable[Coroutine[Any, Any, R]]) -> list[R]:
    """Run all side by side and give their results in order.

    When one fails the others are cancelled and awaited, and its error is raised as it is; of several the one that says
    most.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise most_telling(errors) from None
    return [task.result() for task in tasks]


def most_telling(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Choose the error that stands for a group: what is no error of ours before what is, vague ones last."""
    leaves = list(_leaves(errors))
    return min(leaves, key=lambda one: isinstance(one, MooredError) + isinstance(one, (Unavailable, Unknown)))


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for one in errors.exceptions:
        if isinstance(one, BaseExceptionGroup):
            yield from _leaves(one)
        else:
            yield one


async def explained(work: Awaitable[R], text: str) -> R:
    """Await work; an error of it gets `text: ` in front and stays of its class."""
    try:
        return await work
    except MooredError as error:
        raise type(error)(f"{text}: {error.text}", bare=error.bare) from error
