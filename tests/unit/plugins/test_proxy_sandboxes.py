"""Sandbox controllers in other processes: how they are registered, and waits that outlast them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from tomllib import loads

import pytest

from harness import GRPC_SERVER, on_loop, plug, running
from moored.kernel.errors import InvalidArgument, Unavailable
from moored.kernel.namespaces import bind
from moored.kernel.plugin import PROXY_ENTRY_POINT_GROUP
from moored.kernel.ports.events import EVENT
from moored.kernel.ports.sandboxes import SANDBOX_CONTROLLER, SandboxExit
from moored.plugins.proxy.endpoint import RemoteEndpoint
from moored.plugins.proxy.sandboxes import RemoteController, registration

SERVICE = "io.containerd.grpc.v1.sandbox-controllers"


@dataclass
class Table:
    type: str = SANDBOX_CONTROLLER.uri
    address: str = "/x"
    platform: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)


class Leaving:
    """A controller that is not there for the first two calls."""

    tells_exits = True

    def __init__(self) -> None:
        self.calls = 0

    async def wait(self, id: str) -> SandboxExit:  # noqa: A002 - the port says so
        self.calls += 1
        if self.calls <= 2:
            raise Unavailable("going away")
        return SandboxExit(status=7, exited_at=1_000_000_001)


def test_registration_is_a_controller() -> None:
    made = registration("kuasar", Table())
    project = loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    point = project["entry-points"][PROXY_ENTRY_POINT_GROUP][SANDBOX_CONTROLLER.uri]

    assert made.uri == "io.containerd.sandbox.controller.v1.kuasar"
    assert point == "moored.plugins.proxy.sandboxes:registration"
    with pytest.raises(InvalidArgument):
        registration("kuasar", Table(address=""))


@on_loop
async def test_wait_outlasts_an_absence_of_the_other_side(tmp_path: Path) -> None:
    address = str(tmp_path / "m.sock")
    leaving = Leaving()
    plugins = (plug(SANDBOX_CONTROLLER, "far", leaving), plug(EVENT, "exchange", object()))
    endpoint = RemoteEndpoint(address)
    try:
        with bind("one"):
            wait = asyncio.ensure_future(RemoteController(endpoint, "far").wait("s1"))
        await asyncio.wait([wait], timeout=0.05)  # nobody listens yet
        async with running(tmp_path, GRPC_SERVER, SERVICE, *plugins, configs={GRPC_SERVER: {"address": address}}):
            assert await asyncio.wait_for(wait, 20) == SandboxExit(status=7, exited_at=1_000_000_001)
    finally:
        await endpoint.close()
    assert leaving.calls == 3
