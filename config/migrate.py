"""Brings a file's tree from any version of containerd's configuration to version 4; pure.

Each file is migrated by itself, before it is merged with others. Values keep their places in the file.
"""

from __future__ import annotations

from moored.config.migrations.draft import Draft, Note
from moored.config.origin import Node
from moored.kernel.errors import InvalidArgument

VERSION = 4


def version_of(tree: Node) -> int:
    """The version that a file says, 1 when it says none or 0; raises InvalidArgument naming any other value."""
    node = tree.at("version")
    value = 1 if node is None else node.value
    if isinstance(value, bool) or not isinstance(value, int):
        from moored.config.toml import value_text

        raise InvalidArgument(f"version {value_text(value)} is not an integer, wanted 1 to {VERSION}")
    if not 0 <= value <= VERSION:
        raise InvalidArgument(f"version '{value}' is not known, wanted 1 to {VERSION}")
    return value or 1


def migrate(tree: Node) -> tuple[Node, tuple[Note, ...]]:
    """The tree at version 4 and notes of what was moved or lost; a version 4 tree as it is.

    Raises InvalidArgument for a version that is not known.
    """
    version = version_of(tree)
    if version == VERSION:
        return tree, ()
    from moored.config.migrations.v1_to_v2 import v1_to_v2
    from moored.config.migrations.v2_to_v3 import v2_to_v3
    from moored.config.migrations.v3_to_v4 import v3_to_v4

    draft = Draft(tree)
    if version == 1:
        v1_to_v2(draft)
    v2_to_v3(draft)  # version 3 files too: plugins take their old sections at any version below 4
    v3_to_v4(draft)
    said = tree.at("version")
    draft.put(("version",), VERSION, said.ref if said is not None else tree.ref)
    return draft.tree, tuple(draft.notes)
