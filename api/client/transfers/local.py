"""Transfers that the client carries out itself, with the daemon's content, image and snapshot services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Final

from moored.api.client.connection import Calls
from moored.api.client.content import Content
from moored.api.client.images import Images
from moored.api.client.leases import under_lease
from moored.api.client.unpacking import unpack
from moored.api.client.wire import entry_of
from moored.api.transfer.choice import Choice
from moored.api.transfer.connecting import connected
from moored.api.transfer.fetch import Fetcher
from moored.api.transfer.labels import reference_labels
from moored.api.transfer.names import store_names
from moored.api.transfer.pushing import Pushing
from moored.api.transfer.tracker import Tracker
from moored.api.transfer.tree import Tree
from moored.kernel.errors import InvalidArgument, NotFound, Unimplemented, Unknown
from moored.kernel.imagespec import media
from moored.kernel.imagespec.archives.reading import read_archive
from moored.kernel.imagespec.archives.writing import Choice as Export
from moored.kernel.imagespec.archives.writing import write_archive
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import add_labels
from moored.kernel.imagespec.platforms import EVERYTHING, Matcher, Platform, any_of, default
from moored.kernel.imagespec.walk import Node, walk
from moored.kernel.ports.transfer import (
    ArchiveSink,
    ArchiveSource,
    Progress,
    Report,
    Repository,
    StoredImages,
)
from moored.kernel.turns import Turns

AT_ONCE: Final = 3
"""Objects that are moved side by side."""


class LocalTransfer:
    """The Transferrer for daemons without a transfer service. Layers are unpacked after all of them have come."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def transfer(self, source: object, destination: object, report: Report | None = None) -> None:
        """See Transferrer."""
        async with under_lease(self._calls) as calls:
            match source, destination:
                case Repository(), StoredImages():
                    await _pull(calls, source, destination, report)
                case StoredImages(), Repository():
                    await _push(calls, source, destination, report)
                case ArchiveSource(), StoredImages():
                    await _import(calls, source, destination, report)
                case StoredImages(), ArchiveSink():
                    await _export(calls, source, destination, report)
                case _:
                    ends = f"{type(source).__name__} to {type(destination).__name__}"
                    raise Unimplemented(f"transfers from {ends} are not known")


async def _pull(calls: Calls, source: Repository, wanted: StoredImages, report: Report | None) -> None:
    tell, tracker = _teller(report), Tracker(report, source.reference, "downloading")
    tell(Progress(event=f"Resolving from {source}"))
    async with connected(source) as registry:
        target = await registry.resolve()
        tell(Progress(event=f"Pulling from {source}"))
        fetcher = Fetcher(Content(calls), registry, tracker, slots=_places(), locks=Turns())
        await Tree(str(registry.reference), fetcher, Choice(wanted, _matcher(wanted.platforms)), tracker).visit(target)
    await _named(calls, wanted, target, tell)
    await _unpacked(calls, wanted, wanted.name, report)
    tell(Progress(event=f"Completed pull from {source}"))


async def _push(calls: Calls, source: StoredImages, destination: Repository, report: Report | None) -> None:
    image = await Images(calls).get(source.name)
    tell, tracker = _teller(report), Tracker(report, image.name, "uploading")
    tell(Progress(event=f"Pushing to {destination}"))
    async with connected(destination) as registry:
        pushing = Pushing(Content(calls), registry, tracker, _places())
        await pushing.push(entry_of(image.target), _matcher(source.platforms))
    tell(Progress(event=f"Completed push to {destination}"))


def _places() -> Callable[[], AbstractAsyncContextManager[object]]:
    """Give places for the objects that are moved side by side."""
    places = asyncio.Semaphore(AT_ONCE)
    return lambda: places


def _teller(report: Report | None) -> Report:
    return report or (lambda _news: None)


# --- archives ---------------------------------------------------------------------------------------------------------


async def _import(calls: Calls, source: ArchiveSource, wanted: StoredImages, report: Report | None) -> None:
    content, tell = Content(calls), _teller(report)
    tell(Progress(event="Importing"))
    async with aclosing(source.chunks()) as chunks:
        index = await read_archive(content, chunks, media_type=source.media_type, force_compress=source.force_compress)
    names: list[str] = []
    async with aclosing(_documents(content, index, _matcher(wanted.platforms))) as nodes:
        async for node in nodes:
            await add_labels(content, node.entry.digest, reference_labels(node.children))
            if node.entry.digest == index.digest:
                for child in node.children:
                    with suppress(NotFound):  # not every image of an archive has a name
                        names += await _named(calls, wanted, child, tell, from_annotations=True)
    if wanted.name:
        names += await _named(calls, wanted, index, tell)
    if not names:
        raise NotFound("no image name found in the archive, wanted a name or a prefix for its images")
    for name in names:
        await _unpacked(calls, wanted, name, report)
    tell(Progress(event="Completed import"))


async def _documents(content: Content, index: Entry, wanted: Matcher) -> AsyncGenerator[Node]:
    """Give the documents of an archive. Raises NotFound for a blob of a wanted image that it lacks."""

    async def read(entry: Entry) -> bytes:
        return await content.read(entry.digest, limit=MAX_DOCUMENT)

    found = False
    async with aclosing(walk(index, read, wanted, absent=True)) as nodes:
        async for node in nodes:
            if node.document is not None:
                yield node
                continue
            missing = not await content.exists(node.entry.digest)
            found = found or not missing
            if missing and not media.is_branch(node.entry.media_type) and media.is_layer(node.entry.media_type):
                raise NotFound(f"archive lacks layer {node.entry.digest} of its image")
    if not found:
        raise Unknown("archive has no image for the wanted platforms")


async def _export(calls: Calls, source: StoredImages, sink: ArchiveSink, report: Report | None) -> None:
    tell = _teller(report)
    tell(Progress(event="Exporting"))
    images = Images(calls)
    names = [name for name in (source.name, *(extra.name for extra in source.extra)) if name]
    if not names:
        raise InvalidArgument("no image is named, wanted one to export")
    choice = Export(
        wanted=any_of(sink.platforms or [default()]),
        all_platforms=sink.all_platforms,
        docker_manifest=not sink.skip_docker_manifest,
        nondistributable=not sink.skip_nondistributable,
    )
    await write_archive(Content(calls), [await images.get(name) for name in names], choice, sink.write)
    tell(Progress(event="Completed export"))


# --- names, snapshots -------------------------------------------------------------------------------------------------


async def _named(
    calls: Calls, wanted: StoredImages, target: Entry, tell: Report, *, from_annotations: bool = False
) -> list[str]:
    """Give an image its names, over those who have them. Raises NotFound if it is to have none."""
    images = await store_names(Images(calls), wanted, target, from_annotations=from_annotations)
    for image in images:
        tell(Progress(event="saved", name=image.name, descriptor=target.descriptor()))
    return [image.name for image in images]


async def _unpacked(calls: Calls, wanted: StoredImages, name: str, report: Report | None) -> None:
    for one in wanted.unpacks:
        await unpack(calls, name, one.snapshotter, platform=one.platform, progress=report)


def _matcher(platforms: Sequence[Platform]) -> Matcher:
    return any_of(platforms) if platforms else EVERYTHING
