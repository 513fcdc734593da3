"""Mounts that the daemon carries out for clients: those that need more than mount(2), as a file system in a file."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

from moored.api.client.connection import Calls
from moored.api.client.wire import mount_messages, mounts_of
from moored.api.convert import to_ns
from moored.api.services.mounts.v1 import mounts_pb2 as pb
from moored.api.services.mounts.v1 import mounts_pb2_grpc
from moored.api.types import mount_pb2
from moored.kernel.errors import NotFound, Unimplemented
from moored.kernel.ports.mounts import NO_LABELS, Activation, ActiveMount, Mount


class Mounts:
    """The namespace's activations. Errors, beside those of the connection, as `kernel.ports.mounts.MountManager`.

    Unimplemented from every call of a daemon without such a service, which is that of containerd before 2.2.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = mounts_pb2_grpc.MountsStub(calls.channel)

    async def activate(
        self,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Mapping[str, str] = NO_LABELS,
        temporary: bool = False,
    ) -> Activation:
        """Have the mounts carried out that need it, and give those that are left to mount by oneself, in order.

        temporary   all of them, which leaves one bind mount
        Raises Unimplemented if none needs it, AlreadyExists for a name that is taken.
        """
        request = pb.ActivateRequest(name=name, mounts=mount_messages(mounts), labels=labels, temporary=temporary)
        return _activation((await self._calls.unary(self._stub.Activate, request, slow=True)).info)

    async def deactivate(self, name: str) -> None:
        """Undo one. Raises NotFound, Unknown for what is in use."""
        await self._calls.unary(self._stub.Deactivate, pb.DeactivateRequest(name=name), slow=True)

    @asynccontextmanager
    async def activated(self, name: str, mounts: Sequence[Mount]) -> AsyncGenerator[Sequence[Mount]]:
        """For the block, have done what needs the daemon; the value is what is left to mount by oneself, in order."""
        try:
            found = await self.activate(name, mounts)
        except Unimplemented:
            yield tuple(mounts)
            return
        try:
            yield found.system
        finally:
            with suppress(NotFound):
                await self.deactivate(name)

    async def info(self, name: str) -> Activation:
        """Give one. Raises NotFound."""
        return _activation((await self._calls.unary(self._stub.Info, pb.InfoRequest(name=name))).info)

    async def list(self) -> list[Activation]:
        """Give all, by name."""
        async with aclosing(self._calls.server_stream(self._stub.List, pb.ListRequest())) as answers:
            return [_activation(answer.info) async for answer in answers]


def _activation(message: mount_pb2.ActivationInfo) -> Activation:
    return Activation(
        name=message.name,
        active=tuple(
            ActiveMount(
                mount=mounts_of([one.mount])[0],
                mount_point=one.mount_point,
                mounted_at=to_ns(one.mounted_at) if one.HasField("mounted_at") else None,
                data=dict(one.data),
            )
            for one in message.active
        ),
        system=tuple(mounts_of(message.system)),
        labels=dict(message.labels),
    )
