"""Layers: a blob applied to a file system, and the difference of two file systems as a blob.

apply:    blob (tar, compressed or wrapped) + mounts -> files; gives the tar's descriptor, its digest is the diff id
compare:  lower mounts + upper mounts -> blob in the store; gives the blob's descriptor
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Protocol, TypeAlias

from moored.kernel.plugin import PluginType
from moored.kernel.ports.images import Descriptor
from moored.kernel.ports.mounts import Mount

LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = f"{LAYER}+gzip"
LAYER_ZSTD: Final = f"{LAYER}+zstd"
UNCOMPRESSED_LABEL: Final = "containerd.io/uncompressed"
"""Label of a compressed layer: the digest of its tar."""

_OCI: Final = frozenset((LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"))
_DOCKER: Final = frozenset(
    f"application/vnd.docker.image.rootfs.{kind}"
    for kind in ("diff.tar", "diff.tar.gzip", "diff.tar.zstd", "foreign.diff.tar", "foreign.diff.tar.gzip")
)

Encoding: TypeAlias = Literal["plain", "by magic"]
"""How a layer is stored: as it is, or compressed in the way that its first bytes tell."""
Progress: TypeAlias = Callable[[int], None]
"""Told how many bytes of the stored blob have been used."""
Labels: TypeAlias = Mapping[str, str]
NO_LABELS: Final[Labels] = MappingProxyType({})
NO_PAYLOADS: Final[Mapping[str, bytes]] = MappingProxyType({})


def encoding(media_type: str) -> Encoding | None:
    """How a layer of that media type is stored, None if that is no layer that can be unpacked by itself.

    Docker's types are told by their first bytes, whatever they are called, unless a suffix says that they are wrapped;
    OCI's are only compressed with `+gzip` or `+zstd`.
    """
    base, plus, rest = media_type.partition("+")
    if base in _DOCKER:
        return "plain" if plus else "by magic"
    if base in _OCI:
        return "by magic" if plus and max(rest.split("+")) in {"gzip", "zstd"} else "plain"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one layer may take.

    stream_bytes   its tar, uncompressed
    file_bytes     all of its files; a sparse file counts with its whole size
    entries        headers of any kind
    """

    stream_bytes: int = 256 << 30
    file_bytes: int = 256 << 30
    entries: int = 10_000_000


class Applier(Protocol):
    """Unpacks layers.

    Terms: the *diff id* is the digest of the uncompressed tar. An overlay mount with an upper folder and a bind mount
    are written straight; other mounts are mounted for the time.
    Errors: Unknown `failed to get stream processor for T: no processor for media-type` for a type that is no layer's;
    NotFound for a missing blob, DataLoss for one that is not what its digest says; Unknown for what is no good archive
    or compression; InvalidArgument for entries that cannot be made; ResourceExhausted over the budget or on a full
    disk; FailedPrecondition for read-only mounts; DeadlineExceeded when nothing moves for too long (a disk that hangs);
    Unimplemented to let the next differ try. After an error the file system holds some of the layer and is good for
    nothing but removal.
    Durability: with sync_fs all files survive a power cut once the call has returned.
    Concurrency: any calls may overlap, except on the same mounts.
    Cancellation: nothing is written any more when CancelledError comes out.
    """

    async def apply(
        self,
        descriptor: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, bytes] = NO_PAYLOADS,
        sync_fs: bool = True,
        progress: Progress | None = None,
    ) -> Descriptor:
        """Unpack a blob; the descriptor of its tar, always of type LAYER. Without mounts it is only read.

        payloads: what stream processors get, by their id: a protobuf Any as bytes.
        """


class Comparer(Protocol):
    """Makes layers.

    Errors: Unimplemented `unsupported diff media type: T`; those of mounting, of reading the trees (DataLoss,
    PermissionDenied) and of the content store. Without a reference a failed call leaves no ingest.
    Concurrency: any calls may overlap, except with the same reference.
    Cancellation: a cancelled call stored nothing, apart from the ingest of a given reference.
    """

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
        """Store what makes the lower file system the upper one, and describe the blob.

        media_type          LAYER, LAYER_GZIP (also for ""), LAYER_ZSTD
        reference           the ingest to use, begun anew; "" for one of its own
        labels              for the blob, if it is new; a compressed one also gets UNCOMPRESSED_LABEL
        source_date_epoch   nanoseconds since 1970; later times of files become this
        The blob is referenced by nothing; hold a lease.
        """


class Differ(Applier, Comparer, Protocol):
    """Both; a differ that does only one answers Unimplemented to the other."""


DIFFER: PluginType[Differ] = PluginType("io.containerd.differ.v1")
