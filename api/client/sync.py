"""The client library for programs without an event loop: the same classes and methods, whose calls wait.

    from moored.api.client.sync import Client

    with Client() as client:
        for image in client.images.list():
            print(image.name)

Any threads may use one client. Functions that a call is given (`progress`, for example) are called on the client's own
thread, and must not call the client. Written by contrib/dev/syncgen.py; do not edit.
"""

from __future__ import annotations

import builtins
import os
import signal as signals
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from moored.api.client.client import ANYBODY, Client as AsyncClient, FIFO_FOLDER
from moored.api.client.connection import DEFAULT_TIMEOUT
from moored.api.client.containers import Container as AsyncContainer, Containers as AsyncContainers, Result, USUAL
from moored.api.client.content import Content as AsyncContent, Reader as AsyncReader, SMALL, Writer as AsyncWriter
from moored.api.client.diffs import Diffs as AsyncDiffs
from moored.api.client.events import Event, Events as AsyncEvents
from moored.api.client.images import Completeness, Images as AsyncImages
from moored.api.client.leases import DAY, Leases as AsyncLeases
from moored.api.client.mounts import Mounts as AsyncMounts
from moored.api.client.namespaces import Namespace, Namespaces as AsyncNamespaces
from moored.api.client.portal import Portal, Twin, awaited, fed
from moored.api.client.registries import RegistryOptions
from moored.api.client.resources import Resources
from moored.api.client.sandboxes import RUNTIME, SANDBOXER, Sandbox as AsyncSandbox, Sandboxes as AsyncSandboxes
from moored.api.client.server import Daemon as AsyncDaemon, PluginInfo, RuntimeInfo, Server as AsyncServer, Version
from moored.api.client.snapshots import DEFAULT, Snapshots as AsyncSnapshots
from moored.api.client.spec import NO_TEXTS, Options
from moored.api.client.stdio import Input as AsyncInput, Io, Output as AsyncOutput, PIPES
from moored.api.client.tasks import Process as AsyncProcess, Task as AsyncTask
from moored.api.moored.daemon.v1 import daemon_pb2
from moored.api.types.runc.options import oci_pb2
from moored.kernel.imagespec.documents import ImageConfig, Manifest
from moored.kernel.imagespec.platforms import Platform
from moored.kernel.payloads import Packed, Payload
from moored.kernel.ports.containers import Container as containers_Container, TypedBytes
from moored.kernel.ports.content import Chunk, Digest, Info, MAX_CHUNK, NO_LABELS, Status
from moored.kernel.ports.images import Descriptor, Image
from moored.kernel.ports.introspection import ServerIdentity
from moored.kernel.ports.leases import Lease, Resource
from moored.kernel.ports.mounts import Activation, Mount, NO_LABELS as mounts_NO_LABELS
from moored.kernel.ports.sandboxes import Sandbox as sandboxes_Sandbox, SandboxExit, SandboxInstance, SandboxStatus
from moored.kernel.ports.snapshots import Info as snapshots_Info, Labels, NO_LABELS as snapshots_NO_LABELS, Usage
from moored.kernel.ports.tasks import Exit, Metric, ProcessInfo, ProcessState
from moored.kernel.ports.transfer import Report
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Output(Twin):
    """What a process writes. Concurrency: one reader at a time. Nothing is read ahead: a process waits for its reader.

    Iterating gives pieces as they come, until every process that has the stream has closed it.
    """

    _async: AsyncOutput

    def read(self, size: int = -1) -> bytes:
        """Give what there is, at most so many bytes, waiting for the first; nothing at the end. All of it for -1."""
        return self._portal.call(lambda: self._async.read(size))

    def readline(self, limit: int = 1 << 20) -> bytes:
        """Give the bytes up to a newline, that included, or up to the end. Raises InvalidArgument over the limit."""
        return self._portal.call(lambda: self._async.readline(limit))

    def pieces(self) -> Iterator[bytes]:
        """Give what comes, piece by piece, to the end."""
        return self._portal.iterate(lambda: self._async.pieces())

    def __iter__(self) -> Iterator[bytes]:
        return self._portal.iterate(lambda: self._async.__aiter__())

    def close(self) -> None:
        """Let go of it; what is in it is lost. Again is harmless."""
        self._portal.call(lambda: self._async.close())

    def abandon(self) -> None:
        """Let go of it at once."""
        self._portal.run(lambda: self._async.abandon())


class Input(Twin):
    """What a process reads. Concurrency: one writer at a time.

    The FIFO is opened by the first write, once it has a reader: what is written before that would be lost with it.
    """

    _async: AsyncInput

    def write(self, data: bytes) -> None:
        """Write all of the data, waiting for room. Raises FailedPrecondition once the process reads no more."""
        self._portal.call(lambda: self._async.write(data))

    def close(self) -> None:
        """Let the process read the end of its input; again is harmless."""
        self._portal.call(lambda: self._async.close())

    def abandon(self) -> None:
        """Let go of it without telling anybody."""
        self._portal.run(lambda: self._async.abandon())

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._async.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._portal.call(lambda: self._async.__aexit__(kind, error, traceback))


class Server(Twin):
    """Any daemon of this API. Errors: those of the connection, and those named."""

    _async: AsyncServer

    def version(self) -> Version:
        """Ask for version and revision."""
        return self._portal.call(lambda: self._async.version())

    def identity(self) -> ServerIdentity:
        """Ask who it is: uuid, pid, pid namespace, deprecated things in use."""
        return self._portal.call(lambda: self._async.identity())

    def plugins(self, *filters: str) -> list[PluginInfo]:
        """List the plugins that match any filter (fields `type`, `id`), all without one. InvalidArgument."""
        return self._portal.call(lambda: self._async.plugins(*filters))

    def works(self, type: str, id: str = '') -> bool:
        """Whether there is a plugin of the type (and id) that started."""
        return self._portal.call(lambda: self._async.works(type, id))

    def runtime(self, name: str = 'io.containerd.runc.v2', options: TypedBytes | None = None) -> RuntimeInfo:
        """Ask a runtime, by its name or path, who it is. Raises Unimplemented before containerd 2.0."""
        return self._portal.call(lambda: self._async.runtime(name, options))

    def healthy(self) -> bool:
        """Whether it says that it serves."""
        return self._portal.call(lambda: self._async.healthy())


