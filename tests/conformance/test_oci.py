"""Every driver of an OCI runtime does what its port says, with the runtime itself."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from moored.kernel.conformance.oci import Check, Stage, checks
from moored.plugins.runtime.oci.driver import Driver
from moored.plugins.runtime.oci.invocations import Settings

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="runs containers")]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs a static busybox")
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "dev", "proc", "sys", "etc"):
        (root / name).mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    return root


@pytest.mark.parametrize("runtime", ["runc", "crun", "runsc"])
@pytest.mark.parametrize("check", checks(), ids=lambda check: check.__name__.removeprefix("check_"))
def test_driver(check: Check, runtime: str, tmp_path: Path, rootfs: Path) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"needs {runtime}")
    driver = Driver(Settings(driver=runtime, root=str(tmp_path / "own")), seconds=1.0)

    stage = Stage(driver=driver, folder=tmp_path, rootfs=rootfs)
    asyncio.run(check(stage))

    assert left(tmp_path, stage.id) == []


def left(folder: Path, id_: str) -> list[str]:
    """Mounts, cgroups and processes of a container, and of anything else in its folder."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    cgroups = [str(path) for path in (*Path("/sys/fs/cgroup").glob(id_), *Path("/sys/fs/cgroup").glob(f"*/{id_}"))]
    processes = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(folder).encode() in _read(path) and path.parent.name != str(os.getpid())
    ]
    return mounts + cgroups + processes


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
