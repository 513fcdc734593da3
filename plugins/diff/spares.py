"""Processes kept ready for work: one forked before anybody wants it, and those that have done some and take more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from moored.kernel.errors import MooredError

MOST: Final = 4
"""Processes that are kept; further ones are ended when they have done their work."""


class Process(Protocol):
    """What one must tell of itself."""

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""


P = TypeVar("P", bound=Process)


class Spares(Generic[P]):
    """Processes of modules that have no work; they are ended when none is wanted or given for as long as they linger.

    start   forks one for a module; it is never cancelled
    end     ends one
    linger  seconds
    """

    def __init__(
        self,
        start: Callable[[str], Coroutine[Any, Any, P]],
        end: Callable[[P], Coroutine[Any, Any, None]],
        linger: float,
    ) -> None:
        self._start = start
        self._end = end
        self._linger = linger
        self._kept: list[tuple[str, asyncio.Future[P]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._endings: set[asyncio.Task[None]] = set()

    def expect(self, module: str) -> None:
        """Have one ready soon. One that cannot be forked is no fault: it is when it is wanted."""
        if any(module == other for other, _ in self._kept):
            self._stay()
        else:
            self.put(module, partial(self._start, module))

    def put(self, module: str, ready: Callable[[], Coroutine[Any, Any, P]]) -> bool:
        """Keep one for more work, unless there are enough; it is made ready soon, or is ended by what fails to."""
        self._stay()
        if len(self._kept) >= MOST:
            return False
        self._kept.append((module, asyncio.create_task(ready())))
        return True

    def at_hand(self, module: str) -> P | None:
        """The one put last for the module, if it waits for work now; None else, and then `take` may find another."""
        for kept in reversed(self._kept):
            if kept[0] == module:
                if not kept[1].done() or kept[1].exception() is not None or kept[1].result().ended:
                    return None
                self._kept.remove(kept)
                return kept[1].result()
        return None

    async def take(self, module: str) -> P | None:
        """One for the module, the one put last before others; None where there is none.

        Not to be cancelled, for then it would be nobody's.
        """
        for kept in reversed(self._kept):
            if kept[0] != module:
                continue
            self._kept.remove(kept)
            with suppress(MooredError):
                found = await kept[1]
                if not found.ended:
                    return found
                await self._end(found)
            return await self.take(module)
        return None

    async def close(self) -> None:
        """End them all; further ones may be kept."""
        self._drop()
        while self._endings:
            await asyncio.wait(self._endings)

    def _stay(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._linger, self._drop)

    def _drop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._kept:
            ending = asyncio.create_task(self._ended(self._kept.pop()[1]))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def _ended(self, kept: asyncio.Future[P]) -> None:
        with suppress(MooredError):
            await self._end(await kept)