class Daemon(Twin):
    """What only moored tells. Errors: Unimplemented from any other daemon."""

    _async: AsyncDaemon

    def plugins(self) -> daemon_pb2.PluginsResponse:
        """Every plugin with its outcome, in the order of start."""
        return self._portal.call(lambda: self._async.plugins())

    def config(self) -> daemon_pb2.ConfigResponse:
        """The configuration in force."""
        return self._portal.call(lambda: self._async.config())

    def check(self) -> daemon_pb2.CheckResponse:
        """What the files on disk would change."""
        return self._portal.call(lambda: self._async.check())

    def backup(self) -> Iterator[bytes]:
        """Yield the pieces of a file with a copy of all metadata, as it is at one moment after the call.

        Raises ResourceExhausted where the daemon has no room to make it.
        """
        return self._portal.iterate(lambda: self._async.backup())


class Namespaces(Twin):
    """All of them, whatever namespace the client is bound to. Errors as `kernel.ports.namespaces`."""

    _async: AsyncNamespaces

    def list(self) -> list[Namespace]:
        """Give all, by name."""
        return self._portal.call(lambda: self._async.list())

    def get(self, name: str) -> Namespace:
        """Give one; a name that is not there has no labels."""
        return self._portal.call(lambda: self._async.get(name))

    def create(self, name: str, labels: Mapping[str, str] = NO_LABELS) -> Namespace:
        """Add one. Raises AlreadyExists, InvalidArgument."""
        return self._portal.call(lambda: self._async.create(name, labels))

    def label(self, name: str, labels: Mapping[str, str]) -> None:
        """Set some labels, an empty value removes one; a namespace that is not there is made."""
        self._portal.call(lambda: self._async.label(name, labels))

    def delete(self, name: str) -> None:
        """Remove an empty one. Raises NotFound, FailedPrecondition naming what is left in it."""
        self._portal.call(lambda: self._async.delete(name))


class Images(Twin):
    """The images of the namespace. Errors, beside those of the connection, as `kernel.ports.images.ImageStore`.

    Where an image is asked for, its name or the record will do; a platform of None is the host's.
    """

    _async: AsyncImages

    def get(self, name: str) -> Image:
        """Give one. Raises NotFound."""
        return self._portal.call(lambda: self._async.get(name))

    def list(self, *filters: str) -> list[Image]:
        """Give those that match any filter (`name`, `target.digest`, `target.mediatype`, `labels`), by name."""
        return self._portal.call(lambda: self._async.list(*filters))

    def create(self, image: Image) -> Image:
        """Add one. Raises AlreadyExists."""
        return self._portal.call(lambda: self._async.create(image))

    def update(self, image: Image, paths: Sequence[str] = ()) -> Image:
        """Replace all of one, or what paths name (`target`, `labels`, `labels.KEY`). Raises NotFound."""
        return self._portal.call(lambda: self._async.update(image, paths))

    def put(self, image: Image) -> Image:
        """Add one, or replace the one that has the name."""
        return self._portal.call(lambda: self._async.put(image))

    def tag(self, name: str, new: str, *, force: bool = False) -> Image:
        """Give an image another name; force takes it from the image that has it. Raises NotFound, AlreadyExists."""
        return self._portal.call(lambda: self._async.tag(name, new, force=force))

    def label(self, name: str, labels: Mapping[str, str]) -> Image:
        """Set some labels, an empty value removes one, and give the result."""
        return self._portal.call(lambda: self._async.label(name, labels))

    def delete(self, name: str, *, digest: str = '', sync: bool = False) -> None:
        """Remove a name, with a digest only while it points there; sync waits until its content is gone. NotFound."""
        self._portal.call(lambda: self._async.delete(name, digest=digest, sync=sync))

    def manifest(self, image: str | Image, platform: Platform | None = None) -> tuple[Descriptor, Manifest]:
        """Give the manifest that suits the platform best. Raises NotFound, InvalidArgument for what is no image's."""
        return self._portal.call(lambda: self._async.manifest(image, platform))

    def config(self, image: str | Image, platform: Platform | None = None) -> ImageConfig:
        """Give the config of the platform's manifest. Raises as `manifest`."""
        return self._portal.call(lambda: self._async.config(image, platform))

    def chain_id(self, image: str | Image, platform: Platform | None = None) -> str:
        """Give the name of the snapshot that all layers make; empty without layers. Raises as `manifest`."""
        return self._portal.call(lambda: self._async.chain_id(image, platform))

    def platforms(self, image: str | Image) -> builtins.list[Platform]:
        """Give the platforms whose manifests are in the store."""
        return self._portal.call(lambda: self._async.platforms(image))

    def check(self, image: str | Image, platform: Platform | None = None) -> Completeness:
        """Say which objects of the platform's image are in the store and which are not."""
        return self._portal.call(lambda: self._async.check(image, platform))

    def size(self, image: str | Image, platform: Platform | None = None) -> int:
        """Give the bytes of the platform's objects that are in the store."""
        return self._portal.call(lambda: self._async.size(image, platform))


