"""The process that forks workers: what becomes of it and of them when one of all ends, hangs or lacks something."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moored.kernel.conformance import fails_with
from moored.kernel.errors import Internal, Unavailable
from moored.plugins.diff import launcher
from moored.plugins.diff.launcher import Zygote
from moored.plugins.diff.walking import APPLY_MODULE
from moored.plugins.diff.worker import LINGER_SECONDS, Crew, Worker
from unit.diff.world import END, all_children, as_root, children, done, file, names, until

pytestmark = as_root

HOLD = 30.0
"""Longer than any test takes."""


@asynccontextmanager
async def working(crew: Crew, root: Path, *, again: bool = False) -> AsyncGenerator[Worker]:
    """A worker that waits for its layer."""
    task = {"root": str(root), "lowers": None, "userxattr": False, "devices": True, "sync": False}
    async with crew.worker(APPLY_MODULE, {**task, "max_entries": 10, "max_bytes": 1 << 30}, again=again) as one:
        await until(lambda: root_of(one.pid) == root)
        yield one


def root_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/root").readlink()


def may_gain_privileges(pid: int) -> bool:
    return "NoNewPrivs:\t0" in Path(f"/proc/{pid}/status").read_text()


async def unpacks(one: Worker) -> None:
    """Have a waiting worker do its work."""
    await one.run(one.write, file(b"f", b"x") + END)
    one.end_input()
    assert (await one.result())["entries"] == 1


def descriptors(pid: int) -> list[str]:
    return sorted(path.name for path in Path(f"/proc/{pid}/fd").iterdir())


def test_crew_without_linger_has_a_zygote_only_while_a_worker_runs(tmp_path: Path) -> None:
    async def go() -> None:
        crew = Crew()
        assert crew.zygote.pid == 0
        async with working(crew, tmp_path) as first:
            async with working(crew, tmp_path) as second:
                assert sorted(all_children()) == sorted(map(str, (crew.zygote.pid, first.pid, second.pid)))
            assert str(crew.zygote.pid) in all_children()
            await unpacks(first)
        assert crew.zygote.pid == 0
        assert all_children() == []

    done(go())


def test_lingering_zygote_forks_the_next_worker_too_and_ends_with_its_crew(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path) as one:
                await unpacks(one)
            zygote = crew.zygote.pid
            assert all_children() == [str(zygote)]
            async with working(crew, tmp_path):
                assert crew.zygote.pid == zygote
        assert all_children() == []

    done(go())


def test_idle_zygote_ends_itself_and_the_next_worker_gets_another(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=0.1) as crew:
            async with working(crew, tmp_path) as one:
                await until(lambda: crew.zygote.pid == 0)
                await unpacks(one)
            async with working(crew, tmp_path) as one:
                await unpacks(one)

    done(go())


def test_workers_of_a_killed_zygote_go_on_and_the_next_gets_another(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew, working(crew, tmp_path) as before:
            zygote = crew.zygote.pid
            os.kill(zygote, signal.SIGKILL)
            async with working(crew, tmp_path) as after:
                assert crew.zygote.pid not in {0, zygote}
                await unpacks(before)
                await unpacks(after)
        assert all_children() == []

    done(go())


def test_hung_zygote_is_replaced_and_its_workers_go_on(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            crew.zygote = Zygote(HOLD, patience=2)
            async with working(crew, tmp_path) as before:
                zygote = crew.zygote.pid
                os.kill(zygote, signal.SIGSTOP)
                async with working(crew, tmp_path) as after:
                    assert crew.zygote.pid not in {0, zygote}
                    assert str(zygote) not in all_children()
                    await unpacks(before)
                    await unpacks(after)

    done(go())


def test_call_that_is_cancelled_while_its_worker_is_forked_leaves_none(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path):
                pass
            os.kill(crew.zygote.pid, signal.SIGSTOP)
            call = asyncio.ensure_future(working(crew, tmp_path).__aenter__())
            await asyncio.wait([call], timeout=0.05)
            call.cancel()
            await asyncio.wait([call], timeout=0.05)
            assert not call.done()
            os.kill(crew.zygote.pid, signal.SIGCONT)
            await asyncio.wait([call])
            assert call.cancelled()
            assert children() == []

    done(go())


def test_workers_have_their_own_descriptors_and_the_zygote_keeps_none(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew, working(crew, tmp_path) as first:
            zygote = crew.zygote.pid
            before = descriptors(zygote)
            assert len(before) == 4  # 0, 1, 2 and the requests
            async with working(crew, tmp_path) as second:
                # 0, 1, 2, the report and the root
                assert [len(descriptors(one.pid)) for one in (first, second)] == [5, 5]
                # its input ends though the later one lives
                await unpacks(first)
            assert descriptors(zygote) == before

    done(go())


def test_worker_is_locked_in_and_the_zygote_is_not(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew() as crew, working(crew, tmp_path) as one:
            assert root_of(one.pid) == tmp_path
            assert root_of(crew.zygote.pid) == Path("/")
            assert not may_gain_privileges(one.pid)
            assert may_gain_privileges(crew.zygote.pid)
            await unpacks(one)
            assert names(tmp_path) == ["f"]

    done(go())


def test_zygote_without_room_for_descriptors_is_an_error(tmp_path: Path) -> None:
    async def go() -> None:
        async with Crew(linger=HOLD) as crew:
            async with working(crew, tmp_path):
                pass
            resource.prlimit(crew.zygote.pid, resource.RLIMIT_NOFILE, (6, 6))
            error = await fails_with(Internal, working(crew, tmp_path).__aenter__())
            assert error.text == "cannot start a worker process: too many open files"
            assert children() == []

    done(go())


def test_zygote_that_always_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_MODULE", "moored.kernel.errors")

    async def go() -> None:
        await fails_with(Unavailable, working(Crew(), tmp_path).__aenter__())
        assert all_children() == []

    done(go())


def test_zygote_that_cannot_be_started_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))

    async def go() -> None:
        error = await fails_with(Internal, working(Crew(), tmp_path).__aenter__())
        assert error.text == "cannot start the zygote of worker processes: No such file or directory"

    done(go())


def test_linger_of_a_daemon_is_a_minute() -> None:
    assert LINGER_SECONDS == 60


PARENT = """
import asyncio, sys
from pathlib import Path
from moored.plugins.diff.worker import Crew

async def main():
    task = {"root": sys.argv[1], "lowers": None, "userxattr": False, "devices": True, "sync": False}
    async with Crew(linger=1000) as crew:
        async with crew.worker("moored.plugins.diff.apply.process", {**task, "max_entries": 1, "max_bytes": 1}) as one:
            while str(Path(f"/proc/{one.pid}/root").readlink()) != sys.argv[1]:
                await asyncio.sleep(0.005)
            print(crew.zygote.pid, one.pid, flush=True)
            await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_zygote_and_workers_end_with_a_killed_daemon(tmp_path: Path, stopped: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        ends = [os.pidfd_open(pid) for pid in pids]
        try:
            if stopped:
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
            parent.kill()
            for end in ends:
                assert select.select([end], [], [], 10)[0], "the process lives on"
        finally:
            for end in ends:
                os.close(end)
