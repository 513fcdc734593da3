"""The Runtime suite on every implementation: the fake of tests, and real shims, our own and those of containerd."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from harness import on_loop
from moored.kernel.conformance.tasks import Check, World, checks
from moored.kernel.ports.mounts import Mount
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from moored.plugins.runtime.manager.choice import Runtimes
from moored.plugins.runtime.oci.driver import Driver
from moored.plugins.runtime.oci.invocations import Settings
from shims import SHIMS, Place, needs_runc, place
from unit.tasks.fake import fake_runtime

every_check = pytest.mark.parametrize(
    "check", [pytest.param(one, id=one.__name__.removeprefix("check_")) for one in checks()]
)


@every_check
@on_loop
async def test_fake(check: Check, tmp_path: Path) -> None:
    exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
    async with fake_runtime(exchange) as runtime:
        await check(World(runtime=runtime, exchange=exchange, folder=tmp_path))


@pytest.fixture
def here() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="mc") as folder, place(Path(folder)) as one:
        try:
            yield one
        finally:
            # The suite's second namespace.
            with suppress(OSError):
                Path("/run/containerd/runc", f"{one.namespace}-2").rmdir()


def with_marks(values: list[Any]) -> list[Any]:
    return [pytest.param(value, id=name, marks=needs_runc) for name, value in values]


OWN = [(name, name) for name in ("runc", "crun") if shutil.which(name)]
"""gVisor is not among them: it signals, measures and limits less."""
EXTERNAL = [("2.x" if "ctd2" in path else "1.6", path) for path in SHIMS]


@pytest.mark.parametrize("shim", with_marks(EXTERNAL))
@every_check
def test_shim_of_containerd(here: Place, shim: str, check: Check) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            await check(real(here, world, name=shim, tells_delete=False))

    main()


@pytest.mark.parametrize("driver", with_marks(OWN))
@every_check
def test_own_shim(here: Place, driver: str, check: Check) -> None:
    settings = Settings(driver=driver, root=str(here.folder / "oci"))
    runtimes = Runtimes({"io.containerd.runc.v2": driver}, {driver: Driver(settings, 10)})

    @on_loop
    async def main() -> None:
        async with here.world() as world:
            world.runtime.runtimes = runtimes
            await check(real(here, world, kills_frozen=driver == "runc"))

    main()


def real(here: Place, world: Any, **more: Any) -> World:
    """A runtime of real shims, over a file system with busybox."""
    folder = here.folder / "streams"
    folder.mkdir()
    return World(
        runtime=world.runtime,
        exchange=world.exchange,
        folder=folder,
        namespace=here.namespace,
        cgroup=f"/{here.namespace}",
        rootfs=[Mount(type="bind", source=str(here.rootfs), options=("rbind", "rw"))],
        **more,
    )
