"""The task runtime: makes tasks whole or not at all, and finds those of earlier daemons again.

create:  bundle with `creating` --> shim --> Task.Create --> `creating` removed --> listed
load:    `creating` there: undone; else listed at once, asked beside the start, kept while it is silent
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from moored.kernel.errors import AlreadyExists, MooredError, NotFound, ResourceExhausted, Unavailable, Unknown
from moored.kernel.namespaces import current_namespace
from moored.kernel.payloads import TaskDelete, TaskExit
from moored.kernel.plugin import HookRegistrar
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.events import Exchange, Fields
from moored.kernel.ports.shims import Endpoint
from moored.kernel.ports.tasks import Exit, NewTask, RuntimeInfo, Status, Task
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.runtime.manager import bundle as files
from moored.plugins.runtime.manager.bundle import Bundle, Folders, host_root_gid, spec_of
from moored.plugins.runtime.manager.choice import Choice, Runtimes
from moored.plugins.runtime.manager.features import has_mapped_mounts, require_mapped_mounts
from moored.plugins.runtime.manager.kinds import Joined, Kind
from moored.plugins.runtime.manager.manager import ShimManager
from moored.plugins.runtime.manager.own import Housed
from moored.plugins.runtime.manager.shim import ManagedShim, stored_endpoint
from moored.plugins.runtime.manager.task import ShimTask

LOAD_GRACE: Final = 0.25
"""Seconds that a start waits for shims to answer; those that need longer answer beside it."""
_LOADS: Final = 64
"""Shims that are asked side by side at the start. One that is silent takes no place."""
_TO_NOTE: Final = 0.1
"""Seconds after which an exit that was told is noted in its bundle."""
_UNKNOWN_STATUS: Final = 255
_EXIT: Final = "/tasks/exit"
_DELETE: Final = "/tasks/delete"
_FEATURES: Final = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

Key = tuple[str, str]
"""Namespace and container id."""


@dataclass(slots=True)
class _Found:
    """A bundle of an earlier daemon; endpoint None for one whose shim was not started to the end."""

    bundle: Bundle
    endpoint: Endpoint | None = None
    kind: Kind | None = None
    pid: int = 0
    told: Exit | None = None


@dataclass(slots=True, kw_only=True)
class TaskRuntime:
    """A `kernel.ports.tasks.Runtime`; made by `running`."""

    manager: ShimManager
    folders: Folders
    events: Exchange
    runtimes: Runtimes
    hooks: HookRegistrar
    log: FilteringBoundLogger
    _tasks: dict[Key, ShimTask] = field(default_factory=dict)
    _turns: Turns[Key] = field(default_factory=Turns)
    _undoing: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _background: set[asyncio.Task[None]] = field(default_factory=set)
    _noted: dict[Key, ShimTask] = field(default_factory=dict)

    # --- the port -----------------------------------------------------------------------------------------------------

    async def create(self, container_id: str, new: NewTask) -> Task:
        """See the port."""
        return await to_the_end(self._create((current_namespace(), container_id), new))

    def get(self, container_id: str) -> Task:
        """See the port."""
        task = self._tasks.get((current_namespace(), container_id))
        if task is None:
            raise NotFound(f"task {container_id} not found", bare=True)
        return task

    def list(self, *, everywhere: bool = False) -> list[Task]:
        """See the port."""
        namespace = "" if everywhere else current_namespace()
        return [task for (owner, _), task in self._tasks.items() if everywhere or owner == namespace]

    async def info(self, runtime: str, options: TypedBytes | None = None) -> RuntimeInfo:
        """Tell about what a runtime's name means here, in `-info`'s terms; options are as clients pack them.

        Raises as `Shims.info`, and as the driver of an OCI runtime that our own shim calls.
        """
        choice = await self.runtimes.choose(runtime, options)
        if choice is None:
            return await self.manager.info(runtime, options)
        facts = choice.facts
        features = TypedBytes(_FEATURES, facts.features) if facts.features else None
        return RuntimeInfo(
            name=runtime, version=facts.version, revision=facts.commit, options=options, features=features
        )

    # --- create -------------------------------------------------------------------------------------------------------

    async def _create(self, key: Key, new: NewTask) -> Task:
        async with self._turns.take(key):
            if key in self._undoing:
                await asyncio.wait([self._undoing[key]])
            if key in self._tasks:
                raise AlreadyExists(f"task {key[1]}")
            bundle = Bundle(self.folders, *key)
            kind, choice = await self._kind(new)
            await asyncio.to_thread(self._prepare, bundle, kind, choice, new)
            with _about("failed to start shim"):
                shim = await self.manager.start(bundle, kind, new.options or new.runtime_options, self._gone)
            task = self._task_of(shim)
            try:
                with _about("failed to create shim task"):
                    await task.create(new)
                await asyncio.to_thread(bundle.finished)
                await shim.require()
            except BaseException:
                await self.manager.undo(shim)
                raise
            self._tasks[key] = task
            return task

    async def _kind(self, new: NewTask) -> tuple[Kind, Choice | None]:
        """Choose the shim of a new task, before anything is written."""
        place = await self.manager.in_sandbox(new.sandbox, new.endpoint) if new.sandbox else None
        if place is not None and not place[1]:
            return Joined(new.sandbox, place[0]), None
        choice = await self.runtimes.choose(new.runtime, new.options or new.runtime_options)
        if place is not None:
            return (Joined(new.sandbox, place[0]) if choice is None else Housed(new.sandbox, place[0], choice)), choice
        if choice is None:
            kind = await asyncio.to_thread(self.manager.external, new.runtime)
            if has_mapped_mounts(new.spec.value):
                await require_mapped_mounts(self.manager, new.runtime, new.options or new.runtime_options)
            return kind, None
        return self.manager.own(choice), choice

    def _prepare(self, bundle: Bundle, kind: Kind, choice: Choice | None, new: NewTask) -> None:
        """Make the bundle; in a worker thread, as the hooks and drivers that change specs are promised."""
        data = new.spec.value
        hooked = self.hooks.hook.moored_adjust_spec.get_hookimpls()
        gid, spec = 0, None
        if hooked or choice is not None or b"gidMappings" in data:
            spec = spec_of(data)
            for one in hooked:
                _run_hook(one, namespace=bundle.namespace, container_id=bundle.id, spec=spec)
            if choice is not None:
                choice.adapt(spec)
            gid = host_root_gid(spec)
            if (hooked or choice is not None) and spec != json.loads(data):
                data = json.dumps(spec, separators=(",", ":")).encode()
        bundle.make(data, gid)
        try:
            kind.prepare(bundle, spec)
            if new.rootfs and not kind.mounts_itself:
                with _about("failed to create shim task"):
                    bundle.mount(new.rootfs)
        except BaseException:
            bundle.remove()
            raise

    def _task_of(self, shim: ManagedShim) -> ShimTask:
        # a shim of ours is told each time, and knows whether its sandbox still needs it
        return ShimTask(shim, self.manager.deadlines, self._forget, joined=isinstance(shim.kind, Joined))

    def _forget(self, task: ShimTask) -> None:
        if self._tasks.get((task.namespace, task.id)) is task:
            del self._tasks[task.namespace, task.id]

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def _gone(self, shim: ManagedShim, found: Exit | None) -> None:
        """Tell of a task whose shim went away without having been asked to."""
        task = self._tasks.get((shim.namespace, shim.id))
        if task is None or task.shim is not shim:
            return
        now = time.time_ns()
        ended = task.told or found or Exit(status=_UNKNOWN_STATUS, exited_at=now)
        self.log.warning("shim ended before its task was deleted", namespace=shim.namespace, id=shim.id)
        try:
            if task.told is None:
                await self._tell_exit(task, ended)
            await self.events.publish(
                _DELETE,
                TaskDelete(
                    container_id=task.id, pid=ended.pid, exit_status=ended.status, exited_at=ended.exited_at or now
                ),
                task.namespace,
            )
        except MooredError as error:
            self.log.warning("end of a task was not told", id=shim.id, reason=error.text)
        self._forget(task)

    async def _tell_exit(self, task: ShimTask, ended: Exit) -> None:
        event = TaskExit(
            container_id=task.id,
            id=task.id,
            pid=ended.pid,
            exit_status=ended.status,
            exited_at=ended.exited_at or time.time_ns(),
        )
        await self.events.publish(_EXIT, event, task.namespace)

    async def _note_exits(self) -> None:
        """Remember which exits have been told, in bundles too: after a restart none is missing, and none told twice."""
        while True:
            try:
                async with self.events.subscribe(f'topic=="{_EXIT}"') as envelopes:
                    async for envelope in envelopes:
                        event = Fields(envelope).payload
                        if isinstance(event, TaskExit) and event.id == event.container_id:
                            await self._note_exit((envelope.namespace, event.id), event)
            except ResourceExhausted:
                continue  # told twice at most
            except Unavailable:
                return

    async def _note_exit(self, key: Key, event: TaskExit) -> None:
        task = self._tasks.get(key)
        # a shim may only now get rid of the exit of an earlier task of that name
        if task is not None and task.pid in {0, event.pid}:
            task.told = Exit(pid=event.pid, status=event.exit_status, exited_at=event.exited_at)
            self._noted[key] = task
            if len(self._noted) == 1:
                self._spawn(self._write_exits(), "noting of exits")

    async def _write_exits(self) -> None:
        """Write the exits that were told into their bundles, soon: most tasks are deleted right after their end."""
        await asyncio.sleep(_TO_NOTE)
        await self._write_noted()

    async def _write_noted(self) -> None:
        noted, self._noted = self._noted, {}
        kept = [task for key, task in noted.items() if self._tasks.get(key) is task]
        if kept:  # to the end, since nobody takes up half of it when the runtime closes meanwhile
            await to_the_end(asyncio.to_thread(_note_all, kept))

    # --- after a restart ----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up all bundles there are. Raises OSError if the folders cannot be read."""
        found = await asyncio.to_thread(self._scan)
        # what is to be undone may be served by the shim of another, which has to be known before
        checks = [await self._take_up(one) for one in sorted(found, key=lambda one: one.endpoint is None)]
        waited = [task for task in checks if task is not None]
        if waited:
            _, silent = await asyncio.wait(waited, timeout=LOAD_GRACE)
            if silent:
                self.log.warning("shims are slow to answer", shims=len(silent), of=len(waited))

    def _scan(self) -> Sequence[_Found]:
        self.folders.sweep()
        found = []
        for bundle in self.folders.bundles():
            try:
                found.append(self._look(bundle))
            except (MooredError, OSError) as error:
                # it may be of a newer daemon, and its container is running
                self.log.error("bundle is left alone", namespace=bundle.namespace, id=bundle.id, reason=str(error))  # noqa: TRY400
        return found

    def _look(self, bundle: Bundle) -> _Found:
        if bundle.empty() or bundle.has(files.CREATING):
            return _Found(bundle)
        try:
            endpoint = stored_endpoint(bundle)
        except NotFound:
            return _Found(bundle)
        return _Found(
            bundle,
            endpoint,
            kind=self.manager.stored_kind(bundle),
            pid=bundle.init_pid(),
            told=bundle.noted_exit(),
        )

    async def _take_up(self, found: _Found) -> asyncio.Task[None] | None:
        """Begin with one bundle; gives the work that goes on."""
        bundle = found.bundle
        key = (bundle.namespace, bundle.id)
        if found.endpoint is not None:
            try:
                shim = await self.manager.load(bundle, found.kind, found.endpoint, self._gone)
            except (MooredError, OSError) as error:
                self.log.warning("task cannot be loaded", namespace=key[0], id=key[1], reason=str(error))
                return None
            task = self._task_of(shim)
            task.assume_pid(found.pid)
            task.told = found.told
            self._tasks[key] = task
            return self._spawn(self._check(task), f"check of {key[1]}")
        undoing = self._spawn(self.manager.undo_leftover(bundle), f"undoing of {key[1]}")
        self._undoing[key] = undoing
        undoing.add_done_callback(lambda _: self._undoing.pop(key, None))
        return undoing

    async def _check(self, task: ShimTask) -> None:
        """Hold what a shim knows against its bundle, however long it takes to answer."""
        try:
            await task.connect()
            state = await task.ask_state(seconds=None)
        except NotFound:
            self.log.info("ending a shim that has no container", namespace=task.namespace, id=task.id)
            await task.discard()
            return
        except Unavailable:
            return  # its end is dealt with where the connection is
        except MooredError as error:
            self.log.warning("shim does not tell its state", namespace=task.namespace, id=task.id, reason=error.text)
            return
        if state.status is Status.STOPPED and task.told is None and not task.shim.reports_exits:
            ended = Exit(pid=state.pid, status=state.exit_status, exited_at=state.exited_at)
            await self._tell_exit(task, ended)

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("background work failed", work=task.get_name(), exc_info=error)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[TaskRuntime]:
        """Take up what is there and serve; leaving ends no shim."""
        self._spawn(self._note_exits(), "exits")
        await asyncio.sleep(0)  # it is subscribed now
        try:
            await self.load()
            yield self
        finally:
            await asyncio.sleep(0)  # what was sent before is noted now
            tasks = tuple(self._background)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._write_noted()


def _note_all(tasks: Sequence[ShimTask]) -> None:
    for task in tasks:
        if task.told is not None:
            with suppress(OSError):  # told twice at most
                task.shim.files.note_exit(task.told)


def _run_hook(one: Any, **arguments: Any) -> None:
    try:
        one.function(**{name: arguments[name] for name in one.argnames})
    except MooredError:
        raise
    except Exception as error:
        raise Unknown(f"plugin {one.plugin_name!r} failed to adjust the spec: {error}") from error


@contextmanager
def _about(what: str) -> Generator[None]:
    """Say before an error's text what failed, as clients know it."""
    try:
        yield
    except MooredError as error:
        raise type(error)(f"{what}: {error.text}", bare=error.bare) from error
