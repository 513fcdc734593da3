"""A local content store for the length of a test's coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog

from moored.plugins.content.local.store import LocalContentStore, open_store

R = TypeVar("R")


def with_store(root: Path, use: Callable[[LocalContentStore], Awaitable[R]], threads: int = 4) -> R:
    """Open the store in a folder, run `use` on it, close it."""

    async def run() -> R:
        async with open_store(root, structlog.get_logger(), threads) as store:
            return await use(store)

    return asyncio.run(run())
