"""The containers of a namespace and how they are, asked for without the client library.

`ps` is typed and polled all the time, and the library takes longer to import than the daemon takes to answer. All
else of moorctl uses the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moored.api.cli.settings import Settings
from moored.api.cli.unary import Link, NotAnswered
from moored.kernel.errors import DeadlineExceeded, MooredError, Unavailable
from moored.kernel.ports.containers import Container, TypedBytes
from moored.kernel.ports.tasks import ProcessState, Status
from moored.kernel.protowire import Kind, decode, wire

_CONTAINERS: Final = "/containerd.services.containers.v1.Containers/List"
_TASKS: Final = "/containerd.services.tasks.v1.Tasks/List"


@dataclass(slots=True)
class Listed:
    """A container as a list has it."""

    id: str
    record: Container


def ask(settings: Settings) -> tuple[list[Listed], dict[str, ProcessState]]:
    """Give all containers, and the state of all tasks by their containers' ids. Raises as `session.run`."""
    try:
        with Link(settings.address, settings.namespace, settings.timeout) as link:
            containers = decode(_Containers, link.call(_CONTAINERS)).containers
            tasks = decode(_Tasks, link.call(_TASKS)).tasks
        return [_listed(one) for one in containers], {one.id: _state(one) for one in tasks}
    except TimeoutError as error:
        waited = f"the daemon at {settings.address} gave no answer within {settings.timeout:g}s"
        raise DeadlineExceeded(f"{waited}, wait longer with --timeout") from error
    except (NotAnswered, ValueError) as error:
        # The library knows why; that it takes its time does not matter here.
        raise _told(settings) from error


def _told(settings: Settings) -> MooredError:
    from moored.api.cli.session import run
    from moored.api.cli.states import states
    from moored.api.client.client import Client

    async def body(client: Client) -> None:
        await client.containers.list()
        await states(client)

    try:
        run(settings, body)
    except MooredError as error:
        return error
    return Unavailable(f"the daemon at {settings.address} broke off, try again")


# --- messages: their fields that are shown ----------------------------------------------------------------------------


@dataclass
class _Any:
    type_url: str = wire(1)
    value: bytes = wire(2, Kind.BYTES)


@dataclass
class _Runtime:
    name: str = wire(1)


@dataclass
class _Container:
    id: str = wire(1)
    labels: Mapping[str, str] = wire(2, Kind.LABELS)
    image: str = wire(3)
    runtime: _Runtime | None = wire(4, Kind.MESSAGE, _Runtime)  # noqa: RUF009 - it makes a field
    spec: _Any | None = wire(5, Kind.MESSAGE, _Any)  # noqa: RUF009
    snapshotter: str = wire(6)
    snapshot_key: str = wire(7)
    created_at: int | None = wire(8, Kind.TIME)
    updated_at: int | None = wire(9, Kind.TIME)
    sandbox: str = wire(11)


@dataclass
class _Containers:
    containers: tuple[_Container, ...] = wire(1, Kind.MESSAGES, _Container)


@dataclass
class _Task:
    id: str = wire(2)
    pid: int = wire(3, Kind.UINT32)
    status: int = wire(4, Kind.UINT32)
    exit_status: int = wire(9, Kind.UINT32)
    exited_at: int | None = wire(10, Kind.TIME)


@dataclass
class _Tasks:
    tasks: tuple[_Task, ...] = wire(1, Kind.MESSAGES, _Task)


def _listed(message: _Container) -> Listed:
    record = Container(
        id=message.id,
        image=message.image,
        runtime=message.runtime.name if message.runtime else "",
        spec=TypedBytes(message.spec.type_url, message.spec.value) if message.spec else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox=message.sandbox,
        labels=message.labels,
        created_at=message.created_at or 0,
        updated_at=message.updated_at or 0,
    )
    return Listed(message.id, record)


def _state(message: _Task) -> ProcessState:
    # The year 1, where it has not ended, is before 1970.
    over = message.exited_at is not None and message.exited_at > 0
    return ProcessState(
        container_id=message.id,
        pid=message.pid,
        status=Status(message.status) if message.status in set(Status) else Status.UNKNOWN,
        exit_status=message.exit_status,
        exited_at=message.exited_at if over else None,
    )
