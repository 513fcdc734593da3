"""Shows the counters of all watched tasks; asks their shims when somebody scrapes, and nobody in between.

    container_NAME{container_id,namespace,runtime,...}   one gauge for each counter of the host's kind of cgroups
    container_memory_oom_total                           counter on v1, made of events

A shim that does not answer within the deadline costs its own tasks' values in that scrape, nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError as FutureCancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import MooredError, NotFound
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.tasks import Task
from moored.plugins.monitors.cgroups.counters import BY_TYPE, OOM_V1, V1, V2, Counter
from moored.plugins.monitors.cgroups.message import read_fields

if TYPE_CHECKING:
    from prometheus_client.core import Metric

SLACK_SECONDS: Final = 5.0
"""What a scrape waits for the event loop beyond the shims' deadline."""

Name: TypeAlias = tuple[str, str]
"""Namespace and container."""
Sample: TypeAlias = tuple[Counter, dict[str, str], int]
"""A counter, its further labels, its value."""


@dataclass(slots=True)
class Watched:
    """A task, the labels of its samples, how often it ran out of memory, and whether its shim failed the last time."""

    task: Task
    labels: Mapping[str, str]
    ooms: int = 0
    failing: bool = False


class CgroupMonitor:
    """The TaskMonitor, and the collector of its metrics. All but `describe` and `collect` belong to the event loop."""

    def __init__(
        self, *, unified: bool, deadline: float, loop: asyncio.AbstractEventLoop, log: FilteringBoundLogger
    ) -> None:
        self._own = V2 if unified else V1
        self._deadline = deadline
        self._loop = loop
        self._log = log
        self._watched: dict[Name, Watched] = {}

    # --- TaskMonitor --------------------------------------------------------------------------------------------------

    async def watch(self, task: Task, labels: Mapping[str, str]) -> None:
        """See TaskMonitor."""
        own = {"container_id": task.id, "namespace": task.namespace}
        self._watched[task.namespace, task.id] = Watched(task, {**own, **labels})

    async def forget(self, task: Task) -> None:
        """See TaskMonitor."""
        self.ended((task.namespace, task.id), task.pid)

    def ended(self, name: Name, pid: int) -> None:
        """Stop watching a task that is gone, unless the name is already another one's; pid 0 is not known."""
        watched = self._watched.get(name)
        if watched is not None and pid in {watched.task.pid, 0}:
            del self._watched[name]

    def ran_out_of_memory(self, name: Name) -> None:
        """Count it."""
        if name in self._watched:
            self._watched[name].ooms += 1

    # --- Collector ----------------------------------------------------------------------------------------------------

    def describe(self) -> Iterator[Metric]:
        """Give the names of all, so that registering asks no shim."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """Ask all shims, side by side; in any thread but the event loop's. Nothing once the loop has ended."""
        if self._loop.is_closed():
            return
        gathered = asyncio.run_coroutine_threadsafe(self._gather(), self._loop)
        try:
            yield from gathered.result(self._deadline + SLACK_SECONDS).values()
        except (TimeoutError, FutureCancelledError):
            gathered.cancel()

    async def _gather(self) -> dict[str, Metric]:
        watched = list(self._watched.values())
        found = await asyncio.gather(*map(self._read, watched))
        families = self._families()
        for one, samples in zip(watched, found, strict=True):
            for counter, labels, value in samples:
                if (family := families.get(counter.name)) is not None:
                    family.add_sample(family.name, {**one.labels, **labels}, value)
            if self._own is V1:
                name, _ = OOM_V1
                families[name].add_sample(f"{name}_total", dict(one.labels), one.ooms)
        return families

    def _families(self) -> dict[str, Metric]:
        from prometheus_client.core import Metric

        made = {one.name: Metric(f"container_{one.name}", one.help, "gauge") for one in self._own}
        if self._own is V1:
            name, text = OOM_V1
            made[name] = Metric(name, text, "counter")
        return made

    async def _read(self, watched: Watched) -> list[Sample]:
        """Give the counters of a task, none if its shim does not tell them; that is logged once in a row."""
        try:
            with bind(watched.task.namespace):
                async with asyncio.timeout(self._deadline):
                    samples = _samples(await watched.task.stats())
        except NotFound:
            return []  # it has ended
        except (MooredError, TimeoutError, ValueError) as error:
            if not watched.failing:
                reason = str(error) or f"no answer within {self._deadline:g} s"
                self._log.warning("task gives no counters", **watched.labels, reason=reason)
            watched.failing = True
            return []
        watched.failing = False
        return samples


def _samples(stats: TypedBytes) -> list[Sample]:
    """Read what a shim answered; of the other kind of cgroups too. Raises ValueError for anything else."""
    counters = BY_TYPE.get(stats.type_url.rpartition("/")[2])
    if counters is None:
        raise ValueError(f"counters are of type {stats.type_url!r}, wanted one of {list(BY_TYPE)}")
    root = read_fields(stats.value)
    return [(counter, labels, value) for counter in counters for labels, value in counter.read(root)]
