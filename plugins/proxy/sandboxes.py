"""The sandbox controller of another process, reached over containerd's sandbox controller service.

It has the sandboxes of the namespace of each call. A wait goes on over restarts of the other side; what else is not
answered in time, or is cut off, may have been done all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from moored.api.convert import to_ns
from moored.kernel.errors import Unavailable
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.namespaces import namespace_or_empty
from moored.kernel.plugin import Registration
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.sandboxes import (
    NewSandbox,
    Sandbox,
    SandboxController,
    SandboxExit,
    SandboxInstance,
    SandboxStatus,
)
from moored.kernel.ports.tasks import Metric, SandboxEndpoint
from moored.kernel.workers import to_the_end
from moored.plugins.proxy.endpoint import ProxySettings, RemoteEndpoint, registration_of
from moored.plugins.proxy.wire import mount_messages

if TYPE_CHECKING:
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")

SERVICE: Final = "/containerd.services.sandbox.v1.Controller/"
_FIRST_PAUSE: Final = 0.128
_LONGEST_PAUSE: Final = 4.096
"""Seconds between two tries to wait for a sandbox of a process that cannot be reached."""


def registration(name: str, settings: ProxySettings) -> Registration[SandboxController, None]:
    """Make the plugin `io.containerd.sandbox.controller.v1.<name>`. Raises InvalidArgument for a bad address."""
    return registration_of(name, settings, lambda endpoint: RemoteController(endpoint, name))


class RemoteController:
    """The port's SandboxController over an endpoint, which stays the caller's.

    name is the one by which records, and requests to the other side, name the controller. Methods are documented in
    the port.
    """

    tells_exits = False
    """Its events are the other process' own."""

    def __init__(self, endpoint: RemoteEndpoint, name: str) -> None:
        self._endpoint = endpoint
        self._name = name

    async def create(self, new: NewSandbox) -> None:
        """See the port."""
        from moored.api.sandboxes import any_message, to_message
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerCreateRequest(
            sandbox_id=new.sandbox.id,
            rootfs=mount_messages(new.rootfs),
            options=any_message(new.options),
            netns_path=new.netns,
            annotations=new.annotations,
            sandbox=to_message(new.sandbox),
            sandboxer=self._name,
        )
        await to_the_end(self._unary("Create", request, pb.ControllerCreateResponse))

    async def start(self, id: str) -> SandboxInstance:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.sandboxes import moment, typed
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerStartRequest(sandbox_id=id, sandboxer=self._name)
        answer = await to_the_end(self._unary("Start", request, pb.ControllerStartResponse))
        return SandboxInstance(
            id=id,
            pid=answer.pid,
            created_at=moment(answer.created_at),
            labels=dict(answer.labels),
            endpoint=SandboxEndpoint(address=answer.address, version=answer.version),
            spec=typed(answer, "spec"),
        )

    async def platform(self, id: str) -> Platform:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerPlatformRequest(sandbox_id=id, sandboxer=self._name)
        found = (await self._unary("Platform", request, pb.ControllerPlatformResponse)).platform
        return Platform(found.os, found.architecture, found.variant)

    async def stop(self, id: str, seconds: int = 0) -> None:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerStopRequest(sandbox_id=id, timeout_secs=seconds, sandboxer=self._name)
        await to_the_end(self._unary("Stop", request, pb.ControllerStopResponse, patience=seconds))

    async def wait(self, id: str) -> SandboxExit:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.sandboxes import moment
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerWaitRequest(sandbox_id=id, sandboxer=self._name)
        namespace, pause = namespace_or_empty(), _FIRST_PAUSE
        while True:
            try:
                answer = await self._endpoint.unary(f"{SERVICE}Wait", request, pb.ControllerWaitResponse, namespace)
            except Unavailable:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return SandboxExit(status=answer.exit_status, exited_at=moment(answer.exited_at))

    async def status(self, id: str, *, verbose: bool = False) -> SandboxStatus:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.sandboxes import moment, typed
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerStatusRequest(sandbox_id=id, verbose=verbose, sandboxer=self._name)
        answer = await self._unary("Status", request, pb.ControllerStatusResponse)
        extra = typed(answer, "extra")
        return SandboxStatus(
            id=id,
            pid=answer.pid,
            state=answer.state,
            info=dict(answer.info),
            created_at=moment(answer.created_at),
            exited_at=moment(answer.exited_at),
            extra=None if extra == TypedBytes("", b"") else extra,
            endpoint=SandboxEndpoint(address=answer.address, version=answer.version),
        )

    async def shutdown(self, id: str) -> None:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerShutdownRequest(sandbox_id=id, sandboxer=self._name)
        await to_the_end(self._unary("Shutdown", request, pb.ControllerShutdownResponse))

    async def metrics(self, id: str) -> Metric:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerMetricsRequest(sandbox_id=id, sandboxer=self._name)
        found = (await self._unary("Metrics", request, pb.ControllerMetricsResponse)).metrics
        data = TypedBytes(found.data.type_url, found.data.value)
        return Metric(id=found.id, timestamp=to_ns(found.timestamp) or 0, data=data)

    async def update(self, id: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> None:  # noqa: A002 - the field's term
        """See the port."""
        from moored.api.sandboxes import to_message
        from moored.api.services.sandbox.v1 import sandbox_pb2 as pb

        request = pb.ControllerUpdateRequest(
            sandbox_id=id, sandboxer=self._name, sandbox=to_message(sandbox), fields=paths
        )
        await self._unary("Update", request, pb.ControllerUpdateResponse)

    async def _unary(self, method: str, request: Message, response_type: type[M], *, patience: float = 0) -> M:
        seconds = self._endpoint.answer_timeout + patience
        return await self._endpoint.unary(
            SERVICE + method, request, response_type, namespace_or_empty(), timeout=seconds
        )
