"""A real containerd, old and new, runs containers through `containerd-shim-moored-v2`, and nothing is left of them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import peers
from leftovers import Place, nothing_left
from peers import containerd, needs_containerd
from shimworld import BUSYBOX, RUNTIMES

pytestmark = [
    *needs_containerd,
    pytest.mark.skipif(not BUSYBOX or "runc" not in RUNTIMES, reason="needs busybox and runc"),
]
MORE = os.environ.get("MOORED_TEST_CONTAINERDS", "").split(os.pathsep)
BINARIES = [name for name in (peers.CONTAINERD, *MORE) if name]
"""Debian's, and more of them, each with its ctr beside it."""
RUNTIME = "io.containerd.moored.v2"
IDS = ("a", "b")


@dataclass(frozen=True)
class Peer:
    """One containerd with its ctr, and where it works."""

    binary: str
    place: Place

    @property
    def run(self) -> tuple[str, ...]:
        """The arguments of `run` up to the container's id."""
        return ("--runtime", RUNTIME, "--rootfs", f"{self.place.folder}/rootfs")

    def ctr(self, *words: str, data: bytes = b"") -> str:
        """What ctr prints."""
        ctr = str(Path(self.binary).with_name("ctr"))
        return peers.ctr(self.place.address, "-n", self.place.namespace, *words, data=data, binary=ctr)


@pytest.fixture(params=BINARIES or [None], ids=str)
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """A containerd to be, on a short path, with our shim on PATH; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="ms") as name:
        folder = Path(name)
        _add_shim(folder / "bin", monkeypatch)
        _add_rootfs(folder / "rootfs")
        place = Place(folder=folder, namespace=f"ms{os.getpid()}", address=folder / "c.sock")
        before = place.found(IDS)
        try:
            yield Peer(request.param, place)
            (folder / "c.sock.ttrpc").unlink(missing_ok=True)  # which containerd 1.6 leaves
            nothing_left(place, before, IDS)
        finally:
            place.cleared(before)


def _add_shim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the program first on PATH, started as lean as an installed one can be."""
    folder.mkdir()
    program = folder / "containerd-shim-moored-v2"
    path = [str(Path(entry).absolute()) for entry in sys.path if entry]
    start = f"import sys\nsys.path[:] = {path!r}\nfrom moored.plugins.runtime.shim.main import main\nmain()\n"
    program.write_text(f"#!{sys.executable} -IS\n{start}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def _add_rootfs(root: Path) -> None:
    for one in ("bin", "dev", "proc", "sys", "tmp"):
        (root / one).mkdir(parents=True)
    shutil.copy(str(BUSYBOX), root / "bin/busybox")
    for one in ("sh", "sleep", "true", "head", "echo"):
        (root / "bin" / one).symlink_to("busybox")


def test_containers_run_and_survive_a_restart_of_the_daemon(peer: Peer) -> None:
    with containerd(peer.place.folder, peer.binary):
        before = peer.place.found(IDS)
        assert peer.ctr("run", "--rm", *peer.run, "a", "/bin/echo", "hi") == "hi\n"
        assert peer.ctr("run", "--rm", *peer.run, "a", "/bin/head", "-n1", data=b"in\n") == "in\n"
        with pytest.raises(AssertionError, match="no such file or directory"):
            peer.ctr("run", "--rm", *peer.run, "a", "/bin/missing")
        nothing_left(peer.place, before, IDS)
        peer.ctr("run", "-d", *peer.run, "b", "/bin/sleep", "1000")
        assert peer.ctr("task", "exec", "--exec-id", "x", "b", "/bin/echo", "in exec") == "in exec\n"
        peer.ctr("task", "pause", "b")
        assert "PAUSED" in peer.ctr("task", "ls")
        peer.ctr("task", "resume", "b")
    with containerd(peer.place.folder, peer.binary):
        assert "RUNNING" in peer.ctr("task", "ls")
        assert peer.ctr("task", "exec", "--exec-id", "y", "b", "/bin/echo", "again") == "again\n"
        peer.ctr("task", "kill", "-s", "9", "b")
        until(lambda: "STOPPED" in peer.ctr("task", "ls"))
        with suppress(AssertionError):  # it says by its exit status that the task's was not 0
            peer.ctr("task", "rm", "b")
        assert "b" not in peer.ctr("task", "ls", "-q").split()
        peer.ctr("container", "rm", "b")


def test_remains_of_a_killed_shim_are_removed(peer: Peer) -> None:
    with containerd(peer.place.folder, peer.binary):
        before = peer.place.found(IDS)
        peer.ctr("run", "-d", *peer.run, "a", "/bin/sleep", "1000")
        (shim,) = [line.split()[1] for line in peer.place.found() if "moored-shim" in line and "-id a " in line]
        os.kill(int(shim), 9)
        until(lambda: "a" not in peer.ctr("task", "ls", "-q").split())
        peer.ctr("container", "rm", "a")
        nothing_left(peer.place, before, IDS)


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that comes soon."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
