"""Mounts: what has to be mounted where, as plain data, and those of them that the daemon itself carries out.

mounts of a snapshot ─ activate ─┬─ active: done by the daemon, at a place of its own, until deactivated
                                 └─ system: what is left for the caller to mount, in order
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

from moored.kernel.plugin import PluginType

Labels: TypeAlias = Mapping[str, str]
NO_LABELS: Final[Labels] = MappingProxyType({})
INTERNAL_OPTION: Final = "X-containerd."
"""Beginning of the options that are for the mount manager, never for mount(2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One call of mount(2) to make, with options as in fstab.

    type     `bind`, or a file system's name
    source   a path, a device, or the name that the file system wants
    target   where below the place that the mounter chooses, empty for that place itself
    options  in order, the last one wins: `ro`, `rbind`, `lowerdir=/a:/b`

    For the mount manager a type may have what it has to do first in front: `format/overlay`, `mkdir/format/overlay`.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether the options end up read-only."""
        last = [option for option in self.options if option in {"ro", "rw"}][-1:]
        return last == ["ro"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveMount:
    """A mount that is in place.

    mount        as it was carried out; of one that is looked up later only the type is known
    mount_point  where it is
    mounted_at   nanoseconds since 1970, None for unknown
    data         notes of the handler that made it, for mounts that follow; not known later
    """

    mount: Mount
    mount_point: str
    mounted_at: int | None = None
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The result of one activation."""

    name: str
    active: tuple[ActiveMount, ...] = ()
    system: tuple[Mount, ...] = ()
    labels: Labels = field(default_factory=dict)


class MountHandler(Protocol):
    """Makes mounts of the type that is its plugin's id.

    Errors: OSError, and those of the closed set. After an error nothing is mounted.
    Cancellation: no call is cancelled.
    """

    async def mount(self, what: Mount, target: Path, earlier: Sequence[ActiveMount]) -> ActiveMount:
        """Mount at `target`, which is not there yet and whose folder is; `earlier` are those of the same activation."""

    async def unmount(self, target: Path) -> None:
        """Undo it, also after a crash in the middle of mount; what is not mounted, or not there, is fine."""


class MountManager(Protocol):
    """Carries out mounts that need more than mount(2), and keeps track of them, in the current namespace.

    An activation outlives the daemon's restart, and goes with a collection unless a lease (the current one at
    its making, for example) or an object that a label `containerd.io/gc.bref.*` names holds it. What a crash left half
    made is undone at the next start.

    Prefixes of a type: `format/` fills `{{ source I }}`, `{{ target I }}`, `{{ mount I }}` and `{{ overlay I J }}` in
    texts from the mounts before; `mkdir/` makes the folders of `X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`;
    `mkfs/` makes the source a file system by `X-containerd.mkfs.size=`, `.fs=` and `.uuid=` unless it is there. Both
    work only below the daemon's own folders.

    Errors: FailedPrecondition without a namespace; those of handlers and of mounting as Unknown.
    Concurrency: any calls may overlap; those on one name run one after the other.
    Cancellation: a cancelled call did all of its work or none of it.
    """

    async def activate(
        self,
        name: str,
        mounts: Sequence[Mount],
        *,
        labels: Labels = NO_LABELS,
        temporary: bool = False,
        handled: Collection[str] = (),
    ) -> Activation:
        """Carry out the mounts up to the last one that needs it, and give the rest.

        temporary   carry out all, and leave one bind mount of the last to the caller
        handled     types that the caller can mount itself; `format/*` and so on for prefixes
        Raises Unimplemented `not implemented` if none needs it: the caller mounts all by itself. AlreadyExists
        `mount "N"`; Unknown `bucket name required` for an empty name; InvalidArgument and Unimplemented for options.
        """

    async def deactivate(self, name: str) -> None:
        """Unmount what is active, the last first, and forget it.

        Raises NotFound; Unknown if something is in use: it is forgotten all the same, and goes with a collection once
        it is free.
        """

    async def info(self, name: str) -> Activation:
        """Give one. Raises NotFound `mount "N" not found`."""

    async def update(self, activation: Activation, paths: Sequence[str] = ()) -> Activation:
        """Raise Unimplemented: an activation never changes."""

    async def list(self, filters: Sequence[str] = ()) -> list[Activation]:
        """Give all, by name; filters are without effect."""

    def activated(self, mounts: Sequence[Mount]) -> AbstractAsyncContextManager[Sequence[Mount]]:
        """For the block, carry out those that need it and give what is left; mounts that need nothing as they are.

        Where nothing would be left, one bind mount of the last is.
        It has no name, no collection takes it, and it ends with the daemon at the latest.
        """


@dataclass(frozen=True, slots=True)
class Recorded:
    """An activation as it is recorded; complete is False for one whose making was cut off or is under way."""

    number: int
    activation: Activation
    complete: bool


Sweep: TypeAlias = Callable[[], Awaitable[bool]]
"""Unmounts what no record names; False if something is left to do."""


class ActivationRecords(Protocol):
    """What is activated, where the garbage collector sees it: by namespace and name, under leases.

    Names are of the current namespace. Errors: FailedPrecondition without one; those of the database.
    """

    async def begin(self, name: str, labels: Labels) -> int:
        """Record that one is being made, under the current lease; its number, never given before.

        Raises AlreadyExists `mount "N"`; Unknown `bucket name required`. No collection takes it before `finish`.
        """

    async def finish(self, activation: Activation) -> None:
        """Record the result."""

    async def remove(self, name: str) -> Recorded:
        """Forget one and give what was known. Raises NotFound `missing mount "N" bucket`."""

    async def get(self, name: str) -> Recorded:
        """Give one. Raises NotFound `mount "N" not found`."""

    async def list(self) -> list[Recorded]:
        """Give all of the namespace, by name."""

    async def numbers(self) -> frozenset[int]:
        """Give those of all namespaces."""

    async def restart(self, standing: Callable[[Recorded], bool]) -> None:
        """Forget, in all namespaces, what is not complete or not `standing` any more."""

    def on_sweep(self, sweep: Sweep) -> Callable[[], None]:
        """Call it after collections that may have left something to unmount; the result ends that."""


MOUNT_MANAGER: PluginType[MountManager] = PluginType("io.containerd.mount-manager.v1")
MOUNT_HANDLER: PluginType[MountHandler] = PluginType("io.containerd.mount-handler.v1")
