"""Unpacks images layer by layer while the rest of them is still on its way.

    config --> diff ids --> chain ids
    for each layer:  prepare(parent) -- wait for its blob -- apply -- diff id as the config says? -- commit(chain id)

Where the snapshotter can `rebase`, a layer gets its parent when it is committed. So with overlayfs a layer is prepared
and applied while those below it, applied already, are still being committed. And if more than one unpack at a time is
wanted, layers are applied side by side without their parents, and committed one after the other.
Source: contracts/semantics.md 3.10, Unpack of a layer.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
from structlog.typing import FilteringBoundLogger

from moored.api.transfer.labels import snapshot_label
from moored.api.transfer.together import explained, together
from moored.api.transfer.tracker import Tracker
from moored.kernel.errors import AlreadyExists, FailedPrecondition, MooredError, NotFound, Unknown
from moored.kernel.imagespec import documents, media
from moored.kernel.imagespec.chain import chain_ids
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import add_labels
from moored.kernel.imagespec.platforms import Matcher, Platform, normalized
from moored.kernel.namespaces import MAX_LABEL_BYTES, current_namespace
from moored.kernel.ports.content import LabelledContentStore, read_blob
from moored.kernel.ports.diff import UNCOMPRESSED_LABEL, Applier
from moored.kernel.ports.mounts import Mount
from moored.kernel.ports.objects import Objects
from moored.kernel.ports.snapshots import REBASE, SNAPSHOT_REF, Snapshotter
from moored.kernel.turns import Turns
from moored.kernel.workers import to_the_end
from moored.plugins.transfer.fetching import Fetch, Fetching
from moored.plugins.transfer.uppers import on_top, upper_only

INHERITED: Final = "containerd.io/snapshot/"
"""Annotations of a layer with this prefix become labels of its snapshot."""
DIFF_ID: Final = "containerd.io/snapshot/diff-id"
PARENT: Final = "containerd.io/snapshot/parent-chain-id"
OVERLAYFS: Final = "overlayfs"
AHEAD: Final = 8
"""Layers of an image that are prepared and not committed."""
_TRIES: Final = 3

"""Gets a layer's blob into the store, under the current lease."""
Slots = Callable[[], AbstractAsyncContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A way to unpack that the operator has configured.

    platform      what it is for
    exactly       None to compare operating systems only, as containerd does unless told otherwise
    config_type   the only media type of configs that it takes, empty for those of images
    layer_types   media types that count as layers beside those of images
    side_by_side  apply layers side by side
    remote        the snapshotter makes layers by itself, which need not be fetched then
    """

    platform: Platform
    exactly: Matcher | None
    snapshotter: str
    applier: Applier
    config_type: str = ""
    layer_types: frozenset[str] = frozenset()
    side_by_side: bool = False
    remote: bool = False

    def takes(self, platform: Platform) -> bool:
        """Whether images of a platform are unpacked so."""
        if self.exactly is not None:
            return self.exactly.rank(platform) is not None
        return normalized(platform).os == normalized(self.platform).os


@dataclass(slots=True)
class _Layer:
    """One layer and what it is to become."""

    entry: Entry
    diff_id: str
    chain: str
    parent: str
    key: str = ""
    mounts: Sequence[Mount] = ()

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its snapshot."""
        found = {
            key: value
            for key, value in (self.entry.annotations or {}).items()
            if key == SNAPSHOT_REF or key.startswith(INHERITED)
        }
        found |= {SNAPSHOT_REF: self.chain, DIFF_ID: self.diff_id}
        return found | ({PARENT: self.parent} if self.parent else {})


class Unpacker:
    """Unpacks images of one transfer to what it asked for.

    locks   so that two transfers do not unpack one layer
    slots   bounds the layers that are applied side by side, by all transfers together
    """

    def __init__(
        self,
        objects: Objects,
        targets: Sequence[Target],
        tracker: Tracker,
        log: FilteringBoundLogger,
        *,
        locks: Turns[tuple[str, ...]],
        slots: Slots,
    ) -> None:
        self._objects = objects
        self._content: LabelledContentStore = objects.content
        self._targets = targets
        self._tracker = tracker
        self._log = log
        self._locks = locks
        self._slots = slots

    def is_layer(self, entry: Entry) -> bool:
        """Whether an object of a manifest is unpacked."""
        return media.is_layer(entry.media_type) or any(entry.media_type in one.layer_types for one in self._targets)

    def is_config(self, entry: Entry) -> bool:
        """Whether a manifest with such a config is an image that is unpacked."""
        types = {one.config_type for one in self._targets if one.config_type}
        return entry.media_type in media.CONFIGS or entry.media_type in types

    @property
    def may_leave_out(self) -> bool:
        """Whether some layers may not have to be fetched, because a snapshotter makes them itself."""
        return any(target.remote for target in self._targets)

    def with_image(self, layers: Sequence[Entry], name: str, manifest: str) -> Sequence[Entry]:
        """Give layers the annotations by which a snapshotter that makes layers itself finds them."""
        if not self.may_leave_out:
            return layers
        return [
            msgspec.structs.replace(
                layer,
                annotations={
                    **(layer.annotations or {}),
                    f"{INHERITED}cri.image-ref": name,
                    f"{INHERITED}cri.layer-digest": layer.digest,
                    f"{INHERITED}cri.manifest-digest": manifest,
                    f"{INHERITED}cri.image-layers": _joined([one.digest for one in layers[number:]]),
                },
            )
            for number, layer in enumerate(layers)
        ]

    async def unpack(self, config: Entry, layers: Sequence[Entry], fetch: Fetch) -> None:
        """Fetch the layers of an image and unpack them, those that are unpacked already apart.

        Raises FailedPrecondition where layers and config do not belong together; what fetching and applying raise.
        Snapshots that were finished before stay; the others are removed.
        """
        decoded = documents.config(await read_blob(self._content, config.digest, MAX_DOCUMENT), config.digest)
        diff_ids = decoded.rootfs.diff_ids
        target = self._target(config, decoded)
        async with Fetching(layers, fetch) as fetching:
            if target is None:
                await fetching.all()
                return
            if len(layers) != len(diff_ids):
                raise FailedPrecondition(f"number of layers and diffIDs don't match: {len(layers)} != {len(diff_ids)}")
            chain = chain_ids(diff_ids)
            whole = [
                _Layer(entry, diff_id, chain[number], chain[number - 1] if number else "")
                for number, (entry, diff_id) in enumerate(zip(layers, diff_ids, strict=True))
            ]
            one = _OneImage(self, target, self._objects.snapshotter(target.snapshotter), fetching)
            await one.unpack(whole)
        await add_labels(self._content, config.digest, {snapshot_label(target.snapshotter): chain[-1] if chain else ""})

    def _target(self, config: Entry, decoded: documents.ImageConfig) -> Target | None:
        for target in self._targets:
            if target.config_type and target.config_type != config.media_type:
                continue
            if target.config_type in {"", *media.CONFIGS} and decoded.rootfs.type not in {"", "layers"}:
                continue
            if target.takes(decoded.platform()):
                return target
        self._log.debug("no unpacking for this platform", config=config.digest, platform=str(decoded.platform()))
        return None

    # --- one layer ----------------------------------------------------------------------------------------------------

    def lock(self, target: Target, layer: _Layer) -> AbstractAsyncContextManager[None]:
        """Hold a chain id; only one at a time makes it."""
        return self._locks.take((current_namespace(), target.snapshotter, layer.chain))

    async def prove(self, layer: _Layer) -> None:
        """Hold the blob of a layer whose snapshot is there against its diff id, unless the store says so already.

        Whoever names a diff id must have the bytes: else a config could ask for the files of another image.
        """
        if (await self._content.info(layer.entry.digest)).labels.get(UNCOMPRESSED_LABEL) == layer.diff_id:
            return
        await self._apply(self._targets[0].applier, replace(layer, mounts=()), "memory")
        await self.proven(layer)

    async def apply(self, target: Target, layer: _Layer) -> None:
        """Unpack a layer's blob onto its mounts."""
        async with self._slots():
            await self._apply(target.applier, layer, f"{target.snapshotter} as {layer.key!r}")
        self._tracker.extracted(layer.entry)

    async def _apply(self, applier: Applier, layer: _Layer, place: str) -> None:
        entry = layer.entry
        applied = await explained(
            applier.apply(
                entry.descriptor(),
                layer.mounts,
                sync_fs=False,
                progress=lambda done: self._tracker.extracting(entry, done),
            ),
            f"failed to extract layer ({entry.media_type} {entry.digest}) to {place}",
        )
        if applied.digest != layer.diff_id:
            raise FailedPrecondition(
                f'wrong diff id "{applied.digest}" calculated on extraction "{layer.diff_id}", desc "{entry.digest}"'
            )

    async def finish(self, snapshotter: Snapshotter, layer: _Layer, *, rebase: bool, fetched: bool = True) -> None:
        """Commit a layer's snapshot."""
        try:
            await snapshotter.commit(layer.chain, layer.key, layer.labels, parent=layer.parent if rebase else "")
        except AlreadyExists:
            await removed(snapshotter, layer.key)
        except MooredError as error:
            raise type(error)(f"failed to commit snapshot {layer.key}: {error.text}") from error
        if fetched:
            await self.proven(layer)

    async def proven(self, layer: _Layer) -> None:
        """Note with the blob of a layer what it is when it is unpacked."""
        await add_labels(self._content, layer.entry.digest, {UNCOMPRESSED_LABEL: layer.diff_id})


@dataclass(slots=True, eq=False)
class _Begun:
    """A layer that is prepared. shown: what it is unpacked onto; rebase: it gets its parent when it is committed."""

    layer: _Layer
    shown: Sequence[Mount]
    lock: AsyncExitStack
    rebase: bool
    applied: asyncio.Task[None] | None = None


class _Line:
    """The layers of an image between their beginning and their commit, in order; None ends them."""

    def __init__(self) -> None:
        self.places = asyncio.Semaphore(AHEAD)
        self.begun: asyncio.Queue[_Begun | None] = asyncio.Queue()
        self.open: list[_Begun] = []
        self.proven: list[_Layer] = []

    def add(self, one: _Begun, work: Coroutine[Any, Any, None]) -> None:
        """Begin to apply one."""
        one.applied = asyncio.create_task(work)
        self.open.append(one)
        self.begun.put_nowait(one)


class _OneImage:
    """The unpacking of one image with one snapshotter."""

    def __init__(self, unpacker: Unpacker, target: Target, snapshotter: Snapshotter, fetching: Fetching) -> None:
        self._unpacker = unpacker
        self._target = target
        self._snapshotter = snapshotter
        self._fetching = fetching

    async def unpack(self, layers: Sequence[_Layer]) -> None:
        """All of them, in the way that is quickest."""
        target = self._target
        if target.side_by_side:
            await self.side_by_side(layers)
        elif target.snapshotter == OVERLAYFS and not target.remote and REBASE in self._snapshotter.capabilities:
            await self.ahead(layers)
        else:
            await self.in_turn(layers)

    async def ahead(self, layers: Sequence[_Layer]) -> None:
        """Each on top of the one before, which need not be committed yet."""
        line = _Line()
        try:
            await together([self._begin_all(layers, line), self._commit_all(line)])
        except BaseException:
            await to_the_end(self._give_up(line))
            raise
        await together(self._unpacker.proven(layer) for layer in line.proven)

    async def _begin_all(self, layers: Sequence[_Layer], line: _Line) -> None:
        below: _Begun | None = None
        for number, layer in enumerate(layers):
            await line.places.acquire()
            async with AsyncExitStack() as lock:
                await lock.enter_async_context(self._unpacker.lock(self._target, layer))
                if not await self._prepare(layer, "" if below else layer.parent):
                    await line.begun.join()
                    await self._already_there(number, layer)
                    line.places.release()
                    below = None
                    continue
                try:
                    shown = layer.mounts if below is None else on_top(layer.mounts, below.shown)
                except MooredError:
                    await removed(self._snapshotter, layer.key)
                    raise
                one = _Begun(layer, shown, lock.pop_all(), rebase=below is not None)
            line.add(one, self._apply_on(number, one, below.applied if below else None))
            below = one
        line.begun.put_nowait(None)

    async def _apply_on(self, number: int, one: _Begun, below: asyncio.Task[None] | None) -> None:
        await self._fetching.of(number)
        if below is not None:
            await asyncio.shield(below)
        await self._unpacker.apply(self._target, replace(one.layer, mounts=one.shown))

    async def _commit_all(self, line: _Line) -> None:
        while (one := await line.begun.get()) is not None:
            assert one.applied is not None
            await one.applied
            await self._unpacker.finish(self._snapshotter, one.layer, rebase=one.rebase, fetched=False)
            line.proven.append(one.layer)
            line.open.remove(one)
            await one.lock.aclose()
            line.places.release()
            line.begun.task_done()

    async def _give_up(self, line: _Line) -> None:
        """End what was begun and will not be committed; what was is kept, with the labels that it would have got."""
        tasks = [one.applied for one in line.open if one.applied is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in line.open:
            await removed(self._snapshotter, one.layer.key)
            await one.lock.aclose()
        with suppress(MooredError):
            await together(self._unpacker.proven(layer) for layer in line.proven)

    async def in_turn(self, layers: Sequence[_Layer]) -> None:
        """Each on top of the one before."""
        for number, layer in enumerate(layers):
            async with self._unpacker.lock(self._target, layer):
                if not await self._prepare(layer, layer.parent):
                    await self._already_there(number, layer)
                    continue
                try:
                    staged = _is_staged(layer)
                    if not staged:
                        await self._fetching.of(number)
                        await self._unpacker.apply(self._target, layer)
                    await self._unpacker.finish(self._snapshotter, layer, rebase=False, fetched=not staged)
                except BaseException:
                    await to_the_end(removed(self._snapshotter, layer.key))
                    raise

    async def _already_there(self, number: int, layer: _Layer) -> None:
        if self._target.remote:
            return
        await self._fetching.of(number)
        await self._unpacker.prove(layer)

    async def side_by_side(self, layers: Sequence[_Layer]) -> None:
        """All at once, committed in turn."""
        waiting: list[tuple[_Layer, asyncio.Task[None] | None]] = []
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._undo, waiting)
            for number, layer in enumerate(layers):
                await stack.enter_async_context(self._unpacker.lock(self._target, layer))
                if not await self._prepare(layer, ""):
                    await self._already_there(number, layer)
                elif _is_staged(layer):
                    waiting.append((layer, None))
                else:
                    if number and self._target.snapshotter == OVERLAYFS:
                        layer.mounts = upper_only(layer.mounts)
                    waiting.append((layer, asyncio.create_task(self._apply(number, layer))))
            while waiting:
                layer, task = waiting[0]
                if task is not None:
                    await task
                await self._unpacker.finish(
                    self._snapshotter, layer, rebase=bool(layer.parent), fetched=task is not None
                )
                waiting.pop(0)

    async def _apply(self, number: int, layer: _Layer) -> None:
        await self._fetching.of(number)
        await self._unpacker.apply(self._target, layer)

    async def _undo(self, waiting: Sequence[tuple[_Layer, asyncio.Task[None] | None]]) -> None:
        """End what was begun and will not be committed."""
        tasks = [task for _, task in waiting if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for layer, _ in waiting:
            await to_the_end(removed(self._snapshotter, layer.key))

    async def _prepare(self, layer: _Layer, parent: str) -> bool:
        """Make the active snapshot of a layer; False if its chain id is there or the snapshotter made it."""
        if await self._exists(layer.chain):
            return False
        for _ in range(_TRIES):
            layer.key = f"extract-{_unique()} {layer.chain}"
            try:
                layer.mounts = await self._snapshotter.prepare(layer.key, parent, layer.labels)
            except AlreadyExists:
                if await self._exists(layer.chain):
                    return False
            except MooredError as error:
                raise type(error)(f'failed to prepare extraction snapshot "{layer.key}": {error.text}') from error
            except asyncio.CancelledError:
                await to_the_end(removed(self._snapshotter, layer.key))  # it may have been made
                raise
            else:
                return True
        raise Unknown(f"unable to prepare extraction snapshot: {layer.chain} neither exists nor can be made")

    async def _exists(self, chain: str) -> bool:
        try:
            await self._snapshotter.stat(chain)
        except NotFound:
            return False
        return True


async def removed(snapshotter: Snapshotter, key: str) -> None:
    """Remove an active snapshot; one that is gone, or cannot be removed now, is left to the collector."""
    with suppress(MooredError):
        await snapshotter.remove(key)


def _is_staged(layer: _Layer) -> bool:
    """Whether the snapshotter had the layer's files itself: then there is nothing to write into."""
    return bool(layer.mounts) and layer.mounts[-1].read_only


def _joined(digests: Sequence[str]) -> str:
    """Give as many digests as a label takes."""
    room = MAX_LABEL_BYTES - len(f"{INHERITED}cri.image-layers")
    text = ""
    for digest in digests:
        more = f"{text},{digest}" if text else digest
        if len(more) > room:
            break
        text = more
    return text


def _unique() -> str:
    return f"{time.time_ns() % 10**9}-{base64.urlsafe_b64encode(secrets.token_bytes(3)).decode()}"
