"""Looks at all containers with restart labels at an interval, and starts or stops their tasks.

    look ──> container: task as wanted ──────────────> nothing
                        wanted running, is not ──────> policy, back-off ──> kill, delete, create, start
                        wanted stopped, is not ──────> kill, delete

Each container's change is a task of its own: one that hangs holds up nothing but itself, and is given up at a deadline.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import MooredError, NotFound
from moored.kernel.namespaces import bind
from moored.kernel.ports.containers import Container
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.objects import Objects
from moored.kernel.ports.tasks import CreateTask, ProcessState, Status, Stdio, Tasks
from moored.plugins.monitors.restart.backoff import Backoff
from moored.plugins.monitors.restart.policy import COUNT, LOG_URI, STATUS, restarts, wants_start

SIGKILL: Final = 9
PARALLEL: Final = 8
"""Tasks that are started or stopped at one time."""
SECOND_NS: Final = 1_000_000_000

Name: TypeAlias = tuple[str, str]
"""Namespace and container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Seconds: between looks, at most between two starts of a task, and for one change."""

    interval: float
    max_backoff: float
    timeout: float


class RestartMonitor:
    """Restarts until `run` is cancelled. clock gives nanoseconds since 1970."""

    def __init__(
        self,
        tasks: Tasks,
        objects: Objects,
        plan: Plan,
        log: FilteringBoundLogger,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tasks = tasks
        self._objects = objects
        self._plan = plan
        self._log = log
        self._clock = clock
        self._busy: dict[Name, asyncio.Task[None]] = {}
        self._backoffs: dict[Name, Backoff] = {}
        self._created: dict[Name, int] = {}
        self._slots = asyncio.Semaphore(PARALLEL)

    async def run(self) -> None:
        """Look at once, then at every interval."""
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    await self.look(group)
                except MooredError as error:
                    self._log.error("cannot look at containers", reason=error.text)
                await asyncio.sleep(self._plan.interval)

    async def look(self, group: asyncio.TaskGroup) -> None:
        """Begin what all containers need; those that are still being worked on are left alone."""
        found: set[Name] = set()
        for namespace, _ in await self._objects.namespaces.list():
            with bind(namespace, ""):
                for container in await self._objects.containers.list([f'labels."{STATUS}"']):
                    name = (namespace, container.id)
                    found.add(name)
                    if name not in self._busy:
                        self._busy[name] = group.create_task(self._reconcile(name, container))
        for known in (self._backoffs, self._created):
            for name in known.keys() - found:
                del known[name]

    async def settled(self) -> None:
        """Wait until nothing is being worked on."""
        while self._busy:
            await asyncio.wait(self._busy.values())

    async def _reconcile(self, name: Name, container: Container) -> None:
        log = self._log.bind(namespace=name[0], container=name[1])
        try:
            async with asyncio.timeout(self._plan.timeout):
                await self._bring(name, container)
        except MooredError as error:
            log.warning("cannot bring task into its state", wanted=container.labels[STATUS], reason=error.text)
        except TimeoutError:
            log.warning("bringing task into its state took too long", wanted=container.labels[STATUS])
        except Exception:
            log.exception("cannot bring task into its state", wanted=container.labels[STATUS])
        finally:
            del self._busy[name]

    async def _bring(self, name: Name, container: Container) -> None:
        try:
            state = await self._tasks.get(container.id)
        except NotFound:
            state = None
        if not _agrees(container, state):
            # Whoever ends or starts a task for good writes the label first: the listed one may be older than the state.
            container = await self._objects.containers.get(container.id)
        wanted = container.labels.get(STATUS, "")
        if state is not None and _agrees(container, state):
            self._as_wanted(name)
        elif wanted == "running":
            if self._may_start(name, container, state):
                async with self._slots:
                    await self._start(name, container, state)
        elif wanted == "stopped" and state is not None and state.status is not Status.UNKNOWN:
            async with self._slots:
                await self._stop(container.id)

    def _as_wanted(self, name: Name) -> None:
        self._created.pop(name, None)
        backoff = self._backoffs.get(name)
        if backoff is None or backoff.started is None:
            return
        if self._seconds() - backoff.started >= self._plan.interval:
            del self._backoffs[name]

    def _may_start(self, name: Name, container: Container, state: ProcessState | None) -> bool:
        """Say whether to start it now. Raises InvalidArgument for labels that cannot be read."""
        if state is not None and state.status not in {Status.CREATED, Status.STOPPED}:
            return False  # paused on purpose, or nobody knows
        if self._in_other_hands(name, container, state):
            return False
        if not wants_start(container.labels, state.exit_status if state is not None else 0):
            return False
        backoff = self._backoffs.get(name)
        if backoff is None:
            return True
        if state is not None and state.exited_at is not None:
            backoff.ended(state.exited_at / SECOND_NS)
        else:
            # It was there when it was last looked at.
            backoff.ended(self._seconds() - self._plan.interval)
        return self._seconds() >= backoff.due

    def _in_other_hands(self, name: Name, container: Container, state: ProcessState | None) -> bool:
        """Whether a client may just be between the container and its task, or between its create and its start."""
        if state is None:
            age = (self._clock() - container.updated_at) / SECOND_NS
            return 0 <= age < self._plan.interval and COUNT not in container.labels
        if state.status is Status.CREATED and self._created.get(name) != state.pid:
            self._created[name] = state.pid
            return True
        return False

    async def _start(self, name: Name, container: Container, state: ProcessState | None) -> None:
        request = await self._request(container)
        backoff = self._backoffs.setdefault(name, Backoff(self._plan.interval, self._plan.max_backoff))
        backoff.begin(self._seconds())
        count = str(_restarts_so_far(container) + 1)
        labelled = replace(container, labels={COUNT: count})
        await self._objects.containers.update(labelled, [f"labels.{COUNT}"])
        try:
            pid = await self._make_and_start(request, state)
        except BaseException:
            backoff.ended(self._seconds())
            raise
        self._log.info("task started again", namespace=name[0], container=name[1], count=count, pid=pid)

    async def _make_and_start(self, request: CreateTask, state: ProcessState | None) -> int:
        if state is not None:
            await self._stop(request.container_id)
        await self._tasks.create(request)
        try:
            return await self._tasks.start(request.container_id)
        except BaseException:
            with suppress(MooredError):
                await self._tasks.delete(request.container_id)
            raise

    async def _stop(self, container_id: str) -> None:
        """Kill all of a task and forget it; without effect if that was done meanwhile."""
        with suppress(NotFound):
            try:
                await self._tasks.kill(container_id, SIGKILL, everything=True)
            except NotFound:
                pass
            except MooredError:
                # What cannot be killed may have ended by itself; else this fails and says so.
                await self._tasks.delete(container_id)
                return
            else:
                await self._tasks.wait(container_id)
            await self._tasks.delete(container_id)

    async def _request(self, container: Container) -> CreateTask:
        spec = json.loads(container.spec.value) if container.spec is not None else {}
        uri = container.labels.get(LOG_URI, "")
        terminal = bool((spec.get("process") or {}).get("terminal"))
        rootfs: list[Mount] = []
        if container.snapshot_key:
            snapshotter = self._objects.snapshotter(container.snapshotter)
            label = (spec.get("linux") or {}).get("mountLabel")
            more = (f'context="{label}"',) if label else ()
            mounts = await snapshotter.mounts(container.snapshot_key)
            rootfs = [replace(mount, options=(*mount.options, *more)) for mount in mounts]
        return CreateTask(
            container_id=container.id, rootfs=rootfs, stdio=Stdio(stdout=uri, stderr=uri, terminal=terminal)
        )

    def _seconds(self) -> float:
        return self._clock() / SECOND_NS


def _agrees(container: Container, state: ProcessState | None) -> bool:
    """Whether a task is as its container's label wants it; None is no task."""
    wanted = container.labels.get(STATUS, "")
    return wanted == ("stopped" if state is None else state.status.name.lower())


def _restarts_so_far(container: Container) -> int:
    try:
        return restarts(container.labels)
    except MooredError:
        return 0
