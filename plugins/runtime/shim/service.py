"""The task API of a shim, v2 and v3: finds the container that a request means, and answers in messages.

Source: `contracts/containerd.task.v3.tsv`, `contracts/shim-v2.md` 5.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from moored.kernel.errors import AlreadyExists, InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.payloads import Packed, TaskDelete
from moored.kernel.ports.invocations import Invocation, RuntimeOptions
from moored.kernel.protowire import decode
from moored.plugins.runtime.oci import invocations
from moored.plugins.runtime.shim import bundle as files
from moored.plugins.runtime.shim import log
from moored.plugins.runtime.shim import messages as m
from moored.plugins.runtime.shim.container import Container, Publish
from moored.plugins.runtime.shim.loop import Loop
from moored.plugins.runtime.shim.process import STOPPED, Process
from moored.plugins.runtime.shim.runc import Runtime
from moored.plugins.runtime.shim.wire import Method

M = TypeVar("M")

NAMES: Final = ("containerd.task.v3.Task", "containerd.task.v2.Task")
"""Both have the same methods and fields."""

_TURN: Final = 0.02
"""Seconds between two looks at whether a container is made by now."""
_TO_DIE: Final = 10.0
"""Seconds that a killed container may take to end."""


class House(Protocol):
    """A sandbox that the containers of a shim are in."""

    def goes_on(self) -> bool:
        """Whether the shim is needed without containers."""

    def check_open(self) -> None:
        """Refuse a container now. FailedPrecondition."""


class TaskService:
    """Every container of one shim; `shutdown` is called once the last is gone and the daemon asks for the end.

    house is None for a shim that serves no sandbox API.
    """

    house: House | None = None

    def __init__(self, loop: Loop, namespace: str, publish: Publish, shutdown: Callable[[], None]) -> None:
        self._loop = loop
        self._namespace = namespace
        self._publish = publish
        self._shutdown = shutdown
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._leaving: set[Process] = set()

    def methods(self) -> Mapping[str, Method]:
        """Give the methods by name."""
        return {
            "State": Method(m.ProcessRequest, self.state),
            "Create": Method(m.CreateTaskRequest, self.create),
            "Start": Method(m.ProcessRequest, self.start),
            "Delete": Method(m.ProcessRequest, self.delete),
            "Pids": Method(m.ContainerRequest, self.pids),
            "Pause": Method(m.ContainerRequest, self.pause),
            "Resume": Method(m.ContainerRequest, self.resume),
            "Checkpoint": Method(m.CheckpointTaskRequest, self.checkpoint),
            "Kill": Method(m.KillRequest, self.kill),
            "Exec": Method(m.ExecProcessRequest, self.exec),
            "ResizePty": Method(m.ResizePtyRequest, self.resize_pty),
            "CloseIO": Method(m.CloseIORequest, self.close_io),
            "Update": Method(m.UpdateTaskRequest, self.update),
            "Wait": Method(m.ProcessRequest, self.wait, waits=True),
            "Stats": Method(m.ContainerRequest, self.stats),
            "Connect": Method(m.ContainerRequest, self.connect),
            "Shutdown": Method(m.ShutdownRequest, self.shutdown),
        }

    def _container(self, container_id: str) -> Container:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound("container not created")
        return container

    # --- life -----------------------------------------------------------------------------------------------------

    async def create(self, request: m.CreateTaskRequest) -> m.PidResponse:
        """Make a container; its options are kept in the bundle for a `delete` without this process."""
        if request.id in self._containers or request.id in self._creating:
            raise AlreadyExists(f"container {request.id}")
        if self.house is not None:
            self.house.check_open()
        options, generic = _options(request.options)
        self._creating.add(request.id)
        try:
            files.write_options(request.bundle, options)
            invocation = invocation_of(request.bundle, options, generic, self._namespace)
            runtime = Runtime(self._loop, invocation, request.bundle, request.id)
            container = Container(self._loop, self._publish, request, namespace=self._namespace, runtime=runtime)
            await container.create(options)
            self._containers[request.id] = container
        finally:
            self._creating.discard(request.id)
        return m.PidResponse(container.init.pid)

    async def start(self, request: m.ProcessRequest) -> m.PidResponse:
        """Run init or an exec."""
        return m.PidResponse(await self._container(request.id).start(request.exec_id))

    async def delete(self, request: m.ProcessRequest) -> m.DeleteResponse:
        """Forget a process; for init, the whole container."""
        container = self._container(request.id)
        process = await container.delete(request.exec_id)
        if not request.exec_id and self._containers.pop(request.id, None) is not None:
            event = TaskDelete(
                container_id=request.id, pid=process.pid, exit_status=process.exit_status, exited_at=process.exited_at
            )
            self._publish(event)
            if process.pid:  # one that never ran is killed by the deletion, and its exit is told after it
                self._leaving.add(process)
                process.over.add_callback(lambda: self._leaving.discard(process))
        return m.DeleteResponse(process.pid, process.exit_status, process.exited_at)

    async def shutdown(self, request: m.ShutdownRequest) -> m.Empty:
        """End the shim, unless it still has containers, or a sandbox that takes more."""
        stays = self.house is not None and self.house.goes_on()
        if not self._containers and not self._creating and not stays:
            self._shutdown()
        return m.Empty()

    def ids(self) -> list[str]:
        """Every container's id."""
        return sorted(self._containers)

    async def end_all(self, seconds: float) -> None:
        """End every container: by SIGTERM and some time, if there is any, then by SIGKILL. Faults go to the log."""
        while self._creating:
            await self._loop.sleep(_TURN)
        living = [one for one in self._containers.values() if one.init.status != STOPPED]
        if seconds and living:
            await self._signal(living, signal.SIGTERM, seconds)
        await self._signal(living, signal.SIGKILL, _TO_DIE)

    async def _signal(self, containers: list[Container], number: int, seconds: float) -> None:
        """Send a signal to those that have not ended, and wait for their ends no longer than told."""
        living = [one for one in containers if one.init.status != STOPPED]
        for one in living:
            try:
                await one.kill("", number, everything=number == signal.SIGKILL)
            except MooredError as error:
                log.warning(f"container {one.id!r} was not sent signal {int(number)}: {error}")
        until = time.monotonic() + seconds
        for one in living:
            try:
                await self._loop.within(max(until - time.monotonic(), 0), one.init.over)
            except TimeoutError:
                if number == signal.SIGKILL:
                    log.error(f"container {one.id!r} has not ended within {seconds:g} s of being killed")

    async def remove_all(self) -> None:
        """Delete every container that ended. Faults go to the log."""
        for id_ in self.ids():
            try:
                await self.delete(m.ProcessRequest(id_))
            except MooredError as error:
                log.error(f"container {id_!r} was not deleted with its sandbox: {error}")

    async def settled(self) -> None:
        """Wait until the exits of all deleted containers are told."""
        while self._leaving:
            await next(iter(self._leaving)).over

    async def connect(self, request: m.ContainerRequest) -> m.ConnectResponse:
        """Tell pids; an unknown container has none."""
        container = self._containers.get(request.id)
        return m.ConnectResponse(os.getpid(), container.init.pid if container is not None else 0)

    # --- processes ------------------------------------------------------------------------------------------------

    async def state(self, request: m.ProcessRequest) -> m.StateResponse:
        """Tell all that is known of a process."""
        container = self._container(request.id)
        process = container.process(request.exec_id)
        return m.StateResponse(
            id=process.id or container.id,
            bundle=container.bundle,
            pid=process.pid,
            status=container.status_of(process),
            stdin=process.stdio.stdin,
            stdout=process.stdio.stdout,
            stderr=process.stdio.stderr,
            terminal=process.stdio.terminal,
            exit_status=process.exit_status,
            exited_at=process.exited_at,
        )

    async def wait(self, request: m.ProcessRequest) -> m.WaitResponse:
        """Wait for the end of a process; one that failed to start has ended at no time."""
        process = self._container(request.id).process(request.exec_id)
        await process.over
        return m.WaitResponse(process.exit_status, process.exited_at)

    async def exec(self, request: m.ExecProcessRequest) -> m.Empty:
        """Add a process without running it."""
        self._container(request.id).add(request)
        return m.Empty()

    async def kill(self, request: m.KillRequest) -> m.Empty:
        """Send a signal."""
        container = self._container(request.id)
        await container.kill(request.exec_id, request.signal, everything=request.all)
        return m.Empty()

    async def resize_pty(self, request: m.ResizePtyRequest) -> m.Empty:
        """Set the size of a terminal."""
        self._container(request.id).resize(request.exec_id, request.width, request.height)
        return m.Empty()

    async def close_io(self, request: m.CloseIORequest) -> m.Empty:
        """Let a process read the end of its input."""
        self._container(request.id).close_stdin(request.exec_id)
        return m.Empty()

    async def pids(self, request: m.ContainerRequest) -> m.PidsResponse:
        """List every process in the container."""
        return m.PidsResponse(tuple(await self._container(request.id).pids()))

    # --- the whole container --------------------------------------------------------------------------------------

    async def pause(self, request: m.ContainerRequest) -> m.Empty:
        """Freeze."""
        await self._container(request.id).pause()
        return m.Empty()

    async def resume(self, request: m.ContainerRequest) -> m.Empty:
        """Thaw."""
        await self._container(request.id).resume()
        return m.Empty()

    async def checkpoint(self, request: m.CheckpointTaskRequest) -> m.Empty:
        """Write a CRIU image."""
        options = m.CheckpointOptions()
        if request.options is not None:
            options = _decoded(request.options, m.CHECKPOINT_OPTIONS_URL, m.CheckpointOptions)
        await self._container(request.id).checkpoint(request.path, options)
        return m.Empty()

    async def update(self, request: m.UpdateTaskRequest) -> m.Empty:
        """Change limits."""
        container = self._container(request.id)
        if request.resources is None or not request.resources.value:
            raise InvalidArgument("resources must be given")
        await container.update(request.resources.value)
        return m.Empty()

    async def stats(self, request: m.ContainerRequest) -> m.StatsResponse:
        """Give the counters of the cgroup."""
        return m.StatsResponse(self._container(request.id).stats())


