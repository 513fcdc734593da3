"""Pushes an image of the store, and tells of it."""

from __future__ import annotations

from moored.api.transfer.pushing import Pushing
from moored.api.transfer.tracker import Tracker
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.platforms import EVERYTHING, exactly
from moored.kernel.ports.transfer import Progress, Report, Repository, StoredImages
from moored.plugins.transfer.registries import opened
from moored.plugins.transfer.settings import Shared


async def push(shared: Shared, source: StoredImages, destination: Repository, report: Report | None) -> None:
    """Push the image that `source` names."""
    tell: Report = report or (lambda _news: None)
    image = await shared.objects.images.get(source.name)
    tell(Progress(event=f"Pushing to {destination}"))
    tell(Progress(event="pushing content", name=image.name, descriptor=image.target))
    target = Entry(
        media_type=image.target.media_type,
        digest=image.target.digest,
        size=image.target.size,
        annotations=dict(image.target.annotations),
    )
    async with opened(destination, shared) as registry:
        tracker = Tracker(report, image.name, "uploading")
        wanted = exactly(source.platforms) if source.platforms else EVERYTHING
        await Pushing(shared.objects.content, registry, tracker, shared.uploads).push(target, wanted)
    tell(Progress(event="pushed content", name=image.name, descriptor=image.target))
    tell(Progress(event=f"Completed push to {destination}", descriptor=image.target))
