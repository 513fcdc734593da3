"""Walking an image from its target down: every document and blob that belongs to it, each once.

target --index--> manifests, those of the wanted platforms --> config, layers
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry, ImageConfig, Manifest
from moored.kernel.imagespec.platforms import EVERYTHING, Matcher

MAX_DEPTH: Final = 16
MAX_NODES: Final = 10_000

Read = Callable[[Entry], Awaitable[bytes]]
"""Gives the bytes of a document, all of them; NotFound where it is not there."""


@dataclass(frozen=True, slots=True)
class Node:
    """One object of an image: its descriptor, its document (None for a blob or one that is absent) and children."""

    entry: Entry
    document: bytes | None = None
    children: Sequence[Entry] = ()


async def read_document(entry: Entry, read: Read) -> bytes:
    """Read one document and hold it against its descriptor.

    Raises InvalidArgument for one that is too large, FailedPrecondition for another size or digest than it said.
    """
    if entry.size > MAX_DOCUMENT:
        raise InvalidArgument(f"document {entry.digest} has {entry.size} bytes, at most {MAX_DOCUMENT} are read")
    data = entry.data if entry.data is not None else await read(entry)
    if len(data) != entry.size:
        raise FailedPrecondition(f"document {entry.digest} has {len(data)} bytes, its descriptor says {entry.size}")
    algorithm, _, digest = entry.digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != digest:
        raise FailedPrecondition(f"document {entry.digest} has other bytes than its digest says")
    return data


def chosen(entries: Sequence[Entry], wanted: Matcher, limit: int = 0) -> list[Entry]:
    """Give those of an index' manifests that match, the best first, at most `limit` of them (0: all)."""
    ranked = [(wanted.rank(entry.platform.platform() if entry.platform else None), entry) for entry in entries]
    found = [(rank, entry) for rank, entry in ranked if rank is not None]
    found.sort(key=lambda pair: pair[0])
    return [entry for _, entry in found][: limit or None]


async def walk(
    target: Entry, read: Read, wanted: Matcher = EVERYTHING, *, limit: int = 0, absent: bool = False
) -> AsyncGenerator[Node]:
    """Give every object below a target, parents before children, each digest once.

    limit   how many manifests of each index to take
    absent  give manifests that the reader does not find as nodes without a document, instead of raising NotFound
    Raises InvalidArgument for documents that are malformed or for images that are too deep or too large.
    """
    seen: set[str] = set()
    waiting: list[tuple[Entry, int]] = [(target, 0)]
    while waiting:
        entry, depth = waiting.pop()
        if entry.digest in seen:
            continue
        seen.add(entry.digest)
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"image {target.digest} is nested deeper than {MAX_DEPTH} documents")
        if len(seen) > MAX_NODES:
            raise InvalidArgument(f"image {target.digest} has more than {MAX_NODES} objects")
        node = await _node(entry, read, absent=absent)
        yield node
        below = chosen(node.children, wanted, limit) if entry.media_type in media.INDEXES else node.children
        waiting.extend((child, depth + 1) for child in reversed(below))


async def _node(entry: Entry, read: Read, *, absent: bool) -> Node:
    if not media.is_branch(entry.media_type):
        return Node(entry)
    try:
        document = await read_document(entry, read)
    except NotFound:
        if absent:
            return Node(entry)
        raise
    return Node(entry, document, documents.children(document, entry.media_type, entry.digest))


async def best_manifest(target: Entry, read: Read, wanted: Matcher) -> tuple[Entry, Manifest]:
    """Find the manifest of an image that suits the wanted platforms best and is there.

    Raises NotFound naming the platforms when none matches.
    """
    async for node in walk(target, read, wanted, absent=True):
        if node.document is not None and node.entry.media_type in media.MANIFESTS:
            manifest = documents.manifest(node.document, node.entry.digest)
            if node.entry.platform is not None or await _suits(manifest, read, wanted):
                return node.entry, manifest
    names = ", ".join(str(choice) for choice in wanted.choices) or "any platform"
    raise NotFound(f"image {target.digest} has no manifest for {names}")


async def _suits(manifest: Manifest, read: Read, wanted: Matcher) -> bool:
    if manifest.config.media_type not in media.CONFIGS:
        return not wanted.choices
    return wanted.rank((await image_config(manifest, read)).platform()) is not None


async def image_config(manifest: Manifest, read: Read) -> ImageConfig:
    """Read the config that a manifest names, and hold its diff ids against the manifest's layers.

    Raises InvalidArgument for a config that is none, FailedPrecondition where the numbers differ.
    """
    if manifest.config.media_type not in media.CONFIGS:
        raise InvalidArgument(f"config {manifest.config.digest} is {manifest.config.media_type!r}, not an image's")
    config = documents.config(await read_document(manifest.config, read), manifest.config.digest)
    layers = [layer for layer in manifest.layers if media.is_layer(layer.media_type)]
    if len(config.rootfs.diff_ids) != len(layers):
        raise FailedPrecondition(
            f"config {manifest.config.digest} has {len(config.rootfs.diff_ids)} diff ids,"
            f" its manifest {len(layers)} layers"
        )
    return config
