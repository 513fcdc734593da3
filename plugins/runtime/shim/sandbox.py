"""The sandbox API of a shim: one sandbox, whose containers are those of the task API of the same shim.

    CreateSandbox ──> StartSandbox ──> READY ── StopSandbox, or the end of its process ──> ended ── ShutdownSandbox

What the sandbox itself is depends on what is asked for (`podwishes`), from the cheapest up: the shim's own process; a
process that holds namespaces (`holder`); or, where a root file system is given along with a spec that has a process, a
container of the OCI runtime. StartSandbox tells its pid, whose namespaces containers join by their specs.

While there is a sandbox the shim goes on without containers; ShutdownSandbox ends it. Source: `contracts/shim-v2.md` 6.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from moored.kernel.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.payloads import Packed
from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim import sandboxmessages as s
from moored.plugins.runtime.shim.cgroups import ROOT, Cgroups
from moored.plugins.runtime.shim.container import Container
from moored.plugins.runtime.shim.holder import hold
from moored.plugins.runtime.shim.loop import ExitStatus, Future, Loop
from moored.plugins.runtime.shim.podwishes import Wishes, wishes_of
from moored.plugins.runtime.shim.runc import Runtime
from moored.plugins.runtime.shim.service import TaskService, invocation_of
from moored.plugins.runtime.shim.stats import stats_of
from moored.plugins.runtime.shim.wire import Method

NAME: Final = "containerd.runtime.sandbox.v1.Sandbox"
READY: Final = "SANDBOX_READY"
NOT_READY: Final = "SANDBOX_NOTREADY"
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
_KILL: Final = 9


class Body(Protocol):
    """What a sandbox is made of."""

    @property
    def pid(self) -> int:
        """The process whose namespaces are the sandbox'."""

    @property
    def ended(self) -> Future[ExitStatus]:
        """How it ended."""

    def end(self) -> Awaitable[None]:
        """End it and undo all that is left of it."""


class _Shim:
    """The shim itself: nothing to make and nothing to undo."""

    def __init__(self, loop: Loop) -> None:
        self.pid = os.getpid()
        self.ended: Future[ExitStatus] = loop.future()

    async def end(self) -> None:
        """See Body."""
        if not self.ended.done():
            self.ended.set_result(ExitStatus(0, time.time_ns()))


class _Contained:
    """A container of the OCI runtime that clients of the task API do not see."""

    def __init__(self, loop: Loop, container: Container) -> None:
        self.pid = container.init.pid
        self.ended: Future[ExitStatus] = loop.future()
        self._container: Container | None = container
        container.init.over.add_callback(self._tell)

    def _tell(self) -> None:
        if self._container is not None and not self.ended.done():
            init = self._container.init
            self.ended.set_result(ExitStatus(init.exit_status, init.exited_at))

    async def end(self) -> None:
        """See Body."""
        if (container := self._container) is None:
            return
        with suppress(NotFound):
            await container.kill("", _KILL, everything=True)
        await container.init.over
        self._container = None
        await container.delete("")


async def _contained(loop: Loop, namespace: str, request: s.CreateSandboxRequest) -> _Contained:
    """Run the spec's process in the root file system that came with the request."""
    bundle, id_ = request.bundle_path, request.sandbox_id
    invocation = invocation_of(bundle, m.Options(), m.GenericOptions(), namespace)
    create = m.CreateTaskRequest(id=id_, bundle=bundle, rootfs=request.rootfs)
    runtime = Runtime(loop, invocation, bundle, id_)
    container = Container(loop, lambda _event: None, create, namespace=namespace, runtime=runtime)
    await container.create(m.Options())
    body = _Contained(loop, container)
    try:
        await container.start("")
    except BaseException:
        await body.end()
        raise
    return body


