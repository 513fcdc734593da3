"""Transfers that the client carries out itself, with the daemon's content, image and snapshot services."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from moored.api.client.connection import Calls
from moored.api.client.content import Content
from moored.api.client.images import Images
from moored.api.client.labels import child_labels
from moored.api.client.leases import under_lease
from moored.api.client.transfers.pulling import Puller
from moored.api.client.transfers.pushing import Pusher
from moored.api.client.transfers.registries import opened
from moored.api.client.transfers.tracking import Tracker
from moored.api.client.unpacking import unpack
from moored.api.client.wire import entry_of
from moored.kernel.errors import InvalidArgument, NotFound, Unimplemented, Unknown
from moored.kernel.imagespec import media
from moored.kernel.imagespec.archives.reading import read_archive
from moored.kernel.imagespec.archives.writing import Choice, write_archive
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry
from moored.kernel.imagespec.ingests import add_labels
from moored.kernel.imagespec.platforms import EVERYTHING, Matcher, Platform, any_of, default
from moored.kernel.imagespec.walk import Node, walk
from moored.kernel.ports.images import Image
from moored.kernel.ports.transfer import (
    ArchiveSink,
    ArchiveSource,
    ExtraName,
    Report,
    Repository,
    StoredImages,
)


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
    tracker = Tracker(report, source.reference, "downloading")
    tracker.say(f"Resolving from {source}")
    async with opened(source) as registry:
        target = await registry.resolve()
        tracker.say(f"Pulling from {source}")
        matcher = _matcher(wanted.platforms)
        await Puller(Content(calls), registry, tracker, matcher, wanted.manifest_limit).fetch(target)
    await _named(calls, wanted, target, [wanted.name], tracker)
    await _unpacked(calls, wanted, wanted.name, report)
    tracker.say(f"Completed pull from {source}")


async def _push(calls: Calls, source: StoredImages, destination: Repository, report: Report | None) -> None:
    image = await Images(calls).get(source.name)
    tracker = Tracker(report, image.name, "uploading")
    tracker.say(f"Pushing to {destination}")
    async with opened(destination) as registry:
        await Pusher(Content(calls), registry, tracker).push(entry_of(image.target), _matcher(source.platforms))
    tracker.say(f"Completed push to {destination}")


# --- archives ---------------------------------------------------------------------------------------------------------


async def _import(calls: Calls, source: ArchiveSource, wanted: StoredImages, report: Report | None) -> None:
    content, tracker = Content(calls), Tracker(report, wanted.name, "importing")
    tracker.say("Importing")
    async with aclosing(source.chunks()) as chunks:
        index = await read_archive(content, chunks, media_type=source.media_type, force_compress=source.force_compress)
    names: list[str] = []
    async with aclosing(_documents(content, index, _matcher(wanted.platforms))) as nodes:
        async for node in nodes:
            await add_labels(content, node.entry.digest, child_labels(node.children))
            if node.entry.digest == index.digest:
                for child in node.children:
                    names += await _named(calls, wanted, child, _names_in(child, wanted.extra), tracker)
    if wanted.name:
        names += await _named(calls, wanted, index, [wanted.name], tracker)
    if not names:
        raise NotFound("no image name found in the archive, wanted a name or a prefix for its images")
    for name in names:
        await _unpacked(calls, wanted, name, report)
    tracker.say("Completed import")


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


def _names_in(entry: Entry, extra: Sequence[ExtraName]) -> list[str]:
    """Give the names of an archive's image: those of its annotations that stand under a prefix, or any without one."""
    annotations = entry.annotations or {}
    whole, tag = annotations.get(media.IMAGE_NAME, ""), annotations.get(media.REF_NAME, "")
    found = []
    for one in extra:
        if not one.is_prefix:
            continue
        name = whole or tag
        if name and not set(name) & set("/:@"):
            name = f"{one.name}:{name}" if one.name else ""
        inside = name.startswith(one.name) and name[len(one.name) :][:1] in {"", "/", ":", "@"}
        if name and (one.allow_overwrite or (one.name and inside)):
            found.append(name)
        if one.add_digest and not (found and one.skip_named_digest):
            found.append(f"{one.name}@{entry.digest}")
    return found


async def _export(calls: Calls, source: StoredImages, sink: ArchiveSink, report: Report | None) -> None:
    tracker = Tracker(report, source.name, "exporting")
    tracker.say("Exporting")
    images = Images(calls)
    names = [name for name in (source.name, *(extra.name for extra in source.extra)) if name]
    if not names:
        raise InvalidArgument("no image is named, wanted one to export")
    choice = Choice(
        wanted=any_of(sink.platforms or [default()]),
        all_platforms=sink.all_platforms,
        docker_manifest=not sink.skip_docker_manifest,
        nondistributable=not sink.skip_nondistributable,
    )
    await write_archive(Content(calls), [await images.get(name) for name in names], choice, sink.write)
    tracker.say("Completed export")


# --- names, snapshots -------------------------------------------------------------------------------------------------


async def _named(
    calls: Calls, wanted: StoredImages, target: Entry, names: Sequence[str], tracker: Tracker
) -> Sequence[str]:
    """Give an image its names, over those who have them."""
    for name in names:
        await Images(calls).put(Image(name=name, target=target.descriptor(), labels=wanted.labels))
        tracker.saved(name, target)
    return names


async def _unpacked(calls: Calls, wanted: StoredImages, name: str, report: Report | None) -> None:
    for one in wanted.unpacks:
        await unpack(calls, name, one.snapshotter, platform=one.platform, progress=report)


def _matcher(platforms: Sequence[Platform]) -> Matcher:
    return any_of(platforms) if platforms else EVERYTHING
