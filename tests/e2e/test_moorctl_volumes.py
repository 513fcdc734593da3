"""`moorctl run` and volumes: filled from the image at their first use, made for an image's VOLUMEs, gone with --rm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.moorctl import IMAGE, Moorctl, moorctl, needs_moorctl, nothing_is_left

pytestmark = [*needs_moorctl, pytest.mark.usefixtures("nothing_of_moorctl_is_left")]
QUICK = ("run", "--rm", "--net", "none")
DECLARING = "test/declaring:1"


@pytest.fixture(scope="module")
def world() -> Iterator[Moorctl]:
    with moorctl() as made:
        made.does("create", "--name", "base", "--net", "none", IMAGE, "true")
        folder = made.place.folder / "data"
        folder.mkdir()
        (folder / "first").write_text("of the image\n")
        (folder / "link").symlink_to("/etc/passwd")
        made.does("cp", folder, "base:/")
        made.does("commit", "-c", 'VOLUME ["/data", "/none/there"]', "base", DECLARING)
        made.does("rm", "base")
        try:
            yield made
        finally:
            made.does("rmi", DECLARING)


@pytest.fixture
def nothing_of_moorctl_is_left(world: Moorctl) -> Iterator[None]:
    yield
    nothing_is_left(world)
    world.does("prune", "-f", "--volumes")
    assert volumes(world) == []


def volumes(world: Moorctl) -> list[Path]:
    return sorted(Path(world.env["MOORCTL_ROOT"]).glob("*/*/volumes/*"))


def test_a_new_volume_has_what_the_image_has_in_its_place(world):
    world.does(*QUICK, "-v", "etc:/etc", IMAGE, "rm", "/etc/group")

    assert world.does(*QUICK, "-v", "etc:/x", IMAGE, "ls", "/x").split() == [
        "hostname",
        "hosts",
        "passwd",
        "resolv.conf",
    ]


def test_a_volume_that_was_used_is_not_filled_again(world):
    world.does(*QUICK, "-v", "etc:/etc", IMAGE, "sh", "-c", "rm /etc/passwd /etc/group")

    assert world.does(*QUICK, "-v", "etc:/etc", IMAGE, "ls", "/etc").split() == ["hostname", "hosts", "resolv.conf"]


def test_a_volume_that_has_files_is_not_filled(world):
    world.does(*QUICK, "-v", "mine:/mine:nocopy", IMAGE, "touch", "/mine/f")

    assert world.does(*QUICK, "-v", "mine:/data", DECLARING, "ls", "/data") == "f\n"


@pytest.mark.parametrize("flags", [("-v", "n:/data:nocopy"), ("--mount", "target=/data,source=n,volume-nocopy")])
def test_a_volume_stays_empty_where_that_is_wanted(world, flags):
    assert world.does(*QUICK, *flags, DECLARING, "ls", "/data") == ""


def test_modes_and_owners_come_along(world):
    world.does(*QUICK, "-v", "t:/tmp", IMAGE, "sh", "-c", ":")

    data = volumes(world)[0] / "_data"
    assert data.stat().st_mode & 0o7777 == 0o1777


def test_links_of_the_image_are_copied_and_not_followed(world):
    world.does(*QUICK, "-v", "d:/data", DECLARING, "sh", "-c", ":")

    data = volumes(world)[0] / "_data"
    assert (data / "link").is_symlink()
    assert (data / "first").read_text() == "of the image\n"


def test_a_place_that_is_a_link_in_the_image_is_looked_for_in_the_image(world, tmp_path):
    (tmp_path / "linked").symlink_to("/etc")
    with world.running() as name:
        world.does("cp", tmp_path / "linked", f"{name}:/linked")
        world.does("commit", name, "test/linked:1")
    try:
        found = world.does(*QUICK, "-v", "v:/linked", "test/linked:1", "ls", "/etc")
    finally:
        world.does("rmi", "test/linked:1")

    assert "passwd" in found
    copied = {path.name for path in (volumes(world)[0] / "_data").iterdir()}
    assert {"passwd", "group"} <= copied
    assert not (volumes(world)[0] / "_data" / "fstab").exists()


def test_the_volumes_that_an_image_declares_are_made_filled_and_gone_with_the_container(world):
    out = world.does(*QUICK, DECLARING, "sh", "-c", "cat /data/first; touch /none/there/x; ls /none/there")

    assert out == "of the image\nx\n"
    assert volumes(world) == []


def test_a_mount_takes_the_place_of_a_declared_volume(world, tmp_path):
    (tmp_path / "own").write_text("")

    assert world.does(*QUICK, "-v", f"{tmp_path}:/data", DECLARING, "ls", "/data") == "own\n"


def test_a_detached_containers_volumes_go_when_it_is_removed(world):
    world.does("run", "-d", "--name", "v", "--net", "none", DECLARING, "sleep", "600")
    assert len(volumes(world)) == 2

    world.does("rm", "-f", "-v", "v")

    assert volumes(world) == []


def test_declared_volumes_stay_where_that_is_wanted(world):
    world.does("run", "-d", "--name", "v", "--net", "none", DECLARING, "sleep", "600")

    world.does("rm", "-f", "--keep-volumes", "v")

    assert len(volumes(world)) == 2


def test_containers_that_start_at_once_share_one_filling(world):
    words = world.command(*QUICK, "-v", "shared:/data", DECLARING, "cat", "/data/first")
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=world.environment())
        for _ in range(4)
    ]

    ended = [process.communicate(timeout=60) for process in running]

    assert [out for out, _ in ended] == [b"of the image\n"] * 4, ended


def test_a_volume_that_cannot_be_filled_leaves_no_container(world, tmp_path):
    (tmp_path / "cp").write_text("#!/bin/sh\necho no room >&2; exit 1\n")
    (tmp_path / "cp").chmod(0o755)

    done = world.run(*QUICK, "-v", "d:/data", DECLARING, "true", PATH=f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")

    assert done.status == 125
    assert "'/data' of the image cannot be copied to volume 'd': no room" in done.err
