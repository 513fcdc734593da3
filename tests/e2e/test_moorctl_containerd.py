"""`moorctl` with a daemon that is not moored: Debian's containerd, which lacks what later ones have."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.containers import short_folder
from e2e.moorctl import IMAGE, Moorctl, client, free_of, needs_moorctl
from peers import containerd, needs_containerd

pytestmark = [*needs_moorctl, *needs_containerd]


@pytest.fixture(scope="module")
def world() -> Iterator[Moorctl]:
    with short_folder() as folder, containerd(folder / "d") as address, client(folder, address) as made:
        yield made


def test_containers_run_there_as_with_moored(world):
    done = world.run("run", "--rm", "-i", "--net", "none", IMAGE, "sh", "-c", "cat; exit 5", data=b"x" * 200_000)

    assert (done.status, len(done.out)) == (5, 200_000)
    assert free_of(world) == []


def test_detached_containers_have_a_log_there(world):
    with world.running("sh", "-c", "echo hello; sleep 600") as name:
        world.log_has(name, "hello")

        assert world.does("exec", name, "echo", "more") == "more\n"
        assert world.json("ps")["containers"][0]["status"] == "running"
        world.does("stop", "-t", "0", name)
    assert free_of(world) == []


def test_rm_removes_there_too(world):
    world.does("run", "-d", "--rm", "--name", "short", "--net", "none", IMAGE, "echo", "x")

    world.becomes("short", "")


def test_images_and_the_daemon_are_told_about(world):
    assert world.json("images")["images"][0]["name"] == IMAGE
    assert world.json("info")["server"]["version"].startswith("1.6")
    assert "is not moored" in world.run("plugins", "ls").err
