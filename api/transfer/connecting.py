"""A registry client for the repository that a transfer names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from moored.api.registry.client import Registry
from moored.api.registry.credentials import nobody
from moored.api.registry.hosts import hosts_of
from moored.api.registry.settings import Settings
from moored.api.transfer.secrets import SecretLookup
from moored.kernel.imagespec import references
from moored.kernel.ports.transfer import Repository


@asynccontextmanager
async def connected(
    repository: Repository, settings: Settings | None = None, folders: Sequence[Path] = ()
) -> AsyncGenerator[Registry]:
    """Give a client for the block, with these settings, but headers and credentials of the repository's.

    folders are where `hosts.toml` files are looked for unless the repository says. Raises InvalidArgument for a
    malformed reference.
    """
    reference = references.parse(repository.reference)
    wanted = [Path(repository.hosts_folder)] if repository.hosts_folder else folders
    hosts = await asyncio.to_thread(hosts_of, reference.host, folders=wanted, default_scheme=repository.default_scheme)
    own = replace(
        settings or Settings(),
        headers=repository.headers,
        credentials=nobody if repository.secret is None else SecretLookup(repository.secret),
        trace=repository.trace,
    )
    async with Registry(reference, hosts, own) as registry:
        yield registry
