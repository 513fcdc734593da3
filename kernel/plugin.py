"""What a plugin is: a typed key, a registration, and the context that its `open` is given.

A distribution offers a plugin as an entry point in the group `moored.plugins`; the entry point's name is the plugin's
URI (`io.containerd.snapshotter.v1.native`) and its value names a module's `Registration`:

    @asynccontextmanager
    async def open_(ctx: InitContext[Config]) -> AsyncGenerator[NativeSnapshotter]:
        yield NativeSnapshotter(ctx.root)          # started; the code after the yield stops it

    plugin = Registration(kind=SNAPSHOTTER, id="native", config=Config, open=open_)
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from moored.kernel.ports.daemon import DaemonView

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger  # ports import this module, and shims import ports

T = TypeVar("T")
P = TypeVar("P")
C = TypeVar("C")

ENTRY_POINT_GROUP = "moored.plugins"
PROXY_ENTRY_POINT_GROUP = "moored.proxies"

_TYPE_URI = re.compile(r"[a-z0-9-]+(?:\.[a-z0-9-]+)+\.v[0-9]+")
_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class PluginType(Generic[T]):
    """The typed key of one kind of plugin: `uri` as containerd spells it, `T` the port that its plugins implement."""

    uri: str

    def __post_init__(self) -> None:
        if not _TYPE_URI.fullmatch(self.uri):
            raise ValueError(f"plugin type {self.uri!r} must look like 'io.containerd.content.v1'")


class Skip(Exception):
    """Raised by a plugin's `open` to say that it cannot serve on this host; the reason is shown to the operator."""


class UndeclaredUse(Exception):
    """A plugin asked its context for a type that its registration neither requires nor comes after."""


class AmbiguousUse(Exception):
    """A plugin asked for the one plugin of a type that has none or several."""


def split_uri(uri: str) -> tuple[str, str]:
    """The (type, id) pair of a plugin URI, split after the version: `io.containerd.content.v1` and `content`.

    Raises ValueError naming the URI when either part is empty or malformed.
    """
    match = re.match(r"(.+?\.v[0-9]+)\.", uri)
    if match is None or not _TYPE_URI.fullmatch(match[1]):
        raise ValueError(f"plugin name {uri!r} has no type, it must look like 'io.containerd.content.v1.content'")
    if not _ID.fullmatch(uri[match.end() :]):
        raise ValueError(f"plugin name {uri!r} has no valid id after its type {match[1]!r}")
    return match[1], uri[match.end() :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration(Generic[T, C]):
    """A plugin as data. Creating one has no effect; the daemon decides whether `open` is ever called.

    kind, id      the plugin's URI is `kind.uri + "." + id`
    open          an async context manager: entered to start (yields the port), left to stop
    config        frozen dataclass for `[plugins."URI"]`, its fields made with `kernel.config.setting`
    requires      types of which at least one plugin must have started; all of them are started before this one
    after         types that are started before this one where they exist
    reconfigure   takes the running port, the old and the new config; without it a change restarts the plugin
    essential     while it is not running (and not disabled by name) the daemon reports itself unhealthy
    start_timeout, stop_timeout   seconds; None takes the daemon's `[lifecycle]`
    """

    kind: PluginType[T]
    id: str
    open: Callable[[InitContext[C]], AbstractAsyncContextManager[T]]
    config: type[C] | None = None
    requires: tuple[PluginType[Any], ...] = ()
    after: tuple[PluginType[Any], ...] = ()
    reconfigure: Callable[[T, C, C], Awaitable[None]] | None = None
    essential: bool = False
    start_timeout: float | None = None
    stop_timeout: float | None = None
    summary: str = ""

    @property
    def uri(self) -> str:
        """The plugin's full name."""
        return f"{self.kind.uri}.{self.id}"


class HookRegistrar(Protocol):
    """The part of pluggy's manager that a plugin may touch."""

    hook: Any

    def register(self, plugin: object, name: str | None = None) -> str | None:
        """Add an object whose methods are hook implementations; it goes when the plugin stops."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """What a plugin tells of itself while it starts, shown by introspection.

    exports: free name -> value, `root` for a plugin's data folder. platforms: `linux/amd64` texts.
    """

    exports: dict[str, str] = field(default_factory=dict)
    capabilities: list[str] = field(default_factory=list)
    platforms: list[str] = field(default_factory=list)


class InitContext(Generic[C]):
    """All that a plugin gets. Dependencies are looked up by typed key and only if the registration declares them.

    config   the decoded `[plugins."URI"]`, or None where the registration has no config class
    root     folder for lasting state; like state the plugin's own, made on first use
    state    folder for state of this boot
    log      bound to the plugin's URI
    hooks    pluggy: `hooks.register(obj)` implements hooks, `hooks.hook.NAME(...)` calls them (`kernel/hooks.py`)
    facts    exports, capabilities and platforms to show
    daemon   the running daemon as plugins may see it
    """

    def __init__(
        self,
        *,
        registration: Registration[Any, C],
        config: C,
        root: Path,
        state: Path,
        log: FilteringBoundLogger,
        hooks: HookRegistrar,
        daemon: DaemonView,
        found: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._registration = registration
        self._found = found
        self._root = root
        self._state = state
        self.config = config
        self.log = log
        self.hooks = hooks
        self.daemon = daemon
        self.facts = Facts()

    @property
    def uri(self) -> str:
        """The plugin's full name."""
        return self._registration.uri

    @property
    def root(self) -> Path:
        """`<root>/<URI>`, made 0700 on first use."""
        return _own_folder(self._root)

    @property
    def state(self) -> Path:
        """`<state>/<URI>`, made 0700 on first use."""
        return _own_folder(self._state)

    def all(self, key: PluginType[P]) -> Mapping[str, P]:
        """Every started plugin of a type, by id; empty only for a type in `after`. Raises UndeclaredUse."""
        declared = {kind.uri for kind in (*self._registration.requires, *self._registration.after)}
        if key.uri not in declared:
            raise UndeclaredUse(f"{self.uri!r} uses {key.uri!r} without naming it in requires or after")
        return cast(Mapping[str, P], dict(self._found.get(key.uri, {})))

    def one(self, key: PluginType[P]) -> P:
        """The only started plugin of a type. Raises UndeclaredUse, AmbiguousUse."""
        found = self.all(key)
        if len(found) != 1:
            raise AmbiguousUse(f"{self.uri!r} wants one plugin of type {key.uri!r}, there are {_listed(found)}")
        return next(iter(found.values()))

    def named(self, key: PluginType[P], id: str) -> P:  # noqa: A002 - the field's term
        """One plugin of a type by its id. Raises UndeclaredUse, AmbiguousUse."""
        found = self.all(key)
        if id not in found:
            raise AmbiguousUse(f"{self.uri!r} wants plugin '{key.uri}.{id}', of its type there are {_listed(found)}")
        return found[id]


def _listed(ids: Iterable[str]) -> str:
    return ", ".join(sorted(repr(id_) for id_ in ids)) or "none"


def _own_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=False, exist_ok=True)
    return path
