"""The dependency graph of plugins: pure functions from declared needs to an order, with all faults at once."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Needs:
    """What one plugin declares: its own type, the types it requires, the types it only comes after."""

    type: str
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The resolved graph.

    order     every plugin not in or behind a cycle, each after all its edges; equal choices in name order
    hard      plugin -> the plugins it requires, soft: those it merely comes after (never repeated from hard)
    missing   plugin -> required types that nothing provides
    cycles    one shortest cycle for each tangle, as the plugins on it, first one repeated at the end
    """

    order: tuple[str, ...]
    hard: Mapping[str, tuple[str, ...]]
    soft: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, tuple[str, ...]]
    cycles: tuple[tuple[str, ...], ...]

    def edges(self, uri: str) -> tuple[str, ...]:
        """Every plugin that must settle before this one starts."""
        return self.hard[uri] + self.soft[uri]


def resolve(nodes: Mapping[str, Needs]) -> Plan:
    """Turn declared types into edges between plugins and order them. Never raises; faults are in the plan."""
    by_type: dict[str, list[str]] = {}
    for uri in sorted(nodes):
        by_type.setdefault(nodes[uri].type, []).append(uri)
    hard = {uri: _providers(uri, needs.requires, by_type) for uri, needs in nodes.items()}
    soft = {uri: _without(_providers(uri, needs.after, by_type), hard[uri]) for uri, needs in nodes.items()}
    missing = {
        uri: gone
        for uri, needs in nodes.items()
        if (gone := tuple(k for k in dict.fromkeys(needs.requires) if not _providers(uri, (k,), by_type)))
    }
    edges = {uri: hard[uri] + soft[uri] for uri in nodes}
    tangles = _tangles(edges)
    return Plan(
        order=_order(edges),
        hard=hard,
        soft=soft,
        missing=missing,
        cycles=tuple(sorted(_shortest_cycle(tangle, edges) for tangle in tangles)),
    )


def _providers(uri: str, kinds: Iterable[str], by_type: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p for kind in kinds for p in by_type.get(kind, ()) if p != uri))


def _without(uris: Iterable[str], gone: Iterable[str]) -> tuple[str, ...]:
    known = set(gone)
    return tuple(uri for uri in uris if uri not in known)


def _order(edges: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    waiting = {uri: len(before) for uri, before in edges.items()}
    dependents = reverse(edges)
    ready = [uri for uri, count in waiting.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        uri = heapq.heappop(ready)
        order.append(uri)
        for dependent in dependents[uri]:
            waiting[dependent] -= 1
            if waiting[dependent] == 0:
                heapq.heappush(ready, dependent)
    return tuple(order)


def reverse(edges: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same graph with every edge turned round: plugin -> those that depend on it."""
    turned: dict[str, list[str]] = {uri: [] for uri in edges}
    for uri, before in edges.items():
        for other in before:
            turned[other].append(uri)
    return turned


def _tangles(edges: Mapping[str, Sequence[str]]) -> list[set[str]]:
    """The strongly connected components of more than one plugin (a plugin never depends on itself), by two sweeps."""
    finished: list[str] = []
    _sweep(sorted(edges), edges, finished.append)
    turned = reverse(edges)
    found: list[set[str]] = []
    seen: set[str] = set()
    for root in reversed(finished):
        if root in seen:
            continue
        component = {root}
        stack = [root]
        while stack:
            for other in turned[stack.pop()]:
                if other not in seen and other not in component:
                    component.add(other)
                    stack.append(other)
        seen |= component
        if len(component) > 1:
            found.append(component)
    return found


def _sweep(roots: Iterable[str], edges: Mapping[str, Sequence[str]], finish: Callable[[str], None]) -> None:
    """Depth first from each root, without recursion; `finish` is called as each plugin is left."""
    seen: set[str] = set()
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(edges[root]))]
        while stack:
            uri, rest = stack[-1]
            for other in rest:
                if other not in seen:
                    seen.add(other)
                    stack.append((other, iter(edges[other])))
                    break
            else:
                stack.pop()
                finish(uri)


def _shortest_cycle(tangle: set[str], edges: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    best: tuple[str, ...] = ()
    for start in sorted(tangle):
        cycle = _cycle_through(start, tangle, edges)
        if not best or len(cycle) < len(best):
            best = cycle
        if len(best) == 3:
            break  # two plugins: nothing is shorter
    return best


def _cycle_through(start: str, tangle: set[str], edges: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    came_from: dict[str, str] = {}
    queue = deque([start])
    while queue:
        uri = queue.popleft()
        for other in edges[uri]:
            if other == start:
                path = [start, uri]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return tuple(reversed(path))
            if other in tangle and other not in came_from:
                came_from[other] = uri
                queue.append(other)
    raise AssertionError(f"{start!r} is in a tangle and on no cycle")
