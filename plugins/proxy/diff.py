"""The differ of another process, reached over containerd's diff service.

It works on the blobs of the namespace and lease of each call, which travel with it, and on mounts of this machine. It
tells of no progress before the end. A cancelled call is awaited: the other side would not tell when it has stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from moored.api.convert import timestamp
from moored.kernel.errors import InvalidArgument
from moored.kernel.namespaces import current_lease, namespace_or_empty
from moored.kernel.plugin import Registration
from moored.kernel.ports.diff import NO_LABELS, NO_PAYLOADS, Differ, Labels, Progress
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount
from moored.kernel.workers import to_the_end
from moored.plugins.proxy.endpoint import ProxySettings, RemoteEndpoint, registration_of
from moored.plugins.proxy.wire import descriptor_message, descriptor_of, mount_messages

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")

SERVICE: Final = "/containerd.services.diff.v1.Diff/"


def registration(name: str, settings: ProxySettings) -> Registration[Differ, None]:
    """Make the plugin `io.containerd.differ.v1.<name>`. Raises InvalidArgument for an address that cannot be."""
    return registration_of(name, settings, RemoteDiffer)


class RemoteDiffer:
    """The port's Differ over an endpoint, which stays the caller's."""

    def __init__(self, endpoint: RemoteEndpoint) -> None:
        self._endpoint = endpoint

    async def apply(
        self,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, bytes] = NO_PAYLOADS,
        sync_fs: bool = True,
        progress: Progress | None = None,
    ) -> Descriptor:
        """See the port."""
        from moored.api.services.diff.v1 import diff_pb2 as pb

        request = pb.ApplyRequest(
            diff=descriptor_message(descriptor),
            mounts=mount_messages(mounts),
            payloads={name: _payload(name, payload) for name, payload in payloads.items()},
            sync_fs=sync_fs,
        )
        if progress is not None:
            progress(0)
        answer = await self._unary("Apply", request, pb.ApplyResponse)
        if progress is not None:
            progress(descriptor.size)
        return descriptor_of(answer.applied)

    async def compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        reference: str = "",
        labels: Labels = NO_LABELS,
        source_date_epoch: int | None = None,
    ) -> Descriptor:
        """See the port."""
        from moored.api.services.diff.v1 import diff_pb2 as pb

        request = pb.DiffRequest(
            left=mount_messages(lower),
            right=mount_messages(upper),
            media_type=media_type,
            ref=reference,
            labels=labels,
            source_date_epoch=timestamp(source_date_epoch) if source_date_epoch is not None else None,
        )
        answer = await self._unary("Diff", request, pb.DiffResponse)
        return descriptor_of(answer.diff)

    async def _unary(self, method: str, request: Message, response_type: type[M]) -> M:
        return await to_the_end(
            self._endpoint.unary(SERVICE + method, request, response_type, namespace_or_empty(), lease=current_lease())
        )


def _payload(name: str, payload: bytes) -> Any:
    """Give the Any that bytes are."""
    from google.protobuf.any_pb2 import Any
    from google.protobuf.message import DecodeError

    try:
        return Any.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"payload for stream processor {name!r} is no protobuf Any") from error
