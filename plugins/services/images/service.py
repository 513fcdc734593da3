"""The images service on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from moored.api.convert import Encodes, repeated, set_timestamp, to_ns
from moored.api.services.images.v1 import images_pb2 as pb
from moored.api.services.images.v1 import images_pb2_grpc as rpc
from moored.kernel.errors import FailedPrecondition, InvalidArgument
from moored.kernel.ports.images import Descriptor, Image, ImageStore
from moored.kernel.ports.objects import Scheduler
from moored.kernel.ports.services import GrpcRegistrar
from moored.kernel.records import ZERO_TIME

EMPTY = Empty()
IMAGES = pb.ListImagesResponse.IMAGES_FIELD_NUMBER


class ImagesService(rpc.ImagesServicer):
    """containerd.services.images.v1.Images. Without a collector, calls that ask to wait for one are refused."""

    def __init__(self, images: ImageStore, collector: Scheduler | None) -> None:
        self._images = images
        self._collector = collector

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_ImagesServicer_to_server(self, cast(Any, server))

    async def Get(self, request: pb.GetImageRequest, context: Any) -> pb.GetImageResponse:  # noqa: N802
        """One image. Errors: NotFound."""
        return pb.GetImageResponse(image=to_message(await self._images.get(request.name)))

    async def List(self, request: pb.ListImagesRequest, context: Any) -> Any:  # noqa: N802
        """Images that match, by name: the answer or its bytes. Errors: InvalidArgument."""
        try:
            if isinstance(self._images, Encodes):
                return await asyncio.to_thread(repeated, IMAGES, await self._images.encoded(request.filters))
            found = await self._images.list(request.filters)
        except InvalidArgument as error:
            raise _as_known(error) from error
        return await asyncio.to_thread(_listed, found)

    async def Create(self, request: pb.CreateImageRequest, context: Any) -> pb.CreateImageResponse:  # noqa: N802
        """Add an image. Errors: InvalidArgument, AlreadyExists, NotFound for the lease."""
        _check_given(request)
        created = await self._images.create(from_message(request.image), now=_epoch(request))
        return pb.CreateImageResponse(image=to_message(created))

    async def Update(self, request: pb.UpdateImageRequest, context: Any) -> pb.UpdateImageResponse:  # noqa: N802
        """Change an image. Errors: InvalidArgument, NotFound."""
        _check_given(request)
        image, paths = from_message(request.image), request.update_mask.paths
        updated = await self._images.update(image, paths, now=_epoch(request))
        return pb.UpdateImageResponse(image=to_message(updated))

    async def Delete(self, request: pb.DeleteImageRequest, context: Any) -> Empty:  # noqa: N802
        """Remove an image, and wait for a collection if asked to. Errors: NotFound; Unknown if that fails."""
        if request.sync and self._collector is None:
            raise FailedPrecondition("no garbage collector is running, only deletes without sync work")
        await self._images.delete(request.name, digest=request.target.digest)
        if request.sync and self._collector is not None:
            await self._collector.collect_now()
        return EMPTY


def to_message(image: Image) -> pb.Image:
    """The image on the wire."""
    message = pb.Image()
    fill(message, image)
    return message


def fill(message: pb.Image, image: Image) -> None:
    """Write the image into an empty message, which is a third of the work of making one from its parts."""
    message.name = image.name
    if image.labels:
        message.labels.update(image.labels)
    described, target = message.target, image.target
    described.media_type, described.digest, described.size = target.media_type, target.digest, target.size
    if target.annotations:
        described.annotations.update(target.annotations)
    set_timestamp(message.created_at, image.created_at)
    set_timestamp(message.updated_at, image.updated_at)


def from_message(message: pb.Image) -> Image:
    """The image of the wire, without its times, which are the store's to give."""
    target = message.target
    return Image(
        name=message.name,
        target=Descriptor(
            media_type=target.media_type,
            digest=target.digest,
            size=target.size,
            annotations=dict(target.annotations),
        ),
        labels=dict(message.labels),
    )


def _listed(images: Sequence[Image]) -> pb.ListImagesResponse:
    answer = pb.ListImagesResponse()
    add = answer.images.add
    for image in images:
        fill(add(), image)
    return answer


def _check_given(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> None:
    if not request.HasField("image"):
        raise InvalidArgument("request has no image")
    if not request.image.name:
        raise InvalidArgument("Image.Name required", bare=True)


def _epoch(request: pb.CreateImageRequest | pb.UpdateImageRequest) -> int | None:
    if not request.HasField("source_date_epoch"):
        return None
    given: Timestamp = request.source_date_epoch
    when = to_ns(given)
    return ZERO_TIME if when is None else when


def _as_known(error: InvalidArgument) -> InvalidArgument:
    """Give the error of a filter with its suffix twice, as clients know it from this service."""
    if not error.text.startswith("filters: "):
        return error
    return InvalidArgument(f"{error.text}: invalid argument: invalid argument", bare=True)
