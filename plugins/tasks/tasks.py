"""The Tasks port: finds the container, then its task, and passes the call on. Source: semantics 4."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import AlreadyExists, InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.filters import MappingAdaptor, compile_filters
from moored.kernel.namespaces import bind, current_namespace, validate_identifier
from moored.kernel.ports.containers import ContainerStore, TypedBytes
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.introspection import Warnings
from moored.kernel.ports.tasks import (
    CreateTask,
    Exit,
    Metric,
    NewTask,
    ProcessInfo,
    ProcessState,
    Runtime,
    SandboxEndpoint,
    Status,
    Stdio,
    Task,
    TaskMonitor,
)
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.tasks.checkpoints import Checkpoints, Name
from moored.plugins.tasks.options import CheckpointOptions, RuncOptions, read_options
from moored.plugins.tasks.rootfs import RootFilesystems

RESTORE_FROM: Final = "RestoreFromPath"
"""Annotation of a checkpoint's descriptor: the folder of a CRIU image, in place of the content store. The task is made
with the files that lie beside that folder, and running."""
_DEPRECATED: Final = "io.containerd.deprecation/runc-options-task-api-"
_INSTEAD: Final = (
    "`task_api_{0}` of runc options is deprecated, `task_api_{0}` of the request to create a task replaces it"
)


@dataclass(frozen=True, slots=True)
class Watchers:
    """All monitors as one."""

    monitors: Sequence[TaskMonitor]

    async def watch(self, task: Task, runtime: str) -> None:
        """Tell all of a task and the name of what runs it."""
        for monitor in self.monitors:
            await monitor.watch(task, {"runtime": runtime} if runtime else {})

    async def forget(self, task: Task) -> None:
        """Tell all that a task is gone."""
        for monitor in self.monitors:
            await monitor.forget(task)


class LocalTasks:
    """Tasks over a runtime of this process."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        containers: ContainerStore,
        checkpoints: Checkpoints,
        rootfs: RootFilesystems,
        monitors: Sequence[TaskMonitor],
        warnings: Warnings,
        log: FilteringBoundLogger,
    ) -> None:
        self._runtime = runtime
        self._containers = containers
        self._checkpoints = checkpoints
        self._rootfs = rootfs
        self._watchers = Watchers(monitors)
        self._warnings = warnings
        self._log = log
        self._turns: Turns[Name] = Turns()

    async def open(self) -> None:
        """Take up the tasks that outlived an earlier daemon."""
        tasks = self._runtime.list(everywhere=True)
        await self._checkpoints.open([(task.namespace, task.id) for task in tasks])
        for task in tasks:
            await self._watchers.watch(task, await self._runtime_of(task))

    async def create(self, request: CreateTask) -> int:
        """See Tasks."""
        container = await self._containers.get(request.container_id)
        if container.spec is None:
            raise InvalidArgument(f"container {container.id!r} has no spec, a task needs one")
        options = RuncOptions()
        if request.options is not None:
            options = read_options(request.options, RuncOptions, "create", container.runtime)
        name = (current_namespace(), container.id)
        new = NewTask(
            runtime=request.runtime_path or container.runtime,
            spec=container.spec,
            options=request.options or container.runtime_options,
            runtime_options=container.runtime_options,
            rootfs=request.rootfs,
            stdio=request.stdio,
            checkpoint=_folder(request.checkpoint) or options.criu_image_path,
            sandbox=container.sandbox,
            endpoint=self._endpoint(request.endpoint, options),
        )
        complete = bool(_folder(request.checkpoint))
        unpack = None if new.checkpoint else request.checkpoint
        if unpack is not None:
            self._checkpoints.check(unpack)
        # In turn, so that no second call unpacks into, or removes, what the first one restores from.
        async with self._turns.take(name):
            self._check_new(container.id)
            try:
                rootfs = await self._rootfs.activate(container.id, request.rootfs, new.runtime, new.options)
                new = replace(new, rootfs=rootfs)
                if unpack is not None:
                    new = replace(new, checkpoint=str(await self._checkpoints.restore(unpack, name)))
                elif complete:
                    await self._checkpoints.bring_files(new.checkpoint, rootfs)
                task = await self._made(container.id, new, running=complete)
            except BaseException:
                await self._take_up(name, container.runtime)
                raise
        await self._watchers.watch(task, container.runtime)
        return task.pid

    async def _made(self, container_id: str, new: NewTask, *, running: bool) -> Task:
        """Have the runtime make a task, and start it at once if it is to be running."""
        try:
            task = await self._runtime.create(container_id, new)
        except NotFound as error:
            raise Unknown(f"failed to start shim: failed to resolve runtime path: {error.text}") from error
        if running:
            try:
                await task.start()
            except BaseException:
                await to_the_end(task.delete())
                raise
        return task

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """See Tasks."""
        task = await self._task(container_id)
        pid = await task.start(exec_id)
        if not exec_id:
            await self._checkpoints.forget((task.namespace, task.id))
        return pid

    async def delete(self, container_id: str, exec_id: str = "") -> Exit:
        """See Tasks."""
        task = await self._task(container_id)
        if exec_id:
            return await task.delete(exec_id)
        try:
            ended = await task.delete()
        except NotFound:
            await self._gone(task)
            raise
        await self._gone(task)
        return ended

    async def get(self, container_id: str, exec_id: str = "") -> ProcessState:
        """See Tasks."""
        return await (await self._task(container_id)).state(exec_id)

    async def list(self) -> list[ProcessState]:
        """See Tasks."""
        current_namespace()
        states = await asyncio.gather(*map(self._state, self._runtime.list()))
        return [state for state in states if state is not None]

    async def exec(self, container_id: str, exec_id: str, spec: TypedBytes | None, stdio: Stdio) -> None:
        """See Tasks."""
        if not exec_id:
            raise InvalidArgument("exec id cannot be empty", bare=True)
        task = await self._task(container_id)
        validate_identifier(exec_id, f"invalid exec id {exec_id}")
        if spec is None:
            raise InvalidArgument(f"exec {exec_id!r} has no spec, one is wanted")
        await task.exec(exec_id, spec, stdio)

    async def kill(self, container_id: str, signal: int, *, exec_id: str = "", everything: bool = False) -> None:
        """See Tasks."""
        await (await self._task(container_id)).kill(signal, exec_id=exec_id, everything=everything)

    async def pause(self, container_id: str) -> None:
        """See Tasks."""
        await (await self._task(container_id)).pause()

    async def resume(self, container_id: str) -> None:
        """See Tasks."""
        await (await self._task(container_id)).resume()

    async def resize(self, container_id: str, width: int, height: int, exec_id: str = "") -> None:
        """See Tasks."""
        await (await self._task(container_id)).resize(width, height, exec_id)

    async def close_stdin(self, container_id: str, exec_id: str = "") -> None:
        """See Tasks."""
        await (await self._task(container_id)).close_stdin(exec_id)

    async def pids(self, container_id: str) -> Sequence[ProcessInfo]:
        """See Tasks."""
        return await (await self._task(container_id)).pids()

    async def checkpoint(self, container_id: str, options: TypedBytes | None) -> Sequence[Descriptor]:
        """See Tasks."""
        container = await self._containers.get(container_id)
        task = self._runtime.get(container.id)
        if options is not None:
            read = read_options(options, CheckpointOptions, "checkpoint", container.runtime)
            if read.image_path:
                await task.checkpoint(read.image_path, options)
                return []
        async with self._checkpoints.dump() as folder:
            await task.checkpoint(str(folder), options)
            return await self._checkpoints.store(folder, container.spec or TypedBytes("", b""))

    async def update(self, container_id: str, resources: TypedBytes | None, annotations: Mapping[str, str]) -> None:
        """See Tasks."""
        await (await self._task(container_id)).update(resources, annotations)

    async def metrics(self, filters: Sequence[str] = ()) -> Sequence[Metric]:
        """See Tasks."""
        wanted = compile_filters(filters)
        current_namespace()
        tasks = self._runtime.list()
        chosen = [one for one in tasks if wanted.match(MappingAdaptor({"id": one.id, "namespace": one.namespace}))]
        found = await asyncio.gather(*map(self._metric, chosen))
        return [metric for metric in found if metric is not None]

    async def wait(self, container_id: str, exec_id: str = "") -> Exit:
        """See Tasks."""
        return await (await self._task(container_id)).wait(exec_id)

    async def _task(self, container_id: str) -> Task:
        container = await self._containers.get(container_id)
        return self._runtime.get(container.id)

    async def _take_up(self, name: Name, runtime: str) -> None:
        """Tidy up after a create that failed, or watch what it made though its caller was gone."""
        try:
            task = self._runtime.get(name[1])
        except NotFound:
            await self._tidy(name)
        else:
            await self._watchers.watch(task, runtime)

    async def _tidy(self, name: Name) -> None:
        """Remove what was made for a task that is not there."""
        await self._checkpoints.forget(name)
        await self._rootfs.release(name[1])

    async def _gone(self, task: Task) -> None:
        await self._watchers.forget(task)
        await self._tidy((task.namespace, task.id))

    async def _runtime_of(self, task: Task) -> str:
        """Give the name of what a task runs on, empty where its container is gone."""
        with bind(task.namespace):
            try:
                return (await self._containers.get(task.id)).runtime
            except MooredError:
                return ""

    async def _state(self, task: Task) -> ProcessState | None:
        """Give the state of init, None if the task has just been deleted."""
        try:
            return await task.state()
        except NotFound:
            return None
        except MooredError as error:
            self._log.warning("task tells no state", container=task.id, namespace=task.namespace, reason=error.text)
            return ProcessState(container_id=task.id, pid=task.pid, status=Status.UNKNOWN)

    async def _metric(self, task: Task) -> Metric | None:
        now = time.time_ns()
        try:
            return Metric(id=task.id, timestamp=now, data=await task.stats())
        except NotFound:
            return None
        except MooredError as error:
            self._log.warning("task gives no counters", container=task.id, namespace=task.namespace, reason=error.text)
            return None

    def _endpoint(self, given: SandboxEndpoint, options: RuncOptions) -> SandboxEndpoint:
        """Give the endpoint of the request, completed from the options; using those is noted."""
        for field, own, instead in (
            ("address", given.address, options.task_api_address),
            ("version", given.version, options.task_api_version),
        ):
            if instead and not own:
                self._warnings.emit(_DEPRECATED + field, _INSTEAD.format(field))
        return SandboxEndpoint(
            address=given.address or options.task_api_address, version=given.version or options.task_api_version
        )

    def _check_new(self, container_id: str) -> None:
        try:
            self._runtime.get(container_id)
        except NotFound:
            return
        raise AlreadyExists(f"task {container_id}")


def _folder(checkpoint: Descriptor | None) -> str:
    return "" if checkpoint is None else checkpoint.annotations.get(RESTORE_FROM, "")
