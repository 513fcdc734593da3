"""Images that other tools made: imported by real clients, beside Debian's containerd, down to the files' metadata."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path

import pytest

from daemons import Daemon
from e2e.images import (
    BASE,
    CTRS,
    IMAGES,
    NAME,
    Maker,
    many_layers,
    needs_image_tools,
    tree,
    umoci_image,
    unpacked,
    without_made_up_times,
)
from peers import CONTAINERD, collect_garbage, containerd, ctr
from unit.snapshots.world import place_for

pytestmark = needs_image_tools


def newer_containerd() -> str:
    """A containerd of 1.7 or later, which Debian's is not."""
    return os.environ.get("MOORED_TEST_CONTAINERDS", "").partition(os.pathsep)[0]


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native", "btrfs", "blockfile"])
def test_unpacked_image_equals_containerds_file_by_file(tmp_path: Path, make: Maker, snapshotter: str) -> None:
    if make is many_layers and snapshotter != "overlayfs":
        pytest.skip("128 layers that are whole file systems show nothing more than 3")
    binary = newer_containerd() if snapshotter == "blockfile" else CONTAINERD
    if not binary:
        pytest.skip("needs a containerd that has the snapshotter, in MOORED_TEST_CONTAINERDS")
    archive = make(tmp_path)
    began = time.time_ns()
    trees, contents = [], []
    config = f'[plugins."io.containerd.snapshotter.v1.blockfile"]\nscratch_file = "{tmp_path}/scratch"\n'
    config = config if snapshotter == "blockfile" else ""
    with (
        place_for(snapshotter, tmp_path) as place,
        containerd(place / "peer", binary, config) as theirs,
        Daemon(place, f"version = 4\n{config}") as daemon,
    ):
        for number, address in enumerate((theirs, daemon.socket)):
            words = ["images", "import", "--base-name", BASE, "--snapshotter", snapshotter]
            ctr(address, *words, str(archive))
            with unpacked(address, snapshotter, tmp_path / f"mnt{number}") as folder:
                trees.append(tree(folder))
            collect_garbage(address)
            contents.append(sorted(ctr(address, "content", "ls", "-q").split()))

    assert trees[0]
    assert trees[1] == without_made_up_times(trees[1], trees[0], began)
    assert contents[1] == contents[0]


@pytest.mark.parametrize("binary", CTRS)
def test_image_goes_in_and_out_and_leaves_nothing(tmp_path: Path, binary: str) -> None:
    archive = umoci_image(tmp_path)
    with Daemon(tmp_path) as daemon:
        ctr(daemon.socket, "images", "import", "--base-name", BASE, str(archive), binary=binary)
        ctr(daemon.socket, "images", "tag", NAME, f"{BASE}:second", binary=binary)
        ctr(daemon.socket, "images", "label", NAME, "tier=test", binary=binary)
        listed = ctr(daemon.socket, "images", "ls", binary=binary)
        ctr(daemon.socket, "images", "export", str(tmp_path / "out.tar"), NAME, binary=binary)
        ctr(daemon.socket, "images", "rm", "--sync", NAME, f"{BASE}:second", binary=binary)
        left = [
            ctr(daemon.socket, "content", "ls", "-q", binary=binary),
            ctr(daemon.socket, "images", "ls", "-q", binary=binary),
            *ctr(daemon.socket, "snapshots", "ls", binary=binary).splitlines()[1:],
        ]
        blobs = list((daemon.root / "io.containerd.content.v1.content" / "blobs").rglob("*"))

    assert "tier=test" in listed
    assert f"{BASE}:second" in listed
    with tarfile.open(tmp_path / "out.tar") as exported:
        assert {"index.json", "oci-layout", "manifest.json"} <= {
            name.removeprefix("./") for name in exported.getnames()
        }
    assert [line for line in left if line.strip()] == []
    assert [path for path in blobs if path.is_file()] == []
