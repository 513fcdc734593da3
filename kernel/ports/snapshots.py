"""Snapshots: file system states with a parent, and the mounts that show them.

prepare(key, parent) --write into its mounts--> commit(name, key) --parent of others--> remove(name)
view(key, parent)    --read its mounts-------------------------------------------------> remove(key)
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias, runtime_checkable

from moored.kernel.plugin import PluginType
from moored.kernel.ports.metadata import Bucket, Database
from moored.kernel.ports.mounts import Mount

Labels: TypeAlias = Mapping[str, str]
"""Label values by key; an empty value is as good as none."""
NO_LABELS: Final[Labels] = MappingProxyType({})

REBASE: Final = "rebase"
"""Capability: commit can give a parent to a snapshot that has none."""
REMAP_IDS: Final = "remap-ids"
"""Capability: mounts of a snapshot with UID_MAPPING and GID_MAPPING show its files with mapped owners."""
ONLY_REMAP_IDS: Final = "only-remap-ids"
"""Capability: where owners must be mapped and REMAP_IDS is missing, a client must not change them file by file."""

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""Label: the name that the snapshot will be committed under."""
UID_MAPPING: Final = "containerd.io/snapshot/uidmapping"
"""Label: `CONTAINER:HOST:LENGTH[,...]`, decimal; GID_MAPPING likewise, both or none."""
GID_MAPPING: Final = "containerd.io/snapshot/gidmapping"


class Kind(enum.Enum):
    """What a snapshot is; the values are the words of filters."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A snapshot: name is the key of an active one or a view, parent is empty for none, times are UTC ns since 1970."""

    name: str
    kind: Kind
    parent: str = ""
    labels: Labels = field(default_factory=dict)
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes by itself, without its parents: bytes on disk, and inodes."""

    size: int = 0
    inodes: int = 0


class Snapshotter(Protocol):
    """File system states with a parent, and the mounts that show them.

    A snapshot is *active* (made by prepare, writable, named by a key), a *view* (read-only, named by a key) or
    *committed* (immutable, named). Keys and names share one space; any text but the empty one is allowed and none is
    used as a path. Only a committed snapshot can be a parent; "" is the empty one. Whoever holds a snapshot's mounts
    mounts and unmounts them: the snapshotter never does. What is written into a snapshot after its commit began is lost
    or spoils it.

    Errors, beside those named at a method: NotFound `snapshot K does not exist`; InvalidArgument for an empty key or
    name or a malformed filter; ResourceExhausted for a full disk, quota or no descriptors left; FailedPrecondition for
    a read-only file system; DataLoss for a device that fails or files that are not what was made; PermissionDenied;
    Unavailable once closed. After an error nothing has changed.
    Durability: what returned survives a power cut, the files of a committed snapshot included; those of active ones may
    not. After a crash a snapshot is there as a whole or not at all, and what belongs to none is removed.
    Concurrency: any methods may overlap; those that change one key, or use it as parent, are serialised inside.
    Cancellation: a cancelled call did all of its work or none of it, and has ended when CancelledError comes out of it.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """REBASE, REMAP_IDS, ONLY_REMAP_IDS or words of its own."""

    async def prepare(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """Make an active snapshot that shows what its parent shows, and give its mounts.

        Raises AlreadyExists `snapshot "K"`; NotFound `parent snapshot P does not exist`; InvalidArgument
        `parent 'P' is active, a parent must be committed`, or for malformed id mappings.
        """

    async def view(self, key: str, parent: str = "", labels: Labels = NO_LABELS) -> list[Mount]:
        """Make a read-only snapshot of the parent, and give its mounts. Raises as prepare."""

    async def mounts(self, key: str) -> list[Mount]:
        """Give the mounts of an active snapshot or a view, as prepare or view did.

        Raises FailedPrecondition `snapshot 'K' is committed, wanted an active one or a view`.
        """

    async def commit(self, name: str, key: str, labels: Labels = NO_LABELS, parent: str = "") -> None:
        """Turn the active snapshot `key` into the committed one `name`, with these labels and none of its old ones.

        A parent makes it a child of that one if it has no parent; needs REBASE.
        Raises AlreadyExists `snapshot "N"`; FailedPrecondition `snapshot 'K' is committed, wanted an active one`;
        for the parent NotFound as prepare, FailedPrecondition if it is not committed, InvalidArgument
        `snapshot 'K' has the parent 'A', it cannot become 'B'`, Unimplemented without REBASE.
        """

    async def stat(self, name: str) -> Info:
        """Give what is known of a snapshot."""

    async def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> Info:
        """Replace a snapshot's labels, or only those that paths name (`labels`, `labels.KEY`), and give the result.

        Raises InvalidArgument `cannot update "P" field on snapshot "N"`.
        """

    async def usage(self, name: str) -> Usage:
        """Tell what it takes: an active one now, a committed one at its commit, a view nothing."""

    async def remove(self, name: str) -> None:
        """Remove a snapshot; its name is free at once. Its files may be left for cleanup. Works on a full disk.

        Raises FailedPrecondition `cannot remove snapshot with child`.
        """

    def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """Give all snapshots that match any of the filters (fields kind, name, parent, labels), ordered by name.

        What comes or goes meanwhile may be given or not; the other methods work between two items.
        """

    async def cleanup(self) -> None:
        """Remove the files that belong to no snapshot. What cannot be removed stays for the next time."""

    async def close(self) -> None:
        """Let calls under way end, then stop; again is harmless."""


Also: TypeAlias = Callable[[Bucket], None]
"""A change of another database in the same file, given a bucket of the update that it is to be part of."""


@runtime_checkable
class Recorded(Protocol):
    """What a snapshotter may offer beside the port that keeps its records in a database: further changes with its own.

    The daemon's records of namespaces lie above those of a snapshotter. Where both are in one file, one update changes
    both, so that no crash leaves one without the other. `also` runs in that update after the snapshotter's own change;
    what it raises comes out, and then nothing has changed. Who calls these sees to it that they are not cancelled.
    """

    @property
    def database(self) -> Database:
        """Where its records are."""

    async def create_with(self, also: Also, kind: Kind, key: str, parent: str, labels: Labels) -> list[Mount]:
        """As `Snapshotter.prepare`, or as `view`."""

    async def commit_with(self, also: Also, name: str, key: str, labels: Labels, parent: str) -> None:
        """As `Snapshotter.commit`."""


SNAPSHOTTER: PluginType[Snapshotter] = PluginType("io.containerd.snapshotter.v1")
