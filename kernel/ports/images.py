"""Images: names for descriptors, one set of them a namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a name points to (OCI image spec, descriptor); size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A name and its target. Times are nanoseconds since 1970, UTC, given by the store."""

    name: str
    target: Descriptor
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ImageStore(Protocol):
    """The images of the current namespace (`kernel.namespaces`).

    Errors: NotFound, AlreadyExists, InvalidArgument (missing name, target, size or media type; labels; filters; update
    paths), FailedPrecondition without a namespace. After an error nothing has changed.
    Events: `/images/create`, `/images/update`, `/images/delete`, after the change is durable.
    Concurrency: any calls may overlap. Cancellation: a cancelled call did all of its work or none of it.
    """

    async def get(self, name: str) -> Image:
        """One image."""

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """Those that match any filter (fields name, target.digest, target.mediatype, labels, annotations), by name."""

    async def create(self, image: Image, *, now: int | None = None) -> Image:
        """Add one; `now` (ns) overrides both times (source date epoch)."""

    async def update(self, image: Image, paths: Sequence[str] = (), *, now: int | None = None) -> Image:
        """Replace all of it, or what paths name (contracts/semantics.md 1.3); created_at is kept."""

    async def delete(self, name: str, *, digest: str = "") -> None:
        """Remove one; with digest only while it points there (NotFound `image "N" has target A, not B`)."""
