"""The client library's content store is the port's, as far as any wire lets it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conformance.remote import every_check
from conformance.test_remote_content import BY_ANY_WIRE
from moored.api.client import Client
from moored.kernel.conformance.content import Check, checks
from unit.content.served import served


@every_check(checks(), BY_ANY_WIRE)
def test_content_before_our_service(check: Check, tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as service, Client(service.address, namespace="conformance") as client:
            await check(client.content)

    asyncio.run(run())
