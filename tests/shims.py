"""Runs the task runtime over real and fake shims on private paths, and finds whatever they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import CapturingLogger

from moored.api.errors import to_status
from moored.api.services.ttrpc.events.v1 import events_pb2
from moored.api.ttrpc.server import Server, Services
from moored.kernel.hooks import new_manager
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.events import Envelope, Fields
from moored.kernel.ports.tasks import NewTask
from moored.plugins.events.exchange.exchange import Bounds, LocalExchange
from moored.plugins.runtime.manager.bootstrap import Daemon
from moored.plugins.runtime.manager.bundle import Folders
from moored.plugins.runtime.manager.choice import Runtimes
from moored.plugins.runtime.manager.manager import ShimManager
from moored.plugins.runtime.manager.runtime import TaskRuntime
from moored.plugins.runtime.manager.shim import Deadlines
from moored.plugins.runtime.oci.driver import Driver
from moored.plugins.runtime.oci.invocations import Settings
from moored.plugins.services.events.service import TtrpcEventsService

DEBIAN_SHIM = "/usr/bin/containerd-shim-runc-v2"
NEW_SHIM = "/opt/ctd2/containerd-shim-runc-v2"
SHIMS = [path for path in (DEBIAN_SHIM, os.environ.get("MOORED_TEST_SHIM", NEW_SHIM)) if Path(path).exists()]
"""Real shims of containerd: 1.6 and 2.x."""
OWN = "io.containerd.runc.v2"
"""The name that is mapped to runc below our own shim."""
BUSYBOX = shutil.which("busybox")
RUNC = Settings(driver="runc", root="/run/containerd/runc")
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PATIENCE = 20.0
CGROUPS = Path("/sys/fs/cgroup")

needs_runc = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("runc") or not BUSYBOX or not SHIMS,
        reason="needs root, runc, busybox and a shim of containerd",
    ),
]
"""Marks of tests that run containers."""


@dataclass
class World:
    """One life of the daemon's part: a runtime, the events that it and its shims sent, what it logged."""

    runtime: TaskRuntime
    manager: ShimManager
    exchange: LocalExchange
    events: list[Envelope] = field(default_factory=list)
    logged: list[Any] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self, topic: str) -> list[Any]:
        """The payloads sent under a topic so far."""
        return [Fields(one).payload for one in self.events if one.topic == topic]

    async def hears(self, topic: str, count: int = 1) -> list[Any]:
        """Wait for so many events of a topic."""
        async with asyncio.timeout(PATIENCE):
            while len(self.told(topic)) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.told(topic)

    def log_text(self) -> str:
        """All that was logged."""
        return "\n".join(f"{call.method_name} {call.args} {call.kwargs}" for call in self.logged)


