"""Writing what belongs to an image into a content store, whoever else may be at it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Final

from moored.kernel.errors import AlreadyExists, Unavailable
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.ports.content import NO_LABELS, LabelledContentStore, LabelledWriter

LOCKED_SECONDS: Final = 900.0
"""How long to wait for somebody else who writes the same object."""
_LONGEST_PAUSE: Final = 2.0


async def open_writer(store: LabelledContentStore, ref: str, total: int = 0, expected: str = "") -> LabelledWriter:
    """Open an ingest, waiting while somebody else has it open. Raises as the store's `writer`."""
    until = time.monotonic() + LOCKED_SECONDS
    pause = 0.01
    while True:
        try:
            return await store.writer(ref, total, expected)
        except Unavailable as error:
            if " locked for " not in error.text or time.monotonic() > until:
                raise
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - so that two do not keep step
        pause = min(2 * pause, _LONGEST_PAUSE)


async def write_document(
    store: LabelledContentStore, entry: Entry, data: bytes, labels: Mapping[str, str] = NO_LABELS
) -> bool:
    """Store a document under its digest, labelled; False if it was there and only the labels were set."""
    try:
        async with await open_writer(store, ref_key(entry), entry.size, entry.digest) as writer:
            offset = (await writer.status()).offset
            if offset != entry.size:
                if offset:
                    await writer.truncate()
                await writer.write(data)
            await writer.commit(entry.size, entry.digest, labels)
    except AlreadyExists:
        await add_labels(store, entry.digest, labels)
        return False
    return True


async def add_labels(store: LabelledContentStore, digest: str, labels: Mapping[str, str]) -> None:
    """Set labels of a blob; others stay. Without effect where it has them."""
    if not labels:
        return
    known = (await store.info(digest)).labels
    if any(known.get(key, "") != value for key, value in labels.items()):
        await store.update(digest, labels, [f"labels.{key}" for key in labels])


def ref_key(entry: Entry) -> str:
    """Give the ingest ref of an object, the same for everybody who fetches it (contracts/semantics.md 3.10)."""
    name = (entry.annotations or {}).get(media.REF_NAME, "")
    return f"{_kind(entry.media_type)}-{f'{name}@' if name else ''}{entry.digest}"


def _kind(media_type: str) -> str:
    if media_type in media.MANIFESTS:
        return "manifest"
    if media_type in media.INDEXES:
        return "index"
    if media.is_layer(media_type):
        return "layer"
    if media_type in media.KNOWN_CONFIGS:
        return "config"
    return "attestation" if media_type == media.IN_TOTO else "unknown"
