"""A tree being migrated: moves keys together with their places and keeps notes of what happened."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from moored.config.origin import Node, Ref, dotted
from moored.kernel.config import KeyPath

Path = tuple[str, ...]


class Note(NamedTuple):
    """What a migration did to one key of a file; a warning when a value got lost on the way.

    `key` is where the value was, `ref` the place in the file.
    """

    level: Literal["note", "warning"]
    key: KeyPath
    message: str
    ref: Ref


class Draft:
    """A working copy of a tree; the tree it was made of stays as it is."""

    def __init__(self, tree: Node) -> None:
        self.tree = _copy(tree)
        self.notes: list[Note] = []

    def get(self, path: Path) -> Node | None:
        """The node of a key, or None."""
        return self.tree.at(*path)

    def table(self, path: Path) -> dict[str, Node]:
        """A table's children to loop over; none when there is no such table."""
        node = self.get(path)
        return dict(node.table) if node is not None and node.table is not None else {}

    def put(self, path: Path, value: Any, ref: Ref) -> None:
        """Set a leaf, making the tables above it."""
        self._place(path, Node(value, ref))

    def take(self, path: Path) -> Node | None:
        """Remove a key and give its node, without a note."""
        parent = self.get(path[:-1])
        if parent is None or parent.table is None:
            return None
        return parent.table.pop(path[-1], None)

    def move(self, source: Path, target: Path) -> None:
        """Move a key; what stood at the target is lost and warned of. No effect when there is no source."""
        node = self.take(source)
        if node is None:
            return
        if (lost := self.get(target)) is not None and lost.plain() != node.plain():
            self.warn(target, f"lost, replaced by {dotted(source)!r}", lost.ref)
        self._place(target, node)
        self.note(source, target, node.ref)

    def move_unless_there(self, source: Path, target: Path) -> None:
        """Move a key unless the target is set, in which case the source is lost and warned of."""
        if (there := self.get(target)) is None:
            self.move(source, target)
        elif (node := self.take(source)) is not None and node.plain() != there.plain():
            self.warn(source, f"lost, {dotted(target)} is set already", node.ref)

    def drop(self, path: Path, why: str) -> None:
        """Remove a key with a warning."""
        if (node := self.take(path)) is not None:
            self.warn(path, f"lost, {why}", node.ref)

    def prune(self, path: Path) -> None:
        """Remove a table that has become empty, and those above it that have too."""
        while path and (node := self.get(path)) is not None and node.table == {}:
            self.take(path)
            path = path[:-1]

    def note(self, source: Path, target: Path, ref: Ref) -> None:
        """Record a move."""
        self.notes.append(Note("note", source, f"{dotted(source)!r} -> {dotted(target)}", ref))

    def warn(self, path: Path, message: str, ref: Ref) -> None:
        """Record a loss or a guess."""
        self.notes.append(Note("warning", path, message, ref))

    def _place(self, path: Path, node: Node) -> None:
        table = self.tree.value
        for depth, part in enumerate(path[:-1], 1):
            below = table.get(part)
            if below is not None and below.table is None:
                self.warn(path[:depth], "lost, a table was wanted", below.ref)
                below = None
            if below is None:
                below = table[part] = Node({}, node.ref)
            table = below.value
        table[path[-1]] = node


def _copy(node: Node) -> Node:
    if node.table is None:
        return node
    return Node({key: _copy(child) for key, child in node.table.items()}, node.ref)
