"""Documents as containerd writes them, byte for byte: the same image has the same digest wherever it is made."""

from __future__ import annotations

import msgspec

from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.platforms import Platform


def go_json(document: object) -> bytes:
    """Encode as Go's encoding/json does: keys as they are given, what HTML could take amiss escaped."""
    data = msgspec.json.encode(document)
    for raw, escaped in ((b"<", b"\\u003c"), (b">", b"\\u003e"), (b"&", b"\\u0026")):
        data = data.replace(raw, escaped)
    return data.replace("\u2028".encode(), b"\\u2028").replace("\u2029".encode(), b"\\u2029")


def described(entry: Entry) -> dict[str, object]:
    """Give a descriptor as a document holds it, its annotations sorted."""
    found: dict[str, object] = {"mediaType": entry.media_type, "digest": str(entry.digest), "size": entry.size}
    if entry.urls:
        found["urls"] = list(entry.urls)
    if entry.annotations:
        found["annotations"] = dict(sorted(entry.annotations.items()))
    if entry.platform is not None:
        found["platform"] = platform_json(entry.platform.platform())
    if entry.artifact_type:
        found["artifactType"] = entry.artifact_type
    return found


def platform_json(platform: Platform) -> dict[str, object]:
    """Give a platform as a document holds it."""
    found: dict[str, object] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        found["os.version"] = platform.os_version
    if platform.os_features:
        found["os.features"] = list(platform.os_features)
    if platform.variant:
        found["variant"] = platform.variant
    return found
