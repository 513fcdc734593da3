"""Under which names an image is stored (contracts/semantics.md 3.10, ImageStore)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Protocol

from moored.kernel.errors import AlreadyExists, NotFound
from moored.kernel.imagespec import media
from moored.kernel.imagespec.documents import Entry
from moored.kernel.ports.images import Image
from moored.kernel.ports.transfer import ExtraName, StoredImages

_PARENT_LABEL = "containerd.io/gc.bref.image"
_EXPIRE_LABEL = "containerd.io/gc.expire"


class Names(Protocol):
    """Where images are stored under names: `kernel.ports.images.ImageStore`, or the client library's images."""

    async def create(self, image: Image) -> Image:
        """See ImageStore."""

    async def update(self, image: Image) -> Image:
        """See ImageStore."""


async def store_names(
    images: Names, wanted: StoredImages, target: Entry, *, from_annotations: bool = False
) -> list[Image]:
    """Give an image its names, over those who have them; the images as stored.

    from_annotations   it is one of an archive, whose names its annotations tell
    Raises NotFound `no image name found`.
    """
    names = _annotated(wanted, target) if from_annotations else _plain(wanted, target)
    if not names:
        raise NotFound("no image name found")
    descriptor = target.descriptor()
    return [await _put(images, Image(name=name, target=descriptor, labels=labels)) for name, labels in names]


_Named = list[tuple[str, Mapping[str, str]]]


def _plain(wanted: StoredImages, target: Entry) -> _Named:
    found: _Named = [(wanted.name, wanted.labels)] if wanted.name else []
    for extra in wanted.extra:
        if extra.add_digest:
            found.append((f"{extra.name}@{target.digest}", _extra_labels(wanted)))
        elif not extra.is_prefix:
            found.append((extra.name, _extra_labels(wanted)))
    return found


def _annotated(wanted: StoredImages, target: Entry) -> _Named:
    found: _Named = []
    for extra in wanted.extra:
        if not extra.is_prefix:
            continue
        name = _annotated_name(target.annotations or {}, lambda text, extra=extra: _under(extra, text))  # type: ignore[misc]
        if name:
            found.append((name, _extra_labels(wanted)))
        if extra.add_digest and not (name and extra.skip_named_digest):
            found.append((f"{extra.name}@{target.digest}", _extra_labels(wanted)))
    return found


def _extra_labels(wanted: StoredImages) -> Mapping[str, str]:
    """Names beside the image's own go with it: they have expired, and it holds them."""
    if not wanted.name:
        return wanted.labels
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**wanted.labels, _PARENT_LABEL: wanted.name, _EXPIRE_LABEL: now}


def _annotated_name(annotations: Mapping[str, str], under: Callable[[str], str]) -> str:
    if whole := annotations.get(media.IMAGE_NAME, ""):
        return whole if under(whole) == whole else ""
    tag = annotations.get(media.REF_NAME, "")
    return under(tag) if tag else ""


def _under(extra: ExtraName, text: str) -> str:
    """Give the name that a text stands for below a prefix, empty where it is a name of something else."""
    if not extra.name:
        return ""
    if not set(text) & set("/:@"):
        return f"{extra.name}:{text}"
    inside = text.startswith(extra.name) and text[len(extra.name) :][:1] in {"", "/", ":", "@"}
    return text if inside or extra.allow_overwrite else ""


async def _put(images: Names, image: Image) -> Image:
    while True:
        try:
            return await images.create(image)
        except AlreadyExists:
            try:
                return await images.update(image)
            except NotFound:
                continue  # it was removed in between
