"""Turns: calls on the same name run one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
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
        async with AsyncExitStack() as stack:
            for name in sorted(set(names), key=repr):
                await stack.enter_async_context(self._one(name))
            yield

    @asynccontextmanager
    async def _one(self, name: N) -> AsyncGenerator[None]:
        turn = self._turns.setdefault(name, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[name]
