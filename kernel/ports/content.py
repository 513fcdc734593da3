"""Content: blobs named by their digest, and the ingests that they come from.

writer(ref) --write, write, ...--> ingest --commit--> blob --delete--> gone
                   close: the ingest stays, writer(ref) resumes it; abort(ref): the ingest goes
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self, TypeAlias

from moored.kernel.errors import InvalidArgument, ResourceExhausted
from moored.kernel.plugin import PluginType

MAX_CHUNK: Final = 1 << 20
"""Bytes that one read gives at most."""
MAX_REF_BYTES: Final = 128 << 10
"""Bytes of a ref in UTF-8."""

Chunk: TypeAlias = bytes | bytearray | memoryview
"""Bytes to write; not to be changed until the write has returned."""

ALGORITHMS: Final[Mapping[str, int]] = MappingProxyType({"sha256": 64, "sha384": 96, "sha512": 128})
"""Hash algorithms by name, with their number of hex digits."""
CANONICAL: Final = "sha256"
"""The algorithm where nothing asks for another."""

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})
"""The labels of a blob that has none."""

_SHAPE: Final = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX: Final = re.compile(r"[a-f0-9]+")


def digest_fault(text: str) -> str:
    """Say what is wrong with a digest in the words that clients know; "" if it is a good one."""
    algorithm, _, encoded = text.partition(":")
    if algorithm not in ALGORITHMS:
        return "unsupported digest algorithm" if _SHAPE.fullmatch(text) else "invalid checksum digest format"
    if not encoded:
        return "invalid checksum digest format"
    if len(encoded) != ALGORITHMS[algorithm]:
        return "invalid checksum digest length"
    return "" if _HEX.fullmatch(encoded) else "invalid checksum digest format"


class Digest(str):
    """A digest known to be good: `sha256:` and 64 hex digits in lower case, likewise sha384 (96) and sha512 (128).

    Making one of another text raises InvalidArgument, `X: invalid checksum digest format` (or `length`, or
    `X: unsupported digest algorithm`).
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text, unless it has been checked."""
        if isinstance(text, cls):
            return text
        if fault := digest_fault(text):
            raise InvalidArgument(f"{text[:256]}: {fault}")
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """The part before the colon, one of ALGORITHMS."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hex digits."""
        return self.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A blob. Times are nanoseconds since 1970, UTC; labels are empty in a store that keeps none."""

    digest: Digest
    size: int
    created_at: int
    updated_at: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """An ingest: offset is its size so far, total the size it was announced with, 0 if none was.

    Times are nanoseconds since 1970, UTC. expected is empty in a store that does not keep it.
    """

    ref: str
    offset: int
    total: int
    started_at: int
    updated_at: int
    expected: str = ""


class Reader(Protocol):
    """An open blob; it stays readable when the blob is deleted meanwhile. Leaving `async with` closes it.

    Errors: DataLoss naming the digest when the file is shorter than it was or cannot be read; FailedPrecondition when
    closed. Concurrency: any calls may overlap; close waits for those under way.
    """

    @property
    def digest(self) -> Digest:
        """Which blob it is."""

    @property
    def size(self) -> int:
        """Its bytes."""

    async def read_at(self, offset: int, size: int = MAX_CHUNK) -> bytes:
        """Give the bytes from offset on: `size` or MAX_CHUNK of them, fewer only before the end, none at the end.

        Raises OutOfRange `read past object length N bytes` beyond the end, InvalidArgument for a negative number.
        """

    def chunks(self, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes]:
        """Give the same as `read_at` piece by piece, reading ahead; size 0 goes to the end. Errors come with the first.

        A caller that stops half-way closes the generator (`contextlib.aclosing`).
        """

    def fileno(self) -> int | None:
        """Give a file descriptor for sendfile or splice, valid until close, None where there is none.

        Its file position belongs to nobody: read with an offset.
        """

    async def close(self) -> None:
        """Let go of the blob; again is harmless."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Writer(Protocol):
    """An open ingest; nobody else can open its ref meanwhile. Leaving `async with` closes it.

    Errors: those of the port; Aborted once the ingest was aborted; FailedPrecondition when closed. A call that fails
    leaves the ingest as it was, except where bytes could not be made durable (DataLoss): such an ingest is removed.
    Concurrency: calls are carried out one after the other.
    """

    @property
    def ref(self) -> str:
        """The ingest's name."""

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far, as of the last call that returned."""

    async def status(self) -> Status:
        """Give the state of the ingest."""

    async def write(self, data: Chunk) -> int:
        """Append all of the data and give the new offset."""

    async def truncate(self, size: int = 0) -> None:
        """Cut the ingest to its first `size` bytes.

        Raises OutOfRange if it has fewer; Unimplemented in a store that can only cut to 0.
        """

    async def commit(self, size: int = 0, expected: str = "") -> Info:
        """Make the ingest a blob: durable and visible when this returns, and the ingest gone.

        size, if not 0, and expected, if not empty, must be those of the bytes: FailedPrecondition
        `unexpected commit size A, expected B` and `unexpected commit digest A, expected B`; the ingest stays. A blob
        that is there already: AlreadyExists `content D`; the ingest goes. Whatever the outcome, the writer is closed.
        Without expected the blob has the algorithm that the writer was opened with.
        """

    async def close(self) -> None:
        """Let go of the ref and keep the ingest, to be resumed or aborted; again, or after commit, is harmless."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class LabelledWriter(Writer, Protocol):
    """A writer of a store that keeps labels."""

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] = NO_LABELS) -> Info:
        """Do as the Writer's, and give the new blob these labels at once; empty values are not stored.

        Raises InvalidArgument for a label that is too long, before anything is done. Of a blob that is there already
        the labels stay as they are.
        """


