"""Our shim with real runtimes: each method's answers and errors, the order of events, what is left afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from moored.api.runtime.task.v3 import shim_pb2 as pb
from moored.api.types.mount_pb2 import Mount
from moored.api.types.runc.options.oci_pb2 import Options
from moored.kernel import errors as e
from moored.plugins.runtime.shim.launcher import Zygote, cleanup
from moored.plugins.runtime.shim.messages import NEVER
from shims import wait_for_end
from shimworld import EVERY_RUNTIME, RUNTIMES, V2, Task, World, in_world, mounted, needs_runtime

pytestmark = needs_runtime
SECOND = 10**9
each_runtime = pytest.mark.parametrize("runtime", RUNTIMES)


async def fails(kind: type[e.MooredError], text: str, call: Coroutine[Any, Any, Any]) -> None:
    with pytest.raises(e.MooredError) as caught:
        await call
    assert (type(caught.value), str(caught.value)) == (kind, text)


@each_runtime
def test_container_runs_from_create_to_delete(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", "sh", "-c", "exit 7", runtime=runtime)
        pid = await task.create()
        created = await task.state()
        assert (created.status, created.pid, created.bundle) == (1, pid, str(task.bundle))
        assert created.exited_at.seconds * SECOND == NEVER
        waiting = asyncio.create_task(task.wait())
        assert await task.start() == pid
        ended = await waiting
        assert ended.exit_status == 7
        assert (await task.state()).status == 3
        assert await task.pids() == []
        deleted = await task.delete()
        assert (deleted.pid, deleted.exit_status, deleted.exited_at) == (pid, 7, ended.exited_at)
        await fails(e.NotFound, "container not created", task.state())
        await task.shutdown()
        assert world.events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        exited = await world.events.until("/tasks/exit")
        assert (exited.container_id, exited.id, exited.pid, exited.exit_status) == ("c", "c", pid, 7)
        assert exited.exited_at == ended.exited_at.seconds * SECOND + ended.exited_at.nanos

    in_world(tmp_path, body)


@each_runtime
def test_signals_end_processes_and_missing_ones_are_told(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", runtime=runtime)
        await task.create()
        await task.start()
        await task.kill(0)
        with pytest.raises(e.Unknown, match="unknown error after kill"):
            await task.kill(999)
        await fails(e.NotFound, "process does not exist x", task.kill(9, "x"))
        await task.kill(9)
        assert (await task.wait()).exit_status == 137
        await fails(e.NotFound, "process already finished", task.kill(9))
        await task.kill(9, everything=True)
        await task.delete()
        await task.shutdown()

    in_world(tmp_path, body)


@pytest.mark.parametrize(
    ("runtime", "number"),
    [*((name, signal.SIGKILL) for name in EVERY_RUNTIME), *(("runsc", signal.SIGTERM) for _ in EVERY_RUNTIME[2:])],
)
def test_container_that_was_never_started_can_be_ended(tmp_path: Path, runtime: str, number: int) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", runtime=runtime)
        await task.create()
        await task.kill(0)
        await task.kill(number)
        assert (await task.wait()).exit_status == 137
        await task.delete()
        await task.shutdown()

    in_world(tmp_path, body)


@pytest.mark.parametrize("runtime", EVERY_RUNTIME)
def test_create_that_fails_late_says_why_and_leaves_nothing(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", runtime=runtime)
        config = json.loads((task.bundle / "config.json").read_text())
        # cgroups are made by then
        config["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such/place", "options": ["bind"]})
        (task.bundle / "config.json").write_text(json.dumps(config))
        with pytest.raises(e.Unknown, match=r"^OCI runtime create failed: (?!.*did not terminate)"):
            await task.create()
        assert list((world.folder / "state" / runtime / "test").glob("*")) == []
        await task.shutdown()

    in_world(tmp_path, body)


@each_runtime
def test_execs_come_and_go_and_end_before_init(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", runtime=runtime)
        await task.create()
        await task.start()
        await task.exec("quick", "sh", "-c", "exit 3")
        await fails(e.AlreadyExists, "id quick", task.exec("quick", "true"))
        await fails(e.FailedPrecondition, "process not created", task.kill(9, "quick"))
        assert (await task.state("quick")).status == 1
        pid = await task.start("quick")
        assert (await task.wait("quick")).exit_status == 3
        await fails(e.Unknown, "cannot start a stopped process", task.start("quick"))
        state = await task.state("quick")
        assert (state.id, state.pid, state.status, state.exit_status) == ("quick", pid, 3, 3)
        assert (await task.delete("quick")).exit_status == 3
        await fails(e.NotFound, "process does not exist quick", task.state("quick"))
        await task.exec("long", "sleep", "1000")
        long = await task.start("long")
        await fails(e.Unknown, "cannot delete a running process", task.delete("long"))
        found = {one.pid: one.info for one in await task.pids()}
        assert long in found
        assert found[long].type_url == "containerd.runc.v1.ProcessDetails"
        assert found[long].value == b"\x0a\x04long"
        await task.kill(9)
        await task.wait()
        await world.events.until("/tasks/exit", id="c")
        exits = [event for topic, event in world.events.seen if topic == "/tasks/exit"]
        assert [(one.id, one.exit_status) for one in exits] == [("quick", 3), ("long", 137), ("c", 137)]
        await fails(e.Unknown, "cannot exec in a stopped state", task.exec("late", "true"))
        await task.delete()
        await task.shutdown()

    in_world(tmp_path, body)


def test_exec_that_cannot_start_stays_created_and_can_be_deleted(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c")
        await task.create()
        await task.start()
        await task.exec("bad", "/no/such/program")
        with pytest.raises(e.Unknown, match=r"^OCI runtime exec failed: .*no such file"):
            await task.start("bad")
        assert (await task.state("bad")).status == 1
        assert (await task.wait("bad")).exit_status == 0
        await task.delete("bad")
        await task.end()
        assert "/tasks/exec-started" not in world.events.topics

    in_world(tmp_path, body)


def test_execs_without_private_pids_die_with_init(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", private_pids=False)
        await task.create()
        await task.start()
        await task.exec("x", "sleep", "1000")
        await task.start("x")
        await task.kill(15)
        assert (await task.wait()).exit_status in {137, 143}
        assert (await task.state("x")).exit_status == 137
        await task.delete()
        await task.shutdown()

    in_world(tmp_path, body)


@each_runtime
def test_pause_and_resume_move_between_states(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", runtime=runtime)
        await task.create()
        await fails(e.Unknown, "cannot pause task in created state", task.call("Pause", pb.PauseRequest(id="c")))
        await task.start()
        await fails(e.Unknown, "cannot resume a running process", task.call("Resume", pb.ResumeRequest(id="c")))
        await fails(e.Unknown, "cannot start a running process", task.start())
        await fails(e.Unknown, "cannot delete a running process", task.delete())
        await task.call("Pause", pb.PauseRequest(id="c"))
        assert (await task.state()).status == 4
        await fails(e.Unknown, "cannot pause a paused container", task.call("Pause", pb.PauseRequest(id="c")))
        with pytest.raises(e.Unknown, match="cannot exec in a paused state"):
            await task.exec("x", "true")
        await task.call("Resume", pb.ResumeRequest(id="c"))
        assert (await task.state()).status == 2
        await task.end()
        assert world.events.topics[2:4] == ["/tasks/paused", "/tasks/resumed"]

    in_world(tmp_path, body)


def test_update_and_stats_reach_the_cgroup(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c")
        await fails(e.NotFound, "container not created", task.call("Stats", pb.StatsRequest(id="c"), pb.StatsResponse))
        await task.create()
        await task.start()
        limits = AnyMessage(value=json.dumps({"pids": {"limit": 77}}).encode())
        await task.call("Update", pb.UpdateTaskRequest(id="c", resources=limits))
        stats = (await task.call("Stats", pb.StatsRequest(id="c"), pb.StatsResponse)).stats
        assert stats.type_url.startswith("io.containerd.cgroups.v")
        if stats.type_url == "io.containerd.cgroups.v1.Metrics":
            from moored.api.cgroups.v1.metrics_pb2 import Metrics

            assert Metrics.FromString(stats.value).pids.limit == 77
        await fails(e.InvalidArgument, "resources must be given", task.call("Update", pb.UpdateTaskRequest(id="c")))
        await task.end()

    in_world(tmp_path, body)


@each_runtime
def test_created_container_is_deleted_and_its_exit_told_after(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", runtime=runtime)
        pid = await task.create()
        deleted = await task.delete()
        assert (deleted.pid, deleted.exit_status, deleted.exited_at.seconds * SECOND) == (pid, 0, NEVER)
        await task.shutdown()
        await world.events.until("/tasks/exit", exit_status=137)
        assert world.events.topics == ["/tasks/create", "/tasks/delete", "/tasks/exit"]

    in_world(tmp_path, body)


@each_runtime
def test_create_that_fails_leaves_nothing_and_says_why(tmp_path: Path, runtime: str) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", "/no/such/program", runtime=runtime)
        source = str(task.bundle / "rootfs")
        mounts = [Mount(type="bind", source=source, options=["rbind", "rw"])]
        with pytest.raises(e.Unknown, match=r"^OCI runtime (create|start) failed: .*(no such file|not found)"):
            await task.create(rootfs=mounts)
        assert world.events.topics == []
        await task.shutdown()

    in_world(tmp_path, body)


def test_rootfs_is_mounted_for_the_container_and_unmounted_after(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", "sh", "-c", "[ -d /proc ]")
        other = task.bundle / "other"
        (task.bundle / "rootfs").rename(other)
        await fails(
            e.Unknown,
            "failed to mount rootfs component: No such file or directory (mount of none '/no/such', options '')",
            task.create(rootfs=[Mount(type="none", source="/no/such", options=["bind"])]),
        )
        await task.create(rootfs=[Mount(type="none", source=str(other), options=["rbind", "rw"])])
        assert mounted(task.bundle / "rootfs")
        await task.start()
        assert (await task.wait()).exit_status == 0
        await task.delete()
        assert not mounted(task.bundle / "rootfs")
        await task.shutdown()

    in_world(tmp_path, body)


def test_options_are_kept_and_unknown_types_refused(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c")
        strange = AnyMessage(type_url="some.Thing", value=b"x")
        await fails(e.Unknown, "type with url some.Thing: not found", task.create(options=strange))
        (task.bundle / "runtime.json").unlink()
        options = Options(root=str(tmp_path / "state/of"), binary_name=RUNTIMES[0])
        packed = AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
        await task.create(options=packed)
        assert (tmp_path / "state/of/test/c").is_dir()
        kept = json.loads((task.bundle / "options.json").read_text())
        assert kept == {"root": options.root, "binary_name": RUNTIMES[0]}
        assert (task.bundle / "runtime").read_text() == RUNTIMES[0]
        await task.end()

    in_world(tmp_path, body)


def test_group_shares_one_shim_and_its_old_service_name_works(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("a", "sleep", "1000")
        wanted = world.spawn(task.bundle)
        assert (await world.zygote.spawn(wanted)).joined
        other = Task(await world.connect(wanted.socket_path), "b", world.bundle("b", "sleep", "1000"), V2)
        await task.create()
        await other.create()
        connected = await other.call("Connect", pb.ConnectRequest(id="b"), pb.ConnectResponse)
        assert (
            connected.shim_pid == (await task.call("Connect", pb.ConnectRequest(id="a"), pb.ConnectResponse)).shim_pid
        )
        assert connected.task_pid == (await other.state()).pid
        await other.kill(9)
        await other.wait()
        await other.delete()
        await other.call("Shutdown", pb.ShutdownRequest(id="b"))  # one is left, so it goes on
        assert (await task.state()).status == 1
        await task.end()

    in_world(tmp_path, body)


def test_shim_outlives_the_zygote_and_events_wait_for_the_daemon(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", "sh", "-c", "exit 5")
        await task.create()
        await world.events.until("/tasks/create")
        await world.stop_daemon()
        await world.zygote.close()
        await task.start()
        await task.wait()
        assert world.events.topics == ["/tasks/create"]
        await world.start_daemon()
        await world.connect(world.spawn(task.bundle).socket_path)
        await world.events.until("/tasks/exit", exit_status=5)
        await task.delete()
        await task.shutdown()

    in_world(tmp_path, body)


def test_dead_socket_is_replaced_and_a_dead_zygote_too(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c")
        shim = await task.shim_pid()
        os.kill(shim, 9)
        await task.client.wait_closed()
        os.kill(world.zygote.pid, 9)
        wanted = world.spawn(task.bundle)
        spawned = await world.zygote.spawn(wanted)
        assert spawned.pid not in {0, shim}
        again = Task(await world.connect(wanted.socket_path), "c", task.bundle)
        await again.create()
        await again.end()

    in_world(tmp_path, body)


def test_shim_forked_ahead_is_used_once_replaced_and_ends_with_its_zygote(tmp_path: Path) -> None:
    async def spare(world: World) -> int:
        async with asyncio.timeout(10):
            while not (pids := children(world.zygote.pid) - set(shims)):
                await asyncio.sleep(0.01)
        return pids.pop()

    shims: list[int] = []

    async def body(world: World) -> None:
        for id_ in ("c", "d"):
            ahead = await spare(world)
            task = await world.task(id_)
            shims.append(await task.shim_pid())
            assert shims[-1] == ahead
            await task.create()
            await task.end()
        gone = await spare(world)  # is no shim, and no fault
        os.kill(gone, signal.SIGKILL)
        wait_for_end(gone)
        task = await world.task("e")
        shims.append(await task.shim_pid())
        await task.shutdown()
        last = await spare(world)
        await world.zygote.close()
        wait_for_end(last)

    in_world(tmp_path, body)


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_hung_zygote_is_replaced(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        async with Zygote(patience=3) as zygote:
            hung = zygote.pid
            os.kill(hung, signal.SIGSTOP)
            wanted = world.spawn(world.bundle("c"))
            spawned = await zygote.spawn(wanted)
            assert zygote.pid != hung
            task = Task(await world.connect(wanted.socket_path), "c", tmp_path / "c")
            assert await task.shim_pid() == spawned.pid
            await task.shutdown()

    in_world(tmp_path, body)


def test_shim_that_cannot_listen_is_told(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        wanted = dataclasses.replace(world.spawn(world.bundle("c")), address=str(tmp_path / "missing/s"))
        with pytest.raises(e.Unknown, match=r"failed to start the shim of 'c': .*No such file or directory"):
            await world.zygote.spawn(wanted)

    in_world(tmp_path, body)


def test_remains_of_a_killed_shim_are_cleaned_up(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c")
        pid = await task.create()
        await task.start()
        shim = await task.shim_pid()
        os.kill(shim, 9)
        await task.client.wait_closed()
        ended = await cleanup(task.bundle, "test", "c")
        assert (ended.pid, ended.status) == (pid, 137)
        (tmp_path / "c.sock").unlink()  # bootstrap.json would name it, had a daemon written it

    in_world(tmp_path, body)


def test_late_answer_is_told_as_deadline_and_the_work_goes_on(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c")
        request = pb.CreateTaskRequest(id="c", bundle=str(task.bundle))
        with pytest.raises(e.DeadlineExceeded):
            await task.call("Create", request, pb.CreateTaskResponse, timeout=0.02)
        await world.events.until("/tasks/create")
        assert (await task.state()).status == 1
        await task.end()

    in_world(tmp_path, body)


def test_stdio_reaches_the_clients_fifos(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        task = await world.task("c", "sh", "-c", "cat; echo err >&2")
        fifos = {name: str(tmp_path / name) for name in ("stdin", "stdout", "stderr")}
        for path in fifos.values():
            os.mkfifo(path)
        ends = {name: os.open(path, os.O_RDWR | os.O_NONBLOCK) for name, path in fifos.items()}
        await task.create(**fifos)
        await task.start()
        os.write(ends["stdin"], b"hello\n")
        os.close(ends.pop("stdin"))
        await task.call("CloseIO", pb.CloseIORequest(id="c", stdin=True))
        assert (await task.wait()).exit_status == 0
        await task.delete()
        assert os.read(ends["stdout"], 100) == b"hello\n"
        assert os.read(ends["stderr"], 100) == b"err\n"
        for fd in ends.values():
            os.close(fd)
        await task.shutdown()

    in_world(tmp_path, body)
