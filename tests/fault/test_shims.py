"""The manager is killed at every step of making and deleting a task: the next one leaves nothing half-done."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.errors import NotFound
from moored.kernel.ports.tasks import Status
from moored.plugins.runtime.manager.leftovers import remove_empty_cgroup
from shims import CGROUPS, OWN, SHIMS, Place, fake, needs_runc, place, shim_name

pytestmark = needs_runc
LOAD = Path(__file__).with_name("shim_load.py")


@pytest.fixture
def here() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="mb") as folder, place(Path(folder)) as one:
        yield one


def environment() -> dict[str, str]:
    """Variables with which the load finds its modules."""
    path = os.pathsep.join((*(one for one in sys.path if one), str(LOAD.parents[1])))
    return {**os.environ, "PYTHONPATH": path}


def killed_at(here: Place, runtime: str, step: int) -> str:
    """Run the load up to a step; the step's name, "" if there is none of that number."""
    done = subprocess.run(
        [sys.executable, "-S", LOAD, here.folder, here.namespace, runtime, str(step)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (-signal.SIGKILL, 0), done.stderr
    Path(here.daemon.ttrpc).unlink(missing_ok=True)
    return done.stdout.strip() if done.returncode else ""


async def recovered(here: Place, runtime: str) -> None:
    """Start a manager on what is left: a task that was made can be used, of any other nothing is there."""
    async with here.world() as world:
        for undoing in tuple(world.runtime._undoing.values()):
            await asyncio.wait([undoing])
        with suppress(NotFound):
            # a shim that is just ending answers nothing, and is gone soon
            async with asyncio.timeout(20):
                while (await world.runtime.get("c").state()).status is Status.UNKNOWN:
                    await asyncio.sleep(0.01)
            await world.runtime.get("c").delete()
        async with asyncio.timeout(20):
            while world.runtime.list():  # a shim without its container is being ended
                await asyncio.sleep(0.01)
        # the name is free, and the machinery works
        again = await world.runtime.create("c", here.new(runtime, "true"))
        await again.delete()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("shim", [*SHIMS, OWN], ids=shim_name)
def test_manager_killed_at_any_step_leaves_nothing(here: Place, shim: str) -> None:
    names = []
    # a 2.x shim differs little: some steps are enough
    for step in range(1, 100, 3 if shim_name(shim) == "2.x" else 1):
        name = killed_at(here, shim, step)
        if not name:
            break
        names.append(name)
        on_loop(lambda: recovered(here, shim))()
        try:
            here.assert_clean()
        except AssertionError as error:
            raise AssertionError(f"killed {name}: {error}") from error
    if shim_name(shim) == "2.x":
        assert len(names) > 5
        return
    assert {"before make", "before start", "after start", "before create", "after create", "before remove"} <= set(
        names
    )


def test_start_that_outlives_the_manager_is_ended_by_the_next_one(here: Place) -> None:
    shim = fake(here.folder, sleep=60)
    process = subprocess.Popen(
        [sys.executable, "-S", LOAD, here.folder, here.namespace, shim, "1000"], env=environment()
    )
    calls = Path(f"{shim}.calls")
    while not calls.exists() or "start" not in calls.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    Path(here.daemon.ttrpc).unlink()

    @on_loop
    async def main() -> None:
        assert len(here.processes()) == 1
        async with here.world() as world:
            for undoing in tuple(world.runtime._undoing.values()):
                await asyncio.wait([undoing])
            assert here.processes() == []
            assert world.runtime.list() == []

    main()


def test_empty_cgroup_of_an_unfinished_create_is_removed_and_no_other(here: Place) -> None:
    hierarchy = next(path for path in (CGROUPS / "pids", CGROUPS) if path.is_dir())
    empty, used = hierarchy / here.namespace / "c", hierarchy / here.namespace / "c1/inner"
    for folder in (empty, used):
        folder.mkdir(parents=True)
    for path in (f"/{here.namespace}/c", f"/{here.namespace}/c1", "/", "", "/..", "slice:x:y", "relative"):
        remove_empty_cgroup(path)
    assert not empty.exists()
    assert used.exists()
    for folder in (used, used.parent):
        folder.rmdir()
