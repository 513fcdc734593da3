"""The tasks service on the wire, over the daemon's tasks. Source: semantics 4."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, ParamSpec, TypeVar, cast

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.errors import to_status
from moored.api.services.tasks.v1 import tasks_pb2 as pb
from moored.api.services.tasks.v1 import tasks_pb2_grpc as rpc
from moored.api.ttrpc.frame import CLOSED
from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage
from moored.api.types.metrics_pb2 import Metric as MetricMessage
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.api.types.task import task_pb2 as types
from moored.kernel.errors import FailedPrecondition, InvalidArgument, Unavailable, Unknown
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.ports.tasks import (
    CreateTask,
    Exit,
    Metric,
    ProcessInfo,
    ProcessState,
    SandboxEndpoint,
    Stdio,
    Tasks,
)

EMPTY: Final = Empty()

P = ParamSpec("P")
T = TypeVar("T")


def _calls_a_shim(method: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Tell that a shim is gone as containerd does, which has no class for it."""

    @functools.wraps(method)
    async def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except Unavailable as error:
            if error.text != CLOSED:
                raise
            raise Unknown(error.text) from error

    return told


class TasksService(rpc.TasksServicer):
    """containerd.services.tasks.v1.Tasks.

    All but List and Metrics raise NotFound for a container, a task or an exec that is not there.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_TasksServicer_to_server(self, cast(Any, server))

    @_calls_a_shim
    async def Create(self, request: pb.CreateTaskRequest, context: Any) -> pb.CreateTaskResponse:  # noqa: N802
        """Make a task. Errors: AlreadyExists, InvalidArgument, Unknown."""
        pid = await self._tasks.create(
            CreateTask(
                container_id=request.container_id,
                rootfs=_mounts(request.rootfs),
                stdio=_stdio(request),
                checkpoint=_descriptor(request.checkpoint) if request.HasField("checkpoint") else None,
                options=_typed(request, "options"),
                runtime_path=request.runtime_path,
                endpoint=SandboxEndpoint(address=request.task_api_address, version=request.task_api_version),
            )
        )
        return pb.CreateTaskResponse(container_id=request.container_id, pid=pid)

    @_calls_a_shim
    async def Start(self, request: pb.StartRequest, context: Any) -> pb.StartResponse:  # noqa: N802
        """Run init or an exec."""
        return pb.StartResponse(pid=await self._tasks.start(request.container_id, request.exec_id))

    @_calls_a_shim
    async def Delete(self, request: pb.DeleteTaskRequest, context: Any) -> pb.DeleteResponse:  # noqa: N802
        """Forget a task that ended or never ran."""
        try:
            return _deleted(await self._tasks.delete(request.container_id))
        except Unknown as error:
            raise Unknown(f"failed to delete task: {error.text}") from error

    @_calls_a_shim
    async def DeleteProcess(  # noqa: N802
        self, request: pb.DeleteProcessRequest, context: Any
    ) -> pb.DeleteResponse:
        """Forget an exec; without an id the task."""
        return _deleted(await self._tasks.delete(request.container_id, request.exec_id), request.exec_id)

    @_calls_a_shim
    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: N802
        """Tell the state of init or an exec."""
        state = await self._tasks.get(request.container_id, request.exec_id)
        return pb.GetResponse(process=_process(state, request.exec_id))

    async def List(self, request: pb.ListTasksRequest, context: Any) -> pb.ListTasksResponse:  # noqa: N802
        """Tell the state of every task; the filter is not looked at."""
        return pb.ListTasksResponse(tasks=[_process(state) for state in await self._tasks.list()])

    @_calls_a_shim
    async def Kill(self, request: pb.KillRequest, context: Any) -> Empty:  # noqa: N802
        """Send a signal."""
        await self._tasks.kill(request.container_id, request.signal, exec_id=request.exec_id, everything=request.all)
        return EMPTY

    @_calls_a_shim
    async def Exec(self, request: pb.ExecProcessRequest, context: Any) -> Empty:  # noqa: N802
        """Add a process. Errors: AlreadyExists, InvalidArgument."""
        spec = _typed(request, "spec")
        await self._tasks.exec(request.container_id, request.exec_id, spec, _stdio(request))
        return EMPTY

    @_calls_a_shim
    async def ResizePty(self, request: pb.ResizePtyRequest, context: Any) -> Empty:  # noqa: N802
        """Set the size of a terminal."""
        await self._tasks.resize(request.container_id, request.width, request.height, request.exec_id)
        return EMPTY

    @_calls_a_shim
    async def CloseIO(self, request: pb.CloseIORequest, context: Any) -> Empty:  # noqa: N802
        """End the input of a process; of one that is asked for nothing, see only whether it is there."""
        if request.stdin:
            await self._tasks.close_stdin(request.container_id, request.exec_id)
        else:
            await self._tasks.get(request.container_id, request.exec_id)
        return EMPTY

    @_calls_a_shim
    async def Pause(self, request: pb.PauseTaskRequest, context: Any) -> Empty:  # noqa: N802
        """Freeze a task."""
        await self._tasks.pause(request.container_id)
        return EMPTY

    @_calls_a_shim
    async def Resume(self, request: pb.ResumeTaskRequest, context: Any) -> Empty:  # noqa: N802
        """Thaw a task."""
        await self._tasks.resume(request.container_id)
        return EMPTY

    @_calls_a_shim
    async def ListPids(self, request: pb.ListPidsRequest, context: Any) -> pb.ListPidsResponse:  # noqa: N802
        """Tell the processes in a container."""
        return pb.ListPidsResponse(processes=map(_info, await self._tasks.pids(request.container_id)))

    @_calls_a_shim
    async def Checkpoint(  # noqa: N802
        self, request: pb.CheckpointTaskRequest, context: Any
    ) -> pb.CheckpointTaskResponse:
        """Write a CRIU image."""
        stored = await self._tasks.checkpoint(request.container_id, _typed(request, "options"))
        return pb.CheckpointTaskResponse(descriptors=map(_described, stored))

    @_calls_a_shim
    async def Update(self, request: pb.UpdateTaskRequest, context: Any) -> Empty:  # noqa: N802
        """Change limits. Errors: InvalidArgument."""
        resources = _typed(request, "resources")
        await self._tasks.update(request.container_id, resources, dict(request.annotations))
        return EMPTY

    async def Metrics(self, request: pb.MetricsRequest, context: Any) -> pb.MetricsResponse:  # noqa: N802
        """Give the counters of tasks. Errors: Unknown for bad filters and namespaces."""
        try:
            found = await self._tasks.metrics(request.filters)
        except (FailedPrecondition, InvalidArgument) as error:
            raise Unknown(to_status(error)[1]) from error
        return pb.MetricsResponse(metrics=map(_metric, found))

    @_calls_a_shim
    async def Wait(self, request: pb.WaitRequest, context: Any) -> pb.WaitResponse:  # noqa: N802
        """Wait for the end of a process."""
        ended = await self._tasks.wait(request.container_id, request.exec_id)
        return pb.WaitResponse(exit_status=ended.status, exited_at=timestamp(ended.exited_at))


def _process(state: ProcessState, exec_id: str = "") -> types.Process:
    # The field container_id stays empty: clients know init by its id.
    return types.Process(
        id=exec_id or state.container_id,
        pid=state.pid,
        status=cast(Any, int(state.status)),
        stdin=state.stdio.stdin,
        stdout=state.stdio.stdout,
        stderr=state.stdio.stderr,
        terminal=state.stdio.terminal,
        exit_status=state.exit_status,
        exited_at=timestamp(state.exited_at),
    )


def _deleted(ended: Exit, exec_id: str = "") -> pb.DeleteResponse:
    return pb.DeleteResponse(id=exec_id, pid=ended.pid, exit_status=ended.status, exited_at=timestamp(ended.exited_at))


def _info(process: ProcessInfo) -> types.ProcessInfo:
    return types.ProcessInfo(pid=process.pid, info=_any(process.info))


def _metric(metric: Metric) -> MetricMessage:
    return MetricMessage(id=metric.id, timestamp=timestamp(metric.timestamp), data=_any(metric.data))


def _stdio(request: pb.CreateTaskRequest | pb.ExecProcessRequest) -> Stdio:
    return Stdio(stdin=request.stdin, stdout=request.stdout, stderr=request.stderr, terminal=request.terminal)


def _typed(request: Any, field: str) -> TypedBytes | None:
    if not request.HasField(field):
        return None
    given: AnyMessage = getattr(request, field)
    return TypedBytes(given.type_url, given.value)


def _any(given: TypedBytes | None) -> AnyMessage | None:
    return None if given is None else AnyMessage(type_url=given.type_url, value=given.value)


def _descriptor(message: DescriptorMessage) -> Descriptor:
    return Descriptor(
        media_type=message.media_type,
        digest=message.digest,
        size=message.size,
        annotations=dict(message.annotations),
    )


def _described(descriptor: Descriptor) -> DescriptorMessage:
    return DescriptorMessage(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def _mounts(messages: Iterable[MountMessage]) -> list[Mount]:
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages]
