"""Starts plugins in graph order, keeps each in a task of its own, stops them in reverse; every fault is an outcome.

Each plugin's `open` is entered and left in one task, its owner, so that task groups and cancel scopes work inside it.
An owner waits until everything before it has settled, then starts under a deadline that also interrupts code which
holds the event loop (`kernel/guard.py`). What a plugin does wrong (raise, hang, call sys.exit) is its own outcome and
nobody else's. Tasks that a plugin creates itself are the event loop's: one that holds the loop is not interrupted, and
one that raises SystemExit or KeyboardInterrupt ends the loop.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pluggy
import structlog

from moored.kernel.graph import Needs, Plan, resolve, reverse
from moored.kernel.guard import GRACE, Deadline, Late
from moored.kernel.plugin import Facts, InitContext, Registration, Skip
from moored.kernel.ports.daemon import DaemonView, Outcome, PluginRecord
from moored.kernel.registry import Candidate, Fault, Loaded, describe, first_line, module_summary

log = structlog.get_logger("moored.kernel")


class StartFailed(Exception):
    """The daemon cannot run with this set of plugins; `faults` holds every reason."""

    def __init__(self, faults: Collection[Fault]) -> None:
        super().__init__("; ".join(fault.text for fault in faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the kernel is told once. Deadlines are seconds a plugin; `configs` holds decoded tables by URI."""

    root: Path
    state: Path
    start_timeout: float
    stop_timeout: float
    configs: Mapping[str, Any] = field(default_factory=dict)
    disabled: Collection[str] = ()
    required: Collection[str] = ()


class _Node:
    """The mutable side of one plugin; touched by the event loop's thread only."""

    def __init__(self, candidate: Candidate, loaded: Loaded | None, hooks: _Hooks) -> None:
        self.candidate = candidate
        self.loaded = loaded
        self.registration: Registration[Any, Any] | None = loaded.registration if loaded else None
        self.hooks = hooks
        self.outcome = Outcome.PENDING
        self.reason = ""
        self.traceback = ""
        self.blocked_by: tuple[str, ...] = ()
        self.began: float | None = None
        self.start_seconds = 0.0
        self.started_at: datetime | None = None
        self.facts = Facts()
        self.settled = asyncio.Event()
        self.stop = asyncio.Event()
        self.done = asyncio.Event()
        self.owner: asyncio.Task[None] | None = None
        # Whether the owner waits for `stop` or is in a stop with a deadline; otherwise it takes a cancellation.
        self.heeds_stop = False


