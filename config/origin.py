"""Trees of configuration values that know where each value was written.

A `Node` is a table (dict of nodes) or a leaf (any other TOML value, arrays included) with a `Ref`. A ref names the
document and the key there, so that a value keeps its file and line however often it is moved or merged; the line is
looked up only when somebody asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from moored.config.source import Document
from moored.kernel.config import KeyPath

_BARE = re.compile(r"[A-Za-z0-9_-]+")
Table = dict[str, "Node"]


class Origin(NamedTuple):
    """Where a value comes from: a file and line, or in `label` another source (`default`, `flag --root`).

    Lines and columns count from 1, 0 is unknown; only faults of syntax have a column.
    """

    file: str = ""
    line: int = 0
    label: str = "default"
    column: int = 0

    def __str__(self) -> str:
        if not self.file:
            return self.label
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}:{self.column}" if self.column else place


class Ref(NamedTuple):
    """A place in a document, or a label where there is no document."""

    document: Document | None = None
    path: KeyPath = ()
    label: str = "default"

    def origin(self, rest: KeyPath = ()) -> Origin:
        """File and line of the place, or of the key `rest` below it."""
        if self.document is None:
            return Origin(label=self.label)
        return Origin(str(self.document.path), self.document.line((*self.path, *rest)))


DEFAULT = Ref()


class Node:
    """One value with its place; the dict of a table must not be changed once the node is shared."""

    __slots__ = ("ref", "value")

    def __init__(self, value: Any, ref: Ref) -> None:
        self.value = value
        self.ref = ref

    @property
    def table(self) -> Table | None:
        """The children, or None for a leaf."""
        return self.value if isinstance(self.value, dict) else None

    def at(self, *path: str | int) -> Node | None:
        """The node of a key below this one, or None."""
        node: Node | None = self
        for part in path:
            table = node.table if node else None
            node = table.get(part) if table is not None and isinstance(part, str) else None
        return node

    def origin(self, path: KeyPath) -> Origin:
        """Where the key came from; for a key that is nowhere, where its nearest table came from."""
        node = self
        for index, part in enumerate(path):
            table = node.table
            child = table.get(part) if table is not None and isinstance(part, str) else None
            if child is None:
                return node.ref.origin(path[index:] if table is None else ())
            node = child
        return node.ref.origin()

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars of our own, free to change."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return list(self.value) if isinstance(self.value, list) else self.value


def grow(values: Mapping[str, Any], document: Document | None = None, label: str = "default") -> Node:
    """The tree of a parsed document, or of a table that no document holds."""
    return _grow(values, document, (), label)


def _grow(value: Any, document: Document | None, path: KeyPath, label: str) -> Node:
    if isinstance(value, Mapping):
        value = {key: _grow(item, document, (*path, key), label) for key, item in value.items()}
    return Node(value, Ref(document, path, label))


def dotted(path: KeyPath) -> str:
    """A key path as TOML writes it: `plugins."io.containerd.gc.v1.scheduler".pause_threshold`, `list[0].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + key_text(part)
    return text


def key_text(key: str) -> str:
    """One key as TOML writes it, quoted where it must be."""
    return key if _BARE.fullmatch(key) else quoted(key)


def quoted(text: str) -> str:
    """A TOML basic string."""
    return '"' + "".join(_escape(char) for char in text) + '"'


_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r"), ("\b", "\\b"), ("\f", "\\f"))


def _escape(char: str) -> str:
    for raw, escaped in _ESCAPES:
        if char == raw:
            return escaped
    return f"\\u{ord(char):04x}" if ord(char) < 32 or ord(char) == 127 else char
