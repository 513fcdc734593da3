"""`async with` for what is closed: leaving the block closes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from moored.kernel.errors import MooredError


class Closing(ABC):
    """Base of what has a `close`. An error of closing is raised, unless the block's own error says more."""

    __slots__ = ()

    @abstractmethod
    async def close(self) -> None:
        """Let go of it; again is harmless."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await at_end(self.close(), error)


async def at_end(closing: Awaitable[object], error: BaseException | None) -> None:
    """Await what ends a block that is left with `error`. Its own error is raised, unless the block's says more."""
    try:
        await closing
    except MooredError:
        if error is None:
            raise