class _Hooks:
    """A plugin's own door to pluggy; what it registered is taken out when it stops."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._mine: list[object] = []
        self.hook = manager.hook

    def register(self, plugin: object, name: str | None = None) -> str | None:
        registered = self._manager.register(plugin, name)
        self._mine.append(plugin)
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError:
            self._manager.unregister(self._mine.pop())
            raise
        return registered

    def close(self) -> None:
        while self._mine:
            self._manager.unregister(self._mine.pop())


class Kernel:
    """All plugins of one daemon. Build it, ask `faults`, then `start` and `stop`, on one event loop."""

    def __init__(
        self,
        candidates: Mapping[str, Candidate],
        loaded: Mapping[str, Loaded],
        settings: Settings,
        hooks: pluggy.PluginManager,
    ) -> None:
        self._settings = settings
        self._hooks = hooks
        self._nodes = {uri: _Node(candidate, loaded.get(uri), _Hooks(hooks)) for uri, candidate in candidates.items()}
        self._plan: Plan = resolve({uri: _needs(node) for uri, node in self._nodes.items()})
        self._position = {uri: position for position, uri in enumerate(self._plan.order)}
        self._dependents = reverse({uri: self._plan.edges(uri) for uri in self._nodes})
        self._found: dict[str, dict[str, Any]] = {}
        self._under_way: set[Deadline] = set()

    def faults(self) -> tuple[Fault, ...]:
        """Every reason not to start at all: cycles, and required plugins that cannot come up."""
        found = [Fault(self._cycle_text(cycle)) for cycle in self._plan.cycles]
        for uri in dict.fromkeys(self._settings.required):
            if uri not in self._nodes:
                found.append(Fault(f"required plugin {uri!r} is not installed"))
            elif uri in self._settings.disabled:
                found.append(Fault(f"required plugin {uri!r} is also in disabled_plugins"))
        return tuple(found)

    def _cycle_text(self, cycle: tuple[str, ...]) -> str:
        sources = ", ".join(f"{uri} from {self._nodes[uri].candidate.source}" for uri in cycle[:-1])
        return f"plugins depend on each other: {' -> '.join(cycle)} ({sources})"

    async def start(self, daemon: DaemonView) -> None:
        """Start everything, once; returns when each plugin has settled.

        Raises StartFailed for `faults`, and for required plugins that did not come up; then, and when it is cancelled,
        whatever had started has been stopped again.
        """
        if faults := self.faults():
            raise StartFailed(faults)
        try:
            await self._start_all(daemon)
        except BaseException:
            await self.stop()
            raise

    async def _start_all(self, daemon: DaemonView) -> None:
        for uri in self._plan.order:
            node = self._nodes[uri]
            node.owner = asyncio.create_task(self._own(node, daemon), name=f"plugin {uri}")
            node.owner.add_done_callback(partial(self._owner_ended, node))
        await asyncio.gather(*(node.settled.wait() for node in self._nodes.values()))
        lost = [
            Fault(f"required plugin {uri!r} is {node.outcome.value}: {node.reason}")
            for uri in dict.fromkeys(self._settings.required)
            if (node := self._nodes[uri]).outcome is not Outcome.OK
        ]
        if lost:
            raise StartFailed(lost)

    async def stop(self) -> None:
        """Stop in reverse order, independent plugins side by side; returns once each has stopped or was left behind.

        May be called again, and while `start` runs.
        """
        await asyncio.gather(*(self._stop_one(uri) for uri in self._nodes))

    async def _stop_one(self, uri: str) -> None:
        node = self._nodes[uri]
        if node.owner is None:
            node.done.set()
            return
        for dependent in self._dependents[uri]:
            await self._nodes[dependent].done.wait()
        node.stop.set()
        if node.heeds_stop:
            await node.done.wait()
            return
        node.owner.cancel()
        limit = self._stop_limit(node) + GRACE
        giving_up = asyncio.get_running_loop().call_later(
            limit, self._leave_behind, node, "did not end when told to stop"
        )
        try:
            await node.done.wait()
        finally:
            giving_up.cancel()

    async def _own(self, node: _Node, daemon: DaemonView) -> None:
        """A plugin's whole life. Ends normally whatever the plugin does."""
        try:
            for uri in self._plan.edges(node.candidate.uri):
                await self._nodes[uri].settled.wait()
        except asyncio.CancelledError:
            self._settle(node, Outcome.STOPPED, "the daemon stopped first")
            return
        if self._settle_unstarted(node) or self._settle_blocked(node):
            return
        manager = await self._start_one(node, daemon)
        if manager is None:
            return
        error: BaseException | None = None
        if node.outcome is Outcome.OK:
            try:
                await node.stop.wait()
            except asyncio.CancelledError as cancelled:  # by a task group of the plugin itself, which takes it back
                error = cancelled
        await self._leave(node, manager, error)

    def _owner_ended(self, node: _Node, owner: asyncio.Task[None]) -> None:
        if not owner.cancelled() and (error := owner.exception()) is not None:
            log.error("plugin's owner failed", plugin=node.candidate.uri, exc_info=error)
            self._ended(node, Outcome.FAILED, describe(error))
        elif not node.settled.is_set():
            self._settle(node, Outcome.STOPPED, "the daemon stopped first")
        node.done.set()

    async def _start_one(self, node: _Node, daemon: DaemonView) -> AbstractAsyncContextManager[Any] | None:
        """Enter the plugin and settle it; None where there is nothing to leave."""
        assert node.registration is not None
        node.began = time.monotonic()
        deadline = self._deadline(node, "start", self._start_limit(node))
        try:
            context = self._context(node, daemon)
            node.facts = context.facts
            manager, port = await deadline.run(_enter(node.registration, context))
        except Skip as skip:
            self._ended(node, Outcome.SKIPPED, first_line(skip) or "no reason given")
        except Late as late:
            self._ended(node, Outcome.TIMED_OUT, str(late), trace=True)
        except BaseException as error:  # noqa: BLE001 - whatever a plugin raises is its outcome, SystemExit included
            if isinstance(error, asyncio.CancelledError) and node.stop.is_set():
                self._ended(node, Outcome.STOPPED, "the daemon stopped first")
            else:
                self._ended(node, Outcome.FAILED, describe(error), trace=True)
        else:
            node.heeds_stop = True
            if deadline.passed or node.settled.is_set():
                self._ended(node, Outcome.TIMED_OUT, deadline.text)
            else:
                self._offer(node, port)
            return manager
        return None

    async def _leave(self, node: _Node, manager: AbstractAsyncContextManager[Any], error: BaseException | None) -> None:
        self._retire(node)
        deadline = self._deadline(node, "stop", self._stop_limit(node))
        try:
            await deadline.run(_exit(manager, error))
        except Late as late:
            self._ended(node, Outcome.TIMED_OUT, str(late), trace=True)
        except BaseException as raised:  # noqa: BLE001 - whatever a plugin raises is its outcome, SystemExit included
            self._ended(node, Outcome.FAILED, describe(raised), trace=True)
        else:
            if deadline.passed:
                self._ended(node, Outcome.TIMED_OUT, deadline.text)
            else:
                self._ended(node, Outcome.STOPPED, "")
        self._retire(node)

    def _deadline(self, node: _Node, what: str, seconds: float) -> Deadline:
        behind = f"did not {what} within {seconds:g}s and ignores its cancellation"
        return Deadline(what, seconds, self._under_way, partial(self._leave_behind, node, behind))

    def _leave_behind(self, node: _Node, reason: str) -> None:
        """Stop waiting for a plugin's task that does not end."""
        log.error("plugin left behind", plugin=node.candidate.uri, reason=reason)
        node.heeds_stop = False
        self._ended(node, Outcome.TIMED_OUT, reason)
        if node.stop.is_set():
            node.done.set()

    def _context(self, node: _Node, daemon: DaemonView) -> InitContext[Any]:
        assert node.registration is not None
        uri = node.candidate.uri
        return InitContext(
            registration=node.registration,
            config=self._settings.configs.get(uri),
            root=self._settings.root / uri,
            state=self._settings.state / uri,
            log=structlog.get_logger("moored.plugin").bind(plugin=uri),
            hooks=node.hooks,
            daemon=daemon,
            found=self._found,
        )

    def _offer(self, node: _Node, port: object) -> None:
        self._found.setdefault(node.candidate.type, {})[node.candidate.id] = port
        node.started_at = datetime.now(UTC)
        self._settle(node, Outcome.OK, "")

    def _retire(self, node: _Node) -> None:
        self._found.get(node.candidate.type, {}).pop(node.candidate.id, None)
        node.hooks.close()

    def _settle_unstarted(self, node: _Node) -> bool:
        """Settle what is disabled or could not be imported."""
        if node.candidate.uri in self._settings.disabled:
            self._settle(node, Outcome.DISABLED, "named in disabled_plugins")
        elif node.registration is None:
            assert node.loaded is not None
            node.traceback = node.loaded.traceback
            self._settle(node, Outcome.TIMED_OUT if node.loaded.timed_out else Outcome.FAILED, node.loaded.reason)
        return node.settled.is_set()

    def _settle_blocked(self, node: _Node) -> bool:
        """Settle a plugin of which a required type has no plugin that runs."""
        assert node.registration is not None
        for kind in node.registration.requires:
            providers = [
                p for uri in self._plan.hard[node.candidate.uri] if (p := self._nodes[uri]).candidate.type == kind.uri
            ]
            if any(provider.outcome is Outcome.OK for provider in providers):
                continue
            if not providers:
                node.blocked_by = (kind.uri,)
                self._settle(node, Outcome.BLOCKED, f"requires {kind.uri}, which no installed plugin provides")
            else:
                first = providers[0]
                node.blocked_by = (first.candidate.uri, *first.blocked_by)
                self._settle(node, Outcome.BLOCKED, f"requires {kind.uri}: {_why_not(providers)}")
            return True
        return False

    def _ended(self, node: _Node, outcome: Outcome, reason: str, *, trace: bool = False) -> None:
        """The plugin's work is over, while it started, ran or stopped; of several ends the first one counts."""
        if node.settled.is_set() and node.outcome is not Outcome.OK:
            return
        if trace:
            node.traceback = traceback.format_exc()
        if not node.settled.is_set():
            self._settle(node, outcome, reason)
            return
        self._retire(node)
        if not node.stop.is_set():
            reason = f"failed while running: {reason}" if reason else "ended by itself"
            outcome = Outcome.FAILED
        elif outcome is Outcome.FAILED:
            reason = f"failed while stopping: {reason}"
        self._tell(node, outcome, reason)

    def _settle(self, node: _Node, outcome: Outcome, reason: str) -> None:
        if node.began is not None:
            node.start_seconds = time.monotonic() - node.began
        if outcome is not Outcome.OK:
            self._retire(node)
        node.settled.set()
        self._tell(node, outcome, reason)

    def _tell(self, node: _Node, outcome: Outcome, reason: str) -> None:
        node.outcome, node.reason = outcome, reason
        record = self._record(node)
        _log_outcome(record)
        try:
            self._hooks.hook.moored_plugin_settled(record=record)
        except BaseException:  # an observer must not change what it observes, not even by sys.exit
            log.exception("hook failed", hook="moored_plugin_settled", plugin=record.uri)

    def _start_limit(self, node: _Node) -> float:
        own = node.registration.start_timeout if node.registration else None
        return self._settings.start_timeout if own is None else own

    def _stop_limit(self, node: _Node) -> float:
        own = node.registration.stop_timeout if node.registration else None
        return self._settings.stop_timeout if own is None else own

    def records(self) -> list[PluginRecord]:
        """Every plugin as it stands, in start order, disabled ones last, after those that are in or behind a cycle."""
        unordered = sorted(uri for uri in self._nodes if uri not in self._position)
        records = [self._record(self._nodes[uri]) for uri in (*self._plan.order, *unordered)]
        return sorted(records, key=lambda record: record.outcome is Outcome.DISABLED)

    def unhealthy(self) -> tuple[str, ...]:
        """Essential and required plugins that do not run, unless the operator disabled them by name."""
        return tuple(
            f"{record.uri} is {record.outcome.value}: {record.reason}"
            for record in self.records()
            if (record.essential or record.required) and record.outcome not in (Outcome.OK, Outcome.DISABLED)
        )

    def _record(self, node: _Node) -> PluginRecord:
        candidate, registration = node.candidate, node.registration
        return PluginRecord(
            uri=candidate.uri,
            type=candidate.type,
            id=candidate.id,
            outcome=node.outcome,
            reason=node.reason,
            traceback=node.traceback,
            blocked_by=node.blocked_by,
            distribution=candidate.source.distribution,
            distribution_version=candidate.source.version,
            entry_point=candidate.source.entry_point,
            requires=_uris(registration.requires) if registration else (),
            after=_uris(registration.after) if registration else (),
            depends_on=self._plan.hard[candidate.uri],
            waits_for=self._plan.soft[candidate.uri],
            import_seconds=node.loaded.seconds if node.loaded else 0.0,
            start_seconds=node.start_seconds,
            started_at=node.started_at,
            exports=dict(node.facts.exports),
            capabilities=tuple(node.facts.capabilities),
            platforms=tuple(node.facts.platforms),
            summary=(registration.summary or module_summary(candidate.source.entry_point)) if registration else "",
            required=candidate.uri in self._settings.required,
            essential=registration.essential if registration else False,
            order=self._position.get(candidate.uri, -1),
        )


