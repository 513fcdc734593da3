"""Our shim for tests: forked by a real zygote, with a daemon's ttrpc socket that takes its events, and bundles."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from moored.api.runtime.task.v3 import shim_pb2 as pb
from moored.api.services.ttrpc.events.v1.events_pb2 import ForwardRequest
from moored.api.ttrpc.client import Client, connect
from moored.api.ttrpc.server import CallContext, Kind, Method, Server, Services
from moored.kernel import payloads
from moored.kernel.ports.invocations import RuntimeOptions
from moored.plugins.runtime.oci.invocations import default_invocation, to_json
from moored.plugins.runtime.shim.launcher import Spawn, Zygote

BUSYBOX = shutil.which("busybox")
RUNTIMES = [name for name in ("runc", "crun") if shutil.which(name)]
EVERY_RUNTIME = [*RUNTIMES, *(["runsc"] if shutil.which("runsc") else [])]
CGROUPS = Path("/sys/fs/cgroup")

needs_runtime = [
    pytest.mark.root,
    pytest.mark.skipif(not BUSYBOX or not RUNTIMES or os.geteuid() != 0, reason="needs root, busybox, runc or crun"),
]
"""Marks of tests that run containers."""

V3 = "containerd.task.v3.Task"
V2 = "containerd.task.v2.Task"
EXEC = {"cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}


class EventLog:
    """A daemon's ttrpc socket that keeps the task events sent to it, in their order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, payloads.Payload]] = []
        self._changed = asyncio.Event()

    async def forward(self, request: ForwardRequest, context: CallContext) -> Empty:
        """Take one."""
        envelope = request.envelope
        packed = payloads.Packed(type_url=envelope.event.type_url, value=envelope.event.value)
        found = payloads.unpack(packed)
        assert found is not None
        assert envelope.namespace == "test"
        assert envelope.HasField("timestamp")
        self.seen.append((envelope.topic, found))
        self._changed.set()
        return Empty()

    @property
    def topics(self) -> list[str]:
        """What came so far."""
        return [topic for topic, _ in self.seen]

    async def until(self, topic: str, **fields: object) -> Any:
        """Wait for the first event of a topic with such fields."""
        async with asyncio.timeout(20):
            while True:
                for name, event in self.seen:
                    if name == topic and all(getattr(event, key) == value for key, value in fields.items()):
                        return event
                self._changed.clear()
                await self._changed.wait()


class Task:
    """One container behind a shim, called as a daemon would."""

    def __init__(self, client: Client, container_id: str, bundle: Path, service: str = V3) -> None:
        self.client = client
        self.id = container_id
        self.bundle = bundle
        self._service = service

    async def call(self, method: str, request: Message, response: type[Any] = Empty, timeout: float = 30) -> Any:  # noqa: ASYNC109
        """Any method."""
        return await self.client.unary(self._service, method, request, response, timeout=timeout)

    async def create(self, **fields: Any) -> int:
        """Create and give the pid."""
        request = pb.CreateTaskRequest(id=self.id, bundle=str(self.bundle), **fields)
        return (await self.call("Create", request, pb.CreateTaskResponse)).pid

    async def start(self, exec_id: str = "") -> int:
        """Start and give the pid."""
        return (await self.call("Start", pb.StartRequest(id=self.id, exec_id=exec_id), pb.StartResponse)).pid

    async def exec(self, exec_id: str, *args: str, **fields: Any) -> None:
        """Add an exec."""
        spec = AnyMessage(value=json.dumps({**EXEC, "args": args}).encode())
        await self.call("Exec", pb.ExecProcessRequest(id=self.id, exec_id=exec_id, spec=spec, **fields))

    async def state(self, exec_id: str = "") -> pb.StateResponse:
        """State."""
        return await self.call("State", pb.StateRequest(id=self.id, exec_id=exec_id), pb.StateResponse)

    async def wait(self, exec_id: str = "") -> pb.WaitResponse:
        """Wait."""
        return await self.call("Wait", pb.WaitRequest(id=self.id, exec_id=exec_id), pb.WaitResponse)

    async def kill(self, signal: int, exec_id: str = "", everything: bool = False) -> None:
        """Kill."""
        await self.call("Kill", pb.KillRequest(id=self.id, exec_id=exec_id, signal=signal, all=everything))

    async def delete(self, exec_id: str = "") -> pb.DeleteResponse:
        """Delete."""
        return await self.call("Delete", pb.DeleteRequest(id=self.id, exec_id=exec_id), pb.DeleteResponse)

    async def pids(self) -> list[Any]:
        """Pids."""
        return list((await self.call("Pids", pb.PidsRequest(id=self.id), pb.PidsResponse)).processes)

    async def shim_pid(self) -> int:
        """The pid of the shim."""
        return (await self.call("Connect", pb.ConnectRequest(id=self.id), pb.ConnectResponse)).shim_pid

    async def shutdown(self) -> None:
        """Shutdown, and wait until the shim is gone."""
        await self.call("Shutdown", pb.ShutdownRequest(id=self.id))
        async with asyncio.timeout(10):
            await self.client.wait_closed()

    async def end(self) -> None:
        """Kill, wait, delete, shut down: however far it came."""
        if (await self.state()).status != 3:
            await self.kill(9)
            await self.wait()
        await self.delete()
        await self.shutdown()


