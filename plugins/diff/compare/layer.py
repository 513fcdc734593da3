"""Stores the difference of two folders as a blob: reads it from a worker process, compresses, hashes and commits it."""

from __future__ import annotations

import hashlib
import secrets
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from moored.kernel.errors import AlreadyExists, NotFound, Unimplemented
from moored.kernel.ports.content import ContentStore, Info, Writer
from moored.kernel.ports.diff import LAYER, LAYER_GZIP, LAYER_ZSTD, UNCOMPRESSED_LABEL, Labels
from moored.kernel.ports.images import Descriptor
from moored.plugins.diff.worker import Crew

COMPARE_MODULE: Final = "moored.plugins.diff.compare.process"
CHUNK: Final = 1 << 20
GZIP_LEVEL: Final = 6
ZSTD_LEVEL: Final = 3
_GZIP_WITH_HEADER: Final = 31


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a caller asked for, see the port; `shortcut` is the upper folder of an overlay over just the lower tree."""

    media_type: str
    reference: str
    labels: Labels
    source_date_epoch: int | None
    shortcut: str | None = None

    @property
    def stored_type(self) -> str:
        """The media type of the blob."""
        return self.media_type or LAYER_GZIP

    def check(self) -> None:
        """Raise Unimplemented for a type that cannot be made."""
        if self.stored_type not in {LAYER, LAYER_GZIP, LAYER_ZSTD}:
            raise Unimplemented(f"unsupported diff media type: {self.media_type}")

    def compressor(self) -> _Compressor | None:
        """A new compressor, None for a plain tar; equal input, equal output."""
        if self.stored_type == LAYER_GZIP:
            return zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WITH_HEADER)
        if self.stored_type == LAYER_ZSTD:
            import zstandard

            return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()
        return None


async def store_difference(store: ContentStore, crew: Crew, lower: str, upper: str, wanted: Comparison) -> Descriptor:
    """Compare two folders and store the layer. Raises as the port's `compare`."""
    reference = wanted.reference or f"{time.time_ns()}-{secrets.token_urlsafe(3)}"
    writer = await store.writer(reference)
    committed = False
    try:
        if wanted.reference:
            await writer.truncate(0)
        diff_id = await _write_difference(writer, crew, lower, upper, wanted)
        info, is_new = await _commit(store, writer)
        committed = True
    finally:
        await writer.close()
        if not committed and not wanted.reference:
            with suppress(NotFound):
                await store.abort(reference)
    labels = dict(wanted.labels) if is_new else {}
    if wanted.stored_type != LAYER and UNCOMPRESSED_LABEL not in info.labels:
        labels[UNCOMPRESSED_LABEL] = diff_id
    if labels:
        # a store without labels has nowhere to keep them
        with suppress(Unimplemented):
            await store.update(info.digest, labels, [f"labels.{key}" for key in labels])
    return Descriptor(media_type=wanted.stored_type, digest=info.digest, size=info.size)


async def _write_difference(writer: Writer, crew: Crew, lower: str, upper: str, wanted: Comparison) -> str:
    """Write the layer; the digest of its tar."""
    task = {"lower": lower, "upper": upper, "shortcut": wanted.shortcut, "latest": wanted.source_date_epoch}
    tar = hashlib.sha256()
    compressor = wanted.compressor()
    async with crew.worker(COMPARE_MODULE, task, output=True) as process:
        process.end_input()

        def step() -> tuple[int, bytes]:
            data = process.read(CHUNK)
            tar.update(data)
            return len(data), compressor.compress(data) if compressor else data

        size = 1
        while size:
            size, made = await process.run(step)
            if made:
                await writer.write(made)
        await process.result()
        if compressor:
            await writer.write(await process.run(compressor.flush))
    return f"sha256:{tar.hexdigest()}"


async def _commit(store: ContentStore, writer: Writer) -> tuple[Info, bool]:
    """The blob, and whether it was not there before."""
    digest = writer.digest
    try:
        return await writer.commit(0, digest), True
    except AlreadyExists:
        return await store.info(digest), False
