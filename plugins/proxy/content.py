"""The content store of another process, reached over containerd's content service.

It is the store of the namespace and lease of each call, which travel with it. What the service has no words for is not
possible: an open reader ends with its blob, and an ingest can be cut only to nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from moored.api.convert import to_ns
from moored.kernel.closing import Closing
from moored.kernel.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    MooredError,
    NotFound,
    OutOfRange,
    Unimplemented,
)
from moored.kernel.filters import compile_filters
from moored.kernel.namespaces import current_lease, namespace_or_empty
from moored.kernel.plugin import Registration
from moored.kernel.ports.content import (
    MAX_CHUNK,
    MAX_REF_BYTES,
    NO_LABELS,
    Chunk,
    Digest,
    Info,
    LabelledContentStore,
    Status,
)
from moored.kernel.workers import to_the_end
from moored.plugins.proxy.endpoint import ProxySettings, RemoteEndpoint, RemoteStream, registration_of

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from moored.api.services.content.v1 import content_pb2 as pb

    M = TypeVar("M", bound=Message)
else:
    M = TypeVar("M")
R = TypeVar("R")

SERVICE: Final = "/containerd.services.content.v1.Content/"
WRITE_BYTES: Final = 4 << 20
"""Bytes in one message of a write."""


def registration(name: str, settings: ProxySettings) -> Registration[LabelledContentStore, None]:
    """Make the plugin `io.containerd.content.v1.<name>`. Raises InvalidArgument for an address that cannot be."""
    return registration_of(name, settings, RemoteContent)


class RemoteContent:
    """The port's LabelledContentStore over an endpoint, which stays the caller's."""

    def __init__(self, endpoint: RemoteEndpoint) -> None:
        self._endpoint = endpoint

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def info(self, digest: str) -> Info:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

        good = Digest(digest)
        with _missing_blob(good):
            answer = await self._unary("Info", pb.InfoRequest(digest=good), pb.InfoResponse)
        return _info(answer.info)

    async def walk(self, *filters: str) -> AsyncGenerator[Info]:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

        compile_filters(filters)
        stream = self._endpoint.server_stream(
            f"{SERVICE}List", pb.ListContentRequest(filters=filters), pb.ListContentResponse, namespace_or_empty()
        )
        async with aclosing(stream) as answers:
            async for answer in answers:
                for info in answer.info:
                    yield _info(info)

    async def update(self, digest: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Info:
        """See the port."""
        from google.protobuf.field_mask_pb2 import FieldMask

        from moored.api.services.content.v1 import content_pb2 as pb

        good = Digest(digest)
        request = pb.UpdateRequest(
            info=pb.Info(digest=good, labels=labels), update_mask=FieldMask(paths=paths) if paths else None
        )
        with _missing_blob(good):
            answer = await self._unary("Update", request, pb.UpdateResponse)
        return _info(answer.info)

    async def delete(self, digest: str) -> None:
        """See the port."""
        from google.protobuf.empty_pb2 import Empty

        from moored.api.services.content.v1 import content_pb2 as pb

        good = Digest(digest)
        with _missing_blob(good):
            await self._unary("Delete", pb.DeleteContentRequest(digest=good), Empty)

    async def reader(self, digest: str, size: int | None = None) -> RemoteReader:
        """See the port; it reads as long as the blob is there."""
        info = await self.info(digest)
        if size not in (None, info.size):
            raise DataLoss(f"content {info.digest} has {info.size} bytes, {size} wanted")
        return RemoteReader(self._endpoint, namespace_or_empty(), info)

    async def verify(self, digest: str) -> Info:
        """See the port."""
        info = await self.info(digest)
        hasher = hashlib.new(info.digest.algorithm)
        async with await self.reader(digest) as reader, aclosing(reader.chunks()) as chunks:
            async for chunk in chunks:
                hasher.update(chunk)
        found = f"{info.digest.algorithm}:{hasher.hexdigest()}"
        if found != info.digest:
            raise DataLoss(f"content {info.digest} has the bytes of {found}")
        return info

    # --- ingests ------------------------------------------------------------------------------------------------------

    async def writer(self, ref: str, total: int = 0, expected: str = "") -> RemoteWriter:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

        _check_ref(ref)
        if total < 0:
            raise InvalidArgument(f"total {total} of ref {ref[:256]!r} is negative")
        wanted = Digest(expected) if expected else ""
        stream = await self._endpoint.bidi_stream(
            f"{SERVICE}Write", pb.WriteContentResponse, namespace_or_empty(), lease=current_lease()
        )
        opening = asyncio.ensure_future(stream.ask(pb.WriteContentRequest(ref=ref, total=total, expected=wanted)))
        try:
            answer = await to_the_end(opening)
        except AlreadyExists as error:
            raise AlreadyExists(f"content {wanted}") from error
        except asyncio.CancelledError:
            await to_the_end(self._undo(ref, stream, opening))
            raise
        return RemoteWriter(self, ref, stream, answer)

    async def _undo(
        self,
        ref: str,
        stream: RemoteStream[pb.WriteContentResponse],
        opening: asyncio.Future[pb.WriteContentResponse],
    ) -> None:
        """Free a ref that was opened for a caller who is gone, and remove the ingest if it has no bytes."""
        await stream.end()
        if opening.cancelled() or opening.exception() is not None or opening.result().offset:
            return
        with suppress(MooredError):
            await self.abort(ref)

    async def status(self, ref: str) -> Status:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

        _check_ref(ref)
        with _missing_ingest(ref):
            answer = await self._unary("Status", pb.StatusRequest(ref=ref), pb.StatusResponse)
        return _status(answer.status)

    async def list_statuses(self, *filters: str) -> list[Status]:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

        compile_filters(filters)
        answer = await self._unary("ListStatuses", pb.ListStatusesRequest(filters=filters), pb.ListStatusesResponse)
        return [_status(status) for status in answer.statuses]

    async def abort(self, ref: str) -> None:
        """See the port."""
        from google.protobuf.empty_pb2 import Empty

        from moored.api.services.content.v1 import content_pb2 as pb

        _check_ref(ref)
        with _missing_ingest(ref):
            await self._unary("Abort", pb.AbortRequest(ref=ref), Empty)

    async def _unary(self, method: str, request: Message, response_type: type[M]) -> M:
        return await to_the_end(
            self._endpoint.unary(SERVICE + method, request, response_type, namespace_or_empty(), lease=current_lease())
        )


class RemoteReader(Closing):
    """The port's Reader; every read is a call."""

    def __init__(self, endpoint: RemoteEndpoint, namespace: str, info: Info) -> None:
        self._endpoint = endpoint
        self._namespace = namespace
        self._info = info
        self._closed = False

    @property
    def digest(self) -> Digest:
        """See the port."""
        return self._info.digest

    @property
    def size(self) -> int:
        """See the port."""
        return self._info.size

    async def read_at(self, offset: int, size: int = MAX_CHUNK) -> bytes:
        """See the port."""
        end = self._end(offset, min(size, MAX_CHUNK))
        if end == offset:
            return b""
        async with aclosing(self.chunks(offset, end - offset)) as parts:
            return b"".join([part async for part in parts])

    async def chunks(self, offset: int = 0, size: int = 0) -> AsyncGenerator[bytes]:
        """See the port; what is read ahead waits in the connection."""
        from moored.api.services.content.v1 import content_pb2 as pb

        at, end = offset, self._end(offset, size or self.size)
        if at == end:
            return
        request = pb.ReadContentRequest(digest=self.digest, offset=offset, size=end - offset)
        stream = self._endpoint.server_stream(f"{SERVICE}Read", request, pb.ReadContentResponse, self._namespace)
        with _missing_blob(self.digest):
            async with aclosing(stream) as answers:
                async for answer in answers:
                    data = answer.data
                    at += len(data)
                    for start in range(0, len(data), MAX_CHUNK):
                        yield data[start : start + MAX_CHUNK] if len(data) > MAX_CHUNK else data
        if at != end:
            raise DataLoss(f"content {self.digest} ends at {at} bytes, {end} wanted")

    def fileno(self) -> int | None:
        """Give None: the bytes are elsewhere."""
        return None

    async def close(self) -> None:
        """See the port."""
        self._closed = True

    def _end(self, offset: int, size: int) -> int:
        if self._closed:
            raise FailedPrecondition(f"reader of content {self.digest} is closed")
        if offset < 0 or size < 0:
            raise InvalidArgument(f"cannot read {size} bytes at {offset}, a negative number has no meaning")
        if offset > self.size:
            raise OutOfRange(f"read past object length {self.size} bytes")
        return min(self.size, offset + size)


