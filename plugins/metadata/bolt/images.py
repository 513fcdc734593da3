"""Images of a namespace: records that name a target, kept in `v1/NAMESPACE/images`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from moored.kernel.errors import AlreadyExists, DataLoss, InvalidArgument, NotFound
from moored.kernel.filters import Filter, Path, compile_filters, quote
from moored.kernel.namespaces import current_lease, current_namespace, normalise_labels, validate_labels
from moored.kernel.payloads import ImageCreate, ImageDelete, ImageUpdate
from moored.kernel.ports.content import digest_fault
from moored.kernel.ports.events import Exchange
from moored.kernel.ports.images import Descriptor, Image
from moored.kernel.ports.metadata import Bucket, Database, Tree
from moored.kernel.records import (
    LABELS,
    below_of,
    decode_text,
    decode_zigzag,
    encode_text,
    encode_zigzag,
    put_times,
    text_of,
    texts_of,
    times_of,
    value_of,
    write_labels,
    write_map,
)
from moored.plugins.metadata.bolt import schema, wire
from moored.plugins.metadata.bolt.leases import add_to_lease, remove_from_lease
from moored.plugins.metadata.bolt.writes import Writes, look

EXPIRE: Final = "containerd.io/gc.expire"
"""Label: when the image may go (RFC 3339); only images that carry it need a lease to stay."""

_TARGET: Final = b"target"
_DIGEST: Final = b"digest"
_MEDIA_TYPE: Final = b"mediatype"
_SIZE: Final = b"size"
_ANNOTATIONS: Final = b"annotations"


class NamespacedImages:
    """`ImageStore` over the object database."""

    def __init__(self, *, database: Database, exchange: Exchange | None, changed: Callable[[bool], None]) -> None:
        self._database = database
        self._writes = Writes(database=database, exchange=exchange, changed=changed)

    async def get(self, name: str) -> Image:
        """See the port."""
        namespace = current_namespace()
        with self._database.view() as root:
            return read_image(name, _record(_images(root, namespace), name))

    async def encoded(self, filters: Sequence[str] = ()) -> list[bytes]:
        """Do as `list`, each as a message of containerd's API."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        return await look(self._database, lambda root: _encoded(root, namespace, wanted))

    async def list(self, filters: Sequence[str] = ()) -> list[Image]:
        """See the port."""
        namespace = current_namespace()
        wanted = compile_filters(filters)
        return await look(self._database, lambda root: _matching(root, namespace, wanted))

    async def create(self, image: Image, *, now: int | None = None) -> Image:
        """See the port."""
        namespace, lease = current_namespace(), current_lease()
        created = _cleaned(image)
        _validate(image)

        def change(root: Bucket) -> Image:
            images = schema.made_object_bucket(root, namespace, schema.IMAGES)
            _lease(root, namespace, lease, created)
            try:
                record = images.create_bucket(encode_text(image.name))
            except AlreadyExists:
                raise AlreadyExists(f"image {quote(image.name)}") from None
            when = time.time_ns() if now is None else now
            return _write(record, replace(created, created_at=when, updated_at=when))

        return await self._writes.run(
            change, lambda made: ("/images/create", ImageCreate(name=made.name, labels=made.labels), namespace)
        )

    async def update(self, image: Image, paths: Sequence[str] = (), *, now: int | None = None) -> Image:
        """See the port."""
        namespace, lease = current_namespace(), current_lease()
        if not image.name:
            raise InvalidArgument("image name is required for update")

        def change(root: Bucket) -> Image:
            images = _images(root, namespace)
            record = _bucket(images, image.name)
            stored = read_image(image.name, record.tree())
            asked = masked(stored, image, paths) if paths else image
            _validate(asked)
            updated = _cleaned(asked)
            _lease(root, namespace, lease, updated)
            when = time.time_ns() if now is None else now
            return _write(record, replace(updated, created_at=stored.created_at, updated_at=when))

        return await self._writes.run(
            change, lambda made: ("/images/update", ImageUpdate(name=made.name, labels=made.labels), namespace)
        )

    async def delete(self, name: str, *, digest: str = "") -> None:
        """See the port."""
        namespace, lease = current_namespace(), current_lease()

        def change(root: Bucket) -> None:
            images = _images(root, namespace)
            record = _record(images, name)
            if digest and (found := read_image(name, record).target.digest) != digest:
                raise NotFound(f"image {quote(name)} has target {found}, not {digest}")
            remove_from_lease(root, namespace, lease, "images", name)
            assert images is not None
            images.delete_bucket(encode_text(name))

        await self._writes.run(change, lambda _: ("/images/delete", ImageDelete(name=name), namespace), deletes=True)


