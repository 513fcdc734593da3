"""Which keys are in use by calls under way: alone, or shared with others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

_ALONE = -1


class Keys:
    """Locks on sets of keys, each set taken at once, so that no two calls can wait for each other.

    First come, first served: a call that waits for a key is not overtaken on that key.
    """

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._waiting: list[tuple[frozenset[str], frozenset[str], asyncio.Future[None]]] = []

    @asynccontextmanager
    async def hold(self, alone: Iterable[str], shared: Iterable[str] = ()) -> AsyncGenerator[None]:
        """Hold the keys for the block; a key in both is held alone."""
        exclusive = frozenset(alone)
        common = frozenset(shared) - exclusive
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((exclusive, common, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting = [one for one in self._waiting if one[2] is not turn]
                self._serve()
            else:
                self._release(exclusive, common)
            raise
        try:
            yield
        finally:
            self._release(exclusive, common)

    def _serve(self) -> None:
        claimed: set[str] = set()
        left = []
        for alone, shared, turn in self._waiting:
            blocked = any(key in self._held for key in alone) or any(self._held.get(key) == _ALONE for key in shared)
            if blocked or not claimed.isdisjoint(alone | shared) or turn.done():
                claimed |= alone | shared
                left.append((alone, shared, turn))
                continue
            self._held.update(dict.fromkeys(alone, _ALONE))
            for key in shared:
                self._held[key] = self._held.get(key, 0) + 1
            turn.set_result(None)
        self._waiting = left

    def _release(self, alone: frozenset[str], shared: frozenset[str]) -> None:
        for key in alone:
            del self._held[key]
        for key in shared:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
        self._serve()
