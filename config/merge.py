"""Merges the trees of several files as containerd does; pure, and every value keeps its place.

| where | rule |
| --- | --- |
| top-level values, `[debug]`, `[cgroup]` and their like | a value that is not zero wins; 0, "" and false never reset |
| top-level lists | union, earlier elements first |
| `[plugins]` | merged key by key to any depth; the later value wins, zeros and empty lists too; lists are replaced |
| `proxy_plugins`, `stream_processors`, `timeouts` | the later entry replaces the whole entry |
"""

from __future__ import annotations

from moored.config.origin import Node

WHOLE_ENTRIES = frozenset({"proxy_plugins", "stream_processors", "timeouts"})


def merge(base: Node, over: Node) -> Node:
    """The tree of two version 4 trees of which `over` is the later; neither is changed."""
    result = dict(base.table or {})
    for key, later in (over.table or {}).items():
        result[key] = _top(key, earlier, later) if (earlier := result.get(key)) is not None else later
    return Node(result, over.ref)


def _top(key: str, earlier: Node, later: Node) -> Node:
    if key == "plugins":
        return _deep(earlier, later)
    if key in WHOLE_ENTRIES and earlier.table is not None and later.table is not None:
        return Node({**earlier.table, **later.table}, later.ref)
    return _nonzero(earlier, later)


def _deep(earlier: Node, later: Node) -> Node:
    """`[plugins]`: tables are joined, everything else is replaced."""
    if earlier.table is None or later.table is None:
        return later
    joined = dict(earlier.table)
    for key, node in later.table.items():
        joined[key] = _deep(joined[key], node) if key in joined else node
    return Node(joined, later.ref)


def _nonzero(earlier: Node, later: Node) -> Node:
    """Outside of `[plugins]`: tables are joined, lists united, zeros lose."""
    if earlier.table is not None and later.table is not None:
        joined = dict(earlier.table)
        for key, node in later.table.items():
            joined[key] = _nonzero(joined[key], node) if key in joined else node
        return Node(joined, later.ref)
    if isinstance(earlier.value, list) and isinstance(later.value, list):
        added = [item for index, item in enumerate(later.value) if item not in [*earlier.value, *later.value[:index]]]
        return Node([*earlier.value, *added], later.ref) if added else earlier
    return later if later.value else earlier
