"""The sandbox API of our shim: what a sandbox is made of, what its end does, and what is left: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from moored.api.cri.runtime.v1 import api_pb2 as cri
from moored.api.runtime.sandbox.v1 import sandbox_pb2 as api
from moored.api.runtime.task.v3 import shim_pb2 as pb
from moored.api.types.mount_pb2 import Mount
from moored.kernel import errors as e
from moored.plugins.runtime.shim.messages import NEVER
from shimworld import CGROUPS, Task, World, in_world, needs_runtime, spec

pytestmark = needs_runtime
SERVICE = "containerd.runtime.sandbox.v1.Sandbox"
SECOND = 10**9
HOLDS = {"hostname": "the-pod", "linux": {"namespaces": [{"type": kind} for kind in ("ipc", "uts", "pid", "network")]}}
KINDS = ("ipc", "uts", "pid_for_children", "net")


class Pod:
    """A shim with a sandbox."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.id = task.id

    async def call(self, method: str, request: Any, answer: Any) -> Any:
        return await self.task.client.unary(SERVICE, method, request, answer, timeout=30)

    async def create(self, **more: Any) -> None:
        request = api.CreateSandboxRequest(sandbox_id=self.id, bundle_path=str(self.task.bundle), **more)
        await self.call("CreateSandbox", request, api.CreateSandboxResponse)

    async def start(self) -> api.StartSandboxResponse:
        request = api.StartSandboxRequest(sandbox_id=self.id)
        return await self.call("StartSandbox", request, api.StartSandboxResponse)

    async def stop(self, seconds: int = 0) -> None:
        request = api.StopSandboxRequest(sandbox_id=self.id, timeout_secs=seconds)
        await self.call("StopSandbox", request, api.StopSandboxResponse)

    async def wait(self) -> api.WaitSandboxResponse:
        return await self.call("WaitSandbox", api.WaitSandboxRequest(sandbox_id=self.id), api.WaitSandboxResponse)

    async def status(self) -> api.SandboxStatusResponse:
        request = api.SandboxStatusRequest(sandbox_id=self.id, verbose=True)
        return await self.call("SandboxStatus", request, api.SandboxStatusResponse)

    async def shutdown(self) -> None:
        """Shut down, and wait until the shim is gone."""
        request = api.ShutdownSandboxRequest(sandbox_id=self.id)
        await self.call("ShutdownSandbox", request, api.ShutdownSandboxResponse)
        async with asyncio.timeout(10):
            await self.task.client.wait_closed()

    async def container(self, world: World, id_: str, *args: str, **more: Any) -> Task:
        """A container of the sandbox, which runs."""
        task = Task(self.task.client, id_, world.bundle(id_, *args, **more))
        await task.create()
        await task.start()
        return task


async def pod(world: World, config: dict[str, Any] | None = None) -> Pod:
    """A shim; without a spec unless one is given."""
    task = await world.task("pod")
    if config is None:
        (task.bundle / "config.json").unlink()
    else:
        (task.bundle / "config.json").write_text(json.dumps(config))
    return Pod(task)


async def ends(pid: int) -> None:
    """Wait for the end of a process that is none of ours."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert (await asyncio.to_thread(select.select, [fd], [], [], 10))[0], f"{pid} lives"
    finally:
        os.close(fd)


def namespaces(pid: int) -> dict[str, str]:
    return {kind: str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in KINDS}


def content(path: str) -> bytes:
    return Path(path).read_bytes()


def entered(pid: int, kinds: str, *words: str) -> str:
    """What a program prints in the namespaces of a process."""
    return subprocess.check_output(["nsenter", "-t", str(pid), *kinds.split(), *words], timeout=10).decode()


def elsewhere() -> subprocess.Popen[bytes]:
    """A process with a network of its own."""
    return subprocess.Popen(["unshare", "-n", "sleep", "1000"])


async def becomes(condition: Callable[[], bool]) -> None:
    """Wait for what comes true by itself."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def ns(stamp: Any) -> int:
    return int(stamp.seconds * SECOND + stamp.nanos)


