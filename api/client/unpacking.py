"""Unpacks an image's layers into a snapshotter, each step asked of the daemon.

    for each layer: prepare(parent) -> apply -> its diff id as the config says? -> commit(chain id)

Source: contracts/semantics.md 3.10, unpack of a layer.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from moored.api.client.connection import Calls
from moored.api.client.content import Content
from moored.api.client.diffs import Diffs
from moored.api.client.images import Images
from moored.api.client.leases import under_lease
from moored.api.client.snapshots import Snapshots
from moored.api.transfer.labels import snapshot_label
from moored.kernel.errors import AlreadyExists, FailedPrecondition, MooredError, NotFound
from moored.kernel.imagespec import media
from moored.kernel.imagespec.chain import chain_ids
from moored.kernel.imagespec.documents import Entry, Manifest
from moored.kernel.imagespec.ingests import add_labels
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.ports.diff import UNCOMPRESSED_LABEL
from moored.kernel.ports.images import Image
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.snapshots import SNAPSHOT_REF
from moored.kernel.ports.transfer import Progress, Report

_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Layer:
    entry: Entry
    diff_id: str
    chain: str
    parent: str


async def unpack(
    calls: Calls,
    image: str | Image,
    snapshotter: str,
    *,
    platform: Platform | None = None,
    progress: Report | None = None,
) -> str:
    """Unpack what is not unpacked yet and give the name of the top snapshot, empty for an image without layers.

    Raises NotFound for an image, manifest or layer that is missing, FailedPrecondition for a layer that is not what
    the config says. After an error the layers below stay.
    """
    async with under_lease(calls) as leased:
        images = Images(leased)
        _, manifest = await images.manifest(image, platform)
        layers = _layers(manifest, (await images.config(image, platform)).rootfs.diff_ids)
        unpacker = _Unpacker(leased, snapshotter, progress)
        for layer in layers:
            await unpacker.layer(layer)
        top = layers[-1].chain if layers else ""
        if top:
            await add_labels(Content(leased), manifest.config.digest, {snapshot_label(snapshotter): top})
        return top


def _layers(manifest: Manifest, diff_ids: Sequence[str]) -> list[_Layer]:
    entries = [entry for entry in manifest.layers if media.is_layer(entry.media_type)]
    chain = chain_ids(diff_ids)
    return [
        _Layer(entry, diff_id, name, parent)
        for entry, diff_id, name, parent in zip(entries, diff_ids, chain, ["", *chain], strict=False)
    ]


class _Unpacker:
    def __init__(self, calls: Calls, snapshotter: str, progress: Report | None) -> None:
        self._snapshots = Snapshots(calls, snapshotter)
        self._diffs = Diffs(calls)
        self._content = Content(calls)
        self._report = progress

    async def layer(self, layer: _Layer) -> None:
        """Make a layer's snapshot unless it is there, be it by somebody who is at it too."""
        if await self._snapshots.exists(layer.chain):
            return
        prepared = await self._prepared(layer)
        if prepared is None:
            return
        key, mounts = prepared
        try:
            await self._filled(layer, key, mounts)
        except BaseException:
            with suppress(MooredError):
                await self._snapshots.remove(key)
            raise

    async def _prepared(self, layer: _Layer) -> tuple[str, list[Mount]] | None:
        """Begin a layer's snapshot; None if the snapshotter has it, or makes it by itself."""
        labels = {SNAPSHOT_REF: layer.chain}
        for _ in range(_TRIES):
            key = f"extract-{secrets.token_hex(6)} {layer.chain}"
            try:
                return key, await self._snapshots.prepare(key, layer.parent, labels)
            except AlreadyExists:
                if await self._snapshots.exists(layer.chain):
                    return None
        raise FailedPrecondition(f"snapshotter {self._snapshots.name!r} has and has not {layer.chain}")

    async def _filled(self, layer: _Layer, key: str, mounts: list[Mount]) -> None:
        self._tell("extracting", layer, 0)
        # the commit makes the files durable, and once is enough
        applied = await self._diffs.apply(layer.entry.descriptor(), mounts, sync_fs=False)
        if applied.digest != layer.diff_id:
            raise FailedPrecondition(
                f"wrong diff id {applied.digest} of layer {layer.entry.digest}, its config says {layer.diff_id}"
            )
        try:
            await self._snapshots.commit(layer.chain, key, {SNAPSHOT_REF: layer.chain})
        except AlreadyExists:
            with suppress(NotFound):
                await self._snapshots.remove(key)
        await add_labels(self._content, layer.entry.digest, {UNCOMPRESSED_LABEL: layer.diff_id})
        self._tell("extracted", layer, layer.entry.size)

    def _tell(self, event: str, layer: _Layer, done: int) -> None:
        if self._report is not None:
            target = layer.entry.descriptor()
            name = f"layer-{layer.entry.digest}"
            self._report(Progress(event=event, name=name, progress=done, total=target.size, descriptor=target))
