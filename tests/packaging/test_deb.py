"""The Debian package: it installs, upgrades without stopping containers, and removes itself cleanly."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.busybox import BUSYBOX, busybox_image

CHECKOUT = Path(__file__).parents[2]
LIFE = Path(__file__).with_name("deb_life.sh")
DEBIAN_PYTHON = Path("/usr/bin/python3")

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb"),
    pytest.mark.skipif(not shutil.which("ctr"), reason="needs ctr"),
    pytest.mark.skipif(not BUSYBOX, reason="needs busybox-static"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are, or are about to be, committed: a build writes into its folder."""
    copy = tmp_path_factory.mktemp("deb") / "moored"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
    ).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, names)):
        source, target = CHECKOUT / name, copy / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def package(checkout: Path) -> Path:
    """The package, built as its users build it."""
    build = subprocess.run(
        ["contrib/debian/build"], cwd=checkout, check=True, capture_output=True, text=True, timeout=300
    )
    return checkout / build.stdout.splitlines()[-1]


def later(package: Path, folder: Path) -> Path:
    """The same under a later version."""
    unpacked = folder / "unpacked"
    subprocess.run(["dpkg-deb", "-R", package, unpacked], check=True)
    control = unpacked / "DEBIAN/control"
    control.write_text(control.read_text().replace("Version: ", "Version: 99.", 1))
    subprocess.run(["dpkg-deb", "-b", "-Znone", unpacked, folder / "later.deb"], check=True, capture_output=True)
    return folder / "later.deb"


def test_the_package_names_no_place_of_its_build(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)

    programs = tmp_path / "usr/lib/moored/bin"
    assert (programs / "moored").read_text().startswith("#!/usr/lib/moored/bin/python")
    found = subprocess.run(["grep", "-rlF", "/tmp/", programs], check=False, capture_output=True, text=True)
    assert found.stdout == ""


def test_a_container_survives_an_upgrade_and_a_removal_leaves_only_state(package: Path, tmp_path: Path) -> None:
    image = busybox_image(tmp_path / "image.tar")
    work = tmp_path / "work"
    work.mkdir()

    life = subprocess.run(
        [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "bash",
            LIFE,
            work,
            package,
            later(package, tmp_path),
            image,
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert life.returncode == 0, life.stdout + life.stderr
    told = dict(line.partition(": ")[::2] for line in life.stdout.splitlines())
    assert told["installed"].startswith("install ok installed")
    assert told["upgraded"].startswith("99.")
    assert told["kept"] == "kept, running: kept RUNNING"
    assert told["exec"] == "still here"
    assert "config kept" in told
    assert told["removed"] == "0"
    assert told["state kept"] == "1"
    assert told["purged"] == "0"
