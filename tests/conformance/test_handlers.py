"""Every mount handler does what its port says."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from moored.kernel.conformance.handlers import CHECKS, Case, Check
from moored.kernel.mountfds import known
from moored.kernel.ports.mounts import Mount
from moored.plugins.mounts.erofs.handler import ErofsHandler
from moored.plugins.mounts.loop import LoopHandler

pytestmark = pytest.mark.root


def loop(folder: Path) -> Case:
    """A loop device of a file of one megabyte."""
    file = folder / "file"
    file.write_bytes(bytes(1 << 20))
    bad = Mount(type="loop", source=str(folder / "missing"))
    return Case(LoopHandler(), Mount(type="loop", source=str(file)), folder / "work", bad)


def erofs(folder: Path) -> Case:
    """An image of a folder, and a file that is no image."""
    if shutil.which("mkfs.erofs") is None or not known("erofs"):
        pytest.skip("needs mkfs.erofs and a kernel with erofs")
    (folder / "tree").mkdir()
    (folder / "tree" / "file").write_text("text")
    subprocess.run(["mkfs.erofs", "-Enosbcrc", folder / "image", folder / "tree"], check=True, capture_output=True)
    (folder / "noise").write_bytes(b"noise" * 2000)
    bad = Mount(type="erofs", source=str(folder / "noise"), options=("ro",))
    return Case(
        ErofsHandler(), Mount(type="erofs", source=str(folder / "image"), options=("ro",)), folder / "work", bad
    )


@pytest.mark.parametrize("make", [loop, erofs], ids=lambda make: make.__name__)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_mount_handler(check: Check, make: Callable[[Path], Case], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    asyncio.run(check(make(tmp_path)))