class SandboxService:
    """The only sandbox of a shim, if it has one.

    was_shut tells whether ShutdownSandbox was called.

    tasks  the containers; it asks this service whether one may be made, and whether the shim goes on without any
    """

    def __init__(self, loop: Loop, namespace: str, tasks: TaskService) -> None:
        self._loop = loop
        self._namespace = namespace
        self._tasks = tasks
        self._request: s.CreateSandboxRequest | None = None
        self._wishes = Wishes({})
        self._body: Body | None = None
        self._created_at = m.NEVER
        self._starting = False
        self._stopping = False
        self._over: Future[ExitStatus] = loop.future()
        self.was_shut = False

    def methods(self) -> Mapping[str, Method]:
        """Give the methods by name."""
        return {
            "CreateSandbox": Method(s.CreateSandboxRequest, self.create),
            "StartSandbox": Method(s.SandboxRequest, self.start),
            "Platform": Method(s.SandboxRequest, self.platform),
            "StopSandbox": Method(s.StopSandboxRequest, self.stop),
            "WaitSandbox": Method(s.SandboxRequest, self.wait, waits=True),
            "SandboxStatus": Method(s.SandboxStatusRequest, self.status),
            "PingSandbox": Method(s.SandboxRequest, self.ping),
            "ShutdownSandbox": Method(s.SandboxRequest, self.shutdown),
            "SandboxMetrics": Method(s.SandboxRequest, self.metrics),
        }

    # --- for the task API ---------------------------------------------------------------------------------------------

    def goes_on(self) -> bool:
        """Whether the shim is needed without containers."""
        return self._request is not None

    def check_open(self) -> None:
        """Refuse a container while the sandbox is not running. FailedPrecondition."""
        if self._request is not None and (self._body is None or self._stopping or self._over.done()):
            raise FailedPrecondition(f"sandbox {self._request.sandbox_id!r} is not running")

    # --- life ---------------------------------------------------------------------------------------------------------

    def _known(self, sandbox_id: str) -> s.CreateSandboxRequest:
        if self._request is None or self._request.sandbox_id != sandbox_id:
            raise NotFound(f"sandbox {sandbox_id!r}")
        return self._request

    async def create(self, request: s.CreateSandboxRequest) -> m.Empty:
        """Take note of what is asked for; AlreadyExists for a second one."""
        if self._request is not None:
            raise AlreadyExists(f"sandbox {self._request.sandbox_id!r}")
        if not request.sandbox_id:
            raise InvalidArgument("sandbox id is empty")
        try:
            self._wishes = wishes_of(_spec_of(request.bundle_path), request.options, request.netns_path)
        except (TypeError, AttributeError) as error:
            raise InvalidArgument(f"spec of sandbox {request.sandbox_id!r} is not one of OCI: {error}") from error
        self._request = request
        self._created_at = time.time_ns()
        return m.Empty()

    async def start(self, request: s.SandboxRequest) -> s.StartSandboxResponse:
        """Make what holds the namespaces."""
        known = self._known(request.sandbox_id)
        if self._body is not None or self._starting or self._stopping:
            raise FailedPrecondition(f"sandbox {request.sandbox_id!r} was started before")
        self._starting = True
        try:
            body = await self._make(known)
        finally:
            self._starting = False
        self._body = body
        body.ended.add_callback(lambda: self._ended(body.ended.result()))
        return s.StartSandboxResponse(body.pid, self._created_at)

    async def _make(self, request: s.CreateSandboxRequest) -> Body:
        if request.rootfs and "process" in _spec_of(request.bundle_path):
            return await _contained(self._loop, self._namespace, request)
        if self._wishes.namespaces:
            return await hold(self._loop, self._wishes)
        return _Shim(self._loop)

    def _ended(self, status: ExitStatus) -> None:
        if not self._over.done():
            self._over.set_result(status)

    async def stop(self, request: s.StopSandboxRequest) -> m.Empty:
        """End every container, by force after the time given, and then the sandbox' own process."""
        self._known(request.sandbox_id)
        await self._stop(request.timeout_secs)
        return m.Empty()

    async def _stop(self, seconds: float) -> None:
        self._stopping = True
        await self._tasks.end_all(seconds)
        if self._body is not None:
            await self._body.end()
        else:
            self._ended(ExitStatus(0, time.time_ns()))

    async def wait(self, request: s.SandboxRequest) -> m.WaitResponse:
        """Wait for the end."""
        self._known(request.sandbox_id)
        status = await self._over
        return m.WaitResponse(int(status), status.at)

    async def shutdown(self, request: s.SandboxRequest) -> m.Empty:
        """Stop, remove what is left of all containers, and end the shim."""
        if self._request is not None:
            self._known(request.sandbox_id)
            await self._stop(0)
            await self._tasks.remove_all()
            self._request = None
        self.was_shut = True
        await self._tasks.shutdown(m.ShutdownRequest(request.sandbox_id))
        return m.Empty()

    # --- asking -------------------------------------------------------------------------------------------------------

    async def platform(self, request: s.SandboxRequest) -> s.PlatformResponse:
        """Containers are the host's own kind."""
        self._known(request.sandbox_id)
        machine = os.uname().machine
        return s.PlatformResponse(s.Platform("linux", _ARCHITECTURES.get(machine, machine)))

    async def ping(self, request: s.SandboxRequest) -> m.Empty:
        """Tell that it is there."""
        self._known(request.sandbox_id)
        return m.Empty()

    async def status(self, request: s.SandboxStatusRequest) -> s.SandboxStatusResponse:
        """Tell how it is."""
        self._known(request.sandbox_id)
        over, body = self._over.done(), self._body
        return s.SandboxStatusResponse(
            sandbox_id=request.sandbox_id,
            pid=body.pid if body is not None else 0,
            state=READY if body is not None and not over else NOT_READY,
            info={"info": json.dumps(self._info())} if request.verbose else {},
            created_at=self._created_at,
            exited_at=self._over.result().at if over else m.NEVER,
        )

    def _info(self) -> dict[str, Any]:
        return {
            "shimPid": os.getpid(),
            "namespaces": dict(self._wishes.namespaces),
            "hostname": self._wishes.hostname,
            "sysctls": dict(self._wishes.sysctls),
            "cgroupParent": self._wishes.cgroup,
            "containers": self._tasks.ids(),
        }

    async def metrics(self, request: s.SandboxRequest) -> s.SandboxMetricsResponse:
        """Give the counters of the cgroup that CRI made for the pod. NotFound without one."""
        self._known(request.sandbox_id)
        if not self._wishes.cgroup.startswith("/"):
            raise NotFound(f"sandbox {request.sandbox_id!r} has no cgroup of its own")
        kind, value = stats_of(_cgroups_at(self._wishes.cgroup))
        return s.SandboxMetricsResponse(s.Metric(time.time_ns(), request.sandbox_id, Packed(kind, value)))


def _spec_of(bundle: str) -> Mapping[str, Any]:
    """Give the sandbox' spec, which may be missing."""
    try:
        return files.spec_of(bundle)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InvalidArgument(f"spec of the sandbox is no JSON: {error}") from error


def _cgroups_at(path: str) -> Cgroups:
    """Give the folders of a cgroup by its path below the root of every hierarchy."""
    if os.access(f"{ROOT}/cgroup.controllers", os.F_OK):
        return Cgroups(unified=f"{ROOT}{path}")
    with suppress(OSError):
        return Cgroups(controllers={name: f"{ROOT}/{name}{path}" for name in os.listdir(ROOT)})
    return Cgroups()