def invocation_of(bundle: str, options: m.Options, generic: m.GenericOptions, namespace: str) -> Invocation:
    """How to call the runtime: as the daemon wrote it into the bundle, else as the options have it."""
    data = files.read(bundle, files.INVOCATION)
    if data is not None:
        return invocations.from_json(data)
    wanted = RuntimeOptions(
        binary=options.binary_name,
        root=options.root,
        systemd_cgroup=options.systemd_cgroup,
        no_pivot_root=options.no_pivot_root,
        no_new_keyring=options.no_new_keyring,
        criu_image_path=options.criu_image_path,
        criu_work_path=options.criu_work_path,
        config_path=generic.config_path,
        config_body=generic.config_body,
    )
    return invocations.default_invocation(wanted, namespace, files.spec_of(bundle))


def _options(value: Packed | None) -> tuple[m.Options, m.GenericOptions]:
    if value is None or not value.value:
        return m.Options(), m.GenericOptions()
    if _name(value.type_url) == m.GENERIC_OPTIONS_URL:
        return m.Options(), _decoded(value, m.GENERIC_OPTIONS_URL, m.GenericOptions)
    return _decoded(value, m.OPTIONS_URL, m.Options), m.GenericOptions()


def _decoded(value: Packed, name: str, kind: type[M]) -> M:
    if _name(value.type_url) != name:
        raise Unknown(f"type with url {value.type_url}: not found")
    try:
        return decode(kind, value.value)
    except ValueError as error:
        raise InvalidArgument(f"options of type {name!r} cannot be read: {error}") from error


def _name(url: str) -> str:
    return url.rpartition("/")[2]
