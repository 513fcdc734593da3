"""Sources and destinations of transfers, made of the messages that name them, their streams opened.

Type URLs are taken bare, as Go writes them, or behind `type.googleapis.com/`. Source: semantics 3.10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message

from moored.api.types import platform_pb2
from moored.api.types.transfer import imagestore_pb2, importexport_pb2, registry_pb2
from moored.kernel.errors import DeadlineExceeded, InvalidArgument, Unavailable
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.payloads import Packed
from moored.kernel.ports.streaming import Stream, StreamManager
from moored.kernel.ports.transfer import (
    ArchiveSink,
    ArchiveSource,
    ExtraName,
    Repository,
    Secret,
    StoredImages,
    Unpack,
)
from moored.plugins.services.transfer.bytestreams import Sender, packed, received

SECRET_SECONDS: Final = 120.0
"""How long a client may take to say who it is; a person may have to type it."""
MAX_WISHES: Final = 1024
"""Platforms, names or unpacks that one transfer may ask for."""

M = TypeVar("M", bound=Message)


class Ends:
    """Opens the ends of one transfer; `stack` closes their streams."""

    def __init__(self, streams: StreamManager, stack: AsyncExitStack) -> None:
        self._streams = streams
        self._stack = stack

    def open(self, message: AnyMessage) -> object:
        """Give an end, the message's type for one that is not known. Raises NotFound for a stream that is not there."""
        name = message.type_url.rpartition("/")[2]
        opener = _OPENERS.get(name)
        return opener(self, message) if opener is not None else name

    def _repository(self, message: AnyMessage) -> Repository:
        decoded = parsed(registry_pb2.OCIRegistry(), message)
        resolver = decoded.resolver
        ask = None
        if resolver.auth_stream:
            ask = _Secrets(self._stream(resolver.auth_stream), decoded.reference)
        logs = None
        if resolver.logs_stream:
            sender = Sender(self._stream(resolver.logs_stream))
            self._stack.push_async_callback(sender.close)
            logs = sender.write
        return Repository(
            reference=decoded.reference,
            headers=dict(resolver.headers),
            secret=ask,
            hosts_folder=resolver.host_dir,
            default_scheme=resolver.default_scheme,
            dump=resolver.http_debug in {registry_pb2.DEBUG, registry_pb2.BOTH},
            trace=resolver.http_debug in {registry_pb2.TRACE, registry_pb2.BOTH},
            logs=logs,
        )

    def _stored(self, message: AnyMessage) -> StoredImages:
        decoded = parsed(imagestore_pb2.ImageStore(), message)
        _refuse_many(decoded.platforms, decoded.extra_references, decoded.unpacks)
        return StoredImages(
            name=decoded.name,
            labels=dict(decoded.labels),
            platforms=_platforms(decoded.platforms),
            all_metadata=decoded.all_metadata,
            manifest_limit=decoded.manifest_limit,
            extra=tuple(
                ExtraName(
                    name=one.name,
                    is_prefix=one.is_prefix,
                    allow_overwrite=one.allow_overwrite,
                    add_digest=one.add_digest,
                    skip_named_digest=one.skip_named_digest,
                )
                for one in decoded.extra_references
            ),
            unpacks=tuple(
                Unpack(platform=_platform(one.platform), snapshotter=one.snapshotter) for one in decoded.unpacks
            ),
        )

    def _source(self, message: AnyMessage) -> ArchiveSource:
        decoded = parsed(importexport_pb2.ImageImportStream(), message)
        stream = self._stream(decoded.stream)
        return ArchiveSource(
            chunks=lambda: received(stream), media_type=decoded.media_type, force_compress=decoded.force_compress
        )

    def _sink(self, message: AnyMessage) -> ArchiveSink:
        decoded = parsed(importexport_pb2.ImageExportStream(), message)
        _refuse_many(decoded.platforms)
        sender = Sender(self._stream(decoded.stream))
        self._stack.push_async_callback(sender.close)
        return ArchiveSink(
            write=sender.write,
            media_type=decoded.media_type,
            platforms=_platforms(decoded.platforms),
            all_platforms=decoded.all_platforms,
            skip_docker_manifest=decoded.skip_compatibility_manifest,
            skip_nondistributable=decoded.skip_non_distributable,
        )

    def _stream(self, name: str) -> Stream:
        stream = self._streams.get(name)
        self._stack.push_async_callback(stream.close)
        return stream


_OPENERS: Final[dict[str, Callable[[Ends, AnyMessage], object]]] = {
    registry_pb2.OCIRegistry.DESCRIPTOR.full_name: Ends._repository,
    imagestore_pb2.ImageStore.DESCRIPTOR.full_name: Ends._stored,
    importexport_pb2.ImageImportStream.DESCRIPTOR.full_name: Ends._source,
    importexport_pb2.ImageExportStream.DESCRIPTOR.full_name: Ends._sink,
}


class _Secrets:
    """Asks a client who it is, one host at a time."""

    def __init__(self, stream: Stream, reference: str) -> None:
        self._stream = stream
        self._reference = reference
        self._turn = asyncio.Lock()

    async def __call__(self, host: str) -> Secret | None:
        """See AskSecret. Raises Unavailable when the client has left, DeadlineExceeded when it does not answer."""
        async with self._turn:
            await self._stream.send(packed(registry_pb2.AuthRequest(host=host, reference=self._reference)))
            return _secret(await _in_time(self._stream.receive()))


async def _in_time(answer: Awaitable[Packed | None]) -> Packed:
    try:
        async with asyncio.timeout(SECRET_SECONDS):
            found = await answer
    except TimeoutError:
        raise DeadlineExceeded(f"the client gave no credentials within {SECRET_SECONDS:g}s") from None
    if found is None:
        raise Unavailable("the client has closed the stream for credentials")
    return found


def _secret(message: Packed) -> Secret | None:
    raw = AnyMessage(type_url=message.type_url, value=message.value)
    answer = parsed(registry_pb2.AuthResponse(), raw)
    match answer.authType:
        case registry_pb2.CREDENTIALS:
            return Secret(answer.username, answer.secret)
        case registry_pb2.REFRESH:
            return Secret("", answer.secret) if answer.secret else None
        case registry_pb2.HEADER:
            return Secret(header=answer.secret) if answer.secret else None
        case _:
            return None


def parsed(target: M, message: AnyMessage) -> M:
    """Fill a message from an Any. Raises InvalidArgument for bytes or a type that are not its own."""
    if message.type_url.rpartition("/")[2] != target.DESCRIPTOR.full_name:
        raise InvalidArgument(f"message of type {message.type_url!r}, wanted {target.DESCRIPTOR.full_name}")
    try:
        target.ParseFromString(message.value)
    except DecodeError as error:
        raise InvalidArgument(f"{target.DESCRIPTOR.full_name} cannot be read: {error}") from error
    return target


def _refuse_many(*lists: Any) -> None:
    if max(map(len, lists)) > MAX_WISHES:
        raise InvalidArgument(f"more than {MAX_WISHES} platforms, names or unpacks in one transfer")


def _platforms(messages: Iterable[platform_pb2.Platform]) -> tuple[Platform, ...]:
    return tuple(map(_platform, messages))


def _platform(message: platform_pb2.Platform) -> Platform:
    return Platform(message.os, message.architecture, message.variant, message.os_version, tuple(message.os_features))
