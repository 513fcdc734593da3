"""The controller `podsandbox`: each sandbox is a container of a configured image, and a task of it.

The containers of the sandbox join the shim of that task, or have shims of their own where it is too old for that. All
that has to outlive the daemon is in the container's record, in its label STATE:

    created ── start ──> started ── the task ends ──> exited STATUS NANOSECONDS        shutdown removes the container

An end is told once, when the label says `exited`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel import payloads
from moored.kernel.errors import AlreadyExists, FailedPrecondition, MooredError, NotFound, Unknown
from moored.kernel.imagespec.platforms import Platform, default
from moored.kernel.namespaces import bind, current_namespace
from moored.kernel.ports.containers import Container
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.objects import Objects
from moored.kernel.ports.sandboxes import (
    EXIT_TOPIC,
    NOT_READY,
    READY,
    NewSandbox,
    Sandbox,
    SandboxExit,
    SandboxInstance,
    SandboxStatus,
)
from moored.kernel.ports.tasks import CreateTask, Exit, Metric, Status, Tasks
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.sandbox.pause.image import read_image
from moored.plugins.sandbox.pause.spec import pause_spec

STATE: Final = "io.moored.sandbox.state"
CREATED: Final = "created"
STARTED: Final = "started"
EXITED: Final = "exited"
_UNKNOWN_STATUS: Final = 255
_NO_OPTIONS: Final = "google.protobuf.Empty"
_TO_DIE: Final = 10.0
"""Seconds that a killed task may take to end."""
_LEASE_LABEL: Final = "containerd.io/gc.expire"

Key = tuple[str, str]
"""Namespace and sandbox id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the pause containers are made of."""

    image: str
    snapshotter: str
    runtime: str


@dataclass(slots=True, kw_only=True)
class PauseController:
    """A `kernel.ports.sandboxes.SandboxController`; made by `running`."""

    tells_exits: bool = field(default=True, init=False)
    objects: Objects
    tasks: Tasks
    events: Exchange
    settings: Settings
    log: FilteringBoundLogger
    _ended: dict[Key, asyncio.Future[SandboxExit]] = field(default_factory=dict)
    _watches: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _turns: Turns[Key] = field(default_factory=Turns)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def create(self, new: NewSandbox) -> None:
        """See the port."""
        await to_the_end(self._create(new))

    async def _create(self, new: NewSandbox) -> None:
        namespace, id_ = current_namespace(), new.sandbox.id
        async with self._turns.take((namespace, id_)):
            with suppress(NotFound):
                await self.objects.containers.get(id_)
                raise AlreadyExists(f"sandbox {id_} already running")
            image = await read_image(self.settings.image, self.objects.images, self.objects.content)
            options = new.sandbox.runtime_options
            container = Container(
                id=id_,
                image=image.name,
                runtime=new.sandbox.runtime or self.settings.runtime,
                runtime_options=None if options is not None and options.type_url == _NO_OPTIONS else options,
                spec=pause_spec(new, image, namespace),
                snapshotter=self.settings.snapshotter,
                snapshot_key=id_,
                labels={**new.sandbox.labels, STATE: CREATED},
            )
            await self._add(container, image.chain)
            self._know((namespace, id_))

    async def _add(self, container: Container, chain: str) -> None:
        """Make snapshot and record, with a lease that holds the one up to the other."""
        snapshotter = self.objects.snapshotter(container.snapshotter)
        expiry = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        lease = await self.objects.leases.create("", {_LEASE_LABEL: expiry})
        try:
            with bind(lease=lease.id):
                try:
                    await snapshotter.prepare(container.snapshot_key, chain)
                except NotFound as error:
                    text = f"sandbox image {container.image!r} is not unpacked for {container.snapshotter!r}"
                    raise FailedPrecondition(f"{text}: {error.text}") from error
                try:
                    await self.objects.containers.create(container)
                except BaseException:
                    await snapshotter.remove(container.snapshot_key)
                    raise
        finally:
            await self.objects.leases.delete(lease.id)

    async def start(self, id: str) -> SandboxInstance:  # noqa: A002 - the field's term
        """See the port."""
        return await to_the_end(self._start(id))

    async def _start(self, id_: str) -> SandboxInstance:
        key = (current_namespace(), id_)
        async with self._turns.take(key):
            try:
                container = await self._container(id_)
            except NotFound:
                raise Unknown(f'unable to find sandbox "{id_}"') from None
            if container.labels[STATE] != CREATED:
                raise FailedPrecondition(f"sandbox {id_!r} was started before")
            try:
                mounts = await self.objects.snapshotter(container.snapshotter).mounts(container.snapshot_key)
                pid = await self.tasks.create(CreateTask(container_id=id_, rootfs=mounts))
                await self._note(container, STARTED)
                await self.tasks.start(id_)
            except BaseException:
                await self._remove(container)
                raise
            self._watch(key)
        return SandboxInstance(
            id=id_, pid=pid, created_at=container.created_at, labels=_labels(container), spec=container.spec
        )

    async def stop(self, id: str, seconds: int = 0) -> None:  # noqa: A002 - the field's term
        """See the port."""
        with suppress(NotFound):
            await self._container(id)
            await to_the_end(self._stop(id, seconds))

    async def _stop(self, id_: str, seconds: int) -> None:
        members = [one.id for one in await self.objects.containers.list() if one.sandbox == id_]
        ids = [*members, id_]
        if seconds:
            await asyncio.gather(*(self._end(one, signal.SIGTERM, seconds) for one in ids))
        await asyncio.gather(*(self._end(one, signal.SIGKILL, _TO_DIE) for one in ids))
        key = (current_namespace(), id_)
        if (watch := self._watches.get(key)) is not None:
            await asyncio.wait([watch], timeout=_TO_DIE)
        elif not self._know(key).done():
            await self._tell(key, SandboxExit(status=0, exited_at=time.time_ns()))  # it was never started

    async def _end(self, id_: str, number: int, seconds: float) -> None:
        """Send a signal to a task, and wait for its end no longer than told; one that is not there is fine."""
        with suppress(NotFound, TimeoutError):
            if (await self.tasks.get(id_)).status is Status.STOPPED:
                return
            await self.tasks.kill(id_, number, everything=number == signal.SIGKILL)
            async with asyncio.timeout(seconds):
                await self.tasks.wait(id_)

    async def shutdown(self, id: str) -> None:  # noqa: A002 - the field's term
        """See the port."""
        await to_the_end(self._shutdown(id))

    async def _shutdown(self, id_: str) -> None:
        key = (current_namespace(), id_)
        async with self._turns.take(key):
            try:
                container = await self._container(id_)
            except NotFound:
                raise NotFound("not found") from None
            await self._stop(id_, 0)
            for one in await self.objects.containers.list():
                if one.sandbox == id_:
                    with suppress(NotFound):
                        await self.tasks.delete(one.id)
            await self._remove(container)

    async def _remove(self, container: Container) -> None:
        """Remove task, record and snapshot, in any state."""
        await self._end(container.id, signal.SIGKILL, _TO_DIE)
        with suppress(NotFound):
            await self.tasks.delete(container.id)
        with suppress(NotFound):
            await self.objects.containers.delete(container.id)
        with suppress(NotFound):
            await self.objects.snapshotter(container.snapshotter).remove(container.snapshot_key)
        future = self._ended.pop((current_namespace(), container.id), None)
        if future is not None:
            future.cancel()

    # --- asking -------------------------------------------------------------------------------------------------------

    async def platform(self, id: str) -> Platform:  # noqa: A002 - the field's term
        """See the port."""
        await self._container(id)
        return default()

    async def wait(self, id: str) -> SandboxExit:  # noqa: A002 - the field's term
        """See the port."""
        await self._container(id)
        return await asyncio.shield(self._know((current_namespace(), id)))

    async def status(self, id: str, *, verbose: bool = False) -> SandboxStatus:  # noqa: A002 - the field's term
        """See the port."""
        try:
            container = await self._container(id)
        except NotFound:
            return SandboxStatus(id=id, exited_at=time.time_ns())
        pid, state = 0, NOT_READY
        with suppress(NotFound):
            task = await self.tasks.get(id)
            if task.status in (Status.RUNNING, Status.PAUSED):
                pid, state = task.pid, READY
        ended = _exit_in(container)
        info = {"image": container.image, "runtime": container.runtime, "state": container.labels[STATE]}
        return SandboxStatus(
            id=id,
            pid=pid,
            state=state,
            info=info if verbose else {},
            created_at=container.created_at,
            exited_at=ended.exited_at if ended is not None else None,
        )

    async def metrics(self, id: str) -> Metric:  # noqa: A002 - the field's term
        """See the port."""
        await self._container(id)
        found = await self.tasks.metrics([f'id=="{id}"'])
        if not found:
            raise NotFound(f"sandbox {id!r} has no counters")
        return found[0]

    async def update(self, id: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> None:  # noqa: A002 - the field's term
        """See the port: there is nothing in a pause container that a record could change."""

    async def _container(self, id_: str) -> Container:
        """Give a sandbox' container. NotFound `not found` for any other."""
        try:
            container = await self.objects.containers.get(id_)
        except NotFound:
            raise NotFound("not found") from None
        if STATE not in container.labels:
            raise NotFound("not found")
        return container

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _know(self, key: Key) -> asyncio.Future[SandboxExit]:
        if key not in self._ended:
            self._ended[key] = asyncio.get_running_loop().create_future()
        return self._ended[key]

    async def _note(self, container: Container, state: str) -> None:
        changed = replace(container, labels={**container.labels, STATE: state})
        await self.objects.containers.update(changed, [f"labels.{STATE}"])

    def _watch(self, key: Key) -> None:
        self._know(key)
        task = asyncio.create_task(self._until_exit(key), name=f"watch of sandbox {key[1]}")
        self._watches[key] = task
        task.add_done_callback(lambda _: self._over(key, task))

    def _over(self, key: Key, task: asyncio.Task[None]) -> None:
        if self._watches.get(key) is task:
            del self._watches[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("end of a sandbox is not told", namespace=key[0], sandbox=key[1], exc_info=error)

    async def _until_exit(self, key: Key) -> None:
        with bind(key[0], ""):
            try:
                found = await self.tasks.wait(key[1])
            except MooredError as error:
                self.log.warning("pause task is lost", namespace=key[0], sandbox=key[1], reason=error.text)
                found = Exit(status=_UNKNOWN_STATUS, exited_at=time.time_ns())
            await self._tell(key, SandboxExit(status=found.status, exited_at=found.exited_at or time.time_ns()))

    async def _tell(self, key: Key, ended: SandboxExit) -> None:
        """Remember the end, let waiters go, and tell it."""
        with bind(key[0], ""):
            with suppress(NotFound):
                container = await self._container(key[1])
                await self._note(container, f"{EXITED} {ended.status} {ended.exited_at}")
            if not (future := self._know(key)).done():
                future.set_result(ended)
            event = payloads.SandboxExit(sandbox_id=key[1], exit_status=ended.status, exited_at=ended.exited_at)
            await self.events.publish(EXIT_TOPIC, event, key[0])

    # --- after a restart ----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up what earlier daemons started."""
        for namespace, _ in await self.objects.namespaces.list():
            with bind(namespace, ""):
                try:
                    found = await self.objects.containers.list([f'labels."{STATE}"'])
                except MooredError as error:
                    self.log.warning("sandboxes cannot be loaded", namespace=namespace, reason=error.text)
                    continue
            for container in found:
                key = (namespace, container.id)
                if (ended := _exit_in(container)) is not None:
                    self._know(key).set_result(ended)
                elif container.labels[STATE] == STARTED:
                    self._watch(key)
                else:
                    self._know(key)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[PauseController]:
        """Take up what is there and serve; leaving ends no sandbox."""
        try:
            await self.load()
            yield self
        finally:
            watches = tuple(self._watches.values())
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            for future in self._ended.values():
                future.cancel()


def _exit_in(container: Container) -> SandboxExit | None:
    """Give the end that the record of a sandbox tells of."""
    words = container.labels[STATE].split()
    if len(words) == 3 and words[0] == EXITED and words[1].isdecimal() and words[2].isdecimal():
        return SandboxExit(status=int(words[1]), exited_at=int(words[2]))
    return None


def _labels(container: Container) -> dict[str, str]:
    return {name: value for name, value in container.labels.items() if name != STATE}
