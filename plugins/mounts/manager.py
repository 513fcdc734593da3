"""The mount manager: plans what has to be carried out, does it at places of its own, and keeps records of it.

    begin a record ─ folder ─ each: transform, note the type, mount ─ finish the record
    remove the record ─ unmount, the last first ─ remove the folder

So what no record names is garbage, whenever the daemon is killed: it is undone at the next start, or by a collection.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from moored.kernel import mounts as mounting
from moored.kernel.boot import boot_id
from moored.kernel.errors import InvalidArgument, MooredError, NotFound, Unimplemented, Unknown
from moored.kernel.filters import quote
from moored.kernel.namespaces import current_namespace
from moored.kernel.oserrors import reason
from moored.kernel.ports.mounts import (
    NO_LABELS,
    Activation,
    ActivationRecords,
    ActiveMount,
    Labels,
    Mount,
    MountHandler,
    Recorded,
)
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.mounts.places import Places, unmount_plainly
from moored.plugins.mounts.roots import Roots
from moored.plugins.mounts.transform import Format, Mkdir, Mkfs, Transformer

MAX_MOUNTS: Final = 255
"""Of each kind in one activation: their order is recorded in one byte."""
BUSY_ATTEMPTS: Final = 10
BUSY_SECONDS: Final = 0.05
"""How often, and with what pause, an unmount is tried of what is in use: others may just be leaving."""


@dataclass(slots=True)
class _Step:
    """One mount, and what has to be done for it."""

    mount: Mount
    transformers: list[tuple[Transformer, str]] = field(default_factory=list)
    """Each with the type that is left behind its prefix."""
    handler: MountHandler | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """The steps; those before `own` are the manager's, the rest is left to the caller."""

    steps: Sequence[_Step]
    own: int
    temporary: bool = False