class ContentStore(Protocol):
    """Bytes by digest, for all namespaces alike.

    A *blob* is immutable and complete; its name is the digest of its bytes, and it exists once however often it was
    written. An *ingest* is a blob to be, named by a *ref*: any text up to MAX_REF_BYTES, never used as a path. Ingests
    outlive their writers and the daemon; blobs and ingests know nothing of each other. Who may see what, what is still
    needed, and labels (unless the store keeps them) are the caller's to know; it passes refs that cannot clash
    (`NAMESPACE/1/REF`) and deletes what nothing refers to.

    Errors, beside those named at a method: InvalidArgument for a malformed digest, filter, empty or too long ref or
    negative number; NotFound `content D` and `ingest ref 'R'`; ResourceExhausted for a full disk or no descriptors
    left; FailedPrecondition for a read-only file system; PermissionDenied; DataLoss for a device that fails and for a
    blob that is not what it was. After an error nothing has changed unless said so.
    Durability: a commit that returned survives a power cut. A delete may be undone by one. The bytes of an ingest
    survive one once its writer is closed; what is there is hashed when it is resumed.
    Concurrency: any calls may overlap. Of concurrent commits of one digest one succeeds, the others get AlreadyExists
    after the blob is durable.
    Cancellation: a cancelled call did all of its work or none of it, and has ended when CancelledError comes out of it;
    a cancelled commit closes the writer too.
    """

    async def info(self, digest: str) -> Info:
        """Give what is known of a blob. Raises NotFound; DataLoss if it is there but is no file."""

    def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """Give all blobs that match any of the filters (fields digest and labels), ordered by digest.

        What comes or goes meanwhile may be given or not.
        """

    async def update(self, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Replace a blob's labels, or only those that paths name (`labels`, `labels.KEY`; an empty value deletes).

        Raises Unimplemented in a store that keeps no labels.
        """

    async def delete(self, digest: str) -> None:
        """Remove a blob. Raises NotFound. Works on a full disk."""

    async def reader(self, digest: str, size: int | None = None) -> Reader:
        """Open a blob. Raises NotFound; DataLoss naming both sizes if it has not `size` bytes where that is given."""

    async def verify(self, digest: str) -> Info:
        """Read a blob again and hash it. Raises NotFound, DataLoss `content D has the bytes of E`."""

    async def writer(self, ref: str, total: int = 0, expected: str = "") -> Writer:
        """Begin the ingest `ref`, or resume it with all of its bytes.

        total is the size to come if known, expected the digest if known; its algorithm is the writer's. It begins again
        at 0 when a total is known that differs from the one it was begun with, or that it has grown over.
        Raises AlreadyExists `content D` if expected is there already, except where total shows that the blob has lost
        bytes: then it can be written again; Unavailable `ref R locked for 20ms (since T)` while it is open elsewhere.
        """

    async def status(self, ref: str) -> Status:
        """Give the state of an ingest, open or not. Raises NotFound."""

    async def list_statuses(self, *filters: str) -> list[Status]:
        """Give all ingests that match any of the filters (field ref), in any order; damaged ones are left out."""

    async def abort(self, ref: str) -> None:
        """Remove an ingest, even an open one: its writer's next call then raises Aborted. Raises NotFound.

        The ref is free again at the latest when that writer is closed. Works on a full disk.
        """


class LabelledContentStore(ContentStore, Protocol):
    """A store that keeps labels: one namespace's blobs, or those of another daemon."""

    async def writer(self, ref: str, total: int = 0, expected: str = "") -> LabelledWriter:
        """See ContentStore.

        Where the store can see that the bytes of expected are there though this namespace's blob is not, the ingest
        begins with all of them: offset is the blob's size, and commit needs no data.
        """


async def read_blob(store: ContentStore, digest: str, max_bytes: int) -> bytes:
    """Read a small blob (a manifest, a config) whole. Raises as `reader`, ResourceExhausted if it is over max_bytes."""
    async with await store.reader(digest) as blob:
        if blob.size > max_bytes:
            raise ResourceExhausted(f"content {digest} has {blob.size} bytes, at most {max_bytes} wanted")
        parts = [part async for part in blob.chunks()]
    return b"".join(parts)


CONTENT: PluginType[ContentStore] = PluginType("io.containerd.content.v1")
