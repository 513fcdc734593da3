"""Plugins in other processes, of which the daemon knows no more than their sockets, used by real clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemons import Daemon, outcome
from e2e.images import BASE, CTRS, NAME, needs_image_tools, tree, umoci_image, unpacked, unpacking, whiteouts
from peers import collect_garbage, containerd, ctr
from remote_snapshotter import serving

pytestmark = needs_image_tools


@contextmanager
def with_far_snapshotter(folder: Path) -> Generator[tuple[Daemon, Path]]:
    """A daemon with the snapshotter `far`, and the folder of that one's process."""
    socket, files = folder / "far.sock", folder / "far"
    config = f'version = 4\n[proxy_plugins.far]\ntype = "snapshot"\naddress = "{socket}"\n'
    with serving(files, socket), Daemon(folder, config + unpacking("native", "far", version="")) as daemon:
        yield daemon, files


@pytest.mark.parametrize("binary", CTRS)
def test_image_is_unpacked_by_a_snapshotter_in_another_process(tmp_path: Path, binary: str) -> None:
    archive = umoci_image(tmp_path)
    with with_far_snapshotter(tmp_path) as (daemon, files):
        assert outcome(daemon.plugins()["io.containerd.snapshotter.v1.far"]) == "ok"
        trees = []
        for snapshotter in ("native", "far"):
            words = ["images", "import", "--base-name", BASE, "--snapshotter", snapshotter]
            ctr(daemon.socket, *words, str(archive), binary=binary)
            with unpacked(daemon.socket, snapshotter, tmp_path / f"mnt-{snapshotter}") as folder:
                trees.append(tree(folder))
        there = ctr(daemon.socket, "snapshots", "--snapshotter", "far", "ls", binary=binary).splitlines()[1:]
        kept = sorted(path.name for path in (files / "snapshots").iterdir())
        ctr(daemon.socket, "images", "rm", NAME, binary=binary)
        collect_garbage(daemon.socket)
        left = ctr(daemon.socket, "snapshots", "--snapshotter", "far", "ls", binary=binary).splitlines()[1:]
        files_left = sorted(path.name for path in (files / "snapshots").iterdir())

    assert trees[0]
    assert trees[1] == trees[0]
    assert [line.split()[-1] for line in there].count("Committed") == 2
    assert len(kept) >= 2
    assert (left, files_left) == ([], [])


def test_snapshotter_in_another_process_may_be_away_for_a_while(tmp_path: Path) -> None:
    socket, files = tmp_path / "far.sock", tmp_path / "far"
    config = f'version = 4\n[proxy_plugins.far]\ntype = "snapshot"\naddress = "{socket}"\n'
    snapshots = ("snapshots", "--snapshotter", "far")
    with Daemon(tmp_path, config) as daemon:
        with pytest.raises(AssertionError, match=str(socket)):
            ctr(daemon.socket, *snapshots, "prepare", "early")
        with serving(files, socket):
            once_it_is_back(lambda: ctr(daemon.socket, *snapshots, "prepare", "a"))
            ctr(daemon.socket, *snapshots, "commit", "base", "a")
        with pytest.raises(AssertionError, match="unavailable"):
            ctr(daemon.socket, *snapshots, "info", "base")
        with serving(files, socket):
            once_it_is_back(lambda: ctr(daemon.socket, *snapshots, "prepare", "b", "base"))
            listed = ctr(daemon.socket, *snapshots, "ls").splitlines()[1:]

    assert [line.split() for line in listed] == [["b", "base", "Active"], ["base", "Committed"]]


def once_it_is_back(call: Callable[[], str]) -> None:
    """The connection is tried again every second at the latest."""
    deadline = time.monotonic() + 10
    while True:
        try:
            call()
        except AssertionError as error:
            if "unavailable" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return


def test_containerd_is_a_differ_of_the_daemon(tmp_path: Path) -> None:
    """Its answers are about its own blobs, so both daemons are given the layer."""
    archive = whiteouts(tmp_path)
    with containerd(tmp_path / "peer") as peer:
        config = (
            f'version = 4\n[proxy_plugins.far]\ntype = "diff"\naddress = "{peer}"\n'
            '[plugins."io.containerd.service.v1.diff-service"]\ndefault = ["far"]\n'
        )
        with Daemon(tmp_path, config) as daemon:
            ctr(peer, "images", "import", "--no-unpack", "--base-name", BASE, str(archive))
            ctr(daemon.socket, "images", "import", "--base-name", BASE, "--snapshotter", "native", str(archive))
            with unpacked(daemon.socket, "native", tmp_path / "mnt") as folder:
                found = sorted(tree(folder))

    assert found == ["full", "full/new", "gone", "kept"]