class World:
    """A zygote, a daemon's ttrpc socket and bundles below one folder."""

    def __init__(self, folder: Path, zygote: Zygote, events: EventLog) -> None:
        self.folder = folder
        self.zygote = zygote
        self.events = events
        self.ttrpc = folder / "d.ttrpc"
        self._clients: list[Client] = []
        self._daemon: Server | None = None

    def bundle(self, container_id: str, *args: str, runtime: str = "runc", **changes: Any) -> Path:
        """A bundle whose container runs a busybox command."""
        bundle = self.folder / container_id
        root = bundle / "rootfs"
        for name in ("bin", "dev", "proc", "sys", "tmp"):
            (root / name).mkdir(parents=True)
        assert BUSYBOX is not None
        shutil.copy(BUSYBOX, root / "bin/busybox")
        for name in ("sh", "sleep", "true", "cat", "kill"):
            (root / "bin" / name).symlink_to("busybox")
        (bundle / "work").mkdir()
        wanted = spec(container_id, args or ("sleep", "1000"), **changes)
        (bundle / "config.json").write_text(json.dumps(wanted))
        options = RuntimeOptions(binary=runtime, root=str(self.folder / "state" / runtime))
        (bundle / "runtime.json").write_bytes(to_json(default_invocation(options, "test", wanted)))
        os.mkfifo(bundle / "log", 0o700)
        return bundle

    def spawn(self, bundle: Path) -> Spawn:
        """What to ask the zygote for."""
        return Spawn(
            namespace="test",
            id=bundle.name,
            bundle=str(bundle),
            address=f"unix://{self.folder}/{bundle.name}.sock",
            ttrpc_address=str(self.ttrpc),
            grpc_address=str(self.folder / "d.sock"),
        )

    async def connect(self, path: str) -> Client:
        """A connection to a shim."""
        client = await connect(path)
        self._clients.append(client)
        return client

    async def task(self, container_id: str, *args: str, **options: Any) -> Task:
        """A shim with a bundle, nothing created."""
        bundle = self.bundle(container_id, *args, **options)
        wanted = self.spawn(bundle)
        await self.zygote.spawn(wanted)
        return Task(await self.connect(wanted.socket_path), container_id, bundle)

    async def start_daemon(self) -> None:
        """Listen on the daemon's ttrpc socket."""
        services = Services()
        method = Method(Kind.UNARY, ForwardRequest, Empty, self.events.forward)
        services.register("containerd.services.events.ttrpc.v1.Events", {"Forward": method})
        self._daemon = Server(services)
        await self._daemon.listen(str(self.ttrpc))

    async def stop_daemon(self) -> None:
        """Close that, as a daemon does that ends."""
        if self._daemon is not None:
            await self._daemon.close()
            self._daemon = None

    async def close(self) -> None:
        """Hang up."""
        for client in self._clients:
            await client.close()
        await self.stop_daemon()


def mounted(path: Path) -> bool:
    """Whether anything is mounted there."""
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


def spec(container_id: str, args: tuple[str, ...], *, private_pids: bool = True, **process: Any) -> dict[str, Any]:
    """An OCI spec in a cgroup of its own."""
    namespaces = ["mount", "ipc", "uts", *(["pid"] if private_pids else [])]
    return {
        "ociVersion": "1.0.2",
        "process": {**EXEC, "args": args, "terminal": False, **process},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "cgroupsPath": f"/moored-test/{os.getpid()}/{container_id}",
            "namespaces": [{"type": name} for name in namespaces],
        },
    }


def in_world(folder: Path, body: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Run a test's body with a zygote; then find no process, mount, cgroup or socket left."""

    async def main() -> None:
        events = EventLog()
        async with asyncio.timeout(60), Zygote() as zygote:
            world = World(folder, zygote, events)
            await world.start_daemon()
            try:
                await body(world)
            finally:
                await world.close()

    try:
        asyncio.run(main())
        deadline = time.monotonic() + 5
        while left := _left(folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.01)
    finally:
        _clean(folder)


def _left(folder: Path) -> list[str]:
    found = [f"process {pid} {words}" for pid, words in _processes(folder).items()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    return [*found, *(str(path) for path in folder.glob("*.sock")), *_cgroups()]


def _processes(folder: Path) -> Mapping[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                where = (entry / "cwd").readlink(), (entry / "root").readlink()
            except OSError:
                continue
            if any(folder in (path, *path.parents) for path in where):
                found[int(entry.name)] = (entry / "cmdline").read_text()
    return found


def _cgroups() -> list[str]:
    return [str(path) for top in CGROUPS.iterdir() for path in (top / "moored-test" / str(os.getpid())).glob("*/")]


def _clean(folder: Path) -> None:
    for pid in _processes(folder):
        os.kill(pid, 9)
    for top in CGROUPS.iterdir():
        own = top / "moored-test" / str(os.getpid())
        for path in (*own.glob("*/"), own):
            if path.is_dir():
                path.rmdir()
