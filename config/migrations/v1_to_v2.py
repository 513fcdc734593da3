"""Version 1 to 2: plugins' short names become URIs, in `[plugins]`, `disabled_plugins` and `required_plugins`."""

from __future__ import annotations

from moored.config.migrations.draft import Draft, Note

_CONTAINERD = "io.containerd."
_SNAPSHOTTERS = frozenset({"aufs", "btrfs", "devmapper", "native", "overlayfs", "zfs"})
_TYPES = {
    "bolt": "metadata.v1",
    "cgroups": "monitor.v1",
    "cri": "grpc.v1",
    "linux": "runtime.v1",
    "opt": "internal.v1",
    "otlp": "tracing.processor.v1",
    "restart": "internal.v1",
    "scheduler": "gc.v1",
    "task": "runtime.v2",
    "tracing": "internal.v1",
}


def plugin_uri(name: str) -> tuple[str, bool]:
    """The URI of a version 1 plugin name, and whether it is only a guess; a name with a dot is a URI already."""
    if "." in name:
        return name, False
    if name in _TYPES:
        return f"{_CONTAINERD}{_TYPES[name]}.{name}", False
    if name in _SNAPSHOTTERS:
        return f"{_CONTAINERD}snapshotter.v1.{name}", False
    if name.endswith("-service"):
        return f"{_CONTAINERD}service.v1.{name}", False
    if name in {"windows", "windows-lcow"}:
        return f"{_CONTAINERD}snapshotter.v1.{name}", True
    return f"{_CONTAINERD}grpc.v1.{name}", True


def v1_to_v2(draft: Draft) -> None:
    """Rename in place; a section given under its URI too is kept and the short one lost."""
    for name, node in draft.table(("plugins",)).items():
        uri, guessed = plugin_uri(name)
        if uri == name:
            continue
        if guessed:
            draft.warn(("plugins", name), f"plugin {name!r} is not known, taken for {uri!r}", node.ref)
        draft.move_unless_there(("plugins", name), ("plugins", uri))
    for key in ("disabled_plugins", "required_plugins"):
        _rename_list(draft, key)


def _rename_list(draft: Draft, key: str) -> None:
    node = draft.get((key,))
    if node is None or not isinstance(node.value, list):
        return
    renamed = []
    for index, name in enumerate(node.value):
        uri, guessed = plugin_uri(name) if isinstance(name, str) else (name, False)
        if guessed:
            draft.warn((key,), f"plugin {name!r} is not known, taken for {uri!r}", node.ref)
        if uri != name and not guessed:
            draft.notes.append(Note("note", (key, index), f"{name!r} -> {uri!r}", node.ref))
        renamed.append(uri)
    draft.put((key,), renamed, node.ref)