class RecordingMountManager:
    """The port's MountManager over records; `start` comes before anything else.

    state      a folder for what is mounted
    roots      folders below which clients may have things made, beside `state`
    handlers   by the type that they mount
    """

    def __init__(
        self,
        records: ActivationRecords,
        *,
        state: Path,
        roots: Sequence[Path],
        handlers: Mapping[str, MountHandler],
        log: FilteringBoundLogger,
    ) -> None:
        self._records = records
        self._state = state
        self._places = Places(state / "t")
        within = Roots([*roots, self._places.folder])
        self._transformers: dict[str, Transformer] = {
            "format": Format(),
            "mkdir": Mkdir(within),
            "mkfs": Mkfs(within),
        }
        self._handlers = dict(handlers)
        self._log = log
        self._turns: Turns[tuple[str, str]] = Turns()
        self._working: set[str] = set()
        """Folders that calls under way see to."""

    async def start(self) -> None:
        """Undo what was cut off, and forget what an earlier boot had mounted."""
        boot, note = await asyncio.to_thread(boot_id), self._state / "boot"
        before = await asyncio.to_thread(note.read_text) if note.exists() else ""
        if before != boot:
            await self._records.restart(lambda recorded: False)
            for name in await asyncio.to_thread(self._places.names):
                await asyncio.to_thread(self._places.discard, name)
            await asyncio.to_thread(note.write_text, boot)
            return
        await self._records.restart(self._stands)
        await self._sweep(lazy=True)

    def _stands(self, recorded: Recorded) -> bool:
        return self._places.has(str(recorded.number))

    # --- the port -----------------------------------------------------------------------------------------------------

    async def activate(
        self,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Labels = NO_LABELS,
        temporary: bool = False,
        handled: Collection[str] = (),
    ) -> Activation:
        """See the port."""
        namespace, plan = current_namespace(), self._planned(mounts, temporary, handled)
        if plan is None:
            raise Unimplemented("not implemented")
        return await to_the_end(self._activate(namespace, name, plan, labels))

    async def _activate(self, namespace: str, name: str, plan: _Plan, labels: Labels) -> Activation:
        async with self._turns.take((namespace, name)):
            number = await self._records.begin(name, labels)
            with self._at_work(str(number)):
                try:
                    active, system = await self._carry_out(str(number), plan)
                    done = Activation(name=name, active=active, system=system, labels=labels)
                    try:
                        await self._records.finish(done)
                    except MooredError:
                        await self._undo(str(number))
                        raise
                except BaseException:
                    with suppress(MooredError):
                        await self._records.remove(name)
                    raise
        return done

    async def deactivate(self, name: str) -> None:
        """See the port."""
        await to_the_end(self._deactivate(current_namespace(), name))

    async def _deactivate(self, namespace: str, name: str) -> None:
        async with self._turns.take((namespace, name)):
            try:
                folder = str((await self._records.get(name)).number)
            except NotFound:
                raise NotFound(f"missing mount {quote(name)} bucket") from None
            with self._at_work(folder):
                await self._records.remove(name)
                if faults := await self._undo(folder):
                    raise Unknown(f"mount {quote(name)} is not all unmounted: {'; '.join(faults)}")

    async def info(self, name: str) -> Activation:
        """See the port."""
        return (await self._records.get(name)).activation

    async def update(self, activation: Activation, paths: Sequence[str] = ()) -> Activation:
        """See the port."""
        current_namespace()
        raise Unimplemented("not implemented")

    async def list(self, filters: Sequence[str] = ()) -> list[Activation]:
        """See the port."""
        return [recorded.activation for recorded in await self._records.list()]

    @asynccontextmanager
    async def activated(self, mounts: Sequence[Mount]) -> AsyncGenerator[Sequence[Mount]]:
        """See the port."""
        plan = self._planned(mounts, temporary=False, handled=())
        if plan is None:
            yield mounts
            return
        folder = f"unnamed-{secrets.token_hex(8)}"
        with self._at_work(folder):
            making = asyncio.ensure_future(self._carry_out(folder, plan))
            try:
                active, left = await to_the_end(making)
                yield left or (_bound(active[-1]),)
            finally:
                if not making.cancelled() and making.exception() is None:
                    await to_the_end(self._undo(folder))

    async def sweep(self) -> bool:
        """Undo what no record names and no call sees to; False if some of it is in use."""
        return await self._sweep(lazy=False)

    async def _sweep(self, *, lazy: bool) -> bool:
        names = await asyncio.to_thread(self._places.names)  # before the records, which a new folder has already
        if not names:
            return True
        numbers = {str(number) for number in await self._records.numbers()}
        whole = True
        for name in names:
            if name not in numbers and name not in self._working:
                whole = not await self._undo(name, lazy=lazy) and whole
        return whole

    # --- the plan -----------------------------------------------------------------------------------------------------

    def _planned(self, mounts: Sequence[Mount], temporary: bool, handled: Collection[str]) -> _Plan | None:
        """Tell what to do; None if it is nothing."""
        steps = [_Step(mount) for mount in mounts]
        own = -1
        for index, step in enumerate(steps):
            kind = step.mount.type
            while "/" in kind:
                prefix, _, rest = kind.partition("/")
                transformer = self._transformers.get(prefix)
                if transformer is None:
                    self._log.warning("unknown prefix of a mount's type", type=step.mount.type[:256])
                    break
                step.transformers.append((transformer, rest))
                if not {f"{prefix}/*", step.mount.type} & set(handled):
                    own = index
                kind = rest
            step.handler = self._handlers.get(kind)
            if temporary or (step.handler is not None and kind not in handled):
                own = index + 1
        if own < 0:
            return None
        if max(own, len(steps) - own) > MAX_MOUNTS:
            raise InvalidArgument(f"{len(steps)} mounts to activate, wanted at most {MAX_MOUNTS}")
        return _Plan(steps, own, temporary)

    async def _carry_out(self, folder: str, plan: _Plan) -> tuple[tuple[ActiveMount, ...], tuple[Mount, ...]]:
        """Mount what is the manager's to mount, and give that and the rest; on an error nothing is left."""
        await asyncio.to_thread(self._places.make, folder)
        active: list[ActiveMount] = []
        try:
            for index, step in enumerate(plan.steps[: plan.own]):
                mount = await _transformed(step, active)
                place = await asyncio.to_thread(self._places.place, folder, index, plan.own, mount.type)
                active.append(await _mounted(mount, step.handler, place, active))
            rest = [step.mount for step in plan.steps[plan.own :]]
            if rest:
                rest[0] = await _transformed(plan.steps[plan.own], active)
        except BaseException:
            await self._undo(folder)
            raise
        if plan.temporary and active:
            rest = [_bound(active[-1])]
        return tuple(active), tuple(rest)

    async def _undo(self, folder: str, *, lazy: bool = False) -> Sequence[str]:
        """Unmount all that may be in a folder, and remove it; give what could not be, with a reason each."""
        faults: list[str] = []
        try:
            for place, kind in await asyncio.to_thread(lambda: list(self._places.mounts(folder))):
                handler = self._handlers.get(kind)
                try:
                    await (_unmounted(place, lazy) if handler is None else handler.unmount(place))
                    await asyncio.to_thread(self._places.forget, place)
                except (OSError, MooredError) as error:
                    said = reason(error) if isinstance(error, OSError) else error.text
                    faults.append(f"{kind} at {place}: {said}")
            if not faults:
                await asyncio.to_thread(self._places.remove, folder)
        except FileNotFoundError:
            return faults
        except OSError as error:
            faults.append(f"{folder}: {reason(error)}")
        if faults:
            self._log.warning("mounts are left for a later collection", faults=faults)
        return faults

    @contextmanager
    def _at_work(self, folder: str) -> Generator[None]:
        self._working.add(folder)
        try:
            yield
        finally:
            self._working.discard(folder)


def _bound(active: ActiveMount) -> Mount:
    return Mount(type="bind", source=active.mount_point, options=("rbind",))


async def _transformed(step: _Step, earlier: Sequence[ActiveMount]) -> Mount:
    mount = step.mount
    for transformer, kind in step.transformers:
        mount = await transformer.transform(replace(mount, type=kind), earlier)
    return mount


async def _mounted(
    mount: Mount, handler: MountHandler | None, place: Path, earlier: Sequence[ActiveMount]
) -> ActiveMount:
    what = f"{mount.type} {mount.source[:256]!r}"
    try:
        if handler is not None:
            return await handler.mount(mount, place, earlier)
        await asyncio.to_thread(_mount_plainly, mount, place)
    except OSError as error:
        start = "mount failed" if handler is None else "mount handler failed"
        raise Unknown(f"{start} for {what}: {error.strerror or error}") from error
    return ActiveMount(mount=mount, mount_point=str(place), mounted_at=time.time_ns())


def _mount_plainly(mount: Mount, place: Path) -> None:
    place.mkdir(mode=0o700)
    mounting.mount(mount, place)


async def _unmounted(place: Path, lazy: bool) -> None:
    for _ in range(BUSY_ATTEMPTS):
        if await asyncio.to_thread(unmount_plainly, place, lazy=lazy):
            return
        await asyncio.sleep(BUSY_SECONDS)
    raise Unknown("in use")
