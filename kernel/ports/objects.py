"""The object database: everything that has a name in a namespace, over the raw stores, with one garbage collector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from moored.kernel.plugin import PluginType
from moored.kernel.ports.containers import ContainerStore
from moored.kernel.ports.content import LabelledContentStore
from moored.kernel.ports.images import ImageStore
from moored.kernel.ports.leases import LeaseManager
from moored.kernel.ports.mounts import ActivationRecords
from moored.kernel.ports.namespaces import NamespaceStore
from moored.kernel.ports.sandboxes import SandboxStore
from moored.kernel.ports.snapshots import Snapshotter


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What one garbage collection did; seconds that writers were held up, and of the whole; names removed by kind."""

    pause_seconds: float
    seconds: float
    removed: Mapping[str, int]
    next_expiry: int | None = None
    """When the next of the objects that are there will have expired, nanoseconds since 1970; None for none."""


class Collectable(Protocol):
    """A thing outside of the database that a collection ends when nothing keeps it."""

    @property
    def namespace(self) -> str:
        """Whose it is; "" for nobody's."""

    @property
    def name(self) -> str:
        """What labels call it, unique among those of its kind in the namespace."""

    @property
    def lease(self) -> str:
        """The lease that it is under, which keeps it while it lasts; "" for what is kept for its own sake."""

    async def close(self) -> None:
        """End it; again is harmless."""


class Objects(Protocol):
    """One daemon's objects. The stores work in the current namespace and under the current lease (`kernel.namespaces`).

    What a write creates or finds is added to the current lease (NotFound `lease does not exist` for an unknown one).
    """

    namespaces: NamespaceStore
    images: ImageStore
    containers: ContainerStore
    sandboxes: SandboxStore
    leases: LeaseManager
    content: LabelledContentStore
    """Records of the namespace over the shared blobs of the raw store; labels are kept."""
    activations: ActivationRecords
    """For the mount manager."""

    def snapshotter(self, name: str) -> Snapshotter:
        """The namespace's snapshots over the raw snapshotter of that name.

        Raises InvalidArgument `snapshotter argument missing` and `snapshotter not loaded: S`.
        """

    def snapshotters(self) -> Mapping[str, Snapshotter]:
        """All of them by name."""

    async def collect(self) -> Collection:
        """Remove all that no root reaches (contracts/semantics.md 5): records first, then what the raw stores hold."""

    def collectable(self, kind: str, listed: Callable[[], Iterable[Collectable]]) -> Callable[[], None]:
        """Have collections end, of the things that `listed` gives, those that nothing keeps; the result ends that.

        What is kept: things under no lease, those of leases that have not expired, and those that a label
        `containerd.io/gc.ref.KIND`, `...KIND.x` or `...KIND/x` of an object that is kept names. `listed` is called on
        the event loop. Raises AlreadyExists if there are such things already, InvalidArgument for a kind of the
        database's own.
        """

    def on_change(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Call `listener(deleted)` on the event loop after every write; the result ends that."""


METADATA: PluginType[Objects] = PluginType("io.containerd.metadata.v1")


class Scheduler(Protocol):
    """Decides when to collect."""

    async def collect_now(self) -> Collection:
        """Ask for a collection and wait until one that began after this call has ended. Unknown `gc failed`."""


GC: PluginType[Scheduler] = PluginType("io.containerd.gc.v1")
