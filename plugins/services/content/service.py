"""The content service on the wire. Source: semantics 2."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from typing import Any, Final, cast

from google.protobuf.empty_pb2 import Empty

from moored.api.convert import timestamp
from moored.api.services.content.v1 import content_pb2 as pb
from moored.api.services.content.v1 import content_pb2_grpc as rpc
from moored.kernel.errors import InvalidArgument, NotFound, OutOfRange
from moored.kernel.filters import quote
from moored.kernel.ports.content import Digest, Info, LabelledContentStore, Status, digest_fault
from moored.kernel.ports.services import GrpcRegistrar
from moored.plugins.services.content.write import WriteStream

INFOS: Final = 100
"""Infos in one message of a list."""
EMPTY: Final = Empty()


class ContentService(rpc.ContentServicer):
    """containerd.services.content.v1.Content."""

    def __init__(self, store: LabelledContentStore) -> None:
        self._store = store

    def register(self, server: GrpcRegistrar) -> None:
        """See GrpcService."""
        rpc.add_ContentServicer_to_server(self, cast(Any, server))

    async def Info(self, request: pb.InfoRequest, context: Any) -> pb.InfoResponse:  # noqa: N802
        """What the namespace knows of a blob."""
        digest = validated(request.digest)
        with worded(digest):
            return pb.InfoResponse(info=to_message(await self._store.info(digest)))

    async def Update(self, request: pb.UpdateRequest, context: Any) -> pb.UpdateResponse:  # noqa: N802
        """Replace labels, all or those that the mask names; nothing else of a blob can change."""
        digest = validated(request.info.digest)
        with worded(digest):
            info = await self._store.update(digest, dict(request.info.labels), list(request.update_mask.paths))
        return pb.UpdateResponse(info=to_message(info))

    async def List(  # noqa: N802
        self, request: pb.ListContentRequest, context: Any
    ) -> AsyncGenerator[pb.ListContentResponse]:
        """Messages of up to 100 infos, none at all where there is no blob."""
        infos: list[pb.Info] = []
        async with aclosing(self._store.walk(*request.filters)) as found:
            async for info in found:
                infos.append(to_message(info))
                if len(infos) == INFOS:
                    yield pb.ListContentResponse(info=infos)
                    infos.clear()
        if infos:
            yield pb.ListContentResponse(info=infos)

    async def Delete(self, request: pb.DeleteContentRequest, context: Any) -> Empty:  # noqa: N802
        """Remove the namespace's record; references are not looked at, and the file goes with the next collection."""
        if fault := digest_fault(request.digest):
            raise InvalidArgument(fault, bare=True)
        with worded(request.digest):
            await self._store.delete(request.digest)
        return EMPTY

    async def Read(  # noqa: N802
        self, request: pb.ReadContentRequest, context: Any
    ) -> AsyncGenerator[pb.ReadContentResponse]:
        """The bytes from offset on, `size` of them or (0 and less) to the end; offsets of the answer begin at 0."""
        if fault := digest_fault(request.digest):
            raise InvalidArgument(f"{request.digest[:256]}: {fault}", bare=True)
        with worded(request.digest):
            reader = await self._store.reader(request.digest)
        async with reader:
            offset = max(0, request.offset)
            if offset > reader.size:
                raise OutOfRange(f"read past object length {reader.size} bytes", bare=True)
            sent = 0
            async with aclosing(reader.chunks(offset, max(0, request.size))) as chunks:
                async for data in chunks:
                    yield pb.ReadContentResponse(offset=sent, data=data)
                    sent += len(data)

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:  # noqa: N802
        """The state of an ingest."""
        try:
            return pb.StatusResponse(status=_status(await self._store.status(request.ref)))
        except NotFound as error:
            text = f"could not get status for ref {quote(request.ref)}: reference {request.ref}"
            raise NotFound(text) from error

    async def ListStatuses(  # noqa: N802
        self, request: pb.ListStatusesRequest, context: Any
    ) -> pb.ListStatusesResponse:
        """The state of all ingests of the namespace."""
        found = await self._store.list_statuses(*request.filters)
        return pb.ListStatusesResponse(statuses=[_status(status) for status in found])

    async def Write(  # noqa: N802
        self, requests: Any, context: Any
    ) -> AsyncGenerator[pb.WriteContentResponse]:
        """Write an ingest, each message answered before the next is looked at; ends with the answer to a COMMIT.

        The end of the client's messages keeps the ingest for later: a client that was cut off looks the same at
        first, so that it never stands for a COMMIT, and it is not answered.
        """
        async with aclosing(WriteStream(self._store).answers(requests)) as answers:
            async for answer in answers:
                yield answer

    async def Abort(self, request: pb.AbortRequest, context: Any) -> Empty:  # noqa: N802
        """Remove an ingest, also one that a stream is writing, which then fails."""
        try:
            await self._store.abort(request.ref)
        except NotFound as error:
            raise NotFound(f"reference {request.ref}") from error
        return EMPTY


def validated(digest: str) -> Digest:
    """Give a digest from a request. Raises InvalidArgument in the words of Info and Update."""
    if digest_fault(digest):
        raise InvalidArgument(f"{quote(digest[:256])} failed validation", bare=True)
    return Digest(digest)


@contextmanager
def worded(digest: str) -> Generator[None]:
    """Raise a missing blob as clients know it."""
    try:
        yield
    except NotFound as error:
        raise NotFound(f"content digest {digest}") from error


def to_message(info: Info) -> pb.Info:
    """A blob on the wire."""
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=info.labels,
    )


def _status(status: Status) -> pb.Status:
    return pb.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )
