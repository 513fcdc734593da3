"""What the daemon answered, as plain values; also finds one plugin among them by a short name. Free of slow imports."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from moored.kernel.errors import Internal, InvalidArgument, NotFound

if TYPE_CHECKING:
    from moored.api.moored.daemon.v1 import daemon_pb2

STATUSES = ("ok", "skipped", "disabled", "failed", "blocked", "timed-out", "pending", "stopped")
"""Words for outcomes, in the order of summaries; an outcome from a newer daemon is `unknown`."""

MISSING = "missing"
"""Stands where a plugin's status would, for a required type that no plugin provides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """One plugin; the field names are the keys of the JSON output.

    status is one of STATUSES or `unknown`; seconds are None for what did not happen; started_at is RFC 3339;
    depends_on and waits_for are URIs, requires and after types.
    """

    uri: str
    type: str
    id: str
    status: str
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
    import_seconds: float | None = None
    start_seconds: float | None = None
    started_at: str | None = None
    exports: dict[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    summary: str = ""
    required: bool = False
    essential: bool = False
    order: int = 0

    def document(self) -> dict[str, Any]:
        """The plugin as a JSON object."""
        return asdict(self)

    @property
    def seconds(self) -> float | None:
        """Import and start together; None if neither happened."""
        known = [part for part in (self.import_seconds, self.start_seconds) if part is not None]
        return sum(known) if known else None

    @property
    def source(self) -> str:
        """Distribution and version, as in `moored 0.1.0`."""
        return f"{self.distribution} {self.distribution_version}".strip()


@dataclass(frozen=True, slots=True)
class Value:
    """One setting in force: its TOML path, the value, and FILE:LINE, `default` or the flag that set it."""

    key: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Effective:
    """The configuration that the daemon runs with, and how the files on disk differ from what it read."""

    toml: str
    values: tuple[Value, ...]
    files: tuple[str, ...]
    drifted: bool
    drift: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding in a configuration file; level is `error` or `warning`, line 0 is unknown."""

    level: str
    key: str
    message: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Change:
    """What a reload would do to one plugin ("": to the daemon itself), and the keys whose values differ."""

    plugin: str
    action: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """The files on disk held against what runs."""

    problems: tuple[Problem, ...]
    changes: tuple[Change, ...]

    @property
    def ok(self) -> bool:
        """No problem is an error."""
        return all(problem.level != "error" for problem in self.problems)


def plugin(message: daemon_pb2.Plugin) -> Plugin:
    """Decode one plugin."""
    return Plugin(
        uri=message.uri,
        type=message.type,
        id=message.id,
        status=_status(message),
        reason=message.reason,
        traceback=message.traceback,
        blocked_by=tuple(message.blocked_by),
        distribution=message.distribution,
        distribution_version=message.distribution_version,
        entry_point=message.entry_point,
        requires=tuple(message.requires),
        after=tuple(message.after),
        depends_on=tuple(message.depends_on),
        waits_for=tuple(message.waits_for),
        import_seconds=message.import_time.ToNanoseconds() / 1e9 if message.HasField("import_time") else None,
        start_seconds=message.start_time.ToNanoseconds() / 1e9 if message.HasField("start_time") else None,
        started_at=message.started_at.ToJsonString() if message.HasField("started_at") else None,
        exports=dict(sorted(message.exports.items())),
        capabilities=tuple(message.capabilities),
        summary=message.summary,
        required=message.required,
        essential=message.essential,
        order=message.order,
    )


def _status(message: daemon_pb2.Plugin) -> str:
    outcomes = message.DESCRIPTOR.fields_by_name["outcome"].enum_type
    assert outcomes is not None
    known = outcomes.values_by_number.get(message.outcome)
    word = known.name.removeprefix("OUTCOME_").lower().replace("_", "-") if known else ""
    return word if word in STATUSES else "unknown"


def effective(message: daemon_pb2.ConfigResponse) -> Effective:
    """Decode the configuration in force. Raises Internal for a value that is not JSON."""
    return Effective(
        toml=message.toml,
        values=tuple(Value(value.key, _decoded(value.key, value.value_json), value.origin) for value in message.values),
        files=tuple(message.files),
        drifted=message.drifted,
        drift=tuple(message.drift),
    )


def _decoded(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Internal(f"the daemon sent {text!r} as the value of {key!r}, wanted JSON") from error


def check(message: daemon_pb2.CheckResponse) -> Check:
    """Decode the result of a check."""
    return Check(
        problems=tuple(Problem(p.level, p.key, p.message, p.file, p.line) for p in message.problems),
        changes=tuple(Change(c.plugin, c.action, tuple(c.keys)) for c in message.changes),
    )


def select(plugins: Iterable[Plugin], statuses: Sequence[str], types: Sequence[str]) -> list[Plugin]:
    """The plugins of any of the statuses and any of the types (whole, or words of them: `snapshotter`); () is any."""
    return [
        found
        for found in plugins
        if (not statuses or found.status in statuses)
        and (not types or any(f".{kind.strip('.')}." in f".{found.type}." for kind in types))
    ]


def counts(plugins: Iterable[Plugin]) -> dict[str, int]:
    """How many plugins have each status, in the order of STATUSES, without zeros."""
    found = Counter(plugin.status for plugin in plugins)
    return {status: found[status] for status in (*STATUSES, "unknown") if found[status]}


def find(plugins: Sequence[Plugin], name: str) -> Plugin:
    """The one plugin that a URI, an id or the end of a URI names. Raises NotFound, InvalidArgument if several fit."""
    for matching in (
        [found for found in plugins if found.uri == name],
        [found for found in plugins if found.id == name],
        [found for found in plugins if found.uri.endswith(f".{name}")],
    ):
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise InvalidArgument(
                f"plugin name {name!r} is ambiguous, did you mean {_either(found.uri for found in matching)}?"
            )
    meant = _close(plugins, name)
    hint = f"did you mean {_either(meant)}?" if meant else "list them with: moorctl plugins ls"
    raise NotFound(f"no plugin is named {name!r}, {hint}")


def _close(plugins: Sequence[Plugin], name: str) -> list[str]:
    spelled: dict[str, list[str]] = {}
    for found in plugins:
        spelled.setdefault(found.uri, []).append(found.uri)
        spelled.setdefault(found.id, []).append(found.uri)
    near = difflib.get_close_matches(name, sorted(spelled), n=3)
    return list(dict.fromkeys(uri for spelling in near for uri in spelled[spelling]))


def _either(uris: Iterable[str]) -> str:
    names = [repr(uri) for uri in uris]
    if len(names) > 5:
        return f"{', '.join(names[:5])} or one of {len(names) - 5} more"
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
