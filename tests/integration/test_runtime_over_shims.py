"""The task runtime over containerd's own shims, of 1.6 and 2.x, with runc: every call of the port, and every death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from harness import on_loop
from moored.kernel.errors import AlreadyExists, MooredError, NotFound, Unavailable
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.tasks import Status, Stdio, Task
from moored.plugins.runtime.manager.bundle import Bundle
from moored.plugins.runtime.manager.shim import Deadlines
from shims import OWN, SHIMS, Place, needs_runc, place, shim_name, shim_pid, wait_for_end

pytestmark = needs_runc
PROCESS = "types.containerd.io/opencontainers/runtime-spec/1/Process"
QUICK = Deadlines(state=0.3, cleanup=5, shutdown=1)


@pytest.fixture
def here() -> Generator[Place]:
    with tempfile.TemporaryDirectory(prefix="mb") as folder, place(Path(folder)) as one:
        yield one


@pytest.fixture(params=[*SHIMS, OWN], ids=shim_name)
def shim(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def process(*args: str) -> TypedBytes:
    spec = {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"}
    return TypedBytes(PROCESS, json.dumps(spec).encode())


def test_task_runs_to_its_exit_and_leaves_nothing(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sh", "-c", "exit 7"))
            created = await task.state()
            pid = await task.start()
            ended = await task.wait()
            exits = await world.hears("/tasks/exit")
            stopped = await task.state()
            deleted = await task.delete()

            assert (created.status, created.pid, created.exited_at) == (Status.CREATED, pid, None)
            assert (ended.status, ended.pid) == (7, pid)
            assert (stopped.status, stopped.exit_status, stopped.exited_at) == (Status.STOPPED, 7, ended.exited_at)
            assert deleted == ended
            assert [(one.id, one.exit_status, one.exited_at) for one in exits] == [("c", 7, ended.exited_at)]
            assert world.runtime.list() == []
            with pytest.raises(NotFound, match="task c not found"):
                world.runtime.get("c")

    main()


def test_exec_runs_beside_init(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            await task.start()
            await task.exec("e", process("sh", "-c", "exit 5"), Stdio())
            with pytest.raises(AlreadyExists, match="id e"):
                await task.exec("e", process("true"), Stdio())
            assert await task.start("e") > 0
            assert (await task.wait("e")).status == 5
            assert (await task.delete("e")).status == 5
            with pytest.raises(NotFound):
                await task.state("e")
            pids = [one.pid for one in await task.pids()]
            assert pids == [task.pid]
            await task.pause()
            assert (await task.state()).status is Status.PAUSED
            await task.resume()
            assert (await task.stats()).type_url.startswith("io.containerd.cgroups.v")
            await task.resize(80, 25)
            await task.close_stdin()
            await task.kill(9, everything=True)
            assert (await task.wait()).status == 137
            await task.delete()

    main()


def test_running_task_is_not_deleted(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            await task.start()
            with pytest.raises(MooredError, match="cannot delete a running process"):
                await task.delete()
            assert (await task.state()).status is Status.RUNNING
            with pytest.raises(AlreadyExists, match="task c"):
                await world.runtime.create("c", here.new(shim, "true"))
            await task.kill(9)
            await task.wait()
            await task.delete()

    main()


def test_root_file_system_is_mounted_on_the_bundle(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        new = here.new(shim, "cat", "/bin/marker")
        spec = json.loads(new.spec.value)
        spec["root"] = {"path": "rootfs"}
        lower, upper, work = (here.folder / name for name in ("lower", "upper", "work"))
        for folder in (lower, upper / "bin", work):
            folder.mkdir(parents=True)
        (upper / "bin/marker").write_text("x")
        options = (f"lowerdir={here.rootfs}:{lower}", f"upperdir={upper}", f"workdir={work}")
        async with here.world() as world:
            task = await world.runtime.create(
                "c",
                type(new)(
                    runtime=shim,
                    spec=TypedBytes(new.spec.type_url, json.dumps(spec).encode()),
                    rootfs=(Mount(type="overlay", source="overlay", options=options),),
                ),
            )
            await task.start()
            assert (await task.wait()).status == 0
            await task.delete()

    main()


def test_failed_create_leaves_nothing(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            with pytest.raises(MooredError, match="OCI runtime create failed"):
                await world.runtime.create("c", here.new(shim, "no-such-program"))
            assert world.runtime.list() == []
            assert world.told("/tasks/exit") == []
        here.assert_clean()

    main()


def test_task_is_found_by_the_next_daemon(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            first = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            await first.start()
        async with here.world() as world:
            (task,) = world.runtime.list(everywhere=True)
            assert (task.id, task.namespace, task.pid) == ("c", here.namespace, first.pid)
            assert (await task.state()).status is Status.RUNNING
            await task.exec("e", process("sh", "-c", "exit 5"), Stdio())
            await task.start("e")
            assert (await task.wait("e")).status == 5
            await task.kill(9)
            assert (await task.wait()).status == 137
            await world.hears("/tasks/exit", 2)
            await task.delete()

    main()


def test_exit_without_a_daemon_is_told_by_the_next_one(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            pid = await task.start()
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
        async with here.world() as world:
            exits = await world.hears("/tasks/exit")
            assert {(one.id, one.pid, one.exit_status) for one in exits} == {("c", pid, 137)}
            task = world.runtime.get("c")
            state = await task.state()
            assert (state.status, state.exit_status) == (Status.STOPPED, 137)
            assert (await task.wait()).status == 137
        began = time.time_ns()
        async with here.world() as world:
            (task,) = [one for one in world.runtime._tasks.values() if one.id == "c"]
            assert (await task.state()).status is Status.STOPPED
            # so that the daemon does not tell it again; a shim may only now get rid of its own
            assert task.told is not None
            assert (task.told.pid, task.told.status) == (pid, 137)
            assert (await task.delete()).status == 137
            if shim == OWN:  # containerd's stamp theirs when they are about to send it
                late = [one for one in world.events if (one.timestamp_ns or 0) > began]
                assert [one for one in late if one.topic == "/tasks/exit"] == []

    main()


def test_killed_shim_ends_its_task_with_events(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            pid = await task.start()
            waiting = asyncio.create_task(task.wait())
            await task.state()  # the wait is on its way
            os.kill(shim_pid(here), signal.SIGKILL)
            with pytest.raises(Unavailable, match="ttrpc: closed"):
                await waiting
            (gone,) = await world.hears("/tasks/delete")
            (ended,) = world.told("/tasks/exit")
            assert (ended.id, ended.pid, ended.exit_status) == ("c", pid, 137)
            assert (gone.container_id, gone.pid, gone.exit_status) == ("c", pid, 137)
            wait_for_end(pid)
            with pytest.raises(NotFound):
                world.runtime.get("c")
        here.assert_clean()

    main()


def test_shim_that_died_without_a_daemon_is_cleaned_up_by_the_next_one(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            pid = await task.start()
        os.kill(shim_pid(here), signal.SIGKILL)
        async with here.world() as world:
            (ended,) = await world.hears("/tasks/exit")
            await world.hears("/tasks/delete")
            assert (ended.pid, ended.exit_status) == (pid, 137)
            assert world.runtime.list() == []

    main()


async def _runs(task: Task) -> None:
    """Wait until ``task`` says that it runs; on a busy host the short deadline may pass before its shim answers."""
    async with asyncio.timeout(10):
        while (status := (await task.state()).status) is Status.UNKNOWN:
            await asyncio.sleep(0.01)
    assert status is Status.RUNNING


def test_stopped_shim_is_unknown_and_kept(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world(QUICK) as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            other = await world.runtime.create("c1", here.new(shim, "sleep", "60", id_="c1"))
            pid = await task.start()
            await other.start()
            stopped = shim_pid(here)
            os.kill(stopped, signal.SIGSTOP)
            assert (await task.state()).status is Status.UNKNOWN
            await _runs(other)
        began = asyncio.get_running_loop().time()
        async with here.world(QUICK) as world:
            assert asyncio.get_running_loop().time() - began < 10
            task, other = world.runtime.get("c"), world.runtime.get("c1")
            assert (task.pid, (await task.state()).status) == (pid, Status.UNKNOWN)
            await _runs(other)
            os.kill(stopped, signal.SIGCONT)
            await _runs(task)
            for one in (task, other):
                await one.kill(9)
                await one.wait()
                await one.delete()

    main()


def test_shim_whose_container_is_gone_is_ended_by_the_next_daemon(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "true"))
            await task.start()
            await task.wait()
            await task._ask_delete("", 10)  # the daemon ends before it goes on
        async with here.world() as world:
            async with asyncio.timeout(10):
                while world.runtime.list():
                    await asyncio.sleep(0.01)
        here.assert_clean()

    main()


def test_containers_of_a_group_share_a_shim_and_end_alone(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        group = {"io.containerd.runc.v2.group": "group"}
        async with here.world() as world:
            first = await world.runtime.create("c1", here.new(shim, "sleep", "60", id_="c1", annotations=group))
            second = await world.runtime.create("c2", here.new(shim, "sleep", "60", id_="c2", annotations=group))
            with pytest.raises(MooredError, match="OCI runtime create failed"):
                await world.runtime.create("c", here.new(shim, "no-such-program", annotations=group))
            serving = shim_pid(here, "c1")
            for one in (first, second):
                await one.start()
            await first.kill(9)
            await first.wait()
            await first.delete()
            assert (await second.state()).status is Status.RUNNING
            os.kill(serving, signal.SIGKILL)
            ends = await world.hears("/tasks/exit", 2)
            await world.hears("/tasks/delete", 2)
            assert [one.container_id for one in ends] == ["c1", "c2"]

    main()


def test_tasks_are_made_side_by_side(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            made = await asyncio.gather(
                *(world.runtime.create(id_, here.new(shim, "true", id_=id_)) for id_ in ("c", "c1", "c2")),
                world.runtime.create("c", here.new(shim, "true")),
                return_exceptions=True,
            )
            assert [type(one).__name__ for one in made] == ["ShimTask", "ShimTask", "ShimTask", "AlreadyExists"]
            await asyncio.gather(*(task.delete() for task in world.runtime.list()))

    main()


def test_undoing_a_create_does_not_end_the_shim_of_the_others_in_its_group(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        group = {"io.containerd.runc.v2.group": "group"}
        async with here.world() as world:
            # the shim of both works in the first one's bundle
            await world.runtime.create("c1", here.new(shim, "true", id_="c1", annotations=group))
            task = await world.runtime.create("c2", here.new(shim, "sleep", "60", id_="c2", annotations=group))
            await task.start()
        unfinished = Bundle(here.folders, here.namespace, "c1")
        unfinished.write("creating", b"")
        async with here.world() as world:
            async with asyncio.timeout(20):
                while unfinished.path.exists():
                    await asyncio.sleep(0.01)
            task = world.runtime.get("c2")
            assert (await task.state()).status is Status.RUNNING
            await task.kill(9)
            await task.wait()
            await task.delete()

    main()


def test_bundle_of_a_newer_daemon_is_left_alone(here: Place, shim: str) -> None:
    @on_loop
    async def main() -> None:
        async with here.world() as world:
            task = await world.runtime.create("c", here.new(shim, "sleep", "60"))
            await task.start()
        bootstrap = here.folders.state / here.namespace / "c/bootstrap.json"
        ours = bootstrap.read_bytes()
        bootstrap.write_bytes(b'{"version": 4, "address": "unix:///x", "protocol": "ttrpc"}')
        async with here.world() as world:
            assert world.runtime.list() == []
            assert "unsupported shim version" in world.log_text()
            with pytest.raises(AlreadyExists):
                await world.runtime.create("c", here.new(shim, "true"))
        bootstrap.write_bytes(ours)
        async with here.world() as world:
            task = world.runtime.get("c")
            assert (await task.state()).status is Status.RUNNING
            await task.kill(9)
            await task.wait()
            await task.delete()

    main()