class RemoteWriter(Closing):
    """The port's LabelledWriter on a Write stream, which holds the ref until it ends.

    An error from the other side ends the stream, and the writer is closed.
    """

    def __init__(
        self,
        store: RemoteContent,
        ref: str,
        stream: RemoteStream[pb.WriteContentResponse],
        opened: pb.WriteContentResponse,
    ) -> None:
        self._store = store
        self._ref = ref
        self._stream = stream
        self._turn = asyncio.Lock()
        self._digest = Digest(opened.digest)
        self._offset = opened.offset
        self._closed = False
        self._aborted = False

    @property
    def ref(self) -> str:
        """See the port."""
        return self._ref

    @property
    def digest(self) -> Digest:
        """See the port."""
        return self._digest

    async def status(self) -> Status:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

        async with self._turn:
            answer = await self._ask(pb.WriteContentRequest(action=pb.STAT))
            stated = Status(
                ref=self._ref,
                offset=answer.offset,
                total=answer.total,
                started_at=_ns(answer.started_at),
                updated_at=_ns(answer.updated_at),
            )
            if stated.total:
                return stated
            try:
                # The stream knows only a total that was given on it.
                return replace(stated, total=(await self._store.status(self._ref)).total)
            except NotFound:
                return stated

    async def write(self, data: Chunk) -> int:
        """See the port."""
        async with self._turn:
            self._check()
            return await to_the_end(self._write(memoryview(data).cast("B")))

    async def _write(self, data: memoryview) -> int:
        from moored.api.services.content.v1 import content_pb2 as pb

        for start in range(0, len(data), WRITE_BYTES):
            part = bytes(data[start : start + WRITE_BYTES])
            await self._ask(pb.WriteContentRequest(action=pb.WRITE, offset=self._offset, data=part))
        return self._offset

    async def truncate(self, size: int = 0) -> None:
        """See the port."""
        from moored.api.services.content.v1 import content_pb2 as pb

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
        """See the port."""
        async with self._turn:
            self._check()
            try:
                if size < 0:
                    raise InvalidArgument(f"commit size {size} is negative")
                if size not in (0, self._offset):
                    raise FailedPrecondition(f"unexpected commit size {self._offset}, expected {size}")
                wanted = Digest(expected) if expected else ""
                return await to_the_end(self._commit(wanted, labels))
            finally:
                await self._end()

    async def _commit(self, wanted: str, labels: Mapping[str, str]) -> Info:
        from moored.api.services.content.v1 import content_pb2 as pb

        # The number of bytes again: with an offset of 0 the other side would cut them off.
        request = pb.WriteContentRequest(
            action=pb.COMMIT, total=self._offset, offset=self._offset, expected=wanted, labels=labels
        )
        try:
            await self._ask(request)
        except AlreadyExists as error:
            raise AlreadyExists(f"content {wanted or self._digest}") from error
        return await self._store.info(self._digest)

    async def close(self) -> None:
        """See the port."""
        async with self._turn:
            await self._end()

    async def _ask(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        self._check()
        try:
            answer = await self._stream.ask(request)
        except MooredError as error:
            self._closed, self._aborted = True, isinstance(error, Aborted)
            raise
        self._offset = answer.offset
        if answer.digest:
            self._digest = Digest(answer.digest)
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
def _missing_blob(digest: Digest) -> Generator[None]:
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


def _check_ref(ref: str) -> None:
    if not ref:
        raise InvalidArgument("ref must not be empty")
    size = len(ref.encode("utf-8", "surrogatepass"))
    if size > MAX_REF_BYTES:
        raise InvalidArgument(f"ref of {size} bytes, at most {MAX_REF_BYTES} wanted")


def _info(info: pb.Info) -> Info:
    return Info(
        digest=Digest(info.digest),
        size=info.size,
        created_at=_ns(info.created_at),
        updated_at=_ns(info.updated_at),
        labels=dict(info.labels),
    )


def _status(status: pb.Status) -> Status:
    return Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        started_at=_ns(status.started_at),
        updated_at=_ns(status.updated_at),
        expected=status.expected,
    )


def _ns(stamp: Timestamp) -> int:
    return to_ns(stamp) or 0
