"""Finds plugins: entry points become candidates without importing any; `load` imports one and checks what it offers."""

from __future__ import annotations

import importlib.metadata
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moored.kernel.guard import Overrun, alarm
from moored.kernel.plugin import ENTRY_POINT_GROUP, PROXY_ENTRY_POINT_GROUP, Registration, split_uri


@dataclass(frozen=True, slots=True)
class Source:
    """Where a plugin comes from: distribution name and version, and the entry point's value (`module:attribute`)."""

    distribution: str
    version: str
    entry_point: str

    def __str__(self) -> str:
        return f"{self.entry_point} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that is known by name and not yet imported; `get` imports and returns whatever the entry point names."""

    uri: str
    type: str
    id: str
    source: Source
    get: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that makes the set of plugins as a whole senseless; the daemon refuses to start, naming all of them."""

    text: str


@dataclass(frozen=True, slots=True)
class Discovery:
    """All candidates by URI, and the faults that their names alone show (malformed, taken twice)."""

    candidates: Mapping[str, Candidate]
    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of importing one candidate: a registration, or why there is none."""

    candidate: Candidate
    registration: Registration[Any, Any] | None
    reason: str
    traceback: str
    timed_out: bool
    seconds: float


def entry_points(group: str = ENTRY_POINT_GROUP) -> list[tuple[str, Source, Callable[[], object]]]:
    """(name, source, load) of every entry point of a group, first distribution on the path first.

    A distribution that stands on the path twice (installed, and editable) counts once.
    """
    found: dict[tuple[str, str, str], tuple[str, Source, Callable[[], object]]] = {}
    for point in importlib.metadata.entry_points(group=group):
        dist = point.dist
        source = Source(dist.name if dist else "?", dist.version if dist else "?", point.value)
        found.setdefault((point.name, source.distribution, point.value), (point.name, source, point.load))
    return list(found.values())


def discover(
    points: Iterable[tuple[str, Source, Callable[[], object]]],
    disabled: Iterable[str],
) -> Discovery:
    """Sort entry points into candidates. Nothing is imported.

    Two offers of one URI are a fault naming both distributions, unless the URI is disabled.
    """
    off = set(disabled)
    candidates: dict[str, Candidate] = {}
    faults: list[Fault] = []
    for name, source, get in points:
        try:
            kind, id_ = split_uri(name)
        except ValueError as error:
            if name not in off:
                faults.append(Fault(f"{error} (entry point {source})"))
            continue
        if name not in candidates:
            candidates[name] = Candidate(name, kind, id_, source, get)
        elif name not in off:
            faults.append(Fault(f"plugin {name!r} is offered twice: by {candidates[name].source} and by {source}"))
    return Discovery(candidates, tuple(faults))


def proxy_candidates(proxies: Mapping[str, tuple[str, object]]) -> tuple[list[Candidate], list[Fault]]:
    """Candidates for `[proxy_plugins]`: name -> (type URI, its table); made by the type's entry in `moored.proxies`."""
    makers = {name: (source, get) for name, source, get in entry_points(PROXY_ENTRY_POINT_GROUP)}
    candidates: list[Candidate] = []
    faults: list[Fault] = []
    for name, (kind, settings) in proxies.items():
        uri = f"{kind}.{name}"
        try:
            split_uri(uri)
        except ValueError as error:
            faults.append(Fault(f"proxy_plugins.{name}: {error}"))
            continue
        if kind not in makers:
            faults.append(Fault(f"proxy_plugins.{name}: no installed plugin makes proxies of type {kind!r}"))
            continue
        source, get = makers[kind]
        made = Source(f"config proxy_plugins.{name} by {source.distribution}", source.version, source.entry_point)
        candidates.append(Candidate(uri, kind, name, made, _maker(get, name, settings)))
    return candidates, faults


def _maker(get: Callable[[], object], name: str, settings: object) -> Callable[[], object]:
    def make() -> object:
        maker = get()
        if not callable(maker):
            raise TypeError(f"{maker!r} must be a function (name, settings) -> Registration")
        return maker(name, settings)

    return make


def load(candidate: Candidate, *, seconds: float) -> Loaded:
    """Import one candidate within a time limit and check its registration. Never raises but for KeyboardInterrupt."""
    start = time.perf_counter()
    registration: Registration[Any, Any] | None = None
    reason = trace = ""
    timed_out = False
    try:
        with alarm(seconds):
            offered = candidate.get()
        reason = _mismatch(candidate, offered)
        if isinstance(offered, Registration) and not reason:
            registration = offered
    except KeyboardInterrupt:
        raise
    except Overrun:
        timed_out = True
        reason = f"import did not finish within {seconds:g}s"
        trace = traceback.format_exc()
    except BaseException as error:  # noqa: BLE001 - a plugin's import must not take the daemon down
        reason = f"import failed: {describe(error)}"
        trace = traceback.format_exc()
    return Loaded(candidate, registration, reason, trace, timed_out, time.perf_counter() - start)


def _mismatch(candidate: Candidate, offered: object) -> str:
    if not isinstance(offered, Registration):
        return f"entry point {candidate.source} is a {type(offered).__name__}, it must be a Registration"
    if offered.uri != candidate.uri:
        return f"entry point is named {candidate.uri!r}, its registration calls itself {offered.uri!r}"
    return ""


def describe(error: BaseException) -> str:
    """An exception in one line: its class and the first line of its text; of a group, the first one that is none."""
    leaf, others = error, 0
    while isinstance(leaf, BaseExceptionGroup):
        others += len(leaf.exceptions) - 1
        leaf = leaf.exceptions[0]
    text = first_line(leaf)
    told = f"{type(leaf).__name__}: {text}" if text else type(leaf).__name__
    return f"{told} (and {others} more)" if others else told


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; empty where the exception cannot tell."""
    try:
        return str(error).strip().partition("\n")[0]
    except Exception:  # noqa: BLE001 - a broken __str__ of a plugin's exception
        return ""


def module_summary(entry_point: str) -> str:
    """The first line of the docstring of an imported plugin module, its description for listings."""
    module = sys.modules.get(entry_point.partition(":")[0])
    return (module.__doc__ or "").strip().partition("\n")[0] if module else ""
