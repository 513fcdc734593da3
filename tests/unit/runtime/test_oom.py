"""Out of memory in a container's cgroup is told once for each time, and watching leaves nothing behind."""

import errno
import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from moored.plugins.runtime.shim import oom
from moored.plugins.runtime.shim.cgroups import Cgroups
from moored.plugins.runtime.shim.loop import Loop
from unit.runtime.processes import clean_loop, run, shell, until

MEMORY = Path("/sys/fs/cgroup/memory")
UNIFIED = Path("/sys/fs/cgroup/unified")
NULL = (0, 1, 2)

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="makes cgroups")]
on_v1 = pytest.mark.skipif(not (MEMORY / "cgroup.procs").exists(), reason="there is no cgroup v1")
on_v2 = pytest.mark.skipif(not (UNIFIED / "cgroup.procs").exists(), reason="there is no cgroup v2 beside v1")


@pytest.fixture
def loop() -> Generator[Loop]:
    with clean_loop() as made:
        yield made


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Generator[Path]:
    path: Path = request.param / f"moored-test-oom-{os.getpid()}"
    path.mkdir()
    yield path
    if path.exists():
        remove(path)


def remove(folder: Path) -> None:
    """Remove a cgroup, which is busy for as long as what was killed in it still ends."""
    deadline = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def greedy(folder: Path) -> str:
    """Use more memory than there is, inside a cgroup."""
    return f"echo $$ > {folder}/cgroup.procs; head -c 100000000 /dev/zero | tail -c 100000000 > /dev/null"


@on_v1
@pytest.mark.parametrize("folder", [MEMORY], indirect=True)
def test_each_kill_in_v1_is_told(loop: Loop, folder: Path) -> None:
    (folder / "memory.limit_in_bytes").write_text("8M")
    told: list[int] = []

    async def main() -> None:
        watch = oom.watch(loop, Cgroups(controllers={"memory": str(folder)}), lambda: told.append(1))
        assert watch is not None
        for _ in range(2):
            assert await shell(loop, greedy(folder), NULL) == 128 + 9
            await until(loop, lambda: bool(told))
            told.clear()  # the kernel tells a kill again while what it killed still ends
        watch.close()
        watch.close()

    run(loop, main())


@on_v1
@pytest.mark.parametrize("folder", [MEMORY], indirect=True)
def test_removal_of_a_cgroup_in_v1_is_no_kill(loop: Loop, folder: Path) -> None:
    told: list[int] = []

    async def main() -> None:
        watch = oom.watch(loop, Cgroups(controllers={"memory": str(folder)}), lambda: told.append(1))
        assert watch is not None
        remove(folder)
        await until(loop, watch.over)

    run(loop, main())
    assert told == []


@on_v2
@pytest.mark.parametrize("folder", [UNIFIED], indirect=True)
def test_number_in_a_file_of_events_that_rises_is_told(loop: Loop, folder: Path) -> None:
    told: list[int] = []

    async def main() -> None:
        watch = oom.watch_rise(loop, f"{folder}/cgroup.events", "populated", lambda: told.append(1))
        inside = shell(loop, f"echo $$ > {folder}/cgroup.procs; exec sleep 60", NULL)
        await until(loop, lambda: len(told) == 1)
        os.kill(int((folder / "cgroup.procs").read_text()), 15)
        await inside
        await until(loop, lambda: "populated 0" in (folder / "cgroup.events").read_text())
        await loop.sleep(0.03)  # the kernel tells within 10 ms that it fell, which is not to be told
        watch.close()
        await until(loop, watch.over)

    run(loop, main())
    assert len(told) == 1


@on_v2
@pytest.mark.parametrize("folder", [UNIFIED], indirect=True)
def test_watching_costs_nothing_while_nothing_happens(loop: Loop, folder: Path) -> None:
    turns = [0]
    turn = loop._turn

    def counted() -> None:
        turns[0] += 1
        turn()

    async def main() -> None:
        watch = oom.watch_rise(loop, f"{folder}/cgroup.events", "populated", lambda: None)
        await loop.sleep(0.05)
        watch.close()

    loop._turn = counted  # type: ignore[method-assign]
    run(loop, main())
    assert turns[0] < 30


def test_without_a_memory_cgroup_nothing_is_watched(loop: Loop, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    for cgroups in (Cgroups(), Cgroups(unified=gone), Cgroups(controllers={"memory": gone})):
        assert oom.watch(loop, cgroups, lambda: None) is None


def test_watch_closed_at_once_leaves_nothing_open(loop: Loop) -> None:
    async def main() -> None:
        if (MEMORY / "cgroup.event_control").exists():
            watch = oom.watch(loop, Cgroups(controllers={"memory": str(MEMORY)}), lambda: None)
        else:
            watch = oom.watch_rise(loop, "/sys/fs/cgroup/cgroup.events", "populated", lambda: None)
        assert watch is not None
        watch.close()
        await until(loop, watch.over)

    run(loop, main())
