"""Real metadata of Debian's containerd, carried over and back."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from peers import collect_garbage, containerd, ctr, needs_containerd

pytestmark = needs_containerd


def moored(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "moored.kernel.daemon.main", "--root", str(root), "metadata", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fill(address: Path) -> None:
    """One object of each kind that lasts, in two namespaces."""
    collect_garbage(address)  # the one that follows a start would take what has no label yet
    for namespace in ("default", "other"):
        ctr(address, "-n", namespace, "namespaces", "label", namespace, "tier=test")
        ctr(address, "-n", namespace, "leases", "create", "--id", f"lease-{namespace}", "why=test")
        content = namespace.encode() * 1000
        ctr(address, "-n", namespace, "content", "ingest", f"ref-{namespace}", data=content)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        ctr(address, "-n", namespace, "content", "label", digest, "containerd.io/gc.root=test")
        ctr(address, "-n", namespace, "snapshots", "--snapshotter", "native", "prepare", "work")
        ctr(address, "-n", namespace, "snapshots", "--snapshotter", "native", "commit", "base", "work")
        ctr(address, "-n", namespace, "snapshots", "--snapshotter", "native", "prepare", "on-top", "base")


def listed(address: Path) -> list[str]:
    kinds = (("leases", "ls", "-q"), ("content", "ls", "-q"), ("snapshots", "--snapshotter", "native", "tree"))
    each = [ctr(address, "-n", namespace, *words) for namespace in ("default", "other") for words in kinds]
    return [ctr(address, "namespaces", "ls"), *each]


def test_metadata_survives_the_way_over_and_back(tmp_path: Path) -> None:
    source, back, root = tmp_path / "source", tmp_path / "back", tmp_path / "moored"
    with containerd(source) as address:
        fill(address)
        before = listed(address)

    imported = moored(root, "import", str(source / "root"))
    back.mkdir()
    shutil.copytree(source / "root", back / "root", symlinks=True)
    for name in ("io.containerd.metadata.v1.bolt/meta.db", "io.containerd.snapshotter.v1.native/metadata.db"):
        (back / "root" / name).unlink()
        assert name in imported.stdout
    for leftover in (back / "root").glob("*/metadata.db"):
        leftover.unlink()
    exported = moored(root, "export", str(back / "root"))

    assert (imported.returncode, exported.returncode) == (0, 0), imported.stderr + exported.stderr
    with containerd(back) as address:
        assert listed(address) == before


def test_import_refuses_a_running_containerd_and_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "moored"
    with containerd(tmp_path / "source"):
        done = moored(root, "import", str(tmp_path / "source" / "root"))

    assert done.returncode == 1
    assert "stop its daemon first" in done.stderr
    assert not root.exists()


def test_import_refuses_a_root_that_has_metadata(tmp_path: Path) -> None:
    root = tmp_path / "moored"
    with containerd(tmp_path / "source") as address:
        fill(address)
    file = tmp_path / "source" / "root" / "io.containerd.metadata.v1.bolt" / "meta.db"
    assert moored(root, "import", str(file)).returncode == 0

    again = moored(root, "import", str(file))

    assert again.returncode == 1
    assert "new root only" in again.stderr


def test_import_of_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    root, file = tmp_path / "moored", tmp_path / "meta.db"
    file.write_bytes(os.urandom(8192))

    done = moored(root, "import", str(file))

    assert done.returncode == 1
    assert str(file) in done.stderr
    assert sorted(path.name for path in root.iterdir()) == ["moored.lock"]
