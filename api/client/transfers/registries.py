"""The registry client for a repository, as a transfer names it."""

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
from moored.kernel.ports.transfer import Repository


@asynccontextmanager
async def opened(repository: Repository) -> AsyncGenerator[Registry]:
    """Give the client for the block. Raises InvalidArgument for a malformed reference or hosts file."""
    reference = references.parse(repository.reference)
    folders = [Path(repository.hosts_folder)] if repository.hosts_folder else []
    hosts = await asyncio.to_thread(hosts_of, reference.host, folders=folders, default_scheme=repository.default_scheme)
    ask = repository.secret

    async def lookup(host: str) -> Credentials | None:
        found = await ask(host) if ask is not None else None
        return None if found is None else Credentials(found.user, found.secret, found.header)

    settings = Settings(headers=repository.headers, credentials=nobody if ask is None else lookup)
    async with Registry(reference, hosts, settings) as registry:
        yield registry
