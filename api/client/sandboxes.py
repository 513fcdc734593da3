"""Sandboxes: environments that containers share, such as pods; their records, and what makes and ends them.

    create --start--> ready --stop, or its end--> not ready --delete--> gone

Containers join one by `containers.create(sandbox=id)`. Source: contracts/semantics.md 3.7.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from moored.api.client.connection import Calls, ConnectionLost
from moored.api.client.wire import mount_messages, nanoseconds, platform_of, typed_bytes
from moored.api.sandboxes import any_message, from_message, moment, to_message, typed
from moored.api.services.sandbox.v1 import sandbox_pb2 as pb
from moored.api.services.sandbox.v1 import sandbox_pb2_grpc
from moored.kernel.closing import at_end
from moored.kernel.errors import MooredError, NotFound
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.namespaces import validate_identifier
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.content import NO_LABELS
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.sandboxes import Sandbox as Record
from moored.kernel.ports.sandboxes import SandboxExit, SandboxInstance, SandboxStatus
from moored.kernel.ports.tasks import Metric, SandboxEndpoint

RUNTIME: Final = "io.containerd.runc.v2"
SANDBOXER: Final = "shim"
"""The controller that asks the runtime's shim."""
LOST_SECONDS: Final = 60.0
"""How long a wait goes on while the daemon is away."""
_PAUSE: Final = 0.2


