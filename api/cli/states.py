"""How the tasks of all containers are, and what they use, each by one call for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moored.api.cli.identity import Recorded, exited
from moored.kernel.ports.tasks import Metric, ProcessState, Status

if TYPE_CHECKING:
    from moored.api.client import Client


async def states(client: Client, containers: Sequence[Recorded] = ()) -> dict[str, ProcessState]:
    """Give the state of every container's task, by the container's id; of these also what is known of a task gone."""
    return gone(containers) | await client.containers.states()


async def metrics(client: Client, ids: Sequence[str] = ()) -> dict[str, Metric]:
    """Give the counters of the tasks that have some, of all or of those with these ids."""
    return {one.id: one for one in await client.containers.metrics(*ids)}


def gone(containers: Sequence[Recorded]) -> dict[str, ProcessState]:
    """Give what is known of tasks that are gone, by the container's id."""
    return {one.id: state for one in containers if (state := exited(one)) is not None}


def word(state: ProcessState | None) -> str:
    """Give a state in one word: created, running, paused, exited or unknown; a container without task is created."""
    if state is None:
        return "created"
    return {
        Status.CREATED: "created",
        Status.RUNNING: "running",
        Status.PAUSED: "paused",
        Status.PAUSING: "paused",
        Status.STOPPED: "exited",
    }.get(state.status, "unknown")


def is_up(state: ProcessState | None) -> bool:
    """Whether processes are there, be they frozen."""
    return word(state) in ("running", "paused", "unknown")