async def _enter(
    registration: Registration[Any, Any], context: InitContext[Any]
) -> tuple[AbstractAsyncContextManager[Any], Any]:
    manager = registration.open(context)
    return manager, await manager.__aenter__()


async def _exit(manager: AbstractAsyncContextManager[Any], error: BaseException | None) -> None:
    if error is None:
        await manager.__aexit__(None, None, None)
    elif not await manager.__aexit__(type(error), error, error.__traceback__):
        raise error


def _uris(kinds: Collection[Any]) -> tuple[str, ...]:
    return tuple(kind.uri for kind in kinds)


def _needs(node: _Node) -> Needs:
    if node.registration is None:
        return Needs(node.candidate.type)
    return Needs(node.candidate.type, _uris(node.registration.requires), _uris(node.registration.after))


def _why_not(providers: list[_Node]) -> str:
    told = [
        f"{node.candidate.uri} is {node.outcome.value}" + (f" ({node.reason})" if node.reason else "")
        for node in providers
    ]
    return ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "")


def _log_outcome(record: PluginRecord) -> None:
    told = log.bind(plugin=record.uri, distribution=record.distribution)
    if record.outcome is Outcome.OK:
        told.debug("plugin started", seconds=round(record.start_seconds, 4))
    elif record.outcome in (Outcome.SKIPPED, Outcome.BLOCKED):
        told.info(f"plugin {record.outcome.value}", reason=record.reason)
    elif record.outcome in (Outcome.FAILED, Outcome.TIMED_OUT):
        told.warning(f"plugin {record.outcome.value}", reason=record.reason, traceback=record.traceback or None)
    else:
        told.debug(f"plugin {record.outcome.value}")
