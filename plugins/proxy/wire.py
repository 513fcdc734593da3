"""Mounts and descriptors as containerd's services have them, to and from the ports' values.

The stubs are imported by the first call, not with this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount

if TYPE_CHECKING:
    from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage
    from moored.api.types.mount_pb2 import Mount as MountMessage


def mount_messages(mounts: Iterable[Mount]) -> list[MountMessage]:
    """Give mounts as the wire has them."""
    from moored.api.types.mount_pb2 import Mount as MountMessage

    return [MountMessage(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


def mounts_of(messages: Iterable[MountMessage]) -> list[Mount]:
    """Give the mounts that messages stand for."""
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages]


def descriptor_message(descriptor: Descriptor) -> DescriptorMessage:
    """Give a descriptor as the wire has it."""
    from moored.api.types.descriptor_pb2 import Descriptor as DescriptorMessage

    return DescriptorMessage(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )


def descriptor_of(message: DescriptorMessage) -> Descriptor:
    """Give the descriptor that a message stands for."""
    return Descriptor(
        media_type=message.media_type,
        digest=message.digest,
        size=message.size,
        annotations=dict(message.annotations),
    )