class ImageFields:
    """The image in a record as filters see it; the record is read when more than the name is asked for."""

    __slots__ = ("_image", "_name", "_record")

    def __init__(self, name: str, record: Tree) -> None:
        self._name = name
        self._record = record
        self._image: Image | None = None

    @property
    def image(self) -> Image:
        """The whole of it. Raises DataLoss."""
        if self._image is None:
            self._image = read_image(self._name, self._record)
        return self._image

    def field(self, path: Path) -> tuple[str, bool]:
        """See `kernel.filters.Adaptor`."""
        match path[0]:
            case "name":
                value = self._name
            case "target" if path[1:2] == ("digest",):
                value = self.image.target.digest
            case "target" if path[1:2] == ("mediatype",):
                value = self.image.target.media_type
            case "labels" | "annotations" as which:
                found = below_of(self._record, LABELS if which == "labels" else _ANNOTATIONS) or {}
                key = encode_text(".".join(path[1:]))
                return text_of(found, key), key in found
            case _:
                value = ""
        return value, bool(value)


def read_image(name: str, record: Tree) -> Image:
    """Read the image in a record. Raises DataLoss."""
    target = below_of(record, _TARGET)
    if target is None:
        raise DataLoss(f"image {quote(name)} has no target")
    created, updated = times_of(record)
    size = value_of(target, _SIZE)
    return Image(
        name=name,
        target=Descriptor(
            media_type=text_of(target, _MEDIA_TYPE),
            digest=text_of(target, _DIGEST),
            size=decode_zigzag(size) if size else 0,
            annotations=texts_of(record, _ANNOTATIONS),
        ),
        labels=texts_of(record, LABELS),
        created_at=created,
        updated_at=updated,
    )


def masked(stored: Image, given: Image, paths: Sequence[str]) -> Image:
    """Give the stored image with what the paths name taken from the given one, path after path.

    Raises InvalidArgument `cannot update "P" field on image "N"`.
    """
    image = stored
    for path in paths:
        start, dot, key = path.partition(".")
        match start, dot:
            case "labels", ".":
                image = replace(image, labels={**image.labels, key: given.labels.get(key, "")})
            case "annotations", ".":
                annotations = {**image.target.annotations, key: given.target.annotations.get(key, "")}
                image = replace(image, target=replace(image.target, annotations=annotations))
            case "labels", "":
                image = replace(image, labels=given.labels)
            case "annotations", "":
                image = replace(image, target=replace(image.target, annotations=given.target.annotations))
            case "target", "":
                image = replace(image, target=given.target)
            case _:
                raise InvalidArgument(f"cannot update {quote(path)} field on image {quote(stored.name)}")
    return image


def _images(root: Bucket, namespace: str) -> Bucket | None:
    return schema.object_bucket(root, namespace, schema.IMAGES)


def _bucket(images: Bucket | None, name: str) -> Bucket:
    record = None if images is None else images.bucket(encode_text(name))
    if record is None:
        raise NotFound(f"image {quote(name)}")
    return record


def _record(images: Bucket | None, name: str) -> Tree:
    return _bucket(images, name).tree()


def _matching(root: Bucket, namespace: str, wanted: Filter) -> list[Image]:
    records = schema.trees(_images(root, namespace))
    if wanted.matches_all:
        return list(itertools.starmap(read_image, records))
    return [fields.image for fields in itertools.starmap(ImageFields, records) if wanted.match(fields)]


def _encoded(root: Bucket, namespace: str, wanted: Filter) -> list[bytes]:
    images = _images(root, namespace)
    if images is None:
        return []
    if wanted.matches_all:
        return list(itertools.starmap(wire.image, images.trees()))
    return [
        wire.image(name, record)
        for name, record in images.trees()
        if wanted.match(ImageFields(decode_text(name), record))
    ]


def _lease(root: Bucket, namespace: str, lease: str, image: Image) -> None:
    if EXPIRE in image.labels:
        add_to_lease(root, namespace, lease, "images", image.name)


def _cleaned(image: Image) -> Image:
    """Give the image without the empty values, which are never stored."""
    target = image.target
    if "" not in image.labels.values() and "" not in target.annotations.values():
        return image
    target = replace(target, annotations=normalise_labels(target.annotations))
    return replace(image, labels=normalise_labels(image.labels), target=target)


def _validate(image: Image) -> None:
    if not image.name:
        raise InvalidArgument("image name must not be empty")
    validate_labels(image.labels, "image.Labels")
    target = image.target
    if fault := digest_fault(target.digest):
        raise InvalidArgument(f"target.Digest {quote(target.digest)} invalid: {fault}")
    if target.size <= 0:
        raise InvalidArgument("target.Size must be greater than zero")
    if not target.media_type:
        raise InvalidArgument("target.MediaType must be set")


def _write(record: Bucket, image: Image) -> Image:
    put_times(record, image.created_at, image.updated_at)
    write_labels(record, image.labels)
    write_map(record, _ANNOTATIONS, image.target.annotations)
    target = record.create_bucket_if_missing(_TARGET)
    target.put(_DIGEST, encode_text(image.target.digest))
    target.put(_MEDIA_TYPE, encode_text(image.target.media_type))
    target.put(_SIZE, encode_zigzag(image.target.size))
    return image