class Sandboxes:
    """The sandboxes of the namespace. Errors, beside those of the connection, as `kernel.ports.sandboxes`.

    Unimplemented from every call of a daemon without such services, which is that of containerd before 1.7.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = sandbox_pb2_grpc.StoreStub(calls.channel)

    async def get(self, id: str) -> Sandbox:  # noqa: A002 - the field's term
        """Give one. Raises NotFound."""
        answer = await self._calls.unary(self._stub.Get, pb.StoreGetRequest(sandbox_id=id))
        return Sandbox(self._calls, from_message(answer.sandbox))

    async def list(self, *filters: str) -> list[Sandbox]:
        """Give those that match any filter (fields `id`, `labels`), by id."""
        answer = await self._calls.unary(self._stub.List, pb.StoreListRequest(filters=filters))
        return [Sandbox(self._calls, from_message(one)) for one in answer.list]

    async def create(
        self,
        id: str,  # noqa: A002 - the field's term
        *,
        runtime: str = RUNTIME,
        runtime_options: TypedBytes | None = None,
        sandboxer: str = SANDBOXER,
        spec: TypedBytes | None = None,
        rootfs: Sequence[Mount] = (),
        options: TypedBytes | None = None,
        netns: str = "",
        annotations: Mapping[str, str] = NO_LABELS,
        labels: Mapping[str, str] = NO_LABELS,
        extensions: Mapping[str, TypedBytes] | None = None,
    ) -> Sandbox:
        """Make a sandbox, whole or not at all; `Sandbox.start` makes it ready for containers.

        sandboxer    the controller that runs it
        options      for the controller, in a type that it knows
        netns        path of the network namespace that it is to have
        Raises AlreadyExists, NotFound for a controller that is not there, and what the controller says.
        """
        validate_identifier(id)
        record = Record(
            id=id,
            runtime=runtime,
            runtime_options=runtime_options,
            spec=spec,
            sandboxer=sandboxer,
            labels=labels,
            extensions=extensions or {},
        )
        stored = await self._calls.unary(self._stub.Create, pb.StoreCreateRequest(sandbox=to_message(record)))
        made = Sandbox(self._calls, from_message(stored.sandbox))
        request = pb.ControllerCreateRequest(
            sandbox_id=id,
            rootfs=mount_messages(rootfs),
            options=any_message(options),
            netns_path=netns,
            annotations=annotations,
            sandbox=stored.sandbox,
            sandboxer=sandboxer,
        )
        try:
            controller = sandbox_pb2_grpc.ControllerStub(self._calls.channel)
            await self._calls.unary(controller.Create, request, slow=True)
        except BaseException:
            with suppress(MooredError):
                await self._calls.unary(self._stub.Delete, pb.StoreDeleteRequest(sandbox_id=id))
            raise
        return made


class Sandbox:
    """One sandbox, with its record as last read. As a context manager: ended and gone after it.

    Errors: NotFound once it is deleted, and what its controller says.
    """

    def __init__(self, calls: Calls, record: Record) -> None:
        self._calls = calls
        self._store = sandbox_pb2_grpc.StoreStub(calls.channel)
        self._controller = sandbox_pb2_grpc.ControllerStub(calls.channel)
        self._record = record

    @property
    def id(self) -> str:
        """Its id."""
        return self._record.id

    @property
    def record(self) -> Record:
        """All that is stored of it."""
        return self._record

    async def refresh(self) -> Record:
        """Read the record anew."""
        answer = await self._calls.unary(self._store.Get, pb.StoreGetRequest(sandbox_id=self.id))
        self._record = from_message(answer.sandbox)
        return self._record

    async def update(self, record: Record, paths: Sequence[str]) -> Record:
        """Replace what paths name (`labels`, `labels.KEY`, `extensions`, `runtime`, `spec`), tell the controller.

        Gives the record. A sandbox that was not started takes no notice.
        """
        request = pb.StoreUpdateRequest(sandbox=to_message(record), fields=paths)
        stored = (await self._calls.unary(self._store.Update, request)).sandbox
        self._record = from_message(stored)
        told = pb.ControllerUpdateRequest(
            sandbox_id=self.id, sandboxer=self._record.sandboxer, sandbox=stored, fields=paths
        )
        with suppress(NotFound):
            await self._calls.unary(self._controller.Update, told)
        return self._record

    async def start(self) -> SandboxInstance:
        """Make it ready for containers; one that fails to is gone from its controller."""
        request = pb.ControllerStartRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        answer = await self._calls.unary(self._controller.Start, request, slow=True)
        return SandboxInstance(
            id=self.id,
            pid=answer.pid,
            created_at=moment(answer.created_at),
            labels=dict(answer.labels),
            endpoint=SandboxEndpoint(address=answer.address, version=answer.version),
            spec=typed(answer, "spec"),
        )

    async def stop(self, seconds: int = 0) -> None:
        """End all that runs in it, by force after so many seconds; again is harmless."""
        request = pb.ControllerStopRequest(sandbox_id=self.id, timeout_secs=seconds, sandboxer=self._record.sandboxer)
        await self._calls.unary(self._controller.Stop, request, slow=True)

    async def wait(self) -> SandboxExit:
        """Wait for its end; the daemon may restart meanwhile."""
        request = pb.ControllerWaitRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        lost = 0.0
        while True:
            try:
                answer = await self._calls.unary(self._controller.Wait, request, slow=True)
                return SandboxExit(status=answer.exit_status, exited_at=moment(answer.exited_at))
            except ConnectionLost:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > LOST_SECONDS:
                    raise
            await asyncio.sleep(_PAUSE)

    async def status(self, *, verbose: bool = False) -> SandboxStatus:
        """Tell what it is doing; verbose asks for more, for people."""
        request = pb.ControllerStatusRequest(sandbox_id=self.id, verbose=verbose, sandboxer=self._record.sandboxer)
        answer = await self._calls.unary(self._controller.Status, request)
        return SandboxStatus(
            id=self.id,
            pid=answer.pid,
            state=answer.state,
            info=dict(answer.info),
            created_at=moment(answer.created_at),
            exited_at=moment(answer.exited_at),
            extra=typed(answer, "extra"),
            endpoint=SandboxEndpoint(address=answer.address, version=answer.version),
        )

    async def platform(self) -> Platform:
        """Tell what containers in it have to be made for."""
        request = pb.ControllerPlatformRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        return platform_of((await self._calls.unary(self._controller.Platform, request)).platform)

    async def metrics(self) -> Metric:
        """Read the counters of all that is in it. Raises NotFound where there are none."""
        request = pb.ControllerMetricsRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        found = (await self._calls.unary(self._controller.Metrics, request)).metrics
        return Metric(id=found.id, timestamp=nanoseconds(found.timestamp), data=typed_bytes(found.data))

    async def delete(self) -> None:
        """End it with all that is in it, in any state, and remove its record. Raises NotFound for one without."""
        request = pb.ControllerShutdownRequest(sandbox_id=self.id, sandboxer=self._record.sandboxer)
        with suppress(NotFound):
            await self._calls.unary(self._controller.Shutdown, request, slow=True)
        await self._calls.unary(self._store.Delete, pb.StoreDeleteRequest(sandbox_id=self.id))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(NotFound):
            await at_end(self.delete(), error)
