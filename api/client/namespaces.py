"""Namespaces of a daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moored.api.client.connection import Calls
from moored.api.client.wire import mask
from moored.api.services.namespaces.v1 import namespace_pb2 as pb
from moored.api.services.namespaces.v1 import namespace_pb2_grpc
from moored.kernel.ports.content import NO_LABELS


@dataclass(frozen=True, slots=True)
class Namespace:
    """A name with its labels; `containerd.io/defaults/snapshotter` and `/runtime` are read by clients."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class Namespaces:
    """All of them, whatever namespace the client is bound to. Errors as `kernel.ports.namespaces`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = namespace_pb2_grpc.NamespacesStub(calls.channel)

    async def list(self) -> list[Namespace]:
        """Give all, by name."""
        answer = await self._calls.unary(self._stub.List, pb.ListNamespacesRequest())
        return [_namespace(one) for one in answer.namespaces]

    async def get(self, name: str) -> Namespace:
        """Give one; a name that is not there has no labels."""
        return _namespace((await self._calls.unary(self._stub.Get, pb.GetNamespaceRequest(name=name))).namespace)

    async def create(self, name: str, labels: Mapping[str, str] = NO_LABELS) -> Namespace:
        """Add one. Raises AlreadyExists, InvalidArgument."""
        request = pb.CreateNamespaceRequest(namespace=pb.Namespace(name=name, labels=labels))
        return _namespace((await self._calls.unary(self._stub.Create, request)).namespace)

    async def label(self, name: str, labels: Mapping[str, str]) -> None:
        """Set some labels, an empty value removes one; a namespace that is not there is made."""
        request = pb.UpdateNamespaceRequest(
            namespace=pb.Namespace(name=name, labels=labels), update_mask=mask([f"labels.{key}" for key in labels])
        )
        if labels:
            await self._calls.unary(self._stub.Update, request)

    async def delete(self, name: str) -> None:
        """Remove an empty one. Raises NotFound, FailedPrecondition naming what is left in it."""
        await self._calls.unary(self._stub.Delete, pb.DeleteNamespaceRequest(name=name))


def _namespace(message: pb.Namespace) -> Namespace:
    return Namespace(message.name, dict(message.labels))
