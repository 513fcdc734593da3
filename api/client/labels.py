"""Labels that keep an image's objects together, and those that tell where they can be had (semantics 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.references import Reference
from moored.kernel.namespaces import MAX_LABEL_BYTES

SOURCE_LABEL: Final = "containerd.io/distribution.source"
"""Label, with `.HOST` behind it: the repositories of a host that have a blob, separated by commas."""
_CONTENT: Final = "containerd.io/gc.ref.content."
_SNAPSHOT: Final = "containerd.io/gc.ref.snapshot."


def child_labels(children: Sequence[Entry]) -> dict[str, str]:
    """Give the labels by which a document keeps what it names."""
    counts: Counter[str] = Counter()
    found = {}
    for child in children:
        kind = _kind(child.media_type)
        number, counts[kind] = counts[kind], counts[kind] + 1
        found[_CONTENT + (kind if kind == "config" and not number else f"{kind}{number}")] = child.digest
    return found


def _kind(media_type: str) -> str:
    if media_type in media.KNOWN_CONFIGS:
        return "config"
    if media_type in media.MANIFESTS:
        return "m."
    return "l." if media.is_layer(media_type) else ""


def snapshot_label(snapshotter: str) -> str:
    """Give the label by which a config keeps the snapshot of its layers."""
    return _SNAPSHOT + snapshotter


def source_labels(known: Mapping[str, str], reference: Reference) -> dict[str, str]:
    """Give the label that says that this repository, too, has a blob; none where it would be too long."""
    key = _source(reference)
    repositories = {one for one in known.get(key, "").split(",") if one} | {reference.path}
    value = ",".join(sorted(repositories))
    return {key: value} if len(key) + len(value) <= MAX_LABEL_BYTES else {}


def mount_candidate(labels: Mapping[str, str], reference: Reference) -> str:
    """Choose the repository of the same host that has a blob and is named most alike; empty for none."""
    wanted = reference.path.split("/")

    def likeness(path: str) -> int:
        pairs = zip(wanted, path.split("/"), strict=False)
        return next((depth for depth, (one, other) in enumerate(pairs) if one != other), len(wanted))

    found = [one for one in labels.get(_source(reference), "").split(",") if one and one != reference.path]
    return max(found, key=likeness, default="")


def _source(reference: Reference) -> str:
    host, _, port = reference.host.rpartition(":")
    return f"{SOURCE_LABEL}.{(host if host and port.isdigit() else reference.host).strip('[]')}"
