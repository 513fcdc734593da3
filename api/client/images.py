"""Images: names for content, and what that content says.

image --target--> index --manifests--> manifest --config, layers--> blobs
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from moored.api.client.connection import Calls
from moored.api.client.content import Content
from moored.api.client.wire import descriptor_message, descriptor_of, entry_of, mask, nanoseconds
from moored.api.services.images.v1 import images_pb2 as pb
from moored.api.services.images.v1 import images_pb2_grpc
from moored.kernel.errors import AlreadyExists, NotFound
from moored.kernel.imagespec import media, platforms
from moored.kernel.imagespec.chain import chain_ids
from moored.kernel.imagespec.documents import MAX_DOCUMENT, Entry, ImageConfig, Manifest
from moored.kernel.imagespec.platforms import EVERYTHING, Matcher, Platform
from moored.kernel.imagespec.walk import best_manifest, image_config, walk
from moored.kernel.ports.images import Descriptor, Image


@dataclass(frozen=True, slots=True)
class Completeness:
    """Which objects of an image's platform are in the store; without a manifest both are empty and it is incomplete."""

    present: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.present) and not self.missing

    @property
    def size(self) -> int:
        """Bytes of what is present."""
        return sum(one.size for one in self.present)


class Images:
    """The images of the namespace. Errors, beside those of the connection, as `kernel.ports.images.ImageStore`.

    Where an image is asked for, its name or the record will do; a platform of None is the host's.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = images_pb2_grpc.ImagesStub(calls.channel)
        self._content = Content(calls)

    # --- names --------------------------------------------------------------------------------------------------------

    async def get(self, name: str) -> Image:
        """Give one. Raises NotFound."""
        return _image((await self._calls.unary(self._stub.Get, pb.GetImageRequest(name=name))).image)

    async def list(self, *filters: str) -> list[Image]:
        """Give those that match any filter (`name`, `target.digest`, `target.mediatype`, `labels`), by name."""
        answer = await self._calls.unary(self._stub.List, pb.ListImagesRequest(filters=filters))
        return [_image(one) for one in answer.images]

    async def create(self, image: Image) -> Image:
        """Add one. Raises AlreadyExists."""
        return _image((await self._calls.unary(self._stub.Create, pb.CreateImageRequest(image=_message(image)))).image)

    async def update(self, image: Image, paths: Sequence[str] = ()) -> Image:
        """Replace all of one, or what paths name (`target`, `labels`, `labels.KEY`). Raises NotFound."""
        request = pb.UpdateImageRequest(image=_message(image), update_mask=mask(paths))
        return _image((await self._calls.unary(self._stub.Update, request)).image)

    async def put(self, image: Image) -> Image:
        """Add one, or replace the one that has the name."""
        while True:
            try:
                return await self.create(image)
            except AlreadyExists:
                try:
                    return await self.update(image)
                except NotFound:
                    continue  # it was removed in between

    async def tag(self, name: str, new: str, *, force: bool = False) -> Image:
        """Give an image another name; force takes it from the image that has it. Raises NotFound, AlreadyExists."""
        image = replace(await self.get(name), name=new)
        return await (self.put(image) if force else self.create(image))

    async def label(self, name: str, labels: Mapping[str, str]) -> Image:
        """Set some labels, an empty value removes one, and give the result."""
        image = await self.get(name)
        if not labels:
            return image
        return await self.update(replace(image, labels=labels), [f"labels.{key}" for key in labels])

    async def delete(self, name: str, *, digest: str = "", sync: bool = False) -> None:
        """Remove a name, with a digest only while it points there; sync waits until its content is gone. NotFound."""
        request = pb.DeleteImageRequest(name=name, sync=sync)
        if digest:
            request.target.digest = digest
        await self._calls.unary(self._stub.Delete, request, slow=sync)

    # --- content ------------------------------------------------------------------------------------------------------

    async def manifest(self, image: str | Image, platform: Platform | None = None) -> tuple[Descriptor, Manifest]:
        """Give the manifest that suits the platform best. Raises NotFound, InvalidArgument for what is no image's."""
        target = entry_of((await self._record(image)).target)
        entry, found = await best_manifest(target, self._read, _wanted(platform))
        return entry.descriptor(), found

    async def config(self, image: str | Image, platform: Platform | None = None) -> ImageConfig:
        """Give the config of the platform's manifest. Raises as `manifest`."""
        _, manifest = await self.manifest(image, platform)
        return await image_config(manifest, self._read)

    async def chain_id(self, image: str | Image, platform: Platform | None = None) -> str:
        """Give the name of the snapshot that all layers make; empty without layers. Raises as `manifest`."""
        chain = chain_ids((await self.config(image, platform)).rootfs.diff_ids)
        return chain[-1] if chain else ""

    async def platforms(self, image: str | Image) -> builtins.list[Platform]:
        """Give the platforms whose manifests are in the store."""
        found = []
        async for entry, manifest in self._manifests(image):
            if entry.platform is not None:
                found.append(platforms.normalized(entry.platform.platform()))
            elif manifest is not None and manifest.config.media_type in media.CONFIGS:
                found.append(platforms.normalized((await image_config(manifest, self._read)).platform()))
        return list(dict.fromkeys(one for one in found if one.os != "unknown"))

    async def _manifests(self, image: str | Image) -> AsyncGenerator[tuple[Entry, Manifest | None]]:
        from moored.kernel.imagespec import documents

        target = entry_of((await self._record(image)).target)
        async with aclosing(walk(target, self._read, EVERYTHING, absent=True)) as nodes:
            async for node in nodes:
                if node.entry.media_type in media.MANIFESTS and node.document is not None:
                    yield node.entry, documents.manifest(node.document, node.entry.digest)

    async def check(self, image: str | Image, platform: Platform | None = None) -> Completeness:
        """Say which objects of the platform's image are in the store and which are not."""
        target = entry_of((await self._record(image)).target)
        present: dict[str, Descriptor] = {}
        missing: dict[str, Descriptor] = {}
        async with aclosing(walk(target, self._read, _wanted(platform), limit=1, absent=True)) as nodes:
            async for node in nodes:
                place = present if await self._content.exists(node.entry.digest) else missing
                place[node.entry.digest] = node.entry.descriptor()
        return Completeness(tuple(present.values()), tuple(missing.values()))

    async def size(self, image: str | Image, platform: Platform | None = None) -> int:
        """Give the bytes of the platform's objects that are in the store."""
        return (await self.check(image, platform)).size

    async def _record(self, image: str | Image) -> Image:
        return await self.get(image) if isinstance(image, str) else image

    async def _read(self, entry: Entry) -> bytes:
        return await self._content.read(entry.digest, limit=MAX_DOCUMENT)


def _wanted(platform: Platform | None) -> Matcher:
    return platforms.runnable_on(platform or platforms.default())


def _image(message: pb.Image) -> Image:
    return Image(
        name=message.name,
        target=descriptor_of(message.target),
        labels=dict(message.labels),
        created_at=nanoseconds(message.created_at),
        updated_at=nanoseconds(message.updated_at),
    )


def _message(image: Image) -> pb.Image:
    return pb.Image(name=image.name, labels=image.labels, target=descriptor_message(image.target))
