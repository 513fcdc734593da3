"""Who one is to a registry, as a transfer says."""

from __future__ import annotations

from moored.api.registry.credentials import Credentials
from moored.kernel.ports.transfer import AskSecret


class SecretLookup:
    """The registry client's Lookup that asks for the secrets of a transfer; raises what that raises."""

    def __init__(self, ask: AskSecret) -> None:
        self._ask = ask

    async def __call__(self, host: str) -> Credentials | None:
        """Give the credentials for a host, None for none."""
        found = await self._ask(host)
        return None if found is None else Credentials(found.user, found.secret, found.header)