class Reader(Twin):
    """An open blob, with a position for `read`. Leaving `with` closes it. Concurrency: any calls may overlap.

    Errors: NotFound once the blob is deleted, DataLoss if it is shorter than it was, FailedPrecondition when closed.
    """

    _async: AsyncReader

    @property
    def digest(self) -> Digest:
        """Which blob it is."""
        return self._async.digest

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._async.size

    def read(self, size: int = -1) -> bytes:
        """Give so many bytes from the position on, all that are left for -1; fewer only at the end, then none."""
        return self._portal.call(lambda: self._async.read(size))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as files do, and give it. Raises InvalidArgument for one before the beginning."""
        return self._portal.run(lambda: self._async.seek(offset, whence))

    def tell(self) -> int:
        """Give the position."""
        return self._portal.run(lambda: self._async.tell())

    def read_at(self, offset: int, size: int = MAX_CHUNK) -> bytes:
        """Give the bytes from offset on, `size` or MAX_CHUNK of them, fewer only before the end. Raises OutOfRange."""
        return self._portal.call(lambda: self._async.read_at(offset, size))

    def chunks(self, offset: int = 0, size: int = 0) -> Iterator[bytes]:
        """Give the same piece by piece, each of at most MAX_CHUNK bytes; size 0 goes to the end."""
        return self._portal.iterate(lambda: self._async.chunks(offset, size))

    def fileno(self) -> int | None:
        """Give None: the bytes are the daemon's."""
        return self._portal.run(lambda: self._async.fileno())

    def close(self) -> None:
        """Let go of the blob; again is harmless."""
        self._portal.call(lambda: self._async.close())

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._async.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._portal.call(lambda: self._async.__aexit__(kind, error, traceback))


class Writer(Twin):
    """An open ingest; nobody else can open its ref meanwhile. Leaving `with` closes it, the bytes stay.

    Errors: the daemon's, which close the writer; Aborted once the ingest was; FailedPrecondition when closed.
    Concurrency: one call after the other. Cancellation: a cancelled call did all of its work or none of it.
    """

    _async: AsyncWriter

    @property
    def ref(self) -> str:
        """The ingest's name."""
        return self._async.ref

    @property
    def offset(self) -> int:
        """How many bytes it has."""
        return self._async.offset

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return self._async.digest

    def status(self) -> Status:
        """Give the state of the ingest."""
        return self._portal.call(lambda: self._async.status())

    def write(self, data: Chunk) -> int:
        """Append all of the data and give the new offset."""
        return self._portal.call(lambda: self._async.write(data))

    def truncate(self, size: int = 0) -> None:
        """Cut it to nothing. Raises OutOfRange for a size that it has not, Unimplemented for other sizes than 0."""
        self._portal.call(lambda: self._async.truncate(size))

    def commit(self, size: int = 0, expected: str = '', labels: Mapping[str, str] = NO_LABELS) -> Info:
        """Make the ingest a blob, durable and visible when this returns, and close the writer.

        size, if not 0, and expected, if not empty, must be the bytes': FailedPrecondition, and the ingest stays. Raises
        AlreadyExists `content D` for a blob that is there; the ingest goes then.
        """
        return self._portal.call(lambda: self._async.commit(size, expected, labels))

    def close(self) -> None:
        """Let go of the ref and keep the ingest, to be resumed or aborted; again, or after commit, is harmless."""
        self._portal.call(lambda: self._async.close())

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._async.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._portal.call(lambda: self._async.__aexit__(kind, error, traceback))


