"""The labels that keep an image together, and those that tell where a blob can be had (contracts/semantics.md 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from moored.kernel.imagespec import media
from moored.kernel.imagespec.archives.writing import SOURCE_LABEL
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.references import Reference
from moored.kernel.namespaces import MAX_LABEL_BYTES

_REFERENCE: Final = "containerd.io/gc.ref.content."


def reference_labels(children: Sequence[Entry]) -> dict[str, str]:
    """Give the labels by which a document keeps its children."""
    counts: Counter[str] = Counter()
    found = {}
    for child in children:
        kind = _kind(child.media_type)
        number = counts[kind]
        counts[kind] += 1
        found[_REFERENCE + (kind if kind == "config" and not number else f"{kind}{number}")] = child.digest
    return found


def _kind(media_type: str) -> str:
    if media_type in media.KNOWN_CONFIGS:
        return "config"
    if media_type in media.MANIFESTS:
        return "m."
    return "l." if media.is_layer(media_type) else ""


def snapshot_label(snapshotter: str) -> str:
    """Give the label by which a config keeps what its image was unpacked to."""
    return f"containerd.io/gc.ref.snapshot.{snapshotter}"


def source_label(reference: Reference) -> str:
    """Give the label that names the repositories of a reference's host."""
    return f"{SOURCE_LABEL}.{_host(reference)}"


def with_source(labels: Mapping[str, str], reference: Reference) -> dict[str, str]:
    """Give the label that says that this repository, too, has a blob; nothing where it would become too long."""
    key = source_label(reference)
    known = {repository for repository in labels.get(key, "").split(",") if repository}
    value = ",".join(sorted(known | {reference.path}))
    return {} if len(key) + len(value) > MAX_LABEL_BYTES else {key: value}


def mount_candidate(labels: Mapping[str, str], reference: Reference) -> str:
    """Choose the repository of the same host that most likely has a blob: the one whose path begins most alike."""
    wanted = reference.path.split("/")
    best, alike = "", 0
    for repository in labels.get(source_label(reference), "").split(","):
        if not repository or repository == reference.path:
            continue
        common = 0
        for one, other in zip(wanted, repository.split("/"), strict=False):
            if one != other:
                break
            common += 1
        if common >= alike:
            best, alike = repository, common
    return best


def _host(reference: Reference) -> str:
    host, _, port = reference.host.rpartition(":")
    return (host if host and port.isdigit() else reference.host).strip("[]")
