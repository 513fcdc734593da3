"""One daemon, as one namespace of it sees it: everything else of this library is reached from here.

What only some programs need is imported by the first use, so that small ones start quickly.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from moored.api.client.connection import (
    DEFAULT_TIMEOUT,
    Calls,
    Connection,
    default_address,
    default_namespace,
)
from moored.api.client.leases import DAY, Leases, new_lease, under_lease
from moored.api.client.registries import RegistryOptions
from moored.api.client.snapshots import DEFAULT, Snapshots, default_snapshotter
from moored.kernel.errors import FailedPrecondition, InvalidArgument, NotFound
from moored.kernel.imagespec import references
from moored.kernel.imagespec.platforms import Platform, default
from moored.kernel.namespaces import validate_identifier
from moored.kernel.ports.content import NO_LABELS
from moored.kernel.ports.images import Image

if TYPE_CHECKING:
    from moored.api.client.containers import Containers
    from moored.api.client.content import Content
    from moored.api.client.diffs import Diffs
    from moored.api.client.events import Events
    from moored.api.client.images import Images
    from moored.api.client.mounts import Mounts
    from moored.api.client.namespaces import Namespaces
    from moored.api.client.sandboxes import Sandboxes
    from moored.api.client.server import Daemon, Server
    from moored.kernel.ports.transfer import Progress, Report, StoredImages

FIFO_FOLDER: Final = Path("/run/moored/fifo")
ANYBODY: Final = RegistryOptions()
"""No credentials, and registries where they usually are."""
_NO_UNPACK: Final = "no unpack platforms defined"


class Client:
    """A connection to a daemon, with a namespace. Used as `async with Client() as client`; calls may overlap.

    Errors of any call: Unavailable where no daemon answers, PermissionDenied for a socket that is not ours to use,
    DeadlineExceeded after `timeout` seconds for what should be quick; and what the daemon says, as the ports have it.
    Cancellation: the call is cancelled at the daemon too.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        namespace: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        fifo_folder: str | Path = FIFO_FOLDER,
    ) -> None:
        """Name the daemon's socket; nothing is dialled yet.

        address     a path, or `unix://` and a path; None: `$MOORED_ADDRESS`, `$CONTAINERD_ADDRESS`, moored's own
        namespace   None: `$CONTAINERD_NAMESPACE`, `default`
        fifo_folder where streams of processes are made, on the daemon's host
        Raises InvalidArgument for an address or a namespace that cannot be.
        """
        found = default_namespace() if namespace is None else namespace
        validate_identifier(found, "namespace validation")
        connection = Connection(address or default_address(), timeout, Path(fifo_folder))
        self._calls = Calls(connection, found)

    async def __aenter__(self) -> Self:
        self._calls.connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._calls.connection.close()

    @property
    def address(self) -> str:
        """The path of the daemon's socket."""
        return self._calls.connection.address

    @property
    def namespace(self) -> str:
        """The namespace of all calls."""
        return self._calls.namespace

    @property
    def lease_id(self) -> str:
        """The lease that what is written belongs to, empty for none."""
        return self._calls.lease

    def in_namespace(self, namespace: str) -> Client:
        """Give the same for another namespace; it shares the connection, and is closed with this one."""
        return _bound(self._calls.in_namespace(validate_identifier(namespace, "namespace validation")))

    def with_lease(self, lease_id: str) -> Client:
        """Give the same with all that is written held by a lease; it shares the connection."""
        return _bound(self._calls.with_lease(lease_id))

    @asynccontextmanager
    async def lease(
        self,
        *,
        id: str = "",  # noqa: A002 - the field's term
        seconds: float | None = DAY,
        labels: Mapping[str, str] = NO_LABELS,
    ) -> AsyncGenerator[Client]:
        """Make a lease for the block; the value is a client under it. After the seconds it ends by itself."""
        async with new_lease(self._calls, id=id, seconds=seconds, labels=labels) as calls:
            yield _bound(calls)

    # --- services -----------------------------------------------------------------------------------------------------

    @property
    def server(self) -> Server:
        """What the daemon tells of itself."""
        from moored.api.client.server import Server

        return Server(self._calls)

    @property
    def daemon(self) -> Daemon:
        """What only moored tells of itself."""
        from moored.api.client.server import Daemon

        return Daemon(self._calls)

    @property
    def namespaces(self) -> Namespaces:
        """All namespaces."""
        from moored.api.client.namespaces import Namespaces

        return Namespaces(self._calls)

    @property
    def images(self) -> Images:
        """Names for content."""
        from moored.api.client.images import Images

        return Images(self._calls)

    @property
    def content(self) -> Content:
        """Blobs, and what becomes them."""
        from moored.api.client.content import Content

        return Content(self._calls)

    @property
    def leases(self) -> Leases:
        """What holds things."""
        return Leases(self._calls)

    @property
    def diffs(self) -> Diffs:
        """Layers and file systems."""
        from moored.api.client.diffs import Diffs

        return Diffs(self._calls)

    @property
    def events(self) -> Events:
        """What happens."""
        from moored.api.client.events import Events

        return Events(self._calls)

    @property
    def containers(self) -> Containers:
        """Containers, and through them tasks."""
        from moored.api.client.containers import Containers

        return Containers(self._calls)

    @property
    def sandboxes(self) -> Sandboxes:
        """What containers share."""
        from moored.api.client.sandboxes import Sandboxes

        return Sandboxes(self._calls)

    @property
    def mounts(self) -> Mounts:
        """What the daemon mounts for its clients."""
        from moored.api.client.mounts import Mounts

        return Mounts(self._calls)

    def snapshots(self, snapshotter: str = DEFAULT) -> Snapshots:
        """The snapshots of one snapshotter."""
        return Snapshots(self._calls, snapshotter)

    async def default_snapshotter(self) -> str:
        """Give the snapshotter that the namespace's label names, else `overlayfs`."""
        return await default_snapshotter(self._calls)

    # --- images -------------------------------------------------------------------------------------------------------

    async def unpack(
        self,
        image: str | Image,
        *,
        platform: Platform | None = None,
        snapshotter: str = "",
        progress: Report | None = None,
    ) -> str:
        """Unpack what is not unpacked yet and give the name of the top snapshot, empty for an image without layers.

        Raises NotFound for an image, manifest or layer that is missing, FailedPrecondition for a layer that is not what
        the config says.
        """
        from moored.api.client import unpacking

        name = snapshotter or await self.default_snapshotter()
        return await unpacking.unpack(self._calls, image, name, platform=platform, progress=progress)

    async def is_unpacked(self, image: str | Image, *, platform: Platform | None = None, snapshotter: str = "") -> bool:
        """Whether a snapshotter has all layers of an image, whose content may be missing then."""
        snapshots = self.snapshots(snapshotter or await self.default_snapshotter())
        try:
            chain_id = await self.images.chain_id(image, platform)
        except (NotFound, FailedPrecondition):
            return False
        return not chain_id or await snapshots.exists(chain_id)

    async def pull(
        self,
        reference: str,
        *,
        platforms: Sequence[Platform] = (),
        all_platforms: bool = False,
        unpack: bool = True,
        snapshotter: str = "",
        labels: Mapping[str, str] = NO_LABELS,
        registry: RegistryOptions = ANYBODY,
        progress: Report | None = None,
        local: bool | None = None,
    ) -> Image:
        """Fetch an image, give it the name that it has in the registry, and unpack it.

        reference   whole, with a host and a tag or digest
        platforms   the host's if none are named
        progress    told what happens, in the words of the daemon's transfer service
        local       whether this client fetches; None: the daemon if it can
        What has come before an error or a cancellation is there for the next attempt, for a day at most.
        Raises NotFound for no such image or none for the platforms, PermissionDenied, InvalidArgument for what is no
        image, FailedPrecondition for other bytes than a digest says.
        """
        wanted = await self._wanted(
            platforms, all_platforms=all_platforms, unpack=unpack, snapshotter=snapshotter, labels=labels
        )
        references.parse(reference)
        limit = 0 if all_platforms else max(1, len(platforms))
        wanted = replace(wanted, name=reference, manifest_limit=limit)
        await self._transfer(registry.repository(reference), wanted, progress, local=local)
        return await self._unpacked(reference, wanted, progress)

    async def push(
        self,
        name: str,
        reference: str = "",
        *,
        platforms: Sequence[Platform] = (),
        registry: RegistryOptions = ANYBODY,
        progress: Report | None = None,
        local: bool | None = None,
    ) -> None:
        """Send an image to a registry, under its own name unless another is given.

        platforms   those of an index to send, all if none are named
        Raises NotFound for no such image, or one whose objects are not all there; PermissionDenied.
        """
        from moored.kernel.ports.transfer import StoredImages

        references.parse(reference or name)
        source = StoredImages(name=name, platforms=platforms)
        await self._transfer(source, registry.repository(reference or name), progress, local=local)

    async def import_archive(
        self,
        source: Path | AsyncIterable[bytes],
        *,
        name: str = "",
        prefix: str = "",
        platforms: Sequence[Platform] = (),
        all_platforms: bool = False,
        unpack: bool = True,
        snapshotter: str = "",
        labels: Mapping[str, str] = NO_LABELS,
        progress: Report | None = None,
        local: bool | None = None,
    ) -> list[Image]:
        """Read an archive of images, an OCI layout or what `docker save` writes, compressed or not; gives the images.

        name     for the archive's index as a whole
        prefix   what the names of the archive's images must begin with, and what bare tags are put behind; without one
                 all names are taken, and bare tags are put behind `import-DATE`
        Raises Unknown for what is no such archive, InvalidArgument for one that is malformed, NotFound for one without
        a name or with missing parts.
        """
        from moored.api.client.transfers.files import chunks_of
        from moored.kernel.ports.transfer import ArchiveSource, ExtraName

        wanted = await self._wanted(
            platforms, all_platforms=all_platforms, unpack=unpack, snapshotter=snapshotter, labels=labels
        )
        extra = ExtraName(
            name=prefix or f"import-{datetime.now(UTC):%Y-%m-%d}", is_prefix=True, allow_overwrite=not prefix
        )
        wanted = replace(wanted, name=name, extra=(extra,))
        names: dict[str, None] = {}

        def report(news: Progress) -> None:
            if news.event == "saved":
                names[news.name] = None
            if progress is not None:
                progress(news)

        archive = ArchiveSource(chunks=lambda: chunks_of(source))
        await self._transfer(archive, wanted, report, local=local)
        return [await self._unpacked(found, wanted, progress) for found in names]

    async def export_archive(
        self,
        names: Sequence[str],
        target: Path | Callable[[bytes], Awaitable[None]],
        *,
        platforms: Sequence[Platform] = (),
        all_platforms: bool = False,
        docker_manifest: bool = True,
        nondistributable: bool = True,
        progress: Report | None = None,
        local: bool | None = None,
    ) -> None:
        """Write images as one archive: an OCI layout, which `docker load` takes too unless told otherwise.

        platforms          the host's if none are named
        nondistributable   with layers that only their publisher may give away
        A file that is named is made anew, and removed after an error. Raises NotFound for an image, or a part of one.
        """
        from moored.api.client.transfers.files import written
        from moored.kernel.ports.transfer import ArchiveSink, ExtraName, StoredImages

        source = StoredImages(extra=tuple(ExtraName(name=name) for name in names))
        async with written(target) as write:
            sink = ArchiveSink(
                write=write,
                platforms=platforms,
                all_platforms=all_platforms,
                skip_docker_manifest=not docker_manifest,
                skip_nondistributable=not nondistributable,
            )
            await self._transfer(source, sink, progress, local=local)

    async def _wanted(
        self,
        platforms: Sequence[Platform],
        *,
        all_platforms: bool,
        unpack: bool,
        snapshotter: str,
        labels: Mapping[str, str],
    ) -> StoredImages:
        from moored.kernel.ports.transfer import StoredImages, Unpack

        chosen = () if all_platforms else tuple(platforms) or (default(),)
        place = snapshotter or await self.default_snapshotter() if unpack else ""
        unpacks = (
            tuple(Unpack(platform=platform, snapshotter=place) for platform in chosen or (default(),)) if unpack else ()
        )
        return StoredImages(labels=labels, platforms=chosen, unpacks=unpacks)

    async def _transfer(
        self, source: object, destination: object, progress: Report | None, *, local: bool | None
    ) -> None:
        from moored.kernel.ports.transfer import TRANSFER, StoredImages

        if local is None:
            local = not await self.server.works(TRANSFER.uri)
        async with under_lease(self._calls) as calls:
            if local:
                from moored.api.client.transfers.local import LocalTransfer

                await LocalTransfer(calls).transfer(source, destination, progress)
                return
            from moored.api.client.transfers.remote import RemoteTransfer

            remote = RemoteTransfer(calls)
            try:
                await remote.transfer(source, destination, progress)
            except InvalidArgument as error:
                # A snapshotter that the daemon's transfers are not configured for is filled afterwards.
                if not isinstance(destination, StoredImages) or _NO_UNPACK not in error.text:
                    raise
                await remote.transfer(source, replace(destination, unpacks=()), progress)

    async def _unpacked(self, name: str, wanted: StoredImages, progress: Report | None) -> Image:
        """Give an image, unpacked as was wanted: the daemon leaves out what it is not configured for."""
        from moored.api.client import unpacking

        image = await self.images.get(name)
        for one in wanted.unpacks:
            try:
                await unpacking.unpack(self._calls, image, one.snapshotter, platform=one.platform, progress=progress)
            except NotFound:
                if wanted.platforms:
                    raise
        return image


def _bound(calls: Calls) -> Client:
    made = Client.__new__(Client)
    made._calls = calls
    return made
