"""Values that several services share, to and from their messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.any_pb2 import Any
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from moored.api.convert import to_ns
from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.api.types.platform_pb2 import Platform as PlatformMessage
from moored.kernel.imagespec.documents import Entry
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.ports.containers import TypedBytes
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount


def descriptor_message(descriptor: Descriptor) -> DescriptorMessage:
    """Give a descriptor as the wire has it."""
    return DescriptorMessage(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor_of(message: DescriptorMessage) -> Descriptor:
    """Give the descriptor that a message stands for."""
    annotations = dict(message.annotations)
    return Descriptor(media_type=message.media_type, digest=message.digest, size=message.size, annotations=annotations)


def entry_of(descriptor: Descriptor) -> Entry:
    """Give a descriptor as documents have it, to walk from there."""
    return Entry(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations) or None,
    )


def mount_messages(mounts: Iterable[Mount]) -> list[MountMessage]:
    """Give mounts as the wire has them."""
    return [MountMessage(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


def mounts_of(messages: Iterable[MountMessage]) -> list[Mount]:
    """Give the mounts that messages stand for."""
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages]


def platform_message(platform: Platform) -> PlatformMessage:
    """Give a platform as the wire has it."""
    return PlatformMessage(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def platform_of(message: PlatformMessage) -> Platform:
    """Give the platform that a message stands for."""
    features = tuple(message.os_features)
    return Platform(message.os, message.architecture, message.variant, message.os_version, features)


def any_message(typed: TypedBytes | None) -> Any | None:
    """Give bytes of a type as the wire has them."""
    return None if typed is None else Any(type_url=typed.type_url, value=typed.value)


def typed_bytes(message: Any) -> TypedBytes:
    """Give what an Any holds."""
    return TypedBytes(message.type_url, message.value)


def mask(paths: Sequence[str]) -> FieldMask | None:
    """Give a field mask, None for none."""
    return FieldMask(paths=paths) if paths else None


def nanoseconds(stamp: Timestamp) -> int:
    """Give nanoseconds since 1970, 0 for no time."""
    return to_ns(stamp) or 0