@dataclass
class Place:
    """Private paths of one test, which outlive its worlds, and a namespace of its own."""

    folder: Path
    namespace: str
    hooks: Any = field(default_factory=new_manager)

    @property
    def folders(self) -> Folders:
        """Where bundles are."""
        return Folders(self.folder / "state" / "task", self.folder / "root" / "task")

    @property
    def daemon(self) -> Daemon:
        """What shims are told."""
        return Daemon(
            grpc=f"{self.folder}/m.sock",
            ttrpc=f"{self.folder}/m.sock.ttrpc",
            binary=sys.executable,
            version="2.3.4+test",
            socket_dir=self.folder / "s",
        )

    @property
    def rootfs(self) -> Path:
        """A root file system with busybox."""
        root = self.folder / "rootfs"
        if not root.exists():
            for name in ("bin", "proc", "dev", "sys", "tmp"):
                (root / name).mkdir(parents=True)
            shutil.copy(str(BUSYBOX), root / "bin/busybox")
            for name in ("sh", "sleep", "true", "cat"):
                (root / "bin" / name).hardlink_to(root / "bin/busybox")
        return root

    def spec(self, *args: str, id_: str = "c", annotations: dict[str, str] | None = None) -> TypedBytes:
        """An OCI spec that runs a command."""
        spec = {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/"},
            "root": {"path": str(self.rootfs)},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                # each needs one of its own, runtimes make links in it
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": f"/{self.namespace}/{id_}",
                "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            },
            "annotations": annotations or {},
        }
        return TypedBytes(SPEC, json.dumps(spec).encode())

    def new(self, runtime: str, *args: str, id_: str = "c", **more: Any) -> NewTask:
        """A task that runs a command."""
        annotations = more.pop("annotations", None)
        return NewTask(runtime=runtime, spec=self.spec(*args, id_=id_, annotations=annotations), **more)

    @asynccontextmanager
    async def world(self, deadlines: Deadlines | None = None) -> AsyncGenerator[World]:
        """One life of the runtime. It ends as a daemon does that is stopped: shims go on."""
        capture = CapturingLogger()
        log = structlog.wrap_logger(capture, processors=[], wrapper_class=structlog.stdlib.BoundLogger)
        exchange = LocalExchange(Bounds(1000, 1 << 20), structlog.get_logger(), lambda *_: None)
        manager = ShimManager(self.daemon, deadlines or Deadlines(), log)
        self.folders.state.mkdir(parents=True, exist_ok=True)
        self.folders.root.mkdir(parents=True, exist_ok=True)
        runtime = TaskRuntime(
            manager=manager,
            folders=self.folders,
            events=exchange,
            runtimes=Runtimes(
                {OWN: "runc"}, {"runc": Driver(Settings(driver="runc", root="/run/containerd/runc"), 10)}
            ),
            hooks=self.hooks,
            log=log,
        )
        world = World(runtime, manager, exchange, logged=capture.calls)
        async with _events(self.daemon.ttrpc, exchange), _collected(world):
            try:
                async with runtime.running():
                    with bind(namespace=self.namespace):
                        yield world
            finally:
                await manager.close()
                exchange.stop()

    # --- what is left -------------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Every process that names our folder, or works in it."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    words = (entry / "cmdline").read_bytes()
                    cwd = str((entry / "cwd").readlink())
                    if str(self.folder).encode() in words or cwd.startswith(str(self.folder)):
                        found.append(int(entry.name))
        return found

    def remains(self) -> list[str]:
        """Bundles, mounts, sockets, cgroups and runtime states that are still there."""
        bundles = [str(path) for top in (self.folders.state, self.folders.root) for path in top.glob("*/*")]
        bundles += [str(path) for top in (self.folders.state, self.folders.root) for path in top.glob("*/.*")]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        sockets = [path for path in self._sockets() if os.path.lexists(path)]
        cgroups = [str(path) for path in CGROUPS.glob(f"*/{self.namespace}/*") if path.is_dir()]
        states = [str(path) for path in Path("/run/containerd/runc", self.namespace).glob("*")]
        return [*bundles, *mounts, *sockets, *cgroups, *states]

    def _sockets(self) -> list[str]:
        ids = ("c", "c1", "c2", "group")
        return [path for id_ in ids for path in self.daemon.sockets(self.namespace, id_)]

    def assert_clean(self) -> None:
        """Fail if anything is left, once what is ending has ended."""
        deadline = time.monotonic() + PATIENCE
        for pid in self.processes():
            wait_for_end(pid, deadline - time.monotonic())
        assert self.processes() == []
        assert self.remains() == []

    def destroy(self) -> None:
        """Make sure that nothing stays, whatever the test did."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for state in Path("/run/containerd/runc", self.namespace).glob("*"):
            os.spawnlp(os.P_WAIT, "runc", "runc", "--root", str(state.parent), "delete", "--force", state.name)
        with suppress(OSError):
            Path("/run/containerd/runc", self.namespace).rmdir()
        for path in self._sockets():
            with suppress(FileNotFoundError):
                Path(path).unlink()
        for folder in sorted(CGROUPS.glob(f"*/{self.namespace}/**/"), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        for folder in CGROUPS.glob(f"*/{self.namespace}"):
            with suppress(OSError):
                folder.rmdir()


@asynccontextmanager
async def _events(path: str, exchange: LocalExchange) -> AsyncGenerator[None]:
    services = Services()
    services.add(events_pb2.DESCRIPTOR.services_by_name["Events"], TtrpcEventsService(exchange))
    server = Server(services, error_to_status=to_status)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    await server.serve(sock)
    try:
        yield
    finally:
        await server.stop(0.5)
        Path(path).unlink(missing_ok=True)  # noqa: ASYNC240 - nothing else runs


@asynccontextmanager
async def _collected(world: World) -> AsyncGenerator[None]:
    async def collect() -> None:
        async with world.exchange.subscribe() as envelopes:
            subscribed.set()
            async for envelope in envelopes:
                world.events.append(envelope)
                world.arrived.set()

    subscribed = asyncio.Event()
    task = asyncio.create_task(collect())
    await subscribed.wait()
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def place(folder: Path) -> Generator[Place]:
    """Private paths; fails if anything is left on them."""
    # paths of sockets are short
    namespace = f"t-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    one = Place(folder, namespace)
    try:
        yield one
        one.assert_clean()
    finally:
        one.destroy()


def shim_name(runtime: str) -> str:
    """What to call a runtime in the names of tests."""
    return "2.x" if "ctd2" in runtime else "ours" if runtime == OWN else "1.6"


def wait_for_end(pid: int, seconds: float = PATIENCE) -> None:
    """Wait for the end of any process; AssertionError with its name if it goes on."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended = select.select([fd], [], [], max(seconds, 0))[0]
        assert ended, f"process {pid} goes on: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
    finally:
        os.close(fd)


def fake(folder: Path, name: str = "fake", **behaviour: Any) -> str:
    """Make a fake shim that behaves so, and give its path; what it was asked is in `calls_of`."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    path = bin_ / name
    script = Path(__file__).with_name("fake_shim.py")
    python_path = os.pathsep.join(one for one in sys.path if one)
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{python_path}" exec {sys.executable} -S {script} {path} "$@"\n')
    path.chmod(0o755)
    record = {"record": str(bin_ / f"{name}.calls"), **behaviour}
    (bin_ / f"{name}.json").write_text(json.dumps(record))
    return str(path)


def calls_of(path: str) -> list[str]:
    """Every call of a fake shim so far, of its program and of its service."""
    return Path(f"{path}.calls").read_text().splitlines()


def shim_pid(place_: Place, id_: str = "c") -> int:
    """The serving process of a container's shim."""
    bundle = str(place_.folders.state / place_.namespace / id_)
    pids = []
    for pid in place_.processes():
        with suppress(OSError):
            if str(Path(f"/proc/{pid}/cwd").readlink()) == bundle:
                pids.append(pid)
    assert len(pids) == 1, pids
    return pids[0]
