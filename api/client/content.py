"""Blobs and the ingests that they come from: the port's content store, for the namespace and lease of a client.

What the wire has no words for is not possible: an open reader ends with its blob, and an ingest can be cut only to
nothing. Source: contracts/semantics.md 2.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from types import TracebackType
from typing import Final, Self

from moored.api.client.connection import Calls, Stream
from moored.api.client.wire import mask, nanoseconds
from moored.api.services.content.v1 import content_pb2 as pb
from moored.api.services.content.v1 import content_pb2_grpc
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unimplemented,
)
from moored.kernel.imagespec.ingests import open_writer
from moored.kernel.ports.content import MAX_CHUNK, NO_LABELS, Chunk, Digest, Info, Status
from moored.kernel.workers import to_the_end

WRITE_BYTES: Final = 4 << 20
"""Bytes in one message of a write."""
SMALL: Final = 8 << 20
"""Bytes of a blob that `read` gives whole unless asked for more."""


class Content:
    """The blobs of the namespace. Errors, beside those of the connection, as `kernel.ports.content.ContentStore`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = content_pb2_grpc.ContentStub(calls.channel)

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def info(self, digest: str) -> Info:
        """Give what is known of a blob. Raises NotFound."""
        good = Digest(digest)
        with _missing_blob(good):
            return _info((await self._calls.unary(self._stub.Info, pb.InfoRequest(digest=good))).info)

    async def exists(self, digest: str) -> bool:
        """Whether the namespace has a blob."""
        try:
            await self.info(digest)
        except NotFound:
            return False
        return True

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """Give all blobs that match any filter (fields `digest`, `labels`), by digest."""
        stream = self._calls.server_stream(self._stub.List, pb.ListContentRequest(filters=filters))
        async with aclosing(stream) as answers:
            async for answer in answers:
                for info in answer.info:
                    yield _info(info)

    async def update(self, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """Replace a blob's labels, or those that paths name (`labels.KEY`), and give the result."""
        good = Digest(digest)
        request = pb.UpdateRequest(info=pb.Info(digest=good, labels=labels), update_mask=mask(paths))
        with _missing_blob(good):
            return _info((await self._calls.unary(self._stub.Update, request)).info)

    async def label(self, digest: str, labels: Mapping[str, str]) -> Info:
        """Set some labels, an empty value removes one, and give the result."""
        return (
            await self.update(digest, labels, [f"labels.{key}" for key in labels])
            if labels
            else await self.info(digest)
        )

    async def delete(self, digest: str) -> None:
        """Remove a blob, whoever refers to it. Raises NotFound."""
        good = Digest(digest)
        with _missing_blob(good):
            await self._calls.unary(self._stub.Delete, pb.DeleteContentRequest(digest=good))

    async def reader(self, digest: str, size: int | None = None) -> Reader:
        """Open a blob. Raises NotFound, DataLoss if it has not `size` bytes where that is given."""
        info = await self.info(digest)
        if size not in (None, info.size):
            raise DataLoss(f"content {info.digest} has {info.size} bytes, {size} wanted")
        return Reader(self._calls, info)

    async def read(self, digest: str, *, limit: int = SMALL) -> bytes:
        """Give a small blob whole. Raises NotFound, ResourceExhausted for one of more bytes than the limit."""
        async with await self.reader(digest) as blob:
            if blob.size > limit:
                raise ResourceExhausted(f"content {digest} has {blob.size} bytes, at most {limit} wanted")
            return await blob.read()

    async def verify(self, digest: str) -> Info:
        """Read a blob and hash it. Raises NotFound, DataLoss for other bytes than its digest says."""
        info = await self.info(digest)
        hasher = hashlib.new(info.digest.algorithm)
        async with aclosing(Reader(self._calls, info).chunks()) as chunks:
            async for chunk in chunks:
                hasher.update(chunk)
        found = f"{info.digest.algorithm}:{hasher.hexdigest()}"
        if found != info.digest:
            raise DataLoss(f"content {info.digest} has the bytes of {found}")
        return info

    # --- ingests ------------------------------------------------------------------------------------------------------

    async def writer(self, ref: str, total: int = 0, expected: str = "") -> Writer:
        """Begin the ingest `ref`, or resume it: `Writer.offset` tells how many bytes are there.

        Raises AlreadyExists for an expected blob that is there, Unavailable while the ref is open elsewhere.
        """
        if not ref:
            raise InvalidArgument("ref must not be empty")
        if total < 0:
            raise InvalidArgument(f"total {total} of ref {ref[:256]!r} is negative")
        wanted = Digest(expected) if expected else ""
        stream = self._calls.bidi_stream(self._stub.Write)
        try:
            opened = await stream.ask(pb.WriteContentRequest(ref=ref, total=total, expected=wanted))
        except AlreadyExists as error:
            raise AlreadyExists(f"content {wanted}") from error
        except BaseException:
            stream.cancel()
            raise
        return Writer(self, ref, stream, opened)

    async def write(
        self,
        ref: str,
        data: bytes | AsyncIterable[bytes],
        *,
        total: int = 0,
        expected: str = "",
        labels: Mapping[str, str] = NO_LABELS,
    ) -> Info:
        """Store bytes, from the first on, and give the blob; one that is there already is given as it is.

        total and expected, where they are known, must be the bytes': FailedPrecondition. Waits for a ref that is open
        elsewhere. After an error the ingest stays.
        """
        try:
            async with await open_writer(self, ref, total, expected) as writer:
                await writer.truncate()
                if isinstance(data, bytes):
                    await writer.write(data)
                else:
                    async for part in data:
                        await writer.write(part)
                return await writer.commit(total, expected, labels)
        except AlreadyExists as error:
            return await self.info(expected or error.text.removeprefix("content "))

    async def status(self, ref: str) -> Status:
        """Give the state of an ingest. Raises NotFound."""
        with _missing_ingest(ref):
            return _status((await self._calls.unary(self._stub.Status, pb.StatusRequest(ref=ref))).status)

    async def list_statuses(self, *filters: str) -> list[Status]:
        """Give all ingests that match any filter (field `ref`)."""
        answer = await self._calls.unary(self._stub.ListStatuses, pb.ListStatusesRequest(filters=filters))
        return [_status(status) for status in answer.statuses]

    async def abort(self, ref: str) -> None:
        """Remove an ingest. Raises NotFound."""
        with _missing_ingest(ref):
            await self._calls.unary(self._stub.Abort, pb.AbortRequest(ref=ref))


class Reader:
    """An open blob, with a position for `read`. Leaving `async with` closes it. Concurrency: any calls may overlap.

    Errors: NotFound once the blob is deleted, DataLoss if it is shorter than it was, FailedPrecondition when closed.
    """

    def __init__(self, calls: Calls, info: Info) -> None:
        self._calls = calls
        self._stub = content_pb2_grpc.ContentStub(calls.channel)
        self._info = info
        self._at = 0
        self._closed = False

    @property
    def digest(self) -> Digest:
        """Which blob it is."""
        return self._info.digest

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._info.size

    async def read(self, size: int = -1) -> bytes:
        """Give so many bytes from the position on, all that are left for -1; fewer only at the end, then none."""
        end = self._end(self._at, self.size if size < 0 else size)
        async with aclosing(self.chunks(self._at, end - self._at)) as parts:
            data = b"".join([part async for part in parts]) if end > self._at else b""
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, as files do, and give it. Raises InvalidArgument for one before the beginning."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise InvalidArgument(f"cannot seek to {offset} from {whence}, wanted a place in the blob")
        self._at = min(base + offset, self.size)
        return self._at

    def tell(self) -> int:
        """Give the position."""
        return self._at

    async def read_at(self, offset: int, size: int = MAX_CHUNK) -> bytes:
        """Give the bytes from offset on, `size` or MAX_CHUNK of them, fewer only before the end. Raises OutOfRange."""
        end = self._end(offset, min(size, MAX_CHUNK))
        if end == offset:
            return b""
        async with aclosing(self.chunks(offset, end - offset)) as parts:
            return b"".join([part async for part in parts])

    async def chunks(self, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes]:
        """Give the same piece by piece, each of at most MAX_CHUNK bytes; size 0 goes to the end."""
        at, end = offset, self._end(offset, size or self.size)
        if at == end:
            return
        request = pb.ReadContentRequest(digest=self.digest, offset=offset, size=end - offset)
        with _missing_blob(self.digest):
            async with aclosing(self._calls.server_stream(self._stub.Read, request)) as answers:
                async for answer in answers:
                    at += len(answer.data)
                    for start in range(0, len(answer.data), MAX_CHUNK):
                        yield answer.data[start : start + MAX_CHUNK]
        if at != end:
            raise DataLoss(f"content {self.digest} ends at {at} bytes, {end} wanted")

    def fileno(self) -> int | None:
        """Give None: the bytes are the daemon's."""
        return None

    async def close(self) -> None:
        """Let go of the blob; again is harmless."""
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _end(self, offset: int, size: int) -> int:
        if self._closed:
            raise FailedPrecondition(f"reader of content {self.digest} is closed")
        if offset < 0 or size < 0:
            raise InvalidArgument(f"cannot read {size} bytes at {offset}, a negative number has no meaning")
        if offset > self.size:
            raise OutOfRange(f"read past object length {self.size} bytes")
        return min(self.size, offset + size)


class Writer:
    """An open ingest; nobody else can open its ref meanwhile. Leaving `async with` closes it, the bytes stay.

    Errors: the daemon's, which close the writer; Aborted once the ingest was; FailedPrecondition when closed.
    Concurrency: one call after the other. Cancellation: a cancelled call did all of its work or none of it.
    """

    def __init__(
        self,
        store: Content,
        ref: str,
        stream: Stream[pb.WriteContentRequest, pb.WriteContentResponse],
        opened: pb.WriteContentResponse,
    ) -> None:
        self._store = store
        self._ref = ref
        self._stream = stream
        self._turn = asyncio.Lock()
        self._digest = opened.digest
        self._offset = opened.offset
        self._closed = False
        self._aborted = False

    @property
    def ref(self) -> str:
        """The ingest's name."""
        return self._ref

    @property
    def offset(self) -> int:
        """How many bytes it has."""
        return self._offset

    @property
    def digest(self) -> Digest:
        """The digest of the bytes so far."""
        return Digest(self._digest)

    async def status(self) -> Status:
        """Give the state of the ingest."""
        async with self._turn:
            answer = await self._ask(pb.WriteContentRequest(action=pb.STAT))
            total = answer.total
            if not total:
                # The stream knows only a total that was given on it.
                with suppress(NotFound):
                    total = (await self._store.status(self._ref)).total
            return Status(
                ref=self._ref,
                offset=answer.offset,
                total=total,
                started_at=nanoseconds(answer.started_at),
                updated_at=nanoseconds(answer.updated_at),
            )

    async def write(self, data: Chunk) -> int:
        """Append all of the data and give the new offset."""
        async with self._turn:
            self._check()
            return await to_the_end(self._write(memoryview(data).cast("B")))

    async def _write(self, data: memoryview) -> int:
        for start in range(0, len(data), WRITE_BYTES):
            part = bytes(data[start : start + WRITE_BYTES])
            await self._ask(pb.WriteContentRequest(action=pb.WRITE, offset=self._offset, data=part))
        return self._offset

    async def truncate(self, size: int = 0) -> None:
        """Cut it to nothing. Raises OutOfRange for a size that it has not, Unimplemented for other sizes than 0."""
        async with self._turn:
            self._check()
            if size < 0:
                raise InvalidArgument(f"size {size} to cut to is negative")
            if size > self._offset:
                raise OutOfRange(f"cannot cut to {size} bytes, ingest {self._ref!r} has {self._offset}")
            if size == self._offset:
                return
            if size:
                raise Unimplemented(f"cannot cut ingest {self._ref!r} to {size} bytes, only to 0")
            await to_the_end(self._ask(pb.WriteContentRequest(action=pb.WRITE, offset=0)))

    async def commit(self, size: int = 0, expected: str = "", labels: Mapping[str, str] = NO_LABELS) -> Info:
        """Make the ingest a blob, durable and visible when this returns, and close the writer.

        size, if not 0, and expected, if not empty, must be the bytes': FailedPrecondition, and the ingest stays. Raises
        AlreadyExists `content D` for a blob that is there; the ingest goes then.
        """
        async with self._turn:
            self._check()
            try:
                return await to_the_end(self._commit(size, Digest(expected) if expected else "", labels))
            finally:
                await self._end()

    async def _commit(self, size: int, expected: str, labels: Mapping[str, str]) -> Info:
        if size < 0:
            raise InvalidArgument(f"commit size {size} is negative")
        if size not in (0, self._offset):
            raise FailedPrecondition(f"unexpected commit size {self._offset}, expected {size}")
        # The number of bytes again: with an offset of 0 the daemon would cut them off.
        request = pb.WriteContentRequest(
            action=pb.COMMIT, total=self._offset, offset=self._offset, expected=expected, labels=labels
        )
        try:
            await self._ask(request)
        except AlreadyExists as error:
            raise AlreadyExists(f"content {expected or self._digest}") from error
        return await self._store.info(self._digest)

    async def close(self) -> None:
        """Let go of the ref and keep the ingest, to be resumed or aborted; again, or after commit, is harmless."""
        async with self._turn:
            await self._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        self._check()
        try:
            answer = await self._stream.ask(request)
        except MooredError as error:
            self._closed, self._aborted = True, isinstance(error, Aborted)
            raise
        except BaseException:
            self._closed = True
            self._stream.cancel()
            raise
        self._offset, self._digest = answer.offset, answer.digest or self._digest
        return answer

    async def _end(self) -> None:
        if not self._closed:
            self._closed = True
            await to_the_end(self._stream.end())

    def _check(self) -> None:
        if self._aborted:
            raise Aborted(f"ingest ref {self._ref!r} was aborted")
        if self._closed:
            raise FailedPrecondition(f"writer of ref {self._ref!r} is closed")


@contextmanager
def _missing_blob(digest: str) -> Generator[None]:
    try:
        yield
    except NotFound as error:
        raise NotFound(f"content {digest}") from error


@contextmanager
def _missing_ingest(ref: str) -> Generator[None]:
    try:
        yield
    except NotFound as error:
        raise NotFound(f"ingest ref {ref[:256]!r}") from error


def _info(info: pb.Info) -> Info:
    return Info(
        digest=Digest(info.digest),
        size=info.size,
        created_at=nanoseconds(info.created_at),
        updated_at=nanoseconds(info.updated_at),
        labels=dict(info.labels),
    )


def _status(status: pb.Status) -> Status:
    return Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        started_at=nanoseconds(status.started_at),
        updated_at=nanoseconds(status.updated_at),
        expected=status.expected,
    )
