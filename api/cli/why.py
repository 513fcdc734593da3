"""Why a plugin is as it is: what it requires, the chain down to what keeps it from starting, whom that concerns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text
from rich.tree import Tree

from moored.api.cli.graph import SHARED, missing
from moored.api.cli.output import printable
from moored.api.cli.records import MISSING, Plugin
from moored.api.cli.render import duration, facts, line, status


@dataclass(frozen=True, slots=True)
class Cause:
    """A plugin, or a type that nothing provides, that keeps another from starting, and what keeps it in turn.

    repeated: it stands in full elsewhere in the tree.
    """

    name: str
    status: str
    reason: str
    because: tuple[Cause, ...] = ()
    repeated: bool = False

    def document(self) -> dict[str, Any]:
        """The cause as a JSON object."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "because": [cause.document() for cause in self.because],
        }

    def roots(self) -> list[str]:
        """Where the chains end, each name once."""
        if not self.because:
            return [] if self.repeated else [self.name]
        return list(dict.fromkeys(root for cause in self.because for root in cause.roots()))


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that can be told of one plugin.

    requires and after: type -> its providers; causes: why it is blocked, nearest first; dependents: plugins that
    require it; blocks: all plugins that do not start on its account, dependents of dependents included.
    """

    plugin: Plugin
    requires: Mapping[str, tuple[Plugin, ...]]
    after: Mapping[str, tuple[Plugin, ...]]
    causes: tuple[Cause, ...]
    dependents: tuple[Plugin, ...]
    blocks: tuple[Plugin, ...]

    def roots(self) -> list[str]:
        """The plugins or types to look at first."""
        return list(dict.fromkeys(root for cause in self.causes for root in cause.roots()))

    def document(self) -> dict[str, Any]:
        """The explanation as a JSON object."""
        return {
            "plugin": self.plugin.document(),
            "requires": [_need(kind, found) for kind, found in self.requires.items()],
            "after": [_need(kind, found) for kind, found in self.after.items()],
            "causes": [cause.document() for cause in self.causes],
            "root_causes": self.roots(),
            "dependents": [_short(plugin) for plugin in self.dependents],
            "blocks": [_short(plugin) for plugin in self.blocks],
        }


def _need(kind: str, providers: Iterable[Plugin]) -> dict[str, Any]:
    return {"type": kind, "providers": [_short(plugin) for plugin in providers]}


def _short(plugin: Plugin) -> dict[str, str]:
    return {"uri": plugin.uri, "status": plugin.status, "reason": plugin.reason}


def explain(plugin: Plugin, plugins: Iterable[Plugin]) -> Explanation:
    """Gather what concerns one plugin out of all of them."""
    known = {other.uri: other for other in plugins}
    return Explanation(
        plugin,
        requires=_providers(plugin.requires, plugin.depends_on, known),
        after=_providers(plugin.after, (*plugin.depends_on, *plugin.waits_for), known),
        causes=_causes(plugin, known, {plugin.uri}),
        dependents=tuple(other for other in known.values() if plugin.uri in other.depends_on),
        blocks=tuple(other for other in known.values() if _is_behind(plugin, other, known)),
    )


def _providers(kinds: Iterable[str], uris: Iterable[str], known: Mapping[str, Plugin]) -> dict[str, tuple[Plugin, ...]]:
    resolved = [known[uri] for uri in uris if uri in known]
    return {kind: tuple(other for other in resolved if other.type == kind) for kind in kinds}


def _causes(plugin: Plugin, known: Mapping[str, Plugin], seen: set[str]) -> tuple[Cause, ...]:
    """Every required type without a provider that runs; what the daemon named itself where that explains nothing."""
    if plugin.status != "blocked":
        return ()
    gone = missing(plugin, known)
    found: list[Cause] = []
    for kind, providers in _providers(plugin.requires, plugin.depends_on, known).items():
        if kind in gone:
            found.append(Cause(kind, MISSING, "no installed plugin provides it"))
        elif not any(provider.status == "ok" for provider in providers):
            found += [_cause(provider, known, seen) for provider in providers]
    return tuple(found) or _named(plugin.blocked_by, known)


def _cause(plugin: Plugin, known: Mapping[str, Plugin], seen: set[str]) -> Cause:
    if plugin.uri in seen:
        return Cause(plugin.uri, plugin.status, plugin.reason, repeated=True)
    seen.add(plugin.uri)
    return Cause(plugin.uri, plugin.status, plugin.reason, _causes(plugin, known, seen))


def _named(chain: tuple[str, ...], known: Mapping[str, Plugin]) -> tuple[Cause, ...]:
    below: tuple[Cause, ...] = ()
    for name in reversed(chain):
        other = known.get(name)
        below = (Cause(name, other.status if other else MISSING, other.reason if other else "", below),)
    return below


def _is_behind(plugin: Plugin, other: Plugin, known: Mapping[str, Plugin]) -> bool:
    return other.uri != plugin.uri and any(_holds(cause, plugin.uri) for cause in _causes(other, known, {other.uri}))


def _holds(cause: Cause, uri: str) -> bool:
    return cause.name == uri or any(_holds(below, uri) for below in cause.because)


def description(plugin: Plugin) -> list[RenderableType]:
    """What one plugin is and how far it came, without its relations to others."""
    flags = [word for word, is_set in (("required", plugin.required), ("essential", plugin.essential)) if is_set]
    rows = [
        ("reason", plugin.reason),
        ("summary", plugin.summary),
        ("from", plugin.source),
        ("entry point", plugin.entry_point),
        ("import", "" if plugin.import_seconds is None else duration(plugin.import_seconds)),
        ("start", "" if plugin.start_seconds is None else duration(plugin.start_seconds)),
        ("started at", plugin.started_at or ""),
        ("flags", ", ".join(flags)),
        ("capabilities", ", ".join(plugin.capabilities)),
        ("exports", ", ".join(f"{key}={value}" for key, value in plugin.exports.items())),
    ]
    return [_named_status(plugin), Padding(facts(rows), (0, 0, 0, 2))]


def _named_status(plugin: Plugin) -> Text:
    return Text.assemble(line(plugin.uri, "bold"), "  ", status(plugin.status))


def shown(explanation: Explanation) -> list[RenderableType]:
    """An explanation for people."""
    plugin = explanation.plugin
    parts: list[RenderableType] = description(plugin)
    if explanation.causes:
        parts += [Text(), _chain(plugin, explanation.causes), *_next(explanation)]
    for title, needs in (("requires", explanation.requires), ("starts after", explanation.after)):
        if needs:
            parts += [Text(), _needs(title, needs)]
    for title, others in (("required by", explanation.dependents), ("keeps from starting", explanation.blocks)):
        if others:
            parts += [Text(), _others(title, others)]
    if plugin.traceback:
        parts += [Text(), Text("traceback", style="bold")]
        parts += [Padding(Text(printable(row)), (0, 0, 0, 2)) for row in plugin.traceback.splitlines()]
    return parts


def _chain(plugin: Plugin, causes: Iterable[Cause]) -> Tree:
    trunk = _heading("blocked by")
    _grow(trunk.add(_named_status(plugin)), causes)
    return trunk


def _grow(branch: Tree, causes: Iterable[Cause]) -> None:
    for cause in causes:
        label = line(cause.name).append("  ").append_text(status(cause.status))
        if cause.repeated:
            label.append(f"  {SHARED}", style="dim")
        elif not cause.because:
            label.append(": " if cause.reason else "").append_text(line(cause.reason))
            label.append("  (root cause)", style="bold")
        _grow(branch.add(label), cause.because)


def _next(explanation: Explanation) -> list[RenderableType]:
    types = {cause.name for cause in _leaves(explanation.causes) if cause.status == MISSING}
    return [
        line(f"next: install a plugin of type {root}" if root in types else f"next: moorctl plugins why {root}", "dim")
        for root in explanation.roots()
    ]


def _leaves(causes: Iterable[Cause]) -> Iterable[Cause]:
    for cause in causes:
        if cause.because:
            yield from _leaves(cause.because)
        else:
            yield cause


def _needs(title: str, needs: Mapping[str, tuple[Plugin, ...]]) -> Tree:
    trunk = _heading(title)
    for kind, providers in needs.items():
        branch = trunk.add(line(kind))
        for provider in providers:
            branch.add(_labelled(provider))
        if not providers:
            branch.add(Text("no installed plugin provides it", style="dim"))
    return trunk


def _others(title: str, plugins: Iterable[Plugin]) -> Tree:
    trunk = _heading(title)
    for plugin in plugins:
        trunk.add(_labelled(plugin))
    return trunk


def _labelled(plugin: Plugin) -> Text:
    return line(plugin.uri).append("  ").append_text(status(plugin.status))


def _heading(title: str) -> Tree:
    return Tree(Text(title, style="bold"), guide_style="dim")
