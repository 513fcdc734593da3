"""Turns: calls on the same name run one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

N = TypeVar("N", bound=Hashable)


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Turns(Generic[N]):
    """Locks by name, which exist while somebody holds or wants them."""

    def __init__(self) -> None:
        self._turns: dict[N, _Turn] = {}

    @asynccontextmanager
    async def take(self, *names: N) -> AsyncGenerator[None]:
        """Hold the names for the block; all calls take theirs in the same order, so that no two wait for each other."""
        held: list[tuple[N, _Turn]] = []
        try:
            for name in sorted(set(names), key=repr) if len(names) > 1 else names:
                turn = await self._wait(name)
                held.append((name, turn))
            yield
        finally:
            while held:
                name, turn = held.pop()
                turn.lock.release()
                self._leave(name, turn)

    async def _wait(self, name: N) -> _Turn:
        turn = self._turns.setdefault(name, _Turn())
        turn.users += 1
        try:
            await turn.lock.acquire()
        except BaseException:
            self._leave(name, turn)
            raise
        return turn

    def _leave(self, name: N, turn: _Turn) -> None:
        turn.users -= 1
        if not turn.users:
            del self._turns[name]
