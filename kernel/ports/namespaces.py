"""Namespaces: separate sets of names over one daemon, with labels of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class NamespaceStore(Protocol):
    """All namespaces. A namespace comes into being with the first write in it, or by create.

    Errors: InvalidArgument for a bad name or label, AlreadyExists, NotFound, FailedPrecondition `namespace "N" must be
    empty, but it still has ...`. Events: `/namespaces/...`, in the object's own namespace.
    """

    async def list(self) -> list[tuple[str, Mapping[str, str]]]:
        """(name, labels) of each, by name."""

    async def labels(self, name: str) -> Mapping[str, str]:
        """The labels of one; empty for one that does not exist."""

    async def create(self, name: str, labels: Mapping[str, str]) -> None:
        """Add one."""

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> None:
        """Replace all labels, or those that paths name (`labels.KEY`); adds the namespace if it is missing."""

    async def delete(self, name: str) -> None:
        """Remove an empty one, with its leases and ingests."""