class Content(Twin):
    """The blobs of the namespace. Errors, beside those of the connection, as `kernel.ports.content.ContentStore`."""

    _async: AsyncContent

    def info(self, digest: str) -> Info:
        """Give what is known of a blob. Raises NotFound."""
        return self._portal.call(lambda: self._async.info(digest))

    def exists(self, digest: str) -> bool:
        """Whether the namespace has a blob."""
        return self._portal.call(lambda: self._async.exists(digest))

    def walk(self, *filters: str) -> Iterator[Info]:
        """Give all blobs that match any filter (fields `digest`, `labels`), by digest."""
        return self._portal.iterate(lambda: self._async.walk(*filters))

    def update(self, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Replace a blob's labels, or those that paths name (`labels.KEY`), and give the result."""
        return self._portal.call(lambda: self._async.update(digest, labels, paths))

    def label(self, digest: str, labels: Mapping[str, str]) -> Info:
        """Set some labels, an empty value removes one, and give the result."""
        return self._portal.call(lambda: self._async.label(digest, labels))

    def delete(self, digest: str) -> None:
        """Remove a blob, whoever refers to it. Raises NotFound."""
        self._portal.call(lambda: self._async.delete(digest))

    def reader(self, digest: str, size: int | None = None) -> Reader:
        """Open a blob. Raises NotFound, DataLoss if it has not `size` bytes where that is given."""
        return Reader._of(self._portal, self._portal.call(lambda: self._async.reader(digest, size)))

    def read(self, digest: str, *, limit: int = SMALL) -> bytes:
        """Give a small blob whole. Raises NotFound, ResourceExhausted for one of more bytes than the limit."""
        return self._portal.call(lambda: self._async.read(digest, limit=limit))

    def verify(self, digest: str) -> Info:
        """Read a blob and hash it. Raises NotFound, DataLoss for other bytes than its digest says."""
        return self._portal.call(lambda: self._async.verify(digest))

    def writer(self, ref: str, total: int = 0, expected: str = '') -> Writer:
        """Begin the ingest `ref`, or resume it: `Writer.offset` tells how many bytes are there.

        Raises AlreadyExists for an expected blob that is there, Unavailable while the ref is open elsewhere.
        """
        return Writer._of(self._portal, self._portal.call(lambda: self._async.writer(ref, total, expected)))

    def write(self, ref: str, data: bytes | Iterable[bytes], *, total: int = 0, expected: str = '', labels: Mapping[str, str] = NO_LABELS) -> Info:
        """Store bytes, from the first on, and give the blob; one that is there already is given as it is.

        total and expected, where they are known, must be the bytes': FailedPrecondition. Waits for a ref that is open
        elsewhere. After an error the ingest stays.
        """
        return self._portal.call(lambda: self._async.write(ref, fed(data), total=total, expected=expected, labels=labels))

    def status(self, ref: str) -> Status:
        """Give the state of an ingest. Raises NotFound."""
        return self._portal.call(lambda: self._async.status(ref))

    def list_statuses(self, *filters: str) -> list[Status]:
        """Give all ingests that match any filter (field `ref`)."""
        return self._portal.call(lambda: self._async.list_statuses(*filters))

    def abort(self, ref: str) -> None:
        """Remove an ingest. Raises NotFound."""
        self._portal.call(lambda: self._async.abort(ref))


class Leases(Twin):
    """The leases of the namespace. Errors as `kernel.ports.leases`.

    `Client.lease` makes one for a block and puts the calls in it under it.
    """

    _async: AsyncLeases

    def list(self, *filters: str) -> list[Lease]:
        """Give those that match any filter (fields `id`, `labels`), by id."""
        return self._portal.call(lambda: self._async.list(*filters))

    def create(self, id: str = '', *, seconds: float | None = None, labels: Mapping[str, str] = NO_LABELS) -> Lease:
        """Add one, under a new id if none is given; after the seconds it holds nothing any more. AlreadyExists."""
        return self._portal.call(lambda: self._async.create(id, seconds=seconds, labels=labels))

    def delete(self, id: str, *, sync: bool = False) -> None:
        """Remove one; sync waits until what only it held is gone. Raises NotFound."""
        self._portal.call(lambda: self._async.delete(id, sync=sync))

    def add(self, lease: str, resource: Resource) -> None:
        """Hold one more thing."""
        self._portal.call(lambda: self._async.add(lease, resource))

    def remove(self, lease: str, resource: Resource) -> None:
        """Hold it no longer."""
        self._portal.call(lambda: self._async.remove(lease, resource))

    def resources(self, lease: str) -> Sequence[Resource]:
        """Give what it holds."""
        return self._portal.call(lambda: self._async.resources(lease))


class Snapshots(Twin):
    """The namespace's snapshots. Errors, beside those of the connection, as `kernel.ports.snapshots.Snapshotter`."""

    _async: AsyncSnapshots

    @property
    def name(self) -> str:
        """The snapshotter's."""
        return self._async.name

    def prepare(self, key: str, parent: str = '', labels: Labels = snapshots_NO_LABELS) -> list[Mount]:
        """Make an active snapshot that shows what its parent shows, and give its mounts."""
        return self._portal.call(lambda: self._async.prepare(key, parent, labels))

    def view(self, key: str, parent: str = '', labels: Labels = snapshots_NO_LABELS) -> list[Mount]:
        """Make a read-only snapshot of the parent, and give its mounts."""
        return self._portal.call(lambda: self._async.view(key, parent, labels))

    def mounts(self, key: str) -> list[Mount]:
        """Give the mounts of an active snapshot or a view."""
        return self._portal.call(lambda: self._async.mounts(key))

    def commit(self, name: str, key: str, labels: Labels = snapshots_NO_LABELS, parent: str = '') -> None:
        """Turn the active snapshot `key` into the committed one `name`, with these labels; a parent needs `rebase`."""
        self._portal.call(lambda: self._async.commit(name, key, labels, parent))

    def stat(self, name: str) -> snapshots_Info:
        """Give what is known of a snapshot. Raises NotFound."""
        return self._portal.call(lambda: self._async.stat(name))

    def exists(self, name: str) -> bool:
        """Whether there is a snapshot of that name or key."""
        return self._portal.call(lambda: self._async.exists(name))

    def update(self, name: str, labels: Labels, paths: Sequence[str] = ()) -> snapshots_Info:
        """Replace a snapshot's labels, or those that paths name (`labels.KEY`), and give the result."""
        return self._portal.call(lambda: self._async.update(name, labels, paths))

    def usage(self, name: str) -> Usage:
        """Tell what it takes by itself."""
        return self._portal.call(lambda: self._async.usage(name))

    def remove(self, name: str) -> None:
        """Remove a snapshot. Raises NotFound, FailedPrecondition for one with children."""
        self._portal.call(lambda: self._async.remove(name))

    def walk(self, *filters: str) -> Iterator[snapshots_Info]:
        """Give all that match any filter (fields `kind`, `name`, `parent`, `labels`), by name."""
        return self._portal.iterate(lambda: self._async.walk(*filters))

    def cleanup(self) -> None:
        """Remove files that belong to no snapshot; of no effect where the daemon sees to that by itself."""
        self._portal.call(lambda: self._async.cleanup())


class Diffs(Twin):
    """The daemon's differs. Errors, beside those of the connection, as `kernel.ports.diff`. Without a deadline."""

    _async: AsyncDiffs

    def apply(self, descriptor: Descriptor, mounts: Sequence[Mount], *, sync_fs: bool = False) -> Descriptor:
        """Unpack a layer; gives the descriptor of its tar, whose digest is the diff id. sync_fs makes it durable."""
        return self._portal.call(lambda: self._async.apply(descriptor, mounts, sync_fs=sync_fs))

    def compare(self, lower: Sequence[Mount], upper: Sequence[Mount], *, media_type: str = '', reference: str = '', labels: Mapping[str, str] = NO_LABELS, source_date_epoch: int | None = None) -> Descriptor:
        """Store what makes the lower file system the upper one as a layer, which nothing refers to: hold a lease.

        media_type is a gzipped OCI layer's by default; source_date_epoch is nanoseconds since 1970.
        """
        return self._portal.call(lambda: self._async.compare(lower, upper, media_type=media_type, reference=reference, labels=labels, source_date_epoch=source_date_epoch))


class Events(Twin):
    """The daemon's events, those of all namespaces."""

    _async: AsyncEvents

    def subscribe(self, *filters: str) -> AbstractContextManager[Iterator[Event]]:
        """Subscribe for the block; the value gives what happens from now on.

        Filters have the fields `namespace`, `topic` and `event.FIELD`; without any, all events come. Iterating raises
        Unavailable when the daemon ends, ResourceExhausted where it drops one who reads too slowly.
        """
        return self._portal.mapped_block(lambda: self._async.subscribe(*filters), lambda one: self._portal.iterate(lambda: one))

    def publish(self, topic: str, message: Payload | Packed) -> None:
        """Tell all subscribers something, in the client's namespace. Raises InvalidArgument for a malformed topic."""
        self._portal.call(lambda: self._async.publish(topic, message))


class Process(Twin):
    """A process of a container, and the client's ends of its streams. As a context manager: ended and gone after it.

    Errors, beside those of the connection: NotFound once it is deleted, FailedPrecondition and Unknown with what the
    runtime says. Concurrency: any calls may overlap. Cancellation: the caller stops waiting, nothing else changes.
    """

    _async: AsyncProcess

    @property
    def container_id(self) -> str:
        """The container's."""
        return self._async.container_id

    @property
    def exec_id(self) -> str:
        """Which process of the container; empty for its first."""
        return self._async.exec_id

    @property
    def pid(self) -> int:
        """Its pid on the host, 0 before an added process was started."""
        return self._async.pid

    @property
    def stdin(self) -> Input | None:
        """Where it reads, None if there is nothing to write to."""
        return Input._maybe(self._portal, self._async.stdin)

    @property
    def stdout(self) -> Output | None:
        """What it writes, None if that goes elsewhere."""
        return Output._maybe(self._portal, self._async.stdout)

    @property
    def stderr(self) -> Output | None:
        """What it complains, None if that goes elsewhere or there is a terminal."""
        return Output._maybe(self._portal, self._async.stderr)

    def start(self) -> int:
        """Run it and give its pid."""
        return self._portal.call(lambda: self._async.start())

    def wait(self) -> Exit:
        """Wait for its end, also before it was started and after it ended; the daemon may restart meanwhile."""
        return self._portal.call(lambda: self._async.wait())

    def kill(self, signal: int | str = signals.SIGTERM, *, everything: bool = False) -> None:
        """Send a signal, by number or name, to it or to everything in the container. Raises NotFound if it ended."""
        self._portal.call(lambda: self._async.kill(signal, everything=everything))

    def resize(self, width: int, height: int) -> None:
        """Set the size of its terminal, in characters; without a terminal nothing happens."""
        self._portal.call(lambda: self._async.resize(width, height))

    def close_stdin(self) -> None:
        """Let it read the end of its input, once every client has closed its own end."""
        self._portal.call(lambda: self._async.close_stdin())

    def state(self) -> ProcessState:
        """Ask how it is."""
        return self._portal.call(lambda: self._async.state())

    def delete(self, *, force: bool = False) -> Exit:
        """Forget it and give how it ended; force kills it before. Its streams are closed.

        Raises FailedPrecondition or Unknown for one that runs.
        """
        return self._portal.call(lambda: self._async.delete(force=force))

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._async.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._portal.call(lambda: self._async.__aexit__(kind, error, traceback))


class Task(Process):
    """The first process of a container, and all others with it."""

    _async: AsyncTask

    def pause(self) -> None:
        """Freeze all processes."""
        self._portal.call(lambda: self._async.pause())

    def resume(self) -> None:
        """Thaw them."""
        self._portal.call(lambda: self._async.resume())

    def pids(self) -> list[ProcessInfo]:
        """List all processes in the container, by their pids on the host; empty once it stopped."""
        return self._portal.call(lambda: self._async.pids())

    def metrics(self) -> Metric:
        """Read the counters of its cgroup (`io.containerd.cgroups.v1.Metrics`, or v2). Raises NotFound for none."""
        return self._portal.call(lambda: self._async.metrics())

    def update(self, resources: Resources | Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> None:
        """Change its limits; a mapping is a LinuxResources of the runtime spec."""
        self._portal.call(lambda: self._async.update(resources, annotations))

    def exec(self, args: Sequence[str], io: Io = PIPES, *, exec_id: str = '', env: Mapping[str, str | None] = NO_TEXTS, cwd: str = '', user: str = '', privileged: bool = False) -> Process:
        """Add a process, which `start` runs; as the container's own but for what is given.

        A user's name is looked up in the container's files. Raises AlreadyExists for an exec id that is taken.
        """
        return Process._of(self._portal, self._portal.call(lambda: self._async.exec(args, io, exec_id=exec_id, env=env, cwd=cwd, user=user, privileged=privileged)))

    def exec_process(self, document: Mapping[str, Any], io: Io = PIPES, *, exec_id: str = '') -> Process:
        """Add a process that is given as the runtime spec has it. Raises as `exec`."""
        return Process._of(self._portal, self._portal.call(lambda: self._async.exec_process(document, io, exec_id=exec_id)))

    def process(self, exec_id: str, *, attach: bool = False) -> Process:
        """Find a process that was added; attach opens its streams again. Raises NotFound."""
        return Process._of(self._portal, self._portal.call(lambda: self._async.process(exec_id, attach=attach)))

    def checkpoint(self, *, exit: bool = False, path: str = '', work_path: str = '', options: oci_pb2.CheckpointOptions | None = None) -> list[Descriptor]:
        """Write its state (CRIU), into the content store unless a folder is given, and end it if so wanted.

        Gives what was stored, which nothing refers to: hold a lease. Without a deadline.
        """
        return self._portal.call(lambda: self._async.checkpoint(exit=exit, path=path, work_path=work_path, options=options))


class Container(Twin):
    """One container, with its record as last read. Errors: NotFound once it is deleted."""

    _async: AsyncContainer

    @property
    def id(self) -> str:
        """Its id."""
        return self._async.id

    @property
    def record(self) -> containers_Container:
        """All that is stored of it."""
        return self._async.record

    def refresh(self) -> containers_Container:
        """Read the record anew."""
        return self._portal.call(lambda: self._async.refresh())

    def spec(self) -> dict[str, Any]:
        """Give its OCI runtime spec. Raises FailedPrecondition for one that is none."""
        return self._portal.call(lambda: self._async.spec())

    def image(self) -> Image:
        """Give the image that it was made of. Raises NotFound for none."""
        return self._portal.call(lambda: self._async.image())

    def label(self, labels: Mapping[str, str]) -> containers_Container:
        """Set some labels, an empty value removes one, and give the record."""
        return self._portal.call(lambda: self._async.label(labels))

    def update(self, record: containers_Container, paths: Sequence[str]) -> containers_Container:
        """Replace what paths name (`labels`, `spec`, `extensions`, `image`, `snapshotkey`), and give the record."""
        return self._portal.call(lambda: self._async.update(record, paths))

    def create_task(self, io: Io = PIPES, *, checkpoint: Descriptor | None = None, options: TypedBytes | None = None, runtime_path: str = '') -> Task:
        """Make the task, which `Task.start` runs; checkpoint is what to restore it from.

        A process with a terminal needs streams with one. Raises AlreadyExists for a container with a task.
        """
        return Task._of(self._portal, self._portal.call(lambda: self._async.create_task(io, checkpoint=checkpoint, options=options, runtime_path=runtime_path)))

    def task(self, *, attach: bool = False) -> Task:
        """Find its task; attach opens its streams again. Raises NotFound."""
        return Task._of(self._portal, self._portal.call(lambda: self._async.task(attach=attach)))

    def run(self, io: Io = PIPES, *, stdin: bytes | None = None) -> Result:
        """Run it to its end, with this input, and delete the task; what it writes is kept in memory.

        When cancelled, or after an error, nothing runs any more.
        """
        return self._portal.call(lambda: self._async.run(io, stdin=stdin))

    def delete(self, *, force: bool = False, keep_snapshot: bool = False) -> None:
        """Remove the record, and its snapshot unless that is to be kept; force ends its task before.

        Raises FailedPrecondition for a container with a task.
        """
        self._portal.call(lambda: self._async.delete(force=force, keep_snapshot=keep_snapshot))


class Containers(Twin):
    """The containers of the namespace. Errors, beside those of the connection, as `kernel.ports.containers`."""

    _async: AsyncContainers

    def get(self, id: str) -> Container:
        """Give one. Raises NotFound."""
        return Container._of(self._portal, self._portal.call(lambda: self._async.get(id)))

    def list(self, *filters: str) -> list[Container]:
        """Give those that match any filter (fields `id`, `runtime.name`, `image`, `labels`), by id."""
        return [Container._of(self._portal, one) for one in self._portal.call(lambda: self._async.list(*filters))]

    def states(self) -> dict[str, ProcessState]:
        """Give the state of every container's task, by the container's id; those without a task are left out."""
        return self._portal.call(lambda: self._async.states())

    def metrics(self, *ids: str) -> builtins.list[Metric]:
        """Read the counters of the tasks that have some: of all, or of those with these ids."""
        return self._portal.call(lambda: self._async.metrics(*ids))

    def create(self, id: str, image: str | Image | None = None, options: Options = USUAL, *, platform: Platform | None = None, snapshotter: str = '', snapshot_labels: Mapping[str, str] = NO_LABELS, rootfs: Path | None = None, runtime: str = '', runtime_options: TypedBytes | None = None, labels: Mapping[str, str] = NO_LABELS, image_labels: bool = True, config: ImageConfig | None = None, sandbox: str = '', spec: Mapping[str, Any] | None = None) -> Container:
        """Make a container of an image, whole or not at all; the image is unpacked if it is not yet.

        rootfs         a folder of the host in place of a snapshot of the image; either will do
        runtime        a name, or a shim's path; empty for the namespace's default
        config         the image's, where the caller has read it before
        sandbox        id of the sandbox that it is to run in
        image_labels   take over the labels of the image's config, but for those with a meaning to daemons
        spec           the finished spec, in place of one made from the options

        Looking up a user's name means mounting the snapshot, for which the client has to be root on the daemon's host.
        Raises AlreadyExists, NotFound for the image or a user, InvalidArgument for options that cannot be.
        """
        return Container._of(self._portal, self._portal.call(lambda: self._async.create(id, image, options, platform=platform, snapshotter=snapshotter, snapshot_labels=snapshot_labels, rootfs=rootfs, runtime=runtime, runtime_options=runtime_options, labels=labels, image_labels=image_labels, config=config, sandbox=sandbox, spec=spec)))


class Sandbox(Twin):
    """One sandbox, with its record as last read. As a context manager: ended and gone after it.

    Errors: NotFound once it is deleted, and what its controller says.
    """

    _async: AsyncSandbox

    @property
    def id(self) -> str:
        """Its id."""
        return self._async.id

    @property
    def record(self) -> sandboxes_Sandbox:
        """All that is stored of it."""
        return self._async.record

    def refresh(self) -> sandboxes_Sandbox:
        """Read the record anew."""
        return self._portal.call(lambda: self._async.refresh())

    def update(self, record: sandboxes_Sandbox, paths: Sequence[str]) -> sandboxes_Sandbox:
        """Replace what paths name (`labels`, `labels.KEY`, `extensions`, `runtime`, `spec`), tell the controller.

        Gives the record. A sandbox that was not started takes no notice.
        """
        return self._portal.call(lambda: self._async.update(record, paths))

    def start(self) -> SandboxInstance:
        """Make it ready for containers; one that fails to is gone from its controller."""
        return self._portal.call(lambda: self._async.start())

    def stop(self, seconds: int = 0) -> None:
        """End all that runs in it, by force after so many seconds; again is harmless."""
        self._portal.call(lambda: self._async.stop(seconds))

    def wait(self) -> SandboxExit:
        """Wait for its end; the daemon may restart meanwhile."""
        return self._portal.call(lambda: self._async.wait())

    def status(self, *, verbose: bool = False) -> SandboxStatus:
        """Tell what it is doing; verbose asks for more, for people."""
        return self._portal.call(lambda: self._async.status(verbose=verbose))

    def platform(self) -> Platform:
        """Tell what containers in it have to be made for."""
        return self._portal.call(lambda: self._async.platform())

    def metrics(self) -> Metric:
        """Read the counters of all that is in it. Raises NotFound where there are none."""
        return self._portal.call(lambda: self._async.metrics())

    def delete(self) -> None:
        """End it with all that is in it, in any state, and remove its record. Raises NotFound for one without."""
        self._portal.call(lambda: self._async.delete())

    def __enter__(self) -> Self:
        self._portal.call(lambda: self._async.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._portal.call(lambda: self._async.__aexit__(kind, error, traceback))


class Sandboxes(Twin):
    """The sandboxes of the namespace. Errors, beside those of the connection, as `kernel.ports.sandboxes`.

    Unimplemented from every call of a daemon without such services, which is that of containerd before 1.7.
    """

    _async: AsyncSandboxes

    def get(self, id: str) -> Sandbox:
        """Give one. Raises NotFound."""
        return Sandbox._of(self._portal, self._portal.call(lambda: self._async.get(id)))

    def list(self, *filters: str) -> list[Sandbox]:
        """Give those that match any filter (fields `id`, `labels`), by id."""
        return [Sandbox._of(self._portal, one) for one in self._portal.call(lambda: self._async.list(*filters))]

    def create(self, id: str, *, runtime: str = RUNTIME, runtime_options: TypedBytes | None = None, sandboxer: str = SANDBOXER, spec: TypedBytes | None = None, rootfs: Sequence[Mount] = (), options: TypedBytes | None = None, netns: str = '', annotations: Mapping[str, str] = NO_LABELS, labels: Mapping[str, str] = NO_LABELS, extensions: Mapping[str, TypedBytes] | None = None) -> Sandbox:
        """Make a sandbox, whole or not at all; `Sandbox.start` makes it ready for containers.

        sandboxer    the controller that runs it
        options      for the controller, in a type that it knows
        netns        path of the network namespace that it is to have
        Raises AlreadyExists, NotFound for a controller that is not there, and what the controller says.
        """
        return Sandbox._of(self._portal, self._portal.call(lambda: self._async.create(id, runtime=runtime, runtime_options=runtime_options, sandboxer=sandboxer, spec=spec, rootfs=rootfs, options=options, netns=netns, annotations=annotations, labels=labels, extensions=extensions)))


class Mounts(Twin):
    """The namespace's activations. Errors, beside those of the connection, as `kernel.ports.mounts.MountManager`.

    Unimplemented from every call of a daemon without such a service, which is that of containerd before 2.2.
    """

    _async: AsyncMounts

    def activate(self, name: str, mounts: Sequence[Mount], *, labels: Mapping[str, str] = mounts_NO_LABELS, temporary: bool = False) -> Activation:
        """Have the mounts carried out that need it, and give those that are left to mount by oneself, in order.

        temporary   all of them, which leaves one bind mount
        Raises Unimplemented if none needs it, AlreadyExists for a name that is taken.
        """
        return self._portal.call(lambda: self._async.activate(name, mounts, labels=labels, temporary=temporary))

    def deactivate(self, name: str) -> None:
        """Undo one. Raises NotFound, Unknown for what is in use."""
        self._portal.call(lambda: self._async.deactivate(name))

    def activated(self, name: str, mounts: Sequence[Mount]) -> AbstractContextManager[Sequence[Mount]]:
        """For the block, have done what needs the daemon; the value is what is left to mount by oneself, in order."""
        return self._portal.block(lambda: self._async.activated(name, mounts))

    def info(self, name: str) -> Activation:
        """Give one. Raises NotFound."""
        return self._portal.call(lambda: self._async.info(name))

    def list(self) -> list[Activation]:
        """Give all, by name."""
        return self._portal.call(lambda: self._async.list())


class Client(Twin):
    """A connection to a daemon, with a namespace. Used as `with Client() as client`; calls may overlap.

    Errors of any call: Unavailable where no daemon answers, PermissionDenied for a socket that is not ours to use,
    DeadlineExceeded after `timeout` seconds for what should be quick; and what the daemon says, as the ports have it.
    Cancellation: the call is cancelled at the daemon too.
    """

    _async: AsyncClient

    def __init__(self, address: str | None = None, *, namespace: str | None = None, timeout: float = DEFAULT_TIMEOUT, fifo_folder: str | Path = FIFO_FOLDER) -> None:
        """Name the daemon's socket; nothing is dialled yet.

        address     a path, or `unix://` and a path; None: `$MOORED_ADDRESS`, `$CONTAINERD_ADDRESS`, moored's own
        namespace   None: `$CONTAINERD_NAMESPACE`, `default`
        fifo_folder where streams of processes are made, on the daemon's host
        Raises InvalidArgument for an address or a namespace that cannot be.
        """
        self._portal = Portal()
        self._async = AsyncClient(address, namespace=namespace, timeout=timeout, fifo_folder=fifo_folder)

    def __enter__(self) -> Self:
        self._portal.start()
        self._portal.call(lambda: self._async.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self._portal.call(lambda: self._async.__aexit__(kind, error, traceback))
        finally:
            self._portal.stop()

    @property
    def address(self) -> str:
        """The path of the daemon's socket."""
        return self._async.address

    @property
    def namespace(self) -> str:
        """The namespace of all calls."""
        return self._async.namespace

    @property
    def lease_id(self) -> str:
        """The lease that what is written belongs to, empty for none."""
        return self._async.lease_id

    def in_namespace(self, namespace: str) -> Client:
        """Give the same for another namespace; it shares the connection, and is closed with this one."""
        return Client._of(self._portal, self._portal.run(lambda: self._async.in_namespace(namespace)))

    def with_lease(self, lease_id: str) -> Client:
        """Give the same with all that is written held by a lease; it shares the connection."""
        return Client._of(self._portal, self._portal.run(lambda: self._async.with_lease(lease_id)))

    def lease(self, *, id: str = '', seconds: float | None = DAY, labels: Mapping[str, str] = NO_LABELS) -> AbstractContextManager[Client]:
        """Make a lease for the block; the value is a client under it. After the seconds it ends by itself."""
        return self._portal.mapped_block(lambda: self._async.lease(id=id, seconds=seconds, labels=labels), lambda one: Client._of(self._portal, one))

    @property
    def server(self) -> Server:
        """What the daemon tells of itself."""
        return Server._of(self._portal, self._async.server)

    @property
    def daemon(self) -> Daemon:
        """What only moored tells of itself."""
        return Daemon._of(self._portal, self._async.daemon)

    @property
    def namespaces(self) -> Namespaces:
        """All namespaces."""
        return Namespaces._of(self._portal, self._async.namespaces)

    @property
    def images(self) -> Images:
        """Names for content."""
        return Images._of(self._portal, self._async.images)

    @property
    def content(self) -> Content:
        """Blobs, and what becomes them."""
        return Content._of(self._portal, self._async.content)

    @property
    def leases(self) -> Leases:
        """What holds things."""
        return Leases._of(self._portal, self._async.leases)

    @property
    def diffs(self) -> Diffs:
        """Layers and file systems."""
        return Diffs._of(self._portal, self._async.diffs)

    @property
    def events(self) -> Events:
        """What happens."""
        return Events._of(self._portal, self._async.events)

    @property
    def containers(self) -> Containers:
        """Containers, and through them tasks."""
        return Containers._of(self._portal, self._async.containers)

    @property
    def sandboxes(self) -> Sandboxes:
        """What containers share."""
        return Sandboxes._of(self._portal, self._async.sandboxes)

    @property
    def mounts(self) -> Mounts:
        """What the daemon mounts for its clients."""
        return Mounts._of(self._portal, self._async.mounts)

    def snapshots(self, snapshotter: str = DEFAULT) -> Snapshots:
        """The snapshots of one snapshotter."""
        return Snapshots._of(self._portal, self._portal.run(lambda: self._async.snapshots(snapshotter)))

    def default_snapshotter(self) -> str:
        """Give the snapshotter that the namespace's label names, else `overlayfs`."""
        return self._portal.call(lambda: self._async.default_snapshotter())

    def unpack(self, image: str | Image, *, platform: Platform | None = None, snapshotter: str = '', progress: Report | None = None) -> str:
        """Unpack what is not unpacked yet and give the name of the top snapshot, empty for an image without layers.

        Raises NotFound for an image, manifest or layer that is missing, FailedPrecondition for a layer that is not what
        the config says.
        """
        return self._portal.call(lambda: self._async.unpack(image, platform=platform, snapshotter=snapshotter, progress=progress))

    def is_unpacked(self, image: str | Image, *, platform: Platform | None = None, snapshotter: str = '') -> bool:
        """Whether a snapshotter has all layers of an image, whose content may be missing then."""
        return self._portal.call(lambda: self._async.is_unpacked(image, platform=platform, snapshotter=snapshotter))

    def pull(self, reference: str, *, platforms: Sequence[Platform] = (), all_platforms: bool = False, unpack: bool = True, snapshotter: str = '', labels: Mapping[str, str] = NO_LABELS, registry: RegistryOptions = ANYBODY, progress: Report | None = None, local: bool | None = None) -> Image:
        """Fetch an image, give it the name that it has in the registry, and unpack it.

        reference   whole, with a host and a tag or digest
        platforms   the host's if none are named
        progress    told what happens, in the words of the daemon's transfer service
        local       whether this client fetches; None: the daemon if it can
        What has come before an error or a cancellation is there for the next attempt, for a day at most.
        Raises NotFound for no such image or none for the platforms, PermissionDenied, InvalidArgument for what is no
        image, FailedPrecondition for other bytes than a digest says.
        """
        return self._portal.call(lambda: self._async.pull(reference, platforms=platforms, all_platforms=all_platforms, unpack=unpack, snapshotter=snapshotter, labels=labels, registry=registry, progress=progress, local=local))

    def push(self, name: str, reference: str = '', *, platforms: Sequence[Platform] = (), registry: RegistryOptions = ANYBODY, progress: Report | None = None, local: bool | None = None) -> None:
        """Send an image to a registry, under its own name unless another is given.

        platforms   those of an index to send, all if none are named
        Raises NotFound for no such image, or one whose objects are not all there; PermissionDenied.
        """
        self._portal.call(lambda: self._async.push(name, reference, platforms=platforms, registry=registry, progress=progress, local=local))

    def import_archive(self, source: Path | Iterable[bytes], *, name: str = '', prefix: str = '', platforms: Sequence[Platform] = (), all_platforms: bool = False, unpack: bool = True, snapshotter: str = '', labels: Mapping[str, str] = NO_LABELS, progress: Report | None = None, local: bool | None = None) -> list[Image]:
        """Read an archive of images, an OCI layout or what `docker save` writes, compressed or not; gives the images.

        name     for the archive's index as a whole
        prefix   what the names of the archive's images must begin with, and what bare tags are put behind; without one
                 all names are taken, and bare tags are put behind `import-DATE`
        Raises Unknown for what is no such archive, InvalidArgument for one that is malformed, NotFound for one without
        a name or with missing parts.
        """
        return self._portal.call(lambda: self._async.import_archive(fed(source), name=name, prefix=prefix, platforms=platforms, all_platforms=all_platforms, unpack=unpack, snapshotter=snapshotter, labels=labels, progress=progress, local=local))

    def export_archive(self, names: Sequence[str], target: Path | Callable[[bytes], object], *, platforms: Sequence[Platform] = (), all_platforms: bool = False, docker_manifest: bool = True, nondistributable: bool = True, progress: Report | None = None, local: bool | None = None) -> None:
        """Write images as one archive: an OCI layout, which `docker load` takes too unless told otherwise.

        platforms          the host's if none are named
        nondistributable   with layers that only their publisher may give away
        A file that is named is made anew, and removed after an error. Raises NotFound for an image, or a part of one.
        """
        self._portal.call(lambda: self._async.export_archive(names, awaited(target), platforms=platforms, all_platforms=all_platforms, docker_manifest=docker_manifest, nondistributable=nondistributable, progress=progress, local=local))
