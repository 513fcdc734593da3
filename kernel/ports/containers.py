"""Containers: records of what a task is made from; they run nothing by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TypedBytes:
    """A message of a type that this layer does not know (protobuf Any); type_url as its writer spelled it."""

    type_url: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One record. Times are nanoseconds since 1970, UTC, given by the store."""

    id: str
    image: str = ""
    runtime: str = ""
    runtime_options: TypedBytes | None = None
    spec: TypedBytes | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, TypedBytes] = field(default_factory=dict)
    created_at: int = 0
    updated_at: int = 0


class ContainerStore(Protocol):
    """The containers of the current namespace. Errors, events (`/containers/...`) and guarantees as for ImageStore.

    Snapshotter and runtime name are immutable (InvalidArgument `... is immutable`).
    """

    async def get(self, id: str) -> Container:  # noqa: A002 - the field's term
        """One container. NotFound `container "X" in namespace "NS"`."""

    async def list(self, filters: Sequence[str] = ()) -> list[Container]:
        """Those that match any filter (id, runtime.name, image, labels), by id."""

    def stream(self, filters: Sequence[str] = ()) -> AsyncGenerator[Container]:
        """The same one by one, from one moment's view, for namespaces with very many."""

    async def create(self, container: Container) -> Container:
        """Add one."""

    async def update(self, container: Container, paths: Sequence[str] = ()) -> Container:
        """Replace all that is mutable, or what paths name (contracts/semantics.md 1.3 and 3.2)."""

    async def delete(self, id: str) -> None:  # noqa: A002 - the field's term
        """Remove one; tasks are not looked at."""
