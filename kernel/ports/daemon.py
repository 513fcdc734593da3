"""The running daemon as its plugins may see it: plugin outcomes, effective config, health."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol


class Outcome(enum.Enum):
    """How far a plugin came."""

    PENDING = "pending"
    OK = "ok"
    SKIPPED = "skipped"
    DISABLED = "disabled"
    FAILED = "failed"
    BLOCKED = "blocked"
    TIMED_OUT = "timed out"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """All that is known of one plugin at one moment.

    reason is one line for everything that is not ok; traceback is the plugin's own. blocked_by lists URIs or types, the
    nearest first. depends_on and waits_for are the hard and soft edges as resolved to URIs. Seconds are wall time.
    """

    uri: str
    type: str
    id: str
    outcome: Outcome
    reason: str = ""
    traceback: str = ""
    blocked_by: tuple[str, ...] = ()
    distribution: str = ""
    distribution_version: str = ""
    entry_point: str = ""
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    import_seconds: float = 0.0
    start_seconds: float = 0.0
    started_at: datetime | None = None
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    summary: str = ""
    required: bool = False
    essential: bool = False
    order: int = 0


@dataclass(frozen=True, slots=True)
class ConfigValue:
    """One effective setting: dotted key, value as JSON text, origin (`FILE:LINE`, `default`, `flag --x`)."""

    key: str
    value_json: str
    origin: str


@dataclass(frozen=True, slots=True)
class EffectiveConfig:
    """The config that the daemon runs with; drift names files that changed since they were read."""

    toml: str
    values: tuple[ConfigValue, ...]
    files: tuple[str, ...]
    drift: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One finding in a config file; level is `error` or `warning`."""

    level: str
    key: str
    message: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """What a changed config needs: action `restart` of the plugin, or of the daemon itself where plugin is empty.

    Keys are dotted.
    """

    plugin: str
    action: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigCheck:
    """The files on disk held against what runs."""

    problems: tuple[ConfigProblem, ...]
    changes: tuple[ConfigChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProcessor:
    """A program that turns layers of some media types into another one, from its stdin to its stdout.

    It gets the media type in the environment as STREAM_PROCESSOR_MEDIATYPE, and its payload, if there is one, on
    descriptor 3. A status other than 0 fails the apply with what it wrote to stderr.
    """

    id: str
    accepts: tuple[str, ...]
    returns: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


class DaemonView(Protocol):
    """Read-only, but for `give_up`. Methods may be called on the event loop at any time; only check_config blocks.

    Errors: none, but for check_config, whose findings are values.
    """

    version: str
    revision: str
    started_at: datetime
    root: Path
    state: Path

    def plugins(self) -> Sequence[PluginRecord]:
        """All plugins that were found, in start order, disabled ones last."""

    def unhealthy(self) -> Sequence[str]:
        """Why the daemon as a whole is not well, one line each; empty when it is."""

    def give_up(self, reason: str) -> None:
        """End the daemon with status 1, for want of what nothing can go on without: a database that has failed."""

    def timeout(self, name: str) -> float | None:
        """Seconds configured under `[timeouts]`, None where the name is not set."""

    def stream_processors(self) -> Sequence[StreamProcessor]:
        """`[stream_processors]`, those of later files last."""

    async def config(self) -> EffectiveConfig:
        """The effective config, and whether its files changed."""

    async def check_config(self) -> ConfigCheck:
        """Read the files again (off the loop) and tell what they would change; nothing is applied."""
