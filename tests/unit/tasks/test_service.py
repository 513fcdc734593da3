"""What the tasks service answers, down to containerd's words."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from harness import fails, on_loop
from moored.api.convert import GO_ZERO_SECONDS
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.types.descriptor_pb2 import Descriptor
from moored.api.types.mount_pb2 import Mount
from moored.api.types.runc.options import oci_pb2
from moored.api.types.task.task_pb2 import Status
from moored.kernel.conformance.tasks import process
from moored.kernel.errors import Unavailable
from moored.kernel.namespaces import bind
from moored.kernel.ports.tasks import SandboxEndpoint, Stdio
from unit.tasks.world import HEADERS, Opened, served, typed

CRIU_TAR = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
PROCESS = AnyMessage(type_url=(given := process("sleep", "1000")).type_url, value=given.value)
RE = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"


async def call(stub: Any, method: str, request: Any, headers: Any = HEADERS) -> Any:
    return await getattr(stub, method)(request, metadata=headers, timeout=20)


async def create(world: Opened, stub: Any, id_: str = "c1", *words: str, **more: Any) -> int:
    await world.container(id_, *words)
    answer = await call(stub, "Create", pb.CreateTaskRequest(container_id=id_, **more))
    assert answer.container_id == id_
    return int(answer.pid)


def requests(container: str) -> dict[str, Any]:
    """One for each call that needs a task."""
    return {
        "Start": pb.StartRequest(container_id=container),
        "Delete": pb.DeleteTaskRequest(container_id=container),
        "DeleteProcess": pb.DeleteProcessRequest(container_id=container, exec_id="e1"),
        "Get": pb.GetRequest(container_id=container),
        "Kill": pb.KillRequest(container_id=container, signal=9),
        "Exec": pb.ExecProcessRequest(container_id=container, exec_id="e1", spec=PROCESS),
        "ResizePty": pb.ResizePtyRequest(container_id=container),
        "CloseIO": pb.CloseIORequest(container_id=container, stdin=True),
        "Pause": pb.PauseTaskRequest(container_id=container),
        "Resume": pb.ResumeTaskRequest(container_id=container),
        "ListPids": pb.ListPidsRequest(container_id=container),
        "Checkpoint": pb.CheckpointTaskRequest(container_id=container),
        "Update": pb.UpdateTaskRequest(container_id=container, resources=AnyMessage(type_url="x")),
        "Wait": pb.WaitRequest(container_id=container),
    }


@on_loop
async def test_task_lives_from_create_to_delete(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        pid = await create(world, stub, "c1", "sh", "-c", "exit 3", stdout="/dev/null")
        found = (await call(stub, "Get", pb.GetRequest(container_id="c1"))).process
        # Clients know it by its id alone.
        assert (found.container_id, found.id, found.pid, found.status) == ("", "c1", pid, Status.CREATED)
        assert (found.exited_at.seconds, found.stdout) == (GO_ZERO_SECONDS, "/dev/null")
        assert (await call(stub, "Start", pb.StartRequest(container_id="c1"))).pid == pid
        exit_ = await call(stub, "Wait", pb.WaitRequest(container_id="c1"))
        assert exit_.exit_status == 3
        (found,) = (await call(stub, "List", pb.ListTasksRequest(filter="id==other"))).tasks
        assert (found.id, found.status, found.exit_status) == ("c1", Status.STOPPED, 3)
        deleted = await call(stub, "Delete", pb.DeleteTaskRequest(container_id="c1"))
        assert (deleted.id, deleted.pid, deleted.exit_status) == ("", pid, 3)
        assert deleted.exited_at == exit_.exited_at == found.exited_at
        assert not (await call(stub, "List", pb.ListTasksRequest())).tasks


@on_loop
async def test_exec_lives_from_exec_to_delete(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await create(world, stub)
        await call(stub, "Start", pb.StartRequest(container_id="c1"))
        await call(stub, "Exec", requests("c1")["Exec"])
        wanted = ("ALREADY_EXISTS", "id e1: already exists")
        assert await fails(call(stub, "Exec", requests("c1")["Exec"])) == wanted
        pid = (await call(stub, "Start", pb.StartRequest(container_id="c1", exec_id="e1"))).pid
        found = (await call(stub, "Get", pb.GetRequest(container_id="c1", exec_id="e1"))).process
        assert (found.id, found.pid, found.status) == ("e1", pid, Status.RUNNING)
        processes = (await call(stub, "ListPids", pb.ListPidsRequest(container_id="c1"))).processes
        details = {one.pid: one.info.type_url for one in processes}
        assert details.pop(pid) == "containerd.runc.v1.ProcessDetails"
        assert list(details.values()) == [""]
        waiting = asyncio.ensure_future(call(stub, "Wait", pb.WaitRequest(container_id="c1", exec_id="e1")))
        await call(stub, "Kill", pb.KillRequest(container_id="c1", exec_id="e1", signal=signal.SIGKILL))
        assert (await waiting).exit_status == 137
        gone = await call(stub, "DeleteProcess", pb.DeleteProcessRequest(container_id="c1", exec_id="e1"))
        assert (gone.id, gone.pid, gone.exit_status) == ("e1", pid, 137)
        request = pb.GetRequest(container_id="c1", exec_id="e1")
        assert await fails(call(stub, "Get", request)) == ("NOT_FOUND", "process does not exist e1: not found")


@on_loop
async def test_missing_container_is_told_before_missing_task(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await world.container("c1")
        for method, request in requests("none").items():
            wanted = ("NOT_FOUND", 'container "none" in namespace "one": not found')
            assert await fails(call(stub, method, request)) == wanted, method
        for method, request in requests("c1").items():
            assert await fails(call(stub, method, request)) == ("NOT_FOUND", "task c1 not found"), method
        request = pb.CreateTaskRequest(container_id="none")
        wanted = ("NOT_FOUND", 'container "none" in namespace "one": not found')
        assert await fails(call(stub, "Create", request)) == wanted


@on_loop
async def test_task_without_container_is_hidden_but_listed(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        pid = await create(world, stub)
        with bind("one"):
            await world.objects.containers.delete("c1")
        wanted = ("NOT_FOUND", 'container "c1" in namespace "one": not found')
        assert await fails(call(stub, "Get", pb.GetRequest(container_id="c1"))) == wanted
        assert [one.pid for one in (await call(stub, "List", pb.ListTasksRequest())).tasks] == [pid]
        await world.container("c1")
        assert (await call(stub, "Get", pb.GetRequest(container_id="c1"))).process.pid == pid


@on_loop
async def test_namespace_is_needed_and_told_as_each_call_does(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, stub):
        needed = "namespace is required: failed precondition"
        bad = f'namespace validation: identifier "a..b" must match {RE}: invalid argument'
        odd = (("containerd-namespace", "a..b"),)
        for method, request in {**requests("c1"), "List": pb.ListTasksRequest()}.items():
            assert await fails(call(stub, method, request, ())) == ("FAILED_PRECONDITION", needed), method
            assert await fails(call(stub, method, request, odd)) == ("INVALID_ARGUMENT", bad), method
        metrics = pb.MetricsRequest()
        assert await fails(call(stub, "Metrics", metrics, ())) == ("UNKNOWN", needed)
        assert await fails(call(stub, "Metrics", metrics, odd)) == ("UNKNOWN", bad)


@on_loop
async def test_bad_metrics_filter_is_told_as_unknown_before_the_namespace(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, stub):
        text = 'filters: parse error: [name >|=|< x]: unsupported operator "=": invalid argument'
        assert await fails(call(stub, "Metrics", pb.MetricsRequest(filters=["name=x"]), ())) == ("UNKNOWN", text)


@on_loop
async def test_metrics_are_those_that_match_and_answer(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        for name in ("c1", "c2", "c3"):
            await create(world, stub, name)
        with bind("one"):
            world.runtime.get("c2").fault = Unavailable("ttrpc: closed")

        async def ids(*filters: str) -> list[str]:
            found = (await call(stub, "Metrics", pb.MetricsRequest(filters=filters))).metrics
            for one in found:
                assert one.data.type_url == "io.containerd.cgroups.v1.Metrics"
                assert one.timestamp.seconds > 1_700_000_000
            return [one.id for one in found]

        assert await ids() == ["c1", "c3"]
        assert await ids("id==c3") == ["c3"]
        assert await ids("id==c3", "id==c1") == ["c1", "c3"]
        assert await ids("namespace==one,id~=^c") == ["c1", "c3"]
        assert await ids("namespace==two") == []
        assert await ids("runtime==io.containerd.runc.v2") == []


@on_loop
async def test_create_hands_all_of_it_to_the_runtime(tmp_path: Path) -> None:
    options = oci_pb2.Options(binary_name="crun", criu_image_path="/criu")
    async with served(tmp_path) as (world, stub):
        own = typed("containerd.runc.v1.Options", b"\x08\x01")
        await world.container("c1", runtime_options=own, sandbox="s1")
        request = pb.CreateTaskRequest(
            container_id="c1",
            rootfs=[Mount(type="bind", source="/a", target="/b", options=["ro", "rbind"])],
            stdin="in",
            stdout="/dev/null",
            stderr="/dev/null",
            terminal=True,
            options=AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString()),
            runtime_path="/no/such/shim",
            task_api_address="unix:///s",
            task_api_version=3,
        )
        text = "failed to start shim: failed to resolve runtime path: runtime '/no/such/shim' is not installed"
        assert await fails(call(stub, "Create", request)) == ("UNKNOWN", text)
        (new,) = world.runtime.made
        assert (new.runtime, new.checkpoint, new.sandbox) == ("/no/such/shim", "/criu", "s1")
        assert new.options == typed("containerd.runc.v1.Options", options.SerializeToString())
        assert new.runtime_options == own
        assert new.stdio == Stdio(stdin="in", stdout="/dev/null", stderr="/dev/null", terminal=True)
        assert new.endpoint == SandboxEndpoint(address="unix:///s", version=3)
        (mount,) = new.rootfs
        assert (mount.type, mount.source, mount.target, mount.options) == ("bind", "/a", "/b", ("ro", "rbind"))
        await call(stub, "Create", pb.CreateTaskRequest(container_id="c1"))
        assert world.runtime.made[1].options == own
        assert world.runtime.made[1].runtime == "io.containerd.runc.v2"
        assert world.warnings.deprecations() == []


@on_loop
async def test_endpoint_in_runc_options_is_taken_and_noted(tmp_path: Path) -> None:
    options = oci_pb2.Options(task_api_address="unix:///old", task_api_version=2)
    async with served(tmp_path) as (world, stub):
        await world.container("c1")
        packed = AnyMessage(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
        request = pb.CreateTaskRequest(container_id="c1", options=packed, task_api_version=3)
        await call(stub, "Create", request)
        assert world.runtime.made[0].endpoint == SandboxEndpoint(address="unix:///old", version=3)
        noted = [one.id for one in world.warnings.deprecations()]
        assert noted == ["io.containerd.deprecation/runc-options-task-api-address"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (AnyMessage(type_url="no.such"), "type with url no.such: not found"),
        (AnyMessage(), "type with url : not found"),
        (
            AnyMessage(type_url="containerd.runc.v1.ProcessDetails"),
            "invalid task {} option for io.containerd.runc.v2",
        ),
        (
            AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=b"{}"),
            "invalid task {} option for io.containerd.runc.v2",
        ),
    ],
)
@on_loop
async def test_options_of_another_type_are_refused(tmp_path: Path, given: AnyMessage, text: str) -> None:
    async with served(tmp_path) as (world, stub):
        await create(world, stub)
        request = pb.CreateTaskRequest(container_id="c1", options=given)
        assert await fails(call(stub, "Create", request)) == ("UNKNOWN", text.format("create"))
        request = pb.CheckpointTaskRequest(container_id="c1", options=given)
        assert await fails(call(stub, "Checkpoint", request)) == ("UNKNOWN", text.format("checkpoint"))


@on_loop
async def test_second_task_is_refused_after_its_options_were_read(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await create(world, stub)
        wanted = ("ALREADY_EXISTS", "task c1: already exists")
        assert await fails(call(stub, "Create", pb.CreateTaskRequest(container_id="c1"))) == wanted
        prefixed = AnyMessage(type_url="type.googleapis.com/containerd.runc.v1.Options")
        request = pb.CreateTaskRequest(container_id="c1", options=prefixed)
        assert await fails(call(stub, "Create", request)) == wanted
        bad = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\xff")
        request = pb.CreateTaskRequest(container_id="c1", options=bad)
        text = "proto: cannot parse invalid wire-format data"
        assert await fails(call(stub, "Create", request)) == ("UNKNOWN", text)
        request = pb.CreateTaskRequest(container_id="c1", checkpoint=Descriptor(media_type="x"))
        assert await fails(call(stub, "Create", request)) == ("UNKNOWN", 'unsupported checkpoint type "x"')


@on_loop
async def test_failed_create_says_what_failed_and_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await world.container("c1", "/no/such/program")
        code, text = await fails(call(stub, "Create", pb.CreateTaskRequest(container_id="c1")))
        assert (code, text[:26]) == ("UNKNOWN", "OCI runtime create failed:")
        assert not (await call(stub, "List", pb.ListTasksRequest())).tasks


@on_loop
async def test_container_without_spec_gets_no_task(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await world.container("c1", spec=None)
        text = "container 'c1' has no spec, a task needs one: invalid argument"
        request = pb.CreateTaskRequest(container_id="c1")
        assert await fails(call(stub, "Create", request)) == ("INVALID_ARGUMENT", text)


@on_loop
async def test_bad_execs_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        empty = ("INVALID_ARGUMENT", "exec id cannot be empty")
        assert await fails(call(stub, "Exec", pb.ExecProcessRequest(container_id="none"))) == empty
        await create(world, stub)
        request = pb.ExecProcessRequest(container_id="c1", exec_id="a b", spec=PROCESS)
        text = f'invalid exec id a b: identifier "a b" must match {RE}: invalid argument'
        assert await fails(call(stub, "Exec", request)) == ("INVALID_ARGUMENT", text)
        request = pb.ExecProcessRequest(container_id="c1", exec_id="e1")
        text = "exec 'e1' has no spec, one is wanted: invalid argument"
        assert await fails(call(stub, "Exec", request)) == ("INVALID_ARGUMENT", text)


@on_loop
async def test_words_of_the_shim_come_through(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await create(world, stub)
        await call(stub, "Start", pb.StartRequest(container_id="c1"))
        for method, text in {
            "Start": "cannot start a running process",
            "Delete": "failed to delete task: cannot delete a running process",
            "Resume": "cannot resume a running process",
        }.items():
            assert await fails(call(stub, method, requests("c1")[method])) == ("UNKNOWN", text)
        request = pb.DeleteProcessRequest(container_id="c1")
        assert await fails(call(stub, "DeleteProcess", request)) == ("UNKNOWN", "cannot delete a running process")
        await call(stub, "Pause", pb.PauseTaskRequest(container_id="c1"))
        found = (await call(stub, "Get", pb.GetRequest(container_id="c1"))).process
        assert found.status == Status.PAUSED
        await call(stub, "Resume", pb.ResumeTaskRequest(container_id="c1"))
        request = pb.UpdateTaskRequest(container_id="c1")
        wanted = ("INVALID_ARGUMENT", "resources are missing: invalid argument")
        assert await fails(call(stub, "Update", request)) == wanted
        request = pb.UpdateTaskRequest(container_id="c1", resources=AnyMessage(type_url="t"), annotations={"a": "b"})
        await call(stub, "Update", request)
        with bind("one"):
            assert world.runtime.get("c1").updates == [(typed("t"), {"a": "b"})]


@on_loop
async def test_closing_no_stream_only_looks_for_the_process(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        await create(world, stub)
        await call(stub, "CloseIO", pb.CloseIORequest(container_id="c1"))
        wanted = ("NOT_FOUND", "process does not exist e1: not found")
        for stdin in (False, True):
            request = pb.CloseIORequest(container_id="c1", exec_id="e1", stdin=stdin)
            assert await fails(call(stub, "CloseIO", request)) == wanted
        await call(stub, "ResizePty", pb.ResizePtyRequest(container_id="c1", width=80, height=25))


@on_loop
async def test_list_shows_failing_tasks_as_unknown_beside_the_others(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        pids = {name: await create(world, stub, name) for name in ("c1", "c2")}
        with bind("one"):
            world.runtime.get("c1").fault = Unavailable("ttrpc: closed")
        found = {one.id: (one.pid, one.status) for one in (await call(stub, "List", pb.ListTasksRequest())).tasks}
        assert found == {"c1": (pids["c1"], Status.UNKNOWN), "c2": (pids["c2"], Status.CREATED)}


@on_loop
async def test_hanging_task_holds_up_no_other(tmp_path: Path) -> None:
    async with served(tmp_path) as (world, stub):
        for name in ("c1", "c2"):
            await create(world, stub, name)
        with bind("one"):
            hanging = world.runtime.get("c1")
        hanging.silent.clear()
        waiting = asyncio.ensure_future(call(stub, "Start", pb.StartRequest(container_id="c1")))
        await call(stub, "Start", pb.StartRequest(container_id="c2"))
        assert not waiting.done()
        hanging.silent.set()
        await waiting
