"""The controller `shim`: a shim for each sandbox, which its containers then share.

create:  bundle with `creating` --> shim --> CreateSandbox --> `creating` removed --> known, and waited for
load:    `creating` there: undone; else known at once, asked and waited for beside the start

Its end is told once: by the answer to WaitSandbox, or when the shim is gone. `exited` in the bundle remembers that over
restarts of the daemon; one that is killed between the two tells it again. Source: `contracts/shim-v2.md` 6,
`contracts/semantics.md` 3.7.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from moored.api.convert import to_ns
from moored.api.runtime.sandbox.v1 import sandbox_pb2 as api
from moored.api.sandboxes import any_message, moment, typed
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.kernel import payloads
from moored.kernel.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    Unavailable,
    Unknown,
)
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.namespaces import current_namespace, validate_identifier
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.sandboxes import (
    EXIT_TOPIC,
    NewSandbox,
    Sandbox,
    SandboxExit,
    SandboxInstance,
    SandboxStatus,
)
from moored.kernel.ports.tasks import Exit, Metric, SandboxEndpoint
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.runtime.manager import bundle as files
from moored.plugins.runtime.manager.bundle import Bundle, Folders, spec_of
from moored.plugins.runtime.manager.choice import Choice
from moored.plugins.runtime.manager.kinds import Kind
from moored.plugins.runtime.manager.manager import ShimManager
from moored.plugins.runtime.manager.shim import ManagedShim, stored_endpoint
from moored.plugins.runtime.sandboxes.calls import call, end

_UNKNOWN_STATUS: Final = 255
_NO_OPTIONS: Final = "google.protobuf.Empty"
"""What clients in Go give as options when they have none."""
_TO_TELL: Final = 3.0
"""Seconds for which a shutdown waits until the end of the sandbox is told."""

Key = tuple[str, str]
"""Namespace and sandbox id."""


@dataclass(slots=True, eq=False)
class _Known:
    """A sandbox that there is; ended once it is known how, told once that was published."""

    shim: ManagedShim
    ended: asyncio.Future[SandboxExit]
    told: bool = False
    watch: asyncio.Task[None] | None = None


@dataclass(slots=True, kw_only=True)
class ShimController:
    """A `kernel.ports.sandboxes.SandboxController`; made by `running`."""

    tells_exits: bool = field(default=True, init=False)
    manager: ShimManager
    folders: Folders
    events: Exchange
    log: FilteringBoundLogger
    _sandboxes: dict[Key, _Known] = field(default_factory=dict)
    _turns: Turns[Key] = field(default_factory=Turns)
    _undoing: dict[Key, asyncio.Task[None]] = field(default_factory=dict)
    _background: set[asyncio.Task[None]] = field(default_factory=set)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def create(self, new: NewSandbox) -> None:
        """See the port."""
        await to_the_end(self._create((current_namespace(), new.sandbox.id), new))

    async def _create(self, key: Key, new: NewSandbox) -> None:
        async with self._turns.take(key):
            if key in self._undoing:
                await asyncio.wait([self._undoing[key]])
            if self.manager.shim(*key) is not None:
                raise AlreadyExists(f"sandbox {key[1]} already running")
            bundle = Bundle(self.folders, *key)
            _check_id(key[1])
            failed = f"failed to start new shim for sandbox {key[1]}"
            with _about(failed):
                kind, choice, options = await self._kind(new.sandbox)
            await asyncio.to_thread(_prepare, bundle, kind, choice, new.sandbox.spec)
            with _about(failed):
                shim = await self.manager.start(bundle, kind, options, self._gone)
            try:
                with _about(f"failed to create sandbox {key[1]}"):
                    await self._ask_create(shim, new)
                await asyncio.to_thread(bundle.finished)
                await shim.require()
            except BaseException:
                await end(shim, self.manager.deadlines)
                await self.manager.undo(shim)
                raise
            self._know(key, shim)

    async def _kind(self, sandbox: Sandbox) -> tuple[Kind, Choice | None, TypedBytes | None]:
        """Choose the shim, and what it is given."""
        options = sandbox.runtime_options
        read = None if options is not None and options.type_url.rpartition("/")[2] == _NO_OPTIONS else options
        choice = await self.manager.runtimes.choose(sandbox.runtime, read)
        if choice is None:
            try:
                return await asyncio.to_thread(self.manager.external, sandbox.runtime), None, options
            except (InvalidArgument, NotFound) as error:
                # of neither class for clients: it is not the sandbox that is wrong, or not there
                raise Unknown(f"failed to resolve runtime path: {error.text}") from error
        return self.manager.own(choice), choice, read

    async def _ask_create(self, shim: ManagedShim, new: NewSandbox) -> None:
        request = api.CreateSandboxRequest(
            sandbox_id=shim.id,
            bundle_path=str(shim.bundle),
            rootfs=[MountMessage(type=m.type, source=m.source, target=m.target, options=m.options) for m in new.rootfs],
            options=any_message(new.options),
            netns_path=new.netns,
            annotations=new.annotations,
        )
        seconds = self.manager.deadlines.create
        await call(shim, "CreateSandbox", request, api.CreateSandboxResponse, seconds=seconds)

    async def start(self, id: str) -> SandboxInstance:  # noqa: A002 - the field's term
        """See the port."""
        return await to_the_end(self._start((current_namespace(), id)))

    async def _start(self, key: Key) -> SandboxInstance:
        try:
            known = self._find(key)
        except NotFound:
            raise Unknown(f'unable to find sandbox "{key[1]}"') from None
        request, seconds = api.StartSandboxRequest(sandbox_id=key[1]), self.manager.deadlines.run
        try:
            with _about(f"failed to start sandbox {key[1]}"):
                found = await call(known.shim, "StartSandbox", request, api.StartSandboxResponse, seconds=seconds)
        except FailedPrecondition:
            raise  # it runs, or has ended
        except MooredError:
            known.told = True  # its end is this error
            await end(known.shim, self.manager.deadlines)
            await known.shim.retire()
            raise
        return SandboxInstance(
            id=key[1],
            pid=found.pid,
            created_at=moment(found.created_at),
            endpoint=_endpoint(known.shim),
            spec=typed(found, "spec"),
        )

    async def stop(self, id: str, seconds: int = 0) -> None:  # noqa: A002 - the field's term
        """See the port."""
        try:
            known = self._find((current_namespace(), id))
        except NotFound:
            return
        request = api.StopSandboxRequest(sandbox_id=id, timeout_secs=seconds)
        patience = seconds + self.manager.deadlines.run
        with suppress(NotFound, Unavailable), _about("failed to stop sandbox"):
            await to_the_end(call(known.shim, "StopSandbox", request, api.StopSandboxResponse, seconds=patience))

    async def shutdown(self, id: str) -> None:  # noqa: A002 - the field's term
        """See the port."""
        known = self._find((current_namespace(), id))
        await to_the_end(self._shutdown(known))

    async def _shutdown(self, known: _Known) -> None:
        request = api.ShutdownSandboxRequest(sandbox_id=known.shim.id)
        seconds = self.manager.deadlines.delete
        with suppress(Unavailable), _about("failed to shutdown sandbox"):
            await call(known.shim, "ShutdownSandbox", request, api.ShutdownSandboxResponse, seconds=seconds)
        if known.watch is not None:
            await asyncio.wait([known.watch], timeout=_TO_TELL)
        await known.shim.retire(clean=True)

    # --- asking -------------------------------------------------------------------------------------------------------

    async def platform(self, id: str) -> Platform:  # noqa: A002 - the field's term
        """See the port."""
        known = self._find((current_namespace(), id))
        request, seconds = api.PlatformRequest(sandbox_id=id), self.manager.deadlines.other
        with _about("failed to get sandbox platform"):
            found = await call(known.shim, "Platform", request, api.PlatformResponse, seconds=seconds)
        return Platform(found.platform.os, found.platform.architecture, found.platform.variant)

    async def wait(self, id: str) -> SandboxExit:  # noqa: A002 - the field's term
        """See the port."""
        known = self._find((current_namespace(), id))
        with _about(f"failed to wait sandbox {id}"):
            return await asyncio.shield(known.ended)

    async def status(self, id: str, *, verbose: bool = False) -> SandboxStatus:  # noqa: A002 - the field's term
        """See the port."""
        try:
            known = self._find((current_namespace(), id))
        except NotFound:
            return SandboxStatus(id=id, exited_at=time.time_ns())
        request = api.SandboxStatusRequest(sandbox_id=id, verbose=verbose)
        seconds = self.manager.deadlines.other
        with _about(f"failed to query sandbox {id} status"):
            found = await call(known.shim, "SandboxStatus", request, api.SandboxStatusResponse, seconds=seconds)
        return SandboxStatus(
            id=found.sandbox_id,
            pid=found.pid,
            state=found.state,
            info=dict(found.info),
            created_at=moment(found.created_at),
            exited_at=moment(found.exited_at),
            extra=typed(found, "extra"),
            endpoint=_endpoint(known.shim),
        )

    async def metrics(self, id: str) -> Metric:  # noqa: A002 - the field's term
        """See the port."""
        known = self._find((current_namespace(), id))
        request, seconds = api.SandboxMetricsRequest(sandbox_id=id), self.manager.deadlines.other
        found = await call(known.shim, "SandboxMetrics", request, api.SandboxMetricsResponse, seconds=seconds)
        if not found.HasField("metrics"):
            raise NotFound(f"sandbox {id!r} has no counters")
        data = TypedBytes(found.metrics.data.type_url, found.metrics.data.value)
        return Metric(id=found.metrics.id, timestamp=to_ns(found.metrics.timestamp) or 0, data=data)

    async def update(self, id: str, sandbox: Sandbox, paths: Sequence[str] = ()) -> None:  # noqa: A002 - the field's term
        """See the port: shims are not told of changes."""

    def _find(self, key: Key) -> _Known:
        known = self._sandboxes.get(key)
        if known is None:
            raise NotFound("not found")
        return known

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _know(self, key: Key, shim: ManagedShim, told: Exit | None = None) -> None:
        known = _Known(shim, asyncio.get_running_loop().create_future(), told=told is not None)
        known.ended.add_done_callback(lambda future: future.cancelled() or future.exception())  # told to those who wait
        self._sandboxes[key] = known
        known.watch = self._spawn(self._watch(known), f"watch of {key[1]}")

    async def _watch(self, known: _Known) -> None:
        """Wait for the end of a sandbox, and tell it."""
        request = api.WaitSandboxRequest(sandbox_id=known.shim.id)
        while True:
            try:
                found = await call(known.shim, "WaitSandbox", request, api.WaitSandboxResponse, seconds=None)
            except Unavailable:
                if not await known.shim.settled():
                    return  # told where the shim's end is seen
            except MooredError as error:
                self.log.warning("end of a sandbox is not known", sandbox=known.shim.id, reason=error.text)
                if not known.ended.done():
                    known.ended.set_exception(error)
                return
            else:
                at = moment(found.exited_at) or time.time_ns()
                await self._tell(known, SandboxExit(status=found.exit_status, exited_at=at))
                return

    async def _tell(self, known: _Known, ended: SandboxExit) -> None:
        """Let waiters go, and tell the end unless that was done."""
        if not known.ended.done():
            known.ended.set_result(ended)
        if known.told:
            return
        known.told = True
        shim = known.shim
        event = payloads.SandboxExit(sandbox_id=shim.id, exit_status=ended.status, exited_at=ended.exited_at)
        await self.events.publish(EXIT_TOPIC, event, shim.namespace)
        await asyncio.to_thread(shim.files.note_exit, Exit(status=ended.status, exited_at=ended.exited_at))

    async def _gone(self, shim: ManagedShim, found: Exit | None) -> None:
        """Forget a sandbox whose shim went away, asked to or not."""
        key = (shim.namespace, shim.id)
        known = self._sandboxes.get(key)
        if known is None or known.shim is not shim:
            return
        del self._sandboxes[key]
        status = found.status if found is not None else _UNKNOWN_STATUS
        at = found.exited_at if found is not None and found.exited_at is not None else time.time_ns()
        await self._tell(known, SandboxExit(status=status, exited_at=at))

    # --- after a restart ----------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up all bundles there are. Raises OSError if the folders cannot be read."""
        await asyncio.to_thread(self.folders.sweep)
        for bundle in await asyncio.to_thread(lambda: list(self.folders.bundles())):
            key = (bundle.namespace, bundle.id)
            try:
                if not await asyncio.to_thread(_is_whole, bundle):
                    undo = self.manager.undo_leftover(bundle, lambda shim: end(shim, self.manager.deadlines))
                    undoing = self._spawn(undo, f"undoing of {bundle.id}")
                    self._undoing[key] = undoing
                    undoing.add_done_callback(lambda _, key=key: self._undoing.pop(key, None))  # type: ignore[misc]
                    continue
                kind = await asyncio.to_thread(self.manager.stored_kind, bundle)
                endpoint, told = stored_endpoint(bundle), bundle.noted_exit()
                shim = await self.manager.load(bundle, kind, endpoint, self._gone)
            except (MooredError, OSError) as error:
                self.log.warning("sandbox cannot be loaded", namespace=key[0], id=key[1], reason=str(error))
                continue
            self._know(key, shim, told)
            self._spawn(self._check(shim), f"check of {bundle.id}")

    async def _check(self, shim: ManagedShim) -> None:
        """End a shim that has lost its sandbox."""
        request = api.SandboxStatusRequest(sandbox_id=shim.id)
        try:
            await call(shim, "SandboxStatus", request, api.SandboxStatusResponse, seconds=None)
        except NotFound:
            self.log.info("ending a shim that has no sandbox", namespace=shim.namespace, id=shim.id)
            await end(shim, self.manager.deadlines)
            await shim.retire()
        except MooredError as error:
            self.log.warning("shim does not tell of its sandbox", id=shim.id, reason=error.text)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("background work failed", work=task.get_name(), exc_info=error)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[ShimController]:
        """Take up what is there and serve; leaving ends no sandbox."""
        try:
            await self.load()
            yield self
        finally:
            tasks = tuple(self._background)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _check_id(id_: str) -> None:
    try:
        validate_identifier(id_)
    except InvalidArgument as error:
        raise InvalidArgument(f"invalid task id {id_}: {error.text}") from None


