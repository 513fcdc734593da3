"""Layers applied to and made from file systems, by the daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moored.api.client.connection import Calls
from moored.api.client.wire import descriptor_message, descriptor_of, mount_messages
from moored.api.convert import timestamp
from moored.api.services.diff.v1 import diff_pb2 as pb
from moored.api.services.diff.v1 import diff_pb2_grpc
from moored.kernel.ports.content import NO_LABELS
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount


class Diffs:
    """The daemon's differs. Errors, beside those of the connection, as `kernel.ports.diff`. Without a deadline."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = diff_pb2_grpc.DiffStub(calls.channel)

    async def apply(self, descriptor: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = False) -> Descriptor:
        """Unpack a layer; gives the descriptor of its tar, whose digest is the diff id. sync_fs makes it durable."""
        request = pb.ApplyRequest(diff=descriptor_message(descriptor), mounts=mount_messages(mounts), sync_fs=sync_fs)
        return descriptor_of((await self._calls.unary(self._stub.Apply, request, slow=True)).applied)

    async def compare(
        self,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        reference: str = "",
        labels: Mapping[str, str] = NO_LABELS,
        source_date_epoch: int | None = None,
    ) -> Descriptor:
        """Store what makes the lower file system the upper one as a layer, which nothing refers to: hold a lease.

        media_type is a gzipped OCI layer's by default; source_date_epoch is nanoseconds since 1970.
        """
        request = pb.DiffRequest(
            left=mount_messages(lower),
            right=mount_messages(upper),
            media_type=media_type,
            ref=reference,
            labels=labels,
            source_date_epoch=timestamp(source_date_epoch) if source_date_epoch is not None else None,
        )
        return descriptor_of((await self._calls.unary(self._stub.Diff, request, slow=True)).diff)
