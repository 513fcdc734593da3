"""The mounts service on the wire, over the mount manager. Source: semantics 3.8."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any, Final, cast

from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.services.mounts.v1 import mounts_pb2 as pb
from moored.api.services.mounts.v1 import mounts_pb2_grpc as rpc
from moored.api.types.mount_pb2 import ActivationInfo
from moored.api.types.mount_pb2 import ActiveMount as ActiveMessage
from moored.api.types.mount_pb2 import Mount as MountMessage
from moored.kernel.errors import InvalidArgument
from moored.kernel.ports.mounts import Activation, ActiveMount, Mount, MountManager
from moored.kernel.ports.services import GrpcRegistrar

EMPTY: Final = Empty()


class MountsService(rpc.MountsServicer):
    """containerd.services.mounts.v1.Mounts."""

    def __init__(self, manager: MountManager) -> None:
        self._manager = manager

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_MountsServicer_to_server(self, cast(Any, server))

    async def Activate(self, request: pb.ActivateRequest, context: Any) -> pb.ActivateResponse:  # noqa: N802
        """Carry out mounts; Unimplemented if none of them needs it."""
        done = await self._manager.activate(
            request.name, _mounts(request.mounts), labels=dict(request.labels), temporary=request.temporary
        )
        return pb.ActivateResponse(info=_info(done))

    async def Deactivate(self, request: pb.DeactivateRequest, context: Any) -> Empty:  # noqa: N802
        """Unmount and forget."""
        await self._manager.deactivate(request.name)
        return EMPTY

    async def Info(self, request: pb.InfoRequest, context: Any) -> pb.InfoResponse:  # noqa: N802
        """Give one activation; of its active mounts no more than type, place and time."""
        return pb.InfoResponse(info=_info(await self._manager.info(request.name)))

    async def Update(self, request: pb.UpdateRequest, context: Any) -> pb.UpdateResponse:  # noqa: N802
        """Refuse, as containerd does."""
        if not request.HasField("info"):
            raise InvalidArgument("update has no info, one is wanted")
        wanted = Activation(name=request.info.name, labels=dict(request.info.labels))
        return pb.UpdateResponse(info=_info(await self._manager.update(wanted, request.update_mask.paths)))

    async def List(self, request: pb.ListRequest, context: Any) -> AsyncGenerator[pb.ListMessage]:  # noqa: N802
        """Give all activations of the namespace, one a message; filters are ignored."""
        for activation in await self._manager.list(request.filters):
            yield pb.ListMessage(info=_info(activation))


def _info(activation: Activation) -> ActivationInfo:
    return ActivationInfo(
        name=activation.name,
        active=map(_active, activation.active),
        system=map(_mount, activation.system),
        labels=activation.labels,
    )


def _active(active: ActiveMount) -> ActiveMessage:
    return ActiveMessage(
        mount=_mount(active.mount),
        mounted_at=timestamp(active.mounted_at) if active.mounted_at is not None else None,
        mount_point=active.mount_point,
        data=active.data,
    )


def _mount(mount: Mount) -> MountMessage:
    return MountMessage(type=mount.type, source=mount.source, target=mount.target, options=mount.options)


def _mounts(messages: Iterable[MountMessage]) -> list[Mount]:
    return [Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options)) for m in messages]
