"""A client for the registry that a transfer names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from moored.api.registry.client import Registry
from moored.api.registry.credentials import Credentials, nobody
from moored.api.registry.hosts import hosts_of
from moored.api.registry.settings import Settings
from moored.kernel.imagespec import references
from moored.kernel.ports.transfer import AskSecret, Repository
from moored.plugins.transfer.settings import Shared


@asynccontextmanager
async def opened(repository: Repository, shared: Shared) -> AsyncGenerator[Registry]:
    """Give a client for the block. Raises InvalidArgument for a malformed reference."""
    reference = references.parse(repository.reference)
    wanted = [Path(repository.hosts_folder)] if repository.hosts_folder else shared.hosts_folders
    hosts = await asyncio.to_thread(hosts_of, reference.host, folders=wanted, default_scheme=repository.default_scheme)
    settings = Settings(
        headers=repository.headers,
        credentials=nobody if repository.secret is None else _lookup(repository.secret),
        limits=shared.limits,
        policy=shared.policy,
    )
    async with Registry(reference, hosts, settings) as registry:
        yield registry


class _lookup:  # noqa: N801 - reads as a function
    """Asks the client who it is to a host."""

    def __init__(self, ask: AskSecret) -> None:
        self._ask = ask

    async def __call__(self, host: str) -> Credentials | None:
        found = await self._ask(host)
        return None if found is None else Credentials(found.user, found.secret, found.header)
