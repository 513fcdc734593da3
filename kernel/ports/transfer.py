"""Transfers: images moved between registries, archives and the image store.

Repository --pull--> StoredImages --push--> Repository
ArchiveSource --import--> StoredImages --export--> ArchiveSink      StoredImages --tag--> StoredImages
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from moored.kernel.imagespec.platforms import Platform
from moored.kernel.plugin import PluginType
from moored.kernel.ports.images import Descriptor


@dataclass(frozen=True, slots=True)
class Secret:
    """What a client says to prove who it is: user and secret, a refresh token (no user), or a header as it is."""

    user: str = ""
    secret: str = ""
    header: str = ""

    def __repr__(self) -> str:
        return f"Secret({self.user!r}, ...)"


AskSecret: TypeAlias = Callable[[str], Awaitable[Secret | None]]
"""Asks the client for the secret for a host (with its port)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """An image in a registry.

    reference        whole, with host and tag or digest
    headers          for each request
    hosts_folder     where `hosts.toml` files are looked for, on the daemon's side; empty for the configured place
    default_scheme   `http` for plain http where nothing else is configured
    dump             tell the heads of all requests and answers, to `logs` or else the daemon's log
    trace            note names that are looked up, and connections, in the daemon's debug log
    """

    reference: str
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: AskSecret | None = None
    hosts_folder: str = ""
    default_scheme: str = ""
    dump: bool = False
    trace: bool = False
    logs: Callable[[bytes], Awaitable[None]] | None = None

    def __str__(self) -> str:
        return f"OCI Registry ({self.reference})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraName:
    """A further name to store or find an image by.

    is_prefix            `name` lacks a tag, which the image's own annotations give
    allow_overwrite      a whole name in the annotations is taken even if it does not begin with the prefix
    add_digest           also, or only, `NAME@DIGEST`
    skip_named_digest    no `NAME@DIGEST` where the annotations gave a name
    """

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """A wish to have images of a platform unpacked; an empty snapshotter is the configured one."""

    platform: Platform
    snapshotter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImages:
    """Names in the image store of the current namespace, as source or as destination.

    platforms        those to take; none for all
    all_metadata     manifests and configs of the other platforms too
    manifest_limit   how many manifests of an index to take, the best first; 0 for all
    """

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    platforms: Sequence[Platform] = ()
    all_metadata: bool = False
    manifest_limit: int = 0
    extra: Sequence[ExtraName] = ()
    unpacks: Sequence[Unpack] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSource:
    """An archive to read; media_type empty has its compression found out, force_compress gzips plain Docker layers."""

    chunks: Callable[[], AsyncGenerator[bytes]]
    media_type: str = ""
    force_compress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveSink:
    """An archive to write.

    platforms              those of an index to take, the host's where none is named
    all_platforms          all manifests of an index, `platforms` only choose which one Docker sees
    skip_docker_manifest   no `manifest.json`
    skip_nondistributable  without layers that only their publisher may give away
    """

    write: Callable[[bytes], Awaitable[None]]
    media_type: str = ""
    platforms: Sequence[Platform] = ()
    all_platforms: bool = False
    skip_docker_manifest: bool = False
    skip_nondistributable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has just happened, to an object (name, its parents' names, descriptor, bytes) or to the whole transfer."""

    event: str
    name: str = ""
    parents: Sequence[str] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


Report: TypeAlias = Callable[[Progress], None]
"""Takes news; does not block, and may leave out some of those that later ones replace."""


class Transferrer(Protocol):
    """Moves images in the current namespace.

    Errors: Unimplemented for a pair of ends that it does not know; those of registries, archives and stores. After an
    error no image name was changed unless the error is that of a later name; what was fetched goes with the lease.
    Concurrency: any calls may overlap. Cancellation: nothing goes on when CancelledError comes out.
    """

    async def transfer(self, source: object, destination: object, report: Report | None = None) -> None:
        """Move, under the current lease or one of its own."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether an image may be pulled, and why."""

    ok: bool
    reason: str


class ImageVerifier(Protocol):
    """Decides which images may be pulled."""

    async def verify(self, name: str, target: Descriptor) -> Judgement:
        """Judge; any error blocks the pull too."""


TRANSFER: PluginType[Transferrer] = PluginType("io.containerd.transfer.v1")
IMAGE_VERIFIER: PluginType[ImageVerifier] = PluginType("io.containerd.image-verifier.v1")
