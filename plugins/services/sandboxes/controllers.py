"""The sandbox controllers on the wire: finds the one that a request names, and tells what was done.

Source: semantics 3.7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from moored.api.convert import timestamp
from moored.api.errors import to_status
from moored.api.sandboxes import any_message, from_message, typed
from moored.api.services.sandbox.v1 import sandbox_pb2 as pb
from moored.api.services.sandbox.v1 import sandbox_pb2_grpc as rpc
from moored.api.types.metrics_pb2 import Metric as MetricMessage
from moored.api.types.platform_pb2 import Platform as PlatformMessage
from moored.kernel.errors import InvalidArgument, MooredError, NotFound, Unknown
from moored.kernel.namespaces import current_namespace
from moored.kernel.payloads import Payload, SandboxCreate, SandboxExit, SandboxStart
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.sandboxes import (
    CREATE_TOPIC,
    EXIT_TOPIC,
    START_TOPIC,
    NewSandbox,
    Sandbox,
    SandboxController,
    SandboxStore,
)
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.workers import to_the_end

R = TypeVar("R")


class ControllersService(rpc.ControllerServicer):
    """containerd.services.sandbox.v1.Controller.

    All raise InvalidArgument without the name of a controller, NotFound for an unknown one, and what the port raises.
    store has the record of a sandbox of which a request gives only the id, as clients of containerd 1.7 do.
    """

    def __init__(
        self, controllers: Mapping[str, SandboxController], exchange: Exchange, store: SandboxStore | None
    ) -> None:
        self._controllers = controllers
        self._exchange = exchange
        self._store = store

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_ControllerServicer_to_server(self, cast(Any, server))

    def _controller(self, name: str) -> SandboxController:
        if not name:
            raise InvalidArgument("invalid argument: sandbox controller name can not be empty", bare=True)
        if name not in self._controllers:
            raise NotFound(f"not found: failed to get sandbox controller by {name}", bare=True)
        return self._controllers[name]

    async def Create(  # noqa: N802
        self, request: pb.ControllerCreateRequest, context: Any
    ) -> pb.ControllerCreateResponse:
        """Make a sandbox."""
        controller = self._controller(request.sandboxer)
        new = NewSandbox(
            sandbox=await self._sandbox(request),
            rootfs=[
                Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in request.rootfs
            ],
            options=typed(request, "options"),
            netns=request.netns_path,
            annotations=dict(request.annotations),
        )
        id_ = request.sandbox_id or new.sandbox.id

        async def work() -> None:
            await controller.create(new)
            await self._tell(CREATE_TOPIC, SandboxCreate(sandbox_id=id_))

        await to_the_end(work())
        return pb.ControllerCreateResponse(sandbox_id=id_)

    async def _sandbox(self, request: pb.ControllerCreateRequest) -> Sandbox:
        if request.HasField("sandbox"):
            return from_message(request.sandbox)
        if self._store is not None:
            try:
                return await self._store.get(request.sandbox_id)
            except NotFound:
                pass
        return Sandbox(id=request.sandbox_id)

    async def Start(self, request: pb.ControllerStartRequest, context: Any) -> pb.ControllerStartResponse:  # noqa: N802
        """Start a sandbox."""
        controller = _about(
            lambda: self._controller(request.sandboxer), f'failed to get sandbox controller for "{request.sandboxer}"'
        )

        async def work() -> pb.ControllerStartResponse:
            try:
                made = await controller.start(request.sandbox_id)
            except MooredError as error:
                raise _behind(f'failed to start sandbox "{request.sandbox_id}"', error) from error
            await self._tell(START_TOPIC, SandboxStart(sandbox_id=request.sandbox_id))
            return pb.ControllerStartResponse(
                sandbox_id=made.id,
                pid=made.pid,
                created_at=timestamp(made.created_at),
                labels=made.labels,
                address=made.endpoint.address,
                version=made.endpoint.version,
                spec=any_message(made.spec),
            )

        return await to_the_end(work())

    async def Platform(  # noqa: N802
        self, request: pb.ControllerPlatformRequest, context: Any
    ) -> pb.ControllerPlatformResponse:
        """What runs in a sandbox."""
        found = await self._controller(request.sandboxer).platform(request.sandbox_id)
        return pb.ControllerPlatformResponse(
            platform=PlatformMessage(os=found.os, architecture=found.architecture, variant=found.variant)
        )

    async def Stop(self, request: pb.ControllerStopRequest, context: Any) -> pb.ControllerStopResponse:  # noqa: N802
        """End what runs in a sandbox."""
        await self._controller(request.sandboxer).stop(request.sandbox_id, request.timeout_secs)
        return pb.ControllerStopResponse()

    async def Wait(self, request: pb.ControllerWaitRequest, context: Any) -> pb.ControllerWaitResponse:  # noqa: N802
        """How a sandbox ended, once it has."""
        controller = self._controller(request.sandboxer)
        ended = await controller.wait(request.sandbox_id)
        if not controller.tells_exits:
            event = SandboxExit(sandbox_id=request.sandbox_id, exit_status=ended.status, exited_at=ended.exited_at)
            await self._tell(EXIT_TOPIC, event)
        return pb.ControllerWaitResponse(exit_status=ended.status, exited_at=timestamp(ended.exited_at))

    async def Status(  # noqa: N802
        self, request: pb.ControllerStatusRequest, context: Any
    ) -> pb.ControllerStatusResponse:
        """What a sandbox is doing."""
        found = await self._controller(request.sandboxer).status(request.sandbox_id, verbose=request.verbose)
        answer = pb.ControllerStatusResponse(
            sandbox_id=found.id,
            pid=found.pid,
            state=found.state,
            info=found.info,
            created_at=timestamp(found.created_at),
            exited_at=timestamp(found.exited_at),
            extra=any_message(found.extra),
            address=found.endpoint.address,
            version=found.endpoint.version,
        )
        answer.extra.SetInParent()  # clients in Go look into it without asking whether it is there
        return answer

    async def Shutdown(  # noqa: N802
        self, request: pb.ControllerShutdownRequest, context: Any
    ) -> pb.ControllerShutdownResponse:
        """Remove a sandbox with all that is in it."""
        await self._controller(request.sandboxer).shutdown(request.sandbox_id)
        return pb.ControllerShutdownResponse()

    async def Metrics(  # noqa: N802
        self, request: pb.ControllerMetricsRequest, context: Any
    ) -> pb.ControllerMetricsResponse:
        """Counters of a sandbox."""
        found = await self._controller(request.sandboxer).metrics(request.sandbox_id)
        metric = MetricMessage(id=found.id, timestamp=timestamp(found.timestamp), data=any_message(found.data))
        return pb.ControllerMetricsResponse(metrics=metric)

    async def Update(  # noqa: N802
        self, request: pb.ControllerUpdateRequest, context: Any
    ) -> pb.ControllerUpdateResponse:
        """Tell a controller that a record changed."""
        controller = self._controller(request.sandboxer)
        if not request.HasField("sandbox"):
            raise Unknown("sandbox can not be nil")
        await controller.update(request.sandbox_id, from_message(request.sandbox), request.fields)
        return pb.ControllerUpdateResponse()

    async def _tell(self, topic: str, event: Payload) -> None:
        await self._exchange.publish(topic, event, current_namespace())


def _about(call: Callable[[], R], what: str) -> R:
    try:
        return call()
    except MooredError as error:
        raise _behind(what, error) from error


def _behind(what: str, error: MooredError) -> MooredError:
    """Give an error with a text in front; its class' words stay where they are."""
    return type(error)(f"{what}: {to_status(error)[1]}", bare=True)
