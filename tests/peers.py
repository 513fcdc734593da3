"""Debian's containerd and its client as peers of tests: started on private paths, stopped by pid."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CONTAINERD = shutil.which("containerd")
CTR = shutil.which("ctr")

needs_containerd = [
    pytest.mark.peer,
    pytest.mark.root,
    pytest.mark.skipif(not CONTAINERD or not CTR or os.geteuid() != 0, reason="needs root and Debian's containerd"),
]
"""Marks of tests that start it."""


@contextmanager
def containerd(folder: Path, binary: str | None = CONTAINERD, config: str = "") -> Iterator[Path]:
    """A containerd of its own, below `folder` (root and state are there), with further sections; gives its socket."""
    folder.mkdir(exist_ok=True)
    config = f"""
version = 2
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
{config}"""
    (folder / "config.toml").write_text(config)
    address = folder / "c.sock"
    paths = ["-c", folder / "config.toml", "--root", folder / "root", "--state", folder / "state", "-a", address]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(binary), *map(str, paths)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while subprocess.run([str(CTR), "-a", address, "version"], capture_output=True, check=False).returncode:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
        yield address
    finally:
        process.terminate()
        process.wait(30)


def ctr(address: Path, *words: str, data: bytes = b"", binary: str | None = CTR) -> str:
    """What ctr prints; AssertionError with its standard error if it fails."""
    done = subprocess.run([str(binary), "-a", address, *words], input=data, capture_output=True, check=False)
    assert done.returncode == 0, f"ctr {' '.join(words)}: {done.stderr.decode()}"
    return done.stdout.decode()


def collect_garbage(address: Path) -> None:
    """A collection that has ended when this returns; without it what is left unreferenced is a matter of moments."""
    ctr(address, "leases", "create", "--id", "gone")
    ctr(address, "leases", "delete", "--sync", "gone")
