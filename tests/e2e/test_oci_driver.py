"""A driver of an OCI runtime from a package of its own: installed by pip, chosen by config, used by a real client."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemons import Daemon, outcome
from e2e.containers import World, imported, short_folder
from leftovers import Place
from peers import CTR, needs_containerd

pytestmark = [*needs_containerd, pytest.mark.skipif(not shutil.which("busybox"), reason="needs a static busybox")]

CONFIG = """
version = 4
[plugins."io.moored.oci-runtime.v1.logbook"]
path = {path}
runtime = "crun"
[plugins."io.containerd.runtime.v2.task".runtimes]
"io.containerd.runc.v2" = "runc"
"io.example.logbook.v1" = "logbook"
"""
URI = "io.moored.oci-runtime.v1.logbook"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(folder: Path, environment: Callable[..., str]) -> Iterator[Daemon]:
    config = CONFIG.format(path=json.dumps(str(folder / "calls")))
    with Daemon(folder, config, python=environment("logbook")) as running:
        yield running


@pytest.fixture(scope="module")
def world(folder: Path, daemon: Daemon) -> Iterator[World]:
    place = Place(folder, f"test-logbook-{os.getpid()}", daemon.socket)
    with imported(World(str(CTR), place, "crun", ("--runtime", "io.example.logbook.v1"), daemon.log)) as made:
        yield made


def verbs(folder: Path) -> list[str]:
    """The driver and the verb of each call that the package has written down."""
    known = ("create", "start", "exec", "kill", "delete", "ps", "pause", "resume")
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return [f"{line.split()[0]} {next(word for word in line.split() if word in known)}" for line in lines]


def test_driver_appears_with_its_distribution(daemon: Daemon) -> None:
    plugin = daemon.plugins()[URI]

    assert (outcome(plugin), plugin.distribution) == ("ok", "moored-logbook")


def test_every_call_goes_through_the_package(world: World, folder: Path) -> None:
    (folder / "calls").unlink(missing_ok=True)

    with world.running() as id_:
        done = world.ctr("task", "exec", "--exec-id", "e", id_, "sh", "-c", "exit 7")
        world.does("task", "kill", "-s", "SIGKILL", id_)
        world.becomes(id_, "STOPPED")

    assert done.status == 7
    assert verbs(folder)[:4] == ["crun create", "crun start", "crun exec", "crun kill"]
    assert "crun delete" in verbs(folder)


def test_other_runtimes_stay_what_they_were(world: World, folder: Path) -> None:
    (folder / "calls").unlink(missing_ok=True)

    done = world.ctr("run", "--rm", "docker.io/test/busybox:latest", world.new(), "echo", "plain")

    assert (done.status, done.out) == (0, "plain\n")
    assert verbs(folder) == []