def test_sandbox_without_wishes_is_the_shim(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world)
        before = time.time_ns()
        await one.create()
        assert (await one.status()).state == "SANDBOX_NOTREADY"
        started = await one.start()
        assert started.pid == await one.task.shim_pid()
        assert before <= ns(started.created_at) <= time.time_ns()
        await one.call("PingSandbox", api.PingRequest(sandbox_id="pod"), api.PingResponse)
        platform = await one.call("Platform", api.PlatformRequest(sandbox_id="pod"), api.PlatformResponse)
        assert platform.platform.os == "linux"
        status = await one.status()
        assert (status.sandbox_id, status.pid, status.state) == ("pod", started.pid, "SANDBOX_READY")
        assert (status.created_at, ns(status.exited_at)) == (started.created_at, NEVER)
        assert json.loads(status.info["info"])["containers"] == []
        await one.stop()
        ended = await one.wait()
        status = await one.status()
        assert (ended.exit_status, status.state, status.exited_at) == (0, "SANDBOX_NOTREADY", ended.exited_at)
        await one.shutdown()

    in_world(tmp_path, body)


def test_sandbox_holds_the_namespaces_of_its_spec(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        config = {**HOLDS, "linux": {**HOLDS["linux"], "sysctl": {"kernel.shm_rmid_forced": "1"}}}  # type: ignore[dict-item]
        one = await pod(world, config)
        await one.create()
        pid = (await one.start()).pid
        held, ours = namespaces(pid), namespaces(os.getpid())
        assert not set(held.values()) & set(ours.values())
        shown = entered(pid, "-u -i -n", "sh", "-c", "hostname; cat /proc/sys/kernel/shm_rmid_forced; ip link")
        name, forced, *links = shown.splitlines()
        assert (name, forced) == ("the-pod", "1")
        assert "UP" in links[0]
        assert len(os.listdir(f"/proc/{pid}/fd")) == 4  # noqa: PTH208 - of the kernel; the last one tells of the shim's end
        await one.shutdown()
        await ends(pid)

    in_world(tmp_path, body)


def test_first_process_of_a_pod_buries_what_it_inherits(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world, HOLDS)
        await one.create()
        pid = (await one.start()).pid
        # -p: the child is in the pid namespace, and its own child is left to the first process of that
        entered(pid, "-p", "sh", "-c", "(sleep 0.05; :) >/dev/null & exit 0")
        await becomes(lambda: content(f"/proc/{pid}/task/{pid}/children") == b"")
        await one.shutdown()

    in_world(tmp_path, body)


def test_sandbox_enters_the_network_it_is_given(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        other = elsewhere()
        try:
            path = f"/proc/{other.pid}/ns/net"
            ours = namespaces(os.getpid())
            await becomes(lambda: namespaces(other.pid)["net"] != ours["net"])
            one = await pod(world)
            await one.create(netns_path=path)
            pid = (await one.start()).pid
            assert namespaces(pid) == {**ours, "net": namespaces(other.pid)["net"]}
            await one.shutdown()
        finally:
            other.kill()
            other.wait()

    in_world(tmp_path, body)


@pytest.mark.parametrize("manager", ["cgroupfs", "systemd"])
def test_pod_config_of_cri_is_acted_on(tmp_path: Path, manager: str) -> None:
    async def body(world: World) -> None:
        top = f"test{os.getpid()}"
        parent, cgroup = f"/{top}/pod", f"/{top}/pod"
        if manager == "systemd":
            parent, cgroup = f"{top}-pod.slice", f"/{top}.slice/{top}-pod.slice"
        linux = cri.LinuxPodSandboxConfig(cgroup_parent=parent)
        config = cri.PodSandboxConfig(hostname="the-pod", linux=linux)
        options = AnyMessage(type_url="runtime.v1.PodSandboxConfig", value=config.SerializeToString())
        one = await pod(world)
        await one.create(options=options)
        pid = (await one.start()).pid
        held, ours = namespaces(pid), namespaces(os.getpid())
        assert {kind for kind in KINDS if held[kind] == ours[kind]} == {"net"}
        assert entered(pid, "-u", "hostname") == "the-pod\n"

        request = api.SandboxMetricsRequest(sandbox_id="pod")
        with pytest.raises(e.NotFound):
            await one.call("SandboxMetrics", request, api.SandboxMetricsResponse)
        folder = CGROUPS / "memory" / cgroup.lstrip("/")
        folder.mkdir(parents=True)
        try:
            found = await one.call("SandboxMetrics", request, api.SandboxMetricsResponse)
        finally:
            folder.rmdir()
            folder.parent.rmdir()
        assert found.metrics.id == "pod"
        assert found.metrics.data.type_url.startswith("io.containerd.cgroups.v")
        await one.shutdown()

    in_world(tmp_path, body)


def test_sandbox_with_a_root_file_system_is_a_container(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        source = world.bundle("source") / "rootfs"
        one = await pod(world, spec("pod", ("sleep", "1000")))
        shutil.rmtree(one.task.bundle / "rootfs")
        await one.create(rootfs=[Mount(type="bind", source=str(source), options=["rbind", "rw"])])
        pid = (await one.start()).pid
        await becomes(lambda: b"sleep" in content(f"/proc/{pid}/cmdline"))
        # clients of the task API do not see it
        with pytest.raises(e.NotFound):
            await one.task.state()
        await one.stop()
        assert (await one.wait()).exit_status == 137
        await one.shutdown()
        assert world.events.topics == []

    in_world(tmp_path, body)


def test_shim_goes_on_with_its_sandbox_and_not_with_containers(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world)
        await one.create()
        await one.start()
        first = await one.container(world, "c1", "true")
        await first.wait()
        await first.delete()
        await first.call("Shutdown", pb.ShutdownRequest(id="c1"))
        second = await one.container(world, "c2")
        assert (await second.state()).status == 2
        await one.shutdown()

    in_world(tmp_path, body)


def test_end_of_a_sandbox_is_that_of_its_containers(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world, HOLDS)
        await one.create()
        pid = (await one.start()).pid
        polite = await one.container(world, "c1", "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.02; done")
        stubborn = await one.container(world, "c2", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        await asyncio.sleep(0.2)  # shells set their traps
        began = time.monotonic()
        await one.stop(1)
        assert 0.9 < time.monotonic() - began < 8
        assert ((await polite.wait()).exit_status, (await stubborn.wait()).exit_status) == (3, 137)
        await ends(pid)
        with pytest.raises(e.FailedPrecondition, match="sandbox 'pod' is not running"):
            await one.container(world, "c3")
        await one.shutdown()
        await world.events.until("/tasks/delete", container_id="c1")
        await world.events.until("/tasks/delete", container_id="c2")

    in_world(tmp_path, body)


def test_process_of_a_sandbox_that_is_killed_ends_it(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world, HOLDS)
        await one.create()
        pid = (await one.start()).pid
        waiting = asyncio.create_task(one.wait())
        os.kill(pid, signal.SIGKILL)
        ended = await waiting
        assert ended.exit_status == 137
        assert (await one.status()).exited_at == ended.exited_at
        await one.shutdown()

    in_world(tmp_path, body)


def test_killed_shim_takes_the_process_of_its_sandbox_along(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world, HOLDS)
        await one.create()
        pid = (await one.start()).pid
        os.kill(await one.task.shim_pid(), signal.SIGKILL)
        await ends(pid)
        (tmp_path / "pod.sock").unlink()

    in_world(tmp_path, body)


@pytest.mark.parametrize(
    ("config", "netns", "text"),
    [
        (None, "/no/such/netns", "network namespace '/no/such/netns': No such file or directory"),
        (None, "/etc/passwd", "network namespace '/etc/passwd': Invalid argument"),
        ({**HOLDS, "hostname": "h" * 100}, "", "failed to make the namespaces"),
    ],
)
def test_namespaces_that_cannot_be_are_told(tmp_path: Path, config: Any, netns: str, text: str) -> None:
    async def body(world: World) -> None:
        one = await pod(world, config)
        await one.create(netns_path=netns)
        with pytest.raises(e.Unknown, match=text):
            await one.start()
        await one.shutdown()

    in_world(tmp_path, body)


def test_only_one_sandbox_and_only_its_own_id(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        one = await pod(world)
        for method, request in (("StartSandbox", api.StartSandboxRequest), ("PingSandbox", api.PingRequest)):
            with pytest.raises(e.NotFound):
                await one.call(method, request(sandbox_id="pod"), api.PingResponse)
        await one.create()
        with pytest.raises(e.AlreadyExists):
            await one.create()
        with pytest.raises(e.NotFound):
            await one.call("ShutdownSandbox", api.ShutdownSandboxRequest(sandbox_id="x"), api.ShutdownSandboxResponse)
        await one.shutdown()

    in_world(tmp_path, body)