def _prepare(bundle: Bundle, kind: Kind, choice: Choice | None, given: TypedBytes | None) -> None:
    """Make the bundle; blocks. A sandbox may have no spec."""
    spec = spec_of(given.value) if given is not None and choice is not None else None
    data = given.value if given is not None else None
    if choice is not None and spec is not None and "process" in spec:
        import json

        choice.adapt(spec)
        data = json.dumps(spec, separators=(",", ":")).encode()
    bundle.make(data)
    try:
        kind.prepare(bundle, spec)
    except BaseException:
        bundle.remove()
        raise


def _is_whole(bundle: Bundle) -> bool:
    """Whether its sandbox was created to the end."""
    if bundle.empty() or bundle.has(files.CREATING):
        return False
    try:
        stored_endpoint(bundle)
    except MooredError:
        return False
    return True


def _endpoint(shim: ManagedShim) -> SandboxEndpoint:
    """Give where a shim's task API is as those who make containers tell it."""
    endpoint = shim.endpoint
    return SandboxEndpoint(address=f"{endpoint.protocol}+{endpoint.address}", version=endpoint.version)


@contextmanager
def _about(what: str) -> Generator[None]:
    """Say before an error's text what failed."""
    try:
        yield
    except MooredError as error:
        raise type(error)(f"{what}: {error.text}", bare=error.bare) from error
