"""The graph of plugins as a tree, as Mermaid and as DOT: pure functions from records to text.

An edge leads from a plugin to what it needs. A hard edge is a requirement; a soft one only says that the plugin starts
after the other. A required type that nothing provides is a node as well, with the status `missing`. All output is
ordered by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from moored.api.cli.records import MISSING, Plugin
from moored.api.cli.render import line, status

COLOURS = {
    "ok": ("#d7f0d7", "#2e7d32"),
    "skipped": ("#fff4cc", "#a67c00"),
    "disabled": ("#eeeeee", "#888888"),
    "failed": ("#ffd6d6", "#c62828"),
    "blocked": ("#f3dcf5", "#8e24aa"),
    "timed-out": ("#ffd6d6", "#c62828"),
    "pending": ("#d6eefc", "#0277bd"),
    "stopped": ("#eeeeee", "#888888"),
    MISSING: ("#ffffff", "#c62828"),
    "unknown": ("#ffffff", "#888888"),
}
"""Fill and border of a node by status, for Mermaid and DOT."""

SHARED = "(*)"
SOFT = "(after)"
LEGEND = {SHARED: "drawn in full above", SOFT: "starts after it, does not require it"}


@dataclass(frozen=True, slots=True)
class Graph:
    """status of each node; hard and soft edges from each node; all sorted by name."""

    nodes: Mapping[str, str]
    hard: Mapping[str, tuple[str, ...]]
    soft: Mapping[str, tuple[str, ...]]

    def edges(self) -> list[tuple[str, str, bool]]:
        """(from, to, soft) of every edge."""
        return [
            *((node, to, False) for node in self.nodes for to in self.hard[node]),
            *((node, to, True) for node in self.nodes for to in self.soft[node]),
        ]

    def turned(self) -> Graph:
        """The same nodes with every edge turned round."""
        hard: dict[str, list[str]] = {node: [] for node in self.nodes}
        soft: dict[str, list[str]] = {node: [] for node in self.nodes}
        for node, to, is_soft in self.edges():
            (soft if is_soft else hard)[to].append(node)
        return Graph(self.nodes, {n: tuple(to) for n, to in hard.items()}, {n: tuple(to) for n, to in soft.items()})

    def reach(self, start: str) -> set[str]:
        """A node and all that its edges lead to."""
        found = {start}
        stack = [start]
        while stack:
            node = stack.pop()
            fresh = [to for to in (*self.hard[node], *self.soft[node]) if to not in found]
            found.update(fresh)
            stack.extend(fresh)
        return found

    def part(self, wanted: set[str]) -> Graph:
        """Some of the nodes, and the edges between them."""
        nodes = {node: word for node, word in self.nodes.items() if node in wanted}
        return Graph(
            nodes,
            {node: tuple(to for to in self.hard[node] if to in wanted) for node in nodes},
            {node: tuple(to for to in self.soft[node] if to in wanted) for node in nodes},
        )

    def around(self, node: str) -> Graph:
        """A node, all that it needs and all that needs it; edges that bypass it are kept."""
        return self.part(self.reach(node) | self.turned().reach(node))

    def document(self) -> dict[str, Any]:
        """`{"nodes": [{"name", "status"}], "edges": [{"from", "to", "soft"}]}`."""
        return {
            "nodes": [{"name": node, "status": word} for node, word in self.nodes.items()],
            "edges": [{"from": node, "to": to, "soft": soft} for node, to, soft in self.edges()],
        }


def build(plugins: Iterable[Plugin]) -> Graph:
    """The whole graph."""
    known = {plugin.uri: plugin for plugin in plugins}
    hard = {uri: {*plugin.depends_on, *missing(plugin, known)} for uri, plugin in known.items()}
    soft = {uri: set(plugin.waits_for) - hard[uri] for uri, plugin in known.items()}
    names = {*known, *(to for edges in (*hard.values(), *soft.values()) for to in edges)}
    gone = {kind for plugin in known.values() for kind in missing(plugin, known)}
    statuses = {name: known[name].status if name in known else MISSING if name in gone else "unknown" for name in names}
    return Graph(
        {name: statuses[name] for name in sorted(names)},
        {name: tuple(sorted(hard.get(name, ()))) for name in sorted(names)},
        {name: tuple(sorted(soft.get(name, ()))) for name in sorted(names)},
    )


def missing(plugin: Plugin, known: Mapping[str, Plugin]) -> list[str]:
    """The required types of a plugin for which it found no provider."""
    provided = {known[uri].type for uri in plugin.depends_on if uri in known}
    return [kind for kind in plugin.requires if kind not in provided]


def tree(graph: Graph, focus: str | None = None) -> list[RenderableType]:
    """What each plugin needs, drawn below it: from the plugins that nothing needs or, with a focus, from that one.

    With a focus a second tree shows what needs it. A node that was drawn already is marked and not drawn further.
    """
    if focus is not None:
        turned = graph.turned()
        parts: list[RenderableType] = [_drawn(graph, focus, set())]
        if turned.hard[focus] or turned.soft[focus]:
            parts += [Text(), Text("needed by", style="bold"), _drawn(turned, focus, set())]
        return parts
    needed = {to for _, to, _ in graph.edges()}
    seen: set[str] = set()
    drawn: list[RenderableType] = [_drawn(graph, node, seen) for node in graph.nodes if node not in needed]
    # What is on or only behind a cycle has no root above it.
    drawn += [_drawn(graph, node, seen) for node in graph.nodes if node not in seen]
    return drawn


def _drawn(graph: Graph, root: str, seen: set[str]) -> Tree:
    seen.add(root)
    top = Tree(_label(graph, root), guide_style="dim")
    stack = [(top, iter(_below(graph, root)))]
    while stack:
        branch, rest = stack[-1]
        following = next(rest, None)
        if following is None:
            stack.pop()
            continue
        node, soft = following
        again = node in seen
        below = branch.add(_label(graph, node, *([SOFT] if soft else []), *([SHARED] if again else [])))
        if not again:
            seen.add(node)
            stack.append((below, iter(_below(graph, node))))
    return top


def _below(graph: Graph, node: str) -> list[tuple[str, bool]]:
    return [*((to, False) for to in graph.hard[node]), *((to, True) for to in graph.soft[node])]


def _label(graph: Graph, node: str, *marks: str) -> Text:
    text = line(node)
    word = graph.nodes[node]
    if word != "ok":
        text.append("  ").append_text(status(word))
    for mark in marks:
        text.append("  ").append(mark, style="dim")
    return text


def legend(text: str) -> str:
    """Explains the marks that a drawn tree has; empty for none."""
    return "\n".join(f"{mark} {meaning}" for mark, meaning in LEGEND.items() if mark in text)


def mermaid(graph: Graph, focus: str | None = None) -> str:
    """A Mermaid flowchart: soft edges dotted, a class a status, the focus with a thick border."""
    number = {node: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart TD"]
    for node, word in graph.nodes.items():
        label = _mermaid_text(node) + ("" if word == "ok" else f"<br/>{_mermaid_text(word)}")
        lines.append(f'    {number[node]}["{label}"]:::{_class(word)}')
    for node, to, soft in graph.edges():
        lines.append(f"    {number[node]} {'-.->' if soft else '-->'} {number[to]}")
    for word in _used(graph):
        fill, border = COLOURS[word]
        dashes = ",stroke-dasharray:4 3" if word == MISSING else ""
        lines.append(f"    classDef {_class(word)} fill:{fill},stroke:{border},color:#222222{dashes}")
    if focus is not None:
        lines.append(f"    style {number[focus]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def _mermaid_text(text: str) -> str:
    """For a quoted label: anything that could end it, be markup or begin an entity becomes a numeric entity."""
    return "".join(c if c.isascii() and (c.isalnum() or c in " ._-:") else f"#{ord(c)};" for c in text)


def _class(word: str) -> str:
    return "status_" + word.replace("-", "_")


def _used(graph: Graph) -> Sequence[str]:
    present = set(graph.nodes.values())
    return [word for word in COLOURS if word in present]


def dot(graph: Graph, focus: str | None = None) -> str:
    """A DOT digraph: soft edges dashed, a class and a colour a status, the focus with a thick border."""
    lines = [
        "digraph plugins {",
        "    rankdir=TB;",
        '    node [shape=box, style="rounded,filled", fontname="sans-serif", fontcolor="#222222"];',
    ]
    for node, word in graph.nodes.items():
        fill, border = COLOURS[word]
        label = _dot_text(node) + ("" if word == "ok" else f"\\n{_dot_text(word)}")
        attributes = [f'label="{label}"', f'class="{_class(word)}"', f'fillcolor="{fill}"', f'color="{border}"']
        if word == MISSING:
            attributes.append('style="rounded,filled,dashed"')
        if node == focus:
            attributes.append("penwidth=3")
        lines.append(f'    "{_dot_text(node)}" [{", ".join(attributes)}];')
    for node, to, soft in graph.edges():
        lines.append(f'    "{_dot_text(node)}" -> "{_dot_text(to)}"{" [style=dashed]" if soft else ""};')
    return "\n".join([*lines, "}"]) + "\n"


def _dot_text(text: str) -> str:
    """For a quoted DOT string: no quote, no escape sequence, no control character of the text stays alive."""
    return line(text).plain.replace("\\", "\\\\").replace('"', '\\"')
