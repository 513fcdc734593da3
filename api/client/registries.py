"""How registries are reached: who one is to them, where they are looked for, and what is sent along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moored.api.registry.credentials import Lookup, nobody

if TYPE_CHECKING:
    from moored.kernel.ports.transfer import AskSecret, Repository, Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """Options of pulls and pushes.

    credentials    says who one is to a host; `moored.api.registry.credentials.DockerConfig()` asks Docker's config
    headers        sent with every request
    hosts_folder   a folder of `HOST/hosts.toml`; where the daemon does the transfer, on its host
    plain_http     http where nothing else is configured
    """

    credentials: Lookup = nobody
    headers: Mapping[str, str] = field(default_factory=dict)
    hosts_folder: str = ""
    plain_http: bool = False

    def repository(self, reference: str) -> Repository:
        """Give the end of a transfer that a reference names."""
        from moored.kernel.ports.transfer import Repository

        return Repository(
            reference=reference,
            headers=self.headers,
            secret=None if self.credentials is nobody else _secret(self.credentials),
            hosts_folder=self.hosts_folder,
            default_scheme="http" if self.plain_http else "",
        )


def _secret(lookup: Lookup) -> AskSecret:
    from moored.kernel.ports.transfer import Secret

    async def ask(host: str) -> Secret | None:
        found = await lookup(host)
        return Secret(found.user, found.secret, found.header) if found else None

    return ask
