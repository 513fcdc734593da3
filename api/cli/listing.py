"""The containers of a namespace and how they are, asked for without the client library.

`ps` is typed and polled all the time, and the library takes longer to import than the daemon takes to answer. All
else of moorctl uses the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import grpc

from moored.api.cli.settings import Settings
from moored.api.errors import from_status
from moored.api.services.containers.v1 import containers_pb2
from moored.api.services.tasks.v1 import tasks_pb2
from moored.kernel.errors import MooredError
from moored.kernel.ports.containers import Container, TypedBytes
from moored.kernel.ports.tasks import ProcessState, Status

MAX_MESSAGE: Final = 16 << 20
"""Bytes; the same limit that daemons of this API have."""
_CONTAINERS: Final = "/containerd.services.containers.v1.Containers/List"
_TASKS: Final = "/containerd.services.tasks.v1.Tasks/List"
_NEVER: Final = -62_135_596_800
"""Seconds of Go's zero time."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A container as a list has it."""

    id: str
    record: Container


def ask(settings: Settings) -> tuple[list[Listed], dict[str, ProcessState]]:
    """Give all containers, and the state of all tasks by their containers' ids. Raises as `session.run`."""
    options = (
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.default_authority", "localhost"),  # or the path would become one, which Go servers refuse
    )
    with grpc.insecure_channel(f"unix:{quote(settings.address)}", options=options) as channel:
        containers = _call(settings, channel, _CONTAINERS, containers_pb2.ListContainersResponse.FromString)
        tasks = _call(settings, channel, _TASKS, tasks_pb2.ListTasksResponse.FromString)
    return [_listed(one) for one in containers.containers], {one.id: _state(one) for one in tasks.tasks}


def _call(settings: Settings, channel: grpc.Channel, method: str, decode: Callable[[bytes], Any]) -> Any:
    """Make a call whose request has no fields that are set."""
    call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=decode)
    try:
        return call(b"", timeout=settings.timeout, metadata=(("containerd-namespace", settings.namespace),))
    except grpc.RpcError as error:
        raise _told(error, settings) from error


def _told(error: grpc.RpcError, settings: Settings) -> MooredError:
    assert isinstance(error, grpc.Call)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        # The library knows why nobody answers; that it takes its time does not matter here.
        return _again(settings)
    number: int = error.code().value[0]
    return from_status(number, error.details() or "")


def _again(settings: Settings) -> MooredError:
    from moored.api.cli.session import run
    from moored.api.client import Client
    from moored.kernel.errors import Unavailable

    async def body(client: Client) -> None:
        await client.containers.list()

    try:
        run(settings, body)
    except MooredError as error:
        return error
    return Unavailable(f"the daemon at {settings.address} broke off, try again")


def _listed(message: Any) -> Listed:
    spec = TypedBytes(message.spec.type_url, message.spec.value) if message.HasField("spec") else None
    record = Container(
        id=message.id,
        image=message.image,
        runtime=message.runtime.name,
        spec=spec,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox=message.sandbox,
        labels=dict(message.labels),
        created_at=message.created_at.ToNanoseconds(),
        updated_at=message.updated_at.ToNanoseconds(),
    )
    return Listed(message.id, record)


def _state(message: Any) -> ProcessState:
    over = message.HasField("exited_at") and message.exited_at.seconds > _NEVER
    return ProcessState(
        container_id=message.id,
        pid=message.pid,
        status=Status(message.status) if message.status in set(Status) else Status.UNKNOWN,
        exit_status=message.exit_status,
        exited_at=message.exited_at.ToNanoseconds() if over else None,
    )
