"""A client for the registry that a transfer names, as the daemon is configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.api.registry.client import Registry
from moored.api.registry.settings import Settings
from moored.api.transfer.connecting import connected
from moored.kernel.errors import MooredError
from moored.kernel.ports.transfer import Repository
from moored.plugins.transfer.settings import Shared

DUMP_SECONDS: Final = 5.0
"""How long a client may take to read what is told of one request."""


@asynccontextmanager
async def opened(repository: Repository, shared: Shared) -> AsyncGenerator[Registry]:
    """Give a client for the block. Raises InvalidArgument for a malformed reference."""
    settings = Settings(
        limits=shared.limits,
        policy=shared.policy,
        upload_chunk=shared.upload_chunk,
        dump=_Dump(repository.logs, shared.log) if repository.dump else None,
    )
    async with connected(repository, settings, shared.hosts_folders) as registry:
        yield registry


class _Dump:
    """Takes what is told of requests to where the client reads it, or to the log.

    A client that does not read loses it: a transfer waits for nobody who only watches.
    """

    def __init__(self, write: Callable[[bytes], Awaitable[None]] | None, log: FilteringBoundLogger) -> None:
        self._write = write
        self._log = log
        self._lost = False

    async def __call__(self, head: bytes) -> None:
        if self._write is None:
            self._log.info("request to a registry", heads=head.decode("utf-8", "replace").splitlines())
            return
        if self._lost:
            return
        try:
            async with asyncio.timeout(DUMP_SECONDS):
                await self._write(head)
        except (MooredError, TimeoutError) as error:
            self._lost = True
            self._log.info("a client does not read what it wanted to be told of requests", reason=str(error))
