"""A real registry of its own, on a free port of this host, in plain HTTP."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REGISTRY = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(not REGISTRY, reason="needs docker-registry")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Start the registry below a new folder; its address, `localhost:PORT`."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(REGISTRY), "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/v2/", process, folder / "log")
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)


def requests(folder: Path) -> list[str]:
    """What the registry has been asked, as `METHOD STATUS PATH`."""
    found = []
    for line in (folder / "log").read_text().splitlines():
        if '"' in line and " HTTP/1.1" in line and line.startswith(("127.0.0.1", "::1", "[::1]")):
            method, path, _ = line.split('"')[1].split(" ", 2)
            found.append(f"{method} {line.split(chr(34))[2].split()[0]} {path}")
    return found
